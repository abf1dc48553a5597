"""Where two executors part: the first operator whose result differs.

The graph is run in pieces. Each piece gets the simulator's values as its inputs and gives the result of each of its operators,
so that an operator that is wrong is wrong by itself, and nothing before it can hide it or be taken for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tosaic.errors import TosaicError
from tosaic.execute.compare import Difference, difference
from tosaic.execute.simulator import evaluate
from tosaic.tosa.graph import Graph, Node, Value

Shows = Callable[[Value], bool]
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
    together: tuple[Node, ...] = ()

    @property
    def operators(self) -> str:
        """What the operator is called, with those that it may be instead."""
        return "+".join(node.op.NAME for node in (*self.together, self.node))


def cut(nodes: Sequence[Node], outputs: Sequence[Value] | None = None) -> Graph:
    """Nodes of a graph, in its order, as a graph of their own.

    Args:
        outputs: what it gives; without them every node's result.
    """
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(v for node in nodes for v in node.inputs if not v.is_const and v not in made)
    return Graph("part", list(read), list(outputs if outputs is not None else (v for n in nodes for v in n.outputs)), list(nodes))


def first_difference(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    run: Run,
    tolerance: float | None = None,
    shows: Shows = lambda value: True,
    progress: Callable[[int], None] | None = None,
) -> Finding | None:
    """The first operator that `run` computes differently from the simulator when given the same inputs; None if there is none.

    Args:
        inputs: of the graph, with its own types.
        run: an executor: runs any graph.
        tolerance: of floats, see `compare.difference`.
        shows: whether the executor can take and give a value; operators between which one stands that it cannot stay together.
        progress: called with the number of operators that are done.
    """
    values: dict[Value, np.ndarray] = dict(zip(graph.inputs, inputs, strict=True))
    last = {value: i for i, node in enumerate(graph.nodes) for value in node.inputs}
    done = 0
    for steps in _pieces(graph, shows):
        nodes = [node for step in steps for node in step]
        found = cut(nodes)
        values |= zip(found.outputs, evaluate(found, [values[v] for v in found.inputs]), strict=True)
        if (finding := _compared(steps, values, run, tolerance, shows)) is not None:
            return finding
        done += len(nodes)
        values = {v: array for v, array in values.items() if last.get(v, -1) >= done}
        if progress is not None:
            progress(done)
    return None


_Step = list[Node]  # operators that stay together


def _pieces(graph: Graph, shows: Shows) -> Iterator[list[_Step]]:
    steps: list[_Step] = []
    count = size = 0
    for step in _steps(graph, shows):
        nbytes = sum(v.type.size * v.dtype.numpy.itemsize for node in step for v in node.outputs)
        if steps and (count + len(step) > NODES or size + nbytes > BYTES):
            yield steps
            steps, count, size = [], 0, 0
        steps.append(step)
        count, size = count + len(step), size + nbytes
    if steps:
        yield steps


def _steps(graph: Graph, shows: Shows) -> Iterator[_Step]:
    """The operators in order, those together between which a value stands that cannot be shown."""
    last = {value: i for i, node in enumerate(graph.nodes) for value in node.inputs}
    step: _Step = []
    end = 0
    for i, node in enumerate(graph.nodes):
        step.append(node)
        end = max(end, i, *(last.get(v, i) for v in node.outputs if not shows(v)))
        if end == i:
            yield step
            step = []


def _compared(steps: list[_Step], values: dict[Value, np.ndarray], run: Run, tolerance: float | None, shows: Shows) -> Finding | None:
    """What is wrong with a piece; where the executor fails, in the first half that it fails on."""
    nodes = [node for step in steps for node in step]
    made = [v for node in nodes for v in node.outputs]
    piece = cut(nodes, [v for v in made if shows(v)])
    if not piece.outputs:
        return None
    try:
        found = run(piece, [values[v] for v in piece.inputs])
    except TosaicError as error:
        if len(steps) == 1:
            return Finding(nodes[-1], piece.outputs[0], None, error.what, together=tuple(nodes[:-1]))
        middle = len(steps) // 2
        halves = (_compared(half, values, run, tolerance, shows) for half in (steps[:middle], steps[middle:]))
        return next((finding for finding in halves if finding is not None), None)
    makers = {value: node for node in nodes for value in node.outputs}
    finding = _first_wrong(makers, piece.outputs, [values[v] for v in piece.outputs], found, tolerance)
    if finding is None:
        return None
    return replace(finding, together=_unseen(finding.node, makers, shows))


def _unseen(node: Node, makers: dict[Value, Node], shows: Shows) -> tuple[Node, ...]:
    """The operators whose results only `node` saw, as they cannot be shown."""
    unseen = [makers[v] for v in node.inputs if v in makers and not shows(v)]
    return tuple(dict.fromkeys(n for before in unseen for n in (*_unseen(before, makers, shows), before)))


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


def first_prefix(
    graph: Graph,
    output: Value,
    inputs: Sequence[np.ndarray],
    run: Run,
    tolerance: float | None = None,
    shows: Shows = lambda value: True,
) -> Finding | None:
    """The shortest part from the graph's inputs on whose result differs, by bisection; None where not even `output` does.

    For differences that no operator shows by itself. Bisection takes it that what is wrong stays wrong; where it does not, some
    operator is named before which all is well and behind which it is not.

    Args:
        output: a value of the graph that was seen to differ.
        tolerance, shows: see `first_difference`.
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
    ends = [i + 1 for i, node in enumerate(nodes) if all(map(shows, node.outputs))]
    good, bad = -1, len(ends) - 1
    while finding is not None and bad - good > 1:
        middle = (good + bad) // 2
        earlier = at(nodes[: ends[middle]])
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
