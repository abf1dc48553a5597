"""Biases of quantized programs: whole steps of the accumulator, the numbers that the artifact stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tosaic
from tosaic.quantization.biases import bias_of, is_layer
from tosaic.quantization.ptq import Quantized
from tosaic.tosa import ops


class Layers(nn.Module):
    """Layers of each kind; a channel has no weights, and a transposed convolution's groups share scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.head = nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), nn.Linear(4, 5)
        with torch.no_grad():
            self.conv.weight[2] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(torch.relu(self.conv(x)))).mean((2, 3)))


def stored(quantized: Quantized) -> list[np.ndarray]:
    """The biases of the artifact, layer by layer; those of groups together."""
    graph = tosaic.compile(quantized).graph
    found = [(n.op, n.inputs[2].data) for n in graph.nodes if isinstance(n.op, ops._Conv) and not isinstance(n.op, ops.DepthwiseConv2d)]
    conv, up, head = ([b for op, b in found if isinstance(op, kind)] for kind in (ops.Conv2d, ops.TransposeConv2d, ops.Conv2d))
    return [conv[0], np.concatenate(up), head[-1]]


@pytest.mark.parametrize(("scheme", "correction"), [("8a4w", True), ("8a4w", False), ("8a8w", True), ("16a8w", True)])
def test_program_and_artifact_have_the_same(scheme: str, correction: bool) -> None:
    torch.manual_seed(0)
    model, samples = Layers().eval(), [torch.randn(2, 4, 6, 6) for _ in range(3)]
    before = [m.bias.detach().clone() for m in (model.conv, model.up, model.head)]
    quantized = tosaic.quantize(model, samples[0], samples, scheme, bias_correction=correction)
    check(quantized)
    assert all(torch.equal(b, m.bias) for b, m in zip(before, (model.conv, model.up, model.head), strict=True))  # the user's own stay


def test_training_ends_with_them_too() -> None:
    torch.manual_seed(0)
    session = tosaic.prepare_qat(Layers(), torch.randn(2, 4, 6, 6), "8a4w")
    session.model(torch.randn(2, 4, 6, 6))
    check(session.finish())


def check(quantized: Quantized) -> None:
    layers = [n for n in quantized.module.graph.nodes if is_layer(n)]
    assert len(layers) == 3
    for node, integers in zip(layers, stored(quantized), strict=True):
        bias = bias_of(quantized.module, node)
        assert bias is not None
        numbers = bias.detach().double().numpy()
        scales = quantized.module.get_buffer(node.args[1].args[1].target).double().numpy()
        steps = np.tile(scales * node.args[0].args[1], numbers.size // scales.size)
        weighted = np.full(numbers.shape, True)
        if node.args[1].args[0].args[0].target.startswith("conv"):
            weighted[2] = False
            assert numbers[2] != 0 and abs(numbers[2] / steps[2]) % 1 > 1e-3  # its own step, not one of weights
        np.testing.assert_array_equal(integers[weighted], np.rint((numbers / steps)[weighted]))
        np.testing.assert_allclose((numbers / steps)[weighted], integers[weighted], atol=1e-5 * np.abs(integers).max())
