"""Functions of two values: powers with a tensor as exponent, and the angle of a point."""

from __future__ import annotations

import math

import numpy as np
import torch

from tosaic.lower import float_functions as ff
from tosaic.lower import powers
from tosaic.lower.context import Context
from tosaic.lower.fixed import TOP, calc, lookup
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import as_real, broadcast, is_quantized, operand
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_UNIT = 1.001 * math.pi / 2**29


def _floats(ctx: Context, a: Operand, b: Operand) -> tuple[Value, Value]:
    (a, b), _ = broadcast(ctx, *ctx.floats(a, b))
    assert a.value is not None and b.value is not None
    return a.value, b.value


@lower(aten.pow.Tensor_Tensor)
def power_of_tensors(ctx: Context, base: Operand, exponent: Operand) -> Operand:
    """pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor; for self > 0"""
    base, exponent = as_real(ctx, operand(base)), as_real(ctx, operand(exponent))
    if not is_quantized(ctx, base, exponent):
        x, y = _floats(ctx, base, exponent)
        return Operand(ff.exp(ctx, ff.mul(ctx, ff.log(ctx, x), y)))
    if base.is_const:
        logarithms = np.log(np.maximum(base.reals(), 1e-30))
        product = powers.multiply(ctx, exponent, Operand(array=logarithms))
        return powers.exponential(ctx, ctx.store(ctx.to_i32(product)), 1.0)
    return powers.power_of_two_operands(ctx, ctx.resolve_clamp(ctx.uniform(base)), exponent)


@lower(aten.atan2.default)
def atan2(ctx: Context, y: Operand, x: Operand) -> Operand:
    """atan2(Tensor self, Tensor other) -> Tensor"""
    y, x = as_real(ctx, operand(y)), as_real(ctx, operand(x))
    if not is_quantized(ctx, y, x):
        return Operand(ff.atan2(ctx, *_floats(ctx, y, x)))
    y, x = (ctx.resolve_clamp(ctx.uniform(v)) if not v.is_const else v for v in (y, x))
    scale = max(float(v.quant.scales) for v in (y, x) if v.quant is not None and not v.is_const)
    # narrow operands have bits to spare
    if all(v.is_const or v.scaling.dtype is not DType.INT32 for v in (y, x)):
        scale *= 2.0**-12
    (y, x), perm = broadcast(ctx, *(_at(ctx, v, scale) for v in (y, x)))
    assert y.value is not None and x.value is not None
    return Operand(_angle(ctx, y.value, x.value), quant=Quant(_UNIT, 0, DType.INT32), perm=perm, bits=29)


def _at(ctx: Context, x: Operand, scale: float) -> Operand:
    return ctx.to_i32(x, scale) if x.quant is None or x.quant.dtype is not DType.INT32 or x.quant.scale != scale else x


def _angle(ctx: Context, y: Value, x: Value) -> Value:
    """atan2(y, x) in `_UNIT`, for stored magnitudes below 2^30.

    In the first octant atan(short / long) by a table of 2^16 quotients, long normalized to [2^30, 2^31) so that 16 leading bits
    of it have a reciprocal in [2^15, 2^16]; then mirrored.
    """
    height, width = ctx.emit(ops.Abs(), y), ctx.emit(ops.Abs(), x)
    longer = calc(ctx, ops.Maximum(), ctx.emit(ops.Maximum(), height, width), 1)
    shift = calc(ctx, ops.Sub(), ctx.emit(ops.Clz(), longer), 1)
    long = calc(ctx, ops.LogicalRightShift(), ctx.emit(ops.LogicalLeftShift(), longer, shift), 15)
    short = ctx.emit(ops.LogicalLeftShift(), ctx.emit(ops.Minimum(), height, width), shift)
    short = ctx.bounded(short, 0, TOP, "as `longer`, which it does not exceed")
    quotient = ctx.emit(ops.Mul(30), short, calc(ctx, ops.IntDiv(), TOP, long))
    angle = lookup(ctx, np.rint(np.arctan(np.arange(2**16) / 2**16) / _UNIT), calc(ctx, ops.Minimum(), quotient, 2**16 - 1))
    angle = ctx.emit(ops.Select(), ctx.emit(ops.Greater(), height, width), calc(ctx, ops.Sub(), round(math.pi / 2 / _UNIT), angle), angle)
    angle = ctx.emit(ops.Select(), calc(ctx, ops.Greater(), 0, x), calc(ctx, ops.Sub(), round(math.pi / _UNIT), angle), angle)
    return ctx.emit(ops.Select(), calc(ctx, ops.Greater(), 0, y), ctx.emit(ops.Negate(), angle), angle)
