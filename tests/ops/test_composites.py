"""Integer composites alone: hard rows, every result type, no overflow for any stored value, and their operator counts."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tosaic.errors import UnsupportedError
from tosaic.execute.simulator import evaluate
from tosaic.lower.context import NCHW, Context
from tosaic.lower.divide import divide
from tosaic.lower.moments import std, var, vector_norm
from tosaic.lower.norms import group_norm, instance_norm, layer_norm, rms_norm
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.products import matmul
from tosaic.lower.reduce import sum_
from tosaic.lower.similarity import cosine_similarity
from tosaic.lower.softmax import exp_below_max, log_softmax, logsumexp, softmax
from tosaic.optimize.rewrite import rewrite
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Value, verify
from tosaic.tosa.ranges import check_ranges
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
Lower = Callable[..., Operand]
Real = Callable[..., np.ndarray]
BASE, EXTENDED = "TOSA-1.0+INT", "TOSA-1.0+INT+int16"
LIMIT = 2**30 - 1  # of a stored int32 value: 7 bits above its calibrated range
CALIBRATED = 2**23


def wide(reach: float) -> Quant:
    """int32 calibrated to a magnitude."""
    return Quant(reach / CALIBRATED, 0, DType.INT32)


@dataclass(frozen=True)
class Composite:
    """A kernel over the last axis, and what it computes."""

    lower: Lower
    real: Real


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def below_max(x: np.ndarray) -> np.ndarray:
    return x - x.max(-1, keepdims=True)


def affine(length: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight with zeros and negative numbers, and a bias."""
    generator = np.random.default_rng(length)
    weight, bias = generator.normal(size=length), generator.normal(size=length)
    weight[:1] = 0.0 if length > 1 else 1.0
    return weight, bias


def _layer_norm(eps: float, scaled: bool) -> Composite:
    def lowered(ctx: Context, x: Operand) -> Operand:
        weight, bias = affine(x.shape[-1])
        parameters = (Operand(array=weight), Operand(array=bias)) if scaled else (None, None)
        return layer_norm(ctx, x, [x.shape[-1]], *parameters, eps)

    def real(x: np.ndarray) -> np.ndarray:
        d, (weight, bias) = centred(x), affine(x.shape[-1])
        y = d / np.sqrt(np.maximum((d * d).mean(-1, keepdims=True) + eps, 1e-300))
        return y * weight + bias if scaled else y

    return Composite(lowered, real)


def _rms_norm(eps: float) -> Composite:
    def real(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * affine(x.shape[-1])[0]

    return Composite(lambda ctx, x: rms_norm(ctx, x, [x.shape[-1]], Operand(array=affine(x.shape[-1])[0]), eps), real)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(below_max(x))
    return e / e.sum(-1, keepdims=True)


COMPOSITES = {
    "softmax": Composite(lambda ctx, x: softmax(ctx, x, -1), _softmax),
    "log_softmax": Composite(
        lambda ctx, x: log_softmax(ctx, x, -1), lambda x: below_max(x) - np.log(np.exp(below_max(x)).sum(-1, keepdims=True))
    ),
    "logsumexp": Composite(
        lambda ctx, x: logsumexp(ctx, x, [-1], True),
        lambda x: x.max(-1, keepdims=True) + np.log(np.exp(below_max(x)).sum(-1, keepdims=True)),
    ),
    "exp_below_max": Composite(lambda ctx, x: exp_below_max(ctx, x, -1), lambda x: np.exp(below_max(x))),
    "layer_norm": _layer_norm(1e-5, False),
    "layer_norm_scaled": _layer_norm(1e-5, True),
    "layer_norm_no_eps": _layer_norm(0.0, True),
    "layer_norm_large_eps": _layer_norm(4.0, True),
    "rms_norm": _rms_norm(1e-5),
    "var": Composite(lambda ctx, x: var(ctx, x, [-1], correction=0, keepdim=True), lambda x: x.var(-1, keepdims=True)),
    "std": Composite(lambda ctx, x: std(ctx, x, [-1], correction=0, keepdim=True), lambda x: x.std(-1, keepdims=True)),
    "norm": Composite(lambda ctx, x: vector_norm(ctx, x, 2, [-1], True), lambda x: np.sqrt((x * x).sum(-1, keepdims=True))),
}
EXPONENTIAL = ("softmax", "log_softmax", "logsumexp", "exp_below_max")


def build(lower: Lower, quants: Sequence[Quant], shapes: Sequence[tuple[int, ...]], want: Quant, spec: str = BASE) -> tuple[Graph, Quant]:
    """The kernel as a graph, and how its result is stored."""
    builder = Builder()
    ctx = Context(builder, Spec.parse(spec))
    ctx.want = want
    operands = []
    for i, (quant, shape) in enumerate(zip(quants, shapes, strict=True)):
        value = builder.input(f"x{i}", quant.dtype, shape)
        if quant.dtype is DType.INT32:
            ctx.bounded(value, -LIMIT, LIMIT, "head-room")
        operands.append(Operand(value, quant=quant))
    result = ctx.store_as(lower(ctx, *operands), want)
    graph = builder.finish([ctx.logical(result)])
    verify(graph, Spec.parse(spec))
    assert result.quant is not None
    return graph, result.quant


def within_bounds(value: Value, array: np.ndarray) -> None:
    """What lowering declares of a value, and the range analysis believes, is so."""
    if value.bound is not None:
        low, high = int(array.min()), int(array.max())
        assert value.bound.low <= low and high <= value.bound.high, f"%{value.name} holds {low}..{high}, but is declared {value.bound}"


def run_both(graph: Graph, inputs: Sequence[np.ndarray], reference: Run) -> np.ndarray:
    """Integers on which both agree; what was declared of values on the way holds."""
    arrays = [np.ascontiguousarray(x, dtype=v.dtype.numpy) for x, v in zip(inputs, graph.inputs, strict=True)]
    (ours,), (theirs,) = evaluate(graph, arrays, watch=within_bounds), reference(graph, arrays)
    assert np.array_equal(ours, theirs)
    return ours


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    noise, signal = float(np.square(want - got).sum()), float(np.square(want).sum())
    return 10 * math.log10(max(signal, 1e-300) / noise) if noise else math.inf


def target(exact: np.ndarray, dtype: DType) -> Quant:
    """The quantization that calibration on this result gives."""
    low, high = min(0.0, float(exact.min())), max(0.0, float(exact.max()))
    reach = max(-low, high) or 1.0
    if dtype is DType.INT8:
        scale = ((high - low) or 1.0) / 255
        return Quant(scale, round(-128 - low / scale), dtype)
    return Quant(reach / (32767 if dtype is DType.INT16 else CALIBRATED), 0, dtype)


@functools.cache
def hard_rows(length: int, nats: float) -> dict[str, np.ndarray]:
    """Rows of 24-bit values; `nats` is what 2^23 is worth in the exponential kernels."""
    generator = np.random.default_rng(length)
    normal = np.clip(generator.normal(size=(4, length)) * 2**21, -CALIBRATED, CALIBRATED)
    dominant, outlier, shifted = normal.copy(), normal / 1000, normal / 256 + 2**22
    dominant[:, 0] = CALIBRATED
    outlier[:, length // 3] = 2**22
    tail = np.full((2, length), -int(8.0 / nats * CALIBRATED))
    tail[:, -1] = 0
    masked = normal.copy()
    masked[:, length // 2 + 1 :] -= 2**29
    rows = {"normal": normal, "dominant": dominant, "outlier": outlier, "equal": np.full((2, length), 123456)}
    rows |= {"shifted": shifted, "tail": tail, "masked": masked}
    return {name: x.astype(np.int64) for name, x in rows.items()}


def check(name: str, quant: Quant, x: np.ndarray, dtype: DType, spec: str, reference: Run, decibels: float = 72.0) -> None:
    """One kernel on one tensor against float64: the bounds of each result type, and no operator that any data can break."""
    composite = COMPOSITES[name]
    exact = composite.real(quant.real(x))
    want = target(exact, dtype)
    graph, stored = build(composite.lower, [quant], [x.shape], want, spec)
    assert check_ranges(graph) == []
    ours = run_both(graph, [x], reference)
    if dtype is DType.INT8:
        difference = np.abs(ours.astype(np.int64) - want.store(exact))
        assert difference.max() <= 1
        assert difference.size < 64 or (difference == 0).mean() >= 0.95
    else:
        assert sqnr(exact, stored.real(ours)) >= decibels


LENGTHS = (2, 7, 64, 300, 1500, 4096)
RESULTS = (DType.INT8, DType.INT32)


@pytest.mark.parametrize("spec", [BASE, EXTENDED])
@pytest.mark.parametrize("dtype", RESULTS)
@pytest.mark.parametrize("name", COMPOSITES)
def test_hard_rows(name: str, dtype: DType, spec: str, reference: Run) -> None:
    for length in LENGTHS:
        quant = wide(10.0)
        for kind, x in hard_rows(length, 10.0).items():
            if name not in EXPONENTIAL and kind in ("masked", "tail"):
                continue
            if kind == "equal" and name in ("layer_norm", "layer_norm_no_eps", "var", "std"):
                continue  # no signal: `test_constant_rows`
            if kind == "masked" and name in ("log_softmax", "layer_norm_no_eps"):
                continue  # the mask itself would be the signal
            # near zero the error of a logarithm is absolute: `test_logarithms_are_absolutely_close`
            if name in ("log_softmax", "logsumexp") and (length < 64 or kind == "tail"):
                continue
            # eps is 2^18 times the variance, and the result as much smaller: too few bits of the input are left
            if name == "layer_norm_large_eps" and kind == "shifted":
                continue
            check(name, quant, x, dtype, spec, reference)


@pytest.mark.parametrize("name", [n for n in COMPOSITES if n not in EXPONENTIAL])
@pytest.mark.parametrize("scale", [1e-9, 1e4])
def test_small_and_large_scales(name: str, scale: float, reference: Run) -> None:
    for length in (16, 1000):
        x = hard_rows(length, 10.0)["normal"]
        if name == "layer_norm_large_eps" and scale < 1:
            continue  # eps is 2^28 times the variance
        for dtype in RESULTS:
            check(name, Quant(scale, 0, DType.INT32), x, dtype, BASE, reference)


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 0.3, 1e4])
def test_scales_of_exponents(name: str, scale: float, reference: Run) -> None:
    if name in ("log_softmax", "logsumexp") and scale > 0.1:
        pytest.skip("the result has the scale of its input")
    reach = min(2**23, 2000 / scale)
    x = np.rint(np.random.default_rng(1).uniform(-reach, reach, size=(4, 200))).astype(np.int64)
    for dtype in RESULTS:
        check(name, Quant(scale, 0, DType.INT32), x, dtype, BASE, reference)


@pytest.mark.parametrize("spec", [BASE, EXTENDED])
@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("source", [DType.INT8, DType.INT16])
def test_narrow_inputs_and_int16_results(name: str, source: DType, spec: str, reference: Run) -> None:
    quant = Quant(0.04, 5, DType.INT8) if source is DType.INT8 else Quant(1.5e-4, 0, DType.INT16)
    x = np.random.default_rng(2).integers(source.min, source.max + 1, size=(8, 40))
    for dtype in (DType.INT8, DType.INT16, DType.INT32):
        check(name, quant, x, dtype, spec, reference)


def test_logarithms_are_absolutely_close(reference: Run) -> None:
    """The error of a logarithm is half a step of the exponentials (18 / 2^17) and of its own table (2^-15), whatever its size."""
    for name in ("log_softmax", "logsumexp"):
        composite, quant = COMPOSITES[name], wide(10.0)
        for length in (1, 2, 7):
            for x in hard_rows(length, 10.0).values():
                exact = composite.real(quant.real(x))
                graph, stored = build(composite.lower, [quant], [x.shape], wide(max(10.0, float(np.abs(exact).max()))))
                assert np.abs(stored.real(run_both(graph, [x], reference)) - exact).max() < 2.0**-12.4 + 1e-6 * np.abs(exact).max()


def test_logarithms_whose_sum_is_near_one(reference: Run) -> None:
    """Results near zero are wanted in steps far below those of a logarithm; rows of one element have no logarithm at all."""
    quant, composite = Quant(math.log(16) / 100, 100, DType.INT8), COMPOSITES["logsumexp"]
    x = np.zeros((4, 16), np.int64)
    x[1:, 0] = 1, -1, 2
    for source, rows in ((quant, x), (Quant(2.0**-30, 0, DType.INT32), x[:, :1] * 2**20)):
        exact = composite.real(source.real(rows))
        for dtype in (DType.INT8, DType.INT32):
            graph, stored = build(composite.lower, [source], [rows.shape], target(exact, dtype))
            assert check_ranges(graph) == []
            assert np.abs(stored.real(run_both(graph, [rows], reference)) - exact).max() < 2.0**-12.4
    graph, stored = build(COMPOSITES["log_softmax"].lower, [Quant(2.0**-30, 0, DType.INT32)], [(4, 1)], Quant(2.0**-40, 0, DType.INT32))
    assert np.abs(stored.real(run_both(graph, [x[:, :1] * 2**20], reference))).max() < 2.0**-12.4


def test_constant_rows(reference: Run) -> None:
    """Without variance, a layer norm is its bias exactly, and variance and deviation are zero."""
    for length in (1, 5, 64, 4096):
        for number in (0, 1, -777777, LIMIT):
            x, bias = np.full((2, length), number), affine(length)[1]
            for name in ("layer_norm_scaled", "layer_norm_no_eps", "layer_norm_large_eps"):
                want = wide(8.0 * float(np.abs(bias).max()))
                graph, stored = build(COMPOSITES[name].lower, [wide(3.0)], [x.shape], want)
                assert np.array_equal(run_both(graph, [x], reference), np.broadcast_to(stored.store(bias), x.shape))
            for name in ("var", "std"):
                graph, _ = build(COMPOSITES[name].lower, [wide(3.0)], [x.shape], wide(1.0))
                assert not run_both(graph, [x], reference).any()


def test_masked_elements_are_zero_and_the_largest_is_one(reference: Run) -> None:
    quant = wide(10.0)
    x = hard_rows(64, 10.0)["masked"]
    for spec in (BASE, EXTENDED):
        for want in (Quant(1 / 255, -128, DType.INT8), Quant(1 / 32767, 0, DType.INT16)):
            graph, _ = build(COMPOSITES["exp_below_max"].lower, [quant], [x.shape], want, spec)
            ours = run_both(graph, [x], reference)
            assert (ours.max(-1) == want.dtype.max).all()
            assert (ours[:, 33:] == want.zero_point).all()
        graph, _ = build(COMPOSITES["softmax"].lower, [quant], [x.shape], wide(1.0), spec)
        assert not run_both(graph, [x], reference)[:, 33:].any()


def test_long_rows(reference: Run) -> None:
    """Sums of 16384 exponentials, and of 65536 squares in two parts."""
    x = hard_rows(16384, 10.0)
    for kind in ("normal", "dominant", "tail"):
        check("softmax", wide(10.0), x[kind], DType.INT32, BASE, reference, 70.0)
        check("softmax", wide(10.0), x[kind], DType.INT8, BASE, reference)
    x = hard_rows(65536, 10.0)
    for kind in ("normal", "outlier"):
        for name in ("layer_norm", "rms_norm", "std", "var"):
            check(name, wide(10.0), x[kind][:1], DType.INT32, BASE, reference)


# Division


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a / b


DIVISORS = {
    "positive": lambda g, s: g.integers(2**20, CALIBRATED, size=s),
    "negative": lambda g, s: -g.integers(2**20, CALIBRATED, size=s),
    "wide": lambda g, s: np.rint(2 ** g.uniform(4, 23, size=s)) * g.choice([-1, 1], size=s),
    "all": lambda g, s: g.integers(1, LIMIT, size=s) * g.choice([-1, 1], size=s),
}


@pytest.mark.parametrize("shape", [(8, 48), (8, 1), (48,)])
@pytest.mark.parametrize("kind", DIVISORS)
def test_division(kind: str, shape: tuple[int, ...], reference: Run) -> None:
    generator = np.random.default_rng(zlib.crc32(kind.encode()))
    b = DIVISORS[kind](generator, shape).astype(np.int64)
    a = (generator.uniform(-1, 1, size=(8, 48)) * np.minimum(np.abs(b), CALIBRATED)).astype(np.int64)
    for qa, qb in ((wide(3.0), wide(5.0)), (Quant(1e-9, 0, DType.INT32), Quant(1e4, 0, DType.INT32))):
        exact = quotient(qa.real(a), qb.real(b))
        for dtype in (DType.INT8, DType.INT16, DType.INT32):
            want = target(exact, dtype)
            graph, stored = build(divide, [qa, qb], [a.shape, b.shape], want)
            assert check_ranges(graph) == []
            ours = run_both(graph, [a, b], reference)
            if dtype is DType.INT8:
                difference = np.abs(ours.astype(np.int64) - want.store(exact))
                assert difference.max() <= 1 and (difference == 0).mean() >= 0.95
            else:
                assert sqnr(exact, stored.real(ours)) >= 72


def test_division_by_zero_saturates(reference: Run) -> None:
    a, b = np.array([[5000000, -5000000, 0, 3]]), np.zeros((1, 4), np.int64)
    graph, _ = build(divide, [wide(3.0), wide(3.0)], [a.shape, b.shape], Quant(0.01, 0, DType.INT8))
    assert run_both(graph, [a, b], reference).tolist() == [[127, -128, 0, 127]]


def test_quotients_beyond_the_range_stay_beyond_it(reference: Run) -> None:
    """No quotient wraps: what is beyond 8 times the wanted range stays there, with its sign."""
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-LIMIT, LIMIT + 1, size=(64, 64)) for _ in range(2))
    b[b == 0] = 1
    graph, stored = build(divide, [wide(1.0), wide(1.0)], [a.shape, b.shape], Quant(2.0**-20, 0, DType.INT32))
    exact, ours = quotient(a, b) / stored.scale, run_both(graph, [a, b], reference).astype(np.int64)
    far = np.abs(exact) > 2**26
    assert far.any() and (np.sign(ours[far]) == np.sign(exact[far])).all() and (np.abs(ours[far]) >= 2**26 * 0.999).all()
    assert np.abs(ours[~far] / exact[~far] - 1)[np.abs(exact[~far]) > 2**16].max() < 2.0**-12


def attention(ctx: Context, e: Operand, v: Operand) -> Operand:
    """(exp(e - max) v) / sum, as capture arranges it."""
    want, ctx.want = ctx.want, Quant(1 / 255, -128, DType.INT8) if v.quant.dtype is DType.INT8 else Quant(1 / 32767, 0, DType.INT16)  # type: ignore[union-attr]
    weights = exp_below_max(ctx, e, -1)
    ctx.want = None
    total, product = sum_(ctx, weights, [-1], True), matmul(ctx, weights, v)
    ctx.want = want
    return divide(ctx, product, total)


@pytest.mark.parametrize("length", [1, 12, 128, 300, 700, 4096])
def test_average_divides_the_reduced_tensor_only(length: int, reference: Run) -> None:
    """Attention: besides the sum, one MUL for each element, and nothing that data can break."""
    generator = np.random.default_rng(length)
    x = generator.integers(-CALIBRATED, CALIBRATED, size=(2, 3, length))
    for spec, quant in ((BASE, Quant(0.03, 7, DType.INT8)), (EXTENDED, Quant(1e-4, 0, DType.INT16))):
        v = generator.integers(quant.dtype.min, quant.dtype.max + 1, size=(2, length, 5))
        unit = Quant(1 / 255, -128, DType.INT8) if quant.dtype is DType.INT8 else Quant(1 / 32767, 0, DType.INT16)
        weights = unit.real(run_both(build(COMPOSITES["exp_below_max"].lower, [wide(6.0)], [x.shape], unit, spec)[0], [x], reference))
        exact = weights @ quant.real(v) / weights.sum(-1, keepdims=True)
        for dtype in (quant.dtype, DType.INT32):
            want = target(exact, dtype)
            graph, stored = build(attention, [wide(6.0), quant], [x.shape, v.shape], want, spec)
            assert check_ranges(graph) == []
            per_element = [n.op for n in graph.nodes if n.output.shape[-1] == 5 and not isinstance(n.op, ops.Rescale | ops.MatMul)]
            assert [type(op) for op in per_element] == [ops.Mul]
            ours = run_both(graph, [x, v], reference)
            if dtype is DType.INT8:
                assert np.abs(ours.astype(np.int64) - want.store(exact)).max() <= 1
            else:
                assert sqnr(exact, stored.real(ours)) >= 72


@pytest.mark.parametrize("kind", ["normal", "dominant", "outlier", "shifted", "tail", "equal"])
@pytest.mark.parametrize("length", [2, 64, 128, 129, 500, 1024])
def test_average_of_16_bits_by_every_form_of_its_sum(kind: str, length: int, reference: Run) -> None:
    """Rows to 128 divide by the leading bits of a sum, and rows to 511 sum what is not rounded yet: against float attention."""
    x, quant, want = hard_rows(length, 10.0)[kind][None], Quant(1e-4, 0, DType.INT16), Quant(1e-4, 0, DType.INT16)
    v = np.random.default_rng(length).integers(2**14, 2**15, size=(1, length, 5))
    e = np.exp(wide(10.0).real(x - x.max(-1, keepdims=True)))
    exact = e @ quant.real(v) / e.sum(-1, keepdims=True)
    graph, stored = build(attention, [wide(10.0), quant], [x.shape, v.shape], want, EXTENDED)
    assert len(rewrite(graph, ()).nodes) == (12 if length <= 128 else 15 if length <= 511 else 17)
    assert check_ranges(graph) == []
    assert sqnr(exact, stored.real(run_both(graph, [x, v], reference))) >= 72


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.maximum(np.sqrt((a * a).sum(-1) * (b * b).sum(-1)), 1e-300)


@pytest.mark.parametrize("spec", [BASE, EXTENDED])
@pytest.mark.parametrize("length", [1, 3, 64, 300, 4096])
def test_cosine_similarity(length: int, spec: str, reference: Run) -> None:
    error = 2.0**-12 if length <= 300 else 2.0**-11  # the squares of a row of 4096 are summed in 18 bits
    for kind, a in hard_rows(length, 10.0).items():
        b = np.roll(a, 1, axis=0) // 3 + a // 5
        for qa, qb in ((wide(3.0), wide(1e-6)), (Quant(1e4, 0, DType.INT32), wide(1.0))):
            exact = cosine(qa.real(a), qb.real(b))
            for dtype in RESULTS:
                want = target(exact, dtype)
                graph, stored = build(lambda c, x, y: cosine_similarity(c, x, y, -1, 1e-12), [qa, qb], [a.shape, b.shape], want, spec)
                assert check_ranges(graph) == []
                ours = run_both(graph, [a, b], reference)
                assert np.abs(stored.real(ours) - exact).max() <= max(1.01 * want.scale if dtype is DType.INT8 else 0, error), kind


# No overflow


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_stored_value_overflows(data: st.DataObject, reference: Run) -> None:
    """The reference model reports overflow; any |stored| < 2^30, scale, row length and wanted scale must not."""
    name = data.draw(st.sampled_from([*COMPOSITES, "eps"]))
    length = data.draw(st.sampled_from([1, 2, 3, 31, 256, 257, 1025]))
    scale = 10.0 ** data.draw(st.floats(-11, 5))
    composite = _layer_norm(10.0 ** data.draw(st.floats(-12, 6)), True) if name == "eps" else COMPOSITES[name]
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = generator.choice([-LIMIT, LIMIT, 0, 1, -1, 2 ** data.draw(st.integers(0, 29))], size=(3, length))
    x = np.clip(x + generator.integers(-2, 3, size=x.shape), -LIMIT, LIMIT)
    source = data.draw(st.sampled_from([DType.INT8, DType.INT16, DType.INT32]))
    quant = Quant(scale, data.draw(st.integers(-128, 127)) if source is DType.INT8 else 0, source)
    exact = composite.real(quant.real(np.clip(x, source.min, source.max)))
    want = target(exact * 10.0 ** data.draw(st.floats(-1, 2)), data.draw(st.sampled_from([DType.INT8, DType.INT16, DType.INT32])))
    graph, _ = build(composite.lower, [quant], [x.shape], want, data.draw(st.sampled_from([BASE, EXTENDED])))
    assert check_ranges(graph) == []
    run_both(graph, [np.clip(x, source.min, source.max)], reference)


# Counts

# operators from int32 to int8, and to int32, of [4, 200] (base profile), and to int8 with the int16 extension
COUNTS = {
    "softmax": (12, 14, 12),
    "log_softmax": (20, 19, 20),
    "logsumexp": (21, 20, 21),
    "exp_below_max": (7, 7, 5),
    "layer_norm": (26, 26, 24),
    "layer_norm_scaled": (28, 27, 26),
    "layer_norm_no_eps": (24, 23, 22),
    "layer_norm_large_eps": (28, 27, 26),
    "rms_norm": (23, 22, 21),
    "var": (23, 22, 23),
    "std": (25, 24, 26),
    "norm": (21, 20, 22),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_operator_counts_do_not_grow(name: str) -> None:
    x = hard_rows(200, 10.0)["normal"]
    exact = COMPOSITES[name].real(wide(10.0).real(x))
    forms = ((DType.INT8, BASE), (DType.INT32, BASE), (DType.INT8, EXTENDED))
    graphs = [build(COMPOSITES[name].lower, [wide(10.0)], [x.shape], target(exact, dtype), spec)[0] for dtype, spec in forms]
    counts = tuple(len(g.nodes) for g in graphs)
    assert all(found <= known for found, known in zip(counts, COUNTS[name], strict=True)), counts


def test_images_stored_channels_last_are_not_transposed() -> None:
    """Instance and group norms of an image that a convolution left as [N, H, W, C]."""
    for lower in (lambda c, x: instance_norm(c, x, None, None, None, None, True, 0.1, 1e-5, True), lambda c, x: group_norm(c, x, 2)):
        builder = Builder()
        ctx = Context(builder, Spec.parse(BASE))
        ctx.want = wide(3.0)
        result = lower(ctx, Operand(builder.input("x", DType.INT32, (2, 5, 6, 8)), quant=wide(3.0), perm=NCHW))
        assert result.perm == NCHW and result.shape == (2, 8, 5, 6)
        assert not any(isinstance(op, ops.Transpose) for op in builder.graph.ops)


@pytest.mark.parametrize(
    ("lower", "shape", "message"),
    [
        (lambda c, x: softmax(c, x, -1), (1, 16385), "softmax over 16385 elements; integer arithmetic holds 16384"),
        (lambda c, x: vector_norm(c, x, 3, [-1]), (2, 4), "a vector norm of order 3"),
        (lambda c, x: var(c, x, [-1]), (2, 1), "the variance of 1 elements with correction 1"),
        (lambda c, x: layer_norm(c, x, [4], x, None), (2, 4), "whose weight or bias is not constant"),
        (lambda c, x: divide(c, x, 0.0), (2, 4), "division by a constant that is zero"),
        (lambda c, x: cosine_similarity(c, x, x, -1), (2, 5000), "a cosine similarity over 5000 and 5000 elements"),
    ],
)
def test_refusals(lower: Lower, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        build(lower, [wide(1.0)], [shape], wide(1.0))
