"""Arithmetic of integer tensors beyond add and multiply, division with a rounding mode, and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from tosaic.lower.compare import as_bool
from tosaic.lower.context import Context
from tosaic.lower.divide import divide
from tosaic.lower.elementwise import add_operands, multiply, neg
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import WHOLE, as_int, as_real, broadcast, is_bool, is_whole, operand, promoted, structural_bits, values
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_FLOATS = {torch.float16: DType.FP16, torch.bfloat16: DType.BF16, torch.float32: DType.FP32}
_FINE_BITS = 28


def _shift(ctx: Context, op: ops.Op, a: Operand, b: Operand) -> Operand:
    if not (is_whole(a) and is_whole(b)):
        raise ctx.refuse("a shift of real numbers; multiply by a power of two")
    if b.is_const and b.array is not None and b.array.size and not 0 <= b.array.min() <= b.array.max() <= 31:
        raise ctx.refuse(f"a shift by {b.array.min()}..{b.array.max()}; integers have 32 bits here")
    (a, b), perm = broadcast(ctx, as_int(ctx, a), as_int(ctx, b))
    return Operand(ctx.emit(op, *values([a, b])), perm=perm)


@lower(aten.__lshift__.Scalar, aten.__lshift__.Tensor, aten.bitwise_left_shift.Tensor)
def left_shift(ctx: Context, a: Operand, b: Operand | int) -> Operand:
    """bitwise_left_shift.Tensor(Tensor self, Tensor other) -> Tensor"""
    return _shift(ctx, ops.LogicalLeftShift(), a, operand(b))


@lower(aten.__rshift__.Scalar, aten.__rshift__.Tensor, aten.bitwise_right_shift.Tensor)
def right_shift(ctx: Context, a: Operand, b: Operand | int) -> Operand:
    """bitwise_right_shift.Tensor(Tensor self, Tensor other) -> Tensor"""
    return _shift(ctx, ops.ArithmeticRightShift(False), a, operand(b))


# Division


@lower(aten.div.Tensor_mode, aten.div.Scalar_mode)
def divide_rounded(ctx: Context, a: Operand, b: Operand | float, rounding_mode: str | None = None) -> Operand:
    """div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor"""
    a, b = operand(a), operand(b)
    if rounding_mode is None:
        return divide(ctx, a, b)
    if is_whole(a) and is_whole(b):
        (a, b), perm = _integer_pair(ctx, a, b)
        return Operand((_quotient if rounding_mode == "trunc" else _floor)(ctx, a, b), perm=perm)
    a, b = promoted(ctx, a, b)
    if a.quant is None and b.quant is None:
        return _rounded(ctx, divide(ctx, a, b), rounding_mode)
    divisor = _divisor(ctx, b)
    return _rounded(ctx, divide(ctx, neg(ctx, a) if divisor < 0 else a, operand(abs(divisor))), rounding_mode)


@lower(aten.floor_divide.default)
def floor_divide(ctx: Context, a: Operand, b: Operand) -> Operand:
    """floor_divide(Tensor self, Tensor other) -> Tensor"""
    return divide_rounded(ctx, a, b, "floor")


@lower(aten.remainder.Scalar, aten.remainder.Tensor, aten.remainder.Scalar_Tensor)
def remainder(ctx: Context, a: Operand | float, b: Operand | float) -> Operand:
    """remainder.Tensor(Tensor self, Tensor other) -> Tensor; it has the sign of the divisor"""
    return _rest(ctx, operand(a), operand(b), _modulo, "floor")


@lower(aten.fmod.Scalar, aten.fmod.Tensor)
def fmod(ctx: Context, a: Operand, b: Operand | float) -> Operand:
    """fmod.Tensor(Tensor self, Tensor other) -> Tensor; it has the sign of the dividend"""
    return _rest(ctx, a, operand(b), _remainder, "trunc")


def _rest(ctx: Context, a: Operand, b: Operand, integers: Callable[[Context, Operand, Operand], Value], mode: str) -> Operand:
    if is_whole(a) and is_whole(b):
        (a, b), perm = _integer_pair(ctx, a, b)
        return Operand(integers(ctx, a, b), perm=perm)
    a, b = promoted(ctx, a, b)
    if a.quant is not None or b.quant is not None:
        return _rest_of_quantized(ctx, a, _divisor(ctx, b), mode)
    return add_operands(ctx, a, multiply(ctx, _rounded(ctx, divide(ctx, a, b), mode), b), ops.Sub())


def _rest_of_quantized(ctx: Context, x: Operand, divisor: float, mode: str) -> Operand:
    """x - n divisor, with n the whole part of x / divisor. The sign of a divisor is that of the result (floor), or nothing."""
    if divisor < 0:
        rest = _rest_of_quantized(ctx, x if mode == "trunc" else neg(ctx, x), -divisor, mode)
        return rest if mode == "trunc" else neg(ctx, rest)
    x = ctx.plain(x)
    bits = structural_bits(x)
    assert x.quant is not None
    scale = float(x.quant.scale)  # type: ignore[arg-type]
    count = whole(ctx, replace(x, quant=replace(x.quant, scale=scale / divisor)), mode)
    finer = Quant(scale * 2.0 ** -max(0, _FINE_BITS - bits), 0, DType.INT32)
    x = ctx.to_i32(x)
    assert x.quant is not None and x.value is not None
    multiple = ctx.rescale(count, Quant(divisor, 0, DType.INT32), finer)
    left = ctx.emit(ops.Sub(), ctx.rescale(x.value, x.quant, finer), multiple)
    return Operand(left, quant=finer, bits=math.ceil(math.log2(divisor / float(finer.scale) + 1)))  # type: ignore[arg-type]


def _divisor(ctx: Context, b: Operand) -> float:
    """The number that quantized tensors can be divided by where the result is rounded to a whole one."""
    if not b.is_const or b.reals().size != 1:
        raise ctx.refuse("division of quantized tensors, rounded to whole numbers, by more than one number: its last bit decides")
    if not b.reals().item():
        raise ctx.refuse("division by a constant that is zero")
    return float(b.reals().item())


def _integer_pair(ctx: Context, a: Operand, b: Operand) -> tuple[list[Operand], tuple[int, ...] | None]:
    if b.is_const and not b.reals().all():
        raise ctx.refuse("division of integers by a constant that is zero")
    return broadcast(ctx, as_int(ctx, a), as_int(ctx, b))


def _quotient(ctx: Context, a: Operand, b: Operand) -> Value:
    """INTDIV rounds towards zero."""
    return ctx.emit(ops.IntDiv(), *values([a, b]))


def _remainder(ctx: Context, a: Operand, b: Operand) -> Value:
    left, right = values([a, b])
    return ctx.emit(ops.Sub(), left, ctx.emit(ops.Mul(), ctx.emit(ops.IntDiv(), left, right), right))


def _power_of_two(b: Operand) -> int | None:
    """The exponent of a constant divisor."""
    data = b.value.data if b.value is not None else None
    if data is None or data.size != 1 or data.item() < 1 or data.item() & (data.item() - 1):
        return None
    return int(data.item()).bit_length() - 1


def _crosses(ctx: Context, rest: Value, b: Operand) -> Value:
    """Whether a remainder is not zero and has another sign than the divisor."""
    assert b.value is not None
    zero = ctx.i32(0, len(rest.shape))
    if b.value.data is not None and b.value.data.min() > 0:
        return ctx.emit(ops.Greater(), zero, rest)
    signs = ctx.emit(ops.Greater(), zero, ctx.emit(ops.BitwiseXor(), rest, b.value))
    return ctx.emit(ops.LogicalAnd(), signs, ctx.emit(ops.LogicalNot(), ctx.emit(ops.Equal(), rest, zero)))


def _modulo(ctx: Context, a: Operand, b: Operand) -> Value:
    if (exponent := _power_of_two(b)) is not None:
        return ctx.emit(ops.BitwiseAnd(), a.value, ctx.i32((1 << exponent) - 1, len(a.shape)))  # type: ignore[arg-type]
    rest = _remainder(ctx, a, b)
    moved = ctx.emit(ops.Add(), rest, b.value)  # type: ignore[arg-type]
    found = ctx.emit(ops.Select(), _crosses(ctx, rest, b), moved, rest)
    divisors = b.value.data  # type: ignore[union-attr]
    if divisors is None or divisors.min() < 1:
        return found
    return ctx.bounded(found, 0, int(divisors.max()) - 1, "a remainder of positive divisors")


def _floor(ctx: Context, a: Operand, b: Operand) -> Value:
    if (exponent := _power_of_two(b)) is not None:
        return ctx.emit(ops.ArithmeticRightShift(False), a.value, ctx.i32(exponent, len(a.shape)))  # type: ignore[arg-type]
    left, right = values([a, b])
    quotient = ctx.emit(ops.IntDiv(), left, right)
    rest = ctx.emit(ops.Sub(), left, ctx.emit(ops.Mul(), quotient, right))
    below = ctx.emit(ops.Sub(), quotient, ctx.i32(1, len(quotient.shape)))
    return ctx.emit(ops.Select(), _crosses(ctx, rest, b), below, quotient)


# Whole numbers of real ones


def _rounded(ctx: Context, x: Operand, mode: str) -> Operand:
    """floor or trunc of real numbers."""
    if x.quant is not None:
        bits = math.ceil(math.log2(float(x.quant.scales.max()))) + structural_bits(x)
        return Operand(whole(ctx, x, mode), quant=WHOLE, bits=min(max(bits, 0) + 1, 31), exact=True)
    value = ctx.floats(x)[0].value
    assert value is not None
    down = ctx.emit(ops.Floor(), value)
    if mode == "floor":
        return Operand(down)
    positive = ctx.emit(ops.GreaterEqual(), value, ctx.real(0.0, value))
    return Operand(ctx.emit(ops.Select(), positive, down, ctx.emit(ops.Ceil(), value)))


def whole(ctx: Context, x: Operand, mode: str) -> Value:
    """floor or trunc of a quantized tensor, as int32.

    The nearest whole number by RESCALE, less one where it is above the number itself: that is compared at a scale 2^k finer
    than the input's, where it has up to 28 bits, so that int8 and int16 are exact; of int32 the last of 24 bits is rounded.
    """
    x = ctx.uniform(x)
    bits, x = structural_bits(x), ctx.plain(ctx.to_i32(x))
    assert x.quant is not None and x.value is not None
    scale, value, rank = float(x.quant.scale), x.value, len(x.shape)  # type: ignore[arg-type]
    if mode == "floor":
        return _below(ctx, value, scale, bits)
    zero = ctx.i32(0, rank)
    size = _below(ctx, ctx.emit(ops.Abs(), value), scale, bits)
    return ctx.emit(ops.Select(), ctx.emit(ops.Greater(), zero, value), ctx.emit(ops.Sub(), zero, size), size)


def _below(ctx: Context, value: Value, scale: float, bits: int) -> Value:
    finer = scale * 2.0 ** -max(0, _FINE_BITS - bits)
    own, fine = Quant(scale, 0, DType.INT32), Quant(finer, 0, DType.INT32)
    limit = min(2.0**29, 2.0**29 / scale)  # what is beyond does not fit int32 as a whole number
    if 2.0**bits > limit:
        value = ctx.emit(ops.Minimum(), value, ctx.i32(int(limit), len(value.shape)))
        value = ctx.emit(ops.Maximum(), value, ctx.i32(-int(limit), len(value.shape)))
    nearest = ctx.rescale(value, own, WHOLE)
    above = ctx.emit(ops.Greater(), ctx.rescale(nearest, WHOLE, fine), ctx.rescale(value, own, fine))
    return ctx.emit(ops.Sub(), nearest, ctx.emit(ops.Cast(DType.INT32), above))


# Casts


@lower(aten._to_copy.default)
def cast(ctx: Context, x: Operand, *, dtype: torch.dtype | None = None, **_: object) -> Operand:
    """_to_copy(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None,
    bool non_blocking=False, MemoryFormat? memory_format=None) -> Tensor

    To an integer it truncates towards zero, as PyTorch does.
    """
    if dtype is None:
        return x
    if dtype is torch.bool:
        return as_bool(ctx, x)
    if dtype.is_floating_point:
        return as_real(ctx, x) if is_whole(x) else _between_floats(ctx, x, dtype)
    if dtype not in (torch.int32, torch.int64) and not is_bool(x):
        raise ctx.refuse(f"a cast to {dtype}; integers have 32 bits here, so cast to torch.int32")
    if x.value is not None and x.quant is None and x.value.dtype in (DType.INT8, DType.INT16):
        return Operand(ctx.emit(ops.Cast(DType.INT32), ctx.logical(x)))
    if is_whole(x):
        return as_int(ctx, x)
    if x.quant is not None:
        return Operand(whole(ctx, x, "trunc"))
    value = _rounded(ctx, x, "trunc").value
    return Operand(ctx.emit(ops.Cast(DType.INT32), value))  # type: ignore[arg-type]


def _between_floats(ctx: Context, x: Operand, dtype: torch.dtype) -> Operand:
    """Quantized numbers have no float type."""
    if x.quant is not None or dtype not in _FLOATS:
        return x
    x = ctx.store(x)
    target, value = _FLOATS[dtype], x.value
    assert value is not None
    if {value.dtype, target} == {DType.FP16, DType.BF16}:
        value = ctx.emit(ops.Cast(DType.FP32), value)
    return replace(x, value=value if value.dtype is target else ctx.emit(ops.Cast(target), value))


@lower(aten.sign.default)
def sign(ctx: Context, x: Operand) -> Operand:
    """sign(Tensor self) -> Tensor"""
    if x.quant is None and not is_whole(x):
        value = ctx.floats(x)[0].value
        assert value is not None
        one, zero = ctx.real(1.0, value), ctx.real(0.0, value)
        positive = ctx.emit(ops.Select(), ctx.emit(ops.Greater(), value, zero), one, zero)
        return Operand(ctx.emit(ops.Select(), ctx.emit(ops.Greater(), zero, value), ctx.real(-1.0, value), positive))
    number = as_int(ctx, x) if is_whole(x) else ctx.plain(ctx.to_i32(x))
    value = ctx.store(number).value
    assert value is not None
    rank = len(value.shape)
    value = ctx.emit(ops.Minimum(), ctx.emit(ops.Maximum(), value, ctx.i32(-1, rank)), ctx.i32(1, rank))
    return Operand(value) if x.quant is None else Operand(value, quant=WHOLE, bits=1, exact=True)
