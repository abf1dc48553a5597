"""Operators with several results (FFT2D, RFFT2D) in every place that walks a graph."""

from __future__ import annotations

import numpy as np
import pytest

from tosaic.errors import GraphError, SpecError
from tosaic.execute.simulator import evaluate
from tosaic.optimize.pipeline import optimize
from tosaic.report.counts import count
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Node, Value, verify
from tosaic.tosa.spec import Spec
from tosaic.tosa.text import parse_graph
from tosaic.tosa.types import DType, TensorType

F32 = DType.FP32
PART = TensorType(F32, (1, 4, 3))


def spectrum() -> Graph:
    """Both results are read, one of them is an output too; a second transform has one result that nobody reads."""
    b = Builder("spectrum")
    x = b.input("x", F32, (4, 1, 4))
    turned = b.emit(ops.Transpose((1, 0, 2)), b.emit(ops.Transpose((1, 2, 0)), b.emit(ops.Transpose((2, 1, 0)), x)), name="turned")
    real, imaginary = b.emit_all(ops.RFft2d(), b.emit(ops.Reshape((1, 4, 4)), turned), names=["real", "imaginary"])
    power = b.emit(ops.Add(), b.emit(ops.Mul(), real, real), b.emit(ops.Mul(), imaginary, imaginary), name="power")
    _, unread = b.emit_all(ops.RFft2d(), b.emit(ops.Reshape((1, 4, 4)), turned), names=["second", "unread"])
    constants = b.const(np.arange(16.0).reshape(1, 4, 4), F32)
    fixed, _ = b.emit_all(ops.RFft2d(), constants, names=["fixed", "rest"])
    dead, _ = b.emit_all(ops.Fft2d(True), constants, constants, names=["dead", "too"])
    b.emit(ops.Exp(), dead)
    return b.finish([b.emit(ops.Add(), power, fixed, name="total"), imaginary, unread])


def test_optimized() -> None:
    graph, x = spectrum(), np.random.default_rng(1).normal(size=(4, 1, 4)).astype(np.float32)
    better = optimize(graph, evaluate)
    verify(better)
    assert [v.name for v in better.outputs] == [v.name for v in graph.outputs]
    assert [op.NAME for op in better.ops].count("RFFT2D") == 2 and not {ops.Fft2d, ops.Exp} & set(map(type, better.ops))
    for found, want in zip(evaluate(better, [x]), evaluate(graph, [x]), strict=True):
        np.testing.assert_array_equal(found, want)


def test_each_result_dies_on_its_own() -> None:
    seen = []
    evaluate(spectrum(), [np.zeros((4, 1, 4), np.float32)], watch=lambda value, array: seen.append(value.name))
    assert [n for n in seen if n in ("real", "imaginary", "dead", "too")] == ["real", "imaginary", "dead", "too"]


def test_text() -> None:
    graph = spectrum()
    assert "%real: f32[1,4,3], %imaginary: f32[1,4,3] = RFFT2D(%v_2)\n" in str(graph)
    data = {v.name: v.data for v in graph.constants() if v.data is not None}
    back = parse_graph(str(graph), data)
    verify(back)
    assert str(back) == str(graph)


def test_counts() -> None:
    counts = count(spectrum())
    assert counts.operators["RFFT2D"] == 3 and str(counts.spec) == "TOSA-1.0+FP+fft"


def test_undo_frees_all_names() -> None:
    b = Builder()
    x, mark = b.input("x", F32, (1, 4, 4)), b.mark()
    b.emit_all(ops.RFft2d(), x, names=["a", "b"])
    b.undo(mark)
    assert [v.name for v in b.emit_all(ops.RFft2d(), x, names=["b", "a"])] == ["b", "a"]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([PART], "RFFT2D: gives 2 results, found 1"),
        ([PART, PART, PART], "RFFT2D: gives 2 results, found 3"),
        ([PART, PART.with_shape((1, 4, 4))], r"result is f32\[1,4,3\], but %r1 is f32\[1,4,4\]"),
    ],
)
def test_verify_refuses(outputs: list[TensorType], message: str) -> None:
    x = Value("x", TensorType(F32, (1, 4, 4)))
    values = [Value(f"r{i}", t) for i, t in enumerate(outputs)]
    with pytest.raises(GraphError, match=message):
        verify(Graph("g", [x], values, [Node(ops.RFft2d(), (x,), tuple(values))]))


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        (ops.RFft2d(), [(1, 4, 6)], "height and width are powers of two"),
        (ops.RFft2d(), [(4, 4)], r"takes \[N,H,W\]"),
        (ops.Fft2d(False), [(1, 4, 4), (1, 4, 2)], "real and imaginary part differ"),
    ],
)
def test_rules_refuse(op: ops.Op, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        op.results(*(TensorType(F32, s) for s in shapes))


def test_one_result_is_asked_of_two() -> None:
    b = Builder()
    with pytest.raises(GraphError, match="gives 2 results, 1 are named"):
        b.emit(ops.RFft2d(), b.input("x", F32, (1, 4, 4)), name="only")


def test_needs_its_extension() -> None:
    with pytest.raises(SpecError, match="needs fft"):
        verify(spectrum(), Spec.parse("TOSA-1.0+FP"))
