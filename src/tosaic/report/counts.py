"""What can be said of a graph without running it: operators, arithmetic, bytes, and the specification that it needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tosaic.report.memory import Memory, memory
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node
from tosaic.tosa.spec import PROFILES, Spec


@dataclass(frozen=True)
class Counts:
    """Counted from the graph alone; what control flow runs counts once.

    Attributes:
        operators: TOSA operator -> how often, most frequent first.
        macs: multiply-accumulates of convolutions and matrix products.
        weight_bytes: of all constants that are operands.
        value_bytes: of the graph's inputs and of what all operators write; an executor that fuses nothing moves them.
        spec: the smallest specification that holds every operator.
        kinds: one line for each kind of operator, most arithmetic first, then most bytes.
        memory, fused: peak and bytes moved, as the graph stands and with element-by-element operators joined to what they read.
    """

    operators: dict[str, int]
    macs: int
    weight_bytes: int
    value_bytes: int
    spec: Spec
    kinds: list[Kind]
    memory: Memory
    fused: Memory


@dataclass(frozen=True)
class Kind:
    """All operators of one name: how many, their multiply-accumulates, the bytes of constants they read, the bytes they write."""

    name: str
    count: int
    macs: int
    weight_bytes: int
    written: int


def count(graph: Graph) -> Counts:
    """Count a graph's operators, arithmetic and bytes."""
    nodes = [node for part in graph.nested() for node in part.nodes]
    return Counts(
        operators=dict(Counter(node.op.NAME for node in nodes).most_common()),
        macs=sum(macs(node) for node in nodes),
        weight_bytes=sum(value.type.nbytes for part in graph.nested() for value in part.constants()),
        value_bytes=sum(value.type.nbytes for value in (*graph.inputs, *(value for node in nodes for value in node.outputs))),
        spec=_smallest_spec(nodes),
        kinds=_kinds(nodes),
        memory=memory(graph),
        fused=memory(graph, fused=True),
    )


def _kinds(every: Sequence[Node]) -> list[Kind]:
    groups: dict[str, list[Node]] = {}
    for node in every:
        groups.setdefault(node.op.NAME, []).append(node)
    kinds = [
        Kind(
            name,
            len(nodes),
            sum(macs(node) for node in nodes),
            sum(v.type.nbytes for v in {v: None for node in nodes for v in node.inputs if v.is_const}),
            sum(v.type.nbytes for node in nodes for v in node.outputs),
        )
        for name, nodes in groups.items()
    ]
    return sorted(kinds, key=lambda kind: (-kind.macs, -kind.written))


def macs(node: Node) -> int:
    """Multiply-accumulates of one operator; borders count as if they were computed."""
    match node.op:
        case ops.TransposeConv2d():  # each input element meets the whole kernel
            weight = node.inputs[1].type
            return node.inputs[0].type.size * weight.size // weight.shape[3]
        case ops.DepthwiseConv2d():
            return node.output.type.size * math.prod(node.inputs[1].shape[:2])
        case ops.Conv2d() | ops.Conv3d():
            return node.output.type.size * math.prod(node.inputs[1].shape[1:])
        case ops.MatMul():
            return node.output.type.size * node.inputs[0].shape[2]
        case _:
            return 0


def _smallest_spec(nodes: Sequence[Node]) -> Spec:
    """Profiles and extensions that the operators need; where either profile will do, the one that others need anyway."""
    needs = {node.op.requires(*(v.type for v in node.inputs)) for node in nodes}
    spec = Spec(frozenset()).plus(*(part for need in needs if "|" not in need for part in need.split("&")))
    for need in needs:
        spec = spec if spec.holds(need) else spec.plus(need.split("|")[0])
    return spec if spec.profiles else spec.plus(PROFILES[0])
