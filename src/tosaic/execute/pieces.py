"""Where two executors part: the first operator whose result differs.

The graph is run in pieces. Each piece gets the simulator's values as its inputs and gives the result of each of its operators,
so that an operator that is wrong is wrong by itself, and nothing before it can hide it or be taken for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tosaic.errors import TosaicError
from tosaic.execute.compare import Difference, difference
from tosaic.execute.simulator import evaluate
from tosaic.tosa.graph import Graph, Node, Value

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
NODES, BYTES = 24, 1 << 28  # of one piece


@dataclass(frozen=True)
class Finding:
    """An operator whose result is wrong, or that the executor fails on.

    Attributes:
        node: the operator.
        value: its result that is wrong (the first, where it fails).
        difference: of that; None where the executor failed.
        failure: what the executor said.
        alone: the operator itself got equal inputs; False: everything from the graph's inputs to this operator was run as one,
            and each operator by itself is right (the executor joins operators, or float differences add up).
    """

    node: Node
    value: Value
    difference: Difference | None
    failure: str = ""
    alone: bool = True


def cut(nodes: Sequence[Node], outputs: Sequence[Value] | None = None) -> Graph:
    """Nodes of a graph, in its order, as a graph of their own.

    Args:
        outputs: what it gives; without them every node's result.
    """
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(v for node in nodes for v in node.inputs if not v.is_const and v not in made)
    return Graph("part", list(read), list(outputs if outputs is not None else (v for n in nodes for v in n.outputs)), list(nodes))


def first_difference(
    graph: Graph, inputs: Sequence[np.ndarray], run: Run, tolerance: float | None = None, progress: Callable[[int], None] | None = None
) -> Finding | None:
    """The first operator that `run` computes differently from the simulator when given the same inputs; None if there is none.

    Args:
        inputs: of the graph, with its own types.
        run: an executor: runs any graph.
        tolerance: of floats, see `compare.difference`.
        progress: called with the number of operators that are done.
    """
    values: dict[Value, np.ndarray] = dict(zip(graph.inputs, inputs, strict=True))
    last = {value: i for i, node in enumerate(graph.nodes) for value in node.inputs}
    done = 0
    for nodes in _pieces(graph):
        piece = cut(nodes)
        given = [values[v] for v in piece.inputs]
        expected = evaluate(piece, given)
        if (finding := _compared(piece, given, expected, run, tolerance)) is not None:
            return finding
        done += len(nodes)
        values |= zip(piece.outputs, expected, strict=True)
        values = {v: array for v, array in values.items() if last.get(v, -1) >= done}
        if progress is not None:
            progress(done)
    return None


def _pieces(graph: Graph) -> Iterator[list[Node]]:
    nodes: list[Node] = []
    size = 0
    for node in graph.nodes:
        nbytes = sum(v.type.size * v.dtype.numpy.itemsize for v in node.outputs)
        if nodes and (len(nodes) == NODES or size + nbytes > BYTES):
            yield nodes
            nodes, size = [], 0
        nodes.append(node)
        size += nbytes
    if nodes:
        yield nodes


def _compared(piece: Graph, given: list[np.ndarray], expected: list[np.ndarray], run: Run, tolerance: float | None) -> Finding | None:
    """What is wrong with a piece; where the executor fails, in the first half that it fails on."""
    try:
        found = run(piece, given)
    except TosaicError as error:
        if len(piece.nodes) == 1:
            return Finding(piece.nodes[0], piece.outputs[0], None, error.what)
        values = dict(zip((*piece.inputs, *piece.outputs), (*given, *expected), strict=True))
        middle = len(piece.nodes) // 2
        for nodes in (piece.nodes[:middle], piece.nodes[middle:]):
            half = cut(nodes)
            finding = _compared(half, [values[v] for v in half.inputs], [values[v] for v in half.outputs], run, tolerance)
            if finding is not None:
                return finding
        return None
    makers = {value: node for node in piece.nodes for value in node.outputs}
    return _first_wrong(makers, piece.outputs, expected, found, tolerance)


def _first_wrong(
    makers: dict[Value, Node],
    values: Sequence[Value],
    expected: list[np.ndarray],
    found: list[np.ndarray],
    tolerance: float | None,
    alone: bool = True,
) -> Finding | None:
    for value, a, b in zip(values, expected, found, strict=True):
        compared = difference(a, b, tolerance)
        if not compared.agrees:
            return Finding(makers[value], value, compared, alone=alone)
    return None


def first_prefix(graph: Graph, output: Value, inputs: Sequence[np.ndarray], run: Run, tolerance: float | None = None) -> Finding | None:
    """The shortest part from the graph's inputs on whose result differs, by bisection; None where not even `output` does.

    For differences that no operator shows by itself. Bisection takes it that what is wrong stays wrong; where it does not, some
    operator is named before which all is well and behind which it is not.

    Args:
        output: a value of the graph that was seen to differ.
    """
    given = dict(zip(graph.inputs, inputs, strict=True))

    def at(nodes: Sequence[Node]) -> Finding | None:
        part = _reaching(nodes)
        arrays = [given[v] for v in part.inputs]
        expected = evaluate(part, arrays)
        try:
            found = run(part, arrays)
        except TosaicError as error:
            return Finding(nodes[-1], nodes[-1].outputs[0], None, error.what, alone=False)
        return _first_wrong(dict.fromkeys(part.outputs, nodes[-1]), part.outputs, expected, found, tolerance, alone=False)

    end = next((i for i, node in enumerate(graph.nodes) if output in node.outputs), None)
    if end is None:
        return None
    nodes = _reaching(graph.nodes[: end + 1]).nodes
    finding = at(nodes)
    good, bad = -1, len(nodes) - 1
    while finding is not None and bad - good > 1:
        middle = (good + bad) // 2
        earlier = at(nodes[: middle + 1])
        good, bad, finding = (middle, bad, finding) if earlier is None else (good, middle, earlier)
    return finding


def _reaching(nodes: Sequence[Node]) -> Graph:
    """What the last of `nodes` depends on among them, with its results as the only outputs."""
    wanted = set(nodes[-1].outputs)
    kept = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return cut(kept[::-1], nodes[-1].outputs)
