"""What spatial operators and products refuse, and what rows cannot show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ops.rows import Function
from ops.test_operators import sqnr
from torch import Tensor, nn

import tosaic
from tosaic.errors import UnsupportedError

REFUSED: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], str]] = {
    "computed weight of a transposed volume": (
        lambda x, w: F.conv_transpose3d(x, w),
        ((1, 2, 3, 3, 3), (2, 2, 2, 2, 2)),
        "transposed convolution over 3 spatial dimensions whose weight is not a constant",
    ),
    "angle": (lambda x: torch.angle(torch.fft.rfft(x)), ((2, 8),), "angle.default of complex numbers"),
    "complex output": (torch.fft.rfft, ((2, 8),), "an output of complex numbers"),
    "complex sum": (lambda x: torch.view_as_real(torch.fft.rfft(x) + x[..., :5]), ((2, 8),), "sum of complex and real numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, shapes, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason.replace("(", ".")):
        tosaic.compile(Function(function), example_inputs=tuple(torch.rand(s) for s in shapes), spec="TOSA-1.0+FP")


class Between(nn.Module):
    """An operator between two sums: its input and its result are wide."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        moved = self.function(x + y)
        return moved + moved.mean()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(5, 11), mode="bicubic"),
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
        lambda x: F.avg_pool2d(x, 2),
    ],
)
def test_between_sums(function: Callable[[Tensor], Tensor]) -> None:
    model, generator = Between(function), torch.Generator().manual_seed(0)  # where the mean falls on a tie, all elements do
    samples = [tuple(torch.randn(1, 3, 8, 8, generator=generator) for _ in range(2)) for _ in range(3)]
    quantized = tosaic.quantize(model, samples[0], samples)
    artifact = tosaic.compile(quantized, spec="TOSA-1.0+INT")
    step = artifact.passport.outputs[0].scale
    for sample in samples:
        difference = np.abs(artifact.run(list(sample), float_io=True)[0] - quantized(*sample).numpy()) / step
        assert difference.max() < 1.1
        assert (difference < 0.5).mean() > 0.9


def test_channel_without_weights_costs_the_others_nothing() -> None:
    """Pruning leaves such channels; their scale must not become the scale of all."""
    layer = nn.Linear(16, 8)
    with torch.no_grad():
        layer.weight[3] = 0
        layer.bias[3] = 5.0
        layer.weight[5] = 0
        layer.bias[5] = 0.0
    model = nn.Sequential(layer, Function(lambda y: y * torch.sigmoid(y)))
    samples = [(torch.randn(64, 16),) for _ in range(3)]
    artifact = tosaic.compile(tosaic.quantize(model, samples[0], samples), spec="TOSA-1.0+INT")
    with torch.no_grad():
        assert sqnr(model(*samples[1]).numpy(), artifact.run(list(samples[1]), float_io=True)[0]) > 36


class Affine(nn.Module):
    """x @ W + b, as a model writes it without nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight + self.bias)


def test_products_with_parameters_train_and_compile_to_one_layer() -> None:
    session = tosaic.prepare_qat(Affine(), (torch.randn(4, 5, 16),))
    optimizer = torch.optim.SGD(session.model.parameters(), 0.01)
    before = [p.detach().clone() for p in session.model.parameters()]
    for _ in range(2):
        session.model(torch.randn(4, 5, 16)).square().mean().backward()
        optimizer.step()
    assert all((a != b).any() for a, b in zip(before, session.model.parameters(), strict=True))
    artifact = tosaic.compile(session.finish(), spec="TOSA-1.0+INT")
    assert sum(n.op.NAME == "CONV2D" for n in artifact.graph.nodes) == 1
    assert not any(n.op.NAME in ("MATMUL", "ADD") for n in artifact.graph.nodes)
