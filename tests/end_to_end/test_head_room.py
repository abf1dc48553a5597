"""Inputs unlike the calibration data saturate; they do not overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tosaic


class Detail(nn.Module):
    """A Laplacian, whose output is tiny on smooth pictures, read by arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.laplace, self.out = nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 1)
        self.laplace.weight.data = torch.tensor([[[[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.laplace(x)
        return self.out(y + 0.5 * y)


@pytest.mark.parametrize("scheme", ["8a8w", "16a8w"])
@pytest.mark.parametrize("amplitude", [1e-3, 1e-5])
def test_accumulators_far_beyond_calibration(scheme: str, amplitude: float) -> None:
    """The reference model reports RESCALE inputs outside |value| < 2^(shift-1) as unpredictable: there are none."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    smooth = [ramp + amplitude * torch.randn(1, 1, 16, 16) for _ in range(4)]
    quantized = tosaic.quantize(Detail().eval(), smooth[0], smooth, scheme)
    artifact = tosaic.compile(quantized)
    steps = np.abs(artifact.run(smooth[0], float_io=True)[0] - quantized(smooth[0]).numpy()) / artifact.passport.outputs[0].scale
    assert steps.max() < (1.01 if scheme == "8a8w" else 2.01)  # 16-bit multipliers, see test_qat.py
    checkerboard = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float().expand(1, 1, 16, 16)
    found = artifact.run(checkerboard, float_io=True)[0]
    np.testing.assert_array_equal(found, artifact.run(checkerboard, on="reference", float_io=True)[0])
