"""Graphs that are linked compute what they compute one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from tosaic.errors import GraphError
from tosaic.execute.simulator import evaluate
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, verify
from tosaic.tosa.link import Part, link
from tosaic.tosa.types import DType


def layer(factor: int) -> Graph:
    """x, bias -> y = factor x + bias, and its negative."""
    b = Builder()
    x, bias = b.input("x", DType.INT32, (2, 3)), b.input("bias", DType.INT32, (2, 3))
    y = b.emit(ops.Add(), b.emit(ops.Mul(), x, b.const(np.full((1, 1), factor), DType.INT32)), bias, name="y")
    return b.finish([y, b.emit(ops.Sub(), b.const(np.zeros((1, 1)), DType.INT32), y, name="minus")])


def part(factor: int, index: int) -> Part:
    return Part(layer(factor), f"layer{index}.", {"x": f"x{index}"}, {"y": f"x{index + 1}", "minus": f"minus{index}"})


def test_layers_in_a_row() -> None:
    whole = link("main", [part(3, 0), part(3, 1), part(5, 2)], ["x3", "minus1"])
    verify(whole)
    assert [v.name for v in whole.inputs] == ["x0", "bias"]  # which all layers share
    assert [v.name for v in whole.outputs] == ["x3", "minus1"]
    assert len(whole.constants()) == 3  # 3 and 0 are stored once
    x, bias = np.arange(6, dtype=np.int32).reshape(2, 3), np.full((2, 3), 7, np.int32)
    last, minus = evaluate(whole, [x, bias])
    np.testing.assert_array_equal(minus, -((3 * x + 7) * 3 + 7))
    np.testing.assert_array_equal(last, ((3 * x + 7) * 3 + 7) * 5 + 7)


def test_constants_are_not_copied() -> None:
    graph = layer(3)
    held = {id(v.data) for v in graph.constants()}
    assert {id(v.data) for v in link("main", [Part(graph, "a.")], ["y"]).constants()} <= held


def test_names_and_types_must_agree() -> None:
    with pytest.raises(GraphError, match=r"x1 is given twice, the second time by b\.y"):
        link("main", [part(3, 0), Part(layer(3), "b.", {}, {"y": "x1"})], ["x1"])
    with pytest.raises(GraphError, match="no part gives x9"):
        link("main", [part(3, 0)], ["x9"])
    b = Builder()
    other = b.finish([b.emit(ops.Abs(), b.input("x1", DType.INT32, (3, 2)), name="z")])
    with pytest.raises(GraphError, match=r"b\.x1 is i32\[3,2\], but x1 is i32\[2,3\]"):
        link("main", [part(3, 0), Part(other, "b.")], ["z"])
