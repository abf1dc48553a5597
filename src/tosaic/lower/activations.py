"""Piecewise functions of one value: limits, slopes and gates of straight lines, in exact int32 arithmetic.

int8 and int16 operands take one entry for each stored value instead (`tables`), where that is less.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from tosaic.lower import float_functions as ff
from tosaic.lower.approximate import STORED, position24
from tosaic.lower.context import Context
from tosaic.lower.elementwise import broadcast_ranks, multiply
from tosaic.lower.fixed import calc
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import structural_bits
from tosaic.lower.registry import lower
from tosaic.lower.tables import Function, by_stored, like, unary
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


def _stored(x: Operand, real: float) -> int:
    """A real number in the steps of an int32 operand; beyond what an operand can hold, its limit."""
    assert x.quant is not None
    return round(max(-STORED, min(STORED, real / x.scale)))


def _hardsigmoid_float(ctx: Context, x: Value) -> Value:
    return ff.mul(ctx, ctx.emit(ops.Clamp(0.0, 6.0), ff.add(ctx, x, 3.0)), 1.0 / 6.0)


def _hardsigmoid_real(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


@lower(aten.hardsigmoid.default)
def hardsigmoid(ctx: Context, x: Operand) -> Operand:
    """hardsigmoid(Tensor self) -> Tensor"""

    def wide(ctx: Context, x: Operand) -> Operand:
        return like(x, position24(ctx, x, 3.0), Quant(2.0**-24, 0, DType.INT32), 25)

    return unary(ctx, x, Function(_hardsigmoid_real, _hardsigmoid_float, wide=wide))


@lower(aten.hardswish.default)
def hardswish(ctx: Context, x: Operand) -> Operand:
    """hardswish(Tensor self) -> Tensor"""

    def wide(ctx: Context, x: Operand) -> Operand:
        assert x.quant is not None and x.value is not None
        return like(x, ctx.emit(ops.Mul(24), x.value, position24(ctx, x, 3.0)), x.quant, structural_bits(x))

    return unary(ctx, x, Function(lambda v: v * _hardsigmoid_real(v), ff.gated(_hardsigmoid_float), wide=wide))


@lower(aten.threshold.default)
def threshold_(ctx: Context, x: Operand, threshold: float, value: float) -> Operand:
    """threshold(Tensor self, Scalar threshold, Scalar value) -> Tensor"""

    def wide(ctx: Context, x: Operand) -> Operand:
        assert x.quant is not None
        if abs(value) > x.scale * 2.0**28:
            x = ctx.to_i32(x, abs(value) * 2.0**-28)
        assert x.quant is not None and x.value is not None
        above = calc(ctx, ops.Greater(), x.value, _stored(x, threshold))
        bits = max(structural_bits(x), abs(_stored(x, value)).bit_length())
        return like(x, calc(ctx, ops.Select(), above, x.value, _stored(x, value)), x.quant, bits)

    def in_float(ctx: Context, v: Value) -> Value:
        return ff.select(ctx, ff.do(ctx, ops.Greater(), v, threshold), v, ctx.real(value, v))

    return unary(ctx, x, Function(lambda v: np.where(v > threshold, v, value), in_float, wide=wide))


@lower(aten.leaky_relu.default)
def leaky_relu(ctx: Context, x: Operand, slope: float = 0.01) -> Operand:
    """leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor"""
    if ctx.want is not None and x.quant is not None and x.quant.dtype is ctx.want.dtype is DType.INT8:
        return by_stored(ctx, ctx.store(ctx.resolve_clamp(x)), lambda v: np.where(v >= 0, v, slope * v))
    return _two_slopes(ctx, x, Operand(array=np.full((1,) * len(x.shape), slope)))


@lower(aten.prelu.default)
def prelu(ctx: Context, x: Operand, weight: Operand) -> Operand:
    """prelu(Tensor self, Tensor weight) -> Tensor"""
    if not weight.is_const:
        raise ctx.refuse("prelu whose weight is not a constant")
    slopes = weight.reals().reshape(-1)
    if slopes.size == 1:
        return leaky_relu(ctx, x, float(slopes[0]))
    return _two_slopes(ctx, x, Operand(array=slopes.reshape(1, -1, *[1] * (len(x.shape) - 2))))


def _two_slopes(ctx: Context, x: Operand, slopes: Operand) -> Operand:
    """x where x >= 0, else x * slopes."""
    if x.quant is None:
        x = ctx.floats(x)[0]
        below = multiply(ctx, x, slopes)
        zero = ctx.real(0.0, x.tensor)
        keep = ctx.emit(ops.GreaterEqual(), x.tensor, zero)
        return Operand(ctx.emit(ops.Select(), keep, x.tensor, below.value))
    x = ctx.resolve_clamp(ctx.uniform(x))
    x, slopes = broadcast_ranks(ctx, x, slopes)
    assert x.quant is not None
    # both branches at one scale, slopes as 31-bit fixed point. Narrow inputs get 28 magnitude bits, less what slopes
    # above 1 add; wide ones keep their own scale, and with it their head-room
    growth = max(0, math.ceil(math.log2(max(1.0, float(np.abs(slopes.reals()).max())))))
    room = 0 if x.quant.dtype is DType.INT32 else 28 - ctx.magnitude_bits(x)
    scale = x.scale * 2.0 ** (growth - room)
    bits = ctx.magnitude_bits(x) + room
    (x, slopes), perm = ctx.same_layout(ctx.to_i32(x, scale), slopes)
    assert x.value is not None
    below = ctx.emit(ops.Mul(30 - growth), x.value, ctx.i32(np.rint(slopes.reals() * 2.0 ** (30 - growth))))
    keep = ctx.emit(ops.GreaterEqual(), x.value, ctx.i32(0, len(x.value.shape)))
    return Operand(ctx.emit(ops.Select(), keep, x.value, below), quant=Quant(scale, 0, DType.INT32), perm=perm, bits=bits)
