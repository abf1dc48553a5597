"""Many samples at once give what one at a time gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import MobileBlock
from test_simulator import ROWS, TOLERANCE, Row

import tosaic
from tosaic.artifact import _ports
from tosaic.emit.passport import Passport
from tosaic.errors import ExecuteError, InputError
from tosaic.execute.batch import batched, fitting
from tosaic.execute.simulator import Simulator
from tosaic.execute.threads import torch_threads
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Location, verify
from tosaic.tosa.ops import I8, I32

SAMPLES = 3


def _same(found: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert found.dtype == want.dtype and found.shape == want.shape
    if found.dtype.kind not in "biu":
        np.testing.assert_allclose(found.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("case", [r for r in ROWS if not all(o.const for o in r.operands)], ids=str)
def test_each_operator(case: Row) -> None:
    graph, inputs = case.graph()
    samples = [[np.roll(x, k) for x in inputs] for k in range(SAMPLES)]
    macs_or_others = [o for o in case.operands[1:] if not o.const]
    if isinstance(case.op, ops.Conv2d | ops.Conv3d | ops.DepthwiseConv2d | ops.TransposeConv2d | ops.Table) and macs_or_others:
        with pytest.raises(ExecuteError, match=rf"{case.op.NAME} cannot run many samples at once: %\S+ differs between them"):
            batched(graph, SAMPLES)
        return
    many = batched(graph, SAMPLES)
    verify(many)
    assert [v.shape for v in many.outputs] == [(SAMPLES, *v.shape) for v in graph.outputs]
    simulator = Simulator(graph)
    found = Simulator(many).run([np.stack(arrays) for arrays in zip(*samples, strict=True)])
    for k, sample in enumerate(samples):
        for value, one, all_of_them in zip(graph.outputs, simulator.run(sample), found, strict=True):
            _same(all_of_them[k], one, TOLERANCE.get(value.dtype, 0.0))


def test_values_that_no_input_reaches_and_constant_outputs() -> None:
    build = Builder("net")
    x = build.input("x", I8, (2, 3))
    fixed = build.emit(ops.Identity(), build.const(np.arange(6).reshape(2, 3), I8))
    together = build.emit(ops.Concat(0), build.emit(ops.Identity(), x), fixed)
    graph = build.finish([together, build.emit(ops.Maximum(), *(build.emit(ops.Cast(I32), v) for v in (x, fixed))), fixed])
    data = np.random.default_rng(0).integers(-128, 128, (SAMPLES, 2, 3)).astype(np.int8)
    found = Simulator(batched(graph, SAMPLES)).run([data])
    for k in range(SAMPLES):
        for one, many in zip(Simulator(graph).run([data[k]]), found, strict=True):
            np.testing.assert_array_equal(many[k], one)


@pytest.mark.parametrize("shape", [(1, 5), (2, 5)], ids=str)
def test_a_table_that_all_samples_share_is_not_repeated(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    build = Builder()
    table = build.const(rng.integers(-128, 128, (shape[0], 7, 2)), I8)
    graph = build.finish([build.emit(ops.Gather(), table, build.input("i", I32, shape))])
    indices = rng.integers(0, 7, (SAMPLES, *shape)).astype(np.int32)
    many = batched(graph, SAMPLES)
    assert ("TILE" in {op.NAME for op in many.ops}) == (shape[0] > 1)
    np.testing.assert_array_equal(Simulator(many).run([indices])[0], np.stack([Simulator(graph).run([i])[0] for i in indices]))


def test_the_refusal_names_the_operator_and_its_place() -> None:
    build = Builder()
    x, w = build.input("x", I8, (1, 4, 4, 2)), build.input("w", I8, (3, 1, 1, 2))
    with build.at("y", Location(module="block.conv")):
        graph = build.finish([build.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, w, build.const(np.zeros(3), I32))])
    with pytest.raises(ExecuteError, match=r"CONV2D .*: %w differs between them\n  at: block.conv\n  try: run them one at a time"):
        batched(graph, 2)


def test_large_values_run_alone() -> None:
    build = Builder()
    assert fitting(build.finish([build.emit(ops.Identity(), build.input("x", I8, (1 << 22,)))])) == 16
    build = Builder()
    assert fitting(build.finish([build.emit(ops.Identity(), build.input("x", I32, (1 << 24,)))])) == 1
    build = Builder()
    assert fitting(build.finish([build.emit(ops.Identity(), build.input("x", I8, ()))])) == 32


@pytest.fixture(scope="module")
def artifact() -> tosaic.Artifact:
    torch.manual_seed(0)
    model = MobileBlock().eval()
    samples = [(torch.randn(1, 3, 16, 16),) for _ in range(4)]
    return tosaic.compile(tosaic.quantize(model, samples[0], samples, scheme="8a8w"))


@pytest.mark.parametrize("batch", [None, 1, 2, 7])
@pytest.mark.parametrize("float_io", [True, False])
def test_a_data_set(artifact: tosaic.Artifact, batch: int | None, float_io: bool) -> None:
    data = torch.randn(5, 3, 16, 16)
    inputs = data if float_io else np.concatenate([stored for (stored,) in artifact.samples(data)])
    done: list[int] = []
    found = artifact.run(inputs, float_io=float_io, batch=batch, progress=done.append)
    assert done == {None: [5], 1: [1, 2, 3, 4, 5], 2: [2, 4, 5], 7: [5]}[batch]
    singly = [artifact.run(inputs[i : i + 1], float_io=float_io) for i in range(5)]
    for together, *single in zip(found, *singly, strict=True):
        _same(together, np.concatenate(single), 0.0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_threads_share_out_the_samples(artifact: tosaic.Artifact, count: int) -> None:
    data = torch.randn(5, 3, 16, 16)
    singly = [artifact.run(data[i : i + 1]) for i in range(5)]
    done: list[int] = []
    with torch_threads(count):
        found = artifact.run(data, batch=count, progress=done.append)
        fewer = artifact.run(data[:2])
        assert torch.get_num_threads() == count
    assert done == [*range(count, 5, count), 5]
    for all_of_them, some, *single in zip(found, fewer, *singly, strict=True):
        _same(all_of_them, np.concatenate(single), 0.0)
        _same(some, np.concatenate(single[:2]), 0.0)


@pytest.mark.parametrize("count", [1, 2])
def test_what_cannot_run_together_runs_one_by_one(count: int) -> None:
    build = Builder()
    x, w = build.input("x", I8, (1, 4, 4, 2)), build.input("w", I8, (1, 1, 1, 2))
    graph = build.finish([build.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, w, build.const(np.zeros(1), I32))])
    artifact = tosaic.Artifact(graph, Passport(name="net", spec="", inputs=_ports(graph.inputs), outputs=_ports(graph.outputs)))
    data = [np.arange(96, dtype=np.int8).reshape(3, 4, 4, 2), np.arange(6, dtype=np.int8).reshape(3, 1, 1, 2)]
    singly = [artifact.run([a[i : i + 1] for a in data])[0] for i in range(3)]
    done: list[int] = []
    with torch_threads(count):
        _same(artifact.run(data, progress=done.append)[0], np.concatenate(singly), 0.0)
    assert done == [*range(count, 3, count), 3]
    with pytest.raises(ExecuteError, match="CONV2D cannot run many samples at once"):
        artifact.run(data, batch=2)


@pytest.mark.parametrize(
    "options",
    [{"batch": 0}, {"batch": 2, "on": "reference"}, {"batch": 2, "timer": lambda nodes, seconds: None}],
    ids=["none", "reference", "timer"],
)
def test_refuses_a_batch_that_means_nothing(artifact: tosaic.Artifact, options: dict) -> None:
    with pytest.raises(InputError, match=rf"batch is {options['batch']}: expected at least 1, on the simulator and without a timer"):
        artifact.run(torch.zeros(3, 3, 16, 16), **options)
