"""What the quantizer wants to know of a captured graph before it decides anything."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from tosaic.quantization.rules import RULES, Kind, aten

_ENDS = {aten.relu.default: (0.0, math.inf), aten.relu6.default: (0.0, 6.0)}
_TABLE_DECIBELS = 36.0  # what 8 bits keep of rows without outliers


def constants(model: torch.fx.GraphModule) -> set[Node]:
    """Parameters, and what is computed from nothing else: `lower` folds them, so they need no quantization."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def feature_maps(model: torch.fx.GraphModule) -> set[Node]:
    """Values that have a convolution among the nearest MACs that they come from: too large for more than one TABLE."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None and rule.kind is Kind.MAC:
            if node.target is aten.convolution.default:
                found.add(node)
        elif not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def depths(model: torch.fx.GraphModule) -> dict[str, float]:
    """Values that nothing but a softmax reads, through sums with a mask and the like: how far below their largest element matters."""
    found: dict[str, float] = {}
    for node in reversed(model.graph.nodes):
        wanted = [_depth_of(user, found) for user in node.users]
        if wanted and None not in wanted:
            found[node.name] = max(wanted)  # type: ignore[type-var, assignment]
    return found


def _depth_of(node: Node, found: dict[str, float]) -> float | None:
    rule = RULES.get(node.target) if node.op == "call_function" else None
    if rule is None or rule.depth is not None:
        return rule.depth if rule else None
    passes = rule.kind in (Kind.MOVE, Kind.JOIN) or node.target in (aten.add.Tensor, aten.sub.Tensor, aten.where.self)
    return found.get(node.name) if passes else None


def attribute(model: torch.fx.GraphModule, node: Any) -> torch.Tensor:
    """The tensor of a get_attr node."""
    found: Any = model
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found


def bounds(model: torch.fx.GraphModule) -> dict[str, float]:
    """Magnitudes that values cannot pass, whatever the input: of functions with a known range and of limits, through data movement."""
    found: dict[str, float] = {}
    for node in model.graph.nodes:
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is None:
            continue
        ends = rule.fixed_range or (_limits(node) if rule.kind is Kind.CLAMP else None)
        if ends is not None:
            found[node.name] = max(map(abs, ends))
        elif rule.kind in (Kind.MOVE, Kind.POOL) and (bound := found.get(node.args[0].name)):
            found[node.name] = bound
    return found


def _limits(node: Node) -> tuple[float, float]:
    """The range of a CLAMP's results."""
    if node.target in _ENDS:
        return _ENDS[node.target]
    default = 1.0 if node.target is aten.hardtanh.default else math.inf
    low, high = (*node.args[1:], None, None)[:2]
    return (-default if low is None else float(low), default if high is None else float(high))


def uneven_tables(model: torch.fx.GraphModule) -> set[Node]:
    """Embeddings whose rows have outliers that leave the rest of a row too few of 8 bits: they are int16."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        if node.target is aten.embedding.default and node.args[0].op == "get_attr":
            table = attribute(model, node.args[0]).detach().float()
            step = table.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
            noise = (table - torch.round(table / step) * step).square().sum(0)
            ratio = noise / table.square().sum(0).clamp(min=1e-30)  # of each column: outliers must not count for the others
            if float(ratio.median()) > 10 ** (-_TABLE_DECIBELS / 10):
                found.add(node)
    return found


def is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
