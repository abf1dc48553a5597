"""Functions of one float value that TOSA has no operator for, composed of those that it has.

Forms are chosen for the whole range of the type: no intermediate overflows, cancels or divides zero by zero where the
function itself does not. Constants take the type of the value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

Float = Callable[[Context, Value], Value]
_LN2 = math.log(2.0)
_SMALLEST = 1e-30


def do(ctx: Context, op: ops.Op, *operands: Value | float) -> Value:
    """An operator whose operands may be Python numbers."""
    like = next(x for x in operands if isinstance(x, Value))
    return ctx.emit(op, *[x if isinstance(x, Value) else ctx.real(x, like) for x in operands])


def add(ctx: Context, a: Value | float, b: Value | float) -> Value:
    return do(ctx, ops.Add(), a, b)


def sub(ctx: Context, a: Value | float, b: Value | float) -> Value:
    return do(ctx, ops.Sub(), a, b)


def mul(ctx: Context, a: Value | float, b: Value | float) -> Value:
    return do(ctx, ops.Mul(), a, b)


def operator(op: ops.Op) -> Float:
    """The function that one operator computes."""
    return lambda ctx, x: ctx.emit(op, x)


def scaled(function: Float, before: float = 1.0, after: float = 1.0) -> Float:
    """after * function(before * x)"""

    def composed(ctx: Context, x: Value) -> Value:
        result = function(ctx, x if before == 1.0 else mul(ctx, x, before))
        return result if after == 1.0 else mul(ctx, result, after)

    return composed


def gated(gate: Float) -> Float:
    """x * gate(x)"""
    return lambda ctx, x: mul(ctx, x, gate(ctx, x))


exp, log = operator(ops.Exp()), operator(ops.Log())
sigmoid, tanh, erf = operator(ops.Sigmoid()), operator(ops.Tanh()), operator(ops.Erf())
absolute, reciprocal, rsqrt = operator(ops.Abs()), operator(ops.Reciprocal()), operator(ops.Rsqrt())


def sqrt(ctx: Context, x: Value) -> Value:
    """Exact at 0 and at infinity, which x * RSQRT(x) is not; POW does not take 0 and negative numbers."""
    return reciprocal(ctx, rsqrt(ctx, x))


def polynomial(ctx: Context, x: Value, coefficients: np.ndarray) -> Value:
    """Horner's scheme; coefficients of falling powers."""
    result = add(ctx, mul(ctx, x, float(coefficients[0])), float(coefficients[1]))
    for coefficient in coefficients[2:]:
        result = add(ctx, mul(ctx, result, x), float(coefficient))
    return result


@functools.cache
def _fitted(name: str) -> np.ndarray:
    """Coefficients over [0, 1] by interpolation at Chebyshev points: errors are below 1e-8 (1e-7 for erfinv)."""
    function, degree = {
        "atan(sqrt t) / sqrt t": (lambda t: np.arctan(np.sqrt(t)) / np.sqrt(t), 9),
        "acos(t) / sqrt(1 - t)": (lambda t: np.arccos(t) / np.sqrt(1 - t), 8),
        "erfinv of 5 t": (lambda t: _erfinv_ratio(5 * t), 9),
        "erfinv of (2 + 2 t)^2": (lambda t: _erfinv_ratio((2 + 2 * t) ** 2), 9),
    }[name]
    fit = np.polynomial.chebyshev.Chebyshev.interpolate(function, degree, domain=[0.0, 1.0])
    return fit.convert(kind=np.polynomial.Polynomial).coef[::-1]


def select(ctx: Context, condition: Value, yes: Value, no: Value) -> Value:
    return ctx.emit(ops.Select(), condition, yes, no)


def _negative(ctx: Context, x: Value) -> Value:
    return do(ctx, ops.Greater(), ctx.real(0.0, x), x)


def with_sign_of(ctx: Context, x: Value, magnitude: Value) -> Value:
    return select(ctx, _negative(ctx, x), ctx.emit(ops.Negate(), magnitude), magnitude)


def odd(function: Float) -> Float:
    """An odd function, of its form for x >= 0."""
    return lambda ctx, x: with_sign_of(ctx, x, function(ctx, absolute(ctx, x)))


def log1p(ctx: Context, x: Value) -> Value:
    return log(ctx, add(ctx, x, 1.0))


def expm1(ctx: Context, x: Value) -> Value:
    """tanh(x/2) (exp(x) + 1): exact for small x, where exp(x) - 1 cancels."""
    return mul(ctx, tanh(ctx, mul(ctx, x, 0.5)), add(ctx, exp(ctx, x), 1.0))


def softplus(ctx: Context, x: Value) -> Value:
    """max(x, 0) + log(1 + exp(-|x|))"""
    rest = log1p(ctx, exp(ctx, ctx.emit(ops.Negate(), absolute(ctx, x))))
    return add(ctx, do(ctx, ops.Maximum(), x, 0.0), rest)


def logsigmoid(ctx: Context, x: Value) -> Value:
    return ctx.emit(ops.Negate(), softplus(ctx, ctx.emit(ops.Negate(), x)))


def mish_gate(ctx: Context, x: Value) -> Value:
    return tanh(ctx, softplus(ctx, x))


def normal_cdf(ctx: Context, x: Value) -> Value:
    return mul(ctx, add(ctx, erf(ctx, mul(ctx, x, math.sqrt(0.5))), 1.0), 0.5)


def tanh_cdf(ctx: Context, x: Value) -> Value:
    """The normal distribution as tanh: (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 = sigmoid of twice that."""
    inner = mul(ctx, x, add(ctx, mul(ctx, mul(ctx, x, x), 0.044715), 1.0))
    return sigmoid(ctx, mul(ctx, inner, 2 * math.sqrt(2 / math.pi)))


def erfc(ctx: Context, x: Value) -> Value:
    return sub(ctx, 1.0, erf(ctx, x))


def cosh(ctx: Context, x: Value) -> Value:
    """exp(|x| - log 2) + exp(-|x| - log 2): no overflow before the result's own."""
    magnitude = absolute(ctx, x)
    return add(ctx, exp(ctx, sub(ctx, magnitude, _LN2)), exp(ctx, sub(ctx, -_LN2, magnitude)))


def sinh(ctx: Context, x: Value) -> Value:
    return mul(ctx, tanh(ctx, x), cosh(ctx, x))


@odd
def asinh(ctx: Context, x: Value) -> Value:
    """log(m) + log(w + sqrt(w^2 + v^2)) with m = max(x, 1), w = x/m, v = 1/m: the square does not overflow."""
    most = do(ctx, ops.Maximum(), x, 1.0)
    v = reciprocal(ctx, most)
    w = mul(ctx, x, v)
    root = sqrt(ctx, add(ctx, mul(ctx, w, w), mul(ctx, v, v)))
    return add(ctx, log(ctx, most), log(ctx, add(ctx, w, root)))


def acosh(ctx: Context, x: Value) -> Value:
    """log(x) + log(1 + sqrt((1 - 1/x)(1 + 1/x))), with 1 - 1/x as (x - 1)/x, which does not cancel."""
    v = reciprocal(ctx, x)
    inner = mul(ctx, mul(ctx, sub(ctx, x, 1.0), v), add(ctx, v, 1.0))
    return add(ctx, log(ctx, x), log1p(ctx, sqrt(ctx, inner)))


def atanh(ctx: Context, x: Value) -> Value:
    return mul(ctx, sub(ctx, log1p(ctx, x), log(ctx, sub(ctx, 1.0, x))), 0.5)


def tan(ctx: Context, x: Value) -> Value:
    return mul(ctx, ctx.emit(ops.Sin(), x), reciprocal(ctx, ctx.emit(ops.Cos(), x)))


def _atan_below_one(ctx: Context, x: Value) -> Value:
    """For |x| <= 1."""
    return mul(ctx, x, polynomial(ctx, mul(ctx, x, x), _fitted("atan(sqrt t) / sqrt t")))


@odd
def atan(ctx: Context, x: Value) -> Value:
    """Beyond 1 it is pi/2 - atan(1/x)."""
    beyond = do(ctx, ops.Greater(), x, 1.0)
    inner = _atan_below_one(ctx, select(ctx, beyond, reciprocal(ctx, x), x))
    return select(ctx, beyond, sub(ctx, math.pi / 2, inner), inner)


def atan2(ctx: Context, y: Value, x: Value) -> Value:
    """The angle within the first octant, mirrored; atan2(0, 0) = 0."""
    height, width = absolute(ctx, y), absolute(ctx, x)
    steep = ctx.emit(ops.Greater(), height, width)
    longer = do(ctx, ops.Maximum(), ctx.emit(ops.Maximum(), height, width), _SMALLEST)
    angle = _atan_below_one(ctx, mul(ctx, ctx.emit(ops.Minimum(), height, width), reciprocal(ctx, longer)))
    angle = select(ctx, steep, sub(ctx, math.pi / 2, angle), angle)
    angle = select(ctx, _negative(ctx, x), sub(ctx, math.pi, angle), angle)
    return with_sign_of(ctx, y, angle)


def acos(ctx: Context, x: Value) -> Value:
    """sqrt(1 - |x|) P(|x|), mirrored."""
    magnitude = absolute(ctx, x)
    root = sqrt(ctx, sub(ctx, 1.0, magnitude))
    angle = mul(ctx, root, polynomial(ctx, magnitude, _fitted("acos(t) / sqrt(1 - t)")))
    return select(ctx, _negative(ctx, x), sub(ctx, math.pi, angle), angle)


@odd
def asin(ctx: Context, x: Value) -> Value:
    """Up to 1/2 of atan's kind: x P(x^2) by x / sqrt(1 - x^2); beyond, pi/2 - acos."""
    root = sqrt(ctx, mul(ctx, sub(ctx, 1.0, x), add(ctx, x, 1.0)))
    small = _atan_below_one(ctx, mul(ctx, x, reciprocal(ctx, do(ctx, ops.Maximum(), root, 0.5))))
    return select(ctx, do(ctx, ops.Greater(), x, 0.5), sub(ctx, math.pi / 2, acos(ctx, x)), small)


def _erfinv_ratio(w: np.ndarray) -> np.ndarray:
    """erfinv(x) / x for w = -log(1 - x^2)."""
    x = np.sqrt(-np.expm1(-w))
    return erfinv_real(x) / x


def erfinv_real(x: np.ndarray) -> np.ndarray:
    return torch.erfinv(torch.from_numpy(np.asarray(x, dtype=np.float64))).numpy()


def erfinv(ctx: Context, x: Value) -> Value:
    """x P(w), w = -log(1 - x^2): a polynomial of w, and one of its root in the tails (as Giles, 2012)."""
    w = ctx.emit(ops.Negate(), log(ctx, mul(ctx, sub(ctx, 1.0, x), add(ctx, x, 1.0))))
    middle = polynomial(ctx, mul(ctx, w, 0.2), _fitted("erfinv of 5 t"))
    tail = polynomial(ctx, sub(ctx, mul(ctx, sqrt(ctx, w), 0.5), 1.0), _fitted("erfinv of (2 + 2 t)^2"))
    return mul(ctx, x, select(ctx, do(ctx, ops.Greater(), w, 4.5), tail, middle))


def power(exponent: float) -> Float:
    """x ** exponent. exp(e log x) gives PyTorch's infinities and NaN, which POW does not define."""
    if exponent == 0.5:
        return sqrt
    if exponent == -0.5:
        return rsqrt
    if float(exponent).is_integer():
        return functools.partial(_whole_power, exponent=int(exponent))
    return lambda ctx, x: exp(ctx, mul(ctx, log(ctx, x), exponent))


def _whole_power(ctx: Context, x: Value, exponent: int) -> Value:
    """Products, by binary digits of the exponent."""
    if exponent == 0:
        return add(ctx, mul(ctx, x, 0.0), 1.0)
    result, square, left = None, x, abs(exponent)
    while left:
        if left & 1:
            result = square if result is None else mul(ctx, result, square)
        left >>= 1
        square = mul(ctx, square, square) if left else square
    assert result is not None
    return result if exponent > 0 else reciprocal(ctx, result)


def exponential_of(base: float) -> Float:
    """base ** x"""
    if base == 1.0:
        return functools.partial(_whole_power, exponent=0)
    return scaled(exp, before=math.log(base))


def elu(alpha: float, scale: float, input_scale: float) -> Float:
    """scale * (x where x > 0, else alpha * expm1(input_scale * x))"""

    def function(ctx: Context, x: Value) -> Value:
        below = expm1(ctx, mul(ctx, do(ctx, ops.Minimum(), x, 0.0), input_scale))
        return add(ctx, mul(ctx, do(ctx, ops.Maximum(), x, 0.0), scale), mul(ctx, below, alpha * scale))

    return function


def logit(eps: float | None) -> Float:
    def function(ctx: Context, x: Value) -> Value:
        if eps is not None:
            x = ctx.emit(ops.Clamp(eps, 1.0 - eps), x)
        return sub(ctx, log(ctx, x), log(ctx, sub(ctx, 1.0, x)))

    return function


def round_half_even(ctx: Context, x: Value) -> Value:
    """CAST to int32 rounds half to even; |x| of 2^23 and more has no fraction."""
    rounded = ctx.emit(ops.Cast(x.dtype), ctx.emit(ops.Cast(DType.INT32), x))
    return select(ctx, do(ctx, ops.Greater(), absolute(ctx, x), 2.0**23), x, rounded)


def trunc(ctx: Context, x: Value) -> Value:
    return select(ctx, _negative(ctx, x), ctx.emit(ops.Ceil(), x), ctx.emit(ops.Floor(), x))


def sign(ctx: Context, x: Value) -> Value:
    zero = ctx.real(0.0, x)
    below = select(ctx, _negative(ctx, x), ctx.real(-1.0, x), zero)
    return select(ctx, do(ctx, ops.Greater(), x, zero), ctx.real(1.0, x), below)
