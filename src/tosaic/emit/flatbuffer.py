"""Graph -> TOSA flatbuffer, through Arm's compiled `tosa_serializer`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
import tosa_serializer as ts

from tosaic.emit.layout import Constant, Statement, statement
from tosaic.errors import EmitError
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Names, Node, Value
from tosaic.tosa.types import DType

_DTYPE = {d: getattr(ts.DType, d.name) for d in DType}
_ENUMS: dict[Any, Any] = _DTYPE | {
    ops.Rounding.SINGLE: ts.RoundingMode.SINGLE_ROUND,
    ops.Rounding.DOUBLE: ts.RoundingMode.DOUBLE_ROUND,
    ops.Rounding.INEXACT: ts.RoundingMode.INEXACT_ROUND,
    ops.ResizeMode.NEAREST: ts.ResizeMode.NEAREST,
    ops.ResizeMode.BILINEAR: ts.ResizeMode.BILINEAR,
    ops.NanMode.PROPAGATE: ts.NanPropagationMode.PROPAGATE,
    ops.NanMode.IGNORE: ts.NanPropagationMode.IGNORE,
}


def serialize(graph: Graph) -> bytes:
    """The graph as a `.tosa` file, version 1.0; what control flow runs is a region each.

    Operands that this project keeps as attributes (zero points, shapes, multipliers, shifts) become CONST and
    CONST_SHAPE operators, shared where equal. Locations are kept.
    """
    file = ts.TosaSerializer("", targetMajor=1, targetMinor=0, targetPatch=0, targetDraft=False)
    names, regions = Names(), dict[int, str]()
    for part in graph.nested():
        regions[id(part)] = names.unique(part.name if regions else file.currRegion.name)
    for part in graph.nested():
        if part is not graph:
            file.startRegion(regions[id(part)])
            file.currRegion.addBasicBlock(regions[id(part)])
        _Writer(part, file.currRegion.currBasicBlock, regions).write()
    return file.serialize()


class _Writer:
    """Writes a graph into a block; `regions`: names of the regions that are graphs, by their id."""

    def __init__(self, graph: Graph, block: Any, regions: Mapping[int, str]) -> None:
        self.graph, self.block, self.regions = graph, block, regions
        self.shared: dict[tuple, str] = {}
        self.taken = {v.name for v in (*graph.inputs, *graph.constants())} | {v.name for n in graph.nodes for v in n.outputs}

    def write(self) -> None:
        for value in self.graph.inputs:
            self._tensor(value)
            self.block.addInput(value.name)
        for value in self.graph.constants():
            self._tensor(value)
            self._operator(ts.Op.CONST, [], [value.name], _none("ConstAttribute"), None)
        for node in self.graph.nodes:
            self._node(node)
        for value in self.graph.outputs:
            self.block.addOutput(value.name)

    def _tensor(self, value: Value) -> None:
        if max(value.shape, default=0) >= 1 << 31:
            raise EmitError(f"{value.type} does not fit a TOSA file, whose sizes have 32 bits")
        # data goes in as numbers; the serializer packs them by the type
        self.block.addTensor(value.name, list(value.shape), _DTYPE[value.dtype], value.data)

    def _operator(self, op: ts.Op, inputs: list[str], outputs: list[str], attribute: object, node: Node | None) -> None:
        location = ts.TosaOpLocation(str(node.location)) if node and node.location else ts.TosaOpLocation()
        self.block.addOperator(op, inputs, outputs, attribute, location)

    def _name(self, base: str) -> str:
        name, n = base, 0
        while name in self.taken:
            n += 1
            name = f"{base}_{n}"
        self.taken.add(name)
        return name

    def _const(self, constant: Constant) -> str:
        key = (constant.type, constant.data.tobytes())
        if key not in self.shared:
            value = Value(self._name(f"c{len(self.shared)}"), constant.type, constant.data)
            self._tensor(value)
            self._operator(ts.Op.CONST, [], [value.name], _none("ConstAttribute"), None)
            self.shared[key] = value.name
        return self.shared[key]

    def _shape(self, numbers: np.ndarray) -> str:
        key = ("shape", *numbers.tolist())
        if key not in self.shared:
            name = self._name(f"s{len(self.shared)}")
            self.block.addShape(name, len(numbers), np.frombuffer(numbers.astype("<i8").tobytes(), dtype=np.uint8))
            self._operator(ts.Op.CONST_SHAPE, [], [name], _none("ConstShapeAttribute"), None)
            self.shared[key] = name
        return self.shared[key]

    def _node(self, node: Node) -> None:
        for value in node.outputs:
            self._tensor(value)
        if isinstance(node.op, ops.ControlFlow):
            attribute = ts.TosaSerializerAttribute()
            getattr(attribute, f"{type(node.op).__name__}Attribute")(*(self.regions[id(part)] for part in node.op.graphs))
            self._operator(getattr(ts.Op, node.op.NAME), [v.name for v in node.inputs], [v.name for v in node.outputs], attribute, node)
            return
        said = statement(node)
        operands = [
            x.name if isinstance(x, Value) else self._shape(x.data) if i in said.shapes else self._const(x)
            for i, x in enumerate(said.operands)
        ]
        self._operator(getattr(ts.Op, node.op.NAME), operands, [v.name for v in node.outputs], _attributes(node.op, said), node)


def _none(kind: str) -> ts.TosaSerializerAttribute:
    attribute = ts.TosaSerializerAttribute()
    getattr(attribute, kind)()
    return attribute


def _attributes(op: ops.Op, said: Statement) -> ts.TosaSerializerAttribute:
    """The attribute table, whose fields the serializer takes by position."""
    fields = {name: _field(value) for name, value in said.attributes.items()}
    if "acc_type" in fields:
        fields["acc_type"] = fields.pop("acc_type")  # stands last here
    attribute = ts.TosaSerializerAttribute()
    getattr(attribute, f"{type(op).__name__.replace('Fft', 'FFT')}Attribute")(*fields.values())
    return attribute


def _field(value: Any) -> Any:
    if isinstance(value, Constant):  # limits are bytes of the operand's type
        return list(value.data.tobytes())
    return _ENUMS[value] if isinstance(value, enum.Enum) else value
