"""Sums of squares of rows, and what they give: variance, standard deviation, vector norms.

Rows are shifted until they fill int32, so that neither large nor small ones lose bits; the shift is undone at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.fixed import Rows, as_wanted, calc, curve, in_integers, inner_scale, leading_half, lookup, reduced, rows, shifted_sum
from tosaic.lower.layout import axis_of, squeeze
from tosaic.lower.operand import Operand
from tosaic.lower.reduce import sum_
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_LONG = 4096  # rows above have sums of squares in two parts
_ROOT_BITS = 14  # of the table of 1/sqrt


@dataclass(frozen=True)
class Deviations:
    """d = (x - mean) 2^count (or x) of each row, |d| < 2^31, and sum(d^2) 2^(bits - 62) <= N 2^bits.

    Unless the row is zero, count is such that the largest |x|, or max - min, is in [2^30, 2^31) after the shift: then the sum
    is 2^(bits - 3) at least. Of rows above 4096 the sum is in two parts: squares + low 2^-split. Where a row counts as at least 2
    or more, there is `twice`, 2^(count + 1), in place of `count`.
    """

    value: Value
    count: Value | None
    squares: Value
    bits: int
    low: Value | None = None
    split: int = 0
    twice: Value | None = None


def deviations(ctx: Context, x: Value, axes: Sequence[int], centre: bool, least: int = 0) -> Deviations:
    """Rows of int32, shifted until they fill it, centred, and their sums of squares.

    Centred: u = max - x in [0, 2^31) for |x| < 2^30. Squares of d are at most 2^62; N of them, or 2 N of them with eps, stay
    below 2^31 at 2^(bits - 62).

    Args:
        least: the row counts as at least this large, so that the shift leaves room for it (the root of eps).
    """
    length = math.prod(x.shape[a] for a in axes)
    if centre:
        top = reduced(ctx, ops.ReduceMax, x, axes)
        x = ctx.bounded(ctx.emit(ops.Sub(), top, x), 0, 2**31 - 1, "below the maximum")
    size = x if centre else ctx.emit(ops.Abs(), x)
    size = reduced(ctx, ops.ReduceMax, size, axes)
    count = twice = None
    if least:
        size = calc(ctx, ops.Maximum(), size, least)
    if least > 1:  # a factor of both the row and what it counts as
        zeros = ctx.emit(ops.Clz(), size)
        twice = ctx.bounded(calc(ctx, ops.LogicalLeftShift(), ctx.i32(1, len(size.shape)), zeros), 2, 2**30, "2 has 30 leading zeros")
        value = ctx.emit(ops.Mul(1), x, twice)
    else:
        count = calc(ctx, ops.Sub(), ctx.emit(ops.Clz(), size), 1)
        value = ctx.emit(ops.LogicalLeftShift(), x, count)
    ctx.bounded(value, 0 if centre else -(2**31) + 1, 2**31 - 1, "shifted by the leading zeros of the largest")
    if centre:
        value = ctx.emit(ops.Sub(), _mean(ctx, value, axes, length), value)
    bits, split = square_bits(length, eps=least > 0)
    if split:
        # the sum of the upper and of the lower bits of the squares: one int32 leaves too few for a row of one large element
        w = ctx.emit(ops.Mul(62 - bits - split), value, value)
        upper = reduced(ctx, ops.ReduceSum, calc(ctx, ops.ArithmeticRightShift(), w, split), axes)
        low = reduced(ctx, ops.ReduceSum, calc(ctx, ops.BitwiseAnd(), w, 2**split - 1), axes)
        return Deviations(value, count, upper, bits, low, split, twice)
    if bits >= 21:
        squares = reduced(ctx, ops.ReduceSum, ctx.emit(ops.Mul(62 - bits), value, value), axes)
    else:  # squares of fewer bits are truncated by dithering
        squares = shifted_sum(ctx, ctx.emit(ops.Mul(32), value, value), axes, 30 - bits)
    return Deviations(value, count, squares, bits, twice=twice)


def _mean(ctx: Context, u: Value, axes: Sequence[int], length: int) -> Value:
    """The mean of rows of u in [0, 2^31), of which one is zero: off by 2^(bits of N) / 2 at most, far less where the u differ.

    Up to 2^15 it is the sum of the rounded u / N, which is at most 2^31 (1 - 1/N) + N / 2. Of longer rows u 2^-k is summed, k the
    length of N in bits, so that N 2^(31-k) < 2^31, and the product with 2^k / N <= 2 is at most 2^31 (1 - 1/N).
    """
    if length < 2**15:
        shift = 29 + length.bit_length()
        mean = reduced(ctx, ops.ReduceSum, calc(ctx, ops.Mul(shift), u, round(2.0**shift / length)), axes)
    else:
        k = length.bit_length()
        total = reduced(ctx, ops.ReduceSum, calc(ctx, ops.ArithmeticRightShift(round=True), u, k), axes)
        mean = calc(ctx, ops.Mul(29), total, round(2.0 ** (k + 29) / length))
    return ctx.bounded(mean, 0, 2**31 - 1, "one of each row is zero")


def square_bits(length: int, eps: bool = False) -> tuple[int, int]:
    """`bits` and `split` of a sum of squares.

    N 2^bits < 2^31, or 2 N 2^bits with eps. In two parts squares are w <= 2^(bits + split) <= 2^30, N 2^split is at most 2^30, and
    2 N 2^bits is below 2^30.
    """
    if length <= _LONG:
        return ((2**31 - 1) // (2 * length if eps else length)).bit_length() - 1, 0
    split = 14 if length <= 2**16 else 10
    return min(30 - split, 28 - math.ceil(math.log2(length))), split


def whole_sum(ctx: Context, d: Deviations, extra: Value | None = None) -> tuple[Value, Value | None]:
    """v and h with v 2^(-2h) = squares + extra + low 2^-split, v below 2^31.

    In two parts: h is half of what keeps the upper part, in [0, 2^30), below 2^30 and has the lower, below 2^30 too, shifted right.
    """
    upper = d.squares if extra is None else ctx.emit(ops.Add(), d.squares, extra)
    if d.low is None:
        return upper, None
    upper = ctx.bounded(upper, 0, 2**30 - 1, "the upper bits of N squares, and of eps")
    lift = calc(ctx, ops.BitwiseAnd(), calc(ctx, ops.Sub(), ctx.emit(ops.Clz(), upper), 2), 30)
    lift = calc(ctx, ops.Minimum(), lift, d.split)
    low = ctx.emit(ops.LogicalRightShift(), d.low, calc(ctx, ops.Sub(), d.split, lift))
    lifted = ctx.bounded(ctx.emit(ops.LogicalLeftShift(), upper, lift), 0, 2**30 - 1, "shifted by its leading zeros")
    return ctx.emit(ops.Add(), lifted, low), calc(ctx, ops.LogicalRightShift(), lift, 1)


def root_scale(bits: int) -> float:
    """Largest scale of `rsqrt` for a sum of at least 2^(bits - 3) whose mantissa 2^count is at most 2^30."""
    return 2.0 ** (29 - (34 - bits) // 2)


def float_mean(ctx: Context, x: Value, axes: Sequence[int]) -> Value:
    """A mean; divided first where the sum could leave float16."""
    share = ctx.real(1.0 / math.prod(x.shape[a] for a in axes), x)
    if x.dtype is DType.FP16:
        return reduced(ctx, ops.ReduceSum, ctx.emit(ops.Mul(), x, share), axes)
    return ctx.emit(ops.Mul(), reduced(ctx, ops.ReduceSum, x, axes), share)


def _axes(x: Operand, dims: Sequence[int] | int | None) -> list[int]:
    dims = [dims] if isinstance(dims, int) else dims
    return [axis_of(d, len(x.shape)) for d in (dims or range(len(x.shape)))]


def _finish(ctx: Context, x: Operand, axes: Sequence[int], keepdim: bool) -> Operand:
    return x if keepdim else squeeze(ctx, x, list(axes))


def _measure(ctx: Context, r: Rows, centre: bool, divisor: float, power: int) -> Operand:
    """(sum(d^2) / divisor)^(power / 2), int32, keeping the reduced axes.

    With v 2^(-2h) = sum(d^2) 2^(bits - 62) < 2^31 it is A v^(power/2) 2^(-power (count + h)). v is shifted left by its own leading
    zeros, so that t = v^(power/2), by a table or a factor at the scale, has 28 or 29 bits, and one shift right undoes all three.
    Where that would be negative there is none: what is beyond 2^28, 32 times the wanted range, stays between that and 2^29.
    """
    value = ctx.to_i32(r.x).value
    assert value is not None
    d = deviations(ctx, value, r.axes, centre)
    v, lift = whole_sum(ctx, d)
    scale = inner_scale(ctx, (r.scale * r.steps) ** power * 2.0**-6)
    factor = (r.scale * math.sqrt(2.0 ** (62 - d.bits) / divisor)) ** power / scale
    assert d.count is not None
    count = d.count if lift is None else ctx.emit(ops.Add(), d.count, lift)
    if power == 2:
        count = calc(ctx, ops.LogicalLeftShift(), count, 1)
    most = factor * 2.0 ** (16 * power)  # of t, for v below 2^32
    less = math.ceil(math.log2(most) + 0.01) - 29
    t, own = (_root if power == 1 else _times)(ctx, v, most * 2.0**-less)
    ctx.bounded(t, 0, 2**29 - 1, "v is below 2^32")
    shift = calc(ctx, ops.Sub(), ctx.emit(ops.Add(), count, own), less)
    shift = calc(ctx, ops.Minimum(), calc(ctx, ops.Maximum(), shift, 0), 31)
    out = ctx.bounded(ctx.emit(ops.ArithmeticRightShift(round=True), t, shift), 0, 2**29 - 1, "no more than before the shift")
    return as_wanted(ctx, out, scale, 29, r.perm)


def _times(ctx: Context, v: Value, most: float) -> tuple[Value, Value]:
    """v 2^count most / 2^32, and count = CLZ(v); zero, whose CLZ of 32 makes a count of 0, is zero."""
    count = calc(ctx, ops.BitwiseAnd(), ctx.emit(ops.Clz(), v), 31)
    half = calc(ctx, ops.LogicalRightShift(), ctx.emit(ops.LogicalLeftShift(), v, count), 1)
    return calc(ctx, ops.Mul(31), half, round(most)), count


def _root(ctx: Context, v: Value, most: float) -> tuple[Value, Value]:
    """sqrt(v 2^(2 count) / 2^32) most, from a table of the leading bits, and count = CLZ(v) / 2; zero for zero."""
    even = calc(ctx, ops.BitwiseAnd(), ctx.emit(ops.Clz(), v), 30)
    lead, half = ctx.emit(ops.LogicalLeftShift(), v, even), calc(ctx, ops.LogicalRightShift(), even, 1)
    if ctx.spec.holds("int16"):
        points = np.arange(513)
        found = curve(ctx, leading_half(ctx, lead), np.where(points < 128, 0.0, 32767 * np.sqrt(points / 512)))
        return calc(ctx, ops.Mul(23), found, round(most * 2.0**23 / (32767 * 128))), half
    index = calc(ctx, ops.LogicalRightShift(), lead, 32 - _ROOT_BITS)
    k = np.arange(2**_ROOT_BITS)
    entries = np.where(k < 2 ** (_ROOT_BITS - 2), 0.0, np.rint(np.sqrt((k + 0.5) / 2**_ROOT_BITS) * most))
    return lookup(ctx, entries, index), half


def _spread(ctx: Context, x: Operand, dims: Sequence[int] | None, correction: float | None, keepdim: bool, power: int) -> Operand:
    axes = _axes(x, dims)
    length = math.prod(x.shape[a] for a in axes)
    divisor = length - (1 if correction is None else correction)
    if divisor <= 0:
        raise ctx.refuse(f"the variance of {length} elements with correction {1 if correction is None else correction}")
    if in_integers(ctx, x):
        return _finish(ctx, _measure(ctx, rows(ctx, x, axes), True, divisor, power), axes, keepdim)
    value = ctx.floats(x)[0].value
    assert value is not None
    d = ctx.emit(ops.Sub(), value, float_mean(ctx, value, axes))
    squares = float_mean(ctx, ctx.emit(ops.Mul(), d, d), axes)
    if divisor != length:
        squares = ctx.emit(ops.Mul(), squares, ctx.real(length / divisor, squares))
    return _finish(ctx, Operand(squares if power == 2 else _float_root(ctx, squares)), axes, keepdim)


def _float_root(ctx: Context, v: Value) -> Value:
    """sqrt(v): TOSA has x^0.5."""
    return ctx.emit(ops.Pow(), v, ctx.real(0.5, v))


@lower(aten.var.correction)
def var(ctx: Context, x: Operand, dims: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> Operand:
    """var.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor"""
    return _spread(ctx, x, dims, correction, keepdim, 2)


@lower(aten.std.correction)
def std(ctx: Context, x: Operand, dims: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> Operand:
    """std.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor"""
    return _spread(ctx, x, dims, correction, keepdim, 1)


@lower(aten.linalg_vector_norm.default)
def vector_norm(
    ctx: Context, x: Operand, order: float = 2, dims: Sequence[int] | None = None, keepdim: bool = False, dtype: object = None
) -> Operand:
    """linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    if order not in (1, 2, math.inf, -math.inf):
        raise ctx.refuse(f"a vector norm of order {order}; 1, 2, inf and -inf are computed")
    axes, integer = _axes(x, dims), in_integers(ctx, x)
    if order == 2 and integer:
        return _finish(ctx, _measure(ctx, rows(ctx, x, axes), False, 1.0, 1), axes, keepdim)
    if integer:
        r = rows(ctx, x, axes)
        size = replace(ctx.to_i32(r.x), perm=r.perm)
    else:
        size = ctx.floats(x)[0]
    assert size.value is not None
    if order == 2:
        squares = reduced(ctx, ops.ReduceSum, ctx.emit(ops.Mul(), size.value, size.value), axes)
        return _finish(ctx, Operand(_float_root(ctx, squares)), axes, keepdim)
    size = replace(size, value=ctx.emit(ops.Abs(), size.value))
    if order == 1:
        return sum_(ctx, size, axes, keepdim)
    stored = [a if size.perm is None else size.perm[a] for a in axes]
    op = ops.ReduceMax if order > 0 else ops.ReduceMin
    return _finish(ctx, replace(size, value=reduced(ctx, op, size.tensor, stored)), axes, keepdim)
