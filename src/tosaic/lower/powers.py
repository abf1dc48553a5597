"""int32 kernels of functions whose results span many powers of two, and of periodic ones.

Logarithms and powers split x = n 2^-c by CLZ: a table over the leading bits of n, another (or a product) over c. So the relative
error is the same at every magnitude. All take any |stored| < 2^30. What a result would need beyond the wanted range saturates.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tosaic.lower.approximate import STORED
from tosaic.lower.context import Context
from tosaic.lower.elementwise import multiply
from tosaic.lower.fixed import calc, leading, lookup
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import bring
from tosaic.lower.tables import COVERED, Function, by_interval, like, typical, wanted_in_use, wanted_limit
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

_LOG_BITS = 22  # fraction of a logarithm: |log| < 2^7 for every float32, below 2^29
_GOOD = 8000.0  # 78 dB
_BELOW = 1 - 2.0**-10  # less than the error of a mantissa's entry
_LARGEST_POWER = 2.0**29 * _BELOW
_SPAN, _SPAN_OF_16 = 22.0, 12.0  # nats below the largest exponential: 2^-31, and less than half of 2^-15, the step of a TABLE
_MANY, _STEP = 2.0**10, 2.0**-20  # nats: operands that reach beyond the first are brought to steps of the second, and saturate at 2^8


def _scale(x: Operand) -> float:
    assert x.quant is not None
    return x.scale


def _mantissa_bits(needed: float) -> int:
    """Bits of a mantissa's index, whose top bit is set, for a relative error below 1 / needed. One of few, to share tables."""
    return next((b for b in (13, 15) if 2.0 ** (b - 1) / 0.25 >= needed), 17)


def _middles(bits: int) -> np.ndarray:
    """n 2^-32 in the middle of each step of its leading bits, [1/2, 1); the lower half, which is not reached but by 0, is 1/2."""
    return np.maximum((np.arange(2**bits) + 0.5) / 2**bits, 0.5)


def logarithm(ctx: Context, x: Operand, shift: float = 0.0, bits: int | None = None) -> Operand:
    """log(x + shift), 72 dB while the largest wanted result is 0.05 or more; of 0 and below as of the smallest stored number.

    x = n 2^-c: T[leading bits of n] - c log 2.

    Args:
        bits: of n that are looked at, where what is wanted does not say.
    """
    assert x.value is not None
    scale, value = _scale(x), x.value
    if shift:
        value = calc(ctx, ops.Add(), value, min(round(shift / scale), STORED))
    lead = leading(ctx, calc(ctx, ops.Maximum(), value, 1))
    bits = bits or _mantissa_bits(2 * _GOOD / min(wanted_in_use(ctx), 8.0))
    entries = np.rint((np.log(_middles(bits)) + math.log(scale) + 32 * math.log(2)) * 2.0**_LOG_BITS)
    entry = lookup(ctx, entries, calc(ctx, ops.LogicalRightShift(), lead.bits, 32 - bits))
    octaves = calc(ctx, ops.Mul(4), lead.count, round(math.log(2) * 2.0 ** (_LOG_BITS + 4)))
    return like(x, ctx.emit(ops.Sub(), entry, octaves), Quant(2.0**-_LOG_BITS, 0, DType.INT32), _LOG_BITS + 7)


def logarithm_of_one_plus(ctx: Context, x: Operand, by_table: Function) -> Operand:
    """log(1 + x): for small x by a table of its own, as the sum would lose what x is."""
    return by_interval(ctx, x, by_table) if typical(x) < 0.4 else logarithm(ctx, x, 1.0)


def power(ctx: Context, x: Operand, exponent: float) -> Operand:
    """x ** exponent, for x < 0 and exponents that are not whole as of 0; negative powers of 0 saturate.

    x = n 2^-c: T[leading bits of n] E[c], two tables, E with 2^30 for the largest result that is wanted or can be.
    """
    assert x.value is not None
    scale, value = _scale(x), x.value
    whole = float(exponent).is_integer()
    magnitude = ctx.emit(ops.Abs(), value) if whole else value
    # the stored magnitude of the largest result that is wanted or can be; beyond it results saturate
    narrow = ctx.want is not None and ctx.want.dtype is not DType.INT32  # whose largest number calibration has seen
    margin = 1 / _BELOW if narrow else _BELOW
    log_top = math.log(wanted_limit(ctx) * margin) if ctx.want is not None else math.inf
    if exponent > 0:
        log_top = min(log_top, math.log(64.0) + exponent * math.log(typical(x)))
    edge = math.exp(min(max(log_top / exponent - math.log(scale), -80.0), 80.0))
    if exponent > 0:
        largest = min(math.ceil(edge), STORED)
        if largest < STORED:
            magnitude = calc(ctx, ops.Minimum(), magnitude, largest)
        if not whole:
            magnitude = calc(ctx, ops.Maximum(), magnitude, 0)
    else:
        largest = min(max(math.floor(edge), 1), STORED)
        magnitude = calc(ctx, ops.Maximum(), magnitude, largest)
    result = _power_of_magnitude(ctx, magnitude, exponent, largest)
    if whole and exponent % 2:
        negative = calc(ctx, ops.Greater(), ctx.i32(0, len(value.shape)), value)
        result = ctx.emit(ops.Select(), negative, ctx.emit(ops.Negate(), result), result)
    unit = math.exp(exponent * math.log(largest * scale)) / _LARGEST_POWER
    return like(x, result, Quant(unit, 0, DType.INT32), 29)


def _power_of_magnitude(ctx: Context, x: Value, exponent: float, largest: int) -> Value:
    """(x / largest) ** exponent * `_LARGEST_POWER` for stored x in [0, 2^30] whose largest result is that of `largest`.

    An octave's factor is up to 2^|exponent| times the result, as mantissas are at most 1.
    """
    # 0 is shifted by 31 and stays 0, whose table index is 0
    count = calc(ctx, ops.Minimum(), ctx.emit(ops.Clz(), x), 31)
    bits = _mantissa_bits(_GOOD * abs(exponent))
    index = calc(ctx, ops.LogicalRightShift(), ctx.emit(ops.LogicalLeftShift(), x, count), 32 - bits)
    mantissas = _middles(bits) ** exponent
    top = float(mantissas.max())
    entries = np.rint(mantissas / top * 2.0**29)
    if exponent > 0:
        entries[0] = 0
    over = math.ceil(abs(exponent)) - 1
    octaves = exponent * (32 - np.arange(32) - math.log2(largest)) + math.log2(top * _LARGEST_POWER) - over
    factor = lookup(ctx, np.rint(2.0 ** np.minimum(octaves, 30)), count)
    product = ctx.emit(ops.Mul(29 - over), lookup(ctx, entries, index), factor)
    return ctx.bounded(product, 0, STORED // 2 - 1, "a power is at most that of the largest operand")


def power_of_two_operands(ctx: Context, base: Operand, exponent: Operand) -> Operand:
    """base ** exponent = exp(exponent log base), for base > 0."""
    base = ctx.to_i32(base) if base.quant is not None and base.quant.dtype is not DType.INT32 else base
    product = multiply(ctx, logarithm(ctx, ctx.store(base), bits=17), exponent)
    return exponential(ctx, ctx.store(ctx.uniform(product)), 1.0)


def exponential(ctx: Context, x: Operand, rate: float) -> Operand:
    """exp(rate x): a table of 22 nats (12 of a TABLE) below the largest result that is wanted or expected, with some room above it; of a
    small range its own.

    The table is the same whatever the scales: exp(rate x) = exp(rate (x - c)) exp(rate c), c in the middle of the nats.
    """
    if abs(rate) * typical(x) > _MANY:  # a mask was among them
        x = replace(bring(ctx, x, Quant(_STEP / abs(rate), 0, DType.INT32)), calibrated=2.0**28)
    if abs(rate) * typical(x) <= _SPAN / 8:
        return by_interval(ctx, x, Function(lambda v: np.exp(np.minimum(rate * v, 700.0)), lambda ctx, v: v))
    of_16 = ctx.spec.holds("int16")
    scale, half, room = _scale(x), (_SPAN_OF_16 if of_16 else _SPAN) / 2, COVERED if of_16 else 2.0
    highest = min(abs(rate) * typical(x) + math.log(room), 80.0)
    if ctx.want is not None:
        highest = min(highest, math.log(room * wanted_in_use(ctx)))
    centre = round(max(min((highest - half) / (rate * scale), STORED), -STORED))
    sign, last = math.copysign(1.0, rate), half * (1 - 2.0**-15)  # below it, nothing is left
    function = Function(lambda v: np.where(v * sign <= -last, 0.0, np.exp(sign * v - half)), lambda ctx, v: v)
    nats = replace(x, quant=Quant(scale * abs(rate), 0, DType.INT32))
    want, ctx.want = ctx.want, None  # what is wanted is no longer in the units of the table
    result = by_interval(ctx, nats, function, centre, half)
    ctx.want = want
    assert result.quant is not None
    factor = math.exp(rate * centre * scale + half)
    return replace(result, quant=Quant(result.scale * factor, 0, DType.INT32))


def periodic(ctx: Context, x: Operand, function: Function, period: float) -> Operand:
    """A function of x mod period: by an interval around 0 where x stays there, else by the phase."""
    if typical(x) <= period / 4:
        return by_interval(ctx, x, function)
    whole = Function(lambda v: function.real(v * period), function.in_float)
    turns = replace(x, value=_phase(ctx, x, period), quant=Quant(2.0**-16, 0, DType.INT16), bits=None, calibrated=None)
    return by_interval(ctx, turns, whole, radius=0.5)


def _phase(ctx: Context, x: Operand, period: float) -> Value:
    """x / period mod 1 in 2^-16, as int16.

    With few periods in the range of the operand it is one product. Else only the fraction of scale / period matters, as stored
    numbers are whole: its products with the two halves of x, kept in 2^-31 before the shift, are below 2^30.
    """
    assert x.value is not None
    turns = _scale(x) / period
    value = x.value
    if turns < 2.0**-15:
        shift = min(62, 30 - math.ceil(math.log2(turns * 65536)))
        phase = calc(ctx, ops.Mul(shift), value, round(turns * 65536 * 2.0**shift))
    else:
        upper = calc(ctx, ops.ArithmeticRightShift(), value, 15)
        lower = calc(ctx, ops.BitwiseAnd(), value, 2**15 - 1)
        parts = [(lower, turns), (upper, turns * 2**15)]
        lower, upper = (calc(ctx, ops.Mul(15), part, round((t - round(t)) * 2**31)) for part, t in parts)
        phase = ctx.emit(ops.Add(), lower, upper)
    # truncation to int16 is the modulus
    return ctx.emit(ops.Cast(DType.INT16), phase)
