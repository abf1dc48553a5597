"""Local rules for operators that only move data: TRANSPOSE, RESHAPE, SLICE, PAD, CONCAT, TILE, REVERSE, IDENTITY.

    IDENTITY(x)                                  -> x
    TRANSPOSE(x), RESHAPE(x), ... changing nothing -> x
    TRANSPOSE(TRANSPOSE(x))                      -> TRANSPOSE(x)
    TRANSPOSE(x) moving only axes of length 1    -> RESHAPE(x)
    RESHAPE(RESHAPE(x))                          -> RESHAPE(x)
    SLICE(SLICE(x))                              -> SLICE(x)
    SLICE(CONCAT(..., x, ...)) inside x          -> SLICE(x)
    PAD(PAD(x)) of one value                     -> PAD(x)
    CONCAT(x)                                    -> x
    CONCAT(SLICE(x), SLICE(x)) side by side      -> SLICE(x)

All hold for every type: no element is computed. An IDENTITY stays where a graph output would be an input, a constant or
another output (`Rewriter.claim`).
"""

from __future__ import annotations

from tosaic.optimize.axes import compose, identity, significant
from tosaic.optimize.rewrite import Refused, Rewriter, rule
from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value


@rule(ops.Identity)
def remove_identity(r: Rewriter, node: Node) -> Value:
    """IDENTITY(x) -> x"""
    return node.inputs[0]


@rule(ops.Transpose, ops.Reshape, ops.Slice, ops.Pad, ops.Tile)
def remove_unchanging(r: Rewriter, node: Node) -> Value | None:
    """An operator that returns its operand as it is -> the operand."""
    (x,), op = node.inputs, node.op
    if x.type != node.output.type:
        return None
    if isinstance(op, ops.Transpose) and op.perms != identity(len(op.perms)):
        return None
    return x


@rule(ops.Reverse)
def remove_reverse_of_one(r: Rewriter, node: Node) -> Value | None:
    """REVERSE(x) along an axis of length 1 -> x"""
    assert isinstance(node.op, ops.Reverse)
    return node.inputs[0] if node.inputs[0].shape[node.op.axis] == 1 else None


@rule(ops.ReduceMax, ops.ReduceMin, ops.ReduceAll, ops.ReduceAny, ops.ReduceSum)
def remove_reduction_of_one(r: Rewriter, node: Node) -> Value | Refused | None:
    """REDUCE_*(x) over an axis of length 1 -> x. Not for floats: the first step may turn -0.0 into 0.0 or quieten a NaN."""
    (x,), op = node.inputs, node.op
    assert isinstance(op, ops._Reduce)
    if x.shape[op.axis] != 1:
        return None
    return Refused("a float reduction of one element may change -0.0 and NaN") if x.dtype.is_float else x


@rule(ops.Transpose)
def compose_transposes(r: Rewriter, node: Node) -> Value | None:
    """TRANSPOSE(TRANSPOSE(x)) -> TRANSPOSE(x)"""
    inner = r.made_by(node.inputs[0], ops.Transpose)
    if inner is None:
        return None
    assert isinstance(inner.op, ops.Transpose) and isinstance(node.op, ops.Transpose)
    return r.emit(ops.Transpose(compose(inner.op.perms, node.op.perms)), *inner.inputs)


@rule(ops.Transpose)
def reshape_instead_of_transpose(r: Rewriter, node: Node) -> Value | None:
    """TRANSPOSE(x) that keeps the order of all axes longer than 1 -> RESHAPE(x)"""
    (x,), op = node.inputs, node.op
    assert isinstance(op, ops.Transpose)
    order = significant(x.shape, op.perms)
    return r.emit(ops.Reshape(node.output.shape), x) if list(order) == sorted(order) else None


@rule(ops.Reshape)
def compose_reshapes(r: Rewriter, node: Node) -> Value | None:
    """RESHAPE(RESHAPE(x)) -> RESHAPE(x)"""
    inner = r.made_by(node.inputs[0], ops.Reshape)
    return r.emit(node.op, *inner.inputs) if inner else None


@rule(ops.Slice)
def compose_slices(r: Rewriter, node: Node) -> Value | None:
    """SLICE(SLICE(x)) -> SLICE(x)"""
    inner = r.made_by(node.inputs[0], ops.Slice)
    if inner is None:
        return None
    assert isinstance(inner.op, ops.Slice) and isinstance(node.op, ops.Slice)
    start = tuple(a + b for a, b in zip(inner.op.start, node.op.start, strict=True))
    return r.emit(ops.Slice(start, node.op.size), *inner.inputs)


@rule(ops.Slice)
def slice_one_operand(r: Rewriter, node: Node) -> Value | Refused | None:
    """SLICE(CONCAT(..., x, ...)) that lies inside x -> SLICE(x)"""
    concat = r.made_by(node.inputs[0], ops.Concat)
    if concat is None:
        return None
    assert isinstance(concat.op, ops.Concat) and isinstance(node.op, ops.Slice)
    axis, begin = concat.op.axis, 0
    first, length = node.op.start[axis], node.op.size[axis]
    for x in concat.inputs:
        if begin <= first and first + length <= begin + x.shape[axis]:
            return r.emit(ops.Slice((*node.op.start[:axis], first - begin, *node.op.start[axis + 1 :]), node.op.size), x)
        begin += x.shape[axis]
    return Refused("the slice lies in several operands of the CONCAT")


@rule(ops.Pad)
def compose_pads(r: Rewriter, node: Node) -> Value | Refused | None:
    """PAD(PAD(x)) -> PAD(x), both with the same value"""
    inner = r.made_by(node.inputs[0], ops.Pad)
    if inner is None:
        return None
    assert isinstance(inner.op, ops.Pad) and isinstance(node.op, ops.Pad)
    if repr(inner.op.value) != repr(node.op.value):
        return Refused(f"the PADs write {inner.op.value} and {node.op.value}")
    padding = tuple(a + b for a, b in zip(inner.op.padding, node.op.padding, strict=True))
    return r.emit(ops.Pad(padding, node.op.value), *inner.inputs)


@rule(ops.Concat)
def join_slices(r: Rewriter, node: Node) -> Value | Refused | None:
    """CONCAT(x) -> x; CONCAT(..., SLICE(x), SLICE(x), ...) -> CONCAT(..., SLICE(x), ...) for slices of x side by side"""
    if len(node.inputs) == 1:
        return node.inputs[0]
    assert isinstance(node.op, ops.Concat)
    slices = [r.made_by(v, ops.Slice) for v in node.inputs]
    if all(s is None for s in slices):
        return None
    axis = node.op.axis
    runs: list[tuple[Value, ops.Slice | None, Value | None]] = []  # operand, or a slice of the third
    for operand, piece in zip(node.inputs, slices, strict=True):
        if piece is None:
            runs.append((operand, None, None))
            continue
        assert isinstance(piece.op, ops.Slice)
        if runs and runs[-1][2] is piece.inputs[0] and (joined := _joined(runs[-1][1], piece.op, axis)):
            runs[-1] = (operand, joined, piece.inputs[0])
        else:
            runs.append((operand, piece.op, piece.inputs[0]))
    if len(runs) == len(node.inputs):
        return Refused("the slices do not lie side by side in one tensor")
    if len(runs) == 1 and runs[0][1] is not None and runs[0][2] is not None:
        return r.emit(runs[0][1], runs[0][2])
    values = [v if op is None or x is None else r.emit(op, x, suffix="slice") for v, op, x in runs]
    return r.emit(node.op, *values)


def _joined(a: ops.Slice | None, b: ops.Slice, axis: int) -> ops.Slice | None:
    """One slice for `a` followed by `b` along `axis`."""
    if a is None or b.start[axis] != a.start[axis] + a.size[axis]:
        return None
    elsewhere = (i for i in range(len(a.start)) if i != axis)
    if any(a.start[i] != b.start[i] or a.size[i] != b.size[i] for i in elsewhere):
        return None
    return ops.Slice(a.start, (*a.size[:axis], a.size[axis] + b.size[axis], *a.size[axis + 1 :]))


RULES = (
    *(remove_identity, remove_unchanging, remove_reverse_of_one, remove_reduction_of_one),
    *(compose_transposes, reshape_instead_of_transpose, compose_reshapes, compose_slices, slice_one_operand),
    *(compose_pads, join_slices),
)
