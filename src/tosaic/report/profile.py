"""Where the time of a run goes: the seconds of each operator, summed by kind and by node."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from tosaic.tosa.graph import Node


@dataclass(frozen=True)
class Line:
    """Time of operators.

    Attributes:
        operators: what they are, like "CONV2D+RESCALE" where both are computed as one.
        nodes: of the line; the result of the last is what the line computes, where there is one such result.
        count: calls in one run.
        seconds: in one run.
    """

    operators: str
    nodes: tuple[Node, ...]
    count: int
    seconds: float


class Profile:
    """Collects what the simulator's timer says: pass it as `timer` to `Artifact.run` or `Simulator.run`, for one or more runs."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[Node, ...], float] = {}
        self._calls: dict[tuple[Node, ...], int] = {}

    def __call__(self, nodes: tuple[Node, ...], seconds: float) -> None:
        self._seconds[nodes] = self._seconds.get(nodes, 0.0) + seconds
        self._calls[nodes] = self._calls.get(nodes, 0) + 1

    @property
    def runs(self) -> int:
        """How often the graph ran."""
        return max(self._calls.values(), default=0)

    @property
    def seconds(self) -> float:
        """Of all operators in one run."""
        return sum(self._seconds.values()) / max(self.runs, 1)

    def by_operator(self) -> list[Line]:
        """One line for each kind of operator, slowest first."""
        return self._lines([(_title(nodes), nodes) for nodes in self._seconds])

    def by_node(self) -> list[Line]:
        """One line for each operator, slowest first."""
        return self._lines([(nodes, nodes) for nodes in self._seconds])

    def _lines(self, keyed: Sequence[tuple[Hashable, tuple[Node, ...]]]) -> list[Line]:
        groups: dict[Hashable, list[tuple[Node, ...]]] = {}
        for key, nodes in keyed:
            groups.setdefault(key, []).append(nodes)
        lines = [
            Line(_title(group[0]), group[0], len(group), sum(self._seconds[n] for n in group) / max(self.runs, 1))
            for group in groups.values()
        ]
        return sorted(lines, key=lambda line: -line.seconds)


def _title(nodes: tuple[Node, ...]) -> str:
    return "+".join(node.op.NAME for node in nodes)
