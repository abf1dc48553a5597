"""Reductions: sums, means, products, extremes and their places, any and all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.compare import as_bool
from tosaic.lower.context import Context, excess
from tosaic.lower.elementwise import multiply
from tosaic.lower.layout import axis_of, sliced
from tosaic.lower.mac import poolable
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import as_int, as_real, is_bool, is_whole
from tosaic.lower.registry import lower
from tosaic.operators import MOST_FACTORS
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_EXTREMES = {ops.ReduceMax: ops.ReduceAny, ops.ReduceMin: ops.ReduceAll}  # of numbers, of bools


@lower(aten.mean.dim)
def mean(ctx: Context, x: Operand, dims: list[int] | None = None, keepdim: bool = False, dtype: object = None) -> Operand:
    """mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor

    An exact int32 sum whose scale is divided by the count.
    """
    return _total(ctx, as_real(ctx, x), dims, keepdim, average=True)


@lower(aten.mean.default)
def mean_of_all(ctx: Context, x: Operand, dtype: object = None) -> Operand:
    """mean(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return mean(ctx, x)


@lower(aten.sum.dim_IntList)
def sum_(ctx: Context, x: Operand, dims: list[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Operand:
    """sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    if dtype is not None and not dtype.is_floating_point and not is_whole(x):
        raise ctx.refuse(f"a sum of real numbers as {dtype}; round before")
    if is_whole(x) and (dtype is None or not dtype.is_floating_point):
        return _count(ctx, x, dims, keepdim)
    return _total(ctx, as_real(ctx, x), dims, keepdim, average=False)


def _axes(x: Operand, dims: Sequence[int] | int | None) -> tuple[list[int], tuple[int, ...]]:
    """Axes (all, if `dims` is empty), and the shape without them."""
    given = [dims] if isinstance(dims, int) else dims or range(len(x.shape))
    axes = sorted(axis_of(d, len(x.shape)) for d in given) if x.shape else []
    return axes, tuple(d for i, d in enumerate(x.shape) if i not in axes)


def _reduced(ctx: Context, x: Operand, axes: Sequence[int], op: type[ops._Reduce], final: tuple[int, ...] | None) -> Operand:
    """A TOSA reduction over logical axes, which stay if `final` (the shape without them) is None."""
    x = ctx.store(x)
    if x.view is not None:
        x = ctx.plain(x)
    value = x.value
    assert value is not None
    for axis in axes:
        value = ctx.emit(op(axis if x.perm is None else x.perm[axis]), value)
    x = replace(x, value=value)
    return x if final is None else replace(x, value=ctx.reshape(ctx.logical(x), final), perm=None)


def _count(ctx: Context, x: Operand, dims: Sequence[int] | None, keepdim: bool) -> Operand:
    """A sum of integers. REDUCE_SUM of int32 is not in the FP profile; float32 holds sums up to 2^24 exactly."""
    axes, final = _axes(x, dims)
    if ctx.spec.holds("INT"):
        return _reduced(ctx, as_int(ctx, x), axes, ops.ReduceSum, None if keepdim else final)
    total = _reduced(ctx, as_real(ctx, x), axes, ops.ReduceSum, None if keepdim else final)
    whole = ctx.emit(ops.Cast(DType.INT32), total.tensor)
    return Operand(ctx.bounded(whole, 0, math.prod(x.shape[a] for a in axes), "a count of bools") if is_bool(x) else whole)


def _total(ctx: Context, x: Operand, dims: Sequence[int] | None, keepdim: bool, *, average: bool) -> Operand:
    """Sum, or mean, over `dims` (all, if empty)."""
    axes, without = _axes(x, dims)
    final = None if keepdim else without
    count = math.prod(x.shape[a] for a in axes)
    divisor = count if average else 1
    if x.quant is None:
        total = _reduced(ctx, ctx.floats(x)[0], axes, ops.ReduceSum, None)
        value = total.value
        assert value is not None
        if divisor > 1:
            value = ctx.emit(ops.Mul(), value, ctx.real(1.0 / divisor, value))
        return Operand(value if final is None else ctx.reshape(value, final))
    if _is_row_of_int8(x, axes):
        return _sum_by_product(ctx, x, final, divisor)
    x, scale = _summable(ctx, ctx.uniform(x), count)
    total = _reduced(ctx, x, axes, ops.ReduceSum, final)
    return replace(total, quant=Quant(scale / divisor, 0, DType.INT32))


def _is_row_of_int8(x: Operand, axes: Sequence[int]) -> bool:
    last = x.perm is None and not x.clamped and list(axes) == [len(x.shape) - 1]
    return last and x.value is not None and x.quant is not None and x.quant.dtype is DType.INT8 and len(x.shape) > 1


def _sum_by_product(ctx: Context, x: Operand, final: tuple[int, ...] | None, divisor: int) -> Operand:
    """The sum of rows of int8 as a product with ones: exact, and one operator where widening before a REDUCE_SUM makes two."""
    assert x.quant is not None
    *lead, rows, length = x.shape
    batch = math.prod(lead)
    ones = ctx.i8(np.ones((batch, length, 1)))
    total = ctx.emit(ops.MatMul(x.quant.zero_point, 0), ctx.reshape(ctx.logical(x), (batch, rows, length)), ones)
    shape = (*lead, rows, 1) if final is None else final
    quant = Quant(x.scale / divisor, 0, DType.INT32)
    return Operand(ctx.reshape(total, shape), quant=quant, bits=8 + math.ceil(math.log2(length)), exact=True)


def _summable(ctx: Context, x: Operand, count: int) -> tuple[Operand, float]:
    """An operand as int32 whose sum of `count` elements stays below 2^30 (shifted down, if need be), and its scale.

    `bits` of the result are those of the sum.
    """
    if x.view is not None:
        x = ctx.plain(x)
    x = ctx.limited(x)
    bits = ctx.magnitude_bits(x) + math.ceil(math.log2(count))
    over = excess(bits)
    assert x.quant is not None
    scale = x.scale * 2.0**over
    return replace(ctx.store(ctx.to_i32(x, scale)), bits=bits - over), scale


@lower(aten.any.default, aten.any.dim, aten.any.dims)
def any_(ctx: Context, x: Operand, dims: Sequence[int] | int | None = None, keepdim: bool = False) -> Operand:
    """any.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor"""
    axes, final = _axes(x, dims)
    return _reduced(ctx, as_bool(ctx, x), axes, ops.ReduceAny, None if keepdim else final)


@lower(aten.all.default, aten.all.dim, aten.all.dims)
def all_(ctx: Context, x: Operand, dims: Sequence[int] | int | None = None, keepdim: bool = False) -> Operand:
    """all.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor"""
    axes, final = _axes(x, dims)
    return _reduced(ctx, as_bool(ctx, x), axes, ops.ReduceAll, None if keepdim else final)


@lower(aten.amax.default)
def amax(ctx: Context, x: Operand, dims: Sequence[int] | None = None, keepdim: bool = False) -> Operand:
    """amax(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor"""
    return _extreme(ctx, x, dims, keepdim, ops.ReduceMax)


@lower(aten.amin.default)
def amin(ctx: Context, x: Operand, dims: Sequence[int] | None = None, keepdim: bool = False) -> Operand:
    """amin(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor"""
    return _extreme(ctx, x, dims, keepdim, ops.ReduceMin)


@lower(aten.max.default)
def max_of_all(ctx: Context, x: Operand) -> Operand:
    """max(Tensor self) -> Tensor"""
    return amax(ctx, x)


@lower(aten.min.default)
def min_of_all(ctx: Context, x: Operand) -> Operand:
    """min(Tensor self) -> Tensor"""
    return amin(ctx, x)


def _extreme(ctx: Context, x: Operand, dims: Sequence[int] | None, keepdim: bool, op: type[ops._Reduce]) -> Operand:
    """At the scale of the input, so without any rounding."""
    axes, final = _axes(x, dims)
    if is_bool(x):
        op = _EXTREMES[op]
    elif x.quant is None:
        x = x if is_whole(x) else ctx.floats(x)[0]
    else:
        x = ctx.resolve_clamp(ctx.uniform(x))
    return _reduced(ctx, x, axes, op, None if keepdim else final)


@lower(aten.prod.default)
def prod_of_all(ctx: Context, x: Operand, dtype: torch.dtype | None = None) -> Operand:
    """prod(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    flat = Operand(ctx.reshape(ctx.logical(x), (math.prod(x.shape),)), quant=x.quant, low=x.low, high=x.high, bits=x.bits)
    return prod(ctx, flat if x.quant is None or not x.quant.per_channel else ctx.plain(x), 0, False, dtype)


@lower(aten.prod.dim_int)
def prod(ctx: Context, x: Operand, dim: int, keepdim: bool = False, dtype: torch.dtype | None = None) -> Operand:
    """prod.dim_int(Tensor self, int dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor

    REDUCE_PRODUCT is for floats; integers are multiplied in pairs.
    """
    (axis,), final = _axes(x, dim)
    whole = is_whole(x) and (dtype is None or not dtype.is_floating_point)
    x = as_int(ctx, x) if whole else as_real(ctx, x)
    if x.quant is None and not whole:
        return _reduced(ctx, ctx.floats(x)[0], [axis], ops.ReduceProduct, None if keepdim else final)
    if not whole and x.shape[axis] > MOST_FACTORS:
        raise ctx.refuse(f"a product of {x.shape[axis]} quantized factors: at one scale for all nothing is left of it; multiply in pairs")
    want, ctx.want = ctx.want, None
    product = _pairwise(ctx, Operand(ctx.store(x).value) if whole else ctx.plain(x), axis)
    ctx.want = want
    product = ctx.plain(product)
    return product if keepdim else replace(product, value=ctx.reshape(product.tensor, final))


def _pairwise(ctx: Context, x: Operand, axis: int) -> Operand:
    """Product along an axis, by halves."""
    odd: list[Operand] = []
    while (length := x.shape[axis]) > 1:
        x = ctx.plain(x) if x.quant is not None else x
        half, value = length // 2, x.value
        assert value is not None
        first, second, rest = (sliced(ctx, value, axis, a, b) if a < b else None for a, b in _cuts(half, length))
        if rest is not None:
            odd.append(replace(x, value=rest))
        x = multiply(ctx, replace(x, value=first), replace(x, value=second))
    for other in odd:
        x = multiply(ctx, x, other)
    return x


def _cuts(half: int, length: int) -> tuple[tuple[int, int], ...]:
    return (0, half), (half, 2 * half), (2 * half, length)


@lower(aten.argmax.default)
def argmax(ctx: Context, x: Operand, dim: int | None = None, keepdim: bool = False) -> Operand:
    """argmax(Tensor self, int? dim=None, bool keepdim=False) -> Tensor (int32 here)"""
    return _place(ctx, x, dim, keepdim, largest=True)


@lower(aten.argmin.default)
def argmin(ctx: Context, x: Operand, dim: int | None = None, keepdim: bool = False) -> Operand:
    """argmin(Tensor self, int? dim=None, bool keepdim=False) -> Tensor (int32 here)"""
    return _place(ctx, x, dim, keepdim, largest=False)


def _place(ctx: Context, x: Operand, dim: int | None, keepdim: bool, *, largest: bool) -> Operand:
    """Index of the first extreme along one axis, or of the flattened tensor."""
    if not x.shape:
        return Operand(array=np.zeros((), dtype=np.int64))
    wide = is_whole(x) or (x.quant is not None and not ctx.is_narrow(x))
    x = as_int(ctx, x) if is_whole(x) else ctx.to_i32(x) if wide else poolable(ctx, x)
    # ARGMAX drops its axis; a dimension that stays is added before, as the FP profile does not reshape int32
    shape = (math.prod(x.shape),) if dim is None else x.shape
    axis = 0 if dim is None else axis_of(dim, len(shape))
    kept = () if not keepdim else (1,) * len(x.shape) if dim is None else (1,)
    value = ctx.reshape(ctx.logical(x), (*shape[: axis + 1], *kept, *shape[axis + 1 :]))
    if wide:
        return Operand(_first_place(ctx, value, axis, largest))
    if not largest:
        # -x - 1 of an integer: the order turned round, with no overflow at the least one
        value = ctx.emit(ops.BitwiseNot() if value.dtype.is_integer else ops.Negate(), value)
    return Operand(ctx.emit(ops.ArgMax(axis), value))


def _first_place(ctx: Context, value: Value, axis: int, largest: bool) -> Value:
    """ARGMAX takes no int32: the least of the indices at which the extreme stands."""
    length, rank = value.shape[axis], len(value.shape)
    extreme = ctx.emit((ops.ReduceMax if largest else ops.ReduceMin)(axis), value)
    indices = ctx.i32(np.arange(length).reshape([length if i == axis else 1 for i in range(rank)]))
    found = ctx.emit(ops.Select(), ctx.emit(ops.Equal(), value, extreme), indices, ctx.i32(length, rank))
    return ctx.reshape(ctx.emit(ops.ReduceMin(axis), found), (*value.shape[:axis], *value.shape[axis + 1 :]))
