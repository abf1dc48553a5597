"""The text form of a graph: print and parse.

graph main
input %x: i8[1,8,8,3]
const %w: i8[16,3,3,3] = hex:0102...      (or @sha256:... when it is long; parse then needs the data)
%conv: i32[1,8,8,16] = CONV2D(%x, %w, %b) stride=(1, 1) pad=(1, 1, 1, 1) ...  # aten | module | source
output %conv

Graphs that control flow runs follow, each once, and are referred to by name: `COND_IF(%c, %x) then_graph=@a else_graph=@b`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tosaic.errors import GraphError
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Location, Node, Value
from tosaic.tosa.types import DType, TensorType

LONGEST_INLINE = 16  # elements of a constant that are printed in place


def digest(value: Value) -> str:
    """Name of a constant's content."""
    assert value.data is not None
    return "sha256:" + hashlib.sha256(value.data.tobytes()).hexdigest()[:16]


def print_graph(graph: Graph) -> str:
    """The graph as text."""
    return "".join(map(_print_one, graph.nested()))


def _print_one(graph: Graph) -> str:
    lines = [f"graph {graph.name}"]
    lines += [f"input %{v.name}: {v.type}" for v in graph.inputs]
    for v in graph.constants():
        inline = v.type.size <= LONGEST_INLINE
        lines.append(f"const %{v.name}: {v.type} = " + (f"{_numbers(v.data)}" if inline else f"@{digest(v)}"))
    for node in graph.nodes:
        operands = ", ".join(f"%{v.name}" for v in node.inputs)
        fields = (f for f in dataclasses.fields(node.op) if getattr(node.op, f.name) != f.default)
        attributes = "".join(f" {f.name}={_attribute(getattr(node.op, f.name))}" for f in fields)
        location = f"  # {node.location}" if node.location and str(node.location) else ""
        results = ", ".join(map(repr, node.outputs))
        lines.append(f"{results} = {node.op.NAME}({operands}){attributes}{location}")
    lines += [f"output %{v.name}" for v in graph.outputs]
    return "\n".join(lines) + "\n"


def _numbers(data: np.ndarray | None) -> str:
    assert data is not None
    return "[" + ", ".join(repr(x) for x in data.ravel().tolist()) + "]"


def _attribute(value: object) -> str:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Graph):
        return f"@{value.name}"
    return repr(value).replace(" ", "")


_RESULT = r"%\S+: [\w\[\],]+"
_NODE = re.compile(rf"({_RESULT}(?:, {_RESULT})*) = ([A-Z0-9_]+)\((.*?)\)((?: \w+=\S+)*)(?:  # (.*))?")


def parse_graph(text: str, constants: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph that `print_graph` printed.

    Args:
        constants: data of constants that are printed by digest, by value name.

    Raises:
        GraphError: a line does not parse, or a constant's data is missing or has another digest, or a graph that
            control flow runs does not follow.
    """
    parts: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("graph ") and parts[-1]:
            parts.append([])
        if line.strip():
            parts[-1].append((number, line))
    graph, behind = Graph(""), dict[str, Graph]()
    for part in reversed(parts):
        graph = _parse_one(part, constants or {}, behind)
        behind[graph.name] = graph
    return graph


def _parse_one(lines: Sequence[tuple[int, str]], constants: Mapping[str, np.ndarray], nested: Mapping[str, Graph]) -> Graph:
    """A graph of numbered lines; `nested`: those that it can run."""
    graph, values = Graph(""), {}
    for number, line in lines:
        word, _, rest = line.partition(" ")
        if word == "graph":
            graph.name = rest
        elif word == "input":
            name, type_ = rest[1:].split(": ")
            values[name] = Value(name, _type(type_))
            graph.inputs.append(values[name])
        elif word == "const":
            head, _, data = rest[1:].partition(" = ")
            name, type_ = head.split(": ")
            values[name] = _constant(name, _type(type_), data, constants)
        elif word == "output":
            graph.outputs.append(values[rest[1:]])
        elif match := _NODE.fullmatch(line):
            results, op, operands, attributes, location = match.groups()
            inputs = tuple(values[o[1:]] for o in operands.split(", ")) if operands else ()
            heads = (result[1:].split(": ") for result in results.split(", "))
            outputs = tuple(Value(name, _type(type_)) for name, type_ in heads)
            values |= {v.name: v for v in outputs}
            where = Location.parse(location) if location else None
            graph.nodes.append(Node(_op(op, attributes, nested), inputs, outputs, where))
        else:
            raise GraphError(f"line {number} does not parse: {line}")
    return graph


def _type(text: str) -> TensorType:
    dtype, _, dims = text.rstrip("]").partition("[")
    return TensorType(DType(dtype), tuple(int(d) for d in dims.split(",") if d))


def _constant(name: str, type_: TensorType, text: str, constants: Mapping[str, np.ndarray]) -> Value:
    if text.startswith("["):
        numbers = [
            float(x) if type_.dtype.is_float else int(x) if x not in ("True", "False") else x == "True" for x in text[1:-1].split(", ") if x
        ]
        return Value(name, type_, np.array(numbers, dtype=type_.dtype.numpy).reshape(type_.shape))
    if name not in constants:
        raise GraphError(f"no data for constant %{name} ({text})")
    value = Value(name, type_, constants[name])
    if f"@{digest(value)}" != text:
        raise GraphError(f"constant %{name} is {digest(value)}, the text says {text[1:]}")
    return value


def _op(name: str, attributes: str, nested: Mapping[str, Graph]) -> ops.Op:
    if name in ops.CONTROL_FLOW:
        named = {key: graph[1:] for key, graph in (a.split("=", 1) for a in attributes.split())}
        if missing := [graph for graph in named.values() if graph not in nested]:
            raise GraphError(f"{name}: graph {missing[0]} does not follow")
        return ops.CONTROL_FLOW[name](**{key: nested[graph] for key, graph in named.items()})
    cls = ops.BY_NAME[name]
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}
    values: dict[str, object] = {}
    for item in attributes.split():
        key, _, text = item.partition("=")
        enums = {"DType": DType, "Rounding": ops.Rounding, "ResizeMode": ops.ResizeMode, "NanMode": ops.NanMode}
        kind = enums.get(str(kinds[key]).removesuffix(" | None"))
        values[key] = kind(text) if kind else ast.literal_eval(text)
    return cls(**values)
