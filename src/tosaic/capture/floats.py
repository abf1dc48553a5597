"""A captured float32 model in another float type: what is computed from constants alone stays float32 until it is stored."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from tosaic.capture.export import Captured, tidy

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def float_types(module: GraphModule) -> set[torch.dtype]:
    """The float types of a captured module's values."""
    values = pytree.tree_leaves([node.meta.get("val") for node in module.graph.nodes])
    return {v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}


def convert_floats(captured: Captured, dtype: torch.dtype) -> None:
    """Make each float tensor of the model `dtype`: inputs, constants, explicit casts and results.

    What depends on constants alone (positions of an embedding, folded scales) is computed as the model has it, and rounded once.
    """
    module = captured.module
    computed: dict[Node, Any] = {}
    stored: dict[Node, Node] = {}
    for node in list(module.graph.nodes):
        if _is_constant(node, computed):
            computed[node] = _compute(module, node, computed)
    for node in list(module.graph.nodes):
        if node in computed or node.op == "output":
            continue
        node.args, node.kwargs = pytree.tree_map(lambda leaf: dtype if leaf in _FLOATS else leaf, (node.args, node.kwargs))
        node.meta["val"] = pytree.tree_map(lambda leaf: _converted(leaf, dtype), node.meta.get("val"))
    for node, value in computed.items():
        readers = [user for user in node.users if user not in computed]
        if readers and isinstance(value, torch.Tensor) and value.dtype in _FLOATS and value.dtype is not dtype:
            stored[node] = _store(module, node, saturated(value, dtype))
            for user in readers:
                user.replace_input_with(node, stored[node])
    tidy(module)
    captured.example_inputs = pytree.tree_map(lambda leaf: _converted(leaf, dtype), captured.example_inputs)


def saturated(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`value` in `dtype`; what is finite stays so, as an attention mask of float32's lowest number must."""
    largest = torch.finfo(dtype).max
    return torch.where(value.isinf(), value, value.clamp(-largest, largest)).to(dtype)


def _converted(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.dtype in _FLOATS else leaf


def _is_constant(node: Node, computed: dict[Node, Any]) -> bool:
    return node.op == "get_attr" or (node.op == "call_function" and all(a in computed for a in node.all_input_nodes))


def _compute(module: GraphModule, node: Node, computed: dict[Node, Any]) -> Any:
    if node.op == "get_attr":
        found: Any = module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found.detach() if isinstance(found, torch.Tensor) else found
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda a: computed[a])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _store(module: GraphModule, node: Node, value: torch.Tensor) -> Node:
    """A buffer that holds `value`, read before `node`."""
    name = f"{node.name}_stored"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        read = module.graph.get_attr(name)
    read.meta = {**node.meta, "val": _converted(node.meta["val"], value.dtype)} if "val" in node.meta else dict(node.meta)
    return read
