"""What a graph computes, without names and order, so that the graphs of two files can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from tosaic.execute.simulator import Simulator
from tosaic.tosa import ops
from tosaic.tosa.content import digest
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.types import DType, TensorType


def computed(graph: Graph) -> list[str]:
    """One digest for each output, of everything that it is computed from.

    What the two file forms cannot say alike is taken as one: IDENTITY is its operand, a scalar has shape [1], int4 is int8,
    and numbers have the type of their tensor.
    """
    known: dict[Value, str] = {}

    def of(value: Value) -> str:
        if value not in known:
            assert value.data is not None
            known[value] = _digest("const", _type(value.type), digest(value.data).hex())
        return known[value]

    for index, value in enumerate(graph.inputs):
        known[value] = _digest("input", str(index), _type(value.type))
    for node in graph.nodes:
        moves = isinstance(node.op, ops.Reshape) and _type(node.inputs[0].type) == _type(node.output.type)
        if moves or isinstance(node.op, ops.Identity):
            known[node.output] = of(node.inputs[0])
        else:
            for index, value in enumerate(node.outputs):
                known[value] = _digest(repr(_stated(node)), str(index), _type(value.type), *map(of, node.inputs))
    return [of(value) for value in graph.outputs]


def differing(a: Graph, b: Graph, inputs: Sequence[np.ndarray]) -> list[str]:
    """Outputs of which the two graphs compute other values, for these inputs; those that are computed alike are not run.

    model-converter leaves out what changes nothing: x * 1, x + 0, an integer times 0, CLAMP of CLAMP, ABS of ABS, CONCAT of one
    or of a CONCAT, SLICE of a PAD or a CONCAT, reductions along an axis of length 1.
    """
    others = [i for i, (x, y) in enumerate(zip(computed(a), computed(b), strict=True)) if x != y]
    if not others:
        return []
    found = [Simulator(_only(graph, others)).run(inputs) for graph in (a, b)]
    return [
        a.outputs[i].name for i, x, y in zip(others, *found, strict=True) if (x.dtype, x.shape, _bytes(x)) != (y.dtype, y.shape, _bytes(y))
    ]


def _bytes(array: np.ndarray) -> bytes:
    """Of the numbers; x + 0 makes +0 of -0, so that it shows where it is left out."""
    return (array if array.dtype.kind in "biu" else np.where(array == 0, np.zeros_like(array), array)).tobytes()


def _only(graph: Graph, outputs: Sequence[int]) -> Graph:
    kept = [graph.outputs[i] for i in outputs]
    wanted, nodes = set(kept), []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            nodes.append(node)
    return Graph(graph.name, graph.inputs, kept, nodes[::-1])


def _stated(node: Node) -> ops.Op:
    op = node.op
    if isinstance(op, ops.Reshape):
        return ops.Reshape(op.shape or (1,))
    if isinstance(op, ops.Clamp | ops.Pad):
        fields = {name: getattr(op, name) for name in ("min", "max", "value") if hasattr(op, name)}
        return dataclasses.replace(op, **{k: np.array(v).astype(node.output.dtype.numpy).item() for k, v in fields.items()})
    return op


def _type(type_: TensorType) -> str:
    dtype = DType.INT8 if type_.dtype is DType.INT4 else type_.dtype
    return str(TensorType(dtype, type_.shape or (1,)))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
