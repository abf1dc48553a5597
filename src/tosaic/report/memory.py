"""What a graph costs in memory: bytes alive at a time, and bytes moved, by liveness of its values in their order.

Each number is there twice. As the graph stands, every operator stores its result. `Fused` is an estimate of what a device does: an
operator that works element by element (RESCALE, CLAMP, TABLE, arithmetic) is computed with the operator whose result it alone reads,
so that this result is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tosaic.tosa.graph import Graph, Value

# operators that compute one element of the result of the same element of their operands
# fmt: off
_ELEMENTWISE = frozenset((
    "RESCALE", "CAST", "CLAMP", "TABLE", "SIGMOID", "TANH", "ERF", "ADD", "SUB", "MUL", "INTDIV", "POW", "MAXIMUM", "MINIMUM",
    "ARITHMETIC_RIGHT_SHIFT", "LOGICAL_LEFT_SHIFT", "LOGICAL_RIGHT_SHIFT", "BITWISE_AND", "BITWISE_OR", "BITWISE_XOR", "BITWISE_NOT",
    "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_XOR", "LOGICAL_NOT", "ABS", "CEIL", "CLZ", "COS", "EXP", "FLOOR", "LOG", "NEGATE",
    "RECIPROCAL", "RSQRT", "SIN", "SELECT", "EQUAL", "GREATER", "GREATER_EQUAL", "IDENTITY", "RESHAPE",
))
# fmt: on


@dataclass(frozen=True)
class Memory:
    """Bytes of activations.

    Attributes:
        peak: the most that are alive at a time, inputs and outputs included.
        peak_at: name of the value at whose making that is.
        moved: what all operators read (constants too) and write.
    """

    peak: int
    peak_at: str
    moved: int


def memory(graph: Graph, fused: bool = False) -> Memory:
    """Liveness of a graph's values. What control flow runs is moved once, and alive beside what its operator reads and writes.

    Args:
        fused: leave out what element-by-element operators would take from their only operand that is made just for them.
    """
    found: dict[int, Memory] = {}
    for part in reversed(graph.nested()):
        found[id(part)] = _memory(part, fused, found)
    return found[id(graph)]


def _memory(graph: Graph, fused: bool, inner: Mapping[int, Memory]) -> Memory:
    hidden = _never_stored(graph) if fused else {}
    when = list(range(len(graph.nodes)))  # what an operator reads must live until its result, or that of its reader, is stored
    for i, node in reversed(list(enumerate(graph.nodes))):
        if node.outputs[0] in hidden:
            when[i] = when[hidden[node.outputs[0]]]
    last = {value: i for i, node in enumerate(graph.nodes) for value in node.outputs} | dict.fromkeys(graph.inputs, -1)
    for i, node in enumerate(graph.nodes):
        for value in node.inputs:
            if not value.is_const:
                last[value] = max(last[value], when[i])
    last |= {value: len(graph.nodes) for value in graph.outputs}
    dying = [0] * (len(graph.nodes) + 1)
    for value, i in last.items():
        if value not in hidden and not value.is_const and i >= 0:
            dying[i] += value.type.nbytes
    alive = sum(v.type.nbytes for v in graph.inputs)
    peak, peak_at = alive, graph.inputs[0].name if graph.inputs else ""
    moved = 0
    for i, node in enumerate(graph.nodes):
        written = sum(v.type.nbytes for v in node.outputs if v not in hidden)
        moved += written + sum(v.type.nbytes for v in dict.fromkeys(node.inputs) if v not in hidden)
        alive += written
        runs = [inner[id(part)] for part in node.op.graphs]
        moved += sum(run.moved for run in runs)
        beside = max((run.peak for run in runs), default=0)
        if alive + beside > peak:
            peak, peak_at = alive + beside, node.outputs[0].name
        alive -= dying[i]
    return Memory(peak, peak_at, moved)


def _never_stored(graph: Graph) -> dict[Value, int]:
    """Results that one operator reads, which works on them element by element; and which operator that is, by its place."""
    readers: dict[Value, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for value in dict.fromkeys(node.inputs):
            readers.setdefault(value, []).append(i)
    outputs = set(graph.outputs)
    hidden = {}
    for node in graph.nodes:
        [value, *others] = node.outputs
        if others or value in outputs or len(readers.get(value, ())) != 1:
            continue
        [place] = readers[value]
        reader = graph.nodes[place]
        if reader.op.NAME in _ELEMENTWISE and reader.outputs[0].type.size == value.type.size:
            hidden[value] = place
    return hidden
