"""Ranks: which RESHAPEs go, which stay, and that the results are the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tosaic.execute.simulator import evaluate
from tosaic.optimize.pipeline import optimize
from tosaic.optimize.shapes import fit_ranks
from tosaic.tosa import ops
from tosaic.tosa.graph import Bound, Builder, Graph, Value, verify
from tosaic.tosa.types import DType

I8, I32 = DType.INT8, DType.INT32
RNG = np.random.default_rng(0)
T, C = 5, 4


def linear(b: Builder, x: Value, channels: int = C) -> Value:
    """A linear layer of [1,T,C] as it is lowered: RESHAPE, CONV2D, a RESCALE for each channel, RESHAPE."""
    x = b.emit(ops.Reshape((1, T, 1, x.shape[-1])), x)
    w = b.const(RNG.integers(-127, 128, (channels, 1, 1, x.shape[-1])), I8)
    y = b.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, w, b.const(RNG.integers(-99, 99, channels), I32))
    multipliers = tuple(int(m) for m in RNG.integers(1 << 30, (1 << 31) - 1, channels))
    y = b.emit(ops.Rescale(I32, multipliers, (33,) * channels, per_channel=True), y)
    return b.emit(ops.Reshape((1, T, channels)), y)


def narrow(b: Builder, x: Value) -> Value:
    return b.emit(ops.Rescale(I8, (1 << 30,), (36,)), x)


def residual(b: Builder, x: Value) -> Value:
    """Three linear layers, each added to its input, with a maximum over the row in between."""
    wide = linear(b, x)
    for _ in range(2):
        y = linear(b, narrow(b, wide))
        y = b.emit(ops.Sub(), y, b.emit(ops.ReduceMax(2), y))
        y = b.emit(ops.Add(), y, b.const(RNG.integers(-9, 9, (1, 1, C)), I32))
        wide = b.emit(ops.Add(), wide, y)
    return narrow(b, wide)


def heads(b: Builder, x: Value) -> Value:
    """Queries and keys of two heads, as attention makes them."""
    q, k = (narrow(b, linear(b, x)) for _ in range(2))
    q, k = (b.emit(ops.Reshape((1, T, 2, C // 2)), v) for v in (q, k))
    q = b.emit(ops.Reshape((2, T, C // 2)), b.emit(ops.Transpose((0, 2, 1, 3)), q))
    k = b.emit(ops.Reshape((2, C // 2, T)), b.emit(ops.Transpose((0, 2, 3, 1)), k))
    scores = b.emit(ops.Reshape((1, 2, T, T)), b.emit(ops.MatMul(), q, k))
    top = b.emit(ops.Sub(), b.emit(ops.ReduceMax(3), scores), scores)
    return b.emit(ops.Reshape((2, T, T)), narrow(b, top))


def every_attribute(b: Builder, x: Value) -> Value:
    """Operators with an axis, a padding, a start or multiples, between two layers."""
    y = linear(b, x)
    y = b.emit(ops.Concat(1), y, b.emit(ops.Reverse(1), y))
    y = b.emit(ops.Slice((0, 1, 0), (1, T, C)), b.emit(ops.Pad((0, 0, 1, 2, 0, 0), 3), y))
    y = b.emit(ops.Slice((0, 0, 0), (1, T, C)), b.emit(ops.Tile((1, 2, 1)), y))
    table = b.const(RNG.integers(-128, 128, 256), I8)
    y = b.emit(ops.Table(), narrow(b, y), table)
    y = b.emit(
        ops.Select(), b.emit(ops.Greater(), b.emit(ops.Cast(I32), y), b.const(np.zeros((1, 1, 1)), I32)), y, b.emit(ops.Clamp(-3, 9), y)
    )
    return linear(b, y)


def build(body: Callable[[Builder, Value], Value]) -> Graph:
    b = Builder()
    return b.finish([body(b, b.input("x", I8, (1, T, C)))])


def reshapes(graph: Graph) -> int:
    return sum(isinstance(op, ops.Reshape) for op in graph.ops)


@pytest.mark.parametrize(
    ("body", "left"),
    [(residual, 2), (every_attribute, 2), (heads, 3)],  # in and out; heads: in, and one for each TRANSPOSE
)
def test_reshapes_that_go(body: Callable[[Builder, Value], Value], left: int) -> None:
    graph = build(body)
    after = optimize(graph, evaluate)
    verify(after)
    assert reshapes(after) == left
    x = RNG.integers(-128, 128, (1, T, C)).astype(np.int8)
    np.testing.assert_array_equal(evaluate(graph, [x])[0], evaluate(after, [x])[0])
    assert fit_ranks(after) is after


def test_a_row_that_a_reduction_makes_keeps_its_place() -> None:
    """[2,1,3] reduced over its last axis: the axis of length 1 that goes is not one that the reduction made."""
    b = Builder()
    x = b.input("x", I32, (2, 3))
    y = b.emit(ops.Reshape((2, 1, 3)), x)
    y = b.emit(ops.Sub(), y, b.emit(ops.ReduceMin(2), y))
    graph = b.finish([b.emit(ops.Reshape((3, 2)), b.emit(ops.Reshape((2, 3)), y))])
    after = optimize(graph, evaluate)
    assert [n.op.NAME for n in after.nodes] == ["REDUCE_MIN", "SUB", "RESHAPE"]
    data = RNG.integers(-9, 9, (2, 3)).astype(np.int32)
    np.testing.assert_array_equal(evaluate(graph, [data])[0], evaluate(after, [data])[0])


def test_channels_stay_last() -> None:
    """A RESCALE for each channel takes no axis behind the channels."""
    b = Builder()
    x = b.emit(ops.Reshape((1, T, C)), b.input("x", I8, (1, T, C, 1)))
    y = b.emit(ops.Rescale(I8, tuple(range(1 << 30, (1 << 30) + C)), (31,) * C, per_channel=True), x)
    graph = b.finish([b.emit(ops.Reshape((1, T, C, 1)), y)])
    assert fit_ranks(graph) is graph


def test_outputs_and_inputs_keep_their_shapes() -> None:
    b = Builder()
    x = b.input("x", I8, (1, T, C))
    y = linear(b, x)
    graph = b.finish([y, linear(b, narrow(b, y))])
    after = optimize(graph, evaluate)
    assert [(v.name, v.shape) for v in after.outputs] == [(v.name, v.shape) for v in graph.outputs]
    assert reshapes(after) == 3


def test_nothing_to_gain_returns_the_graph() -> None:
    b = Builder()
    x = b.input("x", I8, (1, T, C))
    graph = b.finish([b.emit(ops.Reshape((T, C)), b.emit(ops.Clamp(0, 5), x))])
    assert fit_ranks(graph) is graph


def test_a_bound_declared_on_a_reshape_stays_known() -> None:
    b = Builder()
    x = b.emit(ops.Clz(), b.input("x", I32, (2, 3)))
    y = b.emit(ops.Reshape((1, 2, 3)), x)
    y.bound = Bound(3, 40, "declared")
    z = b.emit(ops.LogicalLeftShift(), b.const(np.ones((1, 1, 1)), I32), b.emit(ops.Abs(), y))
    after = fit_ranks(b.finish([b.emit(ops.Reshape((2, 3)), z)]))
    assert reshapes(after) == 0
    assert [n.output.bound for n in after.nodes if n.op == ops.Clz()] == [Bound(3, 40, "declared")]


def test_no_reshape_of_48_bits() -> None:
    """RESHAPE takes no i48, though one before the RESCALE would stand for the two at the sum."""
    b = Builder()
    w, bias = b.const(RNG.integers(-127, 128, (C, 1, 1, C)), I8), b.const(np.zeros(C), DType.INT48)
    y = b.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), b.input("x", DType.INT16, (1, T, 1, C)), w, bias)
    y = b.emit(ops.Rescale(I32, (1 << 14,), (20,)), y)
    y = b.emit(ops.Add(), y, b.emit(ops.Reshape((1, T, 1, C)), b.emit(ops.Abs(), b.input("a", I32, (T, C)))))
    graph = b.finish([b.emit(ops.Reshape((T, C)), y)])
    after = fit_ranks(graph)
    assert not any(n.op.NAME == "RESHAPE" and n.inputs[0].dtype is DType.INT48 for n in after.nodes)
    assert reshapes(after) == 2
