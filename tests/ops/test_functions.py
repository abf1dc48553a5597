"""Integer kernels of functions of one value, built by themselves: every int8 input, int32 inputs of any size and scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tosaic
import tosaic.lower  # registers the lowerings
from tosaic.errors import UnsupportedError
from tosaic.execute.simulator import evaluate
from tosaic.lower.context import Context
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import LOWERINGS
from tosaic.tosa.graph import Builder, Graph, verify
from tosaic.tosa.ranges import verify_ranges
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

aten = torch.ops.aten
Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
STORED = 1 << 30  # int32 kernels take any |stored| below it
TOP = 1 << 23  # the calibrated maximum
SPECS = ("TOSA-1.0+INT", "TOSA-1.0+INT+int16")


@dataclass(frozen=True)
class Case:
    """A function, and what is asked of its int32 kernel.

    Attributes:
        maxima: calibrated maxima of the input.
        low, high: inputs are drawn from [low, high] times the maximum.
        monotone: 1 or -1 where the result never falls or never rises over all stored values, 0 where it does.
        decibels: least SQNR over the inputs drawn.
        backwards: steps by which a monotone result may turn: interpolation and rounding are off by about 2^-22 of the
            calibrated maximum.
    """

    name: str
    target: torch._ops.OpOverload
    arguments: tuple[object, ...] = ()
    function: Callable[[torch.Tensor], torch.Tensor] | None = None
    maxima: tuple[float, ...] = (0.02, 1.0, 7.0, 50.0)
    low: float = -1.0
    high: float = 1.0
    monotone: int = 0
    decibels: float = 72.0
    backwards: int = 2

    def expected(self, x: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(np.asarray(x, dtype=np.float64))
        if self.function is not None:
            return self.function(values).numpy()
        return self.target(values, *self.arguments).numpy()


def _case(name: str, *arguments: object, overload: str = "default", **options: object) -> Case:
    label = "_".join([name, *(str(a) for a in arguments)])
    return Case(label, getattr(getattr(aten, name), overload), arguments, **options)  # type: ignore[arg-type]


def _in_float32(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Of numbers as PyTorch computes them: in float32 a scale times a stored number is whole where it should be."""
    return lambda x: getattr(torch, name)(x.float())


STEPS = ("floor", "ceil", "trunc", "round")
POSITIVE = {"low": 1e-3, "maxima": (1e-3, 1.0, 50.0, 1e6)}
POLE = {"low": 0.02, "maxima": (1e-3, 1.0, 50.0, 1e6)}
UNIT = {"maxima": (0.02, 0.4, 0.99)}
CASES = (
    *(_case(name, monotone=1) for name in ("sigmoid", "tanh", "erf", "atan", "asinh", "hardsigmoid", "log_sigmoid")),
    _case("erfc", monotone=-1, maxima=(0.02, 1.0, 7.0)),
    *(_case(name) for name in ("silu", "mish", "hardswish", "gelu")),
    Case("gelu_tanh", aten.gelu.default, ("tanh",), lambda x: F.gelu(x, approximate="tanh")),
    *(_case("softplus", *arguments, monotone=1) for arguments in ((), (2.0, 5.0), (0.3, 20.0))),
    *(_case("elu", *arguments, monotone=1) for arguments in ((), (0.3,), (1.6732632, 1.050701), (1.0, 1.0, 2.0))),
    _case("celu", 1.3, monotone=1),
    _case("threshold", 0.1, -3.0, maxima=(1.0, 7.0, 50.0), monotone=1),
    _case("exp", maxima=(0.02, 1.0, 7.0, 40.0), monotone=1),
    _case("exp2", maxima=(0.02, 1.0, 7.0, 60.0), monotone=1),
    _case("expm1", maxima=(0.02, 1.0, 7.0, 40.0), monotone=1),
    *(Case(f"pow_{base}", aten.pow.Scalar, (base,), lambda x, base=base: base**x, (0.02, 1.0, 9.0)) for base in (10.0, 0.3, 1.0)),
    *(_case(name, **POSITIVE, monotone=1) for name in ("log", "log2", "log10", "sqrt")),
    *(_case("log1p", maxima=(m,), low=low, monotone=1) for m, low in ((1e-3, -1.0), (0.9, -1.0), (50.0, 0.0), (1e5, 0.0))),
    _case("rsqrt", **POLE, monotone=-1),
    _case("reciprocal", **POLE),
    *(_case("pow", e, overload="Tensor_Scalar", **POSITIVE, monotone=1, backwards=8) for e in (0.5, 0.3, 1.5, 2.7, 5.3)),
    *(_case("pow", e, overload="Tensor_Scalar", **POLE) for e in (-0.7, -2, -3.0)),
    *(_case("pow", e, overload="Tensor_Scalar") for e in (5, 7.0)),
    _case("pow", 40, overload="Tensor_Scalar", maxima=(0.5, 1.0, 7.0)),
    *(_case(name, maxima=(0.02, 1.0, 3.0, 7.0, 300.0, 1e5)) for name in ("sin", "cos")),
    _case("tan", maxima=(0.02, 1.0, 1.4)),
    *(_case(name, **UNIT, monotone=sign) for name, sign in (("asin", 1), ("acos", -1), ("atanh", 1), ("erfinv", 1))),
    _case("logit", maxima=(0.99,), low=0.01, monotone=1),
    _case("logit", 1e-3, maxima=(0.99, 1.2), low=-0.1, monotone=1),
    _case("sinh", maxima=(0.02, 1.0, 7.0, 20.0), monotone=1),
    _case("cosh", maxima=(0.02, 1.0, 7.0, 20.0)),
    *(Case(f"acosh_{m}", aten.acosh.default, (), None, (m,), 1.01 / m, monotone=1) for m in (2.0, 50.0)),
    _case("abs"),
    *(Case(name, getattr(aten, name).default, (), _in_float32(name), (7.0, 50.0, 1e4), monotone=1) for name in STEPS),
    Case("round_decimals", aten.round.decimals, (), lambda x: torch.round(x.float(), decimals=1), (7.0, 50.0), monotone=1),
)
IDS = [case.name for case in CASES]
_OPTIONS = {"round_decimals": {"decimals": 1}, "gelu_tanh": {"approximate": "tanh"}}


def build(case: Case, shape: tuple[int, ...], source: Quant, want: Quant | None, spec: str) -> tuple[Graph, Quant]:
    """The kernel of one operator, behind it the requantization to what is wanted; and how its result is stored."""
    builder = Builder()
    ctx = Context(builder, Spec.parse(spec))
    ctx.want = want
    value = builder.input("x", source.dtype, shape)
    if source.dtype is DType.INT32:
        ctx.bounded(value, 1 - STORED, STORED - 1, "what kernels take")
    x = Operand(value, quant=source)
    options = _OPTIONS.get(case.name, {})
    arguments = () if options else case.arguments
    operands = (*arguments, x) if case.target is aten.pow.Scalar else (x, *arguments)
    result = LOWERINGS[case.target](ctx, *operands, **options)
    if want is not None:
        result = ctx.store_as(result, want)
    graph = builder.finish([ctx.logical(ctx.resolve_clamp(result))])
    verify(graph, Spec.parse(spec))
    return graph, result.quant


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    noise = float(np.square(want - got).sum())
    return 10 * math.log10(float(np.square(want).sum()) / noise) if noise else math.inf


def symmetric(reals: np.ndarray) -> Quant:
    return Quant(float(np.float32(np.abs(reals).max() / TOP)), 0, DType.INT32)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_int32(case: Case, spec: str, reference: Run) -> None:
    rng = np.random.default_rng(len(case.name))
    problems = []
    for maximum in case.maxima:
        source = symmetric(np.array(maximum))
        reals = maximum * np.append(rng.uniform(case.low, case.high, 2999), case.high)
        inside = source.store(reals).astype(np.int32)
        expected = case.expected(source.real(inside))
        graph, quant = build(case, inside.shape, source, symmetric(expected), spec)
        verify_ranges(graph)
        got = evaluate(graph, [inside])[0]
        decibels = sqnr(expected, quant.real(got))
        if decibels < case.decibels:
            problems.append(f"maximum {maximum}: {decibels:.1f} dB")
        problems += [f"maximum {maximum}: {p}" for p in beyond(case, graph, rng, reference)]
    assert not problems, problems


def beyond(case: Case, graph: Graph, rng: np.random.Generator, reference: Run) -> list[str]:
    """Any stored number: defined on the reference model, which is the simulator's result, and monotone where the function is."""
    size = graph.inputs[0].shape[0]
    powers = [s * (2**k + d) for s in (1, -1) for k in range(30) for d in (-1, 0, 1)]
    edges = np.array([0, STORED - 1, 1 - STORED, *powers])
    some = np.concatenate([edges, rng.integers(1 - STORED, STORED, size // 2), rng.integers(-2 * TOP, 2 * TOP, size // 4)])
    x = np.sort(np.append(some, np.zeros(size - some.size, dtype=np.int64))).astype(np.int32)
    got = evaluate(graph, [x])[0]
    problems = [] if np.array_equal(got, reference(graph, [x])[0]) else ["simulator and reference model differ"]
    steps = np.diff(got.astype(np.int64)) * (case.monotone or 1)
    if case.monotone and steps.min() < -case.backwards:
        problems.append(f"not monotone: {steps.min()} at {x[int(steps.argmin())]}")
    return problems


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_int32_of_any_scale(case: Case, spec: str, reference: Run) -> None:
    rng = np.random.default_rng(0)
    for scale, wanted in itertools.product((1e-12, 1e-6, 1e3), (1e-9, 1.0, 1e4)):
        for want in (Quant(wanted, 0, DType.INT32), Quant(wanted, 3, DType.INT8), None):
            graph, _ = build(case, (1200,), Quant(scale, 0, DType.INT32), want, spec)
            assert not beyond(Case(case.name, case.target), graph, rng, reference), (scale, want)
            if wanted == 1.0:
                verify_ranges(graph)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_int8(case: Case, reference: Run) -> None:
    every = np.arange(-128, 128).astype(np.int8)
    for maximum in case.maxima[:3]:
        source = Quant(float(np.float32(maximum / 150)), -21, DType.INT8)
        with np.errstate(all="ignore"):
            expected = case.expected(source.real(every))
        finite = expected[np.isfinite(expected)]
        for want in (
            Quant(float(finite.max() - finite.min() or 1.0) / 250, -17, DType.INT8),
            Quant(float(np.abs(finite).max() or 1.0) / 32767, 0, DType.INT16),
            Quant(float(np.abs(finite).max() or 1.0) / TOP, 0, DType.INT32),
        ):
            graph, quant = build(case, every.shape, source, want, SPECS[0])
            got = evaluate(graph, [every])[0]
            assert np.array_equal(got, reference(graph, [every])[0])
            known, limit = np.isfinite(expected), (1 << 29) - 1 if want.dtype is DType.INT32 else want.dtype.max
            steps = np.clip(expected[known] / want.scale + want.zero_point, -limit - 1, limit)
            off = np.abs(quant.real(got[known]) / want.scale + want.zero_point - steps).max()
            assert off <= 0.5 + 1e-6, (maximum, want, off)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_int16(case: Case, spec: str, reference: Run) -> None:
    rng = np.random.default_rng(1)
    for maximum in case.maxima:
        source = Quant(float(np.float32(maximum / 32767)), 0, DType.INT16)
        x = source.store(maximum * np.append(rng.uniform(case.low, case.high, 2999), case.high)).astype(np.int16)
        expected = case.expected(source.real(x))
        want = Quant(float(np.float32(np.abs(expected).max() / 32767)), 0, DType.INT16)
        graph, quant = build(case, x.shape, source, want, spec)
        got = evaluate(graph, [x])[0]
        assert np.array_equal(got, reference(graph, [x])[0])
        assert quant == want
        assert np.abs(got - want.store(expected)).max() <= 1
        assert sqnr(want.real(want.store(expected)), want.real(got)) > 72


def test_what_has_no_integer_form_is_refused() -> None:
    source, want = Quant(0.01, 0, DType.INT32), Quant(1.0, 0, DType.INT32)
    for case, message in (
        (_case("pow", -29, overload="Tensor_Scalar"), r"power -29 of an int32 value"),
        (Case("pow_0", aten.pow.Scalar, (0.0,)), r"power of the base 0.0, which is not positive"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            build(case, (4,), source, want, SPECS[0])


FLOAT_CASES = [case for case in CASES if case.target not in (aten.logit.default,)]


@pytest.mark.parametrize("case", FLOAT_CASES, ids=[case.name for case in FLOAT_CASES])
def test_float_of_any_size(case: Case) -> None:
    """Finite where PyTorch's float32 is, and as good, for any magnitude of the argument."""
    magnitudes = np.concatenate([[0.0], np.logspace(-30, 30, 241)])
    x = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
    if case.target in (aten.sin.default, aten.cos.default, aten.tan.default):
        x = x[np.abs(x) < 1e4]
    builder = Builder()
    ctx = Context(builder, Spec.parse("TOSA-1.0+FP"))
    operand = Operand(builder.input("x", DType.FP32, x.shape))
    options = _OPTIONS.get(case.name, {})
    arguments = () if options else case.arguments
    operands = (*arguments, operand) if case.target is aten.pow.Scalar else (operand, *arguments)
    graph = builder.finish([LOWERINGS[case.target](ctx, *operands, **options).value])
    verify(graph, Spec.parse("TOSA-1.0+FP"))
    got = evaluate(graph, [x])[0]
    values = torch.from_numpy(x)
    expected = (case.function(values) if case.function else case.target(values, *case.arguments)).numpy()
    # within some steps of the largest float32, one overflows before the other
    kept = ~(np.abs(expected) > 1e37)
    np.testing.assert_allclose(got[kept], expected[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function", [lambda y: torch.sqrt(torch.sigmoid(y)), lambda y: torch.cos(torch.tanh(F.gelu(y)))], ids=["two", "three"]
)
def test_chains_on_int8_are_one_table(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(function(self.first(x)))

    inputs = [(torch.rand(1, 3, 6, 6) * 4 - 2,) for _ in range(2)]
    artifact = tosaic.compile(tosaic.quantize(Chain().eval(), inputs[0], inputs))
    names = [op.NAME for op in artifact.graph.ops if op.NAME != "TRANSPOSE"]
    assert names == ["CONV2D", "RESCALE", "TABLE", "CONV2D", "RESCALE"]
