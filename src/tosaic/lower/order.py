"""Sorting: each element's rank by comparison with all others, or the largest elements one after the other.

Both are exact and stable: of equal elements the first comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from tosaic.lower.context import LARGEST, Context
from tosaic.lower.layout import axis_of, concatenated, in_float, sliced
from tosaic.lower.operand import Operand, inverse
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_MOST_PAIRS = 1 << 24  # elements of the tensor of all comparisons: 64 rows of 512, one of 4096
_MOST_PICKS = 64  # elements that are found one after the other
_FEW_PICKS = 4  # that many are cheaper to find so than by all comparisons


@dataclass(frozen=True)
class Rows:
    """What is sorted: rows [R, N] of int32 or float keys, of which smaller ones come first.

    Attributes:
        source: the operand, its sorted axis last.
        order: the permutation that brought it there.
        value: the stored elements, [R, N].
        key: increases with what is to come later.
        negated: the key is of the negated elements.
        bits: if set, keys of a row differ: their lower bits are the position, so that equal elements are in order.
    """

    source: Operand
    order: tuple[int, ...]
    value: Value
    key: Value
    negated: bool
    bits: int | None


def _rows(ctx: Context, x: Operand, dim: int, descending: bool) -> Rows:
    """Elements of up to 16 bits and their position make one key: element * 2^bits + position < 2^30 (for rows up to 16384)."""
    x = ctx.resolve_clamp(ctx.uniform(ctx.store(x)))
    axis = axis_of(dim, max(len(x.shape), 1))
    order = tuple(i for i in range(len(x.shape)) if i != axis) + ((axis,) if x.shape else ())
    value = ctx.permuted(x, order)
    size = value.shape[-1] if value.shape else 1
    source, value = replace(x, value=value, perm=None, view=None), ctx.reshape(value, (math.prod(value.shape) // size, size))
    sign, bits = (-1 if descending else 1), max(size - 1, 1).bit_length()
    if value.dtype is DType.BOOL:
        raise ctx.refuse("order of booleans")
    if value.dtype.is_integer and value.dtype is not DType.INT32 and bits <= 14:
        wide = ctx.emit(ops.Mul(), ctx.emit(ops.Cast(DType.INT32), value), ctx.i32(sign << bits, 2))
        return Rows(source, order, value, ctx.emit(ops.Add(), wide, ctx.i32(np.arange(size)[None])), descending, bits)
    key = ctx.emit(ops.Cast(DType.INT32), value) if value.dtype.is_integer and value.dtype is not DType.INT32 else value
    if (value.dtype is not DType.FP32 and not key.dtype.is_integer) or not ctx.spec.holds("INT"):
        key = value if value.dtype is DType.FP32 else ctx.emit(ops.Cast(DType.FP32), value)  # float16 counts to 2048 only
    return Rows(source, order, value, ctx.emit(ops.Negate(), key) if descending else key, descending, None)


def _ranks(ctx: Context, rows: Rows) -> Value:
    """int32 [R, N]: how many elements of the row come before each."""
    count, size = rows.key.shape
    if count * size * size > _MOST_PAIRS:
        raise ctx.refuse(f"sort of {count} rows of {size}: all pairs are over {_MOST_PAIRS}, and TOSA has no other order")
    here, there = ctx.reshape(rows.key, (count, size, 1)), ctx.reshape(rows.key, (count, 1, size))
    before = ctx.emit(ops.Greater(), here, there)
    if rows.bits is None:
        first = ctx.builder.const(np.tri(size, k=-1, dtype=np.bool_)[None], DType.BOOL)
        before = ctx.emit(ops.Select(), first, ctx.emit(ops.GreaterEqual(), here, there), before)
    if ctx.spec.holds("INT"):
        ranks = ctx.reshape(ctx.emit(ops.ReduceSum(2), ctx.emit(ops.Cast(DType.INT32), before)), (count, size))
    else:
        one, zero = (ctx.builder.const(np.full((1, 1, 1), v), DType.FP32) for v in (1.0, 0.0))
        total = ctx.emit(ops.ReduceSum(2), ctx.emit(ops.Select(), before, one, zero))
        ranks = ctx.emit(ops.Cast(DType.INT32), ctx.reshape(total, (count, size)))
    return ctx.bounded(ranks, 0, size - 1, "an element does not come before itself")


def _at_ranks(ctx: Context, ranks: Value, value: Value) -> Value:
    """Each element [R, N] at its rank; ranks of a row are distinct, as SCATTER demands."""
    column = ctx.reshape(value, (*value.shape, 1))
    return ctx.reshape(ctx.emit(ops.Scatter(), column, ranks, column), value.shape)


def _sorted(ctx: Context, rows: Rows) -> tuple[Value, Value]:
    """Elements and positions [R, N] in order; where the FP profile has no int32 to move, they are float32."""
    ranks = _ranks(ctx, rows)
    count, size = ranks.shape
    whole = ctx.spec.holds("INT")
    value = rows.value if whole or rows.value.dtype is not DType.INT32 else in_float(ctx, rows.value)
    positions = ctx.builder.const(np.tile(np.arange(size), (count, 1)), DType.INT32 if whole else DType.FP32)
    return _at_ranks(ctx, ranks, value), _at_ranks(ctx, ranks, positions)


def _result(ctx: Context, rows: Rows, elements: Value, positions: Value) -> tuple[Operand, Operand]:
    """[R, K] back in the model's shape; the permutation stays pending."""
    shape = (*rows.source.shape[:-1], elements.shape[1]) if rows.source.shape else ()
    perm = inverse(rows.order) if rows.order != tuple(range(len(rows.order))) else None
    found = replace(rows.source, value=ctx.reshape(elements, shape), perm=perm)
    return _typed(ctx, found, rows.value.dtype), _typed(ctx, Operand(ctx.reshape(positions, shape), perm=perm), DType.INT32)


def _typed(ctx: Context, x: Operand, dtype: DType) -> Operand:
    """A cast, if one is due; before an index that the FP profile could not transpose."""
    assert x.value is not None
    if x.value.dtype is dtype:
        return x
    return replace(x, value=ctx.emit(ops.Cast(dtype), ctx.logical(x)), perm=None)


@lower(aten.sort.default)
def sort(ctx: Context, x: Operand, dim: int = -1, descending: bool = False) -> tuple[Operand, Operand]:
    """sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""
    rows = _rows(ctx, x, dim, descending)
    return _result(ctx, rows, *_sorted(ctx, rows))


@lower(aten.sort.stable)
def sort_stable(ctx: Context, x: Operand, *, stable: bool | None, dim: int = -1, descending: bool = False) -> tuple[Operand, Operand]:
    """sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""
    return sort(ctx, x, dim, descending)


@lower(aten.topk.default)
def topk(ctx: Context, x: Operand, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Operand, Operand]:
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)

    Sorted in any case; a few are found one after the other, and so are up to 64 of rows too long to compare all pairs.
    """
    rows = _rows(ctx, x, dim, largest)
    count, size = rows.key.shape
    if k > _FEW_PICKS and (count * size * size <= _MOST_PAIRS or k > _MOST_PICKS):
        elements, positions = (sliced(ctx, v, 1, 0, k) for v in _sorted(ctx, rows))
        return _result(ctx, rows, elements, positions)
    return _result(ctx, rows, *(_picked_keys(ctx, rows, k) if rows.bits else _picked(ctx, rows, k)))


def _picked_keys(ctx: Context, rows: Rows, k: int) -> tuple[Value, Value]:
    """k times the least key, which then makes place; element and position are its upper and lower bits."""
    assert rows.bits is not None
    key, least = rows.key, []
    for i in range(k):
        least.append(ctx.emit(ops.ReduceMin(1), key))
        if i < k - 1:
            key = ctx.emit(ops.Select(), ctx.emit(ops.Equal(), key, least[-1]), ctx.i32(DType.INT32.max, 2), key)
    keys = concatenated(ctx, least, 1)
    elements = ctx.emit(ops.ArithmeticRightShift(), keys, ctx.i32(rows.bits, 2))
    elements = ctx.emit(ops.Negate(), elements) if rows.negated else elements
    return _of_row(ctx, rows, elements), ctx.emit(ops.BitwiseAnd(), keys, ctx.i32((1 << rows.bits) - 1, 2))


def _picked(ctx: Context, rows: Rows, k: int) -> tuple[Value, Value]:
    """k times the least element and the first position that has it, which then makes place."""
    key, size = rows.key, rows.key.shape[1]
    whole = key.dtype is DType.INT32
    places = ctx.i32(np.arange(size)[None]) if whole else ctx.real(np.arange(size, dtype=np.float32)[None], key)
    none, far = (_number(ctx, key, n) for n in (size, DType.INT32.max if whole else LARGEST))
    elements, positions = [], []
    for i in range(k):
        elements.append(ctx.emit(ops.ReduceMin(1), key))
        candidates = ctx.emit(ops.Select(), ctx.emit(ops.Equal(), key, elements[-1]), places, none)
        positions.append(ctx.emit(ops.ReduceMin(1), candidates))
        if i < k - 1:
            key = ctx.emit(ops.Select(), ctx.emit(ops.Equal(), places, positions[-1]), far, key)
    found, at = concatenated(ctx, elements, 1), concatenated(ctx, positions, 1)
    found = ctx.emit(ops.Negate(), found) if rows.negated else found
    return _of_row(ctx, rows, found), at


def _of_row(ctx: Context, rows: Rows, found: Value) -> Value:
    """Of what makes place for the next, none is found: there are no more picks than elements."""
    return ctx.bounded(found, *ctx.interval(rows.value), "an element of the row") if found.dtype.is_integer else found


def _number(ctx: Context, like: Value, number: float) -> Value:
    return ctx.i32(number, 2) if like.dtype is DType.INT32 else ctx.real(number, like)
