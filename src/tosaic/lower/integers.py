"""Arithmetic of integer tensors beyond add and multiply, division with a rounding mode, and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from tosaic.lower.compare import as_bool
from tosaic.lower.context import Context
from tosaic.lower.divide import divide
from tosaic.lower.elementwise import add_operands, multiply, neg
from tosaic.lower.fixed import calc
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import (
    WHOLE,
    as_int,
    as_real,
    bring,
    broadcast,
    is_bool,
    is_quantized,
    is_whole,
    operand,
    promoted,
    structural_bits,
    structural_exponent,
    values,
)
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_FLOATS = {torch.float16: DType.FP16, torch.bfloat16: DType.BF16, torch.float32: DType.FP32}
_FINE_BITS = 28
_PAIR_BITS = 29


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
    """div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor

    Quantized tensors are divided as the integers that they are at one scale of up to 29 bits; a divisor of zero counts as one step of it.
    """
    a, b = operand(a), operand(b)
    if rounding_mode is None:
        return divide(ctx, a, b)
    if is_whole(a) and is_whole(b):
        (a, b), perm = _integer_pair(ctx, a, b)
        return Operand((_quotient if rounding_mode == "trunc" else _floor)(ctx, a, b), perm=perm)
    a, b = promoted(ctx, a, b)
    if not is_quantized(ctx, a, b):
        return _rounded(ctx, divide(ctx, a, b), rounding_mode)
    divisor = _divisor(ctx, b)
    if divisor is not None:
        return _rounded(ctx, divide(ctx, neg(ctx, a) if divisor < 0 else a, operand(abs(divisor))), rounding_mode)
    pair = _Pair.of(ctx, a, b)
    count = (_quotient if rounding_mode == "trunc" else _floor)(ctx, Operand(pair.flipped(ctx, pair.a)), Operand(pair.size))
    return Operand(count, quant=WHOLE, perm=pair.perm, bits=_PAIR_BITS + 1, exact=True)


@lower(aten.floor_divide.default)
def floor_divide(ctx: Context, a: Operand, b: Operand) -> Operand:
    """floor_divide(Tensor self, Tensor other) -> Tensor; of quantized tensors as in div.Tensor_mode"""
    return divide_rounded(ctx, a, b, "floor")


@lower(aten.remainder.Scalar, aten.remainder.Tensor, aten.remainder.Scalar_Tensor)
def remainder(ctx: Context, a: Operand | float, b: Operand | float) -> Operand:
    """remainder.Tensor(Tensor self, Tensor other) -> Tensor; it has the sign of the divisor

    Of quantized tensors as in div.Tensor_mode.
    """
    return _rest(ctx, operand(a), operand(b), _modulo, "floor")


@lower(aten.fmod.Scalar, aten.fmod.Tensor)
def fmod(ctx: Context, a: Operand, b: Operand | float) -> Operand:
    """fmod.Tensor(Tensor self, Tensor other) -> Tensor; it has the sign of the dividend

    Of quantized tensors as in div.Tensor_mode.
    """
    return _rest(ctx, a, operand(b), _remainder, "trunc")


def _rest(ctx: Context, a: Operand, b: Operand, integers: Callable[[Context, Operand, Operand], Value], mode: str) -> Operand:
    if is_whole(a) and is_whole(b):
        (a, b), perm = _integer_pair(ctx, a, b)
        return Operand(integers(ctx, a, b), perm=perm)
    a, b = promoted(ctx, a, b)
    if is_quantized(ctx, a, b):
        divisor = _divisor(ctx, b)
        return _rest_of_pair(ctx, a, b, integers, mode) if divisor is None else _rest_of_quantized(ctx, a, divisor, mode)
    return add_operands(ctx, a, multiply(ctx, _rounded(ctx, divide(ctx, a, b), mode), b), ops.Sub())


def _rest_of_quantized(ctx: Context, x: Operand, divisor: float, mode: str) -> Operand:
    """x - n divisor, with n the whole part of x / divisor. The sign of a divisor is that of the result (floor), or nothing."""
    if divisor < 0:
        rest = _rest_of_quantized(ctx, x if mode == "trunc" else neg(ctx, x), -divisor, mode)
        return rest if mode == "trunc" else neg(ctx, rest)
    x = ctx.plain(x)
    bits = structural_bits(x)
    assert x.quant is not None
    scale = x.scale
    count = whole(ctx, replace(x, quant=replace(x.quant, scale=scale / divisor)), mode)
    finer = Quant(scale * 2.0 ** -max(0, _FINE_BITS - bits), 0, DType.INT32)
    x = ctx.to_i32(x)
    assert x.quant is not None and x.value is not None
    multiple = ctx.rescale(count, Quant(divisor, 0, DType.INT32), finer)
    left = ctx.emit(ops.Sub(), ctx.rescale(x.value, x.quant, finer), multiple)
    return Operand(left, quant=finer, bits=math.ceil(math.log2(divisor / finer.per_tensor + 1)))


def _divisor(ctx: Context, b: Operand) -> float | None:
    """The one number that a tensor is divided by, if there is but one."""
    if not b.is_const:
        return None
    if not b.reals().all():
        raise ctx.refuse("division by a constant that is zero")
    return float(b.reals().item()) if b.reals().size == 1 else None


@dataclass(frozen=True)
class _Pair:
    """Quantized tensors at one scale, so that the quotient of their integers is theirs: exactly where nothing was rounded to it.

    The scale is that of the operand of the larger range times a power of two, at which both are below 2^29.

    Attributes:
        a: the dividend, int32.
        size: the magnitude of the divisor, at least 1: zero counts as the smallest positive number of the scale.
        sign: of the divisor, 1 or -1; None where it is never negative.
        perm: pending, of all three.
    """

    a: Value
    size: Value
    sign: Value | None
    scale: float
    perm: tuple[int, ...] | None

    @staticmethod
    def of(ctx: Context, a: Operand, b: Operand) -> _Pair:
        a, b = (x if x.is_const else ctx.resolve_clamp(ctx.uniform(x)) for x in (a, b))
        tops = [float(np.abs(x.reals()).max()) if x.is_const else float(x.scaling.scales) * 2.0 ** structural_bits(x) for x in (a, b)]
        tensor = max((x for x in (a, b) if not x.is_const), key=lambda x: float(x.scaling.scales))
        own = float(tensor.scaling.scales)
        scale = own * 2.0 ** structural_exponent(max(tops), own, _PAIR_BITS)
        (a, b), perm = broadcast(ctx, *(bring(ctx, x, Quant(scale, 0, DType.INT32)) for x in (a, b)))
        dividend, divisor = values([a, b])
        if ctx.interval(divisor)[0] >= 0:
            return _Pair(dividend, calc(ctx, ops.Maximum(), divisor, 1), None, scale, perm)
        sign = calc(ctx, ops.BitwiseOr(), calc(ctx, ops.ArithmeticRightShift(), divisor, 31), 1)
        ctx.bounded(sign, -1, 1, "-1 or 0, and the last bit")
        return _Pair(dividend, calc(ctx, ops.Maximum(), ctx.emit(ops.Abs(), divisor), 1), sign, scale, perm)

    def flipped(self, ctx: Context, x: Value) -> Value:
        """`x` with its sign changed where the divisor is negative."""
        return x if self.sign is None else ctx.emit(ops.Mul(), x, self.sign)


def _rest_of_pair(ctx: Context, a: Operand, b: Operand, integers: Callable[[Context, Operand, Operand], Value], mode: str) -> Operand:
    """The sign of the divisor is that of the result (floor), or nothing (trunc)."""
    pair = _Pair.of(ctx, a, b)
    if mode == "trunc":
        rest = integers(ctx, Operand(pair.a), Operand(pair.size))
    else:
        rest = pair.flipped(ctx, integers(ctx, Operand(pair.flipped(ctx, pair.a)), Operand(pair.size)))
    bits = ctx.interval(pair.size)[1].bit_length()
    return Operand(rest, quant=Quant(pair.scale, 0, DType.INT32), perm=pair.perm, bits=bits)


def _integer_pair(ctx: Context, a: Operand, b: Operand) -> tuple[list[Operand], tuple[int, ...] | None]:
    if b.is_const and not b.reals().all():
        raise ctx.refuse("division of integers by a constant that is zero")
    return broadcast(ctx, as_int(ctx, a), as_int(ctx, b))


def _quotient(ctx: Context, a: Operand, b: Operand) -> Value:
    """INTDIV rounds towards zero."""
    return ctx.emit(ops.IntDiv(), *values([a, b]))


def _remainder(ctx: Context, a: Operand, b: Operand) -> Value:
    return _parts(ctx, a, b)[1]


def _parts(ctx: Context, a: Operand, b: Operand) -> tuple[Value, Value]:
    """The quotient, and what is left of the dividend."""
    left, right = values([a, b])
    (low, high), (least, most) = ctx.interval(left), ctx.interval(right)
    quotient = ctx.emit(ops.IntDiv(), left, right)
    multiple = ctx.emit(ops.Mul(), quotient, right)
    if least < 1:
        return quotient, ctx.emit(ops.Sub(), left, multiple)
    ctx.bounded(multiple, min(low, 0), max(high, 0), "quotient times divisor is no larger than the dividend")
    rest = ctx.emit(ops.Sub(), left, multiple)
    return quotient, ctx.bounded(rest, 1 - most, most - 1, "a remainder is smaller than its divisor")


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
    if ctx.interval(b.value)[0] > 0:
        return ctx.emit(ops.Greater(), zero, rest)
    signs = ctx.emit(ops.Greater(), zero, ctx.emit(ops.BitwiseXor(), rest, b.value))
    return ctx.emit(ops.LogicalAnd(), signs, ctx.emit(ops.LogicalNot(), ctx.emit(ops.Equal(), rest, zero)))


def _modulo(ctx: Context, a: Operand, b: Operand) -> Value:
    if (exponent := _power_of_two(b)) is not None:
        return ctx.emit(ops.BitwiseAnd(), a.tensor, ctx.i32((1 << exponent) - 1, len(a.shape)))
    rest = _remainder(ctx, a, b)
    moved = ctx.emit(ops.Add(), rest, b.tensor)
    found = ctx.emit(ops.Select(), _crosses(ctx, rest, b), moved, rest)
    least, most = ctx.interval(b.tensor)
    return found if least < 1 else ctx.bounded(found, 0, most - 1, "a remainder of positive divisors")


def _floor(ctx: Context, a: Operand, b: Operand) -> Value:
    if (exponent := _power_of_two(b)) is not None:
        return ctx.emit(ops.ArithmeticRightShift(False), a.tensor, ctx.i32(exponent, len(a.shape)))
    quotient, rest = _parts(ctx, a, b)
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
    scale, value, rank = x.scale, x.value, len(x.shape)
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
    value = _rounded(ctx, x, "trunc").tensor
    return Operand(ctx.emit(ops.Cast(DType.INT32), value))


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
