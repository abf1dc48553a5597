"""What multiply-accumulates share: their accumulators, biases and weights.

Integer results are accumulators: int32 (int48 for int16 inputs) with one scale for each output channel, which the
requantization that follows brings to its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tosaic.lower.context import Context
from tosaic.lower.layout import sliced
from tosaic.lower.operand import Operand, Quant
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

_MOST_OF_BIAS = {DType.INT8: 29, DType.INT16: 38}  # bits of a bias in the accumulator
_WEIGHTS = {DType.INT8: (DType.INT8, DType.INT4), DType.INT16: (DType.INT8,)}


def typed(ctx: Context, x: Operand, weight: Operand) -> tuple[Operand, Operand]:
    """Input and weight of a multiply-accumulate, both integer, or else both float."""
    if weight.quant is not None and weight.quant.dtype is DType.INT4 and x.quant is not None and x.quant.dtype is DType.INT16:
        weight = replace(weight, quant=replace(weight.quant, dtype=DType.INT8))  # 4-bit weights are for int8 inputs
    narrow = ctx.is_narrow(x) and weight.quant is not None and weight.quant.dtype in _WEIGHTS[x.scaling.dtype]
    if narrow and (weight.is_const or not weight.scaling.per_channel):
        return x, weight
    return ctx.floats(x)[0], Operand(array=weight.reals()) if weight.is_const else ctx.floats(weight)[0]


def accumulator(x: Operand, weight: Operand, channels: int) -> Quant | None:
    """Quantization of the accumulator: scale_x * scale_w for each output channel; None for floats.

    A transposed convolution's weight scales are those of one group; the groups share them.
    """
    if x.quant is None or weight.quant is None:
        return None
    scales = np.atleast_1d(weight.quant.scales)
    scales = np.tile(scales, channels // scales.size)
    dtype = ops.ACCUMULATOR[x.quant.dtype]
    return Quant(tuple(float(s) for s in scales * x.scale), 0, dtype)


def with_room_for_bias(x: Operand, weight: Operand, bias: Operand | None, axis: int, groups: int = 1) -> Operand:
    """`weight` at coarser scales in channels whose bias would not fit the accumulator.

    Where a folded batch norm has a gamma near zero, weights and with them the accumulator's scale are tiny, the bias is not.
    What the weights lose is below 2^-15 of that bias, or 2^-23 of one beside int16 inputs. A channel without weights has any scale: one
    at which its bias has as many bits as the sums of the others, whose bound is the bound of all (and a reader of 48 bits keeps 29 of it).
    """
    if x.quant is None or weight.quant is None or not weight.is_const:
        return weight
    quant, channels = weight.quant, weight.shape[axis]
    most = _MOST_OF_BIAS[x.quant.dtype]
    # the groups of a transposed convolution share their scales
    largest = np.abs(bias.reals()).reshape(groups, -1).max(0) if bias is not None and bias.is_const else np.zeros(channels)
    scales = np.broadcast_to(quant.scales, largest.shape)
    empty = ~np.moveaxis(np.asarray(weight.array), axis, -1).reshape(-1, channels).any(0)
    if empty.any():
        least = scales[~empty].min(initial=np.inf) if not empty.all() else 1.0
        others = np.where(empty, 0.0, largest / (scales * float(x.quant.scales)))
        bits = min(max(math.log2(others.max() + 1.0), 18.0), most)
        own = np.where(largest > 0, largest / (float(x.quant.scales) * 2.0**bits), least)
        scales = np.where(empty, own, scales)
        quant = replace(quant, scale=tuple(scales.tolist()))
        weight = replace(weight, quant=quant, axis=axis)
    over = largest / (scales * float(x.quant.scales) * 2.0**most)
    if (over <= 1).all():
        return weight
    factors = 2.0 ** np.ceil(np.log2(np.maximum(over, 1.0)))
    stored = np.moveaxis(np.rint(np.moveaxis(np.asarray(weight.array), axis, -1) / factors), -1, axis)
    quant = replace(quant, scale=tuple((scales * factors).tolist()))
    return replace(weight, array=stored.astype(np.int64), quant=quant, axis=axis)


def magnitude(x: Operand, weight: Value, channel_axes: Sequence[int], bias: Value) -> int | None:
    """Magnitude bits of an accumulator: of the largest sum that these weights can make; None for floats.

    Args:
        channel_axes: those of the weight that are not summed over.
    """
    if x.quant is None:
        return None
    largest = 255 if x.quant.dtype is DType.INT8 else 32768
    if weight.data is None:
        terms = math.prod(d for i, d in enumerate(weight.shape) if i not in channel_axes)
        return int(terms * 255 * largest).bit_length()
    assert bias.data is not None
    summed = tuple(i for i in range(len(weight.shape)) if i not in channel_axes)
    sums = np.abs(weight.data, dtype=np.int16).sum(summed, dtype=np.int64) * largest + int(np.abs(bias.data).max(initial=0))
    return int(sums.max()).bit_length()


def stored_bias(ctx: Context, bias: Operand | None, acc: Quant | None, channels: int, like: Value) -> Value:
    """Bias [channels] in the accumulator's own quantization, or in the float type of `like`; zeros for one that is not constant."""
    numbers = bias.reals() if bias is not None and bias.is_const else np.zeros(channels)
    return ctx.real(numbers, like) if acc is None else ctx.builder.const(acc.store(numbers), acc.dtype)


def stored_weight(ctx: Context, weight: Operand, perm: Sequence[int], like: Value) -> Value:
    """TRANSPOSE(weight, perm), in its integer type or the float type of `like`."""
    if not weight.is_const:
        return ctx.permuted(ctx.resolve_clamp(weight), perm)
    array = np.transpose(np.asarray(weight.array), perm)
    return ctx.builder.const(array, weight.quant.dtype) if weight.quant else ctx.real(array, like)


def zero_point(x: Operand) -> int:
    return x.quant.zero_point if x.quant is not None else 0


def part(ctx: Context, value: Value, axis: int, start: int, size: int) -> Value:
    """A slice of a value along one axis; a constant's is a constant."""
    if value.data is None:
        return sliced(ctx, value, axis, start, start + size)
    return ctx.builder.const(np.take(value.data, range(start, start + size), axis), value.dtype)


def reshapable(ctx: Context, x: Operand) -> Operand:
    """`x` in a type that data movement takes: a 48-bit accumulator is requantized to what is wanted."""
    if x.quant is None or x.quant.dtype is not DType.INT48:
        return x
    return ctx.requantize(x, ctx.want) if ctx.want is not None else ctx.uniform(x)


def poolable(ctx: Context, x: Operand) -> Operand:
    """An operand at the type that pools take: int8 or int16, or float."""
    if ctx.is_narrow(x):
        return ctx.resolve_clamp(x)
    if x.quant is not None and ctx.want is not None and ctx.want.dtype is not DType.INT32:
        return ctx.requantize(x, ctx.want)
    return ctx.floats(x)[0]
