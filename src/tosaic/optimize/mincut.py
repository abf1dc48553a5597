"""Minimum cut of a small directed network (Dinic's algorithm), for the choice of layouts."""

from __future__ import annotations

from collections import deque


class Network:
    """Nodes are integers; 0 is the source and 1 the sink."""

    def __init__(self) -> None:
        self._arcs: list[list[int]] = [[], []]  # node -> indices into _head and _room; arc i and i ^ 1 are each other's reverse
        self._head: list[int] = []
        self._room: list[int] = []

    def node(self) -> int:
        self._arcs.append([])
        return len(self._arcs) - 1

    def arc(self, tail: int, head: int, capacity: int) -> None:
        """Cutting `tail` (source side) from `head` (sink side) costs `capacity`."""
        for a, b, room in ((tail, head, capacity), (head, tail, 0)):
            self._arcs[a].append(len(self._head))
            self._head.append(b)
            self._room.append(room)

    def source_side(self) -> set[int]:
        """The largest source side of a minimum cut."""
        while self._augment(self._levels()):
            pass
        # Whatever cannot reach the sink any more belongs to the source.
        reach, queue = {1}, deque([1])
        while queue:
            for arc in self._arcs[queue.popleft()]:
                tail = self._head[arc]
                if self._room[arc ^ 1] and tail not in reach:
                    reach.add(tail)
                    queue.append(tail)
        return set(range(len(self._arcs))) - reach

    def _levels(self) -> list[int]:
        levels = [-1] * len(self._arcs)
        levels[0] = 0
        queue = deque([0])
        while queue:
            tail = queue.popleft()
            for arc in self._arcs[tail]:
                head = self._head[arc]
                if self._room[arc] and levels[head] < 0:
                    levels[head] = levels[tail] + 1
                    queue.append(head)
        return levels

    def _augment(self, levels: list[int]) -> bool:
        """Saturate the level graph; False when the sink is out of reach."""
        if levels[1] < 0:
            return False
        at = [0] * len(self._arcs)  # the first arc of each node that may still lead to the sink
        path: list[int] = []  # arcs from the source
        while True:
            tail = self._head[path[-1]] if path else 0
            if tail == 1:
                self._push(path)
                continue
            arcs, index = self._arcs[tail], at[tail]
            while index < len(arcs) and not (self._room[arcs[index]] and levels[self._head[arcs[index]]] == levels[tail] + 1):
                index += 1
            at[tail] = index
            if index < len(arcs):
                path.append(arcs[index])
            elif path:
                path.pop()
                at[self._head[path[-1]] if path else 0] += 1
            else:
                return True

    def _push(self, path: list[int]) -> None:
        """Send what `path` has room for, and step back to the tail of its first arc that is full then."""
        flow = min(self._room[arc] for arc in path)
        for arc in path:
            self._room[arc] -= flow
            self._room[arc ^ 1] += flow
        del path[next(i for i, arc in enumerate(path) if not self._room[arc]) :]
