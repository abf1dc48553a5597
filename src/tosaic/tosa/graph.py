"""The typed TOSA graph: values, nodes, the builder that types them, and the verifier.

Constants are values that carry data. Operands that TOSA demands to be compile-time constants (shapes, zero points,
multipliers, shifts) are attributes of the operator instead; `emit` turns them into CONST and CONST_SHAPE.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from tosaic.errors import GraphError, SpecError
from tosaic.tosa.content import digest
from tosaic.tosa.ops import Op
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType, TensorType

_BETWEEN = " | "


@dataclass(frozen=True)
class Location:
    """Where an operator came from: aten operator, module path, source file and line."""

    aten: str = ""
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        return _BETWEEN.join(p for p in (self.aten, self.module, self.source) if p)

    @classmethod
    def parse(cls, text: str) -> Location:
        """What `str` made; where a part was empty, those behind it come one too early."""
        return cls(*[*text.split(_BETWEEN), "", ""][:3])


class Bound(NamedTuple):
    """low <= stored <= high, and how lowering knows."""

    low: int
    high: int
    why: str = ""


Move = tuple[str, tuple[int, ...]]  # ("transpose", permutation) or ("reshape", shape)


@dataclass(frozen=True)
class Meaning:
    """What a value is in the user's model: the result of a node of the captured program.

    Attributes:
        node: its name there.
        scale, zero_point: real = scale * (stored - zero_point); None for floats, indices and conditions.
        moves: by which the stored tensor becomes the model's own, in order.
    """

    node: str
    scale: float | None = None
    zero_point: int | None = None
    moves: tuple[Move, ...] = ()

    def after(self, *moves: Move) -> Meaning:
        """Of a value that becomes this one by `moves`."""
        joined = [*moves, *self.moves]
        kept = [move for move, then in zip_longest(joined, joined[1:]) if not (then and move[0] == then[0] == "reshape")]
        return Meaning(self.node, self.scale, self.zero_point, tuple(kept))


@dataclass(eq=False)
class Value:
    """A tensor in the graph. `data` is set for constants only, and is never written to.

    Compared by identity; `name` is unique within a graph.

    Attributes:
        bound: of the stored integers, where lowering knows more than the operators say; see `ranges`.
        meaning: in the user's model, where it is a value of that.
    """

    name: str
    type: TensorType
    data: np.ndarray | None = None
    bound: Bound | None = None
    meaning: Meaning | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def is_const(self) -> bool:
        return self.data is not None

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(eq=False)
class Node:
    """One operator application."""

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    location: Location | None = None

    @property
    def output(self) -> Value:
        """The only result: for all operators but FFT2D and RFFT2D, which have two, and control flow."""
        (only,) = self.outputs
        return only


@dataclass
class Graph:
    """Inputs, outputs, and nodes in topological order."""

    name: str
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    @property
    def ops(self) -> list[Op]:
        """The operators in order, without constants."""
        return [n.op for n in self.nodes]

    def values(self) -> list[Value]:
        """Inputs and results of all operators, in order."""
        return [*self.inputs, *(value for node in self.nodes for value in node.outputs)]

    def nested(self) -> list[Graph]:
        """This graph and those that its control flow runs, each once and before what it runs itself."""
        found: dict[int, Graph] = {}

        def visit(graph: Graph) -> None:
            if id(graph) not in found:
                for inner in (g for node in graph.nodes for g in node.op.graphs):
                    visit(inner)
                found[id(graph)] = graph

        visit(self)
        return [*found.values()][::-1]

    def constants(self) -> list[Value]:
        """Constant values in order of first use (then constant outputs)."""
        seen: dict[int, Value] = {}
        for value in (*(v for n in self.nodes for v in n.inputs), *self.outputs):
            if value.is_const:
                seen.setdefault(id(value), value)
        return list(seen.values())

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that read each value."""
        users: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                users.setdefault(value, []).append(node)
        return users

    def __str__(self) -> str:
        from tosaic.tosa.text import print_graph

        return print_graph(self)


@dataclass(frozen=True)
class Mark:
    """A place in what a Builder has built: its counts."""

    nodes: int
    constants: int


class Names:
    """Names that are taken, and free ones made of those that are wanted: x, x_1, x_2."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}  # no number below is free

    def take(self, names: Iterable[str]) -> None:
        self._taken.update(names)

    def free(self, names: Iterable[str]) -> None:
        self._taken.difference_update(names)
        self._last.clear()

    def unique(self, name: str) -> str:
        """The name, or the first number behind it that makes one; it is taken from now on."""
        number = self._last.get(name, 0)
        candidate = f"{name}_{number}" if number else name
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._last[name] = number
        self._taken.add(candidate)
        return candidate


class Builder:
    """Appends operators to a graph; each result is typed by the operator's own rule.

    Names follow `prefix` (set by `at`), so that values are named after the FX node that they come from.
    """

    def __init__(self, name: str = "main") -> None:
        self.graph = Graph(name)
        self._names = Names()
        self._consts: dict[tuple, Value] = {}
        self._prefix = "v"
        self._location: Location | None = None

    @contextmanager
    def at(self, prefix: str, location: Location | None = None) -> Iterator[None]:
        """Name and locate everything that is emitted inside."""
        old = self._prefix, self._location
        self._prefix, self._location = prefix, location
        try:
            yield
        finally:
            self._prefix, self._location = old

    def reserve(self, names: Sequence[str]) -> None:
        """Keep names free for values that are renamed later (graph outputs)."""
        self._names.take(names)

    def input(self, name: str, dtype: DType, shape: Sequence[int]) -> Value:
        """Add a graph input."""
        value = Value(self._names.unique(name), TensorType(dtype, tuple(int(d) for d in shape)))
        self.graph.inputs.append(value)
        return value

    def const(self, data: np.ndarray, dtype: DType, name: str | None = None) -> Value:
        """A constant; equal constants become one value.

        Args:
            data: array of any type that holds the values exactly; it is copied to `dtype.numpy`.
        """
        given = np.asarray(data)
        if dtype.is_integer and given.size and (given.min() < dtype.min or given.max() > dtype.max):
            raise GraphError(f"constant does not fit {dtype.value}: {given.min()}..{given.max()}")
        array = np.ascontiguousarray(given.astype(dtype.numpy)).reshape(np.shape(data))
        key = (dtype, array.shape, digest(array))
        if key not in self._consts:
            array.flags.writeable = False
            self._consts[key] = Value(self._names.unique(name or f"{self._prefix}_const"), TensorType(dtype, array.shape), array)
        return self._consts[key]

    def adopt(self, data: np.ndarray, dtype: DType, name: str | None = None) -> Value:
        """A constant that is `data` itself, not a copy of it; equal ones stay apart.

        Args:
            data: of the type `dtype.numpy`; not written to any more. Only what does not lie in a row is copied.

        Raises:
            GraphError: numbers that `dtype` does not have, where it is narrower than the numbers.
        """
        if dtype in (DType.INT4, DType.INT48) and data.size and (data.min() < dtype.min or data.max() > dtype.max):
            raise GraphError(f"constant does not fit {dtype.value}: {data.min()}..{data.max()}")
        array = data if data.flags.c_contiguous else np.ascontiguousarray(data)
        return Value(self._names.unique(name or f"{self._prefix}_const"), TensorType(dtype, array.shape), array)

    def emit(self, op: Op, *inputs: Value, name: str | None = None) -> Value:
        """Append `op` and return its only result.

        Raises:
            GraphError: the operator does not take these types; the message names the operator and the location.
        """
        (only,) = self.emit_all(op, *inputs, names=[name or self._prefix])
        return only

    def emit_all(self, op: Op, *inputs: Value, names: Sequence[str] = ()) -> tuple[Value, ...]:
        """Append `op` and return all of its results; see `emit`."""
        try:
            results = op.results(*(v.type for v in inputs))
        except GraphError as error:
            where = error.where or (str(self._location) if self._location else None)
            raise GraphError(error.what, where=where, remedy=error.remedy) from None
        names = names or [self._prefix] * len(results)
        if len(names) != len(results):
            raise GraphError(f"{op.NAME}: gives {len(results)} results, {len(names)} are named")
        values = tuple(Value(self._names.unique(name), result) for name, result in zip(names, results, strict=True))
        self.graph.nodes.append(Node(op, inputs, values, self._location))
        return values

    def mark(self) -> Mark:
        """Where the graph is now, for `undo`."""
        return Mark(len(self.graph.nodes), len(self._consts))

    def undo(self, mark: Mark) -> None:
        """Take back what was emitted since; its values must not be used any more."""
        taken_back = [value for node in self.graph.nodes[mark.nodes :] for value in node.outputs]
        del self.graph.nodes[mark.nodes :]
        while len(self._consts) > mark.constants:
            taken_back.append(self._consts.popitem()[1])
        self._names.free(value.name for value in taken_back)

    def finish(self, outputs: Sequence[Value]) -> Graph:
        """Set the outputs and return the graph."""
        self.graph.outputs = list(outputs)
        return self.graph


def verify(graph: Graph, spec: Spec | None = None) -> None:
    """Check structure, types and, with a `spec`, profiles, extensions and level limits of every operator, in nested graphs too.

    Raises:
        GraphError: the structure or a type rule is broken.
        SpecError: operators need a profile, extension or level that `spec` lacks; the message lists all of them.
    """
    problems = [problem for part in graph.nested() for problem in _problems(part, spec)]
    if problems and spec is not None:
        raise _spec_error(problems, spec)


def _problems(graph: Graph, spec: Spec | None) -> list[_Problem]:
    """What of one graph a specification cannot hold; raises where the graph itself is wrong."""
    defined: set[Value] = set()
    names: set[str] = set()
    problems: list[_Problem] = []

    def define(value: Value) -> None:
        if value.name in names:
            raise GraphError(f"two values are named %{value.name}")
        names.add(value.name)
        defined.add(value)

    for value in (*graph.inputs, *graph.constants()):
        define(value)
    for node in graph.nodes:
        for value in node.inputs:
            if value not in defined:
                raise GraphError(f"{node.op.NAME}: operand %{value.name} is used before it is defined")
        where = str(node.location) if node.location else f"%{node.outputs[0].name}"
        try:
            results = node.op.results(*(v.type for v in node.inputs))
        except GraphError as error:
            raise GraphError(error.what, where=where) from None
        if len(results) != len(node.outputs):
            raise GraphError(f"{node.op.NAME}: gives {len(results)} results, found {len(node.outputs)}", where=where)
        for result, value in zip(results, node.outputs, strict=True):
            if result != value.type:
                raise GraphError(f"{node.op.NAME}: result is {result}, but %{value.name} is {value.type}", where=where)
            define(value)
        if spec is not None and (problem := _beyond(node, spec, where)) is not None:
            problems.append(problem)
    for value in graph.outputs:
        if value not in defined:
            raise GraphError(f"output %{value.name} is not defined")
    return problems


@dataclass(frozen=True)
class _Problem:
    what: str
    where: str
    needs: tuple[str, ...]  # profiles and extensions; none: a level


def _beyond(node: Node, spec: Spec, where: str) -> _Problem | None:
    """What of a node its specification cannot hold."""
    types = [v.type for v in node.inputs]
    requirement = node.op.requires(*types)
    if not spec.holds(requirement):
        first = requirement.split("|")[0].split("&")
        needs = " and ".join(first) if len(first) > 1 else requirement
        return _Problem(f"{node.op.NAME}({', '.join(map(str, types))}) needs {needs}", where, tuple(n for n in first if not spec.holds(n)))
    if excess := node.op.exceeds(spec.level, *types, *(v.type for v in node.outputs)):
        return _Problem(f"{node.op.NAME}: {excess}, beyond level {spec.level.name}", where, ())
    return None


def _spec_error(problems: list[_Problem], spec: Spec) -> SpecError:
    # one line for each place in the model: an operator of the model is several of TOSA
    places: dict[str, _Problem] = {}
    for problem in problems:
        places.setdefault(problem.where, problem)
    lines = "\n".join(f"  {p.what}\n    at: {p.where}" for p in places.values())
    needs = {n for p in problems for n in p.needs}
    wider = [f"use --spec {spec.plus(*needs)}"] if needs else []
    wider += ["use level none (+none) if the device allows it"] if any(not p.needs for p in problems) else []
    count = f"{len(places)} operator{'s' if len(places) > 1 else ''}"
    return SpecError(f"{spec} cannot hold {count} of the model:\n{lines}", remedy="; ".join(wider))
