"""SPIR-V graph modules (SPV_ARM_graph, SPV_ARM_tensors, instruction set TOSA.001000.1) -> TOSA operators.

Numbers of instructions and the order of their words are facts of the SPIR-V registry (spirv.core.grammar,
extinst.tosa.001000.1). Integers are typed without a sign there and read as two's complement here; int48 is a 64-bit
integer; a scalar tensor has shape [1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tosaic.emit import spirv_facts as facts
from tosaic.emit.layout import ACCUMULATORS, LAYOUT, Constant, operator
from tosaic.emit.spirv_facts import Code
from tosaic.errors import InputError
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Location, Value
from tosaic.tosa.types import DType, TensorType

MAX_ELEMENTS = 1 << 26  # of all constants that the module states itself; a few words can state any size


@dataclass
class _Graph:
    """One OpGraphARM; `arity` is its number of inputs, which stand first in the interface of its entry point."""

    arity: int
    inputs: dict[int, tuple[int, int]] = field(default_factory=dict)  # result id -> type, index
    outputs: dict[int, int] = field(default_factory=dict)  # index -> id
    operators: list[tuple[int, int, int, list[int]]] = field(default_factory=list)  # type, result, number, operands
    members: dict[int, tuple[int, int]] = field(default_factory=dict)  # id -> operator with several results, which of them


class Module:
    """A parsed module. `data` gives a graph constant's bytes by its id number."""

    def __init__(self, words: np.ndarray, data: Mapping[int, np.ndarray]) -> None:
        self._data = dict(data)
        self._scalars: dict[int, DType] = {}
        self._lengths: dict[int, int] = {}
        self._tensors: dict[int, TensorType] = {}
        self._structs: dict[int, list[int]] = {}
        self._numbers: dict[int, bool | int | float] = {}
        self._constants: dict[int, Constant | tuple[int, ...]] = {}
        self._places: dict[int, dict[int, int]] = {}
        self._names: dict[int, str] = {}
        self._strings: dict[int, str] = {}
        self._locations: dict[int, str] = {}  # by the instruction, from NonSemantic.Graph.DebugInfo
        self._sets: set[int] = set()
        self._debug_sets: set[int] = set()
        self._graphs: dict[int, _Graph] = {}
        self._graph: _Graph | None = None
        self._entries: dict[str, tuple[int, list[int]]] = {}
        self._arity: dict[int, int] = {}
        self._budget = MAX_ELEMENTS
        try:
            self._parse(words)
        except (KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
            kind = "an id that is not defined: " if isinstance(error, KeyError) else ""
            raise InputError(f"malformed SPIR-V: {kind}{error}") from None

    def _parse(self, words: np.ndarray) -> None:
        if len(words) < 5 or words[0] != facts.MAGIC:
            raise ValueError("no SPIR-V header")
        numbers, at = memoryview(words.tobytes()).cast("I"), 5
        while at < len(numbers):
            length, code = numbers[at] >> 16, numbers[at] & 0xFFFF
            if length == 0 or at + length > len(numbers):
                raise ValueError(f"an instruction of {length} words at word {at} of {len(numbers)}")
            if handler := _HANDLERS.get(code):
                handler(self, *numbers[at + 1 : at + length].tolist())
            at += length

    # types

    def _type_bool(self, result: int) -> None:
        self._scalars[result] = DType.BOOL

    def _type_int(self, result: int, width: int, sign: int) -> None:
        self._scalars[result] = facts.INTEGERS[width]

    def _type_float(self, result: int, width: int, encoding: int | None = None) -> None:
        self._scalars[result] = facts.FLOATS[width, encoding]

    def _type_array(self, result: int, element: int, length: int) -> None:
        self._lengths[result] = int(self._numbers[length])

    def _type_tensor(self, result: int, element: int, rank: int, shape: int) -> None:
        dims = self._constants[shape]
        if not isinstance(dims, tuple) or len(dims) != self._numbers[rank]:
            raise ValueError(f"tensor type %{result} has no shape of its rank")
        if any(not 0 < d < 1 << 31 for d in dims) or math.prod(dims) >= 1 << 40:
            raise ValueError(f"tensor shape {dims}")
        self._tensors[result] = TensorType(self._scalars[element], dims)

    def _type_struct(self, result: int, *members: int) -> None:
        self._structs[result] = list(members)

    def _type_graph(self, result: int, inputs: int, *types: int) -> None:
        self._arity[result] = inputs

    # constants

    def _true(self, type_: int, result: int) -> None:
        self._numbers[result] = True

    def _false(self, type_: int, result: int) -> None:
        self._numbers[result] = False

    def _number(self, type_: int, result: int, low: int, high: int = 0) -> None:
        dtype = self._scalars[type_]
        raw = np.array([low | high << 32], dtype="<u8").tobytes()
        # the storage type: int48 is 64 bits wide, int4 sign-extends to 32
        self._numbers[result] = np.frombuffer(raw[: dtype.numpy.itemsize], dtype.numpy)[0].item()
        if dtype.is_float:
            self._numbers[result] = float(self._numbers[result])

    def _null(self, type_: int, result: int) -> None:
        if type_ in self._tensors:
            self._constants[result] = self._filled(self._tensors[type_], 0)
        elif type_ in self._lengths:
            self._constants[result] = (0,) * min(self._lengths[type_], 64)
        else:
            self._numbers[result] = 0

    def _replicate(self, type_: int, result: int, element: int) -> None:
        if type_ in self._lengths:
            self._constants[result] = (int(self._numbers[element]),) * min(self._lengths[type_], 64)
        elif element in self._numbers:
            self._constants[result] = self._filled(self._tensors[type_], self._numbers[element])
        else:
            part = self._part(element)
            self._spend(self._tensors[type_])
            self._constants[result] = Constant(self._tensors[type_], np.broadcast_to(part, self._tensors[type_].shape))

    def _composite(self, type_: int, result: int, *elements: int) -> None:
        if type_ in self._lengths:
            self._constants[result] = tuple(int(self._numbers[e]) for e in elements)
            return
        tensor = self._tensors[type_]
        if elements and elements[0] in self._numbers:
            data: np.ndarray = np.array([self._numbers[e] for e in elements], dtype=_wide(tensor.dtype))
        else:
            self._spend(tensor)
            parts = [self._part(e) for e in elements]
            if sum(part.size for part in parts) != tensor.size:
                raise ValueError(f"constant %{result} has not the elements of {tensor}")
            data = np.array(parts)
        self._constants[result] = Constant(tensor, data.astype(tensor.dtype.numpy).reshape(tensor.shape))

    def _part(self, element: int) -> np.ndarray:
        part = self._constants[element]
        if not isinstance(part, Constant):
            raise ValueError(f"%{element} is no tensor")
        return part.data

    def _filled(self, tensor: TensorType, number: bool | int | float) -> Constant:
        self._spend(tensor)
        return Constant(tensor, np.broadcast_to(np.array(number, dtype=_wide(tensor.dtype)).astype(tensor.dtype.numpy), tensor.shape))

    def _spend(self, tensor: TensorType) -> None:
        self._budget -= tensor.size
        if self._budget < 0:
            raise ValueError(f"constants of more than {MAX_ELEMENTS} elements")

    def _graph_constant(self, type_: int, result: int, number: int) -> None:
        # each is stated once; int4, int48 and booleans are copied
        self._constants[result] = Constant(self._tensors[type_], unpack(self._data.pop(number), self._tensors[type_]))

    # graphs

    def _name(self, target: int, *words: int) -> None:
        self._names[target] = _text(words)[0]

    def _string(self, result: int, *words: int) -> None:
        self._strings[result] = _text(words)[0]

    def _decorate(self, target: int, decoration: int, *numbers: int) -> None:
        if numbers:
            self._places.setdefault(target, {})[decoration] = numbers[0]

    def _import(self, result: int, *words: int) -> None:
        name = _text(words)[0]
        if name == facts.TOSA:
            self._sets.add(result)
        elif name.startswith(facts.DEBUG_INFO):
            self._debug_sets.add(result)

    def _entry(self, graph: int, *words: int) -> None:
        name, rest = _text(words)
        self._entries[name] = (graph, rest)

    def _begin(self, type_: int, result: int) -> None:
        self._graph = self._graphs[result] = _Graph(self._arity[type_])

    def _current(self) -> _Graph:
        if self._graph is None:
            raise ValueError("an instruction outside its graph")
        return self._graph

    def _input(self, type_: int, result: int, index: int) -> None:
        self._current().inputs[result] = type_, int(self._numbers[index])

    def _output(self, value: int, index: int) -> None:
        self._current().outputs[int(self._numbers[index])] = value

    def _end(self) -> None:
        self._graph = None

    def _instruction(self, type_: int, result: int, set_: int, number: int, *operands: int) -> None:
        if set_ in self._debug_sets:
            if number == facts.DEBUG_OPERATION:
                _, name, *instructions = operands
                self._locations |= dict.fromkeys(instructions, self._strings.get(name, ""))
            return
        if self._graph is None:  # of a set that says nothing here
            return
        if set_ not in self._sets:
            raise ValueError("an instruction of an unknown set")
        self._graph.operators.append((type_, result, number, list(operands)))

    def _extract(self, type_: int, result: int, composite: int, index: int) -> None:
        self._current().members[result] = composite, index

    def interface(self, entry: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(descriptor set, binding) of the inputs and of the outputs of an entry point, in order.

        Raises:
            InputError: the module has no such entry point.
        """
        graph, variables = self._entries.get(entry, (0, []))
        if graph not in self._graphs:
            raise InputError(f"the module has no graph '{entry}'")
        places = [self._places.get(v, {}) for v in variables]
        bindings = [(p.get(facts.DESCRIPTOR_SET, 0), p.get(facts.BINDING, 0)) for p in places]
        arity = self._graphs[graph].arity
        return bindings[:arity], bindings[arity:]

    def build(self, builder: Builder, entry: str, inputs: Sequence[Value]) -> dict[int, Value]:
        """Emit the graph of an entry point that `interface` knows; values have the names that the module gives them.

        Args:
            inputs: a value for each input; scalars have shape [1].

        Returns:
            the outputs by index.

        Raises:
            InputError: the graph does not fit together.
        """
        graph = self._graphs[self._entries[entry][0]]
        values: dict[int, Value | Constant] = {
            i: replace(c, name=self._names.get(i)) for i, c in self._constants.items() if isinstance(c, Constant)
        }
        for result, (type_, index) in graph.inputs.items():
            if index >= len(inputs) or inputs[index].type != self._tensors.get(type_):
                raise InputError(f"input {index} of the module does not fit the file's inputs")
            values[result] = inputs[index]
        parts: dict[int, list[tuple[int, int]]] = {}  # operator with several results -> which is taken out, under which id
        for result, (composite, index) in graph.members.items():
            parts.setdefault(composite, []).append((index, result))
        for type_, result, number, operands in graph.operators:
            types = self._structs.get(type_, [type_])
            if number >= len(facts.TOSA_OPS) or not self._tensors.keys() >= {*types}:
                raise InputError(f"malformed SPIR-V: TOSA instruction {number} of type %{type_}")
            taken = parts.get(result, []) if type_ in self._structs else [(0, result)]
            labels = [f"v{result}_{index}" for index in range(len(types))]
            place = self._locations.get(result, "")
            for index, id_ in taken:
                label, _, behind = self._names.get(id_, "").partition(facts.PLACE_BEHIND)
                place = behind or place
                if index < len(types):
                    labels[index] = label or f"v{id_}"
            name = facts.TOSA_OPS[number]
            fields, tensors = self._operands(name, operands, values)
            location = Location.parse(place) if place else None
            declared = [self._tensors[t] for t in types]
            scalar = name == "ARGMAX" and len(tensors) == 1 and tensors[0].type.rank == 1 and declared[0].shape == (1,)
            if scalar:  # which SPIR-V cannot state
                declared = [declared[0].with_shape(())]
            results = operator(builder, name, fields, tensors, declared, outputs=labels, location=location)
            if scalar:
                results = (builder.emit(ops.Reshape((1,)), results[0], name=f"{labels[0]}_1d"),)
            values |= {id_: results[index] for index, id_ in taken if index < len(results)}
        return {index: _value(builder, values, result) for index, result in graph.outputs.items()}

    def _operands(
        self, name: str, operands: list[int], values: Mapping[int, Value | Constant]
    ) -> tuple[dict[str, Any], list[Value | Constant]]:
        if name not in LAYOUT:
            raise InputError(f"operator {name} is not supported")
        names = LAYOUT[name][0].split()
        attributes, tensors = operands[: len(names)], operands[len(names) :]
        known = {i: self._numbers[i] if i in self._numbers else getattr(self._constants.get(i), "data", None) for i in attributes}
        missing = [i for i in attributes if known[i] is None] + [i for i in tensors if i not in values]
        if missing or len(attributes) < len(names):
            raise InputError(f"{name}: " + (f"%{missing[0]} is not defined before its use" if missing else "too few operands"))
        fields: dict[str, Any] = {key: known[i] for key, i in zip(names, attributes, strict=True)}
        if "acc_type" in fields:
            fields["acc_type"] = ACCUMULATORS[fields["acc_type"]]
        return fields, [values[i] for i in tensors]


def _value(builder: Builder, values: Mapping[int, Value | Constant], result: int) -> Value:
    if result not in values:
        raise InputError(f"output %{result} is not defined")
    value = values[result]
    return value if isinstance(value, Value) else value.value(builder)


def _wide(dtype: DType) -> type:
    return float if dtype.is_float else bool if dtype is DType.BOOL else np.int64


def _text(words: Sequence[int]) -> tuple[str, list[int]]:
    """A literal string (UTF-8, ended by a zero byte in its last word) and the words behind it."""
    for count, word in enumerate(words, 1):
        if 0 in (word & 0xFF, word >> 8 & 0xFF, word >> 16 & 0xFF, word >> 24):
            raw = np.array(words[:count], dtype="<u4").tobytes()
            return raw[: raw.index(0)].decode(errors="replace"), list(words[count:])
    raise ValueError("a string without end")


def unpack(raw: np.ndarray, type_: TensorType) -> np.ndarray:
    """A tensor from its bytes in a file; int4 and int48 packed, or as wide as they compute. A view of them where that can be.

    Raises:
        ValueError: the length fits no known form.
    """
    dtype, count = type_.dtype, type_.size
    if dtype is DType.INT4 and len(raw) == (count + 1) // 2:
        nibbles = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
        return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(type_.shape)
    if dtype is DType.INT48 and len(raw) == 6 * count:
        wide = np.zeros((count, 8), np.uint8)
        wide[:, 2:] = raw.reshape(count, 6)
        return (wide.view("<i8").reshape(type_.shape) >> 16).astype(np.int64)  # the shift brings the sign down
    if len(raw) != count * dtype.numpy.itemsize:
        raise ValueError(f"{len(raw)} bytes for a constant of {type_}")
    if dtype is DType.BOOL:
        return (raw != 0).reshape(type_.shape)
    data = raw.view(dtype.numpy).reshape(type_.shape)
    return data if data.flags.aligned else data.copy()


_HANDLERS: dict[int, Callable[..., None]] = {
    Code.NAME: Module._name,
    Code.STRING: Module._string,
    Code.IMPORT: Module._import,
    Code.EXT_INST: Module._instruction,
    Code.TYPE_BOOL: Module._type_bool,
    Code.TYPE_INT: Module._type_int,
    Code.TYPE_FLOAT: Module._type_float,
    Code.TYPE_ARRAY: Module._type_array,
    Code.TYPE_STRUCT: Module._type_struct,
    Code.TRUE: Module._true,
    Code.FALSE: Module._false,
    Code.CONSTANT: Module._number,
    Code.COMPOSITE: Module._composite,
    Code.NULL: Module._null,
    Code.DECORATE: Module._decorate,
    Code.EXTRACT: Module._extract,
    Code.TYPE_TENSOR: Module._type_tensor,
    Code.GRAPH_CONSTANT: Module._graph_constant,
    Code.ENTRY_POINT: Module._entry,
    Code.GRAPH: Module._begin,
    Code.GRAPH_INPUT: Module._input,
    Code.GRAPH_OUTPUT: Module._output,
    Code.GRAPH_END: Module._end,
    Code.TYPE_GRAPH: Module._type_graph,
    Code.REPLICATE: Module._replicate,
}
