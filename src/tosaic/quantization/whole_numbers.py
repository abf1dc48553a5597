"""Integers that meet real numbers become real by a cast of their own, so that calibration sees their range.

    add(i, x), mul(i, 0.5), cat([i, x]), ...      -> the same of _to_copy(i): PyTorch promotes inside of the operator
    floor, trunc or a cast to integer of i / j    -> div(i, j, "floor" or "trunc") of the integers: no rounding decides about the whole part

i and j are integers (no bools, which are 0 and 1 at any scale), cast to real numbers or not, or numbers of the model that are whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_SUMS = (aten.cat.default, aten.sum.dim_IntList, aten.mean.dim, aten.cumsum.default, aten.cumprod.default, aten.prod.dim_int)
_WHOLE_PARTS = {aten.floor.default: "floor", aten.trunc.default: "trunc", aten._to_copy.default: "trunc"}
_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)


def is_integer(x: Any) -> bool:
    """Whether a node is an integer tensor."""
    value = x.meta.get("val") if isinstance(x, Node) else None
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype is not torch.bool


def cast_integers(module: GraphModule) -> None:
    """Rewrite a captured graph in place."""
    for node in list(module.graph.nodes):
        if node.target in _WHOLE_PARTS:
            _divide_integers(node)
    casts: dict[tuple[Node, torch.dtype], Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            _cast_operands(node, casts)
    module.graph.eliminate_dead_code()
    module.recompile()


def _divide_integers(node: Node) -> None:
    quotient, value = node.args[0], node.meta["val"]
    if not isinstance(quotient, Node) or quotient.target not in _DIVISIONS or quotient.kwargs:
        return
    if node.target is aten._to_copy.default and value.dtype not in (torch.int32, torch.int64):
        return
    dividend, divisor = (_whole(x) for x in quotient.args)
    if not isinstance(dividend, Node) or not divisor:
        return
    with node.graph.inserting_before(node):
        found = _call(node, aten.div.Tensor_mode, dividend, divisor, rounding_mode=_WHOLE_PARTS[node.target])
        if found.meta["val"].dtype is not value.dtype:
            found = _call(node, aten._to_copy.default, found, dtype=value.dtype)
    node.replace_all_uses_with(found)


def _whole(x: Any) -> Node | int | None:
    """The integers that `x` holds, if it holds integers."""
    if isinstance(x, Node):
        source = x.args[0] if x.target is aten._to_copy.default else x
        return source if is_integer(source) else None
    return int(x) if float(x).is_integer() else None


def _cast_operands(node: Node, casts: dict[tuple[Node, torch.dtype], Node]) -> None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not (torch.Tag.pointwise in node.target.tags or node.target in _SUMS):
        return
    around = [value, *(n.meta["val"] for n in node.all_input_nodes)]
    real = [v.dtype for v in around if isinstance(v, torch.Tensor) and v.is_floating_point()]
    if not real or node.target is aten._to_copy.default:
        return
    for source in node.all_input_nodes:
        if is_integer(source):
            with node.graph.inserting_before(node):
                cast = casts.get((source, real[0])) or _call(node, aten._to_copy.default, source, dtype=real[0])
            node.replace_input_with(source, casts.setdefault((source, real[0]), cast))


def _call(node: Node, target: torch._ops.OpOverload, *args: Any, **options: Any) -> Node:
    """A call in the place of `node`."""
    call = node.graph.call_function(target, args, options)
    call.meta = node.meta.copy()
    call.meta["val"] = target(*(x.meta["val"] if isinstance(x, Node) else x for x in args), **options)
    return call
