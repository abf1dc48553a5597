"""Layers of two precisions: a value has the bits that its readers want, whatever the operator that gives it has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import sqnr
from torch import Tensor, nn

import tosaic


class Gated(nn.Module):
    """A feed-forward block as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def decibels(overrides: dict[str, str]) -> float:
    """SQNR of the artifact."""
    torch.manual_seed(0)
    model, data = Gated(), [torch.randn(1, 50, 64) * 3 for _ in range(4)]
    artifact = tosaic.compile(tosaic.quantize(model, data[0], data, "8a8w", overrides=overrides))
    with torch.no_grad():
        expected = model(data[0]).numpy()
    noise = artifact.run(data[0], float_io=True)[0] - expected
    return float(10 * np.log10((expected**2).mean() / (noise**2).mean()))


@pytest.mark.parametrize(
    ("overrides", "least"),
    [({}, 31.0), ({"down": "16a8w"}, 36.5), ({"gate": "16a8w", "up": "16a8w", "down": "16a8w"}, 43.0)],
    ids=["none", "the reader", "all layers, not what is between them"],
)
def test_what_a_layer_of_sixteen_bits_reads(overrides: dict[str, str], least: float) -> None:
    assert decibels(overrides) > least


class _Choice(nn.Module):
    """Scores of which some are masked: the mask is no number that calibration could give a scale to."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x).masked_fill(x[:, :8] < -0.5, -1e9).softmax(-1)


def _blocks(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), activation, nn.Linear(16, 4))


# sums of few terms come near their bound, of which all is known that no calibration saw
@pytest.mark.parametrize(
    ("make", "width", "least"),
    [
        (_Choice, 16, 80.0),
        (lambda: _blocks(nn.GELU()), 4, 50.0),
        (lambda: _blocks(nn.SiLU()), 4, 50.0),
        (lambda: _blocks(nn.Tanh()), 4, 50.0),
    ],
    ids=["mask", "gelu", "silu", "tanh"],
)
def test_between_linear_layers_alone(make: Callable[[], nn.Module], width: int, least: float) -> None:
    """What is outside of the scope is as near to the fake-quantized module as its own roundings to int8 let it be."""
    torch.manual_seed(0)
    model, data = make().eval(), [torch.randn(200, width) for _ in range(4)]
    quantized = tosaic.quantize(model, data[0], data, scope="linear")
    with torch.no_grad():
        expected = quantized(data[0])
    assert sqnr(expected, tosaic.compile(quantized).run(data[0], float_io=True)[0]) > least
