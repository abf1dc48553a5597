"""The simulator against Arm's reference model, one row per case: integers bit for bit, floats within a stated tolerance."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from simulator_rows import ROWS, Row, floats, ints

from tosaic.errors import ExecuteError, InputError
from tosaic.execute import kernels, ops_conv, threads
from tosaic.execute.handlers import HANDLERS
from tosaic.execute.simulator import Simulator, evaluate
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph
from tosaic.tosa.ops import BF16, E4M3, E5M2, F16, F32, I8, I16, I32, I48
from tosaic.tosa.types import DType

# relative to the largest of |result| and 1: some units in the last place of the type; operators on 8-bit floats are exact
TOLERANCE = {F32: 1e-5, F16: 2e-3, BF16: 1.6e-2, E4M3: 0.0, E5M2: 0.0}


def _close(found: np.ndarray, want: np.ndarray, tolerance: float) -> bool:
    found, want = found.astype(np.float64), want.astype(np.float64)
    return np.allclose(found, want, rtol=tolerance, atol=tolerance, equal_nan=True)


def _tolerance(case: Row, result: DType) -> float:
    if isinstance(case.op, ops._Fourier):  # each result is a sum of all elements, in f32
        return float(2**-23 * sum(np.abs(o.data).sum() for o in case.operands))
    return 0.0 if case.operands[0].dtype in ops.FP8 else TOLERANCE[result]


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_equals_the_reference_model(case: Row, reference) -> None:
    graph, inputs = case.graph()
    for value, found, want in zip(graph.outputs, evaluate(graph, inputs), reference(graph, inputs), strict=True):
        assert found.dtype == value.dtype.numpy and found.shape == value.shape
        if value.dtype.is_float:
            assert _close(found, want, _tolerance(case, value.dtype))
        elif getattr(case.op, "rounding", None) is ops.Rounding.INEXACT:  # the specification lets it err by one
            np.testing.assert_allclose(found, want.astype(np.int64), rtol=0, atol=1)
        else:
            np.testing.assert_array_equal(found, want)


def test_every_operator_has_a_handler() -> None:
    assert set(HANDLERS) == {*ops.BY_NAME.values(), *ops.CONTROL_FLOW.values()}


@pytest.mark.parametrize("name", sorted(ops.BY_NAME))
def test_every_operator_has_a_row_for_each_type(name: str) -> None:
    cls = ops.BY_NAME[name]
    assert {r.operands[0].dtype for r in ROWS if type(r.op) is cls} == set(cls.SUPPORT)


def _choices(cls: type[ops.Op]) -> dict[str, set[object]]:
    """Field -> the values it can have, where these are few."""
    kinds = {"bool": [False, True]} | {e.__name__: list(e) for e in (ops.Rounding, ops.ResizeMode, ops.NanMode)}
    few = {f.name: kinds[str(f.type)] for f in dataclasses.fields(cls) if f.type in kinds}
    return {name: set(values) for name, values in few.items()} | ({"acc": {None, F16}} if issubclass(cls, ops._Sums) else {})


@pytest.mark.parametrize("name", sorted(n for n, cls in ops.BY_NAME.items() if _choices(cls)))
def test_every_choice_has_a_row(name: str) -> None:
    cls = ops.BY_NAME[name]
    for field, values in _choices(cls).items():
        assert {getattr(r.op, field) for r in ROWS if type(r.op) is cls} == values


def _small_graph() -> Graph:
    build = Builder("net")
    x = build.input("x", I8, (2, 3))
    y = build.emit(ops.Identity(), x, name="same")
    return build.finish([build.emit(ops.Transpose((1, 0)), y, name="turned"), y, x])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"net takes 1 inputs \(%x: i8\[2,3\]\), found 0"),
        ([np.zeros((3, 2), np.int8)], r"input %x: expected int8\[2, 3\], found int8\[3, 2\]"),
        ([np.zeros((2, 3), np.int16)], r"input %x: expected int8\[2, 3\], found int16\[2, 3\]"),
    ],
)
def test_refuses_inputs_that_do_not_fit(inputs: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(_small_graph(), inputs)


@pytest.mark.parametrize("table", [True, False], ids=["a constant table", "values"])
@pytest.mark.parametrize("index", [-1, 4])
def test_refuses_an_index_outside(table: bool, index: int) -> None:
    build, data = Builder(), np.zeros((1, 4, 1), np.int8)
    values = build.const(data, I8) if table else build.input("v", I8, data.shape)
    graph = build.finish([build.emit(ops.Gather(), values, build.input("i", I32, (1, 1)))])
    with pytest.raises(ExecuteError, match=rf"GATHER: indices are {index}\.\.{index}, expected 0\.\.3"):
        evaluate(graph, [*([] if table else [data]), np.full((1, 1), index, np.int32)])


def test_outputs_are_contiguous_and_share_no_memory_with_inputs() -> None:
    x = np.arange(6, dtype=np.int8).reshape(2, 3)
    outputs = Simulator(_small_graph()).run([x])
    assert all(o.flags.c_contiguous and o.flags.writeable and not np.may_share_memory(o, x) for o in outputs)
    np.testing.assert_array_equal(outputs[0], x.T)


def test_a_constant_may_be_an_output() -> None:
    build = Builder()
    graph = build.finish([build.const(np.arange(3), I8)])
    np.testing.assert_array_equal(evaluate(graph, [])[0], np.arange(3))


def test_watch_sees_each_node() -> None:
    seen = []
    evaluate(_small_graph(), [np.zeros((2, 3), np.int8)], watch=lambda value, array: seen.append((value.name, array.shape)))
    assert seen == [("same", (2, 3)), ("turned", (3, 2))]


def test_the_timer_sees_each_node_once() -> None:
    build = Builder()
    x = build.input("x", I8, (1, 4, 4, 3))
    weights, bias = build.const(ints(I8, 2, 1, 1, 3).data, I8), build.const(ints(I32, 2).data, I32)
    total = build.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, weights, bias)
    graph = build.finish([build.emit(ops.Identity(), build.emit(ops.Rescale(I8, (1 << 30,), (40,)), total))])
    seen: list[tuple[object, ...]] = []
    Simulator(graph).run([ints(I8, 1, 4, 4, 3).data], timer=lambda nodes, seconds: seen.append((*(n.op.NAME for n in nodes), seconds > 0)))
    assert seen == [("CONV2D", "RESCALE", True), ("IDENTITY", True)]


@pytest.mark.parametrize("reader", ["another operator", "the graph's outputs"])
def test_accumulators_that_others_read_are_kept(reader: str, reference) -> None:
    build = Builder()
    x = build.input("x", I8, (1, 4, 4, 3))
    weights, bias = ints(I8, 2, 1, 1, 3).data, ints(I32, 2, low=-9, high=9).data
    total = build.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, build.const(weights, I8), build.const(bias, I32))
    scaled = build.emit(ops.Rescale(I8, (1 << 30,), (40,)), total)
    other = build.emit(ops.Abs(), total) if reader == "another operator" else total
    graph, inputs = build.finish([scaled, other]), [ints(I8, 1, 4, 4, 3).data]
    for found, want in zip(evaluate(graph, inputs), reference(graph, inputs), strict=True):
        np.testing.assert_array_equal(found, want)


def test_memory_is_released_as_values_die() -> None:
    build = Builder()
    x = y = build.input("x", I32, (1 << 18,))
    for _ in range(20):
        y = build.emit(ops.BitwiseNot(), y)
    simulator, data = Simulator(build.finish([y])), np.zeros(x.shape, np.int32)
    tracemalloc.start()
    simulator.run([data])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * data.nbytes


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_floats_stay_f32_when_torch_may_round_them(precision: str, reference) -> None:
    graph, inputs = Row(ops.MatMul(), (floats(F32, 1, 64, 64), floats(F32, 1, 64, 64))).graph()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert _close(evaluate(graph, inputs)[0], reference(graph, inputs)[0], 1e-5)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def _scaled(op: ops.Op, x: DType, shape: tuple[int, ...], weight: tuple[int, ...]) -> tuple[Graph, list[np.ndarray]]:
    """A convolution and the RESCALE that follows it."""
    build, data = Builder(), ints(x, *shape)
    wide, channels = I32 if x is I8 else I48, weight[2] if isinstance(op, ops.DepthwiseConv2d) else weight[0]
    scale = ((20000,), (28,)) if x is I8 else ((5000,), (31,))
    bias = build.const(ints(wide, channels, low=-5000, high=5000).data, wide)
    total = build.emit(op, build.input("x", x, shape), build.const(ints(I8, *weight).data, I8), bias)
    return build.finish([build.emit(ops.Rescale(I8, *scale), total)]), [data.data]


@pytest.mark.parametrize("count", [1, 3])
def test_operators_are_shared_out_among_threads(count: int, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (2, 7, 11, 17)  # divisible by nothing
    zp = (3, 0)
    cases = [
        Row(ops.Rescale(I8, (1518500249,), (33,)), (ints(I32, *size),)).graph(),
        Row(ops.Rescale(I8, (1518500249,) * 17, (33,) * 17, per_channel=True), (ints(I32, *size),)).graph(),
        Row(ops.MaxPool2d((3, 3), (1, 1), (1, 1, 1, 1)), (ints(I8, *size),)).graph(),
        Row(ops.MatMul(3, -4), (ints(I8, 5, 7, 11), ints(I8, 5, 11, 3))).graph(),
        Row(ops.MatMul(), (ints(I16, 5, 7, 11), ints(I16, 5, 11, 3))).graph(),
    ]
    for dtype, zero in ((I8, zp), (I16, (0, 0))):
        cases += [
            _scaled(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), *zero), dtype, size, (5, 1, 1, 17)),
            _scaled(ops.Conv2d((2, 1), (1, 1, 1, 1), (1, 1), *zero), dtype, size, (5, 3, 3, 17)),
            _scaled(ops.DepthwiseConv2d((1, 1), (1, 1, 1, 1), (1, 1), *zero), dtype, size, (3, 3, 17, 1)),
            Row(
                ops.Conv2d((1, 2), (1, 0, 1, 1), (1, 1), *zero),
                (ints(dtype, *size), ints(I8, 5, 2, 3, 17), ints(I32 if dtype is I8 else I48, 5, low=-99, high=99, const=True)),
            ).graph(),
        ]
    shares, share = [], threads.in_parallel
    monkeypatch.setattr(threads, "_SHARE", 1e-9)
    monkeypatch.setattr(threads, "in_parallel", lambda function, size, parts: (shares.append(parts), share(function, size, parts)))
    monkeypatch.setattr(ops_conv, "BLOCK_OF_SHARE", 50)  # several blocks in each share
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        for graph, inputs in cases:
            np.testing.assert_array_equal(evaluate(graph, inputs)[0], reference(graph, inputs)[0])
        assert torch.get_num_threads() == count and max(shares) == count
    finally:
        torch.set_num_threads(before)


def test_what_fails_in_a_thread_fails_in_the_caller_and_leaves_it_its_threads() -> None:
    def fail(begin: int, end: int) -> None:
        if begin:
            raise ExecuteError(f"rows {begin} to {end}")

    before = torch.get_num_threads()
    with pytest.raises(ExecuteError, match="rows 5 to 10"):
        threads.in_parallel(fail, 10, 2)
    assert torch.get_num_threads() == before and threads.count() == before


def test_kernels_compile_where_no_cache_can_be_written() -> None:
    scope: dict = {}
    exec("def double(x, out):\n    out[0] = x[0] + x[0]", scope)  # a function without a file has nowhere to be cached
    out = np.array([1])
    kernels._compiled(scope["double"])(np.array([21]), out)
    assert out == [42]


def test_the_hub_imports_no_torch() -> None:
    code = "import sys, tosaic.tosa.text, tosaic.tosa.graph; assert not {'torch', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
