"""One zero point for int8 values that are projections of one input, as queries, keys and values are.

Their layers can then be one: a RESCALE has a scale for each channel, but one zero point. The ranges widen by as little as one
common zero point takes, and stay where that is more than `_MOST`.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from tosaic.quantization.observers import Observer

aten = torch.ops.aten
_HEADS = (aten.reshape.default, aten.view.default)
_LEAST = 3  # joining fewer saves next to nothing
_MOST = 1.2  # how much a scale may grow


def share_zero_points(observed: GraphModule) -> None:
    """Widen the ranges that observers found, in place."""
    groups: dict[Node, list[Observer]] = {}
    for node in observed.graph.nodes:
        if (
            node.op == "call_function"
            and node.target is aten.linear.default
            and (observer := _split_into_heads(observed, node)) is not None
        ):
            groups.setdefault(_source(node.args[0]), []).append(observer)
    for observers in groups.values():
        if len(observers) >= _LEAST and len(set(observers)) == len(observers):
            _share(observers)


def _split_into_heads(observed: GraphModule, linear: Node) -> Observer | None:
    """The observer of a layer's int8 result that nothing but a reshape reads."""
    if len(linear.users) != 1:
        return None
    (reader,) = linear.users
    if reader.op != "call_module" or any(user.target not in _HEADS for user in reader.users):
        return None
    observer = observed.get_submodule(str(reader.target))
    fits = isinstance(observer, Observer) and observer.dtype is torch.int8 and not observer.symmetric and not observer.per_channel
    return observer if fits else None


def _source(node: Node) -> Node:
    """What an observer observes."""
    while node.op == "call_module":
        node = node.args[0]
    return node


def _share(observers: list[Observer]) -> None:
    """The zero point at which the scale that grows most grows least."""
    ranges = [(min(float(low), 0.0), max(float(high), 0.0)) for low, high in (o.range() for o in observers)]
    least, most = observers[0].quant_min, observers[0].quant_max

    def scale(low: float, high: float, zero_point: int) -> float:
        return max(-low / (zero_point - least), high / (most - zero_point))

    def growth(zero_point: int) -> float:
        return max(scale(low, high, zero_point) * (most - least) / (high - low) for low, high in ranges)

    if any(high <= low for low, high in ranges):
        return
    best = min(range(least + 1, most), key=growth)
    if growth(best) > _MOST:
        return
    for observer, (low, high) in zip(observers, ranges, strict=True):
        step, observer._histogram = scale(low, high, best), None  # a percentile has done its work
        observer.low, observer.high = torch.tensor((least - best) * step), torch.tensor((most - best) * step)
