"""Linear layers whose input has 16 bits in two int8 digits: what the int16 extension is for, in the base profile."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tosaic.digits import BASE, LEAST, MOST
from tosaic.lower.context import Context, excess
from tosaic.lower.elementwise import add_operands
from tosaic.lower.mac import accumulator, stored_bias, stored_weight, with_room_for_bias
from tosaic.lower.operand import Operand, Quant
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

# int32 steps in a step of the low digit: below, the high digit would be taken off with an error that counts; above, it leaves int32
_FINE, _FINEST, _TAKEN = 16.0, 2.0**14, 64.0
_BITS = 30  # of a number from which a high digit can be taken off


def linear_in_digits(ctx: Context, x: Operand, weight: Operand, bias: Operand | None, step: float) -> Operand:
    """x W^T + b for x = step (BASE high + low); the weight is stored, and read, once."""
    pair = Operand(_digits(ctx, x, step), quant=Quant(step, 0, DType.INT8))
    assert pair.value is not None
    weight = with_room_for_bias(pair, weight, bias, 0)
    channels = weight.shape[0]
    acc = accumulator(pair, weight, channels)
    assert acc is not None and weight.array is not None
    w = stored_weight(ctx, Operand(array=weight.array[:, None, None, :], quant=weight.quant), range(4), pair.value)
    assert w.data is not None
    products = ctx.emit(ops.Conv2d((1, 1), (0,) * 4, (1, 1), 0), pair.value, w, stored_bias(ctx, None, acc, channels, pair.value))
    largest = int(np.abs(w.data, dtype=np.int16).sum((1, 2, 3), dtype=np.int64).max()) * -LEAST
    offset = acc.store(bias.reals()) if bias is not None and bias.is_const else np.zeros(channels)
    shift = excess((largest + int(np.abs(offset).max())).bit_length())
    factors = ctx.i32(np.array([BASE, 1]).reshape(1, 2, 1, 1))
    total = ctx.emit(ops.ReduceSum(1), ctx.emit(ops.Mul(shift), products, factors))
    most = (largest >> shift) + 1
    total = ctx.bounded(total, -most, most, "both digits are of one number of 16 bits")
    acc = replace(acc, scale=tuple((acc.scales * 2.0**shift).tolist()))
    if bias is not None and offset.any():
        offset = acc.store(bias.reals())
        total = ctx.emit(ops.Add(), total, ctx.i32(offset.reshape(1, 1, 1, -1)))
    bits = (most + int(np.abs(offset).max())).bit_length()
    result = Operand(total, quant=acc, view=(*x.shape[:-1], channels), bits=bits)
    return result if bias is None or bias.is_const else add_operands(ctx, result, bias, ops.Add())


def _digits(ctx: Context, x: Operand, step: float) -> Value:
    """[1, 2, rows, features] int8: the high digits of all rows, then the low ones.

    high = RESCALE(x), low = RESCALE(x - RESCALE(high)), both saturating: beyond their range the digits stay at their limits.
    """
    x = _fine(ctx, x, step)
    assert x.quant is not None
    value = ctx.reshape(ctx.logical(x), (1, 1, math.prod(x.shape[:-1]), x.shape[-1]))
    coarse = Quant(BASE * step, 0, DType.INT8)
    high = ctx.requantize(Operand(value, quant=x.quant, bits=x.bits), coarse).value
    assert high is not None
    rest = ctx.emit(ops.Sub(), value, ctx.rescale(high, coarse, x.quant))
    return ctx.emit(ops.Concat(1), high, ctx.rescale(rest, x.quant, Quant(step, 0, DType.INT8)))


def _fine(ctx: Context, x: Operand, step: float) -> Operand:
    """`x` in int32, fine enough that taking off its high digit is exact, or as good as that."""
    if x.quant is None:
        whole = ctx.quantize_float(x.clamp(LEAST * step, MOST * step), Quant(step, 0, DType.INT32))
        assert whole.value is not None
        ctx.bounded(whole.value, LEAST, MOST, "clamped as a float")
        return whole
    x = ctx.store(x)
    exact = ctx.unrounded(x)
    if _is_fine(exact, step) and _is_bounded(ctx, exact):
        return ctx.resolve_clamp(exact)
    x = replace(ctx.resolve_clamp(x), origin=None)
    assert x.value is not None
    if x.value.dtype is DType.INT32:
        x = ctx.between(x, _BITS) if not _is_bounded(ctx, x) else x if x.bits is not None else replace(x, bits=_BITS)
    return x if _is_fine(x, step) else ctx.requantize(x, Quant(step / _TAKEN, 0, DType.INT32))


def _is_fine(x: Operand, step: float) -> bool:
    quant = x.quant
    return quant is not None and quant.dtype is DType.INT32 and not quant.per_channel and _FINE <= step / float(quant.scales) <= _FINEST


def _is_bounded(ctx: Context, x: Operand) -> bool:
    """Whether a high digit can be taken off without an overflow."""
    assert x.value is not None
    low, high = ctx.interval(x.value)
    return max(-low, high) <= 2**_BITS
