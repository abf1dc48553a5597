"""Control flow: COND_IF and WHILE_LOOP run graphs of their own, each with a simulator that is made when it first runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from tosaic.errors import ExecuteError
from tosaic.execute.handlers import Kernel, handles
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node

MOST_TURNS = 1_000_000  # such a loop is one that never ends for these inputs, rather than a network
_Run = Callable[..., list[np.ndarray]]


def _ready(graph: Graph) -> Callable[[], _Run]:
    @cache
    def run() -> _Run:
        from tosaic.execute.simulator import Simulator  # which imports this module

        return Simulator(graph).run

    return run


@handles(ops.CondIf)
def cond_if(node: Node) -> Kernel:
    then, otherwise = map(_ready, node.op.graphs)
    return lambda condition, *operands: tuple((then if condition.item() else otherwise)()(operands))


@handles(ops.WhileLoop)
def while_loop(node: Node) -> Kernel:
    condition, body = map(_ready, node.op.graphs)

    def kernel(*operands: np.ndarray) -> tuple[np.ndarray, ...]:
        values = list(operands)
        for _ in range(MOST_TURNS):
            if not condition()(values)[0].item():
                return tuple(values)
            values = body()(values)
        where = str(node.location) if node.location else f"%{node.outputs[0].name}"
        raise ExecuteError(f"WHILE_LOOP: graph {node.op.cond_graph.name} still asks for more after {MOST_TURNS} turns", where=where)

    return kernel
