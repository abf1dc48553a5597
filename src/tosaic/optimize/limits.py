"""Limits that have no effect: MINIMUM, MAXIMUM and CLAMP that intervals of the stored integers show to be idle.

    MINIMUM(x, y), x <= y everywhere     -> x       (MAXIMUM likewise)
    CLAMP(x), x inside everywhere        -> x
    RESCALE(MINIMUM(x, y))               -> RESCALE(x): what y cuts off, the RESCALE saturates (MAXIMUM likewise)

The third: every value from the least of y up to the greatest of x gives the largest number of the result type, in every channel, and
none of them leaves what RESCALE is defined for (|value| < 2^(shift-1)). It needs the MINIMUM to have no other reader. Where an
operator before is unpredictable for some data, so is the result, and nothing is said about that data.
"""

from __future__ import annotations

from tosaic.optimize.rewrite import Rewriter
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.interval import TRANSFER, Interval, of
from tosaic.tosa.ranges import intervals

_LIMITS = (ops.Minimum, ops.Maximum, ops.Clamp)


def drop_idle_limits(graph: Graph) -> Graph:
    """Remove limits that cut nothing, and those that the RESCALE behind them makes anyway."""
    if not any(isinstance(n.op, _LIMITS) and n.output.dtype.is_integer for n in graph.nodes):
        return graph
    known = intervals(graph)
    makers = {v: n for n in graph.nodes for v in n.outputs}
    rewriter = Rewriter(graph)
    changed = False
    for node in graph.nodes:
        if isinstance(node.op, _LIMITS) and node.output.dtype.is_integer:
            kept = _idle(node, known)
            if kept is not None:
                rewriter.replace(node.output, rewriter.current(kept))
                changed = True
        elif isinstance(node.op, ops.Rescale):
            limit = makers.get(node.inputs[0])
            source = _unlimited(node, limit, known) if limit is not None and rewriter.readers(limit.output) == 1 else None
            if limit is not None and source is not None:
                rewriter.replace(limit.output, rewriter.current(source))
                changed = True
    return rewriter.run() if changed else graph


def _idle(node: Node, known: dict[Value, Interval]) -> Value | None:
    """The operand that the limit always returns."""
    op = node.op
    if isinstance(op, ops.Clamp):
        low, high = known[node.inputs[0]].ends
        return node.inputs[0] if op.min <= low and high <= op.max else None
    for x, y in (node.inputs, node.inputs[::-1]):
        if x.type == node.output.type and not x.is_const and _never_beyond(op, known[x], known[y]):
            return x
    return None


def _never_beyond(op: ops.Op, x: Interval, y: Interval) -> bool:
    """Whether the limit `y` cuts nothing of `x`."""
    (x_low, x_high), (y_low, y_high) = x.ends, y.ends
    return x_high <= y_low if isinstance(op, ops.Minimum) else y_high <= x_low


def _unlimited(node: Node, limit: Node | None, known: dict[Value, Interval]) -> Value | None:
    """What the RESCALE may read in place of the limited value."""
    if limit is None or not isinstance(limit.op, ops.Minimum | ops.Maximum) or limit.output.bound is not None:
        return None  # a declared bound would pass to the operand, for which it need not hold
    assert isinstance(node.op, ops.Rescale)
    if node.op.input_unsigned or node.op.output_unsigned:
        return None
    top = isinstance(limit.op, ops.Minimum)
    end = node.op.dtype.max if top else node.op.dtype.min
    for x, y in (limit.inputs, limit.inputs[::-1]):
        if x.type != limit.output.type or x.is_const:
            continue
        (x_low, x_high), (y_low, y_high) = known[x].ends, known[y].ends
        cut = of(y_low, max(y_low, x_high)) if top else of(min(y_high, x_low), y_high)
        probe = _Probe()
        result = TRANSFER[ops.Rescale](probe, node, cut)
        if not probe.problems and result.ends == (end, end):
            return x
    return None


class _Probe:
    """Collects what a transfer function finds wrong."""

    def __init__(self) -> None:
        self.known: dict[Value, Interval] = {}
        self.problems: list[str] = []

    def maker(self, value: Value, *kinds: type[ops.Op]) -> Node | None:
        return None

    def problem(self, node: Node, what: str) -> None:
        self.problems.append(what)
