"""Pools (specification section 2.2)."""

from __future__ import annotations

import numpy as np

from tosaic.execute import kernels, short_floats
from tosaic.execute.handlers import Kernel, handles, packed
from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.types import DType


@handles(ops.AvgPool2d)
def avg_pool(node: Node) -> Kernel:
    op, dtype, shape = node.op, node.inputs[0].dtype, node.output.shape
    if op.accumulator(dtype) is DType.FP16:
        return short_floats.avg_pool(node)

    def of_integers(x: np.ndarray) -> np.ndarray:
        out = np.empty(shape, dtype.numpy)
        kernels.avg_pool(packed(x), op.kernel, op.stride, op.pad[::2], op.input_zp, op.output_zp, dtype.min, dtype.max, out)
        return out

    def of_floats(x: np.ndarray) -> np.ndarray:
        out = np.empty(shape, np.float32)
        kernels.avg_pool_float(packed(x.astype(np.float32, copy=False)), op.kernel, op.stride, op.pad[::2], out)
        return out.astype(dtype.numpy, copy=False)

    return of_integers if dtype.is_integer else of_floats


@handles(ops.MaxPool2d)
def max_pool(node: Node) -> Kernel:
    op, dtype, shape = node.op, node.inputs[0].dtype, node.output.shape
    wide = np.dtype(np.float32) if dtype.is_float else dtype.numpy

    def pool(x: np.ndarray) -> np.ndarray:
        out = np.empty(shape, x.dtype)
        kernels.max_pool(packed(x), op.kernel, op.stride, op.pad[::2], out)
        return out

    def ignoring(x: np.ndarray) -> np.ndarray:
        x = x.astype(wide, copy=False)
        numbers = x == x
        result = pool(np.where(numbers, x, -np.inf).astype(wide, copy=False))
        return np.where(pool(numbers.view(np.int8)), result, np.nan).astype(dtype.numpy)  # NaN where there is nothing else

    if dtype.is_float and op.nan_mode is ops.NanMode.IGNORE:
        return ignoring
    return lambda x: pool(x.astype(wide, copy=False)).astype(dtype.numpy, copy=False)
