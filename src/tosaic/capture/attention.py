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
# between softmax and product: views that keep the row, and what stands for a dropout in training
_BETWEEN = (aten.reshape.default, aten.expand.default, dropout_marker)
_PRODUCTS = (aten.bmm.default, aten.mm.default, aten.matmul.default)


def divide_after_product(module: GraphModule) -> None:
    """Rewrite each softmax over the last axis whose one reader is the left side of a matrix product, in place."""
    for node in list(module.graph.nodes):
        if node.target not in _SOFTMAX or node.args[1] not in (-1, node.meta["val"].dim() - 1):
            continue
        chain = _way_to_product(node)
        if chain is not None:
            _rewrite(module, node, chain)


def _way_to_product(softmax: Node) -> list[Node] | None:
    """The nodes behind `softmax` up to and with a matrix product that has it on its left."""
    chain, node = [], softmax
    while len(node.users) == 1:
        (user,) = node.users
        chain.append(user)
        if user.target in _PRODUCTS:
            return chain if user.args[0] is node and user.args[1] is not node else None
        if user.target not in _BETWEEN or user.meta["val"].shape[-1] != softmax.meta["val"].shape[-1]:
            return None
        node = user
    return None


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
