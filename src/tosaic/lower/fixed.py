"""Primitives of integer kernels: int32 fixed point with zero point 0, each with the bound that keeps it from overflow.

TOSA demands that shifts are in [0, 31], that results of ADD, SUB, MUL and REDUCE_SUM fit int32, and that RESCALE reads
|value| < 2^(shift-1); a reference model calls anything else UNPREDICTABLE. "x 2^-s" below is MUL's rounded right shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tosaic.lower.context import Context
from tosaic.lower.operand import Operand, Quant
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

TOP = 2**31 - 1
_GOLDEN = 0.6180339887498949


def calc(ctx: Context, op: ops.Op, *operands: Value | int | np.ndarray) -> Value:
    """An operator whose operands may be Python integers and arrays: int32 constants of the rank of the tensors."""
    rank = next(len(x.shape) for x in operands if isinstance(x, Value))
    return ctx.emit(op, *[x if isinstance(x, Value) else ctx.i32(x, rank) for x in operands])


def lookup(ctx: Context, entries: np.ndarray, index: Value, dtype: DType = DType.INT32) -> Value:
    """entries[index] by GATHER, which takes any integer type; index is int32 in range."""
    count = math.prod(index.shape)
    values = ctx.builder.const(entries.reshape(1, -1, 1), dtype)
    found = ctx.emit(ops.Gather(), values, ctx.reshape(index, (1, count)))
    return ctx.reshape(found, index.shape)


def spread(length: int, bits: int) -> np.ndarray:
    """Integers in [0, 2^bits) for the positions of a row, evenly spread in every stretch of it (golden-ratio sequence).

    Added before a row is shifted right by `bits` and summed, they make the truncation unbiased whatever the row holds.
    """
    return np.floor(np.modf(_GOLDEN * np.arange(length))[0] * 2.0**bits)


def reduced(ctx: Context, op: type[ops._Reduce], x: Value, axes: Sequence[int]) -> Value:
    """A reduction over several axes, one after the other."""
    for axis in axes:
        x = ctx.emit(op(axis), x)
    return x


def shifted_sum(ctx: Context, x: Value, axes: Sequence[int], drop: int) -> Value:
    """sum(x 2^-drop), truncated without bias; x in [0, 2^31 - 2^drop), and its count times 2^-drop max(x) below 2^31."""
    if drop:
        length = math.prod(x.shape[a] for a in axes)
        dither = spread(length, drop).reshape([d if i in axes else 1 for i, d in enumerate(x.shape)])
        x = calc(ctx, ops.LogicalRightShift(), calc(ctx, ops.Add(), x, dither), drop)
    return reduced(ctx, ops.ReduceSum, x, axes)


def in_integers(ctx: Context, x: Operand) -> bool:
    """Whether a composite of `x` is computed in integers: its readers want it quantized, or there is no float."""
    return x.quant is not None and not x.is_const and (ctx.want is not None or not ctx.spec.holds("FP"))


@dataclass(frozen=True)
class Rows:
    """A quantized tensor and the stored axes that one row runs over; nothing is transposed.

    Attributes:
        perm: logical dimension i is stored dimension perm[i] (None: they are the same).
    """

    x: Operand
    axes: tuple[int, ...]
    perm: tuple[int, ...] | None

    @property
    def value(self) -> Value:
        assert self.x.value is not None
        return self.x.value

    @property
    def length(self) -> int:
        return math.prod(self.value.shape[a] for a in self.axes)

    @property
    def scale(self) -> float:
        assert self.x.quant is not None
        return self.x.scale

    @property
    def steps(self) -> int:
        """The stored values of a row are less than this apart (the head-room of int32 ends at 2^30)."""
        assert self.x.quant is not None
        if self.x.exact and self.x.bits is not None:
            return 2 ** (self.x.bits + 1)
        return {DType.INT8: 2**8, DType.INT16: 2**16}.get(self.x.quant.dtype, 2**31)


def rows(ctx: Context, x: Operand, dims: Sequence[int]) -> Rows:
    """`x` with one scale and no pending clamp, and where its logical dimensions `dims` are stored."""
    x = ctx.resolve_clamp(ctx.uniform(ctx.store(x)))
    if x.view is not None:
        x = ctx.plain(x)
    rank = len(x.shape)
    plain = tuple(range(rank))
    perm = x.perm or plain
    return Rows(replace(x, perm=None), tuple(sorted(perm[d % rank] for d in dims)), None if perm == plain else perm)


_SPARE = {DType.INT8: 14, DType.INT16: 7, DType.INT32: 0}  # bits of an int32 result below those that a stored type keeps


def inner_scale(ctx: Context, reach: float) -> float:
    """Scale of an int32 result: the wanted one, with more bits where less than int32 is wanted; else such that `reach` is 2^23."""
    return reach / 2.0**23 if ctx.want is None else float(ctx.want.scales) * 2.0 ** -_SPARE[ctx.want.dtype]


def wide_scale(ctx: Context, reach: float) -> tuple[float, int]:
    """Scale of an int32 result of magnitude `reach` at most, and its `bits`, such that storing it costs least.

    It is coarser by the power of two by which `Context.store_as` would make it coarser to keep it below 2^29.
    """
    fine = inner_scale(ctx, reach)
    over = max(0, math.ceil(math.log2(reach / fine) - 29 + 1e-9)) if reach else 0
    scale = fine * 2.0**over
    return scale, 29 if over else max(1, math.ceil(math.log2(max(reach / scale, 1.0)) + 1e-9))


def as_wanted(ctx: Context, value: Value, scale: float, bits: int, perm: tuple[int, ...] | None = None) -> Operand:
    """An int32 result below 2^bits. At the wanted scale it counts as calibrated, not by its bound: readers keep 24 bits of that."""
    calibrated = ctx.want is not None and ctx.want.dtype is DType.INT32 and scale == float(ctx.want.scales) and bits > 24
    return Operand(value, quant=Quant(scale, 0, DType.INT32), perm=perm, bits=None if calibrated else bits)


@dataclass(frozen=True)
class Leading:
    """x 2^count in `bits` (its top bit, as unsigned, is set)."""

    bits: Value
    count: Value


def leading(ctx: Context, x: Value) -> Leading:
    """x in [1, 2^31), shifted left until its top bit is set: [2^31, 2^32) as unsigned, so only a logical shift right may read it."""
    count = ctx.emit(ops.Clz(), x)
    return Leading(ctx.emit(ops.LogicalLeftShift(), x, count), count)


@dataclass(frozen=True)
class Scaled:
    """mantissa / scale 2^(count + exponent): a positive number whose exponent is a tensor."""

    mantissa: Value
    count: Value
    exponent: int
    scale: float = 1.0


def reciprocal(ctx: Context, x: Value, numerator: int = TOP) -> Scaled:
    """1/x = mantissa / numerator 2^(count - 16), mantissa in [2^14, 2^16), for x in [1, 2^31) and a numerator in [2^30, 2^31).

    n = floor(x 2^(count-16)) in [2^15, 2^16), mantissa = floor(numerator / n): 4 operators, a relative error from -2^-14 (2^-15
    for the largest numerator) to 2^-15. mantissa 2^count < 2^(47-k) where x >= 2^k: it may be shifted left by `count` where
    x >= 2^17 - 1, and by less than that where x is smaller.
    """
    lead = leading(ctx, x)
    n = calc(ctx, ops.LogicalRightShift(), lead.bits, 16)
    return Scaled(calc(ctx, ops.IntDiv(), numerator, n), lead.count, -16, float(numerator))


def rsqrt(ctx: Context, x: Value, bits: int = 14, scale: float = 2.0**21) -> Scaled:
    """1/sqrt(x) = mantissa / scale 2^(count - 16), mantissa in [scale, 2 scale], for x in [1, 2^31).

    2 count is CLZ made even, so that the `bits` leading bits of x 2^(2 count) are an index k in [2^(bits-2), 2^bits) whose
    entry is scale / sqrt((k + 0.5) / 2^bits): a relative error below 2^-bits (12, 14, 16 bits: 78, 90, 100 dB on average). With
    the int16 extension, and a scale of 2^21 or more, it is a `curve` at a scale just below 2^21 (92 dB).
    mantissa 2^count <= scale 2^(1 + (31 - k) / 2) where x >= 2^k: it may be shifted left by `count` where that is below 2^31.
    """
    even = calc(ctx, ops.BitwiseAnd(), ctx.emit(ops.Clz(), x), 30)
    lead = ctx.emit(ops.LogicalLeftShift(), x, even)
    half = calc(ctx, ops.LogicalRightShift(), even, 1)
    if ctx.spec.holds("int16") and scale >= 2.0**21:
        # as signed, the upper half of the leading numbers is negative: 1 + index / 2^16, and index 0 is where it ends
        index = ctx.rescale(lead, Quant(2.0**-16, 0, DType.INT32), Quant(1.0, 0, DType.INT16))
        j = np.arange(513)
        fraction = np.where(j <= 256, 0.5 + j / 512, np.maximum(j - 256, 128) / 512)
        return Scaled(curve(ctx, index, 16383 / np.sqrt(fraction)), half, -16, 16383 * 128.0)
    k = (np.arange(2**bits) + 0.5) / 2**bits
    entries = np.rint(scale / np.sqrt(np.maximum(k, 0.25)))
    return Scaled(lookup(ctx, entries, calc(ctx, ops.LogicalRightShift(), lead, 32 - bits)), half, -16, scale)


def leading_half(ctx: Context, lead: Value) -> Value:
    """The 16 leading bits of an unsigned number, less 2^15: the numbers 128 j, for j in [0, 512], are the points of a TABLE."""
    return calc(ctx, ops.Sub(), calc(ctx, ops.LogicalRightShift(), lead, 16), 2**15)


def curve(ctx: Context, index: Value, points: np.ndarray) -> Value:
    """128 points[(index + 2^15) / 128], linear between the 513 points of int16, by TABLE; index is int32 in the range of int16."""
    narrow = index if index.dtype is DType.INT16 else ctx.emit(ops.Cast(DType.INT16), index)
    return ctx.emit(ops.Table(), narrow, ctx.builder.const(np.rint(points), DType.INT16))
