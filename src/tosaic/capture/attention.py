"""Attention with the division behind the product: softmax(s) v -> (e v) / sum(e), e = exp(s - max s).

The same real number, and better integers: the largest e of a row is always 1, so e uses all of its 8 bits in every row,
where probabilities of a long row would share a few steps; the quotient is taken of wide values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from tosaic.operators import dropout_marker, exp_below_max

aten = torch.ops.aten

_SOFTMAX = (aten._softmax.default, aten.softmax.int)
# between softmax and product: views that keep the order of elements, and what stands for a dropout in training
_VIEWS = (aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, dropout_marker)
_PRODUCTS = (aten.bmm.default, aten.mm.default, aten.matmul.default)


def divide_after_product(module: GraphModule) -> None:
    """Rewrite each softmax over the last axis that nothing but one product reads, in place.

    It is the left side of a matrix product, or transposed the right one, or the input of a linear layer without bias (a mean of constants:
    a position in a heat map).
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.bmm.default):
        _put_on_left(module.graph, node)
    for node in list(module.graph.nodes):
        if node.target not in _SOFTMAX or node.args[1] not in (-1, node.meta["val"].dim() - 1):
            continue
        chain = _way_to_product(node)
        if chain is not None:
            _rewrite(module, node, chain)


def _put_on_left(graph: torch.fx.Graph, product: Node) -> None:
    """v p^T -> (p v^T)^T, p the result of a softmax, as image generators write it."""
    left, right = product.args
    if right.target not in (aten.permute.default, aten.transpose.int) or len(right.users) != 1:
        return
    source, length = right.args[0], right.args[0].meta["val"].shape[-1]
    swapped = right.args[1] == [0, 2, 1] if right.target is aten.permute.default else {d % 3 for d in right.args[1:]} == {1, 2}
    softmax = source
    while _keeps_order(softmax, length):
        softmax = softmax.args[0]
    if not swapped or softmax.target not in _SOFTMAX:
        return
    with graph.inserting_before(product):
        turned = _call(graph, left, aten.permute.default, (left, [0, 2, 1]), left.meta["val"].permute(0, 2, 1))
        found = _call(graph, product, aten.bmm.default, (source, turned), product.meta["val"].permute(0, 2, 1).contiguous())
        back = _call(graph, product, aten.permute.default, (found, [0, 2, 1]), product.meta["val"])
    product.replace_all_uses_with(back)
    graph.erase_node(product)
    graph.erase_node(right)


def _way_to_product(softmax: Node) -> list[Node] | None:
    """The nodes behind `softmax` up to and with a matrix product that has its rows on its left."""
    chain, node, length = [], softmax, softmax.meta["val"].shape[-1]
    while len(node.users) == 1:
        (user,) = node.users
        chain.append(user)
        if user.target in _PRODUCTS or (user.target is aten.linear.default and user.args[2:] in ((), (None,))):
            return chain if user.args[0] is node and user.args[1] is not node and node.meta["val"].shape[-1] == length else None
        if not _keeps_order(user, length):
            return None
        node = user
    return None


def _keeps_order(node: Node, length: int) -> bool:
    if node.target is aten.permute.default:  # of axes of one element, as einsum has it
        source, order = node.args
        moved = [axis for axis in order if source.meta["val"].shape[axis] > 1]  # type: ignore[union-attr, index]
        return moved == sorted(moved)  # type: ignore[type-var]
    return node.target in _VIEWS or (node.target is aten.expand.default and node.meta["val"].shape[-1] == length)


def _rewrite(module: GraphModule, softmax: Node, chain: list[Node]) -> None:
    graph, product = module.graph, chain[-1]
    with graph.inserting_before(softmax):
        e = _call(graph, softmax, exp_below_max, (softmax.args[0], -1), softmax.meta["val"])
    softmax.replace_all_uses_with(e)
    graph.erase_node(softmax)
    value = e.meta["val"].sum(-1, keepdim=True)
    with graph.inserting_before(product):
        total = _call(graph, e, aten.sum.dim_IntList, (e, [-1], True), value)
        shape = [*product.args[0].meta["val"].shape[:-1], 1]
        if list(value.shape) != shape:
            between = aten.expand.default if chain[0].target is aten.expand.default and len(chain) == 2 else aten.reshape.default
            total = _call(graph, e, between, (total, shape), value.new_empty(shape))
    with graph.inserting_after(product):
        quotient = graph.call_function(aten.div.Tensor, (product, total))
    quotient.meta = product.meta.copy()
    product.replace_all_uses_with(quotient, delete_user_cb=lambda user: user is not quotient)


def _call(graph: torch.fx.Graph, like: Node, target: Any, args: tuple[Any, ...], value: Tensor) -> Node:
    node = graph.call_function(target, args)
    node.meta = {**like.meta, "val": value}
    return node
