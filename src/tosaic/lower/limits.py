"""What no TOSA graph can hold, found in a captured module before anything is computed or allocated for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from tosaic.errors import SpecError, UnsupportedError
from tosaic.tosa.graph import Location
from tosaic.tosa.spec import Level


def check_limits(module: torch.fx.GraphModule, location_of: Callable[[Node], Location], level: Level | None = None) -> None:
    """Refuse tensors without elements, tensors beyond the level, and NaN as an argument.

    Args:
        location_of: a node's place in the model.
        level: None checks no sizes.

    Raises:
        UnsupportedError: an input or a computed value has no elements, or an operator's argument is NaN.
        SpecError: a tensor is larger than the level allows.
    """
    computed: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(n in computed for n in node.all_input_nodes):
            computed.add(node)
        if node.op == "output":
            _refuse_constants_without_elements(node)
            continue
        for tensor in _tensors(node):
            if 0 in tensor.shape and node in computed:
                raise UnsupportedError(_empty(node, tensor), where=str(location_of(node)) or None)
            if level is not None:
                _check_size(node, tensor, level, str(location_of(node)) or None)
        arguments = pytree.tree_leaves((node.args, node.kwargs)) if node.op == "call_function" else []
        if any(isinstance(a, float) and math.isnan(a) for a in arguments):
            raise UnsupportedError(f"{node.target} has NaN for an argument", where=str(location_of(node)) or None)


def _tensors(node: Node) -> Iterator[torch.Tensor]:
    values: Any = node.meta.get("val")
    yield from (v for v in pytree.tree_leaves(values) if isinstance(v, torch.Tensor))


def _refuse_constants_without_elements(output: Node) -> None:
    for node in output.all_input_nodes:
        for tensor in _tensors(node):
            if 0 in tensor.shape:
                raise UnsupportedError(_empty(node, tensor))


def _empty(node: Node, tensor: torch.Tensor) -> str:
    what = f"input '{node.name}'" if node.op == "placeholder" else f"the result of {node.target} '{node.name}'"
    return f"{what} has shape {list(tensor.shape)}, and TOSA has no tensors without elements"


def _check_size(node: Node, tensor: torch.Tensor, level: Level, where: str | None) -> None:
    size = tensor.numel() * min(tensor.element_size(), 4)  # int64 is int32 in TOSA
    if size >> level.max_log2_size:
        raise SpecError(
            f"'{node.name}' {list(tensor.shape)} takes {size} bytes; level {level.name} allows less than 2^{level.max_log2_size}",
            where=where,
            remedy="use level none (+none) if the device allows it",
        )
