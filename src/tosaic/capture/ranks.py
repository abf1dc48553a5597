"""Tensors of more axes than TOSA's levels take: operators that do not tell neighbouring axes apart see them as one.

    op(x) -> reshape(op'(reshape(x)))     for pointwise operators, reductions, softmax, running sums, concatenation, layer norm

The reshapes of neighbours cancel. What moves data takes care of its own rank in `lower`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from tosaic.operators import exp_below_max

aten = torch.ops.aten
_MOST = 6  # of level 8K
# position of the axis, or of the list of axes, that an operator goes along
_ALONG: dict[Any, int] = {
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.prod.dim_int), 1),
    **dict.fromkeys((aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims, aten.argmax.default, aten.argmin.default), 1),
    **dict.fromkeys((aten.var.correction, aten.std.correction, aten.logsumexp.default, aten.cat.default), 1),
    **dict.fromkeys((aten._softmax.default, aten._log_softmax.default, exp_below_max, aten.cumsum.default, aten.cumprod.default), 1),
    aten.linalg_vector_norm.default: 2,
}


def merge_axes(module: GraphModule) -> None:
    """Rewrite operators on more than six axes, in place; those that cannot be stay as they are."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and max((_rank(n) for n in (node, *node.all_input_nodes)), default=0) > _MOST:
            _rewrite(module, node)


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _rewrite(module: GraphModule, node: Node) -> None:
    args = list(node.args)
    if node.target in _ALONG:
        position = _ALONG[node.target]
        tensors = list(args[0]) if isinstance(args[0], list | tuple) else [args[0]]
        rank = _rank(tensors[0])
        given = args[position] if len(args) > position else None
        along = sorted(d % rank for d in ([given] if isinstance(given, int) else given or range(rank)))
        groups = _groups([(i in along, _shape(tensors[0])[i] if i in along else 0) for i in range(rank)], _shape(tensors[0]), along)
        dims = [k for k, group in enumerate(groups) if group[0] in along]
        if len(args) > position:
            args[position] = dims[0] if isinstance(given, int) else dims
    elif node.target is aten.layer_norm.default:
        rank, tensors = _rank(args[0]), [args[0]]
        first = rank - len(args[1])
        groups = _groups([max(i - first + 1, 0) for i in range(rank)], _shape(args[0]), range(first, rank))
    elif isinstance(node.meta.get("val"), torch.Tensor) and torch.Tag.pointwise in node.target.tags:
        tensors = [n for n in node.all_input_nodes if _rank(n)]
        shape = _shape(node)
        wide = [(1,) * (len(shape) - _rank(n)) + _shape(n) for n in tensors]
        groups = _groups([tuple(w[i] == 1 for w in wide) for i in range(len(shape))], shape, ())
    else:
        return
    if len(groups) > _MOST:
        return
    with module.graph.inserting_before(node):
        merged = {n: _reshaped(module, n, groups) for n in tensors}
        arguments = torch.fx.map_arg((tuple(args), node.kwargs), lambda n: merged.get(n, n))
        result = module.graph.call_function(node.target, *arguments)
    result.meta = node.meta.copy()
    values = torch.fx.map_arg(arguments, lambda n: n.meta["val"])
    result.meta["val"] = node.target(*values[0], **values[1])
    with module.graph.inserting_after(result):
        restored = module.graph.call_function(aten.reshape.default, (result, list(_shape(node))))
    restored.meta = node.meta.copy()
    node.replace_all_uses_with(restored)
    module.graph.erase_node(node)


def _groups(kinds: Sequence[Hashable], shape: Sequence[int], along: Sequence[int]) -> list[list[int]]:
    """Axes in runs of one kind; those of one element, where nothing goes along them, are of any kind.

    The first stays by itself where there is room: it may be the batch, of which training knows other sizes.
    """
    groups: list[list[int]] = [[0]]
    for axis in range(1, len(kinds)):
        last = groups[-1]
        free = shape[axis] == 1 and axis not in along
        if last != [0] and (free or kinds[last[0]] == kinds[axis]):
            last.append(axis)
        else:
            groups.append([axis])
    if len(groups) > _MOST and kinds[0] == kinds[1]:
        groups[:2] = [groups[0] + groups[1]]
    return groups


def _reshaped(module: GraphModule, node: Node, groups: Sequence[Sequence[int]]) -> Node:
    """A tensor with the axes of each group as one; axes that it lacks in front are of one element."""
    rank = sum(map(len, groups))
    shape = (1,) * (rank - _rank(node)) + _shape(node)
    merged = [math.prod(shape[i] for i in group) for group in groups]
    if list(_shape(node)) == merged:
        return node
    result = module.graph.call_function(aten.reshape.default, (node, merged))
    result.meta = node.meta.copy()
    result.meta["val"] = node.meta["val"].reshape(merged)
    return result
