"""Parts of a tensor that differ by one axis, as queries, keys and values of one projection, are slices of it with fewer axes.

    RESHAPE(y) to [.., n, m, ..] -> SLICE of one of the n -> TRANSPOSE -> RESHAPE    (TRANSPOSE may be missing)
    RESHAPE(y) to [.., n m, ..]  -> SLICE of m            -> TRANSPOSE -> RESHAPE

Axes of length 1 go too, so that the last RESHAPE seldom remains. Only where nothing but such slices reads the first RESHAPE.
Exact: no element is computed.
"""

from __future__ import annotations

from tosaic.optimize.rewrite import Rewriter, rule
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value


def merge_sliced_axes(graph: Graph) -> Graph:
    """Rewrite all such slices; the graph itself where there are none."""
    readers, kept = graph.users(), set(graph.outputs)

    def ends_in_reshapes(value: Value, may_transpose: bool) -> bool:
        if value in kept:
            return False
        kinds = ops.Reshape | ops.Transpose if may_transpose else ops.Reshape
        return all(
            isinstance(n.op, kinds) and (isinstance(n.op, ops.Reshape) or ends_in_reshapes(n.output, False)) for n in readers.get(value, [])
        )

    sliced: dict[Value, int] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Reshape) and node.output not in kept:
            parts = readers.get(node.output, [])
            axes = {_axis(n) for n in parts}
            axis = axes.pop() if len(axes) == 1 else None
            if axis is not None and all(ends_in_reshapes(n.output, True) for n in parts):
                sliced[node.output] = axis
    if not sliced:
        return graph

    @rule(ops.Reshape)
    def merge(r: Rewriter, node: Node) -> Value | None:
        moved = r.made_by(node.inputs[0], ops.Transpose)
        part = r.made_by(moved.inputs[0] if moved else node.inputs[0], ops.Slice)
        axis = None if part is None else sliced.get(part.inputs[0])
        if part is None or axis is None:
            return None
        whole = r.producer(part.inputs[0])
        assert whole is not None and isinstance(part.op, ops.Slice)
        shape = part.inputs[0].shape
        stay = [i for i, d in enumerate(shape) if i == axis + 1 or (i != axis and d != 1)]
        count, size = shape[axis], shape[axis + 1]
        value = r.emit(ops.Reshape(tuple(shape[i] * (count if i == axis + 1 else 1) for i in stay)), *whole.inputs, suffix="whole")
        start = tuple(part.op.start[axis] * size if i == axis + 1 else 0 for i in stay)
        value = r.emit(ops.Slice(start, tuple(shape[i] for i in stay)), value, suffix="part")
        if moved is not None:
            assert isinstance(moved.op, ops.Transpose)
            perms = tuple(stay.index(p) for p in moved.op.perms if p in stay)
            value = r.emit(ops.Transpose(perms), value, suffix="moved")
        return value if value.shape == node.output.shape else r.emit(node.op, value)

    return Rewriter(graph, [merge]).run()


def _axis(node: Node) -> int | None:
    """The axis, of more than one element and not the last, of which an operator is a SLICE of one element and of all else."""
    if not isinstance(node.op, ops.Slice):
        return None
    (x,) = node.inputs
    cut = [i for i, (all_of_it, size) in enumerate(zip(x.shape, node.op.size, strict=True)) if size != all_of_it]
    return cut[0] if len(cut) == 1 and node.op.size[cut[0]] == 1 and cut[0] + 1 < len(x.shape) else None
