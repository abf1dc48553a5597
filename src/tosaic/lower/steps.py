"""Magnitudes and roundings to whole numbers, in int32 arithmetic.

A stored value stands for the reals within half its step: where a whole number lies there, the value is that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower import float_functions as ff
from tosaic.lower.approximate import STORED, Real
from tosaic.lower.context import Context
from tosaic.lower.fixed import calc
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import WHOLE, is_whole, structural_bits
from tosaic.lower.registry import lower
from tosaic.lower.tables import Function, by_stored, like, times, unary
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_FINEST = 2.0**-28  # step of a value whose whole numbers fit int32 in steps
Kernel = Callable[[Context, Operand], Operand]


@lower(aten.abs.default)
def absolute(ctx: Context, x: Operand) -> Operand:
    """abs(Tensor self) -> Tensor"""
    if is_whole(x):
        return Operand(ctx.emit(ops.Abs(), ctx.logical(x)))
    if x.quant is None:
        return Operand(ff.absolute(ctx, ctx.floats(x)[0].tensor))
    x = ctx.store(ctx.resolve_clamp(ctx.uniform(x)))
    if ctx.want is not None and x.scaling.dtype is ctx.want.dtype is DType.INT8:
        return by_stored(ctx, x, np.abs)
    bits = structural_bits(x)
    x = x if x.scaling.dtype is DType.INT32 else ctx.to_i32(x)
    assert x.quant is not None and x.value is not None
    return like(x, ctx.emit(ops.Abs(), x.value), x.quant, bits)


def _nearest(ctx: Context, x: Operand) -> tuple[Value, Value]:
    """n, the whole number nearest to x, and x - n in the steps of x; |stored| < 2^30, steps in (2^-28, 1)."""
    assert x.quant is not None and x.value is not None
    steps = 1.0 / x.scale
    n = ctx.rescale(x.value, Quant(1 / steps, 0, DType.INT32), WHOLE)
    shift = 29 - max(0, int(steps).bit_length() - 1)
    back = ctx.emit(ops.Mul(shift), n, ctx.i32(round(steps * 2.0**shift), len(n.shape)))
    room = int(steps / 2) + 2
    back = ctx.bounded(back, -STORED - room, STORED + room, "the nearest whole number is half of one away")
    rest = ctx.bounded(ctx.emit(ops.Sub(), x.value, back), -room, room, "the nearest whole number is half of one away")
    return n, rest


def _result(x: Operand, value: Value) -> Operand:
    """Whole numbers, which are exact at scale 1."""
    assert x.quant is not None
    bits = math.ceil(math.log2(x.scale * 2.0 ** structural_bits(x) + 2))
    return replace(like(x, value, WHOLE, bits), exact=True)


def _down(ctx: Context, x: Operand) -> Operand:
    """n, or n - 1 where n is above x."""
    n, rest = _nearest(ctx, x)
    return _result(x, ctx.emit(ops.Add(), n, calc(ctx, ops.ArithmeticRightShift(), rest, 31)))


def _up(ctx: Context, x: Operand) -> Operand:
    n, rest = _nearest(ctx, x)
    below = calc(ctx, ops.ArithmeticRightShift(), ctx.emit(ops.Negate(), rest), 31)
    return _result(x, ctx.emit(ops.Sub(), n, below))


def _to_zero(ctx: Context, x: Operand) -> Operand:
    """The magnitude down, with its sign."""
    assert x.value is not None and x.quant is not None
    value = _down(ctx, like(x, ctx.emit(ops.Abs(), x.value), x.quant, x.bits)).value
    assert value is not None
    negative = calc(ctx, ops.Greater(), ctx.i32(0, len(value.shape)), x.value)
    return _result(x, ctx.emit(ops.Select(), negative, ctx.emit(ops.Negate(), value), value))


def _half_even(ctx: Context, x: Operand) -> Operand:
    """n; where halves are stored numbers too, the even one of the two that are as near."""
    assert x.quant is not None and x.value is not None
    scale = x.scale
    half = round(0.5 / scale)
    if abs(0.5 / scale - half) * 2.0**24 * scale > 0.25:
        return _result(x, ctx.rescale(x.value, Quant(scale, 0, DType.INT32), WHOLE))
    n, rest = _nearest(ctx, x)
    odd = calc(ctx, ops.BitwiseAnd(), n, 1)
    up, down = (calc(ctx, ops.Select(), calc(ctx, ops.Equal(), rest, part), odd, 0) for part in (half, -half))
    return _result(x, ctx.emit(ops.Sub(), ctx.emit(ops.Add(), n, up), down))


def _in_steps(kernel: Kernel) -> Kernel:
    """A kernel for values in steps between 2^-28 and 1: coarser ones are as whole as they can be, finer ones lose what is beyond."""

    def wide(ctx: Context, x: Operand) -> Operand:
        assert x.quant is not None
        scale = x.scale
        if scale >= 1:
            return x
        return kernel(ctx, ctx.to_i32(x, _FINEST) if scale < _FINEST else x)

    return wide


def _as_float32(real: Real) -> Real:
    """Of x as PyTorch computes it: rounded to float32, in which it is whole where it should be."""
    return lambda x: real(x.astype(np.float32).astype(np.float64))


def _step(ctx: Context, x: Operand, real: Real, in_float: ff.Float, kernel: Kernel) -> Operand:
    return x if is_whole(x) else unary(ctx, x, Function(_as_float32(real), in_float, wide=_in_steps(kernel)))


@lower(aten.floor.default)
def floor(ctx: Context, x: Operand) -> Operand:
    """floor(Tensor self) -> Tensor"""
    return _step(ctx, x, np.floor, ff.operator(ops.Floor()), _down)


@lower(aten.ceil.default)
def ceil(ctx: Context, x: Operand) -> Operand:
    """ceil(Tensor self) -> Tensor"""
    return _step(ctx, x, np.ceil, ff.operator(ops.Ceil()), _up)


@lower(aten.trunc.default)
def trunc(ctx: Context, x: Operand) -> Operand:
    """trunc(Tensor self) -> Tensor"""
    return _step(ctx, x, np.trunc, ff.trunc, _to_zero)


@lower(aten.round.default)
def round_(ctx: Context, x: Operand) -> Operand:
    """round(Tensor self) -> Tensor; half to even"""
    return _step(ctx, x, np.rint, ff.round_half_even, _half_even)


@lower(aten.round.decimals)
def round_decimals(ctx: Context, x: Operand, *, decimals: int) -> Operand:
    """round.decimals(Tensor self, *, int decimals) -> Tensor"""
    factor = 10.0**decimals

    def wide(ctx: Context, x: Operand) -> Operand:
        return times(_in_steps(_half_even)(ctx, times(x, factor)), 1 / factor)

    in_float = ff.scaled(ff.round_half_even, factor, 1 / factor)
    return x if is_whole(x) else unary(ctx, x, Function(_as_float32(lambda v: np.rint(v * factor) / factor), in_float, wide=wide))
