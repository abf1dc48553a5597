"""Additions, products, range limits and unfolded batch norm.

Integer arithmetic runs in int32 with zero point 0. Sums have magnitudes below 2^29 and products below 2^30, so that
neither ADD nor the RESCALE that follows (|value| < 2^(shift-1), specification section 1.10.2) can overflow for int8
and int16 operands; int32 operands have that head-room over their calibrated range.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import CALIBRATED, Context, excess
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import SATURATED, as_int, bring, is_bool, is_whole, operand, promoted
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_SUM_BITS = 28  # magnitude of an addend
_FINE, _FINE_WIDE = 0.25, 8.0  # steps of the wanted scale in which a product should count at least; int32 has bits to spare
_WIDENED = 128.0  # how much larger than what calibration saw a range may be that a stream shares
_CONST_BITS = 21  # magnitude of a constant factor
_ENDLESS = 1e37  # no number of a model
_INF = math.inf


def _is_integer(*operands: Operand) -> bool:
    """At least one quantized tensor, and nothing but constants beside."""
    return any(x.quant is not None and not x.is_const for x in operands) and all(x.quant is not None or x.is_const for x in operands)


def broadcast_ranks(ctx: Context, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    rank = max(len(a.shape), len(b.shape))
    return ctx.with_rank(a, rank), ctx.with_rank(b, rank)


def _reach(ctx: Context, x: Operand) -> float:
    """Largest real magnitude; of a calibrated int32 value without its head-room."""
    return float(x.scaling.scales.max()) * CALIBRATED if _has_head_room(x) else _bound(ctx, x)


def _bound(ctx: Context, x: Operand) -> float:
    """Largest real magnitude that is known; of a calibrated int32 value of which no bound is, the calibrated one."""
    if x.is_const:
        return float(np.abs(x.reals()).max(initial=0.0))  # infinite for a mask of -inf
    assert x.quant is not None
    return float(x.quant.scales.max()) * 2.0 ** ctx.magnitude_bits(x)


def _has_head_room(x: Operand) -> bool:
    """An int32 value that calibration saw, of which no more is known, or that fills its range as streams do and saturates above it.

    One that is stored coarser than calibration asks for, as a mask is of which only the nearest 64 count, is as large as its bound says.
    """
    if x.is_const or x.quant is None or x.quant.dtype is not DType.INT32:
        return False
    return x.bits is None or (x.calibrated is not None and x.calibrated >= CALIBRATED / _WIDENED and 2.0**x.bits > CALIBRATED)


def add_operands(ctx: Context, a: Operand, b: Operand, op: ops.Op) -> Operand:
    """a + b or a - b, both real: one scale, then ADD or SUB."""
    a, b = broadcast_ranks(ctx, *promoted(ctx, a, b))
    if not _is_integer(a, b):
        return _plain_binary(ctx, op, a, b)
    want = ctx.want
    wide = any(map(_has_head_room, (a, b)))
    small, large = sorted(_reach(ctx, x) for x in (a, b))
    # operands that cancel are larger than the scale of their sum can hold; then the sum has a scale of its own.
    # One far larger than the other does not cancel: it is a mask, and saturates
    room = small if want is None else _room(want, wide)
    masked = large >= _ENDLESS if want is None else small <= room and any(_is_mask(ctx, x, room, want) for x in (a, b))
    if want is not None and want.dtype is DType.INT32 and (masked or large <= room):
        scale, bits = float(want.scales), None
    else:
        ctx.want = None
        if masked:
            scale, bits = room * 8 / 2.0**_SUM_BITS, _SUM_BITS + 1
        else:
            scale = max(_reach(ctx, x) / (CALIBRATED if _has_head_room(x) else 2.0**_SUM_BITS) for x in (a, b))
            # with the head-room of operands that are known to saturate
            bits = max(24 if wide else _SUM_BITS + 1, math.ceil(math.log2(sum(_bound(ctx, x) for x in (a, b)) / scale)))
    a, b = (ctx.resolve_clamp(ctx.uniform(x)) if not x.is_const else x for x in (a, b))
    ctx.want = want
    if not masked:
        a, b = (_at_once(ctx, x, scale) for x in (a, b))
    (a, b), perm = ctx.same_layout(a, b)
    lhs, rhs = (_addend(ctx, x, scale, masked) for x in (a, b))
    result = Operand(ctx.emit(op, lhs, rhs), quant=Quant(scale, 0, DType.INT32), perm=perm, bits=None if masked else bits)
    # above the mask by more than the other operand: rows that are masked whole are uniform
    return result.clamp(-0.75 * SATURATED * scale, 0.75 * SATURATED * scale) if masked else result


def _at_once(ctx: Context, x: Operand, scale: float) -> Operand:
    """An operand that was stored coarser than the sum for its bound: what it was rounded from, at the scale of the sum."""
    if x.origin is None or x.quant is None or float(x.quant.scales) <= scale:
        return x
    return ctx.requantize(ctx.unrounded(x), Quant(scale, 0, DType.INT32))


def _room(want: Quant, wide: bool) -> float:
    """The largest operand of a sum that is stored as `want`."""
    bits = want.dtype.bits if want.dtype is not DType.INT32 else 26 if wide else 29
    return float(want.scales) * 2.0**bits


def _is_mask(ctx: Context, x: Operand, room: float, want: Quant) -> bool:
    """A constant beyond `room`; a tensor only where far beyond, as the bits of an accumulator are a bound that is seldom reached."""
    margin = 1.0 if x.is_const else 2.0**6 if want.dtype is DType.INT32 else 2.0**12
    return _reach(ctx, x) > room * margin


def _addend(ctx: Context, x: Operand, scale: float, masked: bool) -> Value:
    if masked:
        return ctx.store(bring(ctx, x, Quant(scale, 0, DType.INT32))).tensor
    target = Quant(scale, 0, DType.INT32)
    if x.is_const:
        return ctx.i32(target.store(x.reals()))
    # of two products that fill their range in calibration, one may be the coarser: beyond what RESCALE takes it saturates
    stored = ctx.to_i32(x, scale) if x.bits is None else ctx.requantize(x, target)
    assert stored.value is not None
    return stored.value


def _plain_binary(ctx: Context, op: ops.Op, a: Operand, b: Operand) -> Operand:
    """Of two integer tensors (bools count as 0 and 1, and stay bools), or of two floats."""
    if not (is_whole(a) and is_whole(b)):
        a, b = ctx.floats(a, b)
        return Operand(ctx.emit(op, a.tensor, b.tensor))
    bools = is_bool(a) and is_bool(b)
    a, b = (ctx.store(as_int(ctx, x)) for x in (a, b))
    result = Operand(ctx.emit(op, ctx.logical(a), ctx.logical(b)))
    return Operand(ctx.emit(ops.Cast(DType.BOOL), result.tensor)) if bools else result


def _scaled(ctx: Context, x: Operand, factor: float) -> Operand:
    """x * factor; for a positive factor only the scale changes."""
    if factor == 1.0:
        return x
    if x.is_const:
        return Operand(array=x.reals() * factor)
    return multiply(ctx, x, operand(factor))


@lower(aten.add.Tensor, aten.add.Scalar)
def add(ctx: Context, a: Operand, b: Operand | float, alpha: float = 1) -> Operand:
    """add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return add_operands(ctx, a, _scaled(ctx, operand(b), alpha), ops.Add())


@lower(aten.sub.Tensor, aten.sub.Scalar)
def sub(ctx: Context, a: Operand, b: Operand | float, alpha: float = 1) -> Operand:
    """sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return add_operands(ctx, operand(a), _scaled(ctx, operand(b), alpha), ops.Sub())


@lower(aten.rsub.Scalar)
def rsub(ctx: Context, a: Operand, b: float, alpha: float = 1) -> Operand:
    """rsub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor"""
    return add_operands(ctx, operand(b), _scaled(ctx, a, alpha), ops.Sub())


@lower(aten.neg.default)
def neg(ctx: Context, x: Operand) -> Operand:
    """neg(Tensor self) -> Tensor"""
    if x.quant is None:
        x = as_int(ctx, x) if is_whole(x) else ctx.floats(x)[0]
        return Operand(ctx.emit(ops.Negate(), x.tensor))
    x = ctx.store(ctx.to_i32(x))
    return replace(x, value=ctx.emit(ops.Negate(), x.tensor))


@lower(aten.mul.Tensor, aten.mul.Scalar)
def multiply(ctx: Context, a: Operand, b: Operand | float) -> Operand:
    """mul.Tensor(Tensor self, Tensor other) -> Tensor"""
    a, b = promoted(ctx, operand(a), operand(b))
    if a.is_const:
        a, b = b, a
    if b.is_const and not a.is_const and a.quant is not None:
        return _times_constant(ctx, a, b)
    a, b = broadcast_ranks(ctx, a, b)
    if not _is_integer(a, b):
        return _plain_binary(ctx, ops.Mul(), a, b)
    a, b = ctx.limited(ctx.uniform(a)), ctx.limited(ctx.uniform(b))
    if _is_coarse(ctx, a, b):
        a, b = ctx.limited(a, known=True), ctx.limited(b, known=True)
    bits = ctx.magnitude_bits(a) + ctx.magnitude_bits(b)
    if a.scaling.dtype is b.scaling.dtype is DType.INT16:
        bits += 1  # -2^15 times -2^15 is 2^30, not below it
    return _product(ctx, ctx.to_i32(a), ctx.to_i32(b), bits)


def _is_coarse(ctx: Context, a: Operand, b: Operand) -> bool:
    """Whether a product would count in larger steps than its readers want, for head-room above the calibrated ranges of its factors."""
    assert a.quant is not None and b.quant is not None
    if ctx.want is None:
        return False
    step = float(a.quant.scales) * float(b.quant.scales) * 2.0 ** excess(ctx.magnitude_bits(a) + ctx.magnitude_bits(b))
    fine = _FINE_WIDE if ctx.want.dtype is DType.INT32 else _FINE
    return step > float(ctx.want.scales.min()) * fine


def _product(ctx: Context, a: Operand, b: Operand, bits: int) -> Operand:
    """MUL of two int32 operands whose product has `bits` magnitude bits.

    Of more than 30 bits, 30 are kept: two calibrated int32 values, limited to 26 bits each, keep 24 in use.
    """
    (a, b), perm = ctx.same_layout(a, b)
    a, b = ctx.store(a), ctx.store(b)
    shift = excess(bits)
    assert a.quant is not None and b.quant is not None
    scale = a.scale * b.scale * 2.0**shift
    product = ctx.emit(ops.Mul(shift), a.tensor, b.tensor)
    return Operand(product, quant=Quant(scale, 0, DType.INT32), perm=perm, bits=bits - shift)


def _times_constant(ctx: Context, x: Operand, constant: Operand) -> Operand:
    """A positive number only changes the scale; anything else is an int32 constant of 21 magnitude bits."""
    factors = constant.reals()
    if factors.size == 1 and factors.ndim <= len(x.shape) and float(factors.reshape(())) > 0:
        x = ctx.resolve_clamp(x)
        assert x.quant is not None
        return replace(x, quant=x.quant.times(float(factors.reshape(()))))
    x, constant = broadcast_ranks(ctx, ctx.uniform(x), constant)
    calibrated = x.quant is not None and x.quant.dtype is DType.INT32 and x.bits is None and not x.exact
    # of a mask of zeros and ones the operators say more than calibration
    bits = (ctx.whole_bits(x.tensor) or 30) if calibrated else ctx.magnitude_bits(x)
    x = ctx.to_i32(x)
    largest = float(np.abs(factors).max(initial=0.0)) or 1.0
    quant = Quant(largest / (2.0**_CONST_BITS - 1), 0, DType.INT32)
    stored = Operand(array=quant.store(constant.reals()), quant=quant)
    return _product(ctx, x, stored, bits + _CONST_BITS)


@lower(aten.batch_norm.default)
def batch_norm(
    ctx: Context,
    x: Operand,
    gamma: Operand | None,
    beta: Operand | None,
    mean: Operand,
    var: Operand,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Operand:
    """batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training,
    float momentum, float eps, bool cudnn_enabled) -> Tensor

    In evaluation mode: a product and a sum with one constant for each channel.
    """
    scale = 1.0 / np.sqrt(var.reals() + eps) * (gamma.reals() if gamma is not None else 1.0)
    shift = (beta.reals() if beta is not None else 0.0) - mean.reals() * scale
    shape = (1, -1, *[1] * (len(x.shape) - 2))
    want, ctx.want = ctx.want, None
    product = multiply(ctx, x, Operand(array=scale.reshape(shape)))
    ctx.want = want
    return add_operands(ctx, product, Operand(array=shift.reshape(shape)), ops.Add())


def clamp_to(ctx: Context, x: Operand, low: float, high: float) -> Operand:
    """A pending clamp for quantized tensors, CLAMP for floats."""
    if x.quant is not None:
        return x.clamp(low, high)
    if is_whole(x):
        return _clamp_integers(ctx, as_int(ctx, x), low, high)
    x = Operand(ctx.logical(ctx.store(x)))
    return Operand(ctx.clamp(x.tensor, low, high))


def _clamp_integers(ctx: Context, x: Operand, low: float, high: float) -> Operand:
    """Integers of the model; limits are rounded towards the inside."""
    value = ctx.store(x).value
    assert value is not None
    if low > -_INF:
        value = ctx.emit(ops.Maximum(), value, ctx.i32(max(math.ceil(low), DType.INT32.min), len(value.shape)))
    if high < _INF:
        value = ctx.emit(ops.Minimum(), value, ctx.i32(min(math.floor(high), DType.INT32.max), len(value.shape)))
    return Operand(value)


@lower(aten.relu.default)
def relu(ctx: Context, x: Operand) -> Operand:
    """relu(Tensor self) -> Tensor"""
    return clamp_to(ctx, x, 0.0, _INF)


@lower(aten.relu6.default)
def relu6(ctx: Context, x: Operand) -> Operand:
    """relu6(Tensor self) -> Tensor"""
    return clamp_to(ctx, x, 0.0, 6.0)


@lower(aten.hardtanh.default)
def hardtanh(ctx: Context, x: Operand, low: float = -1.0, high: float = 1.0) -> Operand:
    """hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor"""
    return clamp_to(ctx, x, float(low), float(high))


@lower(aten.clamp.default)
def clamp(ctx: Context, x: Operand, low: float | None = None, high: float | None = None) -> Operand:
    """clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor"""
    most = _INF if high is None else float(high)
    return clamp_to(ctx, x, -_INF if low is None else min(float(low), most), most)  # where they cross, PyTorch gives the upper one
