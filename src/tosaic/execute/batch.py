"""A graph for many samples at once: the same operators, each on the values of all samples.

Samples never meet, so the outputs are those of one run for each sample (floats to within the order of their sums). A value
*carries* the samples when it depends on an input. It is then stored in one of two forms, and changes between them by a RESHAPE:

    merged  [N * S0, S1, ...]   one sample after the other along the leading dimension: most operators do not notice
    split   [N, S0, S1, ...]    for what reads the leading dimension itself, and for scalars

What no input reaches is computed once, and repeated only where an operator cannot broadcast it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tosaic.errors import ExecuteError
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Node, Value

Rule = Callable[["_Batch", Node], "Value | tuple[Value, ...]"]

LARGEST = 1 << 26  # bytes of one value, beyond which more samples at once only fill the memory
MOST = 32


def batched(graph: Graph, count: int) -> Graph:
    """The graph that runs `count` samples of `graph` at once.

    Returns:
        A graph whose inputs and outputs are those of `graph` with `count` as a dimension before all others. Ranks may go beyond
        TOSA's level limits.

    Raises:
        ExecuteError: an operator cannot take many samples at once; the message names it.
    """
    return _Batch(graph, count).run()


def fitting(graph: Graph) -> int:
    """How many samples of `graph` to run at once on a thread: so many that its largest value stays below `LARGEST`."""
    values = [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]
    largest = max((v.type.size * v.dtype.numpy.itemsize for v in values), default=1)
    return max(1, min(MOST, LARGEST // max(1, largest)))


class _Batch:
    """The new graph while it is built."""

    def __init__(self, graph: Graph, count: int) -> None:
        self.graph, self.count, self.build = graph, count, Builder(graph.name)
        self.values: dict[Value, Value] = {}  # in the form that was computed
        self.carried: set[Value] = set()

    def run(self) -> Graph:
        for value in self.graph.inputs:
            self.values[value] = self.build.input(value.name, value.dtype, (self.count, *value.shape))
            self.carried.add(value)
        self.values |= {value: value for value in self.graph.constants()}
        for node in self.graph.nodes:
            with self.build.at(node.outputs[0].name, node.location):
                if self.carried.isdisjoint(node.inputs):
                    results = self.build.emit_all(node.op, *(self.values[v] for v in node.inputs))
                elif type(node.op) in _RULES:
                    made = _RULES[type(node.op)](self, node)
                    results = made if isinstance(made, tuple) else (made,)
                    self.carried.update(node.outputs)
                else:
                    raise _refusal(node, "it has no rule for that")
            self.values.update(zip(node.outputs, results, strict=True))
        return self.build.finish([self.split(v) if v in self.carried else self.repeated(v) for v in self.graph.outputs])

    def merged(self, value: Value) -> Value:
        """[N * S0, ...], of any value."""
        own = self.values[value]
        if value not in self.carried:
            return self.build.emit(ops.Tile((self.count, *[1] * (value.type.rank - 1))), own)
        return own if own.type.rank == value.type.rank else self._as(own, self.merged_shape(value.shape))

    def split(self, value: Value) -> Value:
        """[N, S0, ...], or [1, S0, ...] of what does not carry the samples."""
        own = self.values[value]
        if value not in self.carried:
            return self._as(own, (1, *value.shape))
        return own if own.type.rank > value.type.rank else self._as(own, (self.count, *value.shape))

    def repeated(self, value: Value) -> Value:
        """[N, S0, ...], of any value."""
        whole = self.split(value)
        return whole if value in self.carried else self.build.emit(ops.Tile((self.count, *[1] * value.type.rank)), whole)

    def merged_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.count * shape[0], *shape[1:])

    def _as(self, value: Value, shape: tuple[int, ...]) -> Value:
        return self.build.emit(ops.Reshape(shape), value)


def _elementwise(b: _Batch, node: Node) -> Value:
    """Merged, unless the leading dimension broadcasts, or is the channel of a RESCALE."""
    lead = node.output.shape[:1]
    channels = isinstance(node.op, ops.Rescale) and node.op.per_channel and node.output.type.rank == 1
    if lead and not channels and all(v.shape[:1] == (lead if v in b.carried else (1,)) for v in node.inputs):
        return b.build.emit(node.op, *(b.merged(v) if v in b.carried else b.values[v] for v in node.inputs))
    return b.build.emit(node.op, *map(b.split, node.inputs))


def _table(b: _Batch, node: Node) -> Value:
    x, table = node.inputs
    _constant(b, node, table)
    return b.build.emit(node.op, b.merged(x) if x.type.rank else b.split(x), b.values[table])


def _along_axis(b: _Batch, node: Node) -> Value:
    op: Any = node.op
    if op.axis and b.carried.issuperset(node.inputs):
        return b.build.emit(op, *map(b.merged, node.inputs))
    return b.build.emit(replace(op, axis=op.axis + 1), *map(b.repeated, node.inputs))


def _pad(b: _Batch, node: Node) -> Value:
    op: Any = node.op
    if op.padding[:2] == (0, 0):
        return b.build.emit(op, b.merged(node.inputs[0]))
    return b.build.emit(replace(op, padding=(0, 0, *op.padding)), b.split(node.inputs[0]))


def _reshape(b: _Batch, node: Node) -> Value:
    shape = node.op.shape
    return b.build.emit(ops.Reshape(b.merged_shape(shape) if shape else (b.count,)), b.values[node.inputs[0]])


def _slice(b: _Batch, node: Node) -> Value:
    op: Any = node.op
    x = node.inputs[0]
    if (op.start[0], op.size[0]) == (0, x.shape[0]):
        return b.build.emit(replace(op, size=b.merged_shape(op.size)), b.merged(x))
    return b.build.emit(ops.Slice((0, *op.start), (b.count, *op.size)), b.split(x))


def _tile(b: _Batch, node: Node) -> Value:
    if node.op.multiples[0] == 1:
        return b.build.emit(node.op, b.merged(node.inputs[0]))
    return b.build.emit(ops.Tile((1, *node.op.multiples)), b.split(node.inputs[0]))


def _transpose(b: _Batch, node: Node) -> Value:
    perms = node.op.perms
    if perms[0] == 0:
        return b.build.emit(node.op, b.merged(node.inputs[0]))
    return b.build.emit(ops.Transpose((0, *(p + 1 for p in perms))), b.split(node.inputs[0]))


def _leading(b: _Batch, node: Node) -> tuple[Value, ...]:
    """Operators that treat the leading dimension as samples already."""
    return b.build.emit_all(node.op, *map(b.merged, node.inputs))


def _convolution(b: _Batch, node: Node) -> Value:
    x, *others = node.inputs
    for value in others:
        _constant(b, node, value)
    return b.build.emit(node.op, b.merged(x), *(b.values[v] for v in others))


def _gather(b: _Batch, node: Node) -> Value | tuple[Value, ...]:
    """From one table for all samples: one GATHER of all indices."""
    values, indices = node.inputs
    if values in b.carried or values.shape[0] > 1:
        return _leading(b, node)
    every = b.build.emit(ops.Reshape((1, b.count * indices.shape[1])), b.values[indices])
    found = b.build.emit(node.op, b.values[values], every)
    return b.build.emit(ops.Reshape(b.merged_shape(node.output.shape)), found)


def _constant(b: _Batch, node: Node, value: Value) -> None:
    if value in b.carried:
        raise _refusal(node, f"%{value.name} differs between them")


def _refusal(node: Node, reason: str) -> ExecuteError:
    where = str(node.location) if node.location else f"%{node.outputs[0].name}"
    return ExecuteError(f"{node.op.NAME} cannot run many samples at once: {reason}", where=where, remedy="run them one at a time (batch=1)")


_RULES: dict[type[ops.Op], Rule] = {
    **dict.fromkeys(
        (
            *(ops.Erf, ops.Sigmoid, ops.Tanh, ops.Ceil, ops.Cos, ops.Exp, ops.Floor, ops.Log, ops.Reciprocal, ops.Rsqrt, ops.Sin),
            *(ops.Abs, ops.BitwiseNot, ops.Clz, ops.LogicalNot, ops.Identity, ops.Add, ops.Sub, ops.Mul, ops.Maximum, ops.Minimum),
            *(ops.Pow, ops.IntDiv, ops.BitwiseAnd, ops.BitwiseOr, ops.BitwiseXor, ops.LogicalAnd, ops.LogicalOr, ops.LogicalXor),
            *(ops.LogicalLeftShift, ops.LogicalRightShift, ops.ArithmeticRightShift, ops.Equal, ops.Greater, ops.GreaterEqual),
            *(ops.Select, ops.Clamp, ops.Negate, ops.Cast, ops.Rescale),
        ),
        _elementwise,
    ),
    ops.Table: _table,
    **dict.fromkeys((ops.ReduceAll, ops.ReduceAny, ops.ReduceMax, ops.ReduceMin, ops.ReduceProduct, ops.ReduceSum), _along_axis),
    **dict.fromkeys((ops.ArgMax, ops.Concat, ops.Reverse), _along_axis),
    ops.Pad: _pad,
    ops.Reshape: _reshape,
    ops.Slice: _slice,
    ops.Tile: _tile,
    ops.Transpose: _transpose,
    **dict.fromkeys((ops.Conv2d, ops.Conv3d, ops.DepthwiseConv2d, ops.TransposeConv2d), _convolution),
    **dict.fromkeys((ops.AvgPool2d, ops.MaxPool2d, ops.Resize, ops.MatMul, ops.Scatter, ops.Fft2d, ops.RFft2d), _leading),
    ops.Gather: _gather,
}
