"""Values that meet in sums share a scale where that costs no precision, and tables of embeddings get the bits that they need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Run
from networks import sqnr
from torch import Tensor, nn

import tosaic
from tosaic.artifact import Artifact
from tosaic.lower.context import Context
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.tables import typical
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType


class Stream(nn.Module):
    """A residual stream as transformers have it, and a linear layer at its end."""

    def __init__(self, layers: int, width: int = 16) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.first, self.head = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x)


class Cancelling(nn.Module):
    """A sum a thousand times smaller than what it is of."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(x) * 1000.0
        return (y + 0.3 * x) - y * 1.0001


def compiled(model: nn.Module, samples: list[tuple[Tensor, ...]], scheme: str = "8a8w") -> tuple[Artifact, tosaic.Quantized]:
    quantized = tosaic.quantize(model.eval(), samples[0], samples, scheme)
    return tosaic.compile(quantized), quantized


@pytest.mark.parametrize("scheme", ["8a8w", "16a8w"])
def test_a_sum_in_a_residual_stream_is_one_operator(scheme: str) -> None:
    torch.manual_seed(0)
    artifact, _ = compiled(Stream(5), [(torch.randn(1, 6, 16),) for _ in range(4)], scheme)
    makers = {node.output: node for node in artifact.graph.nodes}
    sums = [n for n in artifact.graph.nodes if isinstance(n.op, ops.Add) and n.location and n.location.aten == "aten.add.Tensor"]
    assert len(sums) == 5
    for node in sums:
        sources = [makers[v] for v in node.inputs]
        rescaled = [s for s in sources if isinstance(s.op, ops.Rescale)]
        # one operand comes from an accumulator; the stream itself, a sum too, comes as it is (the first one from `first`)
        assert all(not isinstance(makers[s.inputs[0]].op, ops.Add | ops.Rescale) for s in rescaled)


def test_lowering_knows_what_calibration_saw_of_a_widened_value() -> None:
    torch.manual_seed(0)
    model, samples = Stream(3), [(torch.randn(1, 6, 16),) for _ in range(4)]
    _, quantized = compiled(model, samples)
    with torch.no_grad():
        assert quantized.magnitudes["linear"] == pytest.approx(max(float(model.first(x).abs().max()) for (x,) in samples))


@pytest.mark.parametrize(("magnitude", "reach"), [(None, 8.0), (3.0, 3.0)])
def test_a_table_is_as_wide_as_its_operand_in_calibration(magnitude: float | None, reach: float) -> None:
    """Not as its scale says, which is 2^5 times coarser here as the accumulator's bound asks for it."""
    ctx = Context(Builder(), Spec.parse("TOSA-1.0+INT"))
    accumulator = Operand(ctx.builder.input("x", DType.INT32, (4,)), quant=Quant(2.0**-10, 0, DType.INT32), bits=24)
    stored = ctx.store_as(accumulator, Quant(2.0**-20, 0, DType.INT32), magnitude)
    assert stored.quant is not None and stored.quant.scale == 2.0**-15
    assert typical(stored) == reach


def test_what_cancels_keeps_its_own_scale() -> None:
    torch.manual_seed(0)
    samples = [(torch.randn(1, 64) * 2,) for _ in range(4)]
    model = Cancelling()
    artifact, quantized = compiled(model, samples, "16a8w")
    exact = np.concatenate([model(*s).numpy() for s in samples])
    found = np.concatenate([artifact.run(s, float_io=True)[0] for s in samples])
    fake = np.concatenate([quantized(*s).numpy() for s in samples])
    assert sqnr(exact, found) >= sqnr(exact, fake) - 3


class Words(nn.Module):
    def __init__(self, outlier: float) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(600, 32), nn.Linear(32, 32)
        self.table.weight.data[:, 3] *= outlier
        self.head.weight.data[:, 3] /= outlier

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x) + x * torch.sigmoid(x)


@pytest.mark.parametrize(("outlier", "dtype"), [(1.0, DType.INT8), (60.0, DType.INT16)])
def test_tables_with_outliers_are_int16(outlier: float, dtype: DType) -> None:
    torch.manual_seed(0)
    artifact, _ = compiled(Words(outlier), [(torch.randint(0, 600, (1, 12)),) for _ in range(4)])
    tables = {n.inputs[0].dtype for n in artifact.graph.nodes if isinstance(n.op, ops.Gather) and n.inputs[0].shape == (1, 600, 32)}
    assert tables == {dtype}


class ZeroGate(nn.Module):
    """Branches that training begins with at zero, beside values whose range is far below 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.gate = nn.Linear(8, 8), nn.LayerNorm(8), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor, off: Tensor) -> Tensor:
        return self.norm(x + self.gate * self.layer(x)) + torch.tanh(x * x) * x + torch.relu(off)


@pytest.mark.parametrize(("scheme", "least"), [("8a8w", 30.0), ("16a8w", 70.0)])
def test_what_was_always_zero_costs_no_bits(scheme: str, least: float, reference: Run) -> None:
    torch.manual_seed(0)
    model, samples = ZeroGate(), [(torch.randn(4, 8) * 1e-3, torch.zeros(4, 8)) for _ in range(6)]
    artifact, _ = compiled(model, samples, scheme)
    with torch.no_grad():
        expected = model(*samples[0]).numpy()
    arrays = [
        artifact._stored(x.numpy(), port, v, True)
        for x, port, v in zip(samples[0], artifact.passport.inputs, artifact.graph.inputs, strict=True)
    ]
    results = artifact.run(arrays, float_io=False)
    assert np.array_equal(results[0], reference(artifact.graph, arrays)[0])
    assert sqnr(expected, artifact.run(list(samples[0]), float_io=True)[0]) > least


class _Blocks(nn.Module):
    """Two blocks on a residual stream that comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.first(nn.functional.rms_norm(x, (32,)))
        return y + self.second(nn.functional.rms_norm(y, (32,)))


def test_a_stream_from_outside_keeps_its_small_rows() -> None:
    """A row of 24,000 among rows of 1: sums count in steps of the calibrated range, and not of the head-room above it."""
    torch.manual_seed(0)
    model, x = _Blocks().eval(), torch.randn(1, 8, 32)
    x[0, 0, 3] = 24000.0
    ports = {"x": "int32", "output": "int32"}
    artifact = tosaic.compile(tosaic.quantize(model, (x,), [(x,)], "16a8w", ports=ports, bias_correction=False))
    with torch.no_grad():
        want = model(x).numpy()
    error = artifact.run((x,), float_io=True)[0] - want
    quality = 10 * np.log10((want**2).sum(-1) / (error**2).sum(-1))
    assert quality.min() > 30


def test_a_product_counts_as_fine_as_its_reader_wants() -> None:
    """The extremes of the factors meet nowhere: their product, which 16 bits hold, is far below what head-room would allow."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
            with torch.no_grad():
                self.gate.weight[0] *= 100
                self.up.weight[1] *= 100
                self.gate.weight[1] *= 0.01
                self.up.weight[0] *= 0.01

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))

    torch.manual_seed(0)
    model, data = Gate(), [torch.randn(1, 24, 16) for _ in range(4)]
    quantized = tosaic.quantize(model, data[0], data, "16a8w", bias_correction=False)
    expected, found = quantized(data[0]).numpy(), tosaic.compile(quantized).run(data[0], float_io=True)[0]
    assert 10 * np.log10((expected**2).mean() / ((found - expected) ** 2).mean()) > 60
