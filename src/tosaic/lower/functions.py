"""Smooth functions of one value: a row each, of its real function, its float form and what its integer kernel needs to know.

How integers compute them stands in `tables` (an interval, or one entry for each stored value) and `powers` (many powers of two).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from tosaic.lower import float_functions as ff
from tosaic.lower import powers
from tosaic.lower.approximate import Real
from tosaic.lower.context import Context
from tosaic.lower.operand import Operand
from tosaic.lower.registry import lower
from tosaic.lower.tables import Function, times, unary
from tosaic.tosa import ops

aten = torch.ops.aten
_LARGEST_POWER = 28
_TANH_CDF = 2 * math.sqrt(2 / math.pi)
_erf = np.vectorize(math.erf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


def sigmoid_real(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _settled(gate: Real, reach: float) -> Real:
    """Exactly 0 and 1 at the two ends, so that products with large x are 0 and x."""
    last = reach * (1 - 2.0**-15)
    return lambda x: np.where(x <= -last, 0.0, np.where(x >= last, 1.0, gate(np.clip(x, -last, last))))


def _gate(gate: Real, in_float: ff.Float, reach: float) -> Function:
    return Function(_settled(gate, reach), ff.gated(in_float), reach, is_gate=True)


def _softplus_real(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def _below_zero(real: Real) -> Real:
    """Of the largest number below it where x is 0 or less."""
    return lambda x: real(np.maximum(x, 0.0))


def _periodic(real: Real, in_float: ff.Float, period: float, reach: float = math.inf) -> Function:
    function = Function(real, in_float, reach)
    return Function(real, in_float, reach, wide=lambda ctx, x: powers.periodic(ctx, x, function, period))


def _logarithm(base: float) -> Function:
    rate = 1 / math.log(base)

    def wide(ctx: Context, x: Operand) -> Operand:
        return times(powers.logarithm(ctx, x), rate)

    return Function(_below_zero(lambda x: np.log(x) * rate), ff.scaled(ff.log, after=rate), wide=wide)


_LOG1P = Function(lambda x: np.log1p(np.maximum(x, -1.0)), ff.log1p)


def _exponential(base: float) -> Function:
    rate = math.log(base)
    return Function(
        lambda x: np.exp(np.minimum(rate * x, 700.0)),
        ff.scaled(ff.exp, before=rate),
        wide=lambda ctx, x: powers.exponential(ctx, x, rate),
    )


def _power(exponent: float) -> Function:
    whole = float(exponent).is_integer()
    real: Real = lambda x: (x if whole else np.maximum(x, 0.0)) ** exponent  # noqa: E731
    wide = None if exponent > _LARGEST_POWER or not exponent else functools.partial(_wide_power, exponent=exponent)
    return Function(real, ff.power(exponent), wide=wide)


def _wide_power(ctx: Context, x: Operand, exponent: float) -> Operand:
    if exponent < -_LARGEST_POWER:
        raise ctx.refuse(f"power {exponent} of an int32 value; from {-_LARGEST_POWER} on there is an integer form")
    return powers.power(ctx, x, exponent)


FUNCTIONS: dict[torch._ops.OpOverload, Function] = {
    aten.sigmoid.default: Function(sigmoid_real, ff.sigmoid, 18.0),
    aten.tanh.default: Function(np.tanh, ff.tanh, 9.0),
    aten.erf.default: Function(_erf, ff.erf, 4.5),
    aten.erfc.default: Function(_erfc, ff.erfc, 4.5),
    aten.erfinv.default: Function(lambda x: ff.erfinv_real(np.clip(x, -1.0, 1.0)), ff.erfinv, 1.0),
    aten.silu.default: _gate(sigmoid_real, ff.sigmoid, 18.0),
    aten.mish.default: _gate(lambda x: np.tanh(_softplus_real(x)), ff.mish_gate, 18.0),
    aten.exp.default: _exponential(math.e),
    aten.exp2.default: _exponential(2.0),
    aten.expm1.default: Function(np.expm1, ff.expm1),
    aten.log.default: _logarithm(math.e),
    aten.log2.default: _logarithm(2.0),
    aten.log10.default: _logarithm(10.0),
    aten.log1p.default: Function(_LOG1P.real, ff.log1p, wide=lambda ctx, x: powers.logarithm_of_one_plus(ctx, x, _LOG1P)),
    aten.sqrt.default: _power(0.5),
    aten.rsqrt.default: _power(-0.5),
    aten.reciprocal.default: _power(-1.0),
    aten.sin.default: _periodic(np.sin, ff.operator(ops.Sin()), 2 * math.pi),
    aten.cos.default: _periodic(np.cos, ff.operator(ops.Cos()), 2 * math.pi),
    aten.tan.default: _periodic(np.tan, ff.tan, math.pi, math.pi / 2),
    aten.asin.default: Function(lambda x: np.arcsin(np.clip(x, -1.0, 1.0)), ff.asin, 1.0),
    aten.acos.default: Function(lambda x: np.arccos(np.clip(x, -1.0, 1.0)), ff.acos, 1.0),
    aten.atan.default: Function(np.arctan, ff.atan),
    aten.sinh.default: Function(np.sinh, ff.sinh),
    aten.cosh.default: Function(np.cosh, ff.cosh),
    aten.asinh.default: Function(np.arcsinh, ff.asinh),
    aten.acosh.default: Function(lambda x: np.arccosh(np.maximum(x, 1.0)), ff.acosh),
    aten.atanh.default: Function(lambda x: np.arctanh(np.clip(x, -1.0, 1.0)), ff.atanh, 1.0),
    aten.log_sigmoid.default: Function(lambda x: -_softplus_real(-x), ff.logsigmoid),
}


def _row(function: Function) -> object:
    def lowering(ctx: Context, x: Operand) -> Operand:
        return unary(ctx, x, function)

    return lowering


for _target, _function in FUNCTIONS.items():
    lower(_target)(_row(_function))  # type: ignore[arg-type]


@lower(aten.gelu.default)
def gelu(ctx: Context, x: Operand, approximate: str = "none") -> Operand:
    """gelu(Tensor self, *, str approximate='none') -> Tensor"""
    return unary(ctx, x, _GELU[approximate])


_GELU = {
    "none": _gate(lambda x: 0.5 * _erfc(-x * math.sqrt(0.5)), ff.normal_cdf, 6.0),
    "tanh": _gate(lambda x: sigmoid_real(_TANH_CDF * x * (1 + 0.044715 * x * x)), ff.tanh_cdf, 6.0),
}


@lower(aten.softplus.default)
def softplus(ctx: Context, x: Operand, beta: float = 1, threshold: float = 20) -> Operand:
    """softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor

    Beyond the threshold it is x itself, from which log(1 + exp) differs by exp(-threshold) at most.
    """

    def real(v: np.ndarray) -> np.ndarray:
        return np.where(v * beta > threshold, v, _softplus_real(v * beta) / beta)

    def in_float(ctx: Context, value: ff.Value) -> ff.Value:
        result = ff.scaled(ff.softplus, beta, 1 / beta)(ctx, value)
        if threshold >= 15:
            return result
        linear = ff.do(ctx, ops.Greater(), ff.mul(ctx, value, beta), float(threshold))
        return ff.select(ctx, linear, value, result)

    return unary(ctx, x, Function(real, in_float))


@lower(aten.elu.default)
def elu(ctx: Context, x: Operand, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Operand:
    """elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor"""

    def real(v: np.ndarray) -> np.ndarray:
        return scale * np.where(v > 0, v, alpha * np.expm1(input_scale * np.minimum(v, 0.0)))

    return unary(ctx, x, Function(real, ff.elu(alpha, scale, input_scale)))


@lower(aten.celu.default)
def celu(ctx: Context, x: Operand, alpha: float = 1.0) -> Operand:
    """celu(Tensor self, Scalar alpha=1.0) -> Tensor"""
    return elu(ctx, x, alpha, 1.0, 1.0 / alpha)


@lower(aten.logit.default)
def logit(ctx: Context, x: Operand, eps: float | None = None) -> Operand:
    """logit(Tensor self, float? eps=None) -> Tensor"""
    edge = eps or 0.0

    def real(v: np.ndarray) -> np.ndarray:
        inside = np.clip(v, edge, 1.0 - edge)
        return np.log(inside) - np.log1p(-inside)

    return unary(ctx, x, Function(real, ff.logit(eps), 1.0))


@lower(aten.pow.Tensor_Scalar)
def power(ctx: Context, x: Operand, exponent: float) -> Operand:
    """pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor; of x < 0 only whole powers are numbers"""
    return unary(ctx, x, _power(exponent))


@lower(aten.pow.Scalar)
def power_of_scalar(ctx: Context, base: float, x: Operand) -> Operand:
    """pow.Scalar(Scalar self, Tensor exponent) -> Tensor"""
    if base <= 0:
        raise ctx.refuse(f"power of the base {base}, which is not positive")
    return unary(ctx, x, Function(np.ones_like, ff.exponential_of(1.0)) if base == 1 else _exponential(float(base)))
