"""One scale for what sums and concatenations connect, so that a residual stream costs one operator for each sum.

Wide values have bits to spare: 24 of them at the calibrated maximum. Values that meet in a sum, and the sum itself, get the
range of the largest among them; then none of them needs a RESCALE to meet the others. Each doubling of a value's range costs
one of its bits, so values whose range is far below the largest keep their own, unless nothing but a sum with larger ones reads them.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from tosaic.quantization.observers import FakeQuantize, Observer

aten = torch.ops.aten
_JOINING = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.cat.default, aten.where.self),
    *(aten.maximum.default, aten.minimum.default),
)
_MOST, _MOST_IN_SUMS = 2.0**3, 2.0**12  # how much larger than its own a value's range may become
_MOST_OF_ZERO = 2.0**6  # likewise, than the least in its group, that of a value of which calibration saw nothing but zero
# Sums keep four bits more: an accumulator can be larger than any that calibration saw, and still needs no coarser scale.
# Two, where readers take 16 bits of a value that is cut off from sums of sums
_ROOM, _ROOM_AT_16 = 16.0, 4.0


def share_scales(observed: GraphModule) -> dict[str, float]:
    """Widen the ranges that observers found (or fake quantization trained with), in place.

    Returns:
        The magnitude that calibration saw of each widened value, by the name of the node that makes it.
    """
    leader: dict[Observer, Observer] = {}
    only_summed: set[Observer] = set()

    def find(observer: Observer) -> Observer:
        while leader.setdefault(observer, observer) is not observer:
            leader[observer] = leader[leader[observer]]  # so that no way stays long
            observer = leader[observer]
        return observer

    for node in observed.graph.nodes:
        if node.op == "call_function" and node.target in _JOINING:
            around = [o for n in (*node.all_input_nodes, *node.users) if (o := _wide_observer(observed, n)) is not None]
            for other in around[1:]:
                leader[find(other)] = find(around[0])
        elif (observer := _wide_observer(observed, node)) is not None and all(u.target in _JOINING for u in node.users):
            only_summed.add(observer)
    groups: dict[Observer, list[Observer]] = {}
    for observer in list(leader):
        groups.setdefault(find(observer), []).append(observer)
    seen = {observer: _reach(observer) for observer in leader}
    room = _ROOM_AT_16 if any(_is_read_at_16(observed, node) for node in observed.graph.nodes) else _ROOM
    for members in groups.values():
        _share(members, only_summed, room)
    found = ((node, _wide_observer(observed, node)) for node in observed.graph.nodes)
    return {str(node.args[0]): seen[o] for node, o in found if o is not None and o in seen and _reach(o) != seen[o]}


def _observer(observed: GraphModule, node: Node) -> Observer | None:
    if node.op != "call_module":
        return None
    module = observed.get_submodule(str(node.target))
    observer = module.observer if isinstance(module, FakeQuantize) else module
    return observer if isinstance(observer, Observer) else None


def _wide_observer(observed: GraphModule, node: Node) -> Observer | None:
    observer = _observer(observed, node)
    return observer if observer is not None and observer.dtype is torch.int32 and observer.low.numel() == 1 else None


def _is_read_at_16(observed: GraphModule, node: Node) -> bool:
    """Whether a node observes an activation, not a table, for int16."""
    observer = _observer(observed, node)
    return observer is not None and observer.dtype is torch.int16 and node.args[0].op != "get_attr"


def _share(members: list[Observer], only_summed: set[Observer], room: float) -> None:
    """One range for all whose own is near enough to the largest; then for those that are left.

    What was always zero says nothing about its range, and takes another's; but not a mask's, far beyond those of numbers.
    """
    left = sorted(((_reach(m), m) for m in members), key=lambda pair: pair[0], reverse=True)
    of_zero = _MOST_OF_ZERO * min((reach for reach, _ in left if reach), default=0.0)
    while left:
        largest = left[0][0]
        near: list[tuple[float, Observer]] = []
        far: list[tuple[float, Observer]] = []
        for reach, member in left:
            most = _MOST_IN_SUMS if member in only_summed else _MOST
            within = largest <= (reach * most if reach else of_zero)
            (near if within else far).append((reach, member))
        for _, member in near if len(near) > 1 else ():
            member.low, member.high = torch.tensor(-largest * room), torch.tensor(largest * room)
        left = far


def _reach(observer: Observer) -> float:
    return max(-float(observer.low), float(observer.high), 0.0)
