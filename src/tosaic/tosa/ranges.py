"""Which integers each value of a graph can hold, and whether every operator takes them.

Where the pseudocode of the specification says REQUIRE about data (an addition that overflows, |value| < 2^(shift-1) of a
RESCALE, an index outside of its tensor, a division by zero), an operator is *unpredictable* for data that breaks it. A value's
interval follows from the types of the inputs, the constants themselves and one transfer function for each operator; where lowering
knows more (a calibrated range with its head-room, a correlation that intervals do not see), `Value.bound` says so and is
believed. `check_ranges` names each operator that some data within these intervals would break.

A graph input of type i32 without a bound holds the caller's own integers (indices, counts), and so does a cast of floats to i32: what
is computed from them is the caller's to keep in range, as it is in PyTorch.

An interval is one pair of numbers, or one pair for each index of the last axis: the channels after a convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from tosaic.errors import GraphError
from tosaic.tosa import ops, range_rules, range_rules_mac  # noqa: F401  they fill TRANSFER
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.interval import TRANSFER, Interval, of, of_type
from tosaic.tosa.types import DType

_MOST_CHANNELS = 1 << 16  # beyond that one interval stands for the whole tensor
_LISTED = 10  # problems that an error prints


@dataclass(frozen=True)
class RangeProblem:
    """An operator that is unpredictable for some data."""

    node: Node
    what: str

    def __str__(self) -> str:
        where = str(self.node.location) if self.node.location else ""
        return f"%{self.node.output.name}: {self.node.op.NAME}: {self.what}" + (f"\n    at: {where}" if where else "")


def intervals(graph: Graph) -> dict[Value, Interval]:
    """The interval of each integer and boolean value (floats have none)."""
    return Ranges(graph).known


def check_ranges(graph: Graph) -> list[RangeProblem]:
    """The operators that data within the intervals of their operands can break, in order."""
    return Ranges(graph).problems


def verify_ranges(graph: Graph) -> None:
    """Refuse a graph with an operator that some data can break.

    Raises:
        GraphError: names these operators.
    """
    problems = check_ranges(graph)
    if problems:
        lines = "\n".join(f"  {p}" for p in problems[:_LISTED])
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise GraphError(f"{len(problems)} integer operators can leave the range that the specification defines:\n{lines}{more}")


# results beyond the type are defined for these: they keep the low bits
_WRAPS = (ops.LogicalLeftShift, ops.Cast)
# operators that hand on, or compute with, the numbers of these operands: the caller's own stay the caller's
_ALL = slice(None)
_CARRIES: dict[type[ops.Op], slice] = {
    **dict.fromkeys((ops.Add, ops.Sub, ops.Mul, ops.IntDiv, ops.Negate, ops.Abs, ops.Maximum, ops.Minimum, ops.Cast), _ALL),
    **dict.fromkeys((ops.Identity, ops.Reshape, ops.Transpose, ops.Slice, ops.Tile, ops.Reverse, ops.Concat, ops.Pad), _ALL),
    **dict.fromkeys((ops.ReduceSum, ops.ReduceMax, ops.ReduceMin), _ALL),
    **dict.fromkeys((ops.ArithmeticRightShift, ops.LogicalLeftShift, ops.LogicalRightShift), _ALL),
    **dict.fromkeys((ops.BitwiseAnd, ops.BitwiseOr, ops.BitwiseXor, ops.BitwiseNot), _ALL),
    ops.Select: slice(1, None),
    ops.Gather: slice(1),
    ops.Scatter: slice(0, None, 2),
}


class Ranges:
    """The analysis of a graph, as far as it is built.

    Attributes:
        known: the interval of each integer and boolean value.
        problems: operators that data within these intervals can break.
    """

    def __init__(self, graph: Graph) -> None:
        self.known: dict[Value, Interval] = {}
        self.problems: list[RangeProblem] = []
        self.makers: dict[Value, Node] = {}
        self._free: set[Value] = set()
        self._graph, self._done = graph, 0
        for value in graph.inputs:
            if value.dtype.is_float:
                continue
            self.known[value] = _bounded(value, of_type(value.dtype))
            if value.dtype is DType.INT32 and value.bound is None:
                self._free.add(value)
        self.advance()

    def advance(self) -> None:
        """Look at the operators that were added since. Of some that were taken back nothing is known but their types."""
        for node in self._graph.nodes[self._done :]:
            self.makers.update((v, node) for v in node.outputs)
            self.known.update((v, _of_data(v)) for v in node.inputs if v.is_const and v not in self.known and not v.dtype.is_float)
            self._node(node)
        self._done = len(self._graph.nodes)

    def of(self, value: Value) -> Interval:
        """Of an integer value of the graph."""
        self.advance()
        return self.known.get(value) or of_type(value.dtype)

    def narrow(self, value: Value) -> None:
        """Take notice of a bound that was declared after the operator was looked at."""
        if value in self.known:
            self.known[value] = _bounded(value, self.known[value])
            self._free.discard(value)

    def _node(self, node: Node) -> None:
        if all(v.dtype.is_float for v in node.outputs):
            return
        carried = _CARRIES.get(type(node.op))
        if carried is not None and node.output.bound is None and not self._free.isdisjoint(node.inputs[carried]):
            self._free.add(node.output)
        if (
            isinstance(node.op, ops.Cast)
            and node.inputs[0].dtype.is_float
            and node.output.dtype is DType.INT32
            and node.output.bound is None
        ):
            self._free.add(node.output)
        function = TRANSFER.get(type(node.op))
        operands = [self.known.get(v) for v in node.inputs]
        if function is None or any(x is None and v.dtype.is_integer for x, v in zip(operands, node.inputs, strict=True)):
            self.known[node.output] = _bounded(node.output, of_type(node.output.dtype))
            return
        self._settle(node, function(self, node, *operands))

    def _settle(self, node: Node, result: Interval) -> None:
        """The result within its type and its declared bound."""
        value, whole = node.output, of_type(node.output.dtype)
        (low, high), (least, most) = result.ends, whole.ends
        if low < least or high > most:
            if value.bound is None and not isinstance(node.op, _WRAPS):
                self.problem(node, f"the result can be {result}, beyond {value.dtype.value}")
            result = whole if isinstance(node.op, _WRAPS) else result.within(*whole.ends)
        if (bound := value.bound) is not None and (bound.low > result.ends[1] or bound.high < result.ends[0]):
            self.problem(node, f"the result is declared to lie in {bound.low}..{bound.high} ({bound.why}), but it lies in {result}")
        result = _bounded(value, result)
        self.known[value] = result if 1 < result.low.size <= _MOST_CHANNELS else result.whole()

    def problem(self, node: Node, what: str) -> None:
        if self._free.isdisjoint(node.inputs):
            self.problems.append(RangeProblem(node, what))

    def maker(self, value: Value, *kinds: type[ops.Op]) -> Node | None:
        """The node that makes `value`, if its operator is one of `kinds`."""
        node = self.makers.get(value)
        return node if node is not None and isinstance(node.op, kinds) else None


def _bounded(value: Value, interval: Interval) -> Interval:
    return interval if value.bound is None else interval.within(value.bound.low, value.bound.high)


def _of_data(value: Value) -> Interval:
    assert value.data is not None
    if not value.data.size:
        return of(0, 0)
    last = value.data.shape[-1] if value.data.ndim else 1
    axes = tuple(range(value.data.ndim - 1)) if 1 < last <= _MOST_CHANNELS else None
    return of(value.data.min(axes), value.data.max(axes))
