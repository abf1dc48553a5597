"""Long products along an axis as products of pairs, so that each level is calibrated.

The largest possible product of many factors is far above those that occur: at a scale that held it nothing would be left of them. A few
are multiplied by one kernel, which rounds once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from tosaic.operators import MOST_FACTORS

aten = torch.ops.aten


def multiply_in_pairs(module: GraphModule) -> None:
    """Replace `prod` of real numbers by log2(n) multiplications of one half with the other, in place."""
    for target in (aten.prod.default, aten.prod.dim_int):
        for node in module.graph.find_nodes(op="call_function", target=target):
            x = node.args[0].meta["val"]
            count = x.numel() if target is aten.prod.default else x.shape[node.args[1]]
            if count > MOST_FACTORS and x.is_floating_point():
                with module.graph.inserting_before(node):
                    node.replace_all_uses_with(_in_pairs(module, node))
                module.graph.erase_node(node)
    module.recompile()


def _in_pairs(module: GraphModule, node: Node) -> Node:
    def call(function: Any, *args: Any) -> Node:
        made = module.graph.call_function(function, args)
        made.meta = node.meta.copy()
        made.meta["val"] = function(*torch.fx.map_arg(args, lambda n: n.meta["val"]))
        return made

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
