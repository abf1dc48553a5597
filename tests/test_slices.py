"""Slices of one element along an axis, as a stacked projection is taken apart: which lose the axis, and that the elements stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tosaic.execute.simulator import evaluate
from tosaic.optimize.slices import merge_sliced_axes
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Value, verify
from tosaic.tosa.types import DType

SHAPE = (2, 5, 3, 4, 1, 6)  # batch, tokens, parts, heads, nothing, features
AXIS = 2


def one(b: Builder, x: Value, index: int, axis: int = AXIS) -> Value:
    """SLICE of one element along an axis."""
    start = tuple(index if i == axis else 0 for i in range(len(x.shape)))
    return b.emit(ops.Slice(start, tuple(1 if i == axis else d for i, d in enumerate(x.shape))), x)


def flat(b: Builder, x: Value) -> Value:
    return b.emit(ops.Reshape((2, x.type.size // 2)), x)


def moved(b: Builder, x: Value, seed: int) -> Value:
    return b.emit(ops.Transpose(tuple(int(i) for i in np.random.default_rng(seed).permutation(len(x.shape)))), x)


def both(build: Callable[[Builder, Value], list[Value]]) -> tuple[Graph, Graph]:
    """Before and after, the same elements."""
    b = Builder()
    x = b.input("x", DType.INT8, (10, 72))
    graph = b.finish(build(b, b.emit(ops.Reshape(SHAPE), x)))
    after = merge_sliced_axes(graph)
    verify(after)
    data = np.random.default_rng(0).integers(-128, 128, (10, 72)).astype(np.int8)
    for found, expected in zip(evaluate(after, [data]), evaluate(graph, [data]), strict=True):
        np.testing.assert_array_equal(found, expected)
    return graph, after


def ranks(graph: Graph) -> set[int]:
    return {len(n.output.shape) for n in graph.nodes if isinstance(n.op, ops.Slice)}


@pytest.mark.parametrize("seed", range(12))
def test_merged(seed: int) -> None:
    def parts(b: Builder, x: Value) -> list[Value]:
        return [flat(b, moved(b, one(b, x, i), seed + i) if (seed + i) % 3 else one(b, x, i)) for i in range(3)]

    before, after = both(parts)
    assert len(after.ops) <= len(before.ops)
    assert ranks(before) == {6} and ranks(after) == {4}
    assert merge_sliced_axes(after) is after


def test_what_has_the_wanted_shape_needs_no_reshape() -> None:
    """[tokens, 3, heads, features] to [heads, tokens, features]."""
    b = Builder()
    x = b.emit(ops.Reshape((1, 5, 3, 4, 6)), b.input("x", DType.INT16, (1, 5, 72)))
    heads = [b.emit(ops.Reshape((4, 5, 6)), b.emit(ops.Transpose((2, 0, 3, 1, 4)), one(b, x, i))) for i in range(3)]
    after = merge_sliced_axes(b.finish(heads))
    assert [type(op) for op in after.ops] == [ops.Reshape, *[ops.Slice, ops.Transpose] * 3]


APART = {
    "another reader": lambda b, x: [flat(b, one(b, x, 0)), b.emit(ops.Abs(), b.emit(ops.Cast(DType.INT32), x))],
    "two axes": lambda b, x: [flat(b, one(b, x, 0)), flat(b, one(b, x, 0, 3))],
    "the last axis": lambda b, x: [flat(b, one(b, x, i, 5)) for i in range(2)],
    "several elements": lambda b, x: [flat(b, b.emit(ops.Slice((0,) * 6, (2, 5, 2, 4, 1, 6)), x))],
    "no reshape behind": lambda b, x: [flat(b, one(b, x, 0)), b.emit(ops.Reverse(1), one(b, x, 1))],
    "an output": lambda b, x: [one(b, x, 0), flat(b, one(b, x, 1))],
}


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    before, after = both(APART[name])
    assert after is before
