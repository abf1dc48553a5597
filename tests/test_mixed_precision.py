"""Layers of two precisions: a value has the bits that its readers want, whatever the operator that gives it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
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
