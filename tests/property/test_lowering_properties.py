"""Random configurations of the operators with windows, random scales and zero points, through hand-built quantized programs.

A program is `dequantize -> operator -> quantize` as an FX graph; no capture, so that an example takes milliseconds. Each
artifact equals the reference model bit for bit, and is within one step of the float operator on the dequantized inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tosaic.lower  # noqa: F401  registers the lowerings
from tosaic.execute.simulator import evaluate
from tosaic.lower.operand import multiplier_shift
from tosaic.lower.walk import lower_graph
from tosaic.optimize.pipeline import optimize
from tosaic.tosa.graph import Graph, verify
from tosaic.tosa.spec import Spec

aten, quantized = torch.ops.aten, torch.ops.quantized_decomposed
Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
SPEC = Spec.parse("TOSA-1.0+INT+int16")
LIMITS = {torch.int8: (-128, 127), torch.int16: (-32768, 32767)}
COMMON = settings(derandomize=True, max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
# 48-bit accumulators take 16-bit multipliers, off by up to 2^-15: one more step of a large int16 value
STEPS = {torch.int8: 1.0, torch.int16: 2.0}

scales = st.floats(1e-4, 0.3).map(lambda s: float(np.float32(s)))
dtypes = st.sampled_from([torch.int8, torch.int16])
Quantization = tuple[float, int, torch.dtype]


def quantization(draw: st.DrawFn, dtype: torch.dtype) -> Quantization:
    return draw(scales), draw(st.integers(-128, 127)) if dtype is torch.int8 else 0, dtype


def attributes(q: Quantization) -> tuple[Any, ...]:
    scale, zero_point, dtype = q
    return (scale, zero_point, *LIMITS[dtype], dtype)


def stored_input(shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    low, high = LIMITS[dtype]
    return torch.randint(low, high + 1, tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.int64).to(dtype)


class Program:
    """`quantize(operator(dequantize(x), ...))` over stored inputs, as a graph and as a function."""

    def __init__(self, operator: Any, inputs: Sequence[tuple[torch.Tensor, Quantization]], *arguments: Any, constants: int = 0) -> None:
        self.operator, self.inputs, self.arguments = operator, inputs, arguments
        root, graph = torch.nn.Module(), torch.fx.Graph()
        operands = []
        for i, (tensor, q) in enumerate(inputs):
            node = graph.placeholder(f"x{i}")
            node.meta["val"] = torch.empty(tensor.shape)
            # a float input that is quantized at once, as every converted program begins
            node = graph.call_function(quantized.quantize_per_tensor.default, (node, *attributes(q)))
            operands.append(graph.call_function(quantized.dequantize_per_tensor.default, (node, *attributes(q))))
        given_, self.quantized_weights = [], []
        for i, argument in enumerate(arguments):
            if not isinstance(argument, torch.Tensor):
                given_.append(argument)
                continue
            root.register_buffer(f"c{i}", argument)
            node = graph.get_attr(f"c{i}")
            if i < constants:  # a weight, quantized
                q = (float(argument.abs().max() / 127), 0, torch.int8)
                node = graph.call_function(quantized.quantize_per_tensor.default, (node, *attributes(q)))
                node = graph.call_function(quantized.dequantize_per_tensor.default, (node, *attributes(q)))
            given_.append(node)
        self.graph, self.root, self.tail = graph, root, given_
        self.result = graph.call_function(operator, (*operands, *given_))

    def expected(self) -> torch.Tensor:
        """The float operator, in float64, on the dequantized inputs."""
        reals = [(tensor.double() - q[1]) * q[0] for tensor, q in self.inputs]
        tail = []
        for argument, node in zip(self.arguments, self.tail, strict=True):
            if isinstance(argument, torch.Tensor) and node.op == "call_function":
                scale = node.args[1]
                argument = torch.clamp(torch.round(argument * (1 / np.float32(scale))), -128, 127).double() * scale
            tail.append(argument.double() if isinstance(argument, torch.Tensor) else argument)
        return self.operator(*reals, *tail)

    def check(self, out: torch.dtype, reference: Run, steps: float | None = None) -> None:
        want = self.expected().numpy()
        assume(np.abs(want).max() > 0)
        low, high = float(min(want.min(), 0)), float(max(want.max(), 0))
        if out is torch.int8:
            scale = max((high - low) / 255, 1e-6)
            q = (scale, int(np.clip(round(-128 - low / scale), -128, 127)), out)
        else:
            q = (max(-low, high, 1e-6) / 32767, 0, out)
        end = self.graph.call_function(quantized.quantize_per_tensor.default, (self.result, *attributes(q)))
        self.graph.output((self.graph.call_function(quantized.dequantize_per_tensor.default, (end, *attributes(q))),))
        lowered = lower_graph(torch.fx.GraphModule(self.root, self.graph), SPEC, output_names=["y"])
        compiled = optimize(lowered.graph, evaluate)
        verify(compiled, SPEC)
        arrays = [tensor.numpy() for tensor, _ in self.inputs]
        [ours] = evaluate(compiled, arrays)
        np.testing.assert_array_equal(ours, reference(compiled, arrays)[0])
        np.testing.assert_array_equal(ours, evaluate(lowered.graph, arrays)[0], err_msg="the optimizer changed bits")
        exact = np.clip(want / q[0] + q[1], *LIMITS[out])
        assert ours.shape == exact.shape
        assert np.abs(ours - exact).max() <= 0.51 + (STEPS[out] - 1 if steps is None else steps)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Program, torch.dtype]:
    dtype = draw(dtypes)
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 4)), draw(st.integers(1, 3))]
    stride, dilation = [[draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2)]
    padding = [draw(st.integers(0, 4)) for _ in range(2)]
    extra = [draw(st.integers(0, max(s, d) - 1)) if transposed else 0 for s, d in zip(stride, dilation, strict=True)]
    size = [draw(st.integers(1, 9)) for _ in range(2)]
    for i in range(2):
        reach = (kernel[i] - 1) * dilation[i] + 1
        if transposed:
            assume((size[i] - 1) * stride[i] - 2 * padding[i] + reach + extra[i] >= 1)
        else:
            assume(size[i] + 2 * padding[i] >= reach)
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(inputs if transposed else outputs, (outputs if transposed else inputs) // groups, *kernel, generator=generator)
    q = quantization(draw, dtype)
    bias = torch.randn(outputs, generator=generator) * q[0] * 50 if draw(st.booleans()) else None
    x = stored_input((draw(st.integers(1, 2)), inputs, *size), dtype, seed)
    return Program(
        aten.convolution.default, [(x, q)], weight, bias, stride, padding, dilation, transposed, extra, groups, constants=1
    ), dtype


@COMMON
@given(case=convolutions())
def test_convolutions(case: tuple[Program, torch.dtype], reference: Run) -> None:
    program, dtype = case
    program.check(dtype, reference)


@st.composite
def pools(draw: st.DrawFn) -> tuple[Program, torch.dtype, float]:
    dtype = draw(dtypes)
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    stride = [draw(st.integers(1, 4)) for _ in range(2)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    size = [draw(st.integers(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True)]
    ceil = draw(st.booleans())
    kind = draw(st.sampled_from(["max", "avg", "avg", "adaptive"]))
    q = quantization(draw, dtype)
    x = stored_input((1, draw(st.integers(1, 3)), *size), dtype, draw(st.integers(0, 1000)))
    if kind == "max":
        return Program(aten.max_pool2d.default, [(x, q)], kernel, stride, padding, [1, 1], ceil), dtype, 0.0
    if kind == "adaptive":
        return Program(aten.adaptive_avg_pool2d.default, [(x, q)], kernel), dtype, 1.0
    divisor = draw(st.sampled_from([None, None, 3, 5]))
    return Program(aten.avg_pool2d.default, [(x, q)], kernel, stride, padding, ceil, draw(st.booleans()), divisor), dtype, 1.0


@COMMON
@given(case=pools())
def test_pools(case: tuple[Program, torch.dtype, float], reference: Run) -> None:
    """AVG_POOL2D rounds at its input's scale: half a step of that, in steps of the output, comes on top."""
    program, dtype, averages = case
    [(_, (scale, _, _))] = program.inputs
    want = program.expected()
    span = float(want.max().clamp(min=0) - want.min().clamp(max=0)) / 255 if dtype is torch.int8 else float(want.abs().max()) / 32767
    own = 0.5 * scale / max(span, 1e-6) if program.operator is aten.avg_pool2d.default else 0.0
    program.check(dtype, reference, steps=averages * (own + (1.0 if dtype is torch.int16 else 0.0)))


@st.composite
def resizes(draw: st.DrawFn) -> tuple[Program, torch.dtype]:
    dtype = draw(dtypes)
    size = [draw(st.integers(1, 9)) for _ in range(2)]
    by_size = draw(st.booleans())
    outs = [draw(st.integers(max(1, math.ceil(s / 8)), 2 * s + 5)) for s in size]
    factors = [draw(st.sampled_from([0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0])) for _ in size]
    assume(by_size or all(math.floor(s * f) >= 1 for s, f in zip(size, factors, strict=True)))
    where = (outs, None) if by_size else (None, factors)
    q = quantization(draw, dtype)
    x = stored_input((draw(st.integers(1, 2)), 2, *size), dtype, draw(st.integers(0, 1000)))
    if draw(st.booleans()):
        return Program(aten.upsample_nearest2d.vec, [(x, q)], *where), dtype
    corners = draw(st.booleans())
    return Program(aten.upsample_bilinear2d.vec, [(x, q)], where[0], corners, where[1]), dtype


@COMMON
@given(case=resizes())
def test_resizes(case: tuple[Program, torch.dtype], reference: Run) -> None:
    program, dtype = case
    program.check(dtype, reference)


@st.composite
def binaries(draw: st.DrawFn) -> tuple[Program, torch.dtype]:
    operator = draw(st.sampled_from([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor]))
    first, second = draw(dtypes), draw(dtypes)
    shape = draw(st.sampled_from([((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 3, 4, 5), (3, 1, 1)), ((7,), (3, 7)), ((2, 1, 5), (4, 1))]))
    seed = draw(st.integers(0, 1000))
    inputs = [(stored_input(s, d, seed + i), quantization(draw, d)) for i, (s, d) in enumerate(zip(shape, (first, second), strict=True))]
    return Program(operator, inputs), draw(dtypes)


@COMMON
@given(case=binaries())
def test_sums_and_products(case: tuple[Program, torch.dtype], reference: Run) -> None:
    """Scales up to 3000 times apart, int8 beside int16: one rounding."""
    program, dtype = case
    program.check(dtype, reference, steps=0.02)


@st.composite
def unaries(draw: st.DrawFn) -> tuple[Program, torch.dtype, float]:
    dtype = draw(dtypes)
    inputs = [(stored_input((2, 6, 5), dtype, draw(st.integers(0, 1000))), quantization(draw, dtype))]
    number = draw(st.floats(-3, 3).filter(lambda v: abs(v) > 1e-3))
    operator, arguments, steps = draw(
        st.sampled_from(
            [
                (aten.add.Scalar, (number,), 0.02),
                (aten.mul.Scalar, (number,), 0.02),
                (aten.rsub.Scalar, (number,), 0.02),
                (aten.leaky_relu.default, (number,), 0.02),
                (aten.mean.dim, ([-1],), 0.02),
                (aten.sum.dim_IntList, ([0, 2],), 0.02),
                (aten.neg.default, (), 0.02),
                (aten.clamp.default, (min(number, 0.5), max(number, 0.5)), 0.02),
                (aten._softmax.default, (-1, False), 0.6),
            ]
        )
    )
    return Program(operator, inputs, *arguments), dtype, steps


@COMMON
@given(case=unaries())
def test_functions_of_one_tensor(case: tuple[Program, torch.dtype, float], reference: Run) -> None:
    program, dtype, steps = case
    program.check(dtype, reference, steps)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.floats(2.0**-31, 2.0**28), st.sampled_from([15, 31]))
def test_multiplier_shift(real: float, bits: int) -> None:
    """Relative error below 2^-30 with 32-bit multipliers, 2^-14 with 16-bit ones, as long as the shift has room."""
    assume(real < 2.0 ** (bits - 3))
    multiplier, shift = multiplier_shift(real, bits)
    assert 1 << (bits - 1) <= multiplier < 1 << bits and 2 <= shift <= 62
    assert abs(multiplier * 2.0**-shift / real - 1) < 2.0 ** (1 - bits)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.floats(1e-30, 2.0**-31))
def test_multiplier_shift_of_tiny_factors(real: float) -> None:
    """Beyond shift 62 the multiplier loses bits, but never more than 2^-62."""
    multiplier, shift = multiplier_shift(real)
    assert shift <= 62 and abs(multiplier * 2.0**-shift - real) <= 2.0**-62
