"""`.vgf` and `.tosa` files -> Graph, whoever wrote them.

What files state as constant operands (zero points, shapes, multipliers, shifts) become attributes again. A file that is
malformed, or computes with more than TOSA 1.0 operators, is one InputError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import vgfpy

from tosaic.emit import spirv_read as spirv
from tosaic.emit import tosa_read
from tosaic.errors import GraphError, InputError
from tosaic.tosa import container as vgf
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Names, Value
from tosaic.tosa.types import TensorType

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
    return _reading(path, tosa_read.graph)


def _reading(path: Path | str, function: Callable[[memoryview, str], R]) -> R:
    try:
        return function(vgf.map_file(path), Path(path).stem)
    except (InputError, GraphError) as error:  # names and shapes of a file may be as long as the file
        what = error.what if len(error.what) <= MOST_SAID else f"{error.what[:MOST_SAID]}..."
        raise InputError(f"{path}: {what}", where=error.where, remedy=error.remedy) from None
    # the flatbuffer accessors check nothing: a bad offset shows as whatever it leads to
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error, MemoryError) as error:
        raise InputError(f"{path}: malformed file: {error}") from None


MOST_SAID = 1000  # letters of an error
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
