"""Control flow in `.tosa` files: read, written and run as Arm's reference model does; and what is refused in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tosa_serializer as ts
from tosa_files import CONTROL_FLOW, File, X, attribute

from tosaic.artifact import load
from tosaic.emit.flatbuffer import serialize
from tosaic.emit.read import read_tosa
from tosaic.errors import EmitError, ExecuteError, GraphError, InputError, SpecError
from tosaic.execute import ops_control
from tosaic.execute.reference import Reference
from tosaic.execute.simulator import evaluate
from tosaic.report.counts import count
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, verify
from tosaic.tosa.ops import I8, I32, B
from tosaic.tosa.spec import Spec
from tosaic.tosa.text import parse_graph
from tosaic.verification import EQUAL, MISSING

Body = Callable[..., object]


def graph(name: str, body: Body, *types: tuple[ops.DType, tuple[int, ...]]) -> Graph:
    """A graph of what `body` emits: it gets the builder and the inputs."""
    build = Builder(name)
    made = body(build, *(build.input(f"{name}_{i}", *type_) for i, type_ in enumerate(types)))
    return build.finish(made if isinstance(made, list) else [made])


PAIR, FLAG = (I32, (2,)), (B, (1,))


def is_below(limit: int) -> Body:
    """Whether the largest element is below a constant."""
    return lambda b, x: b.emit(ops.Greater(), b.const(np.array([limit]), I32), b.emit(ops.ReduceMax(0), x))


def doubled(b: Builder, x: object) -> object:
    return b.emit(ops.Add(), x, x)


ABS = graph("absolute", lambda b, x: b.emit(ops.Abs(), x), PAIR)
NOT = graph("inverted", lambda b, x: b.emit(ops.BitwiseNot(), x), PAIR)
DOUBLE = graph("double", doubled, PAIR)
BELOW = graph("below", is_below(20), PAIR)
EITHER, UNTIL = ops.CondIf(ABS, NOT), ops.WhileLoop(BELOW, DOUBLE)
SWAP = ops.CondIf(graph("swap", lambda b, x, y: [y, x], PAIR, PAIR), graph("sum", lambda b, x, y: [x, b.emit(ops.Add(), x, y)], PAIR, PAIR))
GRAPHS = {
    "one of two": graph("main", lambda b, c, x: b.emit(EITHER, c, x), FLAG, PAIR),
    "a loop": graph("main", lambda b, c, x: [b.emit(UNTIL, x), c], FLAG, PAIR),
    "a choice in a loop": graph(
        "main",
        lambda b, c, x: b.emit(ops.WhileLoop(BELOW, graph("step", lambda b, x: doubled(b, b.emit(EITHER, is_below(0)(b, x), x)), PAIR)), x),
        FLAG,
        PAIR,
    ),
    "a loop in a choice": graph(
        "main",
        lambda b, c, x: b.emit(ops.CondIf(graph("long", lambda b, x: b.emit(UNTIL, x), PAIR), NOT), c, x),
        FLAG,
        PAIR,
    ),
    "several results": graph("main", lambda b, c, x: list(b.emit_all(SWAP, c, x, b.emit(ops.Abs(), x), names=["a", "b"])), FLAG, PAIR),
    "a graph of two operators": graph("main", lambda b, c, x: b.emit(UNTIL, b.emit(EITHER, c, b.emit(EITHER, c, x))), FLAG, PAIR),
    "constant operands": graph("main", lambda b, c, x: doubled(b, b.emit(EITHER, c, b.const(np.array([-5, 6]), I32))), FLAG, PAIR),
    "a name of the file's own": graph("g", lambda b, c, x: b.emit(ops.CondIf(graph("main", doubled, PAIR), NOT), c, x), FLAG, PAIR),
}


@pytest.mark.parametrize("x", [X, np.array([25, 1], np.int32)], ids=str)
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_equals_the_reference_model(name: str, flag: bool, x: np.ndarray, reference) -> None:
    inputs = [np.array([flag]), x]
    verify(GRAPHS[name], Spec.parse("TOSA-1.0+INT+cf"))
    for found, want in zip(evaluate(GRAPHS[name], inputs), reference(GRAPHS[name], inputs), strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "main.tosa").write_bytes(serialize(GRAPHS[name]))
    found, inputs = read_tosa(tmp_path / "main.tosa"), [np.array([True]), X]
    assert sorted(op.NAME for part in found.nested() for op in part.ops) == sorted(op.NAME for p in GRAPHS[name].nested() for op in p.ops)
    for a, b in zip(evaluate(found, inputs), evaluate(GRAPHS[name], inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert serialize(found) == serialize(GRAPHS[name])


@pytest.mark.parametrize("name", GRAPHS)
def test_the_text_parses(name: str) -> None:
    text = str(GRAPHS[name])
    found = parse_graph(text)
    assert str(found) == text
    inputs = [np.array([False]), X]
    np.testing.assert_array_equal(evaluate(found, inputs)[0], evaluate(GRAPHS[name], inputs)[0])


def test_a_text_must_have_the_graphs_that_it_names() -> None:
    with pytest.raises(GraphError, match="COND_IF: graph inverted does not follow"):
        parse_graph(str(GRAPHS["one of two"]).replace("graph inverted", "graph other"))


@pytest.mark.parametrize("name", CONTROL_FLOW)
def test_files_of_others(name: str, tmp_path: Path) -> None:
    data, inputs, want = CONTROL_FLOW[name]()
    (tmp_path / "g.tosa").write_bytes(data)
    artifact = load(tmp_path / "g.tosa")
    np.testing.assert_array_equal(artifact.run(inputs)[0], want)
    np.testing.assert_array_equal(Reference().run(data, inputs, [want.dtype], [want.shape])[0], want)
    found = artifact.verify(inputs)
    assert [(c.executor, c.verdict) for c in found.checks] == [("simulator", EQUAL), ("reference", EQUAL), ("vulkan", MISSING)]
    assert found.checks[-1].detail == f"graphs of Vulkan have no {name}"
    with pytest.raises(EmitError, match=f"a .vgf cannot hold {name}"):
        artifact.save(tmp_path / "g.vgf")


def test_counts_include_what_runs_inside() -> None:
    found = count(GRAPHS["a choice in a loop"])
    # ABS and BITWISE_NOT of the choice; the limits of both conditions
    assert found.operators == {"GREATER": 2, "REDUCE_MAX": 2, "WHILE_LOOP": 1, "COND_IF": 1, "ADD": 1, "ABS": 1, "BITWISE_NOT": 1}
    assert found.weight_bytes == 8 and str(found.spec) == "TOSA-1.0+INT+cf"


def test_control_flow_needs_its_extension() -> None:
    with pytest.raises(SpecError, match=r"COND_IF\(i1\[1\], i32\[2\]\) needs cf"):
        verify(GRAPHS["one of two"], Spec.parse("TOSA-1.0+INT"))


def test_what_runs_inside_must_fit_too() -> None:
    wide = graph("wide", lambda b, x: b.emit(ops.Rescale(I32, (1 << 14,), (14,)), x), (I8, (2,)))
    outer = graph("main", lambda b, c, x: b.emit(ops.CondIf(wide, wide), c, x), FLAG, (I8, (2,)))
    verify(outer, Spec.parse("TOSA-1.0+INT+cf"))
    with pytest.raises(SpecError, match="RESCALE"):
        verify(outer, Spec.parse("TOSA-1.0+FP+cf"))


NARROW = graph("narrow", lambda b, x: x, (I32, (1,)))


@pytest.mark.parametrize(
    ("op", "types", "message"),
    [
        (EITHER, [(B, (2,)), PAIR], r"COND_IF: the condition is one boolean, found i1\[2\]"),
        (EITHER, [PAIR, PAIR], r"COND_IF: takes i1, found i32\[2\]"),
        (EITHER, [], "COND_IF: takes operands, found none"),
        (EITHER, [FLAG], r"COND_IF: graph absolute takes \(i32\[2\]\), found \(\)"),
        (ops.CondIf(ABS, NARROW), [FLAG, PAIR], r"COND_IF: graph narrow takes \(i32\[1\]\), found \(i32\[2\]\)"),
        (ops.CondIf(ABS, BELOW), [FLAG, PAIR], r"COND_IF: graph below gives \(i1\[1\]\), expected \(i32\[2\]\)"),
        (UNTIL, [(I32, (1,))], r"WHILE_LOOP: graph below takes \(i32\[2\]\), found \(i32\[1\]\)"),
        (ops.WhileLoop(BELOW, BELOW), [PAIR], r"WHILE_LOOP: graph below gives \(i1\[1\]\), expected \(i32\[2\]\)"),
        (ops.WhileLoop(ABS, DOUBLE), [PAIR], r"WHILE_LOOP: the condition is one boolean, found \(i32\[2\]\)"),
    ],
)
def test_refuses(op: ops.Op, types: list, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph("main", lambda b, *operands: b.emit(op, *operands), *types)


def nested(kind: str) -> bytes:
    """A file whose graphs do not end, or are not there."""
    f = File()
    f.output(f.emit(ts.Op.COND_IF, [f.input("c", [1], ts.DType.BOOL)], "y", [1], attribute("CondIfAttribute", "r0", "r0"), ts.DType.BOOL))
    for i in range(0 if kind == "missing" else 100):
        f.start(f"r{i}")
        c, inner = f.input(f"c{i}", [1], ts.DType.BOOL), "r0" if kind == "itself" else f"r{i + 1}"
        if i < 99:
            f.emit(ts.Op.COND_IF, [c], f"y{i}", [1], attribute("CondIfAttribute", inner, inner), ts.DType.BOOL)
        else:
            f.emit(ts.Op.LOGICAL_NOT, [c], f"y{i}", [1], attribute("LogicalNotAttribute"), ts.DType.BOOL)
        f.output(f"y{i}")
    return f.file.serialize()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no region 'r0'"),
        ("itself", "control flow is nested more than 64 deep, or a graph runs itself"),
        ("deep", "control flow is nested more than 64 deep, or a graph runs itself"),
    ],
)
def test_refuses_files(kind: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.tosa").write_bytes(nested(kind))
    with pytest.raises(InputError, match=message):
        read_tosa(tmp_path / "g.tosa")


def test_a_loop_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_control, "MOST_TURNS", 100)
    with pytest.raises(ExecuteError, match="WHILE_LOOP: graph below still asks for more after 100 turns"):
        evaluate(GRAPHS["a loop"], [np.array([True]), np.zeros(2, np.int32)])


def test_several_samples_run_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "g.tosa").write_bytes(serialize(GRAPHS["one of two"]))
    (found,) = load(tmp_path / "g.tosa").run([np.array([True, False]), np.array([3, -4, 3, -4], np.int32)])
    np.testing.assert_array_equal(found, [3, 4, ~3, ~-4])


@pytest.mark.parametrize(
    ("op", "kind", "message"),
    [
        (ts.Op.VARIABLE_WRITE, "VariableWriteAttribute", "operator VARIABLE_WRITE is not supported: graphs here keep nothing from one run"),
        (ts.Op.VARIABLE_READ, "VariableReadAttribute", "operator VARIABLE_READ is not supported: graphs here keep nothing from one run"),
        (ts.Op.VARIABLE, "VariableAttribute", "operator VARIABLE is not supported: graphs here keep nothing from one run"),
        (ts.Op.CUSTOM, "AbsAttribute", "operator CUSTOM is not supported: only its maker"),
        (ts.Op.DIM, "DimAttribute", "operator DIM is not supported"),
    ],
)
def test_by_name(op: ts.Op, kind: str, message: str, tmp_path: Path) -> None:
    f = File()
    made = attribute(kind, *([0] if op is ts.Op.DIM else []))
    f.block.addOperator(op, [f.input("x", [2])], [], made, ts.TosaOpLocation())
    f.output("x")
    (tmp_path / "g.tosa").write_bytes(f.file.serialize())
    with pytest.raises(InputError, match=message):
        read_tosa(tmp_path / "g.tosa")


def test_the_reference_model_has_no_variables_either() -> None:
    def run(variable: bool) -> list[np.ndarray]:
        f = File()
        if variable:
            f.block.addTensor("v", [2], ts.DType.INT32, X, variable=True, variable_name="v")
            f.block.addOperator(ts.Op.VARIABLE, [], ["v"], attribute("VariableAttribute"), ts.TosaOpLocation())
        f.output(f.emit(ts.Op.ABS, [f.input("x", [2])], "y", [2], attribute("AbsAttribute")))
        return Reference().run(f.file.serialize(), [X], [X.dtype], [(2,)])

    np.testing.assert_array_equal(run(False)[0], abs(X))
    with pytest.raises(ExecuteError, match="the TOSA reference model"):
        run(True)


def test_an_error_is_no_longer_than_one_reads(tmp_path: Path) -> None:
    f, name = File(), "n" * 5000
    f.input("x", [2])
    for _ in range(2):
        f.emit(ts.Op.ABS, ["x"], name, [2], attribute("AbsAttribute"))
    (tmp_path / "g.tosa").write_bytes(f.file.serialize())
    with pytest.raises(InputError, match=r"g[.]tosa: 'nnn") as error:
        read_tosa(tmp_path / "g.tosa")
    assert len(str(error.value)) < 1200
