"""Graph -> SPIR-V graph module (SPV_ARM_graph, SPV_ARM_tensors, instruction set TOSA.001000.1): one instruction for each operator.

Where the two differ: a scalar tensor has shape [1] in SPIR-V, int4 is stored as int8 (Vulkan has neither a scalar type nor
a format of four bits), int48 as int64, and IDENTITY, which is no instruction there, leaves no trace. Ids are numbered in
the order of first use, so that the same graph gives the same words.

An operator's place in the user's model stands in its OpName, behind the name of its result: OpName holds any text, for any
reader. OpLine is no instruction of graphs, and NonSemantic.Graph.DebugInfo has no place that both spirv-val (inside a graph)
and the emulation layers (behind it) take.
"""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tosaic.emit import spirv_facts as facts
from tosaic.emit.constants import Pool
from tosaic.emit.layout import ENUM_NUMBERS, Constant, statement
from tosaic.emit.spirv_facts import Code
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.types import DType, TensorType

ENTRY = "main"
INLINE = 16  # elements of a constant that the module itself states (model-converter draws the line there too)
_LONGEST_NAME = 4096  # bytes
_VERSION = 0x00010500
_NUMBERS = {name: number for number, name in enumerate(facts.TOSA_OPS)}
_ENCODINGS = {dtype: key for key, dtype in facts.FLOATS.items()}
_SCALAR_SHAPE = Constant(TensorType(DType.INT32, (1,)), np.ones(1, np.int32))
_ON_SCALARS = (ops.Reshape, ops.Slice, ops.Tile, ops.Pad, ops.Transpose)


@dataclass
class Written:
    """A module, and how it is bound.

    Attributes:
        words: the module. Its entry point is ENTRY; the inputs have the bindings from 0 on, then the results, all in set 0.
        pool: the constants that the file must hold, by the numbers that the module gives them.
        results: what is written, each once.
        outputs: for each output of the graph its index among `results`.
    """

    words: np.ndarray
    pool: Pool
    results: list[Value] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def write_module(graph: Graph, *, debug_info: bool = True) -> Written:
    """The module that computes `graph`.

    Args:
        debug_info: names of values, and where operators came from.
    """
    return _Writer(graph, debug_info).module()


class _Writer:
    def __init__(self, graph: Graph, debug_info: bool) -> None:
        self.graph, self.debug_info = graph, debug_info
        self.pool = Pool(v.type.with_dtype(_stored(v.dtype)) for v in graph.constants())
        # sections of a module, in their order; `body` also has the entry point
        self.names, self.decorations, self.globals, self.body = (array("I") for _ in range(4))
        self.shared: dict[tuple, int] = {}  # types and constants
        self.needs: dict[int, None] = {}  # capabilities
        self.extensions: dict[str, None] = {}
        self.values: dict[Value, int] = {}
        self.named: set[int] = set()
        self.bound = 1
        self.set = self._new()

    def module(self) -> Written:
        graph = self.graph
        inputs = [self._tensor(v.type) for v in graph.inputs]
        for index, (value, type_) in enumerate(zip(graph.inputs, inputs, strict=True)):
            self.values[value] = self._new()
            _put(self.body, Code.GRAPH_INPUT, type_, self.values[value], self._number(DType.INT32, index))
            self._name(self.values[value], value.name)
        for node in graph.nodes:
            self._node(node)
        written = Written(np.empty(0), self.pool)
        written_ids = self._results(written)
        for index, result in enumerate(written_ids):
            _put(self.body, Code.GRAPH_OUTPUT, result, self._number(DType.INT32, index))
        _put(self.body, Code.GRAPH_END)
        written.words = self._assemble(graph.inputs, written.results)
        return written

    def _results(self, written: Written) -> list[int]:
        """The ids of the results; a value under two names is one of them."""
        found: dict[tuple[int, TensorType], int] = {}
        ids: list[int] = []
        for value in self.graph.outputs:
            id_ = self._value(value)
            if (id_, value.type) not in found:
                if id_ in ids:  # the same scalar as [] and as [1]
                    id_ = self._emit(ops.Reshape.NAME, self._tensor(value.type), id_, self._inline(_SCALAR_SHAPE))
                found[self._value(value), value.type] = len(ids)
                ids.append(id_)
                written.results.append(value)
            written.outputs.append(found[self._value(value), value.type])
        return ids

    def _assemble(self, inputs: list[Value], results: list[Value]) -> np.ndarray:
        bound = [*inputs, *results]
        types = [self._tensor(v.type) for v in bound]
        variables = []
        for binding, (value, type_) in enumerate(zip(bound, types, strict=True)):
            pointer = self._shared(Code.TYPE_POINTER, facts.UNIFORM_CONSTANT, type_)
            variables.append(self._new())
            _put(self.globals, Code.VARIABLE, pointer, variables[-1], facts.UNIFORM_CONSTANT)
            _put(self.decorations, Code.DECORATE, variables[-1], facts.BINDING, binding)
            _put(self.decorations, Code.DECORATE, variables[-1], facts.DESCRIPTOR_SET, 0)
            self._name(variables[-1], value.name)
        signature, graph = self._shared(Code.TYPE_GRAPH, len(inputs), *types), self._new()
        self._name(graph, ENTRY)
        head = array("I", (facts.MAGIC, _VERSION, 0, self.bound, 0))
        for capability in (facts.SHADER, facts.VULKAN_MEMORY_MODEL, facts.TENSORS, facts.GRAPHS, *sorted(self.needs)):
            _put(head, Code.CAPABILITY, capability)
        for extension in ("SPV_ARM_tensors", "SPV_ARM_graph", "SPV_KHR_vulkan_memory_model", *sorted(self.extensions)):
            _put(head, Code.EXTENSION, *_text(extension))
        _put(head, Code.IMPORT, self.set, *_text(facts.TOSA))
        _put(head, Code.MEMORY_MODEL, facts.LOGICAL, facts.VULKAN)
        begin = array("I")
        _put(begin, Code.ENTRY_POINT, graph, *_text(ENTRY), *variables)
        _put(begin, Code.GRAPH, signature, graph)
        return np.frombuffer(head + self.names + self.decorations + self.globals + begin + self.body, np.uint32)

    def _new(self) -> int:
        self.bound += 1
        return self.bound - 1

    def _name(self, id_: int, text: str) -> None:
        if self.debug_info and id_ not in self.named:
            self.named.add(id_)
            _put(self.names, Code.NAME, id_, *_text(text))

    # types and constants, each stated once

    def _shared(self, code: int, *words: int, type_: int | None = None) -> int:
        key = (code, type_, *words)
        if key not in self.shared:
            self.shared[key] = self._new()
            _put(self.globals, code, *([] if type_ is None else [type_]), self.shared[key], *words)
        return self.shared[key]

    def _scalar(self, dtype: DType) -> int:
        if dtype in facts.NEEDS:
            capability, extension = facts.NEEDS[dtype]
            self.needs[capability] = None
            if extension is not None:
                self.extensions[extension] = None
        if dtype is DType.BOOL:
            return self._shared(Code.TYPE_BOOL)
        if dtype.is_integer:
            return self._shared(Code.TYPE_INT, 8 * dtype.numpy.itemsize, 0)
        width, encoding = _ENCODINGS[dtype]
        return self._shared(Code.TYPE_FLOAT, width, *([] if encoding is None else [encoding]))

    def _number(self, dtype: DType, bits: int) -> int:
        """A scalar constant by its bits."""
        if dtype is DType.BOOL:
            return self._shared(Code.TRUE if bits else Code.FALSE, type_=self._scalar(dtype))
        words = (bits & 0xFFFFFFFF, bits >> 32) if dtype.numpy.itemsize == 8 else (bits,)
        return self._shared(Code.CONSTANT, *words, type_=self._scalar(dtype))

    def _tensor(self, type_: TensorType) -> int:
        shape = type_.shape or (1,)
        rank = self._number(DType.INT32, len(shape))
        sizes = self._shared(Code.TYPE_ARRAY, self._scalar(DType.INT32), rank)
        dims = self._shared(Code.COMPOSITE, *(self._number(DType.INT32, d) for d in shape), type_=sizes)
        return self._shared(Code.TYPE_TENSOR, self._scalar(_stored(type_.dtype)), rank, dims)

    def _constant(self, constant: Constant) -> int:
        stored = Constant(constant.type.with_dtype(_stored(constant.type.dtype)), constant.data, constant.name)
        if stored.type.size <= INLINE:
            return self._inline(stored)
        return self._shared(Code.GRAPH_CONSTANT, self.pool.add(stored), type_=self._tensor(stored.type))

    def _inline(self, constant: Constant) -> int:
        data = np.ascontiguousarray(constant.data)
        bits = data.view(f"u{data.itemsize}").reshape(constant.type.shape or (1,))
        if not bits.any():
            return self._shared(Code.NULL, type_=self._tensor(constant.type))
        return self._composite(constant.type.dtype, bits)

    def _composite(self, dtype: DType, bits: np.ndarray) -> int:
        """A tensor is composed of tensors, and one of rank 1 of numbers."""
        parts = [self._composite(dtype, part) if bits.ndim > 1 else self._number(dtype, int(part)) for part in bits]
        return self._shared(Code.COMPOSITE, *parts, type_=self._tensor(TensorType(dtype, bits.shape)))

    # operators

    def _value(self, value: Value) -> int:
        if value.data is not None and value not in self.values:
            self.values[value] = self._constant(Constant(value.type, value.data))
            self._name(self.values[value], value.name)
        return self.values[value]

    def _node(self, node: Node) -> None:
        if _is_identity(node):
            self.values[node.output] = self._value(node.inputs[0])
            return
        said = statement(node)
        attributes = [self._attribute(a) for a in said.attributes.values()]
        operands = [self._value(o) if isinstance(o, Value) else self._constant(o if o.type.size else _SCALAR_SHAPE) for o in said.operands]
        types = [self._tensor(v.type) for v in node.outputs]
        if len(types) == 1:
            results = [self._emit(node.op.NAME, types[0], *attributes, *operands)]
        else:
            whole = self._emit(node.op.NAME, self._shared(Code.TYPE_STRUCT, *types), *attributes, *operands)
            results = [self._new() for _ in types]
            for index, (type_, result) in enumerate(zip(types, results, strict=True)):
                _put(self.body, Code.EXTRACT, type_, result, whole, index)
        place = str(node.location) if node.location else ""
        for value, result in zip(node.outputs, results, strict=True):
            self.values[value] = result
            self._name(result, f"{value.name}{facts.PLACE_BEHIND}{place}" if place else value.name)

    def _emit(self, name: str, type_: int, *operands: int) -> int:
        result = self._new()
        _put(self.body, Code.EXT_INST, type_, result, self.set, _NUMBERS[name], *operands)
        return result

    def _attribute(self, value: Any) -> int:
        if isinstance(value, Constant):
            return self._number(value.type.dtype, int(value.data.view(f"u{value.data.itemsize}")[0]))
        if isinstance(value, tuple):
            return self._inline(Constant(TensorType(DType.INT32, (len(value),)), np.array(value, np.int32)))
        if isinstance(value, bool):
            return self._number(DType.BOOL, value)
        return self._number(DType.INT32, ENUM_NUMBERS[value] if isinstance(value, enum.Enum) else value)


def _is_identity(node: Node) -> bool:
    """Whether a node changes nothing that SPIR-V can say: what moves a scalar, and RESHAPE between [] and [1]."""
    if isinstance(node.op, ops.Identity):
        return True
    source, result = (x.type.with_shape(x.shape or (1,)) for x in (node.inputs[0], node.outputs[0]))
    return isinstance(node.op, _ON_SCALARS) and not (node.inputs[0].shape and node.outputs[0].shape) and source == result


def _stored(dtype: DType) -> DType:
    return DType.INT8 if dtype is DType.INT4 else dtype


def _put(section: array, code: int, *words: int) -> None:
    section.append(len(words) + 1 << 16 | code)
    section.extend(words)


def _text(text: str) -> list[int]:
    raw = text.encode(errors="replace").replace(b"\0", b"?")
    if len(raw) > _LONGEST_NAME:
        raw = raw[:_LONGEST_NAME].decode(errors="ignore").encode()
    return np.frombuffer(raw + b"\0" * (4 - len(raw) % 4), "<u4").tolist()
