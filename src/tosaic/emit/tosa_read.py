"""TOSA flatbuffer -> Graph, through the accessors that tosa-tools ships, which check nothing."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tosaic.emit.layout import LAYOUT, Constant, matching, operator
from tosaic.emit.spirv_read import unpack
from tosaic.errors import InputError
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Location, Names, Value
from tosaic.tosa.types import DType, TensorType


def graph(data: memoryview, name: str) -> Graph:
    """The graph of a TOSA flatbuffer's bytes, named as given; see `read.read_tosa`."""
    from tosa.TosaGraph import TosaGraph  # late: a hundred generated modules

    if data[4:8] != b"TOSA":
        raise InputError("not a TOSA flatbuffer")
    file = TosaGraph.GetRootAs(data)
    if (version := file.Version()) is None or version._Major() != 1:
        raise InputError("only TOSA 1.x is supported")
    if file.RegionsLength() == 0 or file.Regions(0).BlocksLength() == 0:
        raise InputError("the file has no graph")
    return _TosaFile(file, data, name).graph(0)


# what TOSA has, and a graph of values has not; a .vgf cannot hold it either
_BEYOND = {
    **dict.fromkeys(("VARIABLE", "VARIABLE_READ", "VARIABLE_WRITE"), "graphs here keep nothing from one run to the next"),
    "CUSTOM": "only its maker knows what it computes",
}


# bytes read for each byte of the file: names stand there once and are referred to
_READ_AGAIN = 64
DEEPEST = 64  # graphs within graphs; TOSA's level 8K has 256, which Python's stack does not hold


class _TosaFile:
    """The regions of a file, each of which is a graph: the first, and those that control flow runs."""

    def __init__(self, file: Any, data: memoryview, name: str) -> None:
        self.file, self.data, self.left = file, data, _READ_AGAIN * len(data)
        regions = list(self.all(file.Regions, file.RegionsLength()))
        self.places: dict[bytes | None, int] = {region.Name(): i for i, region in reversed([*enumerate(regions)])}
        self.names, self.depth = Names(), 0
        self.own_name = self.names.unique(name)
        self.graphs: dict[int, Graph] = {}

    def graph(self, place: int) -> Graph:
        if place not in self.graphs:
            if self.depth > DEEPEST:
                raise InputError(f"control flow is nested more than {DEEPEST} deep, or a graph runs itself")
            region = self.file.Regions(place)
            if not region.BlocksLength():
                raise InputError(f"region {place} has no graph")
            self.depth += 1
            name = self.names.unique(self.text(region.Name() or b"graph")) if place else self.own_name
            self.graphs[place] = _TosaBlock(region.Blocks(0), self, name).graph()
            self.depth -= 1
        return self.graphs[place]

    def named(self, name: bytes | None) -> Graph:
        if name not in self.places:
            raise InputError(f"there is no region '{self.text(name or b'')}'")
        return self.graph(self.places[name])

    def all(self, accessor: Callable[[int], Any], length: int) -> Iterator[Any]:
        """The elements of a vector."""
        self.spend(_READ_AGAIN * length)  # any element takes some bytes of the file
        return map(accessor, range(length))

    def text(self, text: bytes) -> str:
        self.spend(len(text))
        return text.decode()

    def spend(self, size: int) -> None:
        """Account for what is read: a few bytes can refer to the same place often."""
        self.left -= size
        if self.left < 0:
            raise InputError("the file refers to the same bytes too often")


class _TosaBlock:
    """One basic block, through the flatbuffer accessors that tosa-tools ships."""

    def __init__(self, block: Any, file: _TosaFile, name: str) -> None:
        from tosa import Attribute, DType, Op

        self.block, self.file, self.data = block, file, file.data
        self.builder = Builder(name)
        self.tensors = {self.file.text(t.Name()): t for t in self.file.all(block.Tensors, block.TensorsLength())}
        self.shapes = {self.file.text(s.Name()): s for s in self.file.all(block.Shapes, block.ShapesLength())}
        self.values: dict[str, Value | Constant] = {}
        self.op_names, self.kinds, self.dtypes = (_by_number(c) for c in (Op.Op, Attribute.Attribute, DType.DType))

    def graph(self) -> Graph:
        block = self.block
        for name in map(self.file.text, self.file.all(block.Inputs, block.InputsLength())):
            type_ = self._type(name)
            self.values[name] = self.builder.input(name, type_.dtype, type_.shape)
        for node in self.file.all(block.Operators, block.OperatorsLength()):
            self._node(node)
        outputs = [self.values[n] for n in map(self.file.text, self.file.all(block.Outputs, block.OutputsLength()))]
        return self.builder.finish([v if isinstance(v, Value) else v.value(self.builder) for v in outputs])

    def _type(self, name: str) -> TensorType:
        tensor = self.tensors[name]
        kind = self.dtypes[tensor.Type()]
        shape = tuple(self.file.all(tensor.Shape, tensor.ShapeLength()))
        if kind not in DType.__members__ or tensor.IsUnranked() or tensor.Variable() or any(d <= 0 for d in shape):
            raise InputError(f"tensor '{name}' ({kind}, shape {list(shape)}) is not supported")
        return TensorType(DType[kind], shape)

    def _node(self, node: Any) -> None:
        kind, names = self.op_names[node.Op()], [*map(self.file.text, self.file.all(node.Outputs, node.OutputsLength()))]
        if kind not in (*LAYOUT, *ops.CONTROL_FLOW, "CONST", "CONST_SHAPE"):
            raise InputError(f"operator {kind} is not supported" + (f": {_BEYOND[kind]}" if kind in _BEYOND else ""))
        if not names:
            raise InputError(f"operator {kind} has no result")
        for name in names:
            if name in self.values or names.count(name) > 1:
                raise InputError(f"'{name}' is written twice")
        name = names[0]
        if kind == "CONST":
            type_ = self._type(name)
            self.values[name] = Constant(type_, unpack(_needed(self._bytes(self.tensors[name]), type_), type_), name)
        elif kind == "CONST_SHAPE":
            self.file.spend(self.shapes[name].DataLength())
            numbers = np.frombuffer(bytes(self.shapes[name].DataAsNumpy() if self.shapes[name].DataLength() else b""), "<i8")
            self.values[name] = Constant(TensorType(DType.INT32, (len(numbers),)), numbers)
        else:
            operands = [self.values[n] for n in map(self.file.text, self.file.all(node.Inputs, node.InputsLength()))]
            where = self.file.text(node.Location().Text()) if node.Location() is not None and node.Location().Text() else ""
            location = Location.parse(where) if where else None
            results = [self._type(name) for name in names]
            if kind in ops.CONTROL_FLOW:
                values = self._control_flow(node, kind, operands, results, names, location)
            else:
                attributes = self._attributes(node, kind, operands)
                values = operator(self.builder, kind, attributes, operands, results, outputs=names, location=location)
            self.values |= zip(names, values, strict=True)

    def _control_flow(
        self,
        node: Any,
        kind: str,
        operands: Sequence[Value | Constant],
        results: Sequence[TensorType],
        names: Sequence[str],
        location: Location | None,
    ) -> tuple[Value, ...]:
        cls = ops.CONTROL_FLOW[kind]
        graphs = {
            name: self.file.named(graph) for name, graph in self._table(node, kind, [f.name for f in dataclasses.fields(cls)]).items()
        }
        tensors = [v if isinstance(v, Value) else v.value(self.builder) for v in operands]
        with self.builder.at(names[0], location):
            values = self.builder.emit_all(cls(**graphs), *tensors, names=names)
        matching(kind, values, results)
        return values

    def _attributes(self, node: Any, kind: str, operands: list[Value | Constant]) -> dict[str, Any]:
        result = self._table(node, kind, LAYOUT[kind][0].split())
        if "acc_type" in result:
            result["acc_type"] = DType[self.dtypes[result["acc_type"]]]
        if kind == "CLAMP":  # limits are bytes of the operand's type
            dtype = operands[0].type.dtype.numpy
            for key in ("min_val", "max_val"):
                result[key] = np.frombuffer(bytes(result[key])[: dtype.itemsize], dtype)[0].item()
                result[key] = float(result[key]) if operands[0].type.dtype.is_float else result[key]
        return result

    def _table(self, node: Any, kind: str, names: Sequence[str]) -> dict[str, Any]:
        """Fields of an operator's table of attributes."""
        if not names:
            return {}
        class_name = self.kinds[node.AttributeType()]
        if class_name.removesuffix("Attribute").upper() != kind.replace("_", ""):
            raise InputError(f"{kind} has attributes of {class_name}")
        table = getattr(importlib.import_module(f"tosa.{class_name}"), class_name)()
        table.Init(node.Attribute().Bytes, node.Attribute().Pos)
        return {name: _field(table, name) for name in names}

    def _bytes(self, tensor: Any) -> np.ndarray:
        self.file.spend(tensor.Size() + tensor.DataLength())
        if tensor.Size():  # large data lie behind the flatbuffer
            if tensor.Offset() + tensor.Size() > len(self.data):
                raise InputError("the file is truncated")
            return np.frombuffer(self.data, np.uint8, tensor.Size(), tensor.Offset())
        return tensor.DataAsNumpy() if tensor.DataLength() else np.empty(0, np.uint8)


def _needed(raw: np.ndarray, type_: TensorType) -> np.ndarray:
    """A constant's bytes without what stands behind them, as Arm's own readers take them: ExecuTorch (1.5.1) writes one weight_zp
    for each channel into the only element that a convolution's has."""
    return raw[: type_.nbytes]


def _by_number(enumeration: type) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _field(table: Any, name: str) -> Any:
    """A field of a generated flatbuffer table: a number, or a list when it is a vector."""
    accessor = "".join(part.capitalize() for part in name.split("_"))
    if hasattr(table, f"{accessor}Length"):
        return [getattr(table, accessor)(i) for i in range(min(getattr(table, f"{accessor}Length")(), 1024))]
    return getattr(table, accessor)()
