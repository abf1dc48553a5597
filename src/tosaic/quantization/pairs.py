"""Long products along an axis as products of pairs, so that each level is calibrated.

The largest possible product of many factors is far above those that occur: at a scale that held it nothing would be left of them. A few
are multiplied by one kernel, which rounds once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from tosaic.operators import MOST_FACTORS

aten = torch.ops.aten


def multiply_in_pairs(module: GraphModule) -> None:
    """Replace `prod` and `cumprod` of real numbers by log2(n) multiplications, in place."""
    for target in (aten.prod.default, aten.prod.dim_int):
        for node in module.graph.find_nodes(op="call_function", target=target):
            x = node.args[0].meta["val"]
            count = x.numel() if target is aten.prod.default else x.shape[node.args[1]]
            if count > MOST_FACTORS and x.is_floating_point():
                _replace(module, node, _in_pairs)
    for node in module.graph.find_nodes(op="call_function", target=aten.cumprod.default):
        x = node.args[0].meta["val"]
        if x.dim() and x.shape[node.args[1]] > MOST_FACTORS and x.is_floating_point():
            _replace(module, node, _running)
    module.recompile()


def _replace(module: GraphModule, node: Node, spelled_out: Callable[[Callable[..., Node], Node], Node]) -> None:
    def call(function: Any, *args: Any) -> Node:
        made = module.graph.call_function(function, args)
        made.meta = node.meta.copy()
        made.meta["val"] = function(*torch.fx.map_arg(args, lambda n: n.meta["val"]))
        return made

    with module.graph.inserting_before(node):
        node.replace_all_uses_with(spelled_out(call, node))
    module.graph.erase_node(node)


def _running(call: Callable[..., Node], node: Node) -> Node:
    """The running product: 1, 2, 4, ... factors that end at each place."""
    x: Any = node.args[0]
    dim: Any = node.args[1]
    count, step = x.meta["val"].shape[dim], 1
    while step < count:
        first, later, before = (call(aten.slice.Tensor, x, dim, *ends) for ends in ((0, step), (step, count), (0, count - step)))
        x = call(aten.cat.default, [first, call(aten.mul.Tensor, later, before)], dim)
        step *= 2
    return x


def _in_pairs(call: Callable[..., Node], node: Node) -> Node:
    x: Any = node.args[0]
    if node.target is aten.prod.default:
        x, dim, keepdim = call(aten.reshape.default, x, [-1]), 0, False
    else:
        dim, keepdim = node.args[1], len(node.args) > 2 and bool(node.args[2])
    count = x.meta["val"].shape[dim]
    while count > 1:
        half, odd = divmod(count, 2)
        product = call(aten.mul.Tensor, call(aten.slice.Tensor, x, dim, 0, half), call(aten.slice.Tensor, x, dim, half, 2 * half))
        x = call(aten.cat.default, [product, call(aten.slice.Tensor, x, dim, 2 * half, count)], dim) if odd else product
        count = half + odd
    return x if keepdim else call(aten.squeeze.dim, x, dim)
