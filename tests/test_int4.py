"""4-bit weights: the scheme 8a4w through every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Classifier, MobileBlock, make, samples, sqnr
from ops import test_operators as table
from ops.rows import _WEIGHTED, Family, Row
from ops.table import FAMILIES
from torch import nn

import tosaic
from tosaic.emit.flatbuffer import serialize
from tosaic.emit.read import read_tosa, read_vgf
from tosaic.emit.vgf import to_vgf
from tosaic.errors import InputError, SpecError
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, verify
from tosaic.tosa.ranges import check_ranges
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
SPEC = "TOSA-1.0+INT+int4"
LEAST = 12.0  # dB against float with 4-bit weights, a step being 1/7 of the largest of each channel


def macs(graph: Graph) -> list[tuple[str, DType, DType]]:
    """Operator, input type and weight type of each multiply-accumulate."""
    return [(n.op.NAME, n.inputs[0].dtype, n.inputs[1].dtype) for n in graph.nodes if isinstance(n.op, ops._Conv | ops.MatMul)]


def weighted(family: str) -> list[Row]:
    """Rows that have a layer with weights."""
    return [r for r in FAMILIES[family] if "8a8w" in r.precisions and any(isinstance(m, _WEIGHTED) for m in r.make().modules())]


@pytest.mark.parametrize("family", ["convolutions", "transposed convolutions", "products"])
def test_rows(family: str, reference: Run) -> None:
    model = Family(weighted(family))
    assert len(model.rows) >= 5
    inputs = [model.inputs(i) for i in range(3)]
    quantized = tosaic.quantize(model, inputs[0], inputs, "8a4w")
    artifact = tosaic.compile(quantized, spec=SPEC)
    verify(artifact.graph, Spec.parse(SPEC))
    assert not check_ranges(artifact.graph)
    kinds = {(x, w) for _, x, w in macs(artifact.graph)}
    assert (DType.INT8, DType.INT4) in kinds
    problems = []
    for sample in inputs[:2]:
        problems += table.against_reference(artifact, sample, reference)
        problems += table.against_fake_quantized(model, artifact, quantized, sample, "8a4w")
        exact = model(*sample)
        for port, found in zip(artifact.passport.outputs, artifact.run(list(sample), float_io=True), strict=True):
            if port.scale is not None and (got := sqnr(exact[port.name].detach(), found)) < LEAST:
                problems.append(f"{port.name}: {got:.1f} dB against float")
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("kind", [Classifier, MobileBlock])
def test_a_network_end_to_end(kind: type[nn.Module], reference: Run, tmp_path: Path) -> None:
    model, x = make(kind)
    quantized = tosaic.quantize(model, x, samples(kind), "8a4w")
    artifact = tosaic.compile(quantized)
    assert artifact.passport.spec == SPEC
    found = macs(artifact.graph)
    # the depthwise convolutions of an average pool have ones for weights
    assert all(w is DType.INT4 for name, _, w in found if name == "CONV2D") and found.count(("CONV2D", DType.INT8, DType.INT4)) >= 4
    arrays = table.stored(artifact, [x])
    for ours, theirs in zip(artifact.run(arrays, float_io=False), reference(artifact.graph, arrays), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for suffix in ("tosa", "vgf"):
        path = artifact.save(tmp_path / f"model.{suffix}")
        again = tosaic.load(path)
        for ours, theirs in zip(artifact.run(arrays, float_io=False), again.run(arrays, float_io=False), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_are_packed_in_tosa_and_bytes_in_vgf(tmp_path: Path) -> None:
    """Two weights a byte in `.tosa`; in `.vgf` each is a byte of its own, called int8: Vulkan has no format of four bits."""
    model, x = nn.Linear(128, 64).eval(), torch.randn(4, 128)
    four, eight = (tosaic.compile(tosaic.quantize(model, x, [x], scheme)).graph for scheme in ("8a4w", "8a8w"))
    assert len(serialize(eight)) - len(serialize(four)) > 0.9 * 128 * 64 / 2
    (tmp_path / "four.tosa").write_bytes(serialize(four))
    (tmp_path / "four.vgf").write_bytes(to_vgf(four))
    assert macs(read_tosa(tmp_path / "four.tosa")) == [("CONV2D", DType.INT8, DType.INT4)]
    assert macs(read_vgf(tmp_path / "four.vgf")) == [("CONV2D", DType.INT8, DType.INT8)]


def test_stored_range_and_scale() -> None:
    """Symmetric in [-7, 7] for each output channel; the largest weight of each is +-7."""
    torch.manual_seed(1)
    model, x = nn.Conv2d(3, 5, 3).eval(), torch.randn(1, 3, 8, 8)
    graph = tosaic.compile(tosaic.quantize(model, x, [x], "8a4w", bias_correction=False)).graph
    (weight,) = (n.inputs[1] for n in graph.nodes if isinstance(n.op, ops.Conv2d))
    assert weight.dtype is DType.INT4 and weight.data is not None
    assert np.abs(weight.data.astype(int)).reshape(5, -1).max(1).tolist() == [7] * 5


def test_products_of_activations_stay_int8() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q(x) @ self.k(x).transpose(1, 2)

    torch.manual_seed(0)
    x = torch.randn(1, 6, 16)
    found = macs(tosaic.compile(tosaic.quantize(Attention().eval(), x, [x], "8a4w")).graph)
    assert sorted(found, key=str) == [("CONV2D", DType.INT8, DType.INT4)] * 2 + [("MATMUL", DType.INT8, DType.INT8)]


def test_overrides_mix_with_other_schemes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), torch.randn(4, 16)
    artifact = tosaic.compile(tosaic.quantize(model, x, [x], "8a8w", overrides={"0": "8a4w"}))
    assert [w for _, _, w in macs(artifact.graph)] == [DType.INT4, DType.INT8]
    assert artifact.passport.spec == SPEC
    artifact = tosaic.compile(tosaic.quantize(model, x, [x], "8a4w", overrides={"2": "16a8w"}))
    assert [(i, w) for _, i, w in macs(artifact.graph)] == [(DType.INT8, DType.INT4), (DType.INT16, DType.INT8)]
    assert artifact.passport.spec == "TOSA-1.0+INT+int16+int4"


def test_training() -> None:
    """QAT fake-quantizes to the same 15 levels."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 8, 8)
    session = tosaic.prepare_qat(model, x, "8a4w")
    optimizer = torch.optim.SGD(session.model.parameters(), 1e-2)
    for _ in range(3):
        loss = session.model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    quantized = session.finish()
    artifact = tosaic.compile(quantized)
    assert {w for _, _, w in macs(artifact.graph)} == {DType.INT4}
    scale = artifact.passport.outputs[0].scale
    assert np.abs(artifact.run(x, float_io=True)[0] - quantized(x).numpy()).max() <= 1.01 * scale


def test_a_specification_without_int4_is_refused() -> None:
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    with pytest.raises(SpecError, match=r"8a4w needs the int4 extension, which TOSA-1.0\+INT does not have") as error:
        tosaic.quantize(model, x, [x], "8a4w", spec="TOSA-1.0+INT")
    assert error.value.remedy == "use --spec TOSA-1.0+INT+int4"
    with pytest.raises(SpecError, match="needs the int4 extension"):
        tosaic.compile(tosaic.quantize(model, x, [x], "8a4w"), spec="TOSA-1.0+INT+int16")


def test_16a4w_is_refused() -> None:
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    with pytest.raises(InputError, match="4-bit weights for int8 activations only") as error:
        tosaic.quantize(model, x, [x], "16a4w")
    assert error.value.remedy == "use 8a4w or 16a8w"
