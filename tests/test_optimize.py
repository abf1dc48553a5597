"""Each local rule: where it applies, each reason for which it does not, and that the results are the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tosaic.execute.simulator import evaluate
from tosaic.optimize import movement, rescale, table, windows
from tosaic.optimize.pipeline import optimize
from tosaic.optimize.rewrite import Refusal, Rule, rewrite
from tosaic.optimize.simplify import fold_constants, merge_constants
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Location, Value, verify
from tosaic.tosa.types import DType, TensorType

B, I8, I16, I32, I48, F32 = DType.BOOL, DType.INT8, DType.INT16, DType.INT32, DType.INT48, DType.FP32
ONE = ((1 << 30,), (30,))  # multiplier and shift of scale 1


def by(dtype: DType, multiplier: int = ONE[0][0], shift: int = ONE[1][0], zp: tuple[int, int] = (0, 0), **more: object) -> ops.Rescale:
    return ops.Rescale(dtype, (multiplier,), (shift,), *zp, **more)  # type: ignore[arg-type]


def random_inputs(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(t: TensorType) -> np.ndarray:
        if t.dtype.is_float:
            return rng.standard_normal(t.shape).astype(t.dtype.numpy)
        low, high = (0, 2) if t.dtype is B else (max(t.dtype.min, -100000), min(t.dtype.max, 100000) + 1)
        return rng.integers(low, high, t.shape).astype(t.dtype.numpy)

    return [draw(v.type) for v in graph.inputs]


def names(graph: Graph) -> list[str]:
    return [op.NAME for op in graph.ops]


def same_results(before: Graph, after: Graph, inputs: list[np.ndarray]) -> None:
    assert [(v.name, v.type) for v in after.outputs] == [(v.name, v.type) for v in before.outputs]
    assert after.inputs == before.inputs
    for a, b in zip(evaluate(before, inputs), evaluate(after, inputs), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@dataclass(frozen=True)
class Row:
    """`build` makes the graph from inputs of `types`; `after` is the list of operators, or the reason of the refusal."""

    rule: Rule
    types: tuple[tuple[DType, tuple[int, ...]], ...]
    build: Callable[..., Value | list[Value]]
    after: list[str] | str


def row(rule: Rule, *types_build_after: object) -> Row:
    *types, build, after = types_build_after
    return Row(rule, tuple(types), build, after)  # type: ignore[arg-type]


def weights(b: Builder, dtype: DType, *shape: int) -> Value:
    return b.const(np.arange(np.prod(shape)).reshape(shape) % 5 - 2, dtype)


def conv(b: Builder, x: Value, pad: tuple[int, ...] = (0, 0, 0, 0), zp: int = 0, w: Value | None = None) -> Value:
    c = x.shape[3]
    w = w or weights(b, x.dtype, 2, 3, 3, c)
    return b.emit(ops.Conv2d((1, 1), pad, (1, 1), zp), x, w, weights(b, ops.ACCUMULATOR[x.dtype], 2))


def depthwise(b: Builder, x: Value) -> Value:
    return b.emit(ops.DepthwiseConv2d((1, 1), (1, 0, 0, 0), (1, 1)), x, weights(b, I8, 3, 3, x.shape[3], 1), weights(b, I32, x.shape[3]))


def conv3d(b: Builder, x: Value) -> Value:
    return b.emit(ops.Conv3d((1, 1, 1), (0,) * 6, (1, 1, 1)), x, weights(b, I8, 2, 3, 3, 3, x.shape[4]), weights(b, I32, 2))


def lookup(b: Builder, x: Value, step: int = 3) -> Value:
    return b.emit(ops.Table(), x, b.const((np.arange(256) * step % 251) - 125, I8))


def pad(b: Builder, x: Value, *padding: int, value: float = 0) -> Value:
    return b.emit(ops.Pad(padding, value), x)


def cut(b: Builder, x: Value, start: tuple[int, ...], size: tuple[int, ...]) -> Value:
    return b.emit(ops.Slice(start, size), x)


X, Y = (I8, (1, 5, 6, 2)), (I8, (2, 3, 4))
SPATIAL = (0, 0, 1, 2, 0, 1, 0, 0)
ROWS = [
    # movement
    row(movement.remove_identity, Y, lambda b, x: b.emit(ops.BitwiseNot(), b.emit(ops.Identity(), x)), ["BITWISE_NOT"]),
    row(movement.remove_identity, Y, lambda b, x: b.emit(ops.Identity(), b.emit(ops.BitwiseNot(), x)), ["BITWISE_NOT"]),
    row(movement.remove_identity, Y, lambda b, x: b.emit(ops.Identity(), x), ["IDENTITY"]),
    row(movement.remove_identity, lambda b: b.emit(ops.Identity(), weights(b, I8, 3)), ["IDENTITY"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.BitwiseNot(), b.emit(ops.Transpose((0, 1, 2)), x)), ["BITWISE_NOT"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.Transpose((0, 1, 2)), x), ["IDENTITY"]),
    row(movement.remove_unchanging, (I8, (3, 3)), lambda b, x: b.emit(ops.Transpose((1, 0)), x), ["TRANSPOSE"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.BitwiseNot(), b.emit(ops.Reshape((2, 3, 4)), x)), ["BITWISE_NOT"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.Reshape((6, 4)), x), ["RESHAPE"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.BitwiseNot(), cut(b, x, (0, 0, 0), (2, 3, 4))), ["BITWISE_NOT"]),
    row(movement.remove_unchanging, Y, lambda b, x: cut(b, x, (0, 0, 0), (2, 3, 3)), ["SLICE"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.BitwiseNot(), pad(b, x, *(0,) * 6)), ["BITWISE_NOT"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.BitwiseNot(), b.emit(ops.Tile((1, 1, 1)), x)), ["BITWISE_NOT"]),
    row(movement.remove_unchanging, Y, lambda b, x: b.emit(ops.Tile((1, 2, 1)), x), ["TILE"]),
    row(movement.remove_reverse_of_one, (I8, (1, 4)), lambda b, x: b.emit(ops.BitwiseNot(), b.emit(ops.Reverse(0), x)), ["BITWISE_NOT"]),
    row(movement.remove_reverse_of_one, (I8, (1, 4)), lambda b, x: b.emit(ops.Reverse(1), x), ["REVERSE"]),
    row(movement.remove_reduction_of_one, (I32, (1, 4)), lambda b, x: b.emit(ops.Abs(), b.emit(ops.ReduceSum(0), x)), ["ABS"]),
    row(movement.remove_reduction_of_one, (I32, (1, 4)), lambda b, x: b.emit(ops.ReduceSum(1), x), ["REDUCE_SUM"]),
    row(movement.remove_reduction_of_one, (F32, (1, 4)), lambda b, x: b.emit(ops.ReduceMax(0), x), "-0.0"),
    row(
        movement.compose_transposes,
        Y,
        lambda b, x: b.emit(ops.Transpose((1, 0, 2)), b.emit(ops.Transpose((2, 0, 1)), x)),
        ["TRANSPOSE"],
    ),
    row(movement.reshape_instead_of_transpose, (I8, (1, 3, 1, 4)), lambda b, x: b.emit(ops.Transpose((1, 0, 3, 2)), x), ["RESHAPE"]),
    row(movement.reshape_instead_of_transpose, (I8, (1, 3, 1, 4)), lambda b, x: b.emit(ops.Transpose((0, 3, 1, 2)), x), ["TRANSPOSE"]),
    row(movement.compose_reshapes, Y, lambda b, x: b.emit(ops.Reshape((24,)), b.emit(ops.Reshape((4, 6)), x)), ["RESHAPE"]),
    row(movement.compose_slices, Y, lambda b, x: cut(b, cut(b, x, (0, 1, 1), (2, 2, 3)), (1, 0, 1), (1, 1, 2)), ["SLICE"]),
    row(
        movement.slice_one_operand,
        Y,
        Y,
        lambda b, x, y: cut(b, b.emit(ops.Concat(1), x, y), (0, 4, 0), (2, 2, 4)),
        ["SLICE"],
    ),
    row(
        movement.slice_one_operand,
        Y,
        Y,
        lambda b, x, y: cut(b, b.emit(ops.Concat(1), x, y), (0, 2, 0), (2, 2, 4)),
        "several operands",
    ),
    row(movement.compose_pads, Y, lambda b, x: pad(b, pad(b, x, 0, 1, 0, 0, 2, 0, value=7), 1, 1, 0, 3, 0, 0, value=7), ["PAD"]),
    row(movement.compose_pads, Y, lambda b, x: pad(b, pad(b, x, 0, 1, 0, 0, 2, 0, value=7), 1, 1, 0, 3, 0, 0), "write 7 and 0"),
    row(movement.compose_pads, (F32, (2,)), lambda b, x: pad(b, pad(b, x, 0, 1, value=0.0), 1, 1, value=-0.0), "write 0.0 and -0.0"),
    row(movement.join_slices, Y, lambda b, x: b.emit(ops.BitwiseNot(), b.emit(ops.Concat(1), x)), ["BITWISE_NOT"]),
    row(
        movement.join_slices,
        Y,
        lambda b, x: b.emit(ops.Concat(2), *(cut(b, x, (0, 0, i), (2, 3, n)) for i, n in ((0, 1), (1, 2)))),
        ["SLICE"],
    ),
    row(
        movement.join_slices,
        Y,
        Y,
        lambda b, x, y: b.emit(ops.Concat(2), *(cut(b, x, (0, 0, i), (2, 3, n)) for i, n in ((0, 1), (1, 2))), y),
        ["SLICE", "CONCAT"],
    ),
    row(
        movement.join_slices,
        Y,
        lambda b, x: b.emit(ops.Concat(2), *(cut(b, x, (0, 0, i), (2, 3, n)) for i, n in ((1, 2), (0, 1)))),
        "side by side",
    ),
    row(
        movement.join_slices,
        Y,
        lambda b, x: b.emit(ops.Concat(2), cut(b, x, (0, 0, 0), (2, 1, 2)), cut(b, x, (0, 1, 2), (2, 1, 2))),
        "side by side",
    ),
    row(
        movement.join_slices,
        Y,
        Y,
        lambda b, x, y: b.emit(ops.Concat(2), cut(b, x, (0, 0, 0), (2, 3, 2)), cut(b, y, (0, 0, 2), (2, 3, 2))),
        "side by side",
    ),
    # rescale
    row(rescale.remove_rescale_by_one, Y, lambda b, x: b.emit(ops.BitwiseNot(), b.emit(by(I8, zp=(3, 3)), x)), ["BITWISE_NOT"]),
    row(rescale.remove_rescale_by_one, Y, lambda b, x: b.emit(by(I8, 1 << 29), x), "not exactly 1"),
    row(rescale.remove_rescale_by_one, Y, lambda b, x: b.emit(by(I8, rounding=ops.Rounding.INEXACT), x), "not exactly 1"),
    row(rescale.remove_rescale_by_one, Y, lambda b, x: b.emit(by(I8, zp=(3, 4)), x), "zero points differ"),
    row(rescale.remove_rescale_by_one, Y, lambda b, x: b.emit(by(I8, input_unsigned=True), x), "unsigned"),
    row(rescale.fuse_rescales, Y, lambda b, x: b.emit(by(I8, 1 << 29), b.emit(by(I32, zp=(5, 0)), x)), ["RESCALE"]),
    row(rescale.fuse_rescales, Y, lambda b, x: b.emit(by(I8, 1518500250, 38), b.emit(by(I32, 1 << 30, 22), x)), ["RESCALE"]),
    row(rescale.fuse_rescales, Y, lambda b, x: b.emit(by(I8, 1 << 29), b.emit(by(I32, 3 << 28), x)), "so it rounds"),
    row(
        rescale.fuse_rescales,
        Y,
        lambda b, x: b.emit(by(I8, 1 << 29), b.emit(by(I32, rounding=ops.Rounding.INEXACT), x)),
        "so it rounds",
    ),
    row(rescale.fuse_rescales, Y, lambda b, x: b.emit(by(I8, zp=(1, 0)), b.emit(by(I8, zp=(0, 2)), x)), "zero point in between"),
    row(rescale.fuse_rescales, Y, lambda b, x: b.emit(by(I8, zp=(0, 2)), b.emit(by(I8, zp=(5, 0)), x)), "saturates i8"),
    row(rescale.fuse_rescales, (I32, (4,)), lambda b, x: b.emit(by(I8, 1 << 20), b.emit(by(I32, shift=29), x)), "saturates i32"),
    row(rescale.fuse_rescales, Y, lambda b, x: b.emit(by(I8, output_unsigned=True), b.emit(by(I16), x)), "unsigned"),
    row(
        rescale.fuse_rescales,
        Y,
        lambda b, x: b.emit(by(I8, 1 << 30, 36, rounding=ops.Rounding.DOUBLE), b.emit(by(I32, 1 << 30, 28), x)),
        "rounding depends",
    ),
    row(
        rescale.fuse_rescales,
        Y,
        lambda b, x: b.emit(by(I16, (1 << 31) - 1, 10), b.emit(by(I32, 1 << 30, 15), x)),
        "no multiplier and shift",
    ),
    row(rescale.remove_clamp, Y, lambda b, x: b.emit(ops.BitwiseNot(), b.emit(ops.Clamp(-128, 127), x)), ["BITWISE_NOT"]),
    row(rescale.remove_clamp, (I32, (9,)), lambda b, x: b.emit(ops.Clamp(-128, 127), b.emit(by(I8), x)), ["RESCALE"]),
    row(rescale.remove_clamp, Y, lambda b, x: b.emit(ops.Clamp(-70, 70), b.emit(by(I8, 1 << 29), x)), ["RESCALE"]),
    row(rescale.remove_clamp, Y, lambda b, x: b.emit(ops.Clamp(-63, 70), b.emit(by(I8, 1 << 29), x)), "-64..64"),
    row(rescale.remove_clamp, Y, lambda b, x: b.emit(ops.Clamp(-125, 125), lookup(b, x)), ["TABLE"]),
    row(rescale.remove_clamp, Y, lambda b, x: b.emit(ops.Clamp(-124, 125), lookup(b, x)), "-125..125"),
    row(
        rescale.remove_clamp,
        Y,
        lambda b, x: b.emit(ops.Clamp(-9, 9), cut(b, b.emit(ops.Clamp(0, 9), x), (0,) * 3, (1,) * 3)),
        ["CLAMP", "SLICE"],
    ),
    row(rescale.remove_clamp, (F32, (9,)), lambda b, x: b.emit(ops.Clamp(-3e38, 3e38), x), "float"),
    row(rescale.merge_clamps, Y, lambda b, x: b.emit(ops.Clamp(-5, 50), b.emit(ops.Clamp(0, 100), x)), ["CLAMP"]),
    row(rescale.merge_clamps, Y, lambda b, x: b.emit(ops.Clamp(20, 50), b.emit(ops.Clamp(-10, 10), x)), ["CLAMP"]),
    row(rescale.merge_clamps, (F32, (9,)), lambda b, x: b.emit(ops.Clamp(-0.5, 1.0), b.emit(ops.Clamp(0.0, 6.0), x)), "-0.0"),
    # table
    row(table.fuse_tables, Y, lambda b, x: lookup(b, lookup(b, x), 7), ["TABLE"]),
    row(table.fuse_tables, Y, lambda b, x: lookup(b, b.emit(by(I8, 3 << 28, zp=(-7, 9)), x)), ["TABLE"]),
    row(table.fuse_tables, Y, lambda b, x: b.emit(ops.Negate(3, -4), lookup(b, x)), ["TABLE"]),
    row(table.fuse_tables, Y, lambda b, x: b.emit(ops.Clamp(0, 50), b.emit(ops.BitwiseNot(), lookup(b, x))), ["TABLE"]),
    row(table.fuse_tables, Y, lambda b, x: b.emit(ops.Clamp(0, 50), b.emit(ops.BitwiseNot(), x)), ["BITWISE_NOT", "CLAMP"]),
    row(table.fuse_tables, Y, lambda b, x: b.emit(by(I32), lookup(b, x)), "with an i8 result"),
    row(table.fuse_tables, Y, lambda b, x: lookup(b, b.emit(ops.Rescale(I8, (1 << 30,) * 4, (31,) * 4, per_channel=True), x)), "alone"),
    row(table.fuse_tables, Y, lambda b, x: lookup(b, b.emit(by(I8, 1 << 29, rounding=ops.Rounding.INEXACT), x)), "alone"),
    row(table.fuse_tables, Y, (I8, (256,)), lambda b, x, t: lookup(b, b.emit(ops.Table(), x, t)), "alone"),
    row(table.fuse_tables, Y, lambda b, x: [y := lookup(b, x), lookup(b, y, 7)], "other readers"),
    # windows
    row(windows.pad_into_convolution, X, lambda b, x: conv(b, pad(b, x, *SPATIAL, value=4), (1, 0, 0, 0), 4), ["CONV2D"]),
    row(windows.pad_into_convolution, X, lambda b, x: depthwise(b, pad(b, x, *SPATIAL)), ["DEPTHWISE_CONV2D"]),
    row(windows.pad_into_convolution, (I8, (1, 3, 3, 3, 2)), lambda b, x: conv3d(b, pad(b, x, 0, 0, 1, 1, 0, 2, 0, 0, 0, 0)), ["CONV3D"]),
    row(windows.pad_into_convolution, (F32, (1, 5, 6, 2)), lambda b, x: conv(b, pad(b, x, *SPATIAL, value=0.0)), ["CONV2D"]),
    row(windows.pad_into_convolution, X, lambda b, x: conv(b, pad(b, x, *SPATIAL, value=4), zp=3), "PAD writes 4"),
    row(windows.pad_into_convolution, X, lambda b, x: conv(b, pad(b, x, 1, 0, *SPATIAL[2:])), "batch or the channels"),
    row(windows.pad_into_convolution, X, lambda b, x: conv(b, pad(b, x, *SPATIAL[:-1], 1)), "batch or the channels"),
    row(windows.pad_into_convolution, X, lambda b, x: conv(b, pad(b, x, 0, 0, 8193, 0, 0, 0, 0, 0)), "beyond level 8K"),
    row(
        windows.pad_into_convolution,
        (F32, (1, 5, 6, 2)),
        lambda b, x: conv(b, pad(b, x, *SPATIAL, value=0.0), w=b.const(np.full((2, 3, 3, 2), np.inf), F32)),
        "infinite",
    ),
    row(
        windows.pad_into_max_pool,
        X,
        lambda b, x: b.emit(ops.MaxPool2d((3, 3), (1, 1), (0, 0, 1, 0)), pad(b, x, *SPATIAL, value=-128)),
        ["MAX_POOL2D"],
    ),
    row(
        windows.pad_into_max_pool,
        X,
        lambda b, x: b.emit(ops.MaxPool2d((3, 3), (1, 1), (0,) * 4), pad(b, x, *SPATIAL, value=-127)),
        "may be the maximum",
    ),
    row(
        windows.pad_into_max_pool,
        X,
        lambda b, x: b.emit(ops.MaxPool2d((2, 2), (1, 1), (0,) * 4), pad(b, x, *SPATIAL, value=-128)),
        "not below kernel",
    ),
]


@pytest.mark.parametrize("case", ROWS, ids=lambda r: r.rule.__name__)
def test_rule(case: Row) -> None:
    b = Builder()
    inputs = [b.input(f"in{i}", dtype, shape) for i, (dtype, shape) in enumerate(case.types)]
    outputs = case.build(b, *inputs)
    before = b.finish(outputs if isinstance(outputs, list) else [outputs])
    refusals: list[Refusal] = []
    after = rewrite(before, [case.rule], evaluate, refusals)
    verify(after)
    if isinstance(case.after, str):
        assert after is before
        assert case.after in refusals[-1].reason and refusals[-1].rule == case.rule.__name__
        return
    assert names(after) == case.after
    same_results(before, after, random_inputs(before))


def test_every_rule_has_a_row() -> None:
    covered = {r.rule for r in ROWS}
    assert covered == {*movement.RULES, *rescale.RULES, *table.RULES, *windows.RULES}


# Exhaustive proofs of the elementwise integer rewrites


def one_by_one(dtype: DType, *chain: ops.Op) -> Graph:
    b = Builder()
    x = b.input("x", dtype, (1 << dtype.bits,))
    for op in chain:
        x = b.emit(op, x)
    return b.finish([x])


def everything(dtype: DType) -> np.ndarray:
    return np.arange(dtype.min, dtype.max + 1).astype(dtype.numpy)


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("zp", [0, -128, 77])
@pytest.mark.parametrize("wide", [I16, I32])
@pytest.mark.parametrize(("multiplier", "shift"), [(1 << 30, 30), (1518500250, 35), ((1 << 31) - 1, 33), (1, 9), (20000, 18), (0, 20)])
def test_fused_rescales_of_all_i8(k: int, zp: int, wide: DType, multiplier: int, shift: int) -> None:
    before = one_by_one(I8, by(wide, 1 << 30, 30 - k, (zp, 0)), by(I8, multiplier, shift + k, (0, -zp // 2)))
    after = rewrite(before, [rescale.fuse_rescales])
    assert names(after) == ["RESCALE"]
    same_results(before, after, [everything(I8)])


@pytest.mark.parametrize("k", [0, 1, 9])
@pytest.mark.parametrize("dtype", [I8, I16, I32])
@pytest.mark.parametrize(("multiplier", "shift"), [(1 << 30, 34), (1518500250, 39), ((1 << 31) - 1, 50)])
def test_fused_rescales_of_all_i16(k: int, dtype: DType, multiplier: int, shift: int) -> None:
    before = one_by_one(I16, by(I32, 1 << 30, 30 - k), by(dtype, multiplier, shift))
    after = rewrite(before, [rescale.fuse_rescales])
    assert names(after) == ["RESCALE"]
    same_results(before, after, [everything(I16)])


@pytest.mark.parametrize("dtype", [I8, I16])
@pytest.mark.parametrize("zp", [0, -128, 127])
def test_rescale_by_one_of_all_values(dtype: DType, zp: int) -> None:
    zp = zp if dtype is I8 else 0
    before = one_by_one(dtype, by(dtype, zp=(zp, zp)), ops.Clamp(-3, 9))
    after = rewrite(before, [rescale.remove_rescale_by_one])
    assert names(after) == ["CLAMP"]
    same_results(before, after, [everything(dtype)])


def test_clamps_of_all_i8() -> None:
    ends = (-128, -7, 0, 5, 127)
    ranges = [(a, b) for a in ends for b in ends if a <= b]
    for first in ranges:
        for second in ranges:
            before = one_by_one(I8, ops.Clamp(*first), ops.Clamp(*second))
            after = rewrite(before, [rescale.remove_clamp, rescale.merge_clamps])
            assert len(after.nodes) <= 1 or first == (-128, 127)
            same_results(before, after, [everything(I8)])


def test_bounds_contain_all_results() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        op = by(I8, int(rng.integers(1 << 31)), int(rng.integers(28, 36)), tuple(int(v) for v in rng.integers(-128, 128, 2)))
        before = one_by_one(I8, op)
        (result,) = evaluate(before, [everything(I8)])
        low, high = int(result.min()), int(result.max())
        for clamp, kept in (((low, high), 1), ((low, high - 1), 2), ((low + 1, high), 2)):
            if clamp[0] <= clamp[1]:
                assert len(rewrite(one_by_one(I8, op, ops.Clamp(*clamp)), [rescale.remove_clamp]).nodes) == kept


def test_tables_of_all_i8() -> None:
    for f in (ops.Clamp(-9, 100), ops.Negate(-128, 127), ops.BitwiseNot(), by(I8, 3 << 28, 29, (-128, 127))):
        for first in (True, False):
            b = Builder()
            x = b.input("x", I8, (256,))
            y = lookup(b, b.emit(f, x)) if first else b.emit(f, lookup(b, x))
            before = b.finish([y])
            after = rewrite(before, table.RULES, evaluate)
            assert names(after) == ["TABLE"]
            same_results(before, after, [everything(I8)])


# Sweeps: common subexpressions, dead code, names, constants


def test_common_subexpressions() -> None:
    b = Builder()
    x, y = b.input("x", I32, (4,)), b.input("y", I32, (4,))
    sums = [b.emit(ops.Add(), *pair) for pair in ((x, y), (x, y), (y, x))]
    differences = [b.emit(ops.Sub(), *pair) for pair in ((x, y), (y, x))]
    before = b.finish([b.emit(ops.Mul(), b.emit(ops.Mul(), *sums[:2]), b.emit(ops.Mul(), sums[2], b.emit(ops.Mul(), *differences)))])
    after = rewrite(before, [])
    assert sorted(names(after)) == ["ADD", "MUL", "MUL", "MUL", "MUL", "SUB", "SUB"]
    same_results(before, after, [np.arange(4, dtype=np.int32), np.ones(4, np.int32)])


def test_equal_floats_of_different_sign_are_not_common() -> None:
    b = Builder()
    x = b.input("x", F32, (2,))
    before = b.finish([pad(b, x, 1, 0, value=0.0), pad(b, x, 1, 0, value=-0.0)])
    assert rewrite(before, []) is before


def test_dead_code_goes_and_inputs_stay() -> None:
    b = Builder()
    x = b.input("x", I32, (4,))
    b.input("unused", I8, (1,))
    b.emit(ops.Abs(), x)
    before = b.finish([b.emit(ops.BitwiseNot(), x)])
    after = rewrite(before, [])
    assert names(after) == ["BITWISE_NOT"] and [v.name for v in after.inputs] == ["x", "unused"]


def test_identities_of_one_value_are_no_common_subexpression() -> None:
    b = Builder()
    x = b.input("x", I8, (3,))
    before = b.finish([b.emit(ops.Identity(), x), b.emit(ops.Identity(), x)])
    assert optimize(before, evaluate) is before


def test_names_that_a_new_value_would_take_are_left_to_their_owners() -> None:
    b = Builder()
    x, y = b.input("x", Y[0], Y[1]), b.input("y", Y[0], Y[1])
    parts = [cut(b, x, (0, 0, i), (2, 3, 2)) for i in (0, 2)]
    joined = b.emit(ops.Concat(2), *parts, y, name="joined")
    taken = b.emit(ops.BitwiseNot(), b.emit(ops.Concat(2), joined, cut(b, y, (0, 0, 0), (2, 3, 1))), name="joined_slice")
    before = b.finish([b.emit(ops.Abs(), b.emit(by(I32), joined)), taken])
    after = optimize(before, evaluate)
    verify(after)
    same_results(before, after, random_inputs(before))


def test_outputs_keep_their_names_and_stay_apart() -> None:
    b = Builder()
    x = b.input("x", I8, (2, 3))
    with b.at("first"):
        first = b.emit(ops.Identity(), b.emit(ops.BitwiseNot(), x, name="inner"))
    with b.at("second"):
        second = b.emit(ops.BitwiseNot(), x)
    third = b.emit(ops.Reshape((2, 3)), x, name="third")
    before = b.finish([first, second, third, first])
    after = optimize(before, evaluate)
    verify(after)
    assert [v.name for v in after.outputs] == ["first", "second", "third", "first"]
    assert names(after) == ["BITWISE_NOT", "IDENTITY", "IDENTITY"]
    assert optimize(after, evaluate) is after
    same_results(before, after, random_inputs(before))


def test_locations_are_kept() -> None:
    b = Builder()
    where = Location("aten.relu", "net.relu", "net.py:3")
    x = b.input("x", I8, (2, 3))
    with b.at("relu", where):
        y = b.emit(ops.Clamp(0, 90), b.emit(ops.Clamp(-5, 100), x))
    (node,) = optimize(b.finish([y]), evaluate).nodes
    assert node.location == where


def test_the_given_graph_is_left_alone() -> None:
    b = Builder()
    x = b.input("x", I8, (1, 4, 4, 2))
    y = b.emit(ops.Transpose((0, 2, 1, 3)), b.emit(ops.Transpose((0, 2, 1, 3)), b.emit(ops.Identity(), x)))
    before = b.finish([b.emit(ops.BitwiseNot(), y)])
    text = str(before)
    assert names(optimize(before, evaluate)) == ["BITWISE_NOT"]
    assert str(before) == text


def test_constants_are_folded() -> None:
    b = Builder()
    x, c = b.input("x", I32, (2, 3)), weights(b, I32, 3, 2)
    folded = b.emit(ops.Abs(), b.emit(ops.Transpose((1, 0)), c))
    before = b.finish([b.emit(ops.Add(), x, folded), b.emit(ops.Reshape((6,)), c, name="constant")])
    after = fold_constants(before, evaluate)
    verify(after)
    assert names(after) == ["ADD", "IDENTITY"]
    assert fold_constants(after, evaluate) is after
    same_results(before, after, random_inputs(before))


def test_constants_that_grow_are_not_folded() -> None:
    b = Builder()
    large = b.emit(ops.Tile((1 << 10, 1 << 11)), weights(b, I8, 1, 1))
    before = b.finish([b.emit(ops.BitwiseNot(), large)])
    assert fold_constants(before, evaluate) is before


def test_equal_constants_become_one() -> None:
    x = Value("x", TensorType(I32, (2,)))
    twins = [Value(n, TensorType(I32, (2,)), np.array([1, 2], np.int32)) for n in "ab"]
    other = Value("c", TensorType(I32, (2,)), np.array([1, 3], np.int32))
    b = Builder()
    sums = [b.emit(ops.Add(), x, c) for c in (*twins, other)]
    before = replace(b.finish([b.emit(ops.Mul(), b.emit(ops.Mul(), *sums[:2]), sums[2])]), inputs=[x])
    after = merge_constants(before)
    assert [v.name for v in after.constants()] == ["a", "c"] and names(after).count("ADD") == 2
