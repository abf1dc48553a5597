"""Inputs unlike the calibration data: what the head-room of 16 bits holds, and beyond it they saturate; they do not overflow."""

from __future__ import annotations

from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ops.rows import Function
from torch import Tensor, nn

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


def quantized_by(how: str, model: nn.Module, x: Tensor, calibration: list[Tensor]) -> tosaic.Quantized:
    if how == "PTQ":
        return tosaic.quantize(model, x, calibration, "16a8w")
    session = tosaic.prepare_qat(model, (x,), "16a8w")
    session.calibrate(calibration)
    return session.finish()


@pytest.mark.parametrize("how", ["PTQ", "QAT"])
def test_16_bits_hold_a_quarter_more_than_calibration_saw(how: str) -> None:
    model, x = networks.make(networks.Upscaler)
    artifact = tosaic.compile(quantized_by(how, model, x, [x]))
    decibels = []
    for factor in (1.0, 1.25, 2.0):
        with torch.no_grad():
            exact = model(factor * x).numpy()
        decibels.append(networks.sqnr(exact, artifact.run(factor * x, float_io=True)[0]))
    seen, beyond, far = decibels
    assert beyond > seen - 0.5
    assert far < seen - 10  # it saturates


@pytest.mark.parametrize("how", ["PTQ", "QAT"])
@pytest.mark.parametrize(
    ("function", "scale"),
    [
        pytest.param(lambda x: x + 1.0, 4.0 / 25200, id="a sum, as far as calibration saw and head-room"),
        pytest.param(F.relu, 3.0 / 25200, id="a limit of zero bounds no magnitude"),
        pytest.param(lambda x: x.clamp(max=2.0), 3.0 / 25200, id="neither does a limit of one side"),
        pytest.param(lambda x: F.relu6(x * 4.0), 6.0 / 32767, id="a limit that calibration reached"),
        pytest.param(lambda x: F.relu6(x * 1.6), 6.0 / 32767, id="a limit within the head-room"),
        pytest.param(lambda x: F.relu6(x), 3.0 / 25200, id="a limit beyond the head-room"),
        pytest.param(lambda x: F.hardtanh(x), 1.0 / 32767, id="limits by default"),
        pytest.param(lambda x: F.max_pool2d(x.clamp(-2.5, 1.0), 2).flip(3), 2.5 / 32767, id="limits through data movement"),
        pytest.param(torch.tanh, 1.0 / 32767, id="a function of known range"),
        pytest.param(lambda x: x.softmax(-1), 1.0 / 32767, id="probabilities"),
        pytest.param(lambda x: torch.cat((x.clamp(-0.5, 0.5), x), 1), 3.0 / 25200, id="a limit of another part"),
    ],
)
def test_scales_of_16_bits(how: str, function: Callable[[Tensor], Tensor], scale: float) -> None:
    x = torch.linspace(-3.0, 3.0, 128).reshape(1, 2, 8, 8)
    artifact = tosaic.compile(quantized_by(how, Function(function).eval(), x, [x]))
    assert artifact.passport.outputs[0].scale == pytest.approx(scale, rel=1e-6)


def test_constants_of_16_bits_need_no_head_room() -> None:
    factor = torch.linspace(-2.0, 1.0, 24).reshape(2, 3, 4)
    x = torch.linspace(-3.0, 3.0, 48).reshape(2, 4, 6)
    quantized = tosaic.quantize(Function(lambda x: factor @ x).eval(), x, [x], "16a8w")
    scales = [n.args[1] for n in quantized.module.graph.nodes if "quantized_decomposed.quantize" in str(n.target)]
    assert pytest.approx(2.0 / 32767) in scales


def test_head_room_can_be_had_without() -> None:
    x = torch.linspace(-3.0, 3.0, 24)
    artifact = tosaic.compile(tosaic.quantize(Function(lambda x: x + 1.0).eval(), x, [x], "16a8w", observer="tight-minmax"))
    assert [port.scale for port in (*artifact.passport.inputs, *artifact.passport.outputs)] == pytest.approx([3.0 / 32767, 4.0 / 32767])


def test_whole_numbers_stay_whole_at_16_bits() -> None:
    x = torch.linspace(-10.0, 10.0, 81)
    artifact = tosaic.compile(tosaic.quantize(Function(torch.round).eval(), x, [x], "16a8w"))
    np.testing.assert_allclose(artifact.run(x, float_io=True)[0], x.round(), rtol=1e-6)
