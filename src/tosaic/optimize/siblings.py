"""Convolutions of one input become one convolution, as the projections of an attention are.

    CONV2D(x, w1), CONV2D(x, w2), ...  each -> RESCALE -> RESHAPE that splits its channels
    CONV2D(x, [w1, w2, ...]) -> RESCALE -> RESHAPE -> SLICE, SLICE, ...

For integers, where the convolutions have the same attributes and constant weights, and nothing else reads what is between them and
the RESHAPEs. The RESCALEs must agree in all but their multipliers, which become one for each channel; the RESHAPEs must give parts of
one size. Either may be missing in all of them. Only where operators are saved: SLICEs count too. Exact: each channel is
computed as before.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from tosaic.optimize.rewrite import Rewriter, rule
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value


@dataclass(frozen=True)
class _Branch:
    """A convolution and what only it leads to."""

    conv: Node
    rescale: Node | None
    reshape: Node | None

    @property
    def nodes(self) -> list[Node]:
        return [n for n in (self.conv, self.rescale, self.reshape) if n is not None]

    @property
    def end(self) -> Value:
        return self.nodes[-1].output

    @property
    def channels(self) -> int:
        return self.conv.output.shape[-1]

    def kind(self) -> tuple[object, ...]:
        """What branches must have in common."""
        rescale = (
            None if self.rescale is None else dataclasses.replace(_rescale(self.rescale), multiplier=(1,), shift=(2,), per_channel=False)
        )
        parts = None if self.reshape is None else (*self.end.shape[:-2], self.end.shape[-1])
        weight = self.conv.inputs[1]
        wide = self.rescale is not None and _rescale(self.rescale).scale32
        return self.conv.inputs[0], self.conv.op, weight.dtype, weight.shape[1:], rescale, wide, parts


def merge_siblings(graph: Graph) -> Graph:
    """Join all convolutions that can be; the graph itself where there are none."""
    groups: dict[tuple[object, ...], list[_Branch]] = {}
    readers, kept = graph.users(), set(graph.outputs)
    for node in graph.nodes:
        if isinstance(node.op, ops.Conv2d) and node.output.dtype.is_integer and all(v.is_const for v in node.inputs[1:]):
            branch = _branch(node, readers, kept)
            groups.setdefault(branch.kind(), []).append(branch)
    first = {group[0].conv.output: group for group in groups.values() if _saves(group)}
    if not first:
        return graph

    @rule(ops.Conv2d)
    def join(r: Rewriter, node: Node) -> None:
        group = first.get(node.output)
        if group is not None:
            _join(r, node, group)

    return Rewriter(graph, [join]).run()


def _branch(conv: Node, readers: dict[Value, list[Node]], kept: set[Value]) -> _Branch:
    """The longest branch whose inner values nothing else reads."""

    def only_reader(node: Node, kind: type[ops.Op]) -> Node | None:
        found = readers.get(node.output, [])
        alone = len(found) == 1 and node.output not in kept and node.output.bound is None
        return found[0] if alone and isinstance(found[0].op, kind) else None

    rescale = only_reader(conv, ops.Rescale)
    reshape = only_reader(rescale or conv, ops.Reshape)
    if reshape is not None and not _splits_channels(conv.output.shape, reshape.output.shape):
        reshape = None
    return _Branch(conv, rescale, reshape)


def _splits_channels(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    return len(after) > 1 and before[-1] == after[-2] * after[-1] and math.prod(before[:-1]) == math.prod(after[:-2])


def _saves(group: list[_Branch]) -> bool:
    count = len(group[0].nodes)
    return count + len(group) < count * len(group)


def _rescale(node: Node) -> ops.Rescale:
    assert isinstance(node.op, ops.Rescale)
    return node.op


def _join(r: Rewriter, node: Node, group: list[_Branch]) -> None:
    """Emit the joined branch, and a slice of it for each end."""
    weights, biases = ([b.conv.inputs[i] for b in group] for i in (1, 2))
    weight = np.concatenate([w.data for w in weights])  # type: ignore[misc]
    bias = np.concatenate([np.broadcast_to(v.data, b.channels) for v, b in zip(biases, group, strict=True)])  # type: ignore[arg-type]
    constants = r.const(weight, weights[0].dtype, f"{weights[0].name}_joined"), r.const(bias, biases[0].dtype, f"{biases[0].name}_joined")
    value = r.emit(node.op, node.inputs[0], *constants, suffix="joined")
    if group[0].rescale is not None:
        scales = [(_rescale(b.rescale), b.channels if not _rescale(b.rescale).per_channel else 1) for b in group if b.rescale is not None]
        multiplier, shift = (tuple(m for op, times in scales for m in getattr(op, name) * times) for name in ("multiplier", "shift"))
        value = r.emit(dataclasses.replace(scales[0][0], multiplier=multiplier, shift=shift, per_channel=True), value, suffix="joined")
    axis = len(value.shape) - 1
    if group[0].reshape is not None:
        *lead, _, size = group[0].end.shape
        value = r.emit(ops.Reshape((*lead, len(bias) // size, size)), value, suffix="joined")
        axis = len(lead)
    begin = 0
    for branch in group:
        shape = branch.end.shape
        start = tuple(begin if i == axis else 0 for i in range(len(shape)))
        r.replace(branch.end, r.emit(ops.Slice(start, shape), value, suffix="part"))
        begin += shape[axis]
