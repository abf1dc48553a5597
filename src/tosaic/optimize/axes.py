"""How each operator carries a change of layout: the layouts that its result and operands may have together.

A layout is a permutation of a tensor's axes; a tensor that has layout `p` is stored as TRANSPOSE(tensor, p). The layouts
of a node are a tuple, result first, then operands. Operators that are not named here take the layout of the
specification only ([N,H,W,C] convolutions and pools, MATMUL, GATHER, RESIZE, ...).

Integer results do not depend on the layout. A float REDUCE_SUM or REDUCE_PRODUCT reduces the same elements, in an order that
the specification leaves to the implementation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from tosaic.tosa import ops
from tosaic.tosa.graph import Node

Layout = tuple[int, ...]
Layouts = tuple[Layout, ...]

# All operands and the result share one layout.
UNIFORM: tuple[type[ops.Op], ...] = (
    *(ops._FloatUnary, ops._Binary, ops._Reduce),
    *(ops.Clamp, ops.Mul, ops.Negate, ops.Select, ops.Abs, ops.BitwiseNot, ops.Clz, ops.LogicalNot, ops.Identity, ops.Cast),
    *(ops.Concat, ops.Pad, ops.Reverse, ops.Slice, ops.Tile, ops.Rescale),
)


@functools.cache
def identity(rank: int) -> Layout:
    return tuple(range(rank))


def compose(outer: Layout, inner: Layout) -> Layout:
    """The layout of x that is layout `inner` of TRANSPOSE(x, outer)."""
    return tuple(outer[i] for i in inner)


def inverse(layout: Layout) -> Layout:
    return tuple(sorted(range(len(layout)), key=layout.__getitem__))


def significant(shape: tuple[int, ...], layout: Layout) -> Layout:
    """The order of the axes longer than 1: layouts that agree here differ by a RESHAPE only."""
    return tuple(a for a in layout if shape[a] != 1)


def original(node: Node) -> Layouts:
    """The layouts of a node as it stands; several results have one rank."""
    return tuple(identity(len(v.shape)) for v in (node.outputs[0], *node.inputs))


def follow(node: Node, index: int, layout: Layout) -> Layouts | None:
    """The layouts of `node` when its result (index 0) or operand (index 1...) has `layout`; None if it cannot."""
    op = node.op
    if layout == identity(len(layout)):
        return original(node)
    if isinstance(op, ops.Reshape):
        return _reshape(node, index, layout)
    if isinstance(op, ops.ArgMax):
        return _arg_max(op, index, layout)
    if isinstance(op, ops.Table):
        return (layout, layout, (0,)) if index < 2 else None
    if not isinstance(op, UNIFORM):
        return None
    if isinstance(op, ops.Rescale) and op.per_channel and layout[-1] != len(layout) - 1:
        return None  # multipliers go with the last axis
    return (layout,) * (1 + len(node.inputs))


def carry(op: ops.Op, layouts: Layouts) -> ops.Op:
    """The operator with its attributes in the new order of axes."""
    out = layouts[0]
    if isinstance(op, ops.Concat | ops._Reduce | ops.Reverse):
        return dataclasses.replace(op, axis=out.index(op.axis))
    if isinstance(op, ops.ArgMax):
        return dataclasses.replace(op, axis=layouts[1].index(op.axis))
    if isinstance(op, ops.Pad):
        return dataclasses.replace(op, padding=tuple(n for a in out for n in op.padding[2 * a : 2 * a + 2]))
    if isinstance(op, ops.Slice):
        return ops.Slice(tuple(op.start[a] for a in out), tuple(op.size[a] for a in out))
    if isinstance(op, ops.Tile):
        return ops.Tile(tuple(op.multiples[a] for a in out))
    if isinstance(op, ops.Reshape):
        return ops.Reshape(tuple(op.shape[a] for a in out))
    return op


def _arg_max(op: ops.ArgMax, index: int, layout: Layout) -> Layouts:
    if index == 1:
        rest = [a for a in layout if a != op.axis]
        return tuple(a - (a > op.axis) for a in rest), layout
    kept = [a + (a >= op.axis) for a in layout]
    return layout, (*kept[: op.axis], op.axis, *kept[op.axis :])


def _reshape(node: Node, index: int, layout: Layout) -> Layouts | None:
    """Groups of axes that a reshape splits or merges move as wholes: [N,C*4,H,W] -> [N,C,4,H,W] carries NHWC to [N,H,W,C,4]."""
    shapes = (node.output.shape, node.inputs[0].shape)
    groups = _groups(*shapes)
    if groups is None:
        return None
    here, there = index, 1 - index
    order = significant(shapes[here], layout)
    other: list[int] = []
    by_first = {group[here][0]: group for group in groups}
    at = 0
    while at < len(order):
        group = by_first.get(order[at])
        if group is None or order[at : at + len(group[here])] != group[here]:
            return None
        at += len(group[here])
        other += group[there]
    moved = _with_unit_axes(other, shapes[there])
    return (layout, moved) if index == 0 else (moved, layout)


@functools.lru_cache(maxsize=4096)
def _groups(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[Layout, Layout], ...] | None:
    """The smallest runs of axes of two shapes with equal products, without axes of length 1."""
    if 0 in a or 0 in b:
        return None
    left, right = ([i for i, d in enumerate(s) if d != 1] for s in (a, b))
    groups, i, j = [], 0, 0
    while i < len(left):
        first = i, j
        x, y = a[left[i]], b[right[j]]
        while x != y:
            if x < y:
                i += 1
                x *= a[left[i]]
            else:
                j += 1
                y *= b[right[j]]
        i, j = i + 1, j + 1
        groups.append((tuple(left[first[0] : i]), tuple(right[first[1] : j])))
    return tuple(groups)


def _with_unit_axes(order: Iterable[int], shape: tuple[int, ...]) -> Layout:
    """A whole layout: axes of length 1 stay behind the axis that they follow in `shape`."""
    after: dict[int, list[int]] = {-1: []}
    last = -1
    for axis, length in enumerate(shape):
        if length == 1:
            after[last].append(axis)
        else:
            last = axis
            after[last] = []
    return tuple([*after[-1], *(b for a in order for b in (a, *after[a]))])
