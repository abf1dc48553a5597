"""Which data an operator is defined for, and the intervals that prove it: `tosa/ranges.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

import tosaic
from tosaic.errors import ExecuteError, GraphError
from tosaic.execute.simulator import evaluate
from tosaic.lower.context import Context
from tosaic.optimize.pipeline import optimize
from tosaic.tosa import ops
from tosaic.tosa.graph import Bound, Builder, Graph, Location, Value
from tosaic.tosa.ranges import check_ranges, intervals, verify_ranges
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

B, I8, I16, I32, I48 = DType.BOOL, DType.INT8, DType.INT16, DType.INT32, DType.INT48
SHAPE = (2, 3)


class Case:
    """Builds a graph of values with given bounds."""

    def __init__(self) -> None:
        self.b = Builder()

    def x(self, low: int, high: int, dtype: DType = I32, shape: Sequence[int] = SHAPE) -> Value:
        value = self.b.input(f"x{len(self.b.graph.inputs)}", dtype, shape)
        value.bound = Bound(low, high)
        return value

    def const(self, numbers: object, dtype: DType = I32) -> Value:
        return self.b.const(np.array(numbers), dtype)

    def emit(self, op: ops.Op, *operands: Value) -> Value:
        return self.b.emit(op, *operands)

    def range(self, value: Value) -> tuple[int, int]:
        return intervals(self.b.finish([value]))[value].ends

    def problems(self, value: Value) -> list[str]:
        return [p.what for p in check_ranges(self.b.finish([value]))]


TOP = 2**31 - 1
Emit = Callable[[Case], Value]
# name, the last value that is defined, the first that is not, and what is said of it
BORDERS: list[tuple[str, Emit, Emit, str]] = [
    (
        "add",
        lambda c: c.emit(ops.Add(), c.x(0, 2**30), c.x(-5, 2**30 - 1)),
        lambda c: c.emit(ops.Add(), c.x(0, 2**30), c.x(-5, 2**30)),
        "the result can be -5..2147483648, beyond i32",
    ),
    (
        "sub",
        lambda c: c.emit(ops.Sub(), c.x(-(2**30), 0), c.x(0, 2**30)),
        lambda c: c.emit(ops.Sub(), c.x(-(2**30), 0), c.x(0, 2**30 + 1)),
        "the result can be -2147483649..0, beyond i32",
    ),
    (
        "mul",
        lambda c: c.emit(ops.Mul(), c.x(-(2**15), 2**15), c.x(0, 2**16 - 1)),
        lambda c: c.emit(ops.Mul(), c.x(-(2**15), 2**15), c.x(0, 2**16)),
        "beyond i32",
    ),
    (
        "mul with shift",
        lambda c: c.emit(ops.Mul(20), c.x(-(2**25), 2**25), c.x(0, 2**26 - 1)),
        lambda c: c.emit(ops.Mul(20), c.x(-(2**25), 2**25), c.x(0, 2**26)),
        "the result can be -2147483648..2147483648, beyond i32",
    ),
    (
        "negate",
        lambda c: c.emit(ops.Negate(), c.x(-TOP, TOP)),
        lambda c: c.emit(ops.Negate(), c.x(-TOP - 1, TOP)),
        "beyond i32",
    ),
    ("abs", lambda c: c.emit(ops.Abs(), c.x(-TOP, TOP)), lambda c: c.emit(ops.Abs(), c.x(-TOP - 1, TOP)), "beyond i32"),
    (
        "division by zero",
        lambda c: c.emit(ops.IntDiv(), c.x(-9, 9), c.x(1, 5)),
        lambda c: c.emit(ops.IntDiv(), c.x(-9, 9), c.x(0, 5)),
        "divides by 0..5",
    ),
    (
        "division beyond the type",
        lambda c: c.emit(ops.IntDiv(), c.x(-TOP, TOP), c.x(-5, -1)),
        lambda c: c.emit(ops.IntDiv(), c.x(-TOP - 1, TOP), c.x(-5, -1)),
        "beyond i32",
    ),
    (
        "sum",
        lambda c: c.emit(ops.ReduceSum(1), c.x(0, TOP // 3)),
        lambda c: c.emit(ops.ReduceSum(1), c.x(0, TOP // 3 + 1)),
        "beyond i32",
    ),
    (
        "right shift",
        lambda c: c.emit(ops.ArithmeticRightShift(), c.x(-9, 9), c.x(0, 31)),
        lambda c: c.emit(ops.ArithmeticRightShift(), c.x(-9, 9), c.x(0, 32)),
        "shifts by 0..32, 0..31 are defined",
    ),
    (
        "left shift",
        lambda c: c.emit(ops.LogicalLeftShift(), c.x(-9, 9), c.x(0, 31)),
        lambda c: c.emit(ops.LogicalLeftShift(), c.x(-9, 9), c.x(-1, 3)),
        "shifts by -1..3",
    ),
    (
        "shift of a narrow type",
        lambda c: c.emit(ops.LogicalRightShift(), c.x(-9, 9, I8), c.x(0, 7, I8)),
        lambda c: c.emit(ops.LogicalRightShift(), c.x(-9, 9, I8), c.x(0, 8, I8)),
        "0..7 are defined",
    ),
    (
        "gather",
        lambda c: c.emit(ops.Gather(), c.const(np.zeros((2, 7, 1))), c.x(0, 6)),
        lambda c: c.emit(ops.Gather(), c.const(np.zeros((2, 7, 1))), c.x(0, 7)),
        "indices are 0..7, the tensor has 0..6",
    ),
    (
        "scatter",
        lambda c: c.emit(ops.Scatter(), c.const(np.zeros((2, 7, 1))), c.const([[0, 1, 6], [2, 1, 0]]), c.x(0, 7, I32, (2, 3, 1))),
        lambda c: c.emit(ops.Scatter(), c.const(np.zeros((2, 7, 1))), c.const([[0, 1, 6], [2, 1, 2]]), c.x(0, 7, I32, (2, 3, 1))),
        "writes one position twice",
    ),
    (
        "scatter of more than there is",
        lambda c: c.emit(ops.Scatter(), c.const(np.zeros((2, 3, 1))), c.x(0, 2), c.x(0, 7, I32, (2, 3, 1))),
        lambda c: c.emit(ops.Scatter(), c.const(np.zeros((2, 2, 1))), c.x(0, 1), c.x(0, 7, I32, (2, 3, 1))),
        "more indices than positions",
    ),
    (
        "rescale",
        lambda c: c.emit(ops.Rescale(I8, (1 << 30,), (20,)), c.x(-(2**19), 2**19 - 1)),
        lambda c: c.emit(ops.Rescale(I8, (1 << 30,), (20,)), c.x(-(2**19), 2**19)),
        "-524288..524288 less its zero point enters, shift 20 takes -2^19..2^19-1",
    ),
    (
        "rescale with a zero point",
        lambda c: c.emit(ops.Rescale(I32, (1 << 30,), (9,), -128), c.x(-128, 127, I8)),
        lambda c: c.emit(ops.Rescale(I32, (1 << 30,), (8,), -128), c.x(-128, 127, I8)),
        "0..255 less its zero point enters, shift 8 takes -2^7..2^7-1",
    ),
    (
        "rescale by channel",
        lambda c: by_channel(c, (20, 30, 20)),
        lambda c: by_channel(c, (20, 20, 30)),
        "in channel 1, shift 20 takes",
    ),
    (
        "rescale with a 16-bit multiplier",
        lambda c: c.emit(ops.Rescale(I32, (1 << 14,), (14,)), c.x(-TOP, TOP)),
        lambda c: c.emit(ops.Rescale(I32, (1 << 14,), (13,)), c.x(-TOP, TOP)),
        "the scaled value is -4294967294..4294967294, beyond i32",
    ),
    (
        "table",
        lambda c: c.emit(ops.Table(), c.x(-32768, 32767, I16), c.const(np.linspace(-32768, 32767, 513).astype(int), I16)),
        lambda c: c.emit(ops.Table(), c.x(-32768, 32767, I16), c.const(np.where(np.arange(513) < 256, -20000, 20000), I16)),
        "neighbouring entries differ by 40000, beyond i16",
    ),
    (
        "convolution",
        lambda c: conv(c, 2**31 // (255 * 127)),
        lambda c: conv(c, 2**31 // (255 * 127) + 1),
        "the sum of products can be",
    ),
    (
        "bias",
        lambda c: conv(c, 4, TOP - 4 * 127 * 127),
        lambda c: conv(c, 4, TOP - 4 * 127 * 127 + 1),
        "beyond i32",
    ),
    (
        "depthwise convolution",
        lambda c: depthwise(c, TOP - 9 * 127 * 127),
        lambda c: depthwise(c, TOP - 9 * 127 * 127 + 1),
        "beyond i32",
    ),
    (
        "product",
        lambda c: c.emit(ops.MatMul(), *(c.x(-128, 127, I8, shape) for shape in ((1, 1, 2**17 - 1), (1, 2**17 - 1, 1)))),
        lambda c: c.emit(ops.MatMul(), *(c.x(-128, 127, I8, shape) for shape in ((1, 1, 2**17), (1, 2**17, 1)))),
        "beyond i32",
    ),
    (
        "average",
        lambda c: c.emit(ops.AvgPool2d((255, 257), (1, 1), (0,) * 4), c.x(-32768, 32767, I16, (1, 255, 257, 1))),
        lambda c: c.emit(ops.AvgPool2d((256, 257), (1, 1), (0,) * 4), c.x(-32768, 32767, I16, (1, 256, 257, 1))),
        "a window of 65792 elements sums to",
    ),
]


def by_channel(c: Case, shift: tuple[int, ...]) -> Value:
    """The middle one of three channels is large."""
    x = c.emit(ops.Add(), c.x(0, 1), c.const([[3, 2**20, 5]]))
    return c.emit(ops.Rescale(I8, (1 << 30,) * 3, shift, per_channel=True), x)


def conv(c: Case, channels: int, bias: int = 0) -> Value:
    """Weights of 127 and inputs up to 127 (127 + 128, where no bias is given)."""
    x = c.x(-128, 127, I8, (1, 1, 1, channels))
    op = ops.Conv2d((1, 1), (0,) * 4, (1, 1), 0 if bias else -128)
    return c.emit(op, x, c.const(np.full((1, 1, 1, channels), 127), I8), c.const([bias]))


def depthwise(c: Case, bias: int) -> Value:
    op = ops.DepthwiseConv2d((1, 1), (1, 1, 1, 1), (1, 1))
    return c.emit(op, c.x(-128, 127, I8, (1, 4, 4, 2)), c.const(np.full((3, 3, 2, 1), 127), I8), c.const([0, bias]))


@pytest.mark.parametrize(("good", "bad", "message"), [b[1:] for b in BORDERS], ids=[b[0] for b in BORDERS])
def test_borders(good: Emit, bad: Emit, message: str) -> None:
    c = Case()
    assert c.problems(good(c)) == []
    c = Case()
    (problem,) = c.problems(bad(c))
    assert message in problem


UNPREDICTABLE = ("add", "sub", "mul with shift", "negate", "abs", "division by zero", "sum", "right shift", "gather", "rescale")


@pytest.mark.parametrize("name", UNPREDICTABLE)
def test_the_reference_model_refuses_what_is_beyond(name: str, reference: Callable) -> None:
    """The same two graphs, on the data at either end of the bounds: one runs, the other is unpredictable for some."""
    _, good, bad, _ = next(b for b in BORDERS if b[0] == name)
    outcomes = []
    for make in (good, bad):
        c = Case()
        graph = c.b.finish([make(c)])
        ends = [[np.full(v.shape, end, v.dtype.numpy) for end in (v.bound.low, v.bound.high)] for v in graph.inputs if v.bound]
        outcomes.append(all(runs(reference, graph, list(inputs)) for inputs in itertools.product(*ends)))
    assert outcomes == [True, False]


def runs(reference: Callable, graph: Graph, inputs: list[np.ndarray]) -> bool:
    try:
        reference(graph, inputs)
    except ExecuteError:
        return False
    return True


KNOWN: list[tuple[str, Emit, tuple[int, int]]] = [
    ("from the maximum", lambda c: (lambda x: c.emit(ops.Sub(), c.emit(ops.ReduceMax(1), x), x))(c.x(-5, 9)), (0, 14)),
    ("square", lambda c: (lambda x: c.emit(ops.Mul(), x, x))(c.x(-5, 3)), (0, 25)),
    ("normalized", lambda c: normalized(c, 0), (-(2**31), -1)),
    ("normalized and halved", lambda c: normalized(c, 1), (2**30, TOP)),
    (
        "leading bits",
        lambda c: c.emit(ops.LogicalRightShift(), normalized(c, 0), c.const([[16]])),
        (2**15, 2**16 - 1),
    ),
    ("even shift", lambda c: c.emit(ops.LogicalRightShift(), normalized(c, 0, even=True), c.const([[16]])), (2**14, 2**16 - 1)),
    ("leading zeros", lambda c: c.emit(ops.Clz(), c.x(3, 1000)), (22, 30)),
    ("leading zeros of any", lambda c: c.emit(ops.Clz(), c.x(-3, 1000)), (0, 32)),
    ("leading zeros of none", lambda c: c.emit(ops.Clz(), c.x(-3, -1)), (0, 0)),
    ("wrapped", lambda c: c.emit(ops.LogicalLeftShift(), c.x(0, 3), c.x(0, 31)), (-(2**31), TOP)),
    ("truncated", lambda c: c.emit(ops.Cast(I8), c.x(0, 128)), (-128, 127)),
    ("quotient", lambda c: c.emit(ops.IntDiv(), c.x(-100, 50), c.x(-4, -3)), (-16, 33)),
    ("rounded shift", lambda c: c.emit(ops.ArithmeticRightShift(True), c.x(-7, 7), c.const([[2]])), (-2, 2)),
    ("mask", lambda c: c.emit(ops.BitwiseAnd(), c.x(-100, 100), c.const([[15]])), (0, 15)),
    ("or", lambda c: c.emit(ops.BitwiseOr(), c.x(0, 9), c.x(0, 3)), (0, 15)),
    ("choice", lambda c: c.emit(ops.Select(), c.emit(ops.Greater(), c.x(0, 1), c.x(0, 1)), c.x(-3, 0), c.x(5, 8)), (-3, 8)),
    ("position", lambda c: c.emit(ops.ArgMax(1), c.x(0, 1, I8)), (0, 2)),
    ("pad", lambda c: c.emit(ops.Pad((0, 0, 1, 0), -7), c.x(0, 1)), (-7, 1)),
    ("table", lambda c: c.emit(ops.Table(), c.x(-128, -100, I8), c.const(np.arange(256) - 128, I8)), (-128, -100)),
    ("unsigned", lambda c: c.emit(ops.Rescale(I16, (1 << 30,), (30,), 0, 0, input_unsigned=True), c.x(-1, 1, I8)), (0, 255)),
    ("saturated", lambda c: c.emit(ops.Rescale(I8, (1 << 30,), (30,), 0, 5), c.x(-3, 2**20)), (2, 127)),
]


def normalized(c: Case, less: int, *, even: bool = False) -> Value:
    x = c.x(1, 2**30)
    count = c.emit(ops.Clz(), x)
    count = c.emit(ops.BitwiseAnd(), count, c.const([[~1]])) if even else count
    return c.emit(ops.LogicalLeftShift(), x, c.emit(ops.Sub(), count, c.const([[less]])) if less else count)


@pytest.mark.parametrize(("make", "ends"), [k[1:] for k in KNOWN], ids=[k[0] for k in KNOWN])
def test_intervals(make: Emit, ends: tuple[int, int]) -> None:
    c = Case()
    value = make(c)
    assert c.range(value) == ends
    assert c.problems(value) == []


def test_a_declared_bound_is_believed() -> None:
    c = Case()
    total = c.emit(ops.Add(), c.x(0, TOP), c.x(0, TOP))
    assert len(c.problems(total)) == 1
    total.bound = Bound(0, 2**30, "they never are large together")
    assert c.problems(total) == []
    assert c.range(total) == (0, 2**30)


def test_a_declared_bound_that_cannot_hold() -> None:
    c = Case()
    total = c.emit(ops.Add(), c.x(5, 6), c.x(5, 6))
    total.bound = Bound(0, 3, "a mistake")
    assert c.problems(total) == ["the result is declared to lie in 0..3 (a mistake), but it lies in 10..12"]


def test_bounds_are_declared_through_the_context() -> None:
    ctx = Context(Builder(), Spec.parse("TOSA-1.0+INT"))
    value = ctx.emit(ops.Negate(), ctx.builder.input("x", I32, SHAPE))
    assert ctx.bounded(value, -(2**30), 2**30, "calibrated") is value
    assert ctx.bounded(value, -5, 2**31 - 1, "a correlation").bound == Bound(-5, 2**30, "a correlation")
    assert ctx.bounded(ctx.i32(3), 0, 1, "constants know better").bound is None


def test_the_callers_own_integers() -> None:
    """Indices of a model's input are the caller's to keep in range, also after arithmetic; scaled ones are not."""
    c = Case()
    tokens = c.b.input("tokens", I32, SHAPE)
    c.b.input("unused", I32, SHAPE)
    after = c.emit(ops.Add(), tokens, c.const([[1]]))
    assert c.problems(c.emit(ops.Gather(), c.const(np.zeros((2, 7, 1))), after)) == []
    assert len(c.problems(c.emit(ops.Rescale(I8, (1 << 30,), (20,)), c.emit(ops.Maximum(), tokens, c.const([[0]]))))) == 0
    scaled = c.emit(ops.Rescale(I32, (1 << 30,), (40,)), tokens)
    assert c.problems(c.emit(ops.Add(), scaled, scaled)) == []
    doubled = c.emit(ops.Mul(), scaled, c.const([[2**20]]))
    assert len(c.problems(doubled)) == 1
    of_floats = Case()
    cells = of_floats.emit(ops.Cast(I32), of_floats.b.input("places", DType.FP32, SHAPE))
    assert of_floats.problems(of_floats.emit(ops.Mul(), cells, of_floats.const([[37]]))) == []


def test_errors_name_the_operator_and_its_place() -> None:
    c = Case()
    with c.b.at("sum", Location("aten.add.Tensor", "head", "net.py:7")):
        total = c.emit(ops.Add(), c.x(0, TOP), c.x(0, TOP))
    graph = c.b.finish([total])
    with pytest.raises(GraphError) as error:
        verify_ranges(graph)
    assert str(error.value) == (
        "1 integer operators can leave the range that the specification defines:\n"
        "  %sum: ADD: the result can be 0..4294967294, beyond i32\n    at: aten.add.Tensor | head | net.py:7"
    )


def test_bounds_survive_optimization() -> None:
    """A value that moves to another layout, or is the same as another, holds the same numbers."""
    b = Builder()
    x = b.input("x", I32, (1, 2, 3, 4))
    x.bound = Bound(-(2**30), 2**30)
    total = b.emit(ops.Add(), b.emit(ops.Transpose((0, 3, 1, 2)), x), b.emit(ops.Transpose((0, 3, 1, 2)), x))
    total.bound = Bound(-(2**29), 2**29, "declared")
    out = b.emit(ops.Transpose((0, 2, 3, 1)), b.emit(ops.Negate(), total))
    graph = optimize(b.finish([out]), evaluate)
    assert [op.NAME for op in graph.ops] == ["ADD", "NEGATE"]
    assert graph.nodes[0].output.bound == Bound(-(2**29), 2**29, "declared")
    assert check_ranges(graph) == []


class Residuals(nn.Module):
    """Convolutions, sums and products between them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = x + torch.relu(conv(x)) * 0.7
        return x * x


@pytest.mark.parametrize("scheme", ["8a8w", "16a8w", "8a4w"])
def test_compiled_graphs_hold_what_they_promise(scheme: str) -> None:
    """No value leaves its interval, for inputs far beyond calibration too; and no operator can break."""
    torch.manual_seed(0)
    model, x = Residuals().eval(), torch.randn(1, 4, 8, 8)
    graph = tosaic.compile(tosaic.quantize(model, x, [x], scheme)).graph
    assert check_ranges(graph) == []
    inside(graph, [np.random.default_rng(0).integers(v.dtype.min, v.dtype.max + 1, v.shape).astype(v.dtype.numpy) for v in graph.inputs])


def inside(graph: Graph, inputs: Sequence[np.ndarray]) -> None:
    """Each value of a run lies in its interval."""
    known = intervals(graph)

    def watch(value: Value, array: np.ndarray) -> None:
        if value in known and array.size:
            interval = known[value]
            assert (array >= interval.low).all() and (array <= interval.high).all(), f"{value!r}: {array.min()}..{array.max()}, {interval}"

    evaluate(graph, inputs, watch=watch)
