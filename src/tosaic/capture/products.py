"""Matrix products with a constant become linear layers: those have weights per channel, and a bias.

mm(x, W)                   ->  linear(x, W^T)
mm(W, x)                   ->  linear(x^T, W)^T
bmm of one matrix          ->  the same, between reshapes
add(linear(x, W), bias)    ->  linear(x, W, bias), also through reshapes that keep the channels
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten


def products_to_linear(module: GraphModule) -> None:
    """Rewrite the products of a captured graph in place."""
    constant: set[Node] = set()
    for node in list(module.graph.nodes):
        if node.op == "get_attr" or (node.op == "call_function" and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
        elif node.target in (aten.mm.default, aten.bmm.default):
            _rewrite(node, constant)
    for node in list(module.graph.nodes):
        if node.target is aten.add.Tensor:
            _absorb_bias(node, constant)


def _rewrite(node: Node, constant: set[Node]) -> None:
    a, b = node.args
    if (a in constant) == (b in constant) or (node.target is aten.bmm.default and a.meta["val"].shape[0] != 1):
        return
    batch = node.target is aten.bmm.default
    with node.graph.inserting_before(node):
        if batch:
            a, b = (_call(node, aten.reshape.default, x, list(x.meta["val"].shape[1:])) for x in (a, b))
        if node.args[1] in constant:
            new = _call(node, aten.linear.default, a, _turned(node, b))
        else:
            new = _turned(node, _call(node, aten.linear.default, _turned(node, b), a))
        if batch:
            new = _call(node, aten.reshape.default, new, list(node.meta["val"].shape))
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _call(node: Node, target: torch._ops.OpOverload, *args: object) -> Node:
    """A call in the place of `node`."""
    call = node.graph.call_function(target, args)
    call.meta = node.meta.copy()
    call.meta["val"] = target(*(x.meta["val"] if isinstance(x, Node) else x for x in args))
    return call


def _turned(node: Node, x: Node) -> Node:
    """x^T; nothing is added to a transposition."""
    if (x.target is aten.permute.default and list(x.args[1]) == [1, 0]) or x.target is aten.t.default:
        return x.args[0]
    return _call(node, aten.permute.default, x, [1, 0])


def _absorb_bias(node: Node, constant: set[Node]) -> None:
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2 or not all(isinstance(a, Node) for a in node.args):
        return
    sums, bias = node.args if node.args[1] in constant else node.args[::-1]
    channels = sums.meta["val"].shape[-1] if sums.meta["val"].dim() else 0
    if bias.op != "get_attr" or tuple(bias.meta["val"].shape) != (channels,) or node.meta["val"].shape != sums.meta["val"].shape:
        return
    linear = sums
    while linear.target is aten.reshape.default and len(linear.users) == 1 and linear.args[0].meta["val"].shape[-1:] == (channels,):
        linear = linear.args[0]
    if linear.target is not aten.linear.default or len(linear.users) != 1 or len(linear.args) > 2 or len(sums.users) != 1:
        return
    linear.args = (*linear.args, bias)
    linear.prepend(bias)
    node.replace_all_uses_with(sums)
    node.graph.erase_node(node)
