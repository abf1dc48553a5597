"""Elementwise operators and reductions (specification sections 2.3 to 2.8).

Integers wrap where the specification leaves an overflow unpredictable. f16 and bf16 are computed in f32 and rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from tosaic.execute import kernels
from tosaic.execute.handlers import HANDLERS, Handler, Kernel, as_float, as_torch, from_torch, handles, packed
from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.types import DType


def _float(function: Callable[..., torch.Tensor]) -> Handler:
    """Handler of an operator on floats: in f32, then rounded to the result's type."""

    def handler(node: Node) -> Kernel:
        return lambda *operands: from_torch(function(*map(as_float, operands)), node.output.dtype)

    return handler


def _exact(function: Callable[..., np.ndarray]) -> Handler:
    """Handler of an operator whose numpy function is right for each of its types."""
    return lambda node: function


def _mixed(on_integers: Callable[..., np.ndarray], on_floats: Callable[..., torch.Tensor]) -> Handler:
    """Handler of an operator that has one function for integers (numpy) and one for floats (torch)."""
    integers, floats = _exact(on_integers), _float(on_floats)
    return lambda node: (floats if node.inputs[0].dtype.is_float else integers)(node)


def _threaded(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    """A torch function on arrays."""
    return lambda *operands: function(*map(as_torch, operands)).numpy()


def _by_nan_mode(propagate: Handler, ignore: Handler) -> Handler:
    """Handler of an operator that has another function for floats when it ignores NaN."""
    return lambda node: (ignore if node.op.nan_mode is ops.NanMode.IGNORE and node.inputs[0].dtype.is_float else propagate)(node)


def _clz(x: np.ndarray) -> np.ndarray:
    # frexp gives the count of significant bits, exactly: 32 bits fit the 53 of f64
    return (32 - np.frexp(x.view(np.uint32).astype(np.float64))[1]).astype(np.int32)


def _intdiv(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Truncates toward zero; in int64, since -2^31 / -1 traps in int32. Division by zero, unpredictable, gives 0."""
    a, b = a.astype(np.int64), b.astype(np.int64)
    quotient = np.abs(a) // np.where(b == 0, 1, np.abs(b))
    return (quotient * np.sign(a) * np.sign(b)).astype(np.int32)


def _unsigned(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.itemsize}") if x.flags.c_contiguous else np.ascontiguousarray(x).view(f"u{x.itemsize}").reshape(x.shape)


def _logical_right_shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.right_shift(_unsigned(a), _unsigned(b))).view(a.dtype)


HANDLERS |= {
    ops.Erf: _float(torch.erf),
    ops.Sigmoid: _float(torch.sigmoid),
    ops.Tanh: _float(torch.tanh),
    ops.Ceil: _float(torch.ceil),
    ops.Cos: _float(torch.cos),
    ops.Exp: _float(torch.exp),
    ops.Floor: _float(torch.floor),
    ops.Log: _float(torch.log),
    ops.Reciprocal: _float(torch.reciprocal),
    ops.Rsqrt: _float(torch.rsqrt),
    ops.Sin: _float(torch.sin),
    ops.Pow: _float(torch.pow),
    ops.Abs: _mixed(np.abs, torch.abs),
    ops.Add: _mixed(_threaded(torch.add), torch.add),
    ops.Sub: _mixed(_threaded(torch.sub), torch.sub),
    ops.Maximum: _by_nan_mode(_mixed(_threaded(torch.maximum), torch.maximum), _float(torch.fmax)),
    ops.Minimum: _by_nan_mode(_mixed(_threaded(torch.minimum), torch.minimum), _float(torch.fmin)),
    ops.BitwiseNot: _exact(np.bitwise_not),
    ops.BitwiseAnd: _exact(np.bitwise_and),
    ops.BitwiseOr: _exact(np.bitwise_or),
    ops.BitwiseXor: _exact(np.bitwise_xor),
    ops.LogicalNot: _exact(np.logical_not),
    ops.LogicalAnd: _exact(np.logical_and),
    ops.LogicalOr: _exact(np.logical_or),
    ops.LogicalXor: _exact(np.logical_xor),
    ops.LogicalLeftShift: _exact(np.left_shift),
    ops.LogicalRightShift: _exact(_logical_right_shift),
    ops.IntDiv: _exact(_intdiv),
    ops.Clz: _exact(_clz),
    ops.Identity: _exact(lambda x: x),
    ops.Select: _exact(np.where),
    ops.Equal: _exact(np.equal),
    ops.Greater: _exact(np.greater),
    ops.GreaterEqual: _exact(np.greater_equal),
}


@handles(ops.Clamp)
def clamp(node: Node) -> Kernel:
    op, dtype = node.op, node.inputs[0].dtype
    low, high = (v.item() if dtype.is_integer else float(v) for v in np.array([op.min, op.max]).astype(dtype.numpy))
    if dtype.is_integer:
        return lambda x: as_torch(x).clamp(low, high).numpy()
    if op.nan_mode is ops.NanMode.IGNORE:  # NaN is as low as the least
        return lambda x: from_torch(as_float(x).nan_to_num(low, torch.inf, -torch.inf).clamp(low, high), dtype)
    return lambda x: from_torch(as_float(x).clamp(low, high), dtype)


@handles(ops.ArithmeticRightShift)
def arithmetic_right_shift(node: Node) -> Kernel:
    if not node.op.round:
        return np.right_shift

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if b.size == 1 and b.item() > 0:  # as lowering writes it: halve once more, rounding up
            half = as_torch(a) >> (b.item() - 1)
            return torch.add(half & 1, half.bitwise_right_shift_(1)).numpy()
        last = np.right_shift(a, np.maximum(b, 1) - b.dtype.type(1)) & a.dtype.type(1)
        return np.right_shift(a, b) + np.where(b > 0, last, a.dtype.type(0))

    return kernel


@handles(ops.Mul)
def mul(node: Node) -> Kernel:
    shift = node.op.shift
    if node.inputs[0].dtype.is_float:
        return _float(torch.mul)(node)
    if not shift:  # the low 32 bits
        return lambda a, b: torch.mul(as_torch(a).int(), as_torch(b).int()).numpy()

    shape, out_size = node.output.shape, node.output.type.size
    columns = shape[-1] if shape else 1
    half = 1 << (shift - 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.size < b.size:
            a, b = b, a
        if a.size != out_size or b.shape[:-1] not in (shape[:-1], (1,) * (len(shape) - 1)):
            product = as_torch(a).long() * as_torch(b)
            return product.add_(half).bitwise_right_shift_(shift).int().numpy()
        out = np.empty(shape, np.int32)
        rows = (-1, columns)
        kernels.mul(packed(a).reshape(rows), packed(b).reshape(-1, b.shape[-1] if b.shape else 1), shift, half, out.reshape(rows))
        return out

    return kernel


@handles(ops.Negate)
def negate(node: Node) -> Kernel:
    op, dtype = node.op, node.inputs[0].dtype
    if dtype.is_float:
        return _float(torch.neg)(node)

    def kernel(x: np.ndarray) -> np.ndarray:
        return np.clip(op.input_zp + op.output_zp - x.astype(np.int64), dtype.min, dtype.max).astype(dtype.numpy)

    return kernel


@handles(ops.Table)
def table(node: Node) -> Kernel:
    function = kernels.table8 if node.inputs[0].dtype is DType.INT8 else kernels.table16
    entries = node.inputs[1].data
    fixed = None if entries is None else entries.copy()

    def kernel(x: np.ndarray, entries: np.ndarray) -> np.ndarray:
        out = np.empty(x.size, node.output.dtype.numpy)
        function(packed(x).reshape(-1), packed(entries) if fixed is None else fixed, out)
        return out.reshape(x.shape)

    return kernel


def _reduce(function: Callable[..., np.ndarray], wide: Mapping[DType, type] | None = None) -> Handler:
    """Handler of a reduction that keeps its axis; `wide`: the type to compute in, where it is another."""

    def handler(node: Node) -> Kernel:
        axis, dtype = node.op.axis, node.inputs[0].dtype
        compute = (wide or {}).get(dtype, dtype.numpy)

        def kernel(x: np.ndarray) -> np.ndarray:
            result = function(x.astype(compute, copy=False), axis=axis, keepdims=True)
            return result.astype(dtype.numpy, copy=False)

        return kernel

    return handler


def _sum(x: np.ndarray, axis: int, keepdims: bool) -> np.ndarray:
    if x.dtype == np.int32:  # wraps, in any order
        return as_torch(x).sum(axis, keepdim=keepdims, dtype=torch.int32).numpy()
    return np.sum(x, axis=axis, keepdims=keepdims)


_F32 = {DType.FP16: np.float32, DType.BF16: np.float32}

HANDLERS |= {
    ops.ReduceAll: _reduce(np.all),
    ops.ReduceAny: _reduce(np.any),
    ops.ReduceMax: _by_nan_mode(_reduce(np.max, _F32), _reduce(np.fmax.reduce, _F32)),
    ops.ReduceMin: _by_nan_mode(_reduce(np.min, _F32), _reduce(np.fmin.reduce, _F32)),
    ops.ReduceProduct: _reduce(np.prod, _F32),
    ops.ReduceSum: _reduce(_sum, _F32),
}


@handles(ops.ArgMax)
def argmax(node: Node) -> Kernel:
    axis, wide = node.op.axis, np.float32 if node.inputs[0].dtype.is_float else node.inputs[0].dtype.numpy
    if wide is np.float32 and node.op.nan_mode is ops.NanMode.IGNORE:  # 0 where all are NaN

        def kernel(x: np.ndarray) -> np.ndarray:
            x = x.astype(wide, copy=False)
            return np.argmax(x == np.fmax.reduce(x, axis=axis, keepdims=True), axis=axis).astype(np.int32)

        return kernel
    return lambda x: np.argmax(x.astype(wide, copy=False), axis=axis).astype(np.int32)
