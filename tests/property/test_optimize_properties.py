"""Random graphs: optimized or not, the same bits on the reference model and on the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tosaic.execute.simulator import evaluate
from tosaic.optimize.layout import transposed
from tosaic.optimize.pipeline import PASSES, optimize
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Value, verify
from tosaic.tosa.types import DType

I8, I32 = DType.INT8, DType.INT32
Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
LARGEST = 4096


class Maker:
    """Grows a graph by drawn operators on drawn values; what does not fit is skipped."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.b = Builder()
        self.values = [self.b.input("x", I8, (1, 4, 3, 2)), self.b.input("y", I8, (2, 3, 2, 4)), self.b.input("z", I32, (1, 4, 3, 2))]

    def pick(self, *dtypes: DType, like: Value | None = None, rank: int | None = None) -> Value | None:
        fits = [v for v in self.values if v.dtype in dtypes and (like is None or v.type == like.type) and rank in (None, len(v.shape))]
        return self.draw(st.sampled_from(fits[-6:])) if fits else None

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def axis(self, x: Value) -> int:
        return self.integer(0, len(x.shape) - 1)

    def constant(self, dtype: DType, *shape: int) -> Value:
        seed = self.integer(0, 5)
        return self.b.const(np.random.default_rng(seed).integers(-128, 128, shape), dtype)

    def step(self) -> None:
        x = self.pick(I8, I32)
        assert x is not None
        y = self.draw(st.sampled_from(STEPS))(self, x)
        if y is not None and 0 < y.type.size <= LARGEST:
            self.values.append(y)


def transpose(m: Maker, x: Value) -> Value:
    return m.b.emit(ops.Transpose(tuple(m.draw(st.permutations(range(len(x.shape)))))), x)


def convolution(m: Maker, _: Value) -> Value | None:
    """As lowered: NCHW in and out."""
    x = m.pick(I8, rank=4)
    if x is None:
        return None
    zp, channels = m.integer(-1, 1), m.integer(1, 4)
    x = m.b.emit(ops.Transpose((0, 2, 3, 1)), x)
    c = x.shape[3]
    if m.draw(st.booleans()):
        y = m.b.emit(ops.Conv2d((1, 1), (0, 1, 1, 0), (1, 1), zp), x, m.constant(I8, channels, 2, 2, c), m.constant(I32, channels))
    else:
        y = m.b.emit(ops.DepthwiseConv2d((1, 1), (0, 1, 1, 0), (1, 1), zp), x, m.constant(I8, 2, 2, c, 1), m.constant(I32, c))
    count = y.shape[3]
    y = m.b.emit(ops.Rescale(I8, tuple(range(1 << 30, (1 << 30) + count)), (38,) * count, 0, m.integer(-3, 3), per_channel=True), y)
    return m.b.emit(ops.Transpose((0, 3, 1, 2)), y)


def max_pool(m: Maker, _: Value) -> Value | None:
    x = m.pick(I8, rank=4)
    return None if x is None else m.b.emit(ops.MaxPool2d((2, 3), (1, 1), (1, 1, 2, 0)), x)


def rescale(m: Maker, x: Value) -> Value:
    """Mostly exact ones, which are those that fuse."""
    dtype = m.draw(st.sampled_from([I8, I32, I32]))
    multiplier = m.draw(st.sampled_from([1 << 30, 1 << 30, 1518500250]))
    shift = m.draw(st.sampled_from([30, 30, 31, 29, 36]) if x.dtype is I8 else st.sampled_from([30, 31, 36]))
    zps = [m.draw(st.sampled_from([0, 0, 5, -128])) if d is I8 else 0 for d in (x.dtype, dtype)]
    return m.b.emit(ops.Rescale(dtype, (multiplier,), (shift,), *zps), x)


def binary(m: Maker, x: Value) -> Value | None:
    y = m.pick(x.dtype, like=x)
    assert y is not None
    if m.draw(st.booleans()):
        shape = [d if m.draw(st.booleans()) else 1 for d in x.shape]
        y = m.constant(x.dtype, *shape)
    kinds = [ops.BitwiseXor, ops.BitwiseAnd] + ([ops.Maximum, ops.Minimum] if x.dtype is I32 else [])
    return m.b.emit(m.draw(st.sampled_from(kinds))(), x, y)


def limit(m: Maker, _: Value) -> Value | None:
    """A limit that often has no effect, or the one that a RESCALE behind it has anyway."""
    x = m.pick(I32)
    if x is None:
        return None
    bound = m.b.const(np.full((1,) * len(x.shape), m.draw(st.sampled_from([-70000, -128, 0, 127, 200, 70000]))), I32)
    y = m.b.emit(m.draw(st.sampled_from([ops.Maximum, ops.Minimum]))(), *((x, bound) if m.draw(st.booleans()) else (bound, x)))
    return y if m.draw(st.booleans()) else rescale(m, y)


def offset(m: Maker, _: Value) -> Value | None:
    """Constants on top of something too small to overflow."""
    x = m.pick(I8)
    if x is None:
        return None
    y = m.b.emit(ops.Rescale(I32, (1 << 30,), (30,)), x)
    for _ in range(m.integer(1, 3)):
        y = m.b.emit(ops.Add(), y, m.constant(I32, *(d if m.draw(st.booleans()) else 1 for d in y.shape)))
    return y


def select(m: Maker, x: Value) -> Value | None:
    y = m.pick(I32, like=x)
    return None if x.dtype is not I32 or y is None else m.b.emit(ops.Select(), m.b.emit(ops.Greater(), x, y), y, m.b.emit(ops.Clz(), x))


def unary(m: Maker, x: Value) -> Value:
    if x.dtype is I32:
        return m.b.emit(ops.BitwiseNot(), x)
    low = m.integer(-128, 127)
    table = m.constant(I8, 256)
    kind = m.draw(st.sampled_from([ops.Clamp(low, m.integer(low, 127)), ops.BitwiseNot(), ops.Identity(), ops.Table()]))
    return m.b.emit(kind, x, table) if kind == ops.Table() else m.b.emit(kind, x)


def reduce(m: Maker, x: Value) -> Value:
    return m.b.emit(m.draw(st.sampled_from([ops.ReduceMax, ops.ReduceMin]))(m.axis(x)), x)


def arg_max(m: Maker, _: Value) -> Value | None:
    x = m.pick(I8)
    return None if x is None or len(x.shape) < 2 else m.b.emit(ops.ArgMax(m.axis(x)), x)


def reshape(m: Maker, x: Value) -> Value:
    """Split an axis, merge two, or add or drop an axis of length 1."""
    shape = list(x.shape)
    axis = m.axis(x)
    even = [i for i, d in enumerate(shape) if d % 2 == 0]
    kind = m.integer(0, 3)
    if kind == 0 and even and len(shape) < 6:
        axis = m.draw(st.sampled_from(even))
        shape[axis : axis + 1] = m.draw(st.sampled_from([[2, shape[axis] // 2], [shape[axis] // 2, 2]]))
    elif kind == 1 and axis + 1 < len(shape):
        shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    elif kind == 2 and len(shape) < 6:
        shape.insert(axis, 1)
    elif 1 in shape and len(shape) > 1:
        shape.remove(1)
    return m.b.emit(ops.Reshape(tuple(shape)), x)


def pad(m: Maker, x: Value) -> Value:
    padding = tuple(m.draw(st.sampled_from([0, 0, 1])) for _ in range(2 * len(x.shape)))
    return m.b.emit(ops.Pad(padding, m.draw(st.sampled_from([0, 0, -128, 1]))), x)


def cut(m: Maker, x: Value) -> Value:
    start = tuple(m.integer(0, min(1, d - 1)) for d in x.shape)
    return m.b.emit(ops.Slice(start, tuple(m.integer(max(1, d - s - 1), d - s) for d, s in zip(x.shape, start, strict=True))), x)


def halves(m: Maker, x: Value) -> Value | None:
    axis = m.axis(x)
    length = x.shape[axis] // 2
    if not length:
        return None
    parts = []
    for begin, size in ((0, length), (length, x.shape[axis] - length)):
        start, sizes = [0] * len(x.shape), list(x.shape)
        start[axis], sizes[axis] = begin, size
        parts.append(m.b.emit(ops.Slice(tuple(start), tuple(sizes)), x))
    return m.b.emit(ops.Concat(axis), *(parts if m.draw(st.booleans()) else parts[::-1]))


def concat(m: Maker, x: Value) -> Value:
    y = m.pick(x.dtype, like=x)
    assert y is not None
    return m.b.emit(ops.Concat(m.axis(x)), x, y)


def tile(m: Maker, x: Value) -> Value:
    return m.b.emit(ops.Tile(tuple(m.draw(st.sampled_from([1, 1, 2])) for _ in x.shape)), x)


def reverse(m: Maker, x: Value) -> Value:
    return m.b.emit(ops.Reverse(m.axis(x)), x)


def constant(m: Maker, x: Value) -> Value:
    return m.b.emit(ops.BitwiseNot(), m.constant(I8, 1, 4, 3, 2))


STEPS = [transpose, transpose, convolution, convolution, rescale, rescale, binary, binary, unary, unary, reshape, reshape]
STEPS += [max_pool, select, reduce, arg_max, pad, cut, halves, concat, tile, reverse, constant, limit, limit, offset]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    m = Maker(draw)
    for _ in range(draw(st.integers(3, 16))):
        m.step()
    outputs = [v for v in m.values[3:][-4:] if draw(st.booleans())] or m.values[-1:]
    return m.b.finish(outputs)


def draw_inputs(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    limit = {I8: 128, I32: 100000}
    return [rng.integers(-limit[v.dtype], limit[v.dtype], v.shape).astype(v.dtype.numpy) for v in graph.inputs]


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs())
def test_same_bits_on_the_reference_model(reference: Run, graph: Graph) -> None:
    after = optimize(graph, evaluate)
    inputs = draw_inputs(graph)
    for a, b in zip(reference(graph, inputs), reference(after, inputs), strict=True):
        assert np.array_equal(a, b)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs())
def test_every_pass_keeps_bits_and_structure(graph: Graph) -> None:
    inputs = draw_inputs(graph)
    want = evaluate(graph, inputs)
    text = str(graph)
    before = graph
    for step in PASSES:
        after = step(before, evaluate)
        verify(after)
        assert after.inputs == graph.inputs
        assert [(v.name, v.type) for v in after.outputs] == [(v.name, v.type) for v in graph.outputs]
        for a, b in zip(want, evaluate(after, inputs), strict=True):
            assert np.array_equal(a, b)
        before = after
    assert str(graph) == text


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs())
def test_idempotent_and_never_more_work(graph: Graph) -> None:
    after = optimize(graph, evaluate)
    assert optimize(after, evaluate) is after
    assert transposed(after)[0] <= transposed(graph)[0]
