"""Control flow: operators that run graphs of their own (specification chapter 2, "Control flow operators").

Such a graph sees nothing but its inputs, which are the operator's operands. `.tosa` files have these operators, SPIR-V graphs have not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tosaic.tosa.ops.base import BOOLS, STORED, B, Op
from tosaic.tosa.types import TensorType

if TYPE_CHECKING:
    from tosaic.tosa.graph import Graph


@dataclass(frozen=True, eq=False)
class ControlFlow(Op):
    """Compared by identity, as graphs are. A graph may be that of several operators."""

    ARITY = None

    def requires(self, *types: TensorType) -> str:
        return "cf"

    def _takes(self, graph: Graph, types: Sequence[TensorType]) -> None:
        own = [v.type for v in graph.inputs]
        self.require(own == list(types), f"graph {graph.name} takes {_listed(own)}, found {_listed(types)}")

    def _gives(self, graph: Graph, types: Sequence[TensorType]) -> None:
        own = [v.type for v in graph.outputs]
        self.require(own == list(types), f"graph {graph.name} gives {_listed(own)}, expected {_listed(types)}")


def _listed(types: Sequence[TensorType]) -> str:
    return f"({', '.join(map(str, types))})"


@dataclass(frozen=True, eq=False)
class CondIf(ControlFlow):
    """Runs one of two graphs on the operands behind the first, which is the condition: one boolean."""

    NAME = "COND_IF"
    SUPPORT = BOOLS
    then_graph: Graph
    else_graph: Graph

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return self.then_graph, self.else_graph

    def rule(self, condition: TensorType, *types: TensorType) -> tuple[TensorType, ...]:
        self.require(condition.size == 1, f"the condition is one boolean, found {condition}")
        results = tuple(v.type for v in self.then_graph.outputs)
        for graph in self.graphs:
            self._takes(graph, types)
            self._gives(graph, results)
        return results


@dataclass(frozen=True, eq=False)
class WhileLoop(ControlFlow):
    """Runs the body on its own results, first on the operands, while the other graph makes true of them."""

    NAME = "WHILE_LOOP"
    SUPPORT = STORED
    cond_graph: Graph
    body_graph: Graph

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return self.cond_graph, self.body_graph

    def rule(self, *types: TensorType) -> tuple[TensorType, ...]:
        for graph in self.graphs:
            self._takes(graph, types)
        self._gives(self.body_graph, types)
        made = [v.type for v in self.cond_graph.outputs]
        self.require(len(made) == 1 and made[0].dtype is B and made[0].size == 1, f"the condition is one boolean, found {_listed(made)}")
        return types
