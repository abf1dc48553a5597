"""Memory that running a graph takes, computed before it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tosaic import processes
from tosaic.artifact import load
from tosaic.emit.flatbuffer import serialize
from tosaic.errors import ExecuteError
from tosaic.execute import budget
from tosaic.execute.simulator import Simulator
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Value
from tosaic.tosa.ops import I8, I16, I32, I48

KIB = 1024


def _graph(body: Callable[[Builder, Value], Value | list[Value]], dtype: ops.DType = I8) -> Graph:
    build = Builder("net")
    made = body(build, build.input("x", dtype, (1, 1, KIB, 1)))
    return build.finish(made if isinstance(made, list) else [made])


def _inverted(b: Builder, x: Value, times: int) -> list[Value]:
    values = [x]
    for i in range(times):
        values.append(b.emit(ops.BitwiseNot(), values[-1], name=f"not{i}"))
    return values


def _first(b: Builder, x: Value) -> Value:
    return b.emit(ops.Slice((0, 0, 0, 0), (1, 1, 1, 1)), x)


def _convolved(b: Builder, x: Value) -> Value:
    weights, bias = b.const(np.ones((4, 1, 1, 1)), I8), b.const(np.zeros(1), I32)
    return b.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, weights, bias, name="sums")


def _scaled(b: Builder, x: Value) -> Value:
    return b.emit(ops.Rescale(I8, (1 << 30,), (31,)), x, name="scaled")


@pytest.mark.parametrize(
    ("graph", "want", "at"),
    [
        (_graph(lambda b, x: x), KIB, "x"),
        (_graph(lambda b, x: _inverted(b, x, 9)[-1]), 3 * KIB, "not1"),  # the input, what is read, and what is written
        (_graph(lambda b, x: _inverted(b, x, 9)[1:]), 10 * KIB, "not8"),
        (_graph(lambda b, x: b.emit(ops.Tile((1, 8, 1, 2)), x, name="tiled")), 17 * KIB, "tiled"),
        (_graph(lambda b, x: b.emit(ops.Transpose((2, 0, 1, 3)), b.emit(ops.Reshape((KIB, 1, 1, 1)), x))), KIB, "x"),
        (_graph(lambda b, x: _inverted(b, _first(b, _inverted(b, x, 1)[-1]), 1)[-1]), 2 * KIB + 1, "not0_1"),
        (_graph(lambda b, x: _convolved(b, x)), 17 * KIB, "sums"),
        (_graph(lambda b, x: _scaled(b, _convolved(b, x))), 5 * KIB, "scaled"),
        (_graph(lambda b, x: [s := _convolved(b, x), _scaled(b, s)]), 21 * KIB, "scaled"),
        (_graph(lambda b, x: b.emit(ops.Cast(I32), x, name="wide"), I16), 6 * KIB, "wide"),
        (_graph(lambda b, x: b.emit(ops.Identity(), b.const(np.zeros(KIB), I48), name="same")), 9 * KIB, "same"),
    ],
)  # fmt: skip
def test_peak(graph: Graph, want: int, at: str) -> None:
    most, value = budget.peak(graph)
    assert (most, value.name) == (want, at)


def _crossed(b: Builder, x: Value) -> Value:
    return b.emit(ops.BitwiseAnd(), *(b.emit(ops.Tile(m), x) for m in ((1 << 15, 1, 1, 1), (1, 1 << 15, 1, 1))), name="y")


HUGE = [
    (_graph(lambda b, x: b.emit(ops.Tile((1 << 20, 1 << 20, 1, 1)), x, name="y")), "1,048,576.0"),
    (_graph(lambda b, x: b.emit(ops.Pad((0, (1 << 20) - 1, 0, (1 << 20) - 1, 0, 0, 0, 0)), x, name="y")), "1,048,576.0"),
    (_graph(_crossed), "1,024.1"),
]


@pytest.mark.parametrize(("graph", "gib"), HUGE, ids=["TILE", "PAD", "broadcast"])
def test_refuses_what_no_machine_holds(graph: Graph, gib: str, tmp_path: Path) -> None:
    (tmp_path / "g.tosa").write_bytes(serialize(graph))
    message = rf"running g takes {re.escape(gib)} GiB at %y \({re.escape(str(graph.outputs[0].type))}\), and [\d.,]+ GiB are free"
    for call in (lambda a: a.run(np.zeros((1, 1, KIB, 1), np.int8)), lambda a: a.verify(on=[])):
        with pytest.raises(ExecuteError, match=message):
            call(load(tmp_path / "g.tosa"))


def test_inputs_that_no_machine_holds_are_not_made_up(tmp_path: Path) -> None:
    build = Builder()
    (tmp_path / "g.tosa").write_bytes(serialize(build.finish([build.emit(ops.Abs(), build.input("x", I32, (1 << 20, 1 << 20)))])))
    with pytest.raises(ExecuteError, match=r"running g takes 8,192[.]0 GiB"):
        load(tmp_path / "g.tosa").verify(on=[])


def test_the_limit_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _graph(lambda b, x: b.emit(ops.Tile((1, 3 << 19, 1, 1)), x))  # 1.5 GiB
    monkeypatch.setenv("TOSAIC_MEMORY_LIMIT", "1.25")
    with pytest.raises(ExecuteError, match=r"takes 1.5 GiB at .*, and 1.2 GiB are free"):
        Simulator(graph)
    monkeypatch.setenv("TOSAIC_MEMORY_LIMIT", "1.75")
    Simulator(graph)


def test_free_memory_is_some_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOSAIC_MEMORY_LIMIT", raising=False)
    assert 1 << 24 < processes.free_memory() <= processes._installed() * 2**30
