"""Limits without effect, and sums of constants: which go, which stay and why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tosaic.execute.simulator import evaluate
from tosaic.optimize.limits import drop_idle_limits
from tosaic.optimize.rewrite import Refusal, rewrite
from tosaic.optimize.sums import merge_constant_sums
from tosaic.tosa import ops
from tosaic.tosa.graph import Bound, Builder, Graph, Value
from tosaic.tosa.types import DType

I8, I16, I32, F32 = DType.INT8, DType.INT16, DType.INT32, DType.FP32
ALL = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)


def wide(b: Builder, x: Value) -> Value:
    """int8 as int32: -128..127."""
    return b.emit(ops.Rescale(I32, (1 << 30,), (30,)), x)


def at(b: Builder, *numbers: int) -> Value:
    return b.const(np.array(numbers).reshape(1, -1), I32)


def to_i8(b: Builder, x: Value, shift: int = 30) -> Value:
    return b.emit(ops.Rescale(I8, (1 << 30,), (shift,)), x)


def build(body: Callable[[Builder, Value], Value]) -> Graph:
    b = Builder()
    return b.finish([body(b, b.input("x", I8, (1, 256)))])


def limit_count(graph: Graph) -> int:
    return sum(isinstance(op, ops.Minimum | ops.Maximum | ops.Clamp) for op in graph.ops)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (lambda b, x: b.emit(ops.Minimum(), wide(b, x), at(b, 127)), 0),
        (lambda b, x: b.emit(ops.Minimum(), wide(b, x), at(b, 126)), 1),
        (lambda b, x: b.emit(ops.Maximum(), at(b, -128), wide(b, x)), 0),
        (lambda b, x: b.emit(ops.Maximum(), at(b, -127), wide(b, x)), 1),
        (lambda b, x: b.emit(ops.Clamp(-5, 127), b.emit(ops.Table(), x, b.const(np.abs(np.arange(256)) % 100, I8))), 0),
        # the RESCALE saturates what the limit cuts off
        (lambda b, x: to_i8(b, b.emit(ops.Minimum(), b.emit(ops.Mul(), wide(b, x), at(b, 4)), at(b, 127))), 0),
        (lambda b, x: to_i8(b, b.emit(ops.Minimum(), b.emit(ops.Mul(), wide(b, x), at(b, 4)), at(b, 126))), 1),
        (lambda b, x: to_i8(b, b.emit(ops.Maximum(), b.emit(ops.Mul(), wide(b, x), at(b, 4)), at(b, -128))), 0),
        (lambda b, x: to_i8(b, b.emit(ops.Maximum(), b.emit(ops.Mul(), wide(b, x), at(b, 4)), at(b, -127))), 1),
        # RESCALE by 2^28 takes |value| < 2^1 only
        (
            lambda b, x: b.emit(
                ops.Rescale(I8, (1 << 30,), (2,)), b.emit(ops.Minimum(), b.emit(ops.Maximum(), wide(b, x), at(b, 0)), at(b, 1))
            ),
            2,
        ),
    ],
)
def test_limits(body: Callable[[Builder, Value], Value], left: int) -> None:
    graph = build(body)
    after = drop_idle_limits(graph)
    assert limit_count(after) == left
    assert (after is graph) == (limit_count(graph) == left)
    np.testing.assert_array_equal(evaluate(graph, [ALL])[0], evaluate(after, [ALL])[0])


def test_a_limit_with_another_reader_stays() -> None:
    b = Builder()
    x = b.emit(ops.Mul(), wide(b, b.input("x", I8, (1, 256))), at(b, 4))
    y = b.emit(ops.Minimum(), x, at(b, 127))
    graph = b.finish([to_i8(b, y), b.emit(ops.Clz(), y)])
    assert drop_idle_limits(graph) is graph


def test_a_declared_bound_does_not_pass_to_the_operand() -> None:
    b = Builder()
    y = b.emit(ops.Minimum(), b.emit(ops.Mul(), wide(b, b.input("x", I8, (1, 256))), at(b, 4)), at(b, 127))
    y.bound = Bound(-512, 127)
    graph = b.finish([to_i8(b, y)])
    assert drop_idle_limits(graph) is graph


def test_a_float_limit_stays() -> None:
    b = Builder()
    x = b.input("x", F32, (1, 2))
    graph = b.finish([b.emit(ops.Minimum(), x, b.const(np.full((1, 1), 1e30, np.float32), F32))])
    assert drop_idle_limits(graph) is graph


def sums(*constants: int, dtype: DType = I32, tap: bool = False) -> Graph:
    b = Builder()
    x = b.input("x", dtype, (1, 3))
    y = b.emit(ops.Add(), x, b.const(np.full((1, 3), constants[0]), dtype))
    z = b.emit(ops.Add(), b.const(np.full((1, 1), constants[1]), dtype), y)
    return b.finish([z, y] if tap else [z])


def test_constant_sums_merge() -> None:
    graph = sums(7, -9)
    after = rewrite(graph, [merge_constant_sums])
    assert [n.op.NAME for n in after.nodes] == ["ADD"]
    x = np.array([[-5, 0, 2**31 - 8]], np.int32)
    np.testing.assert_array_equal(evaluate(graph, [x])[0], evaluate(after, [x])[0])


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (sums(1, 2, dtype=F32), "a float sum depends on the order"),
        (sums(1, 2, tap=True), "the inner sum has other readers"),
        (sums(2**31 - 1, 1), "the sum of the constants does not fit i32"),
    ],
)
def test_constant_sums_that_stay(graph: Graph, reason: str) -> None:
    refusals: list[Refusal] = []
    assert rewrite(graph, [merge_constant_sums], refusals=refusals) is graph
    assert [r.reason for r in refusals] == [reason]
