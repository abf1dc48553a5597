"""`.tosa` files of several regions, written by Arm's serializer alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tosa_serializer as ts

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


CONTROL_FLOW: dict[str, Callable[[], tuple[bytes, list[np.ndarray], np.ndarray]]] = {"COND_IF": cond_if, "WHILE_LOOP": while_loop}
