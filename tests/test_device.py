"""The simulator on other devices: the operations that CUDA runs are run here on the processor, and on CUDA where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulator_rows import ROWS, Row
from test_simulator import _close, _tolerance

from tosaic.artifact import load
from tosaic.emit.flatbuffer import serialize
from tosaic.errors import ExecuteError, InputError
from tosaic.execute import device_simulator, tensors_mac
from tosaic.execute.device_simulator import DeviceSimulator
from tosaic.execute.simulator import evaluate
from tosaic.execute.tensors import TENSOR_HANDLERS, TYPES
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph
from tosaic.tosa.ops import I8, I32

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# what runs on the processor, wherever the others run
ELSEWHERE = {ops.Fft2d, ops.RFft2d}
READS_DATA = (ops.Gather, ops.Scatter)  # their indices are checked


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_equals_the_simulator(case: Row, device: str) -> None:
    graph, inputs = case.graph()
    for value, found, want in zip(
        graph.outputs, DeviceSimulator(graph, torch.device(device)).run(inputs), evaluate(graph, inputs), strict=True
    ):
        assert found.dtype == value.dtype.numpy and found.shape == value.shape
        if value.dtype.is_float:
            assert _close(found, want, _tolerance(case, value.dtype))
        else:
            np.testing.assert_array_equal(found, want)


def test_every_operator_but_some_has_kernels() -> None:
    assert set(TENSOR_HANDLERS) == set(ops.BY_NAME.values()) - ELSEWHERE


OWN = [r for r in ROWS if type(r.op) in TENSOR_HANDLERS and not isinstance(r.op, READS_DATA)]


@pytest.mark.parametrize("case", OWN, ids=str)
def test_kernels_stay_on_their_device(case: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data refuse to meet those of another device, and to be looked into."""
    monkeypatch.setattr(tensors_mac, "_is_f32_exact", lambda device: True)
    node = case.graph()[0].nodes[0]
    kernel = TENSOR_HANDLERS[type(case.op)](node)
    if kernel is None:
        return
    made = kernel(*(torch.empty(v.shape, dtype=TYPES[v.dtype], device="meta") for v in node.inputs))
    assert (made.device.type, made.dtype, tuple(made.shape)) == ("meta", TYPES[node.output.dtype], node.output.shape)


@pytest.mark.parametrize("op", [ops.Conv2d((1, 1), (0,) * 4, (1, 1), -128), ops.MatMul(-128, -128)], ids=lambda op: op.NAME)
@pytest.mark.parametrize("exact", [True, False])
def test_long_sums_of_the_largest_products(op: ops.Op, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2^24, where f32 alone would round; and in f64, where a device's f32 is not exact."""
    monkeypatch.setattr(tensors_mac, "_is_f32_exact", lambda device: exact)
    build, k = Builder(), 5001
    shapes = [(1, 1, k), (1, k, 1)] if isinstance(op, ops.MatMul) else [(1, 1, 1, k), (1, 1, 1, k)]
    operands = [build.input(n, I8, s) for n, s in zip("ab", shapes, strict=True)]
    bias = [] if isinstance(op, ops.MatMul) else [build.const(np.array([1]), I32)]
    graph = build.finish([build.emit(op, *operands, *bias)])
    inputs = [np.full(s, 127, np.int8) for s in shapes]
    inputs[0].reshape(-1)[7] = 126
    (found,) = DeviceSimulator(graph, torch.device("cpu")).run(inputs)
    np.testing.assert_array_equal(found, evaluate(graph, inputs)[0])


def _net() -> Graph:
    build = Builder("net")
    x = build.input("x", I8, (1, 4, 4, 3))
    weights = build.const(np.arange(-27, 27).reshape(2, 3, 3, 3), I8)
    total = build.emit(ops.Conv2d((1, 1), (1, 1, 1, 1), (1, 1)), x, weights, build.const(np.array([5, -9]), I32))
    return build.finish([build.emit(ops.Rescale(I8, (1 << 30,), (36,)), total, name="y")])


def test_an_artifact_runs_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.tosa").write_bytes(serialize(_net()))
    artifact, x = load(tmp_path / "net.tosa"), np.random.default_rng(0).integers(-128, 128, (5, 4, 4, 3)).astype(np.int8)
    ran = []

    def device(name: str) -> torch.device:
        ran.append(name)
        return torch.device("cpu")

    monkeypatch.setattr(device_simulator, "device", device)
    for samples in (x, x[:1]):  # together, and one alone
        np.testing.assert_array_equal(artifact.run(samples, device="cuda")[0], artifact.run(samples)[0])
    assert ran == ["cuda"] * 2
    found = artifact.verify(x, on=["reference"], device="cuda")
    assert found.agrees and found.checks[0].detail.endswith(" on cuda")
    seen = []
    artifact.run(x[:1], device="cuda", timer=lambda nodes, seconds: seen.extend(n.op.NAME for n in nodes))
    assert seen == ["CONV2D", "RESCALE"]


def test_control_flow_and_watching_work_there() -> None:
    build = Builder("half")
    half = build.finish([build.emit(ops.ArithmeticRightShift(), build.input("h", I32, (2,)), build.const(np.array([1]), I32))])
    build = Builder()
    y = build.emit(ops.CondIf(half, half), build.input("c", ops.B, (1,)), build.input("x", I32, (2,)), name="y")
    graph, seen = build.finish([build.emit(ops.Abs(), y, name="z")]), {}
    DeviceSimulator(graph, torch.device("cpu")).run(
        [np.array([True]), np.array([8, -8], np.int32)], watch=lambda value, array: seen.update({value.name: array.tolist()})
    )
    assert seen == {"y": [4, -4], "z": [4, 4]}


@pytest.mark.parametrize("op", [ops.Gather(), ops.Scatter()], ids=lambda op: op.NAME)
def test_refuses_an_index_outside(op: ops.Op) -> None:
    build = Builder()
    operands = [build.input("v", I8, (1, 4, 1)), build.input("i", I32, (1, 1)), build.input("x", I8, (1, 1, 1))]
    graph = build.finish([build.emit(op, *operands[: op.ARITY])])
    arrays = [np.zeros(v.shape, v.dtype.numpy) for v in graph.inputs]
    arrays[1][:] = 4
    with pytest.raises(ExecuteError, match=rf"{op.NAME}: indices are 4..4, expected 0..3"):
        DeviceSimulator(graph, torch.device("cpu")).run(arrays)


def test_devices_that_are_not_there(tmp_path) -> None:
    (tmp_path / "net.tosa").write_bytes(serialize(_net()))
    artifact, x = load(tmp_path / "net.tosa"), np.zeros((1, 4, 4, 3), np.int8)
    with pytest.raises(ExecuteError, match="the simulator does not run on the device 'tpu'"):
        artifact.run(x, device="tpu")
    with pytest.raises(InputError, match="the device 'cuda' is for the simulator, and not for reference"):
        artifact.run(x, on="reference", device="cuda")
    with pytest.raises(ExecuteError, match=r"the device 'cuda(:99)?' is not there"):
        artifact.run(x, device="cuda:99" if torch.cuda.is_available() else "cuda")
