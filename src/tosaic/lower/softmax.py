"""Softmax, log-softmax, log-sum-exp, and exponentials below a row's maximum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tosaic import operators
from tosaic.lower.context import Context
from tosaic.lower.fixed import (
    TOP,
    Rows,
    as_wanted,
    calc,
    curve,
    in_integers,
    inner_scale,
    leading,
    lookup,
    reciprocal,
    reduced,
    rows,
    shifted_sum,
    wide_scale,
)
from tosaic.lower.layout import axis_of, squeeze
from tosaic.lower.operand import Operand, Quant, multiplier_shift
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
LARGEST_IS_ONE = "the largest of each row is 1, the end of the type"  # of exponentials: see `divide`
_LONGEST = 16384  # elements of a row whose sum of exponentials int32 holds with 17 bits left for the smallest sum
_LOG_BITS = 14  # leading bits of a sum whose logarithm is looked up: 2^-15 at most off


@lower(aten._softmax.default)
def softmax(ctx: Context, x: Operand, dim: int, half_to_float: bool = False) -> Operand:
    """_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    if not in_integers(ctx, x):
        return _float_softmax(ctx, x, dim)
    r = rows(ctx, x, [dim])
    # the short form is within 2^-16 of the probability
    short = ctx.want is not None and ctx.want.dtype is DType.INT8 and float(ctx.want.scales) >= 2.0**-9 and r.length <= 4096
    return _short_softmax(ctx, r) if short else _long_softmax(ctx, r)


def _float_softmax(ctx: Context, x: Operand, dim: int) -> Operand:
    value = ctx.floats(x)[0].value
    assert value is not None
    axis = axis_of(dim, len(value.shape))
    exponent = ctx.emit(ops.Exp(), ctx.emit(ops.Sub(), value, ctx.emit(ops.ReduceMax(axis), value)))
    return Operand(ctx.emit(ops.Mul(), exponent, ctx.emit(ops.Reciprocal(), ctx.emit(ops.ReduceSum(axis), exponent))))


def _below_max(ctx: Context, r: Rows) -> tuple[Value, Value]:
    """max(row), and how far each value is below it: in [0, 2^31) for |x| < 2^30."""
    value = ctx.to_i32(r.x).value
    assert value is not None
    top = reduced(ctx, ops.ReduceMax, value, r.axes)
    return top, ctx.bounded(ctx.emit(ops.Sub(), top, value), 0, r.steps - 1, "below the maximum")


def _exponentials(ctx: Context, below: Value, r: Rows, nats: float, size: int) -> tuple[Value, np.ndarray]:
    """An index for exp(-scale below) in a table, and the exponentials of the table. What is beyond `nats` is zero.

    Where the steps of the input are so coarse that `size` of them pass `nats`, the index is the number of steps. Else it is
    in `size` steps of `nats`: the limit before RESCALE keeps its input below 2^(shift - 14).
    """
    count = math.ceil(nats / r.scale) + 1
    if count <= size or r.steps <= size:
        last = min(count, r.steps) - 1
        index = below if last == r.steps - 1 else calc(ctx, ops.Minimum(), below, last)
        e = np.exp(-np.arange(last + 1) * r.scale)
        e[nats / r.scale <= np.arange(last + 1)] = 0.0
        return index, e
    factor = r.scale * size / nats
    limit = int((size - 0.501) / factor)
    if limit < r.steps - 1:
        below = calc(ctx, ops.Minimum(), below, limit)
    index = ctx.rescale(below, Quant(factor, 0, DType.INT32), Quant(1.0, 0, DType.INT32))
    e = np.exp(-np.arange(size) * nats / size)
    e[-2:] = 0.0  # the limit is at one of these
    return index, e


def _short_softmax(ctx: Context, r: Rows) -> Operand:
    """Softmax for an int8 result, int32 at scale 2^-23: 11 operators, and the requantization.

    e in Q19 from a table over 14 nats, at least one of a row is 2^19 - 1, S = sum e <= 4096 (2^19 - 1) < 2^31. n = S / 16 in
    [2^15, 2^27], q = (2^31 - 1) / n <= 2^16, and e q 2^-12 <= 2^23 (1 + 2^-15). Truncating q costs e 2^-12 = 2^-16 in
    probability at most; the table's steps cost 14 / 2^15 of it.
    """
    _, below = _below_max(ctx, r)
    if ctx.spec.holds("int16") and r.length <= 128:
        return _table_softmax(ctx, r, below)
    index, e = _exponentials(ctx, below, r, 14.0, 2**14)
    value = lookup(ctx, _fixed(e, 19, 2**19 - 1), index)
    total = reduced(ctx, ops.ReduceSum, value, r.axes)
    ctx.bounded(total, 2**19 - 1, r.length * (2**19 - 1), "the largest of a row counts")
    q = calc(ctx, ops.IntDiv(), TOP, calc(ctx, ops.ArithmeticRightShift(round=True), total, 4))
    p = ctx.bounded(ctx.emit(ops.Mul(12), value, q), 0, 2**23 + 2**9, "no part is larger than the sum")
    return as_wanted(ctx, p, 2.0**-23, 24, r.perm)


def _table_softmax(ctx: Context, r: Rows, below: Value) -> Operand:
    """The same by `_exp_table`: e < 2^22, S < 2^29 for N <= 128, n = S / 2^7 >= 2^15 - 1, q <= 2^16 + 2, and e q 2^-15 is in Q23.

    Entries round by half of 2^-15, N of them by 0.2%, half a step of int8. 9 operators.
    """
    e = _exp_table(ctx, below, r, 14.0)
    total = reduced(ctx, ops.ReduceSum, e, r.axes)
    ctx.bounded(total, 32767 * 128, r.length * 32767 * 128, "the largest of a row counts")
    q = calc(ctx, ops.IntDiv(), TOP, calc(ctx, ops.ArithmeticRightShift(round=True), total, 7))
    p = ctx.bounded(ctx.emit(ops.Mul(15), e, q), 0, 2**23 + 2**9, "no part is larger than the sum")
    return as_wanted(ctx, p, 2.0**-23, 24, r.perm)


def _exp_table(ctx: Context, below: Value, r: Rows, nats: float) -> Value:
    """exp(-scale below) (32767 * 128) by TABLE of int16 over [0, nats], of 256 intervals, zero beyond."""
    factor = r.scale * 32767 / nats
    limit = math.ceil(32767 / factor)
    if limit < r.steps - 1 and r.steps > 2 ** (multiplier_shift(factor)[1] - 1):  # RESCALE saturates what it may read
        below = calc(ctx, ops.Minimum(), below, limit)
    index = ctx.rescale(below, Quant(factor, 0, DType.INT32), Quant(1.0, 0, DType.INT16))
    step = nats / 32767 * 128
    # between points a chord is above the curve by step^2 / 8 of it: entries take half of that
    entries = np.exp(-np.arange(-256, 257) * step).clip(max=1.0) * 32767 * (1 - step**2 / 16)
    entries[:257], entries[512] = 32767, 0.0
    return curve(ctx, index, entries)


def _fixed(e: np.ndarray, bits: int, top: int) -> np.ndarray:
    """Exponentials in fixed point."""
    return np.minimum(np.rint(e * 2.0**bits), top)


@dataclass(frozen=True)
class _Sum:
    """max(row), max - x, exp(x - max) 2^bits, and the sum of these over the row, shifted right by `drop`."""

    top: Value
    below: Value
    e: Value
    total: Value
    bits: int
    drop: int


def _exp_sum(ctx: Context, r: Rows) -> _Sum:
    """Exponentials in Q bits and their sum S.

    Rows up to 1024: Q = min(30, 31 - ceil log2 N), e < 2^Q, S < 2^31. Longer: Q = 30, drop = ceil log2 N - 1, and e <=
    2^30 - 2^drop, so that each shifted e is below 2^(30 - drop) and S < N 2^(30 - drop) <= 2^31. S >= 2^(Q - drop) - 1.
    """
    length = r.length
    if length > _LONGEST:
        raise ctx.refuse(f"softmax over {length} elements; integer arithmetic holds {_LONGEST}")
    exponent = math.ceil(math.log2(length))
    bits, drop = (min(30, 31 - exponent), 0) if length <= 1024 else (30, exponent - 1)
    top, below = _below_max(ctx, r)
    index, e = _exponentials(ctx, below, r, 18.0, 2**16)
    value = lookup(ctx, _fixed(e, bits, 2**bits - 2**drop), index)
    total = ctx.bounded(shifted_sum(ctx, value, r.axes, drop), 2 ** (bits - drop) - 1, TOP, "the largest of a row counts")
    return _Sum(top, below, value, total, bits, drop)


def _long_softmax(ctx: Context, r: Rows) -> Operand:
    """Softmax for an int16 or int32 result: 14 operators, 16 for rows above 1024.

    With `reciprocal`'s n and count c of S >= 2^17 - 1: q = K / n < 2^16 for K in [2^30, 2^31), q 2^c < 2^31, and e q 2^c 2^-s
    is the probability at the wanted scale for K = 2^(s - 16 - drop) / scale; below 2^30 as 1/scale <= 2^29 (2^-14 are errors).
    """
    parts = _exp_sum(ctx, r)
    drop = parts.drop
    # 2^-23 takes the largest numerator; any other scale takes one bit of it, and saves the requantization of an int32
    scale, bits = wide_scale(ctx, 1.001) if ctx.want is not None and ctx.want.dtype is DType.INT32 else (2.0**-23, 24)
    shift = 16 + drop + math.floor(math.log2(2.0**31 * scale))
    numerator = min(TOP, round(2.0 ** (shift - 16 - drop) / scale))
    found = reciprocal(ctx, parts.total, numerator)
    inverse = ctx.bounded(ctx.emit(ops.LogicalLeftShift(), found.mantissa, found.count), 2**14, TOP, "a sum of 2^k has a count of 31 - k")
    p = ctx.bounded(ctx.emit(ops.Mul(shift), parts.e, inverse), 0, int(1.001 / scale), "no part is larger than the sum")
    return as_wanted(ctx, p, scale, bits, r.perm)


def _negative_log(ctx: Context, total: Value, bits: int, drop: int, scale: float) -> Value:
    """-log(S 2^(drop - bits)) at `scale`: of S = f 2^(31 - c), f in [1, 2), a table of log f and c times log 2."""
    lead = leading(ctx, total)
    k = np.maximum(np.arange(2**_LOG_BITS), 2 ** (_LOG_BITS - 1)) + 0.5
    entries = (np.log(k * 2.0 ** (1 - _LOG_BITS)) + (31 + drop - bits) * math.log(2)) / scale
    log = lookup(ctx, np.rint(entries), calc(ctx, ops.LogicalRightShift(), lead.bits, 32 - _LOG_BITS))
    return ctx.emit(ops.Sub(), calc(ctx, ops.Mul(), lead.count, round(math.log(2) / scale)), log)


def _log_scale(ctx: Context, r: Rows) -> float:
    """The wanted scale, where neither the input at it nor 31 log 2 leaves int32, and the log N of `_farthest` is below 2^27.3."""
    fine = inner_scale(ctx, 0.0)
    return max(fine, r.scale * r.steps * 2.0 ** (-31 if r.steps == 2**31 else -28), 2.0**-24)


def _farthest(r: Rows, scale: float) -> int:
    """The largest distance, in steps of the input, that a logarithm at `scale` takes: 2^29 less log N < 10."""
    return int((2**29 - 10 / scale) * scale / r.scale)


@lower(aten._log_softmax.default)
def log_softmax(ctx: Context, x: Operand, dim: int, half_to_float: bool = False) -> Operand:
    """_log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor

    x - max(x) - log(sum(exp(x - max(x)))). The distance below the maximum saturates at 2^29 less log N, and the logarithm of a sum
    in [1, 16384] is below 9.8, so that the result is below 2^29.
    """
    if not in_integers(ctx, x):
        value = ctx.floats(x)[0].value
        assert value is not None
        axis = axis_of(dim, len(value.shape))
        shifted = ctx.emit(ops.Sub(), value, ctx.emit(ops.ReduceMax(axis), value))
        total = ctx.emit(ops.ReduceSum(axis), ctx.emit(ops.Exp(), shifted))
        return Operand(ctx.emit(ops.Sub(), shifted, ctx.emit(ops.Log(), total)))
    r = rows(ctx, x, [dim])
    parts = _exp_sum(ctx, r)
    scale = _log_scale(ctx, r)
    below, limit = parts.below, _farthest(r, scale)
    if limit < r.steps - 1:
        below = calc(ctx, ops.Minimum(), below, limit)
    below = ctx.rescale(below, Quant(r.scale, 0, DType.INT32), Quant(scale, 0, DType.INT32))
    value = ctx.emit(ops.Sub(), _negative_log(ctx, parts.total, parts.bits, parts.drop, scale), below)
    return as_wanted(ctx, value, scale, 29, r.perm)


@lower(aten.logsumexp.default)
def logsumexp(ctx: Context, x: Operand, dims: Sequence[int], keepdim: bool = False) -> Operand:
    """logsumexp(Tensor self, int[1] dim, bool keepdim=False) -> Tensor

    max(x) + log(sum(exp(x - max(x)))), the maximum limited to 2^29 less log N.
    """
    dims = [axis_of(d, len(x.shape)) for d in ([dims] if isinstance(dims, int) else dims or range(len(x.shape)))]
    if not in_integers(ctx, x):
        value = ctx.floats(x)[0].value
        assert value is not None
        top = reduced(ctx, ops.ReduceMax, value, dims)
        total = reduced(ctx, ops.ReduceSum, ctx.emit(ops.Exp(), ctx.emit(ops.Sub(), value, top)), dims)
        out = Operand(ctx.emit(ops.Add(), top, ctx.emit(ops.Log(), total)))
    else:
        r = rows(ctx, x, dims)
        parts = _exp_sum(ctx, r)
        scale = _log_scale(ctx, r)
        top, limit = parts.top, _farthest(r, scale)
        if limit < r.steps // 2:
            top = calc(ctx, ops.Maximum(), calc(ctx, ops.Minimum(), top, limit), -limit)
        top = ctx.rescale(top, Quant(r.scale, 0, DType.INT32), Quant(scale, 0, DType.INT32))
        value = ctx.emit(ops.Sub(), top, _negative_log(ctx, parts.total, parts.bits, parts.drop, scale))
        out = as_wanted(ctx, value, scale, 29, r.perm)
    return out if keepdim else squeeze(ctx, out, dims)


@lower(operators.exp_below_max)
def exp_below_max(ctx: Context, x: Operand, dim: int) -> Operand:
    """exp_below_max(Tensor self, int dim) -> Tensor

    exp(x - amax(x, dim, keepdim=True)): softmax before its division, which is left to a reader of fewer elements.

    From a table that holds the wanted quantization itself, so the largest of each row is exact and what is further below
    than half a step of it is zero (a mask adds a large negative number). No sum: rows of any length, nothing to overflow.
    """
    if not in_integers(ctx, x):
        value = ctx.floats(x)[0].value
        assert value is not None
        axis = axis_of(dim, len(value.shape))
        return Operand(ctx.emit(ops.Exp(), ctx.emit(ops.Sub(), value, ctx.emit(ops.ReduceMax(axis), value))))
    r = rows(ctx, x, [dim])
    quant = ctx.want
    if quant is None or quant.dtype is DType.INT32:
        quant = Quant(wide_scale(ctx, 1.0)[0], 0, DType.INT32)
    nats = min(18.0, -math.log(float(quant.scales) * 0.5))
    if ctx.spec.holds("int16") and quant.dtype is not DType.INT32 and r.scale < 0.25:
        exact = _exp_table(ctx, _below_max(ctx, r)[1], r, nats)
        if r.axes == (len(exact.shape) - 1,):
            ctx.bounded(exact, 0, 32767 * 128, LARGEST_IS_ONE)
        value = ctx.rescale(exact, Quant(1 / (32767 * 128), 0, DType.INT32), quant)
        return _declared(ctx, value, quant, r, quant.store(np.ones(1)))
    index, e = _exponentials(ctx, _below_max(ctx, r)[1], r, nats, 2**14 if quant.dtype is DType.INT8 else 2**16)
    entries = quant.store(e)
    return _declared(ctx, lookup(ctx, entries, index, quant.dtype), quant, r, entries)


def _declared(ctx: Context, value: Value, quant: Quant, r: Rows, entries: np.ndarray) -> Operand:
    """Exponentials in [0, 1] whose largest is the first entry: a division looks for that."""
    if entries[0] == quant.dtype.max and r.axes == (len(value.shape) - 1,):
        ctx.bounded(value, quant.zero_point, quant.dtype.max, LARGEST_IS_ONE)
    return Operand(value, quant=quant, perm=r.perm, exact=True)
