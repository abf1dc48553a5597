"""What passes are made of: rebuilding a graph, and local rewrite rules applied while it is rebuilt.

A pass is a plain function `Graph -> Graph`, or `(Graph, evaluate) -> Graph` when it computes constants. It never writes
to the graph that it is given, and returns that very graph when there is nothing to do. Values and locations are kept,
and so are the names, the order and the types of the inputs and outputs.

A rule is a function `(Rewriter, Node) -> Value | Refused | None` that does three things in this order:
match (None: not this pattern), check (`Refused(reason)`: the pattern, but the rewrite would be wrong or useless),
rewrite (the value that replaces the node's result). Its docstring says before -> after and the conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tosaic.tosa import ops
from tosaic.tosa.graph import Bound, Graph, Location, Move, Node, Value
from tosaic.tosa.types import DType, TensorType

Evaluate = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Refused:
    """Why a rule does not apply to a node that it matched."""

    reason: str


@dataclass(frozen=True)
class Refusal:
    """One refusal as `rewrite` records it."""

    rule: str
    value: str
    reason: str


Rule = Callable[["Rewriter", Node], "Value | Refused | None"]


def narrower(one: Bound | None, other: Bound | None) -> Bound | None:
    """What two bounds say together."""
    if one is None or other is None:
        return one or other
    low, high = max(one.low, other.low), min(one.high, other.high)
    return one if (low, high) == one[:2] else other if (low, high) == other[:2] else Bound(low, high, f"{one.why}; {other.why}")


def rule(*types: type[ops.Op]) -> Callable[[Rule], Rule]:
    """Declare the operator types that a rule starts from."""

    def register(function: Rule) -> Rule:
        function.ops = types  # type: ignore[attr-defined]
        return function

    return register


def rewrite(graph: Graph, rules: Iterable[Rule], evaluate: Evaluate | None = None, refusals: list[Refusal] | None = None) -> Graph:
    """Apply local rules, common subexpression elimination and dead code elimination, in one sweep from inputs to outputs.

    Args:
        evaluate: runs a graph; for rules that compute constants.
        refusals: takes each refusal with its reason.
    """
    return Rewriter(graph, rules, evaluate, refusals).run()


# Operators whose operands may be swapped; with floats too, except that which NaN wins is not specified.
_COMMUTATIVE = (
    *(ops.Add, ops.Mul, ops.Maximum, ops.Minimum, ops.Equal),
    *(ops.BitwiseAnd, ops.BitwiseOr, ops.BitwiseXor, ops.LogicalAnd, ops.LogicalOr, ops.LogicalXor),
)


def _key(node: Node) -> tuple:
    """Nodes with equal keys compute the same value."""
    operands = [id(v) for v in node.inputs]
    if isinstance(node.op, _COMMUTATIVE) and not node.inputs[0].dtype.is_float:
        operands.sort()
    if isinstance(node.op, ops.Pad | ops.Clamp):  # 0.0 == -0.0, yet they are different attributes
        return (repr(node.op), *operands)
    return (node.op, *operands)


class Rewriter:
    """The graph under construction.

    Each node is offered to the rules when all its operands are final; what a rule emits is offered in turn, so a sweep
    reaches everything that looks from a node towards its operands.
    """

    def __init__(
        self, graph: Graph, rules: Iterable[Rule] = (), evaluate: Evaluate | None = None, refusals: list[Refusal] | None = None
    ) -> None:
        self.graph = graph
        self.evaluate = evaluate
        self._refusals = refusals
        self._rules: dict[type[ops.Op], list[Rule]] = {}
        for function in rules:
            for kind in function.ops:  # type: ignore[attr-defined]
                self._rules.setdefault(kind, []).append(function)
        self._nodes: list[Node] = []
        self._producer: dict[Value, Node] = {}
        self._known: dict[tuple, Value] = {}
        self._new: dict[Value, Value] = {}
        self._outputs = set(graph.outputs)
        self._claims: dict[Value, Value] = {}  # new value -> the output that it is
        self._claimed: dict[Value, Value] = {}  # and back
        fixed = [v.name for v in (*graph.inputs, *graph.constants())]
        self._used = set(fixed)
        self._old = {v for n in graph.nodes for v in n.outputs}
        self._reserved = {*fixed, *(v.name for v in self._old)}
        self._readers: dict[Value, int] | None = None
        self._root: Node | None = None

    def producer(self, value: Value) -> Node | None:
        """The node that makes `value` in the new graph; None for inputs and constants."""
        return self._producer.get(value)

    def made_by(self, value: Value, *kinds: type[ops.Op]) -> Node | None:
        """The node that makes `value` if its operator is one of `kinds`."""
        node = self._producer.get(value)
        return node if node is not None and isinstance(node.op, kinds) else None

    def readers(self, value: Value) -> int:
        """How many operands and outputs `value` is in the old graph (1 for values that are new)."""
        if self._readers is None:
            self._readers = {}
            for v in (*(v for n in self.graph.nodes for v in n.inputs), *self.graph.outputs):
                self._readers[v] = self._readers.get(v, 0) + 1
        return self._readers.get(value, 1)

    def current(self, value: Value) -> Value:
        """What stands for a value of the old graph."""
        return self._new.get(value, value)

    def replace(self, old: Value, new: Value, *moves: Move) -> None:
        """Let `new`, which holds the same numbers, stand for `old`, whose node goes; `moves` bring them into the old order."""
        self._new[old] = new
        if not new.is_const:
            new.bound = narrower(new.bound, old.bound)
            if new.meaning is None and old.meaning is not None:
                new.meaning = old.meaning.after(*moves)

    def const(self, data: np.ndarray, dtype: DType, name: str) -> Value:
        """A new constant."""
        array = np.ascontiguousarray(data, dtype=dtype.numpy).reshape(np.shape(data))
        array.flags.writeable = False
        return Value(self._unique(name), TensorType(dtype, array.shape), array)

    def emit(self, op: ops.Op, *inputs: Value, suffix: str = "") -> Value:
        """Add a node where the node at hand stands; a `suffix` names a value that is not the result of the rule."""
        assert self._root is not None
        root = self._root
        name = f"{root.output.name}_{suffix}" if suffix else root.output.name
        return self._settle(Node(op, inputs, (Value(name, op.result(*(v.type for v in inputs))),), root.location))

    def append(self, op: ops.Op, inputs: tuple[Value, ...], name: str, location: Location | None) -> Value:
        """Add a node as it is, without rules."""
        return self._append(Node(op, inputs, (Value(name, op.result(*(v.type for v in inputs))),), location))

    def at(self, node: Node | None) -> None:
        """Name what follows after `node`, whose result it may replace."""
        self._root = node

    def keep(self, node: Node, inputs: tuple[Value, ...]) -> Value:
        """Add a node of the old graph on these inputs, which hold what its own did; returns its (first) result."""
        return self._append(node if inputs == node.inputs else Node(node.op, inputs, node.outputs, node.location))

    def claim(self, old: Value, new: Value, location: Location | None = None) -> None:
        """Make `new` the graph output that `old` was.

        An output stays a tensor of its own: where it would be an input, a constant or another output, it gets an IDENTITY.
        """
        if new.is_const or new in self._claims or new not in self._producer:
            root = self._root
            if root is not None and root.output is old and root.op == ops.Identity() and self.current(root.inputs[0]) is new:
                new = self._append(self._updated(root))
            else:
                new = self.append(ops.Identity(), (new,), old.name, location)
        if new.meaning is None:
            new.meaning = old.meaning
        self._claims[new] = old
        self._claimed[old] = new

    def run(self) -> Graph:
        """Rebuild all nodes and finish."""
        for node in self.graph.nodes:
            self.at(node)
            for old, value in zip(node.outputs, self._results(node), strict=True):
                if value is not old:
                    self.replace(old, value)
                if old in self._outputs:
                    self.claim(old, value, node.location)
        return self.finish()

    def _results(self, node: Node) -> tuple[Value, ...]:
        """What stands for the results of a node of the old graph: rules are for operators with one result."""
        known = [self._new[v] for v in node.outputs if v in self._new]
        if len(known) == len(node.outputs):
            return tuple(known)
        if len(node.outputs) == 1:
            return (self._settle(self._updated(node)),)
        self._append(self._updated(node))
        return tuple(map(self.current, node.outputs))

    def finish(self) -> Graph:
        """The new graph without dead nodes; the old one if nothing changed."""
        outputs = [self._claimed.get(v, v) for v in self.graph.outputs]
        live = set(outputs)
        nodes: list[Node] = []
        for node in reversed(self._nodes):
            if not live.isdisjoint(node.outputs):
                live.update(node.inputs)
                nodes.append(node)
        nodes.reverse()
        same = len(nodes) == len(self.graph.nodes) and all(a is b for a, b in zip(nodes, self.graph.nodes, strict=True))
        if same and all(a is b for a, b in zip(outputs, self.graph.outputs, strict=True)):
            return self.graph
        names = {v: old.name for v, old in self._claims.items() if v.name != old.name}
        if names:
            nodes, outputs = self._renamed(nodes, outputs, names)
        return Graph(self.graph.name, list(self.graph.inputs), outputs, nodes)

    def _renamed(self, nodes: list[Node], outputs: list[Value], names: dict[Value, str]) -> tuple[list[Node], list[Value]]:
        wanted = set(names.values())
        new: dict[Value, Value] = {}
        for value in (v for n in nodes for v in n.outputs):
            name = names.get(value, value.name)
            if value not in names and name in wanted:
                name = self._unique(name)
            if name != value.name:
                new[value] = Value(name, value.type, bound=value.bound, meaning=value.meaning)
        for v in {v for n in nodes for v in n.inputs if v.is_const and v.name in wanted}:
            new[v] = Value(self._unique(v.name), v.type, v.data)

        def renamed(node: Node) -> Node:
            inputs = tuple(new.get(v, v) for v in node.inputs)
            values = tuple(new.get(v, v) for v in node.outputs)
            if values == node.outputs and inputs == node.inputs:
                return node
            return Node(node.op, inputs, values, node.location)

        return [renamed(n) for n in nodes], [new.get(v, v) for v in outputs]

    def _updated(self, node: Node) -> Node:
        inputs = tuple(self._new.get(v, v) for v in node.inputs)
        return node if inputs == node.inputs else Node(node.op, inputs, node.outputs, node.location)

    def _settle(self, node: Node) -> Value:
        for function in self._rules.get(type(node.op), ()):
            outcome = function(self, node)
            if isinstance(outcome, Value):
                return outcome
            if outcome is not None and self._refusals is not None:
                self._refusals.append(Refusal(function.__name__, node.output.name, outcome.reason))
        if isinstance(node.op, ops.Identity):  # keeps an output apart, so two of them are no common subexpression
            return self._append(node)
        key = _key(node)
        value = self._known.get(key)
        if value is None:
            value = self._known[key] = self._append(node)
        return value

    def _append(self, node: Node) -> Value:
        """Add a node; returns its (first) result."""
        for output in node.outputs:
            if output not in self._old:  # nobody has seen a new value's name yet; it may take that of the node it replaces
                replaced = () if self._root is None else (v.name for v in self._root.outputs)
                free = output.name not in self._reserved or output.name in replaced
                if output.name in self._used or not free:
                    output.name = self._unique(output.name)
            self._used.add(output.name)
            self._producer[output] = node
        self._nodes.append(node)
        return node.outputs[0]

    def _unique(self, name: str) -> str:
        candidate, n = name, 0
        while candidate in self._used or candidate in self._reserved:
            n += 1
            candidate = f"{name}_{n}"
        self._used.add(candidate)
        return candidate
