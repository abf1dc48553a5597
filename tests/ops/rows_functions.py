"""Rows: functions of one value."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from ops.rows import Row, function, layer
from ops.rows_elementwise import AfterConv
from torch import Tensor, nn

aten = torch.ops.aten
PICTURE = (1, 3, 5, 6)
WIDE = (-8.0, 8.0)
POSITIVE = (0.05, 6.0)


class Between(nn.Module):
    """A function of arithmetic on a linear layer's output, read by arithmetic again: int32 before and behind it."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 4), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 1.5
        return self.last(self.function(y + 0.25) + y)  # type: ignore[operator]


# Behind two layers and two sums, a few steps at int16. Where a function is steep, one step of its argument is several of its result, and
# few results are near the largest, in whose steps a TABLE has its entries: rounding alone keeps little more of them than this
BETWEEN: dict[str, Any] = {"lsb_at_16": 5, "equal_at_16": 0.2}
BETWEEN_STEEP: dict[str, Any] = {"lsb_at_16": 8, "equal_at_16": 0.1}
STEEPEST: dict[str, Any] = BETWEEN_STEEP | {"least_kept": 65.0}
JUMP = (("8a8w", 18.0), ("16a8w", 25.0))  # what quantization moves across a jump is off by it
BEHIND: dict[str, Any] = {"span": (-1.5, 2.0)}


def both(
    name: str,
    op: torch._ops.OpOverload,
    run: object,
    span: tuple[float, float] = WIDE,
    near: dict[str, Any] = BETWEEN,
    between: object = None,
    between_decibels: tuple[tuple[str, float], ...] = (),
    **options: object,
) -> tuple[Row, Row]:
    """A function of the input, and one of int32 values (`between`, if their range must be another)."""
    return (
        function(name, op, run, PICTURE, span=span, **options),  # type: ignore[arg-type]
        layer(
            f"{name}_between",
            op,
            lambda: Between(between or run),
            (24, 6),
            span=(-1.5, 2.0),
            decibels=between_decibels,
            **near,
        ),
    )


def positive(name: str, op: torch._ops.OpOverload, run: object, **options: object) -> tuple[Row, Row]:
    """Arguments above zero, and of at least a quarter."""
    return both(name, op, run, POSITIVE, between=lambda a: run(a.abs() + 0.25), **options)  # type: ignore[arg-type, operator]


def of_unit(name: str, op: torch._ops.OpOverload, run: object) -> tuple[Row, Row]:
    """Arguments between -1 and 1."""
    return both(name, op, run, (-0.95, 0.9), between=lambda a: run(torch.tanh(a) * 0.95))  # type: ignore[operator]


GATES = (
    *both("gelu", aten.gelu.default, F.gelu),
    *both("gelu_tanh", aten.gelu.default, lambda a: F.gelu(a, approximate="tanh")),
    *both("swish", aten.silu.default, F.silu),
    *both("mish", aten.mish.default, F.mish),
    *both("logistic", aten.sigmoid.default, torch.sigmoid),
    *both("hyperbolic_tangent", aten.tanh.default, torch.tanh),
    *both("hard_sigmoid", aten.hardsigmoid.default, F.hardsigmoid),
    *both("hard_swish", aten.hardswish.default, F.hardswish),
    *both("erf", aten.erf.default, torch.erf),
    *both("erfc", aten.erfc.default, torch.erfc, (-3.0, 2.0)),
    *both("softplus", aten.softplus.default, F.softplus),
    *both("softplus_beta", aten.softplus.default, lambda a: F.softplus(a, 2.0, 6.0)),
    *both("logsigmoid", aten.log_sigmoid.default, F.logsigmoid),
    *both("elu", aten.elu.default, F.elu),
    *both("elu_alpha", aten.elu.default, lambda a: F.elu(a, 0.4)),
    *both("selu", aten.elu.default, F.selu),
    *both("celu", aten.celu.default, lambda a: F.celu(a, 1.3)),
    *both("softshrink", aten.where.self, lambda a: F.softshrink(a, 0.4)),
    *both("hardshrink", aten.where.self, lambda a: F.hardshrink(a, 0.9), between_decibels=JUMP),
    *both("threshold", aten.threshold.default, lambda a: F.threshold(a, 0.3, -1.5), between_decibels=JUMP),
    *both("tanhshrink", aten.tanh.default, F.tanhshrink),
    *both("rrelu", aten.leaky_relu.default, F.rrelu),
    function("glu", aten.sigmoid.default, lambda a: F.glu(a, 1), (2, 6, 5), span=WIDE),
    layer("conv_gelu_conv", aten.gelu.default, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 3, 1)), PICTURE),
    layer("conv_elu_conv", aten.elu.default, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ELU(), nn.Conv2d(4, 3, 1)), PICTURE),
    layer("sqrt_after_conv", aten.sqrt.default, lambda: AfterConv(lambda a: torch.sqrt(a.abs() + 0.1)), PICTURE, lsb_at_16=4),
)


class RunningAverage(nn.Module):
    """A step of an average with exponential weights, whose running maximum begins far below every number (as RWKV has it)."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        key, before = self.keys(x) + 0.25, torch.full((len(x), 8), -1e30)
        top = torch.maximum(before, key)
        return torch.exp(before - top) * 0.5 + torch.exp(key - top) * self.values(x)


# an exponential of the whole range is steep: a step of the input is many of the result
STEEP = (("8a8w", 20.0),)
EXPONENTIALS = (
    *both("exp", aten.exp.default, torch.exp, (-4.0, 2.0), between=lambda a: torch.exp(a * 0.5)),
    function("exp_wide", aten.exp.default, torch.exp, PICTURE, span=(-8.0, 12.0), decibels=STEEP),
    layer("exp_below_running_maximum", aten.exp.default, RunningAverage, (24, 6), **BETWEEN),
    *both("exp2", aten.exp2.default, torch.exp2, (-4.0, 2.0), near=BETWEEN_STEEP),
    *both("expm1", aten.expm1.default, torch.expm1, (-4.0, 2.0), near=STEEPEST, between_decibels=(("8a8w", 25.0),)),
    *both("power_of_two", aten.pow.Scalar, lambda a: 2.0**a, (-4.0, 2.0), near=BETWEEN_STEEP),
    *both("power_of_a_third", aten.pow.Scalar, lambda a: 0.3**a, (-1.0, 2.0), near=STEEPEST),
    *positive("log", aten.log.default, torch.log),
    *positive("log2", aten.log2.default, torch.log2),
    *positive("decimal_log", aten.log10.default, torch.log10),
    *positive("log1p", aten.log1p.default, torch.log1p),
    *positive("sqrt", aten.sqrt.default, torch.sqrt),
    *positive("rsqrt", aten.rsqrt.default, torch.rsqrt, decibels=(("8a8w", 20.0), ("16a8w", 70.0))),
    *positive("reciprocal", aten.reciprocal.default, torch.reciprocal, decibels=(("8a8w", 10.0), ("16a8w", 50.0))),
    *both("pow_5", aten.pow.Tensor_Scalar, lambda a: a**5, (-1.2, 1.5), near=BETWEEN_STEEP),
    *positive("pow_1_7", aten.pow.Tensor_Scalar, lambda a: a**1.7),
    *positive("pow_negative", aten.pow.Tensor_Scalar, lambda a: a**-0.4),
    function("pow_tensor", aten.pow.Tensor_Tensor, torch.pow, (2, 9, 6), (9, 6), span=(0.2, 2.0), **BETWEEN),
    layer(
        "pow_tensor_between",
        aten.pow.Tensor_Tensor,
        lambda: Between(lambda a: torch.pow(a.abs() + 0.5, a * 0.5)),
        (24, 6),
        **BEHIND,
        **STEEPEST,
    ),
    function("logit", aten.logit.default, lambda a: torch.logit(a, 1e-2), PICTURE, span=(0.05, 0.95)),
    function("logit_plain", aten.logit.default, torch.logit, PICTURE, span=(0.05, 0.95)),
)

CIRCULAR = (
    *both("sin", aten.sin.default, torch.sin),
    *both("cos", aten.cos.default, torch.cos),
    *both("tan", aten.tan.default, torch.tan, (-1.2, 1.3), between=lambda a: torch.tan(a * 0.3)),
    *of_unit("asin", aten.asin.default, torch.asin),
    *of_unit("acos", aten.acos.default, torch.acos),
    *of_unit("erfinv", aten.erfinv.default, torch.erfinv),
    *both("atan", aten.atan.default, torch.atan),
    *both("sinh", aten.sinh.default, torch.sinh, (-3.0, 3.0)),
    *both("cosh", aten.cosh.default, torch.cosh, (-3.0, 3.0)),
    *both("asinh", aten.asinh.default, torch.asinh),
    function("acosh", aten.acosh.default, torch.acosh, PICTURE, span=(1.5, 9.0)),
    layer("acosh_between", aten.acosh.default, lambda: Between(lambda a: torch.acosh(a.abs() + 1.25)), (24, 6), **BETWEEN),
    *of_unit("atanh", aten.atanh.default, torch.atanh),
    function("atan2", aten.atan2.default, torch.atan2, (2, 9, 6), (9, 6), span=(0.3, 4.0), **BETWEEN),
    layer("atan2_between", aten.atan2.default, lambda: Between(lambda a: torch.atan2(a.abs() + 0.5, a)), (24, 6), **BEHIND, **BETWEEN),
)

# steps are not continuous: what quantization moves across one is off by it
STEPPED = {
    "span": (-7.7, 8.4),
    "decibels": (("8a8w", 20.0), ("16a8w", 40.0)),
    "between_decibels": (("8a8w", 20.0), ("16a8w", 25.0)),
}
STEPS = (
    *both("abs", aten.abs.default, torch.abs),
    *(
        row
        for name in ("floor", "ceil", "trunc", "round")
        for row in both(name, getattr(aten, name).default, getattr(torch, name), **STEPPED)  # type: ignore[arg-type]
    ),
    *both("round_decimals", aten.round.decimals, lambda a: torch.round(a, decimals=1), **STEPPED),  # type: ignore[arg-type]
    function("frac", aten.trunc.default, torch.frac, PICTURE, span=(-7.7, 8.4), decibels=(("8a8w", 5.0), ("16a8w", 40.0))),
)
