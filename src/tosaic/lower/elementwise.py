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

from tosaic.lower.context import LARGEST, Context
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_SUM_BITS = 28  # magnitude of an addend
_CONST_BITS = 21  # magnitude of a constant factor
_INF = math.inf


def operand(x: Operand | float) -> Operand:
    """A Python number as a constant."""
    return x if isinstance(x, Operand) else Operand(array=np.array(x))


def _is_integer(*operands: Operand) -> bool:
    """At least one quantized tensor, and nothing but constants beside."""
    return any(x.quant is not None and not x.is_const for x in operands) and all(x.quant is not None or x.is_const for x in operands)


def _indices(*operands: Operand) -> bool:
    """Integer (index) arithmetic: int32 values without quantization."""
    return any(x.value is not None and x.quant is None and x.value.dtype is DType.INT32 for x in operands)


def broadcast_ranks(ctx: Context, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    rank = max(len(a.shape), len(b.shape))
    return ctx.with_rank(a, rank), ctx.with_rank(b, rank)


def _reach(ctx: Context, x: Operand) -> float:
    """Largest real magnitude."""
    if x.is_const:
        return float(np.abs(x.reals()).max(initial=0.0))
    assert x.quant is not None
    return float(x.quant.scales.max()) * 2.0 ** ctx.magnitude_bits(x)


def add_operands(ctx: Context, a: Operand, b: Operand, op: ops.Op) -> Operand:
    """a + b or a - b, both real: one scale, then ADD or SUB."""
    a, b = broadcast_ranks(ctx, a, b)
    if not _is_integer(a, b):
        return _float_binary(ctx, op, a, b)
    want = ctx.want
    wide = any(x.quant is not None and x.quant.dtype is DType.INT32 and x.bits is None and not x.is_const for x in (a, b))
    reach = max(_reach(ctx, a), _reach(ctx, b))
    # operands that cancel are larger than the scale of their sum can hold; then the sum has a scale of its own
    if want is not None and want.dtype is DType.INT32 and reach <= float(want.scales) * 2.0 ** (26 if wide else 29):
        scale, bits = float(want.scales), None
    else:
        ctx.want = None
        scale, bits = (reach / 2.0**23, 24) if wide else (reach / 2.0**_SUM_BITS, _SUM_BITS + 1)
    a, b = (ctx.resolve_clamp(ctx.uniform(x)) if not x.is_const else x for x in (a, b))
    ctx.want = want
    (a, b), perm = ctx.same_layout(a, b)
    lhs, rhs = (_addend(ctx, x, scale) for x in (a, b))
    return Operand(ctx.emit(op, lhs, rhs), quant=Quant(scale, 0, DType.INT32), perm=perm, bits=bits)


def _addend(ctx: Context, x: Operand, scale: float) -> Value:
    if x.is_const:
        return ctx.i32(Quant(scale, 0, DType.INT32).store(x.reals()))
    return ctx.to_i32(x, scale).value  # type: ignore[return-value]


def _float_binary(ctx: Context, op: ops.Op, a: Operand, b: Operand) -> Operand:
    if _indices(a, b):
        a, b = (ctx.store(_as_index(ctx, x)) for x in (a, b))
        return Operand(ctx.emit(op, ctx.logical(a), ctx.logical(b)))
    a, b = ctx.floats(a, b)
    return Operand(ctx.emit(op, a.value, b.value))  # type: ignore[arg-type]


def _as_index(ctx: Context, x: Operand) -> Operand:
    if not x.is_const:
        return x
    rounded = np.rint(x.reals())
    if not np.array_equal(rounded, x.reals()):
        raise ctx.refuse("integer tensor combined with a constant that is not an integer")
    return Operand(array=rounded.astype(np.int64))


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
        x = ctx.floats(x)[0]
        return Operand(ctx.emit(ops.Negate(), x.value))  # type: ignore[arg-type]
    x = ctx.store(ctx.to_i32(x))
    return replace(x, value=ctx.emit(ops.Negate(), x.value))  # type: ignore[arg-type]


@lower(aten.mul.Tensor, aten.mul.Scalar)
def multiply(ctx: Context, a: Operand, b: Operand | float) -> Operand:
    """mul.Tensor(Tensor self, Tensor other) -> Tensor"""
    a, b = operand(a), operand(b)
    if a.is_const:
        a, b = b, a
    if b.is_const and not a.is_const and a.quant is not None:
        return _times_constant(ctx, a, b)
    a, b = broadcast_ranks(ctx, a, b)
    if not _is_integer(a, b):
        return _float_binary(ctx, ops.Mul(), a, b)
    a, b = ctx.uniform(a), ctx.uniform(b)
    bits = ctx.magnitude_bits(a) + ctx.magnitude_bits(b)
    return _product(ctx, ctx.to_i32(a), ctx.to_i32(b), bits)


def _product(ctx: Context, a: Operand, b: Operand, bits: int) -> Operand:
    """MUL of two int32 operands whose product has `bits` magnitude bits.

    Up to 29 bits fit as they are; more (an operand is wide, its bits a calibrated range) keep 24, and head-room.
    """
    (a, b), perm = ctx.same_layout(a, b)
    a, b = ctx.store(a), ctx.store(b)
    shift = 0 if bits <= 29 else 1 if bits == 30 else bits - 24
    assert a.quant is not None and b.quant is not None
    scale = float(a.quant.scale) * float(b.quant.scale) * 2.0**shift  # type: ignore[arg-type]
    product = ctx.emit(ops.Mul(shift), a.value, b.value)  # type: ignore[arg-type]
    return Operand(product, quant=Quant(scale, 0, DType.INT32), perm=perm, bits=bits - shift)


def _times_constant(ctx: Context, x: Operand, constant: Operand) -> Operand:
    """A positive number only changes the scale; anything else is an int32 constant of 21 magnitude bits."""
    factors = constant.reals()
    if factors.size == 1 and factors.ndim <= len(x.shape) and float(factors.reshape(())) > 0:
        x = ctx.resolve_clamp(x)
        assert x.quant is not None
        factor = float(factors.reshape(()))
        scaled = tuple(s * factor for s in x.quant.scale) if isinstance(x.quant.scale, tuple) else x.quant.scale * factor
        return replace(x, quant=replace(x.quant, scale=scaled))
    x, constant = broadcast_ranks(ctx, ctx.uniform(x), constant)
    bits = ctx.magnitude_bits(x)
    x = ctx.to_i32(x)
    largest = float(np.abs(factors).max(initial=0.0)) or 1.0
    quant = Quant(largest / (2.0**_CONST_BITS - 1), 0, DType.INT32)
    stored = Operand(array=quant.store(constant.reals()), quant=quant)
    return _product(ctx, x, stored, bits + _CONST_BITS)


@lower(aten.div.Tensor, aten.div.Scalar)
def divide(ctx: Context, a: Operand | float, b: Operand | float) -> Operand:
    """div.Tensor(Tensor self, Tensor other) -> Tensor

    By a constant it is a product. TOSA has no integer division of real numbers; by a tensor it stays float.
    """
    a, b = operand(a), operand(b)
    if b.is_const:
        divisors = b.reals()
        if not divisors.all():
            raise ctx.refuse("division by a constant that is zero")
        return multiply(ctx, a, Operand(array=1.0 / divisors))
    if _is_integer(a, b):
        raise ctx.refuse("division of quantized tensors by a tensor")
    a, b = broadcast_ranks(ctx, a, b)
    a, b = ctx.floats(a, b)
    return Operand(ctx.emit(ops.Mul(), a.value, ctx.emit(ops.Reciprocal(), b.value)))  # type: ignore[arg-type]


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
    x = Operand(ctx.logical(ctx.store(x)))
    return Operand(ctx.emit(ops.Clamp(max(low, -LARGEST), min(high, LARGEST)), x.value))  # type: ignore[arg-type]


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
    return clamp_to(ctx, x, -_INF if low is None else float(low), _INF if high is None else float(high))
