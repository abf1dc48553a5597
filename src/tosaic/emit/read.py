"""`.vgf` and `.tosa` files -> Graph, whoever wrote them.

What files state as constant operands (zero points, shapes, multipliers, shifts) become attributes again. A file that is
malformed, or computes with more than TOSA 1.0 operators, is one InputError.
"""

from __future__ import annotations

import dataclasses
import importlib
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import vgfpy

from tosaic.emit import spirv_read as spirv
from tosaic.emit.layout import LAYOUT, Constant, matching, operator
from tosaic.emit.spirv_read import unpack
from tosaic.errors import GraphError, InputError
from tosaic.tosa import container as vgf
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Location, Names, Value
from tosaic.tosa.types import DType, TensorType

R = TypeVar("R")


def read_vgf(path: Path | str) -> Graph:
    """The graph that a VGF file computes, named after the file; inputs and outputs have the names in the file.

    Constants stay in the file, which is mapped into memory, so that only what is used is read. Differences that do not show in
    results: the converter folds and reorders, int4 weights are stated as int8, and scalars are shape [1] inside (they are []
    again at the graph's border).

    Raises:
        InputError: the file cannot be read, is malformed, or has segments that are no TOSA graphs (compute shaders).
    """
    return _reading(path, lambda data, name: _Vgf(vgf.decode(data), name).graph())


def read_vgf_or_ports(path: Path | str) -> tuple[Graph, tuple[str, ...]]:
    """The graph of a VGF file; where segments are compute shaders, a graph of its inputs and outputs alone, and the names of those.

    Raises:
        InputError: as `read_vgf`, but for compute shaders.
    """

    def reading(data: memoryview, name: str) -> tuple[Graph, tuple[str, ...]]:
        file = _Vgf(vgf.decode(data), name)
        shaders = file.shaders()
        return (file.ports() if shaders else file.graph()), shaders

    return _reading(path, reading)


def read_tosa(path: Path | str) -> Graph:
    """The graph of a TOSA flatbuffer; constants stay in the file, as for `read_vgf`.

    Raises:
        InputError: the file cannot be read, is malformed, or has variables, custom operators or types beyond TOSA 1.0.
    """
    return _reading(path, _tosa)


def _reading(path: Path | str, function: Callable[[memoryview, str], R]) -> R:
    try:
        return function(vgf.map_file(path), Path(path).stem)
    except (InputError, GraphError) as error:
        raise InputError(f"{path}: {error.what}", where=error.where, remedy=error.remedy) from None
    # the flatbuffer accessors check nothing: a bad offset shows as whatever it leads to
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error, MemoryError) as error:
        raise InputError(f"{path}: malformed file: {error}") from None


MOST_WORDS = 1 << 25  # as many segments can have one module: a network of a million operators


class _Vgf:
    def __init__(self, container: vgf.Container, name: str) -> None:
        self.file = container
        self.builder = Builder(name)
        self.values: dict[int, Value] = {}  # by resource; scalars have shape [1], as in the modules
        self.outputs: dict[tuple[int, str], Value] = {}  # by resource and the name in the file
        self.words = 0  # of all segments

    def graph(self) -> Graph:
        if not self.file.segments:
            raise InputError("the VGF file has no segments")
        inputs, outputs = self._named("input"), self._named("output")
        # values are named as the modules name them, and must leave these free
        unique = _unique([name for _, name in (*inputs, *dict.fromkeys(outputs))])
        self.builder.reserve(unique[len(inputs) :])
        for (resource, _), name in zip(inputs, unique, strict=False):
            type_ = self._type(resource)
            value = self.builder.input(name, type_.dtype, type_.shape)
            self.values[resource] = value if type_.rank else self.builder.emit(ops.Reshape((1,)), value, name=f"{name}_1d")
        for segment in self.file.segments:
            self._segment(segment)
        for (resource, name), final in zip(dict.fromkeys(outputs), unique[len(inputs) :], strict=True):
            self.outputs[resource, name] = self._output(resource, final)
        return self.builder.finish([self.outputs[key] for key in outputs])

    def shaders(self) -> tuple[str, ...]:
        """Names of the segments that are no TOSA graphs."""
        return tuple(s.name for s in self.file.segments if self.file.modules[s.module].kind != vgfpy.ModuleType.Graph)

    def ports(self) -> Graph:
        """Inputs and outputs, which nothing computes."""
        inputs, outputs = self._named("input"), self._named("output")
        names = _unique([name for _, name in (*inputs, *outputs)])
        values = [Value(name, self._type(resource)) for name, (resource, _) in zip(names, (*inputs, *outputs), strict=True)]
        return Graph(self.builder.graph.name, values[: len(inputs)], values[len(inputs) :])

    def _named(self, kind: str) -> list[tuple[int, str]]:
        """The resources of all inputs or outputs, and their names in the file, or numbers where it has none."""
        bindings, names = (self.file.inputs, self.file.input_names) if kind == "input" else (self.file.outputs, self.file.output_names)
        return [(b.resource, names[i] if i < len(names) and names[i] else f"{kind}_{i}") for i, b in enumerate(bindings)]

    def _type(self, resource: int) -> TensorType:
        entry = self.file.resources[resource]
        if entry.format not in vgf.DTYPES or any(d <= 0 for d in entry.shape):
            raise InputError(f"resource {resource} is no tensor of a known type: VkFormat {entry.format}, shape {list(entry.shape)}")
        return TensorType(vgf.DTYPES[entry.format], entry.shape)

    def _segment(self, segment: vgf.Segment) -> None:
        source = self.file.modules[segment.module]
        if source.kind != vgfpy.ModuleType.Graph:
            raise no_graph(segment.name)
        if source.code is None:
            raise InputError(f"segment '{segment.name}' has no code in the file")
        self.words += len(source.code)
        if self.words > MOST_WORDS:
            raise InputError(f"the segments are more than {MOST_WORDS} words of SPIR-V together")
        data = {number: self.file.constants[index].data for number, index in segment.constants}
        module = spirv.Module(source.code, data)
        resources = {(set_, b.binding): b.resource for set_, bindings in segment.sets for b in bindings}
        inputs, outputs = ([resources.get(p, -1) for p in places] for places in module.interface(source.entry))
        missing = [r for r in inputs if r not in self.values]
        if missing or -1 in outputs:
            raise InputError(f"segment '{segment.name}' reads or writes a binding that the file does not define")
        results = module.build(self.builder, source.entry, [self.values[r] for r in inputs])
        for index, value in results.items():
            if index >= len(outputs):
                raise InputError(f"segment '{segment.name}' has no output {index}")
            self.values[outputs[index]] = value

    def _output(self, resource: int, name: str) -> Value:
        type_ = self._type(resource)
        if resource not in self.values:
            raise InputError(f"output '{name}' is not written by any segment")
        value = self.values[resource]
        if value.type != (type_ if type_.rank else type_.with_shape((1,))):
            raise InputError(f"output '{name}' is {type_} in the file, its segment gives {value.type}")
        if not type_.rank:
            value = self.builder.emit(ops.Reshape(()), value)
        elif value in self.outputs.values() or value in self.builder.graph.inputs:  # which have names already
            value = self.builder.emit(ops.Identity(), value)
        value.name = name
        return value


def no_graph(segment: str) -> InputError:
    """Why a segment cannot be read."""
    return InputError(
        f"segment '{segment}' is a compute shader, not a TOSA graph",
        remedy="tosaic inspect lists the segments; a Vulkan device runs them (--on vulkan)",
    )


def _unique(wanted: Sequence[str]) -> list[str]:
    """The names, with numbers behind those that stand there again."""
    names = Names()
    return [names.unique(name) for name in wanted]


def _tosa(data: memoryview, name: str) -> Graph:
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
