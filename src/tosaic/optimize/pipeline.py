"""The passes in their order, and `optimize`, which runs them until nothing changes."""

from __future__ import annotations

from collections.abc import Callable

from tosaic.optimize import movement, rescale, sums, table, windows
from tosaic.optimize.layout import choose_layouts
from tosaic.optimize.limits import drop_idle_limits
from tosaic.optimize.rewrite import Evaluate, rewrite
from tosaic.optimize.shapes import fit_ranks
from tosaic.optimize.siblings import merge_siblings
from tosaic.optimize.simplify import fold_constants, merge_constants
from tosaic.optimize.slices import merge_sliced_axes
from tosaic.tosa.graph import Graph

RULES = (*movement.RULES, *rescale.RULES, *sums.RULES, *table.RULES, *windows.RULES)

Pass = Callable[[Graph, Evaluate], Graph]


def simplify(graph: Graph, evaluate: Evaluate) -> Graph:
    """All local rules, common subexpressions and dead code in one sweep."""
    return rewrite(graph, RULES, evaluate)


def one_constant(graph: Graph, evaluate: Evaluate) -> Graph:
    """See `simplify.merge_constants`."""
    return merge_constants(graph)


def limits(graph: Graph, evaluate: Evaluate) -> Graph:
    """See `limits.drop_idle_limits`."""
    return drop_idle_limits(graph)


def layouts(graph: Graph, evaluate: Evaluate) -> Graph:
    """See `layout.choose_layouts`."""
    return choose_layouts(graph)


def ranks(graph: Graph, evaluate: Evaluate) -> Graph:
    """See `shapes.fit_ranks`."""
    return fit_ranks(graph)


def slices(graph: Graph, evaluate: Evaluate) -> Graph:
    """See `slices.merge_sliced_axes`."""
    return merge_sliced_axes(graph)


def siblings(graph: Graph, evaluate: Evaluate) -> Graph:
    """See `siblings.merge_siblings`."""
    return merge_siblings(graph)


PASSES: tuple[Pass, ...] = (
    fold_constants,  # first: what is constant has any layout, any shape and known bounds
    one_constant,  # before common subexpressions are sought, which compare operands by identity
    simplify,  # before layouts, so that pairs that cancel and TRANSPOSEs that are a RESHAPE do not count there
    limits,  # after constants have their numbers
    layouts,  # brings operators together that a TRANSPOSE stood between; the next round of `simplify` joins them
    ranks,  # after layouts, which turn some TRANSPOSEs into a RESHAPE
    slices,  # after layouts, which bring SLICEs before their TRANSPOSEs
    siblings,  # after ranks, which leave one RESHAPE between a projection and its heads
)
ROUNDS = 10


def optimize(graph: Graph, evaluate: Evaluate) -> Graph:
    """The graph, computing the same bits with less work.

    Args:
        evaluate: runs a graph on given inputs (the simulator); it computes constants.
    """
    for _ in range(ROUNDS):
        before = graph
        for step in PASSES:
            graph = step(graph, evaluate)
        if graph is before:
            break
    return graph
