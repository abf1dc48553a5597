"""What TOSA has and a graph of values has not: control flow, variables and custom operators are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tosa_serializer as ts

from tosaic.emit.read import read_tosa
from tosaic.errors import InputError
from tosaic.execute.reference import Reference

X = np.array([3, -4], np.int32)


def attribute(kind: str, *arguments: object) -> ts.TosaSerializerAttribute:
    made = ts.TosaSerializerAttribute()
    getattr(made, kind)(*arguments)
    return made


class File:
    """A file of regions with one block each, the first of which is the graph itself."""

    def __init__(self) -> None:
        self.file = ts.TosaSerializer("", targetMajor=1, targetMinor=0, targetPatch=0, targetDraft=False)
        self.block = self.file.currRegion.currBasicBlock

    def start(self, name: str) -> None:
        self.file.startRegion(name)
        self.file.currRegion.addBasicBlock(name)
        self.block = self.file.currRegion.currBasicBlock

    def input(self, name: str, shape: list[int], dtype: ts.DType = ts.DType.INT32) -> str:
        self.block.addTensor(name, shape, dtype, None)
        self.block.addInput(name)
        return name

    def emit(self, op: ts.Op, inputs: list[str], name: str, shape: list[int], attribute: object, dtype: ts.DType = ts.DType.INT32) -> str:
        self.block.addTensor(name, shape, dtype, None)
        self.block.addOperator(op, inputs, [name], attribute, ts.TosaOpLocation())
        return name

    def output(self, name: str) -> None:
        self.block.addOutput(name)

    def branch(self, name: str, op: ts.Op, kind: str) -> None:
        self.start(name)
        self.output(self.emit(op, [self.input(f"{name}_x", [2])], f"{name}_y", [2], attribute(kind)))


def cond_if() -> tuple[bytes, list[np.ndarray], np.ndarray]:
    f = File()
    operands = [f.input("which", [1], ts.DType.BOOL), f.input("x", [2])]
    f.output(f.emit(ts.Op.COND_IF, operands, "y", [2], attribute("CondIfAttribute", "then", "otherwise")))
    f.branch("then", ts.Op.ABS, "AbsAttribute")
    f.branch("otherwise", ts.Op.BITWISE_NOT, "BitwiseNotAttribute")
    return f.file.serialize(), [np.array([True]), X], np.abs(X)


def while_loop() -> tuple[bytes, list[np.ndarray], np.ndarray]:
    """Adds x to itself while it is below 20."""
    f = File()
    f.output(f.emit(ts.Op.WHILE_LOOP, [f.input("x", [1])], "y", [1], attribute("WhileLoopAttribute", "go_on", "body")))
    f.start("go_on")
    f.block.addTensor("limit", [1], ts.DType.INT32, np.array([20], np.int32))
    f.block.addOperator(ts.Op.CONST, [], ["limit"], attribute("ConstAttribute"), ts.TosaOpLocation())
    f.output(f.emit(ts.Op.GREATER, ["limit", f.input("c", [1])], "more", [1], attribute("GreaterAttribute"), ts.DType.BOOL))
    f.start("body")
    b = f.input("b", [1])
    f.output(f.emit(ts.Op.ADD, [b, b], "twice", [1], attribute("AddAttribute")))
    return f.file.serialize(), [np.array([3], np.int32)], np.array([24], np.int32)


CASES: dict[str, Callable[[], tuple[bytes, list[np.ndarray], np.ndarray]]] = {"COND_IF": cond_if, "WHILE_LOOP": while_loop}


@pytest.mark.parametrize("name", CASES)
def test_control_flow(name: str, tmp_path: Path) -> None:
    data, inputs, want = CASES[name]()
    (found,) = Reference().run(data, inputs, [want.dtype], [want.shape])
    np.testing.assert_array_equal(found, want)
    (tmp_path / "g.tosa").write_bytes(data)
    with pytest.raises(InputError, match=f"g.tosa: operator {name} is not supported: graphs here have no control flow"):
        read_tosa(tmp_path / "g.tosa")


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
