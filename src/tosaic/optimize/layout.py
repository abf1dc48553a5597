"""Layouts: every tensor is stored in the order of axes that makes the fewest bytes go through TRANSPOSE.

A network that was lowered from NCHW has a TRANSPOSE before and after each convolution. Between them stand operators that
take any order of axes once their attributes follow (`axes.py`). So a layout is chosen for every tensor:

    x -> TRANSPOSE -> CONV2D -> TRANSPOSE -> ADD -> TRANSPOSE -> CONV2D
    x -> TRANSPOSE -> CONV2D -> ADD -> CONV2D

The cost of a choice is the bytes of all tensors that must be stored in a second layout, then their number; orders that
differ in axes of length 1 only are a RESHAPE and cost nothing, and neither do constants. Starting from the graph as it
is, each TRANSPOSE proposes a move: one of its sides takes the layout of the other, and all operators that can follow
do. A minimum cut finds the part of them for which the move pays. A move is kept only if it lowers the cost, so
the search ends, and the result never transposes more than the graph did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tosaic.optimize import axes
from tosaic.optimize.axes import Layout, Layouts
from tosaic.optimize.mincut import Network
from tosaic.optimize.rewrite import Rewriter
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value

_BYTE = 1 << 16  # bytes come before the number of TRANSPOSEs
_IMPOSSIBLE = 1 << 80  # i48 and i4 have no TRANSPOSE
_SWEEPS = 8
_WORK = 200  # operators visited, for each operator of the graph, before the search stops


def choose_layouts(graph: Graph) -> Graph:
    """Give every tensor the layout that transposes least."""
    if not any(isinstance(n.op, ops.Transpose) for n in graph.nodes):
        return graph
    plan = _Assignment(graph)
    return plan.rebuild() if plan.improve() else graph


def transposed(graph: Graph) -> tuple[int, int]:
    """Bytes that go through TRANSPOSE, and the number of these."""
    sizes = [n.output.type.nbytes for n in graph.nodes if isinstance(n.op, ops.Transpose)]
    return sum(sizes), len(sizes)


@dataclass
class _Tensor:
    """A value that is not the result of a TRANSPOSE, and who reads it."""

    value: Value
    maker: int | None  # index of the node; None for inputs and constants
    readers: list[tuple[int, int, Layout]] = field(default_factory=list)  # node, operand, TRANSPOSE in between


class _Assignment:
    """The layouts of all nodes. A graph output counts as a node without operator that reads it as it is."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node | None] = []
        self.layouts: list[Layouts] = []
        self.tensors: dict[Value, _Tensor] = {}
        self.operands: list[list[tuple[_Tensor, Layout]]] = []
        self._seen_through: dict[Value, tuple[_Tensor, Layout]] = {}  # value -> tensor and the TRANSPOSE that makes it
        self._transposes: dict[tuple[Value, Layout], Node] = {}
        for value in (*graph.inputs, *graph.constants()):
            self._tensor(value, None)
        for node in graph.nodes:
            if isinstance(node.op, ops.Transpose):
                tensor, outer = self._seen_through[node.inputs[0]]
                self._seen_through[node.output] = tensor, axes.compose(outer, node.op.perms)
                self._transposes.setdefault((tensor.value, self._seen_through[node.output][1]), node)
                continue
            self._node(node, node.inputs, axes.original(node))
            for value in node.outputs:
                self._tensor(value, len(self.nodes) - 1)
        for value in graph.outputs:
            own = axes.identity(len(value.shape))
            self._node(None, (value,), (own, own))

    def _tensor(self, value: Value, maker: int | None) -> None:
        self.tensors[value] = tensor = _Tensor(value, maker)
        self._seen_through[value] = tensor, axes.identity(len(value.shape))

    def _node(self, node: Node | None, inputs: tuple[Value, ...], layouts: Layouts) -> None:
        operands = [self._seen_through[v] for v in inputs]
        for i, (tensor, outer) in enumerate(operands):
            tensor.readers.append((len(self.nodes), 1 + i, outer))
        self.nodes.append(node)
        self.layouts.append(layouts)
        self.operands.append(operands)

    # The search

    def improve(self) -> bool:
        """Apply moves until none pays."""
        budget = _WORK * (len(self.nodes) + 50)
        improved = False
        for _ in range(_SWEEPS):
            tried: set[tuple[int, Layouts]] = set()
            moved = False
            for tensor in self.tensors.values():
                for start, layouts in list(self._proposals(tensor)):
                    if budget < 0:
                        return improved or moved
                    if self.layouts[start] == layouts or (start, layouts) in tried:
                        continue
                    flood = self._flood(start, layouts)
                    budget -= len(flood)
                    tried.update(flood.items())
                    moved |= self._adopt(flood)
            if not moved:
                break
            improved = True
        return improved

    def _stored(self, tensor: _Tensor) -> Layout:
        return axes.identity(len(tensor.value.shape)) if tensor.maker is None else self.layouts[tensor.maker][0]

    def _wanted(self, tensor: _Tensor) -> Iterator[tuple[int, int, Layout, Layout]]:
        """Reader, operand, TRANSPOSE in between, and the layout of `tensor` that it reads."""
        for reader, index, outer in tensor.readers:
            yield reader, index, outer, axes.compose(outer, self.layouts[reader][index])

    def _proposals(self, tensor: _Tensor) -> Iterator[tuple[int, Layouts]]:
        """For each TRANSPOSE that `tensor` needs: its maker takes the reader's layout, or the reader the maker's."""
        if tensor.value.is_const:
            return
        stored = self._stored(tensor)
        for reader, index, outer, wanted in self._wanted(tensor):
            if self._price(tensor, wanted, stored) < _BYTE:
                continue
            if tensor.maker is not None and (layouts := self._follow(tensor.maker, 0, wanted)):
                yield tensor.maker, layouts
            if layouts := self._follow(reader, index, axes.compose(axes.inverse(outer), stored)):
                yield reader, layouts

    def _follow(self, node: int, index: int, layout: Layout) -> Layouts | None:
        real = self.nodes[node]
        return None if real is None else axes.follow(real, index, layout)

    def _flood(self, start: int, layouts: Layouts) -> dict[int, Layouts]:
        """The layouts that all nodes around `start` would have if each could follow its neighbour."""
        flood = {start: layouts}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            real = self.nodes[node]
            assert real is not None
            sides = [(self.tensors[real.output], flood[node][0])]
            sides += [(t, axes.compose(outer, flood[node][1 + i])) for i, (t, outer) in enumerate(self.operands[node])]
            for tensor, stored in sides:
                if tensor.value.is_const:
                    continue
                ends = [(reader, index, axes.compose(axes.inverse(outer), stored)) for reader, index, outer in tensor.readers]
                if tensor.maker is not None:
                    ends.append((tensor.maker, 0, stored))
                for other, index, layout in ends:
                    new = None if other in flood else self._follow(other, index, layout)
                    if new is not None and new != self.layouts[other]:
                        flood[other] = new
                        queue.append(other)
        return flood

    def _price(self, tensor: _Tensor, wanted: Layout, stored: Layout) -> int:
        """Cost of a copy of `tensor` in another layout."""
        if wanted == stored or tensor.value.is_const:
            return 0
        if axes.significant(tensor.value.shape, wanted) == axes.significant(tensor.value.shape, stored):
            return 1
        if tensor.value.dtype not in ops.Transpose.SUPPORT:
            return _IMPOSSIBLE
        return tensor.value.type.nbytes * _BYTE + 2

    def _cost(self, tensors: list[_Tensor]) -> int:
        total = 0
        for tensor in tensors:
            stored = self._stored(tensor)
            copies: dict[Layout, int] = {}
            for _, _, _, wanted in self._wanted(tensor):
                price = self._price(tensor, wanted, stored)
                copies[axes.significant(tensor.value.shape, wanted) if price > 1 else wanted] = price
            total += sum(copies.values())
        return total

    def _adopt(self, flood: dict[int, Layouts]) -> bool:
        """Move the part of `flood` that lowers the cost most; False if none does."""
        tensors: dict[int, _Tensor] = {}
        for node in flood:
            real = self.nodes[node]
            assert real is not None
            for tensor in (self.tensors[real.output], *(t for t, _ in self.operands[node])):
                if not tensor.value.is_const:
                    tensors[id(tensor)] = tensor
        touched = list(tensors.values())
        before = self._cost(touched)
        old = {node: self.layouts[node] for node in flood}
        for node in self._best_part(flood, touched):
            self.layouts[node] = flood[node]
        if self._cost(touched) < before:
            return True
        for node, layouts in old.items():
            self.layouts[node] = layouts
        return False

    def _best_part(self, flood: dict[int, Layouts], tensors: list[_Tensor]) -> list[int]:
        """Minimum cut: nodes on the source side keep their layouts, those on the sink side move.

        A copy of a tensor serves all readers that want the same layout, so each (tensor, layout) pays once: through a
        node of its own that lies with the first reader that wants the copy.
        """
        network = Network()
        ids = {node: network.node() for node in flood}

        def any_of(nodes: list[int], moved: bool) -> int:
            """A network node that lies with those of `nodes` that have (not) moved, if there are any."""
            joint = network.node()
            for node in nodes:
                network.arc(*((joint, ids[node]) if moved else (ids[node], joint)), _IMPOSSIBLE << 20)
            return joint

        def pay(price: int, joint: int, moved: bool) -> None:
            """`price` if `joint` has (not) moved."""
            network.arc(*((0, joint) if moved else (joint, 1)), price)

        for tensor in tensors:
            maker = tensor.maker if tensor.maker in flood else None
            stay = self._stored(tensor)
            move = flood[maker][0] if maker is not None else stay
            readers: dict[Layout, tuple[list[int], list[int], list[int]]] = {}  # layout -> want it if unmoved, if moved, always
            for reader, index, outer in tensor.readers:
                now = axes.compose(outer, self.layouts[reader][index])
                then = axes.compose(outer, flood[reader][index]) if reader in flood else now
                if now == then:
                    readers.setdefault(now, ([], [], []))[2].append(reader)
                else:
                    readers.setdefault(now, ([], [], []))[0].append(reader)
                    readers.setdefault(then, ([], [], []))[1].append(reader)
            for wanted, (unmoved, moved, always) in readers.items():
                at_stay, at_move = self._price(tensor, wanted, stay), self._price(tensor, wanted, move)
                both, extra = min(at_stay, at_move), abs(at_stay - at_move)
                if both and not always:
                    if unmoved:
                        pay(both, any_of(unmoved, False), False)
                    if moved:
                        pay(both, any_of(moved, True), True)
                if maker is None or not extra:
                    continue
                dearer = at_move > at_stay  # the maker's choice for which this copy costs `extra`
                other = moved if not dearer else unmoved
                if always or len(other) < len(unmoved) + len(moved):
                    # A cut cannot charge for "maker and reader both moved"; it charges the maker alone, `_adopt` checks.
                    pay(extra, ids[maker], dearer)
                elif dearer:
                    network.arc(any_of(other, False), ids[maker], extra)
                else:
                    network.arc(ids[maker], any_of(other, True), extra)
        stay_side = network.source_side()
        return [node for node, i in ids.items() if i not in stay_side]

    # The result

    def rebuild(self) -> Graph:
        """The graph with the layouts chosen."""
        new = Rewriter(self.graph)
        copies: dict[Value, dict[Layout, Value]] = {}

        def stored_as(tensor: _Tensor, layout: Layout) -> Value:
            value, stored = tensor.value, self._stored(tensor)
            known = copies.setdefault(value, {stored: new.current(value)})
            if layout not in known:
                known[layout] = self._copy(new, tensor, known, layout)
            return known[layout]

        for index, node in enumerate(self.nodes):
            if node is None:
                continue
            layouts = self.layouts[index]
            sources = [(t, axes.compose(outer, layouts[1 + i])) for i, (t, outer) in enumerate(self.operands[index])]
            inputs = tuple(stored_as(t, layout) for t, layout in sources)
            new.at(node)
            if layouts == axes.original(node) and (inputs == node.inputs or len(node.outputs) > 1):
                new.keep(node, inputs)
            else:
                value = new.append(axes.carry(node.op, layouts), inputs, node.output.name, node.location)
                new.replace(node.output, value, ("transpose", axes.inverse(layouts[0])))
        new.at(None)
        made = {v: n for n in self.graph.nodes for v in n.outputs}
        for value in self.graph.outputs:
            if value in made:
                tensor, outer = self._seen_through[value]
                new.claim(value, stored_as(tensor, outer), made[value].location)
        return new.finish()

    def _copy(self, new: Rewriter, tensor: _Tensor, known: dict[Layout, Value], layout: Layout) -> Value:
        """A value in another layout: a constant, or a RESHAPE or TRANSPOSE of one that there is."""
        value, maker = tensor.value, None if tensor.maker is None else self.nodes[tensor.maker]
        if value.data is not None:
            return new.const(np.transpose(value.data, layout), value.dtype, f"{value.name}_t")
        location = maker.location if maker else None
        order = axes.significant(value.shape, layout)
        for other, source in known.items():
            if axes.significant(value.shape, other) == order:
                shape = tuple(value.shape[a] for a in layout)
                return new.append(ops.Reshape(shape), (source,), f"{value.name}_r", location)
        stored = self._stored(tensor)
        as_before = self._transposes.get((value, layout))
        if as_before is not None and as_before.inputs == (known[stored],):
            return new.keep(as_before, as_before.inputs)
        perms = tuple(stored.index(a) for a in layout)
        return new.append(ops.Transpose(perms), (known[stored],), f"{value.name}_t", location)
