"""MATMUL (specification section 2.2.8), exact in integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tosaic.execute import exact_products, short_floats, threads
from tosaic.execute.handlers import Kernel, as_float, as_torch, from_torch, handles
from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.types import DType

EXACT_F32 = 1 << 24
OF_RESULT, OF_PRODUCT = 5e-4, 2e-5  # about how many microseconds an element of the result takes, and a product

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]  # of a [H,C] and b [C,W] into out [H,W]


@handles(ops.MatMul)
def matmul(node: Node) -> Kernel:
    op, a_value, result = node.op, node.inputs[0], node.output
    if result.dtype is DType.FP16:
        return short_floats.matmul(node)
    if a_value.dtype.is_float:
        return lambda a, b: from_torch(torch.bmm(as_float(a), as_float(b)), result.dtype)
    if a_value.dtype is DType.INT16:
        return lambda a, b: _over_batch(_product16, as_torch(a), as_torch(b), torch.int64).numpy()
    if a_value.shape[2] <= exact_products.LONGEST and exact_products.is_int8_exact():
        return lambda a, b: _products8(as_torch(a), as_torch(b), op.a_zp, op.b_zp).numpy()

    largest = max(127 - op.a_zp, 128 + op.a_zp) * max(127 - op.b_zp, 128 + op.b_zp)
    step = EXACT_F32 // largest  # so many products sum up exactly

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        left, right = as_float(a) - op.a_zp, as_float(b) - op.b_zp
        total = torch.bmm(left[:, :, :step], right[:, :step]).int()
        for k in range(step, left.shape[2], step):
            total += torch.bmm(left[:, :, k : k + step], right[:, k : k + step]).int()
        return total.numpy()

    return kernel


def _over_batch(function: Product, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[N,H,W]: what `function` makes of each of a [N,H,C] and b [N,C,W], on as many threads as pay."""
    n, h, c = a.shape
    out = torch.empty((n, h, b.shape[2]), dtype=dtype)

    def share(begin: int, end: int) -> None:
        for i in range(begin, end):
            function(a[i], b[i], out[i])

    threads.in_parallel(share, n, threads.parts(n, out.numel() * (OF_RESULT + c * OF_PRODUCT)))
    return out


def _products8(a: torch.Tensor, b: torch.Tensor, a_zp: int, b_zp: int) -> torch.Tensor:
    """sum (a - a_zp)(b - b_zp) = sum ab - b_zp sum a - a_zp sum b + C a_zp b_zp."""
    total = _over_batch(exact_products.int8_product, a.contiguous(), b, torch.int32)
    if b_zp:
        total -= b_zp * a.sum(2, keepdim=True, dtype=torch.int32)
    if a_zp:
        total -= a_zp * (b.sum(1, keepdim=True, dtype=torch.int32) - a.shape[2] * b_zp)
    return total


def _product16(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """Products below 2^30: exact in f64 up to 2^23 of them."""
    out.copy_(left.double() @ right.double())
