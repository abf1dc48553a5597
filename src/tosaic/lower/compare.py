"""Comparisons and logic: the result is a bool tensor.

Quantized tensors are compared exactly. With a constant: the constant becomes the least stored integer for which the
dequantized number (in float32, as PyTorch computes it) is above it, or not below it. With each other: as int32 at one
scale, which is exact for equal scales and for int8 and int16; int32 values meet at the scale of the larger, where the
rounding of the other is half of the last of 24 bits.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import WHOLE, as_int, as_real, bring, broadcast, common_scale, is_bool, is_whole, operand, structural_bits, values
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_MIRROR = {"eq": "eq", "ne": "ne", "gt": "lt", "lt": "gt", "ge": "le", "le": "ge"}
_REACH = 3  # how far the quotient of two floats may be from the integer that is sought


def compare(ctx: Context, a: Operand, b: Operand, relation: str) -> Operand:
    """a `relation` b: eq, ne, gt, lt, ge or le."""
    if a.is_const and not b.is_const:
        return compare(ctx, b, a, _MIRROR[relation])
    if is_whole(a) and is_whole(b):
        return _compare_integers(ctx, a, b, relation)
    if is_whole(a) and b.is_const:
        return _with_constant(ctx, replace(as_int(ctx, a), quant=WHOLE), b, relation)
    if a.quant is not None and b.is_const:
        return _with_constant(ctx, a, b, relation)
    if all(x.quant is not None or is_whole(x) for x in (a, b)):
        return _with_each_other(ctx, a, b, relation)
    a, b = ctx.floats(as_real(ctx, a), as_real(ctx, b))
    return _relate(ctx, *_stored(ctx, a, b), relation)


def _stored(ctx: Context, a: Operand, b: Operand) -> tuple[Operand, Operand, tuple[int, ...] | None]:
    (a, b), perm = broadcast(ctx, a, b)
    return a, b, perm


def _relate(ctx: Context, a: Operand, b: Operand, perm: tuple[int, ...] | None, relation: str) -> Operand:
    """The TOSA operators are EQUAL, GREATER and GREATER_EQUAL."""
    left, right = values([a, b])
    if left.dtype is DType.INT32 and not ctx.spec.holds("INT"):
        left, right = _as_floats(ctx, left, right)
    if relation in ("lt", "le"):
        left, right, relation = right, left, _MIRROR[relation]
    op = {"eq": ops.Equal, "ne": ops.Equal, "gt": ops.Greater, "ge": ops.GreaterEqual}[relation]
    result = ctx.emit(op(), left, right)
    return Operand(ctx.emit(ops.LogicalNot(), result) if relation == "ne" else result, perm=perm)


def _as_floats(ctx: Context, left: Value, right: Value) -> tuple[Value, Value]:
    """Integers for the FP profile, which compares floats only: one against a constant that float32 holds, or their difference against 0."""
    if right.data is not None and np.abs(right.data.astype(np.int64)).max(initial=0) < 1 << 24:
        left = ctx.emit(ops.Cast(DType.FP32), left)
        return left, ctx.real(right.data, left)
    left = ctx.emit(ops.Cast(DType.FP32), ctx.emit(ops.Sub(), left, right))
    return left, ctx.real(0.0, left)


def _compare_integers(ctx: Context, a: Operand, b: Operand, relation: str) -> Operand:
    if is_bool(a) and is_bool(b) and relation in ("eq", "ne"):
        unequal = _logic(ctx, ops.LogicalXor(), a, b)
        return unequal if relation == "ne" else replace(unequal, value=ctx.emit(ops.LogicalNot(), unequal.tensor))
    return _relate(ctx, *_stored(ctx, as_int(ctx, a), as_int(ctx, b)), relation)


def _with_each_other(ctx: Context, a: Operand, b: Operand, relation: str) -> Operand:
    a, b = _whole_as_real(ctx, a, b), _whole_as_real(ctx, b, a)
    same = a.quant is not None and a.quant == b.quant and not a.quant.per_channel and a.quant.dtype is not DType.INT48
    if not same:
        a, b = ctx.uniform(a), ctx.uniform(b)
    a, b = ctx.resolve_clamp(a), ctx.resolve_clamp(b)
    assert a.quant is not None and b.quant is not None
    scale = a.scale if a.quant.scale == b.quant.scale else common_scale((a, b))
    target = Quant(scale, 0, DType.INT32)
    return _relate(ctx, *_stored(ctx, bring(ctx, a, target), bring(ctx, b, target)), relation)


def _whole_as_real(ctx: Context, x: Operand, other: Operand) -> Operand:
    """Integers that are compared with a quantized tensor: limited to just beyond its reach, so that there are bits for fractions."""
    if not is_whole(x):
        return x
    assert other.quant is not None
    value = ctx.store(as_int(ctx, x)).value
    assert value is not None
    limit = math.ceil(float(other.quant.scales.max()) * 2.0 ** structural_bits(other)) + 1
    if limit < DType.INT32.max:
        value = ctx.emit(ops.Maximum(), value, ctx.i32(-limit, len(value.shape)))
        value = ctx.emit(ops.Minimum(), value, ctx.i32(limit, len(value.shape)))
    return Operand(value, quant=WHOLE, bits=min(limit.bit_length(), 31), exact=True)


def _with_constant(ctx: Context, a: Operand, constant: Operand, relation: str) -> Operand:
    """The constant as an integer at the scale of `a`."""
    reals = constant.reals().astype(np.float32)
    if np.isnan(reals).any():
        raise ctx.refuse("comparison with a constant that holds NaN")
    a = ctx.store(ctx.to_i32(a))
    assert a.quant is not None
    scale = np.float32(a.scale)
    above, from_ = _least(reals, scale, strict=True), _least(reals, scale, strict=False)
    if relation in ("eq", "ne"):
        # nothing is stored as -2^31
        threshold = np.where(from_ < above, from_, DType.INT32.min)
    else:
        threshold = above if relation in ("gt", "le") else from_
        relation = {"gt": "ge", "ge": "ge", "le": "lt", "lt": "lt"}[relation]
    return _relate(ctx, *_stored(ctx, replace(a, quant=None), Operand(array=threshold)), relation)


def _least(reals: np.ndarray, scale: np.float32, *, strict: bool) -> np.ndarray:
    """The least integer n, within int32, with float32(n * scale) >= real (> real, if strict)."""
    with np.errstate(over="ignore", divide="ignore"):
        near = np.clip(np.floor(reals.astype(np.float64) / float(scale)), DType.INT32.min, DType.INT32.max)
        result = np.full(near.shape, DType.INT32.max, dtype=np.int64)
        for step in range(_REACH, -_REACH - 1, -1):
            n = np.clip(near + step, DType.INT32.min, DType.INT32.max)
            number = n.astype(np.float32) * scale
            result = np.where(number > reals if strict else number >= reals, n, result).astype(np.int64)
    return result


def _relation(name: str) -> None:
    """Register `name`.Tensor and `name`.Scalar."""

    def function(ctx: Context, a: Operand, b: Operand | float) -> Operand:
        return compare(ctx, operand(a), operand(b), name)

    function.__name__ = name
    function.__doc__ = f"{name}.Tensor(Tensor self, Tensor other) -> Tensor"
    lower(getattr(aten, name).Tensor, getattr(aten, name).Scalar)(function)


for _name in _MIRROR:
    _relation(_name)


def as_bool(ctx: Context, x: Operand) -> Operand:
    """Whether elements are not zero."""
    if is_bool(x):
        return x
    if x.is_const:
        return Operand(array=x.reals() != 0)
    return compare(ctx, x, operand(0), "ne")


def _logic(ctx: Context, op: ops.Op, a: Operand, b: Operand) -> Operand:
    (a, b), perm = broadcast(ctx, as_bool(ctx, a), as_bool(ctx, b))
    return Operand(ctx.emit(op, *values([a, b])), perm=perm)


@lower(aten.logical_and.default)
def logical_and(ctx: Context, a: Operand, b: Operand) -> Operand:
    """logical_and(Tensor self, Tensor other) -> Tensor"""
    return _logic(ctx, ops.LogicalAnd(), a, b)


@lower(aten.logical_or.default)
def logical_or(ctx: Context, a: Operand, b: Operand) -> Operand:
    """logical_or(Tensor self, Tensor other) -> Tensor"""
    return _logic(ctx, ops.LogicalOr(), a, b)


@lower(aten.logical_xor.default)
def logical_xor(ctx: Context, a: Operand, b: Operand) -> Operand:
    """logical_xor(Tensor self, Tensor other) -> Tensor"""
    return _logic(ctx, ops.LogicalXor(), a, b)


@lower(aten.logical_not.default)
def logical_not(ctx: Context, x: Operand) -> Operand:
    """logical_not(Tensor self) -> Tensor"""
    if not is_bool(x):
        return compare(ctx, x, operand(0), "eq")
    x = ctx.store(x)
    return replace(x, value=ctx.emit(ops.LogicalNot(), x.tensor))


def _bitwise(name: str, on_bools: ops.Op, on_integers: ops.Op, *targets: torch._ops.OpOverload) -> None:
    def function(ctx: Context, a: Operand | int, b: Operand | int) -> Operand:
        a, b = operand(a), operand(b)
        if is_bool(a) and is_bool(b):
            return _logic(ctx, on_bools, a, b)
        (a, b), perm = broadcast(ctx, as_int(ctx, a), as_int(ctx, b))
        return Operand(ctx.emit(on_integers, *values([a, b])), perm=perm)

    function.__name__ = name
    function.__doc__ = f"{name}.Tensor(Tensor self, Tensor other) -> Tensor"
    lower(*targets)(function)


_bitwise("bitwise_and", ops.LogicalAnd(), ops.BitwiseAnd(), aten.bitwise_and.Tensor, aten.bitwise_and.Scalar)
_bitwise("bitwise_or", ops.LogicalOr(), ops.BitwiseOr(), aten.bitwise_or.Tensor, aten.bitwise_or.Scalar)
_bitwise("bitwise_xor", ops.LogicalXor(), ops.BitwiseXor(), aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar)


@lower(aten.bitwise_not.default)
def bitwise_not(ctx: Context, x: Operand) -> Operand:
    """bitwise_not(Tensor self) -> Tensor"""
    if is_bool(x):
        return logical_not(ctx, x)
    x = ctx.store(x)
    return replace(x, value=ctx.emit(ops.BitwiseNot(), x.tensor))


def _nowhere(x: Operand) -> Operand:
    return Operand(array=np.zeros(x.shape, dtype=np.bool_))


@lower(aten.isnan.default)
def isnan(ctx: Context, x: Operand) -> Operand:
    """isnan(Tensor self) -> Tensor; integers, quantized numbers among them, never are"""
    if x.quant is not None or is_whole(x):
        return _nowhere(x)
    value = ctx.floats(x)[0].tensor
    return Operand(ctx.emit(ops.LogicalNot(), ctx.emit(ops.Equal(), value, value)))


def _magnitude(ctx: Context, x: Operand) -> tuple[Value, Value]:
    """|x| and infinity."""
    value: Value = ctx.emit(ops.Abs(), ctx.floats(x)[0].tensor)
    return value, ctx.real(math.inf, value)


@lower(aten.isinf.default)
def isinf(ctx: Context, x: Operand) -> Operand:
    """isinf(Tensor self) -> Tensor"""
    if x.quant is not None or is_whole(x):
        return _nowhere(x)
    return Operand(ctx.emit(ops.Equal(), *_magnitude(ctx, x)))


@lower(aten.isfinite.default)
def isfinite(ctx: Context, x: Operand) -> Operand:
    """isfinite(Tensor self) -> Tensor"""
    if x.quant is not None or is_whole(x):
        return Operand(array=np.ones(x.shape, dtype=np.bool_))
    magnitude, infinity = _magnitude(ctx, x)
    return Operand(ctx.emit(ops.Greater(), infinity, magnitude))
