"""Layouts: which TRANSPOSEs go, which stay, and that the results are the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from tosaic.execute.simulator import evaluate
from tosaic.optimize import axes
from tosaic.optimize.layout import choose_layouts, transposed
from tosaic.optimize.mincut import Network
from tosaic.optimize.pipeline import optimize
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Value, verify
from tosaic.tosa.types import DType

I8, I16, I32, F32 = DType.INT8, DType.INT16, DType.INT32, DType.FP32
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
RNG = np.random.default_rng(0)


def rescale(b: Builder, x: Value, dtype: DType, shift: int = 30) -> Value:
    return b.emit(ops.Rescale(dtype, (1 << 30,), (shift,)), x)


def conv(b: Builder, x: Value, channels: int, kernel: int = 3, per_channel: bool = True) -> Value:
    """A convolution of an NCHW tensor as it is lowered: TRANSPOSE, CONV2D, RESCALE, TRANSPOSE."""
    w = b.const(RNG.integers(-127, 128, (channels, kernel, kernel, x.shape[1])), x.dtype if x.dtype.is_float else I8)
    bias = b.const(RNG.integers(-1000, 1000, channels), ops.ACCUMULATOR[x.dtype])
    pad = (kernel // 2,) * 4
    y = b.emit(ops.Conv2d((1, 1), pad, (1, 1)), b.emit(ops.Transpose(TO_NHWC), x), w, bias)
    if not x.dtype.is_float:
        count = channels if per_channel else 1
        multipliers = tuple(int(m) for m in RNG.integers(1 << 13, 1 << 14, count))
        y = b.emit(ops.Rescale(x.dtype, multipliers, (23,) * count, per_channel=per_channel), y)
    return b.emit(ops.Transpose(TO_NCHW), y)


def add(b: Builder, x: Value, y: Value) -> Value:
    return rescale(b, b.emit(ops.Add(), rescale(b, x, I32, 20), rescale(b, y, I32, 20)), I8, 41)


def chain(b: Builder, x: Value) -> Value:
    return conv(b, b.emit(ops.Clamp(-3, 100), conv(b, x, 8)), 4)


def residual(b: Builder, x: Value) -> Value:
    x = conv(b, x, 8)
    for _ in range(3):
        x = add(b, x, conv(b, b.emit(ops.Clamp(0, 127), conv(b, x, 8)), 8))
    return x


def u_net(b: Builder, x: Value) -> Value:
    x = conv(b, x, 4)
    y = conv(b, b.emit(ops.Pad((0, 0, 0, 0, 1, 1, 1, 1)), x), 6)
    y = b.emit(ops.Slice((0, 0, 1, 1), (1, 6, *x.shape[2:])), y)
    return conv(b, b.emit(ops.Concat(1), x, y), 3)


def global_mean(b: Builder, x: Value) -> Value:
    y = rescale(b, conv(b, x, 8), I32)
    y = rescale(b, b.emit(ops.ReduceSum(3), b.emit(ops.ReduceSum(2), y)), I8, 36)
    return b.emit(ops.Reshape((1, 8)), y)


def squeeze_excite(b: Builder, x: Value) -> Value:
    x = conv(b, x, 8)
    s = b.emit(ops.ReduceMax(3), b.emit(ops.ReduceMax(2), x))
    s = conv(b, s, 8, kernel=1)
    return conv(b, rescale(b, b.emit(ops.Mul(), x, s), I8, 37), 4)


def pixel_shuffle(b: Builder, x: Value) -> Value:
    x = conv(b, x, 12)
    n, _, h, w = x.shape
    x = b.emit(ops.Transpose((0, 1, 4, 2, 5, 3)), b.emit(ops.Reshape((n, 3, 2, 2, h, w)), x))
    return b.emit(ops.Reshape((n, 3, 2 * h, 2 * w)), x)


def table(b: Builder, x: Value) -> Value:
    return conv(b, b.emit(ops.Table(), conv(b, x, 4), b.const(np.arange(256) % 97 - 50, I8)), 4)


def constants(b: Builder, x: Value) -> Value:
    y = b.emit(ops.Mul(), conv(b, x, 4), b.const(RNG.integers(-9, 9, (1, 4, 1, 1)), I8))
    return conv(b, rescale(b, b.emit(ops.Sub(), b.const(RNG.integers(-9, 9, y.shape), I32), y), I8), 2)


def select(b: Builder, x: Value) -> Value:
    y = rescale(b, conv(b, x, 4), I32)
    y = b.emit(ops.Select(), b.emit(ops.Greater(), y, b.const([[[[0]]]], I32)), y, b.emit(ops.Negate(), y))
    return conv(b, rescale(b, y, I8), 2)


def tile_and_reverse(b: Builder, x: Value) -> Value:
    return conv(b, b.emit(ops.Reverse(3), b.emit(ops.Tile((1, 2, 1, 1)), conv(b, x, 4))), 2)


def arg_max(b: Builder, x: Value) -> Value:
    return b.emit(ops.ArgMax(1), conv(b, x, 4))


def float_chain(b: Builder, x: Value) -> Value:
    return conv(b, b.emit(ops.Sigmoid(), conv(b, x, 4)), 2)


def float_to_int(b: Builder, x: Value) -> Value:
    return conv(b, b.emit(ops.Cast(I8), b.emit(ops.Mul(), x, b.const(np.full((1, 1, 1, 1), 9.0), F32))), 2)


def to_the_narrow_side(b: Builder, x: Value) -> Value:
    return rescale(b, b.emit(ops.Transpose(TO_NHWC), b.emit(ops.Abs(), rescale(b, x, I32))), I8)


def attention_scores(b: Builder, x: Value) -> Value:
    """[B,C,H,W] as [batch, tokens, heads * size]: the TRANSPOSE that splits heads cannot go."""
    n, c, h, w = x.shape
    q = b.emit(ops.Transpose((0, 2, 1, 3)), b.emit(ops.Reshape((n, c * h, w // 2, 2)), x))
    q = b.emit(ops.Reshape((n * w // 2, c * h, 2)), q)
    return b.emit(ops.MatMul(), q, b.emit(ops.Transpose((0, 2, 1)), q))


def per_channel_of_width(b: Builder, x: Value) -> Value:
    """A per-channel RESCALE along W: NHWC would put it elsewhere."""
    y = b.emit(ops.Rescale(I8, tuple(range(1 << 29, (1 << 29) + 8)), (29,) * 8, per_channel=True), conv(b, x, 4))
    return conv(b, y, 2)


IN = 3 * 6 * 8  # bytes of the input
CASES: dict[Callable[[Builder, Value], Value], tuple[int, int]] = {  # bytes and number of TRANSPOSEs that are left
    chain: (IN + 4 * 48, 2),
    residual: (IN + 8 * 48, 2),
    u_net: (IN + 3 * 48, 2),
    global_mean: (IN, 1),
    squeeze_excite: (IN + 4 * 48, 2),
    pixel_shuffle: (IN + 12 * 48, 2),
    table: (IN + 4 * 48, 2),
    constants: (IN + 2 * 48, 2),
    select: (IN + 2 * 48, 2),
    tile_and_reverse: (IN + 2 * 48, 2),
    arg_max: (IN, 1),
    float_chain: (4 * (IN + 2 * 48), 2),
    float_to_int: (IN + 2 * 48, 2),
    to_the_narrow_side: (IN, 1),
    attention_scores: (2 * IN, 2),
    per_channel_of_width: (IN + 4 * 48 + 4 * 48 + 2 * 48, 4),
}


def build(case: Callable[[Builder, Value], Value]) -> Graph:
    b = Builder()
    x = b.input("x", F32 if case.__name__.startswith("float") else I8, (1, 3, 6, 8))
    return b.finish([case(b, x)])


def same_results(before: Graph, after: Graph) -> None:
    verify(after)
    assert [(v.name, v.type) for v in after.outputs] == [(v.name, v.type) for v in before.outputs]
    inputs = [(RNG.standard_normal(v.shape) * (1 if v.dtype.is_float else 50)).astype(v.dtype.numpy) for v in before.inputs]
    for a, b in zip(evaluate(before, inputs), evaluate(after, inputs), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_transposes_that_are_left(case: Callable[[Builder, Value], Value]) -> None:
    before = build(case)
    after = optimize(before, evaluate)
    assert transposed(after) == CASES[case]
    same_results(before, after)
    assert optimize(after, evaluate) is after


def test_nothing_to_gain_returns_the_graph() -> None:
    b = Builder()
    x = b.input("x", I8, (1, 3, 6, 8))
    graph = b.finish([conv(b, x, 4)])
    assert choose_layouts(graph) is graph


def test_i48_is_never_transposed() -> None:
    b = Builder()
    x = b.input("x", I16, (1, 3, 6, 8))
    before = b.finish([conv(b, conv(b, x, 4, per_channel=False), 2, per_channel=False)])
    after = optimize(before, evaluate)
    assert transposed(after) == (2 * (IN + 2 * 48), 2)
    same_results(before, after)


def test_a_reader_that_needs_nchw_gets_its_own_transpose() -> None:
    b = Builder()
    x = b.input("x", I8, (1, 3, 6, 8))
    y = b.emit(ops.Clamp(0, 9), conv(b, x, 4))
    before = b.finish([conv(b, y, 2), b.emit(ops.Reshape((1, 4 * 48)), y), y])
    after = optimize(before, evaluate)
    assert transposed(after) == (IN + 2 * 48 + 4 * 48, 3)
    same_results(before, after)


def test_names_and_locations_of_moved_operators() -> None:
    before = build(chain)
    after = optimize(before, evaluate)
    clamps = [next(n for n in g.nodes if isinstance(n.op, ops.Clamp)) for g in (before, after)]
    assert clamps[0].output.name == clamps[1].output.name and clamps[0].location is clamps[1].location
    assert clamps[0].output.shape != clamps[1].output.shape


def test_a_long_chain_is_transposed_at_its_ends_only() -> None:
    b = Builder()
    x = b.input("x", I8, (1, 4, 3, 3))
    y = x
    while len(b.graph.nodes) < 1000:
        y = add(b, y, conv(b, y, 4))
    assert transposed(optimize(b.finish([y]), evaluate))[1] == 2


# Parts


@pytest.mark.parametrize("before", [(2, 3, 4), (6, 4), (24,), (2, 1, 12, 1), (1, 2, 3, 2, 2)])
@pytest.mark.parametrize("after", [(2, 3, 4), (6, 4), (24,), (2, 1, 12, 1), (1, 2, 3, 2, 2), (4, 6)])
@pytest.mark.parametrize("index", [0, 1])
def test_reshape_follows_only_where_it_is_exact(before: tuple[int, ...], after: tuple[int, ...], index: int) -> None:
    b = Builder()
    x = b.input("x", I8, before)
    graph = b.finish([b.emit(ops.Reshape(after), x)])
    (node,) = graph.nodes
    data = np.arange(24).reshape(before)
    followed = 0
    for layout in itertools.permutations(range(len((after, before)[index]))):
        layouts = axes.follow(node, index, layout)
        if layouts is None:
            continue
        assert layouts[index] == layout
        op = axes.carry(node.op, layouts)
        assert isinstance(op, ops.Reshape)
        want = data.reshape(after).transpose(layouts[0])
        assert np.array_equal(data.transpose(layouts[1]).reshape(op.shape), want)
        followed += 1
    assert followed >= 1


def test_minimum_cut_equals_all_cuts_tried() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        network = Network()
        nodes = [0, 1, *(network.node() for _ in range(4))]
        arcs = [(int(a), int(b), int(c)) for a, b, c in zip(*rng.integers(0, 6, (2, 12)), rng.integers(0, 9, 12), strict=True) if a != b]
        for arc in arcs:
            network.arc(*arc)

        def cost(side: set[int], arcs: list[tuple[int, int, int]] = arcs) -> int:
            return sum(c for a, b, c in arcs if a in side and b not in side)

        sides = [{0, *rest} for k in range(5) for rest in itertools.combinations(nodes[2:], k)]
        best = min(map(cost, sides))
        found = network.source_side()
        assert 0 in found and 1 not in found and cost(found) == best
        assert len(found) == max(len(s) for s in sides if cost(s) == best)
