"""Axes of length 1: clusters of elementwise operators take the rank that needs the fewest RESHAPEs.

A linear layer is a CONV2D on [N,T,1,C], a batched product a MATMUL on [B,T,C], and the operators between them stand at the rank
of the model. So a RESHAPE that only adds or drops axes of length 1 stands before and after each:

    CONV2D [1,T,1,C] -> RESHAPE [1,T,C] -> ADD -> RESHAPE [1,T,1,C] -> CONV2D
    CONV2D [1,T,1,C] -> ADD -> CONV2D

Operators that take any rank and are connected form a cluster. A *form* says where in a new shape each axis of the cluster
stands (axes of length 1 in all its tensors may go, and others may be added). What the neighbours of a cluster have or want
proposes forms; one that saves RESHAPEs is taken. A TRANSPOSE is a cluster of its own.

RESHAPEs are no operators here but what stands between a tensor and a reader who wants another shape; so the cost of a choice
is the number of (tensor, wanted shape) pairs that differ. No element is computed or moved.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tosaic.optimize.axes import UNIFORM
from tosaic.optimize.rewrite import Rewriter, narrower
from tosaic.tosa import ops
from tosaic.tosa.graph import Bound, Graph, Node, Value

Shape = tuple[int, ...]
Form = tuple[int, ...]  # for each axis of the new shape the axis of the cluster that it is, or _NEW
_NEW = -1
_ANY_RANK = (*UNIFORM, ops.Table)
_SWEEPS = 4
_NEVER = 1 << 20  # the cost of a RESHAPE of a type that it does not take: i48
_FORMS = 8  # tried for each cluster, the most wanted first


def fit_ranks(graph: Graph) -> Graph:
    """Give every cluster the rank that needs the fewest RESHAPEs."""
    if not any(isinstance(n.op, ops.Reshape) for n in graph.nodes):
        return graph
    plan = _Plan(graph)
    return plan.rebuild() if plan.improve() else graph


@dataclass(eq=False)
class _Cluster:
    """Connected operators of one rank."""

    rank: int
    nodes: list[int] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)  # axes that are longer than 1 somewhere, or that an operator works along
    channels_last: bool = False
    form: Form | None = None  # None: as it is
    perms: tuple[int, ...] | None = None  # of the result against the operand: a TRANSPOSE


@dataclass(eq=False)
class _Root:
    """A tensor that is no RESHAPE of another, and who reads it in which shape (None: a graph output)."""

    value: Value
    maker: int | None
    bound: Bound | None  # what is known of it or of its RESHAPEs
    readers: list[tuple[int | None, Value]] = field(default_factory=list)


class _Plan:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.roots: dict[Value, _Root] = {}
        self.root_of: dict[Value, _Root] = {}
        self.reshapes: dict[tuple[Value, Shape], Node] = {}
        self.clusters: dict[int, _Cluster] = {}
        for value in graph.inputs:
            self._root(value, None)
        for index, node in enumerate(graph.nodes):
            if isinstance(node.op, ops.Reshape) and node.inputs[0] in self.root_of:
                root = self.root_of[node.output] = self.root_of[node.inputs[0]]
                self.reshapes.setdefault((root.value, node.output.shape), node)
                root.bound = narrower(root.bound, node.output.bound)
                continue
            for value in node.inputs:
                if value in self.root_of:
                    self.root_of[value].readers.append((index, value))
            for value in node.outputs:
                self._root(value, index)
        for value in graph.outputs:
            if value in self.root_of:
                self.root_of[value].readers.append((None, value))
        self._cluster()

    def _root(self, value: Value, maker: int | None) -> None:
        self.roots[value] = self.root_of[value] = _Root(value, maker, value.bound)

    # Clusters

    def _cluster(self) -> None:
        """Join the operators of any rank that share a tensor."""
        parent: dict[Value, Value] = {}

        def find(value: Value) -> Value:
            while parent.setdefault(value, value) is not value:
                parent[value] = parent[parent[value]]
                value = parent[value]
            return value

        members = [(i, n) for i, n in enumerate(self.graph.nodes) if isinstance(n.op, _ANY_RANK) and n.output.shape]
        for _, node in members:
            for value in _operands(node):
                if not value.is_const:
                    parent[find(value)] = find(node.output)
        found: dict[Value, _Cluster] = {}
        for index, node in members:
            cluster = found.setdefault(find(node.output), _Cluster(len(node.output.shape)))
            self._join(cluster, index, node)
        for index, node in enumerate(self.graph.nodes):
            if isinstance(node.op, ops.Transpose):
                cluster = _Cluster(len(node.output.shape), perms=node.op.perms)
                self._join(cluster, index, node)

    def _join(self, cluster: _Cluster, index: int, node: Node) -> None:
        cluster.nodes.append(index)
        self.clusters[index] = cluster
        op, last = node.op, cluster.rank - 1
        if isinstance(op, ops.Concat | ops._Reduce | ops.Reverse):
            cluster.kept.add(op.axis)
        if isinstance(op, ops.Rescale) and op.per_channel:
            cluster.kept.add(last)
            cluster.channels_last = True
        for value in _operands(node):
            cluster.kept.update(a for a, length in enumerate(value.shape) if length != 1)
        if not isinstance(op, ops.Transpose):
            cluster.kept.update(a for a, length in enumerate(node.output.shape) if length != 1)

    # The search

    def improve(self) -> bool:
        """Take forms while they save RESHAPEs; whether any was taken."""
        improved = False
        clusters = list(dict.fromkeys(self.clusters.values()))
        around = {cluster: self._around(cluster) for cluster in clusters}
        for _ in range(_SWEEPS):
            moved = False
            for cluster in clusters:
                moved |= self._improve(cluster, around[cluster])
            if not moved:
                break
            improved = True
        return improved

    def _around(self, cluster: _Cluster) -> list[_Root]:
        """The tensors that operators of `cluster` make or read."""
        nodes = [self.graph.nodes[i] for i in cluster.nodes]
        values = (v for n in nodes for v in (n.output, *_operands(n)) if v in self.root_of)
        return list(dict.fromkeys(self.root_of[v] for v in values))

    def _improve(self, cluster: _Cluster, roots: list[_Root]) -> bool:
        proposals = Counter(self._proposals(cluster, roots))
        if not proposals:
            return False
        old = cluster.form
        best, least = old, self._cost(roots)
        for form, _ in proposals.most_common(_FORMS):
            cluster.form = form
            cost = self._cost(roots)
            if cost < least:
                best, least = form, cost
        cluster.form = best
        return best != old

    def _cost(self, roots: list[_Root]) -> int:
        total = 0
        for root in roots:
            changed = len({self._wanted(reader, value) for reader, value in root.readers} - {self._stored(root)})
            total += changed if root.value.dtype in ops.Reshape.SUPPORT else _NEVER * changed
        return total

    def _stored(self, root: _Root) -> Shape:
        return root.value.shape if root.maker is None else self._result(root.maker, root.value.shape)

    def _result(self, node: int, shape: Shape) -> Shape:
        cluster = self.clusters.get(node)
        return shape if cluster is None or cluster.form is None else _formed(shape, _result_form(cluster))

    def _wanted(self, reader: int | None, value: Value) -> Shape:
        cluster = None if reader is None else self.clusters.get(reader)
        if cluster is None or cluster.form is None or len(value.shape) != cluster.rank:
            return value.shape
        return _formed(value.shape, cluster.form)

    def _proposals(self, cluster: _Cluster, roots: list[_Root]) -> Iterator[Form]:
        """Forms in which a tensor of the cluster has the shape that stands beyond a RESHAPE."""
        for root in roots:
            inside = root.maker is not None and self.clusters.get(root.maker) is cluster
            for reader, value in root.readers:
                reads = reader is not None and self.clusters.get(reader) is cluster
                if inside and not reads:
                    form = _align(cluster, root.value.shape, self._wanted(reader, value), made=True)
                elif reads and not inside:
                    form = _align(cluster, value.shape, self._stored(root), made=False)
                else:
                    continue
                if form is not None and form != cluster.form:
                    yield form

    # The result

    def rebuild(self) -> Graph:
        """The graph with the forms chosen."""
        new = Rewriter(self.graph)
        copies: dict[Value, dict[Shape, Value]] = {}

        def shaped(value: Value, shape: Shape) -> Value:
            root = self.root_of[value]
            if root.value not in copies:
                current = new.current(root.value)
                current.bound = root.bound
                copies[root.value] = {self._stored(root): current}
            known = copies[root.value]
            if shape not in known:
                known[shape] = self._reshape(new, root, known[self._stored(root)], shape)
            return known[shape]

        for index, node in enumerate(self.graph.nodes):
            if node.outputs[0] not in self.roots:
                continue
            cluster = self.clusters.get(index)
            inputs = tuple(
                shaped(v, self._wanted(index, v)) if v in self.root_of else _constant(new, cluster, node, position, v)
                for position, v in enumerate(node.inputs)
            )
            new.at(node)
            op = node.op if cluster is None or cluster.form is None else _carry(node, cluster)
            if op == node.op and (inputs == node.inputs or len(node.outputs) > 1):
                new.keep(node, inputs)
            else:
                value = new.append(op, inputs, node.output.name, node.location)
                new.replace(node.output, value, ("reshape", node.output.shape))
        new.at(None)
        made = {v: n for n in self.graph.nodes for v in n.outputs}
        for value in self.graph.outputs:
            if value in made:
                new.claim(value, shaped(value, value.shape), made[value].location)
        return new.finish()

    def _reshape(self, new: Rewriter, root: _Root, source: Value, shape: Shape) -> Value:
        old = self.reshapes.get((root.value, shape))
        if old is not None and old.inputs == (source,):
            return new.keep(old, old.inputs)
        location = old.location if old is not None else None if root.maker is None else self.graph.nodes[root.maker].location
        value = new.append(ops.Reshape(shape), (source,), old.output.name if old is not None else f"{root.value.name}_r", location)
        value.bound = root.bound
        return value


def _operands(node: Node) -> tuple[Value, ...]:
    """The operands that have the rank of the cluster: not the entries of a TABLE."""
    return node.inputs[:1] if isinstance(node.op, ops.Table) else node.inputs


def _formed(shape: Shape, form: Form) -> Shape:
    return tuple(1 if a == _NEW else shape[a] for a in form)


def _result_form(cluster: _Cluster) -> Form:
    """The form of the result: behind a TRANSPOSE the same axes in their new order."""
    assert cluster.form is not None
    if cluster.perms is None:
        return cluster.form
    return tuple(cluster.perms.index(a) for a in _transposed(cluster))


def _transposed(cluster: _Cluster) -> list[int]:
    """The operand's axes that stay, in the order of the result of a TRANSPOSE."""
    assert cluster.form is not None and cluster.perms is not None
    return [a for a in cluster.perms if a in cluster.form]


def _align(cluster: _Cluster, shape: Shape, wanted: Shape, made: bool) -> Form | None:
    """The form that gives a tensor of `shape` the shape `wanted`; None if there is none.

    Axes that must stay and have length 1 in this very tensor take the first places that fit.
    """
    if cluster.perms is not None:
        return _align_transpose(cluster, shape, wanted, made)
    kept = sorted(cluster.kept)
    form: list[int] = []
    for length in wanted:
        if kept and shape[kept[0]] == length:
            form.append(kept.pop(0))
        elif length == 1:
            form.append(_NEW)
        else:
            return None
    if kept or (cluster.channels_last and form[-1] != cluster.rank - 1) or not form:
        return None
    return tuple(form)


def _align_transpose(cluster: _Cluster, shape: Shape, wanted: Shape, made: bool) -> Form | None:
    """A TRANSPOSE drops axes of length 1 only, the same on both sides."""
    assert cluster.perms is not None
    order = list(cluster.perms) if made else list(range(cluster.rank))  # the operand's axes as they stand in `shape`
    rest = list(wanted)
    stay = []
    for position, axis in enumerate(order):
        if rest and shape[position] == rest[0]:
            stay.append(axis)
            rest.pop(0)
        elif shape[position] != 1:
            return None
    return tuple(sorted(stay)) if stay and not rest and set(stay) >= cluster.kept else None


def _constant(new: Rewriter, cluster: _Cluster | None, node: Node, position: int, value: Value) -> Value:
    """A constant operand in the form of its cluster."""
    if cluster is None or cluster.form is None or position >= len(_operands(node)) or value.data is None:
        return value
    shape = _formed(value.shape, cluster.form)
    return value if shape == value.shape else new.const(np.reshape(value.data, shape), value.dtype, f"{value.name}_r")


def _carry(node: Node, cluster: _Cluster) -> ops.Op:
    """The operator with its attributes at the new rank."""
    op, form = node.op, cluster.form
    assert form is not None
    if isinstance(op, ops.Transpose):
        return ops.Transpose(tuple(form.index(a) for a in _transposed(cluster)))
    if isinstance(op, ops.Concat | ops._Reduce | ops.Reverse):
        return dataclasses.replace(op, axis=form.index(op.axis))
    if isinstance(op, ops.Pad):
        return dataclasses.replace(op, padding=tuple(n for a in form for n in ((0, 0) if a == _NEW else op.padding[2 * a : 2 * a + 2])))
    if isinstance(op, ops.Slice):
        return ops.Slice(tuple(0 if a == _NEW else op.start[a] for a in form), tuple(1 if a == _NEW else op.size[a] for a in form))
    if isinstance(op, ops.Tile):
        return ops.Tile(tuple(1 if a == _NEW else op.multiples[a] for a in form))
    return op
