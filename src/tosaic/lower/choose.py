"""Choices between tensors: where, maximum, minimum, limits that are tensors, nan_to_num.

Both sides are brought to the scale of the result before the choice, each element rounded once, so that the result is
what choosing between real numbers and then quantizing gives.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from tosaic.lower.compare import as_bool
from tosaic.lower.context import Context, largest
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import (
    as_int,
    bring,
    broadcast,
    common_scale,
    is_bool,
    is_quantized,
    is_whole,
    operand,
    promoted,
    structural_bits,
    values,
)
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.types import DType

aten = torch.ops.aten


def _in_integers(ctx: Context, *operands: Operand) -> bool:
    """Quantized operands; beside constants, which no calibration gives a scale that both could have, only where the result is quantized."""
    if ctx.want is None and ctx.spec.holds("FP") and any(x.is_const for x in operands):
        return False
    return is_quantized(ctx, *operands)


def meeting(ctx: Context, *operands: Operand) -> Quant:
    """The quantization at which operands are chosen between: their own if it is one, else what the readers want."""
    quants = {x.quant for x in operands if not x.is_const}
    if len(quants) == 1 and not any(x.is_const for x in operands):
        (quant,) = quants
        if quant is not None and not quant.per_channel and quant.dtype is not DType.INT48:
            return quant
    if ctx.want is not None:
        return ctx.want
    tensors = [x for x in operands if not x.is_const]
    reach = max((float(np.abs(x.reals()[np.abs(x.reals()) < 1e30]).max(initial=0.0)) for x in operands if x.is_const), default=0.0)
    scale = common_scale(tensors) if tensors else 0.0
    return Quant(max(scale, reach / 2.0**28) or 1.0, 0, DType.INT32)


@lower(aten.where.self)
def where(ctx: Context, condition: Operand, a: Operand, b: Operand) -> Operand:
    """where.self(Tensor condition, Tensor self, Tensor other) -> Tensor"""
    condition = as_bool(ctx, condition)
    if is_bool(a) and is_bool(b):
        (condition, a, b), perm = broadcast(ctx, condition, a, b)
        return Operand(ctx.emit(ops.Select(), *values([condition, a, b])), perm=perm)
    if is_whole(a) and is_whole(b):
        (condition, a, b), perm = broadcast(ctx, condition, as_int(ctx, a), as_int(ctx, b))
        return Operand(ctx.emit(ops.Select(), *values([condition, a, b])), perm=perm)
    a, b = promoted(ctx, a, b)
    if not _in_integers(ctx, a, b):
        (condition, a, b), perm = broadcast(ctx, condition, *ctx.floats(a, b))
        return Operand(ctx.emit(ops.Select(), *values([condition, a, b])), perm=perm)
    a, b = (x if x.is_const else ctx.uniform(x) for x in (a, b))
    target = meeting(ctx, a, b)
    (condition, a, b), perm = broadcast(ctx, condition, bring(ctx, a, target), bring(ctx, b, target))
    return Operand(ctx.emit(ops.Select(), *values([condition, a, b])), quant=target, perm=perm)


def _extreme(ctx: Context, op: ops.Op, a: Operand, b: Operand) -> Operand:
    """MAXIMUM or MINIMUM; they take int32."""
    if is_whole(a) and is_whole(b):
        bools = is_bool(a) and is_bool(b)
        (a, b), perm = broadcast(ctx, as_int(ctx, a), as_int(ctx, b))
        result = Operand(ctx.emit(op, *values([a, b])), perm=perm)
        return as_bool(ctx, result) if bools else result
    a, b = promoted(ctx, a, b)
    if not _in_integers(ctx, a, b):
        (a, b), perm = broadcast(ctx, *ctx.floats(a, b))
        return Operand(ctx.emit(op, *values([a, b])), perm=perm)
    a, b = (x if x.is_const else ctx.resolve_clamp(ctx.uniform(x)) for x in (a, b))
    scale = meeting(ctx, a, b).per_tensor
    # int8 and int16 values at a scale far below their own would leave int32
    narrow = [x for x in (a, b) if x.quant is not None and x.quant.dtype is not DType.INT32]
    scale = max([scale, *(x.scale * 2.0 ** (structural_bits(x) - 29) for x in narrow)])
    target = Quant(scale, 0, DType.INT32)
    (a, b), perm = broadcast(ctx, bring(ctx, a, target), bring(ctx, b, target))
    return Operand(ctx.emit(op, *values([a, b])), quant=target, perm=perm)


@lower(aten.maximum.default, aten.fmax.default)
def maximum(ctx: Context, a: Operand, b: Operand) -> Operand:
    """maximum(Tensor self, Tensor other) -> Tensor"""
    return _extreme(ctx, ops.Maximum(), operand(a), operand(b))


@lower(aten.minimum.default, aten.fmin.default)
def minimum(ctx: Context, a: Operand, b: Operand) -> Operand:
    """minimum(Tensor self, Tensor other) -> Tensor"""
    return _extreme(ctx, ops.Minimum(), operand(a), operand(b))


@lower(aten.clamp.Tensor)
def clamp_tensor(ctx: Context, x: Operand, low: Operand | None = None, high: Operand | None = None) -> Operand:
    """clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor"""
    if low is not None:
        x = maximum(ctx, x, low)
    return x if high is None else minimum(ctx, x, high)


@lower(aten.nan_to_num.default)
def nan_to_num(ctx: Context, x: Operand, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Operand:
    """nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor; integers stay as they are"""
    if x.quant is not None or is_whole(x):
        return x
    value = ctx.floats(x)[0].value
    assert value is not None
    replaced = ctx.emit(ops.Select(), ctx.emit(ops.Equal(), value, value), value, ctx.real(nan or 0.0, value))
    for infinity, number in ((math.inf, posinf), (-math.inf, neginf)):
        if number is not None:
            found = ctx.emit(ops.Equal(), replaced, ctx.real(infinity, value))
            replaced = ctx.emit(ops.Select(), found, ctx.real(number, value), replaced)
    if posinf is None or neginf is None:
        most = largest(replaced.dtype)
        low, high = (-math.inf if neginf is not None else -most, math.inf if posinf is not None else most)
        replaced = ctx.emit(ops.Clamp(low, high), replaced)
    return Operand(replaced)
