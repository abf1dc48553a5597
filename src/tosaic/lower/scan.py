"""Running sums, products and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.elementwise import multiply
from tosaic.lower.layout import axis_of, sliced
from tosaic.lower.operand import Operand, Quant, inverse
from tosaic.lower.reals import as_int, as_real, is_whole
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_MATRIX = 512  # longest row that is multiplied by a triangular matrix, whose size is the square
_BITS = 23  # of the factors of a running product, so that they hold 1.0
_FACTORS = 16  # longest running product of quantized numbers: its range grows with each factor


def _is_real(x: Operand, dtype: torch.dtype | None) -> bool:
    return not is_whole(x) or (dtype is not None and dtype.is_floating_point)


@lower(aten.cumsum.default)
def cumsum(ctx: Context, x: Operand, dim: int, dtype: torch.dtype | None = None) -> Operand:
    """cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor

    int8 and float32: a product with a triangular matrix of ones, exact in the accumulator. Else log2(N) additions of the
    tensor to itself, moved by 1, 2, 4, ..; operands whose sum could pass 2^29 are shifted down first.
    """
    if not x.shape:
        return x
    axis = axis_of(dim, len(x.shape))
    length = x.shape[axis]
    if not _is_real(x, dtype):
        return Operand(_doubling(ctx, as_int(ctx, x), axis, _added).value)
    x = as_real(ctx, x)
    narrow = ctx.is_narrow(x) and x.quant is not None and x.quant.dtype is DType.INT8
    if narrow or x.quant is None:
        x = ctx.plain(x) if narrow else ctx.floats(x)[0]
        if x.tensor.dtype in (DType.INT8, DType.FP32) and length <= _MATRIX:
            return _by_triangle(ctx, x, axis)
    if x.quant is None:
        return Operand(_doubling(ctx, x, axis, _added).value)
    x = ctx.plain(x)
    bits = ctx.magnitude_bits(x) + math.ceil(math.log2(length))
    over = max(0, bits - 29)
    x = replace(ctx.to_i32(x, x.scale * 2.0**over), bits=bits - over)
    return _doubling(ctx, x, axis, _added)


def _by_triangle(ctx: Context, x: Operand, axis: int) -> Operand:
    last = (*(i for i in range(len(x.shape)) if i != axis), axis)
    rows = ctx.permuted(x, last)
    length = x.shape[axis]
    flat = ctx.reshape(rows, (1, math.prod(rows.shape[:-1]), length))
    ones = ctx.builder.const(np.triu(np.ones((1, length, length))), flat.dtype)
    op = ops.MatMul(x.quant.zero_point if x.quant else 0)
    total = ctx.reshape(ctx.emit(op, flat, ones), rows.shape)
    if x.quant is None:
        return Operand(total, perm=inverse(last))
    bits = ctx.magnitude_bits(x) + math.ceil(math.log2(length))
    return Operand(total, quant=Quant(x.quant.scale, 0, DType.INT32), perm=inverse(last), bits=bits)


def _doubling(ctx: Context, x: Operand, axis: int, join: Callable[[Context, Operand, Value], Operand], start: float = 0.0) -> Operand:
    """`join` of the tensor with itself moved on along an axis, `start` in front, by 1, 2, 4, .. elements."""
    x, step = ctx.store(x), 1
    while step < x.shape[axis]:
        value = x.value
        assert value is not None
        padding = [0] * (2 * len(value.shape))
        padding[2 * axis] = step
        fill = start if x.quant is None else int(x.quant.store(np.array(start)))
        if value.dtype.is_integer:
            fill = int(fill)
        x = join(ctx, x, ctx.emit(ops.Pad(tuple(padding), fill), sliced(ctx, value, axis, 0, value.shape[axis] - step)))
        step *= 2
    return x


def _added(ctx: Context, x: Operand, moved: Value) -> Operand:
    return replace(x, value=ctx.emit(ops.Add(), x.tensor, moved))


@lower(aten.cumprod.default)
def cumprod(ctx: Context, x: Operand, dim: int, dtype: torch.dtype | None = None) -> Operand:
    """cumprod(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    if not x.shape:
        return x
    axis = axis_of(dim, len(x.shape))
    if not _is_real(x, dtype):
        return Operand(_doubling(ctx, as_int(ctx, x), axis, _multiplied, 1.0).value)
    x = as_real(ctx, x)
    if x.quant is None:
        return Operand(_doubling(ctx, ctx.floats(x)[0], axis, _multiplied, 1.0).value)
    if x.shape[axis] > _FACTORS:
        raise ctx.refuse(f"a running product of {x.shape[axis]} quantized numbers; integers hold {_FACTORS}")
    want, ctx.want = ctx.want, None
    x = ctx.plain(x)
    bits = ctx.magnitude_bits(x)
    x = replace(ctx.to_i32(x, x.scale * 2.0 ** (bits - _BITS)), bits=_BITS)
    result = _doubling(ctx, x, axis, _multiplied, 1.0)
    ctx.want = want
    return result


def _multiplied(ctx: Context, x: Operand, moved: Value) -> Operand:
    return multiply(ctx, x, replace(x, value=moved))


@lower(aten.cummax.default)
def cummax(ctx: Context, x: Operand, dim: int) -> tuple[Operand, Operand]:
    """cummax(Tensor self, int dim) -> (Tensor values, Tensor indices)"""
    return _running_extreme(ctx, x, dim, lambda later, earlier: ctx.emit(ops.GreaterEqual(), later, earlier))


@lower(aten.cummin.default)
def cummin(ctx: Context, x: Operand, dim: int) -> tuple[Operand, Operand]:
    """cummin(Tensor self, int dim) -> (Tensor values, Tensor indices)"""
    return _running_extreme(ctx, x, dim, lambda later, earlier: ctx.emit(ops.GreaterEqual(), earlier, later))


def _running_extreme(ctx: Context, x: Operand, dim: int, wins: Callable[[Value, Value], Value]) -> tuple[Operand, Operand]:
    """log2(N) choices between each element and the one 1, 2, 4, .. before it; of equal ones the later, as PyTorch does.

    Comparisons take int32 or floats; the FP profile has no int32 to choose between, so positions are floats there.
    """
    x = ctx.plain(x) if x.quant is not None else Operand(as_int(ctx, x).value) if is_whole(x) else ctx.floats(x)[0]
    whole, value = ctx.spec.holds("INT"), x.value
    assert value is not None
    if not x.shape:
        return x, Operand(array=np.zeros((), np.int64))
    axis, stored = axis_of(dim, len(x.shape)), value.dtype
    if stored.is_integer and stored is not DType.INT32:
        value = ctx.emit(ops.Cast(DType.INT32), value)
    elif stored is DType.INT32 and not whole:
        value = ctx.emit(ops.Cast(DType.FP32), value)
    length, step = x.shape[axis], 1
    positions = np.broadcast_to(np.arange(length).reshape([-1 if i == axis else 1 for i in range(len(x.shape))]), x.shape)
    place = ctx.builder.const(positions, DType.INT32 if whole else DType.FP32)
    while step < length:
        later, earlier = (sliced(ctx, value, axis, a, b) for a, b in ((step, length), (0, length - step)))
        keeps = wins(later, earlier)
        pairs = ((value, later, earlier), (place, *(sliced(ctx, place, axis, a, b) for a, b in ((step, length), (0, length - step)))))
        value, place = (
            ctx.emit(ops.Concat(axis), sliced(ctx, own, axis, 0, step), ctx.emit(ops.Select(), keeps, new, old)) for own, new, old in pairs
        )
        step *= 2
    found = value if value.dtype is stored else ctx.emit(ops.Cast(stored), value)
    if not whole:
        place = ctx.bounded(ctx.emit(ops.Cast(DType.INT32), place), 0, length - 1, "positions along the axis")
    return replace(x, value=found), Operand(place)
