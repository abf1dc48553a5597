"""Several graphs as one: outputs of the earlier are inputs of the later, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tosaic.errors import GraphError
from tosaic.tosa.content import digest
from tosaic.tosa.graph import Graph, Node, Value


@dataclass(frozen=True)
class Part:
    """One graph of several.

    Attributes:
        prefix: put in front of the names of all its values, which are unique then, and of the modules that its operators come from.
        inputs, outputs: names of the whole for names of its own inputs and outputs; what is not named here keeps its own.
    """

    graph: Graph
    prefix: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


def link(name: str, parts: Sequence[Part], outputs: Sequence[str]) -> Graph:
    """One graph that runs `parts` in order; constants that are equal are stored once, and none is copied.

    Args:
        outputs: names of the whole that are its outputs, in order. An input that no earlier part gives becomes one of the whole.

    Raises:
        GraphError: a name means two values, types do not agree, or an output is given by no part.
    """
    whole, known, constants = Graph(name), dict[str, Value](), dict[tuple[object, ...], Value]()
    for part in parts:
        values: dict[Value, Value] = {}
        for inner in part.graph.inputs:
            outer = part.inputs.get(inner.name, inner.name)
            if outer not in known:
                known[outer] = Value(outer, inner.type, bound=inner.bound)
                whole.inputs.append(known[outer])
            if known[outer].type != inner.type:
                raise GraphError(f"{part.prefix}{inner.name} is {inner.type}, but {outer} is {known[outer].type}")
            values[inner] = known[outer]
        for constant in part.graph.constants():
            assert constant.data is not None
            key = constant.type, digest(constant.data)
            values[constant] = constants.setdefault(key, replace(constant, name=part.prefix + constant.name))
        names = {v: part.outputs.get(v.name, v.name) for v in part.graph.outputs}
        for node in part.graph.nodes:
            for inner in node.outputs:
                meaning = inner.meaning and replace(inner.meaning, node=part.prefix + inner.meaning.node)
                values[inner] = Value(names.get(inner, part.prefix + inner.name), inner.type, bound=inner.bound, meaning=meaning)
            results = tuple(values[v] for v in node.outputs)
            location = node.location and replace(node.location, module=part.prefix + node.location.module)
            whole.nodes.append(Node(node.op, tuple(values[v] for v in node.inputs), results, location))
        for inner, outer in names.items():
            if outer in known:
                raise GraphError(f"{outer} is given twice, the second time by {part.prefix}{inner.name}")
            known[outer] = values[inner]
    missing = [o for o in outputs if o not in known]
    if missing:
        raise GraphError(f"no part gives {', '.join(missing)}")
    whole.outputs = [known[o] for o in outputs]
    return whole
