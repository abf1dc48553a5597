"""Small models drawn at random, quantized and compiled through the public API: simulator == reference model, bit for bit.

Inputs go three times beyond what calibration saw, so that saturation is part of what must be equal. On calibrated inputs the
artifact must also be what its fake-quantized module says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import sqnr
from torch import Tensor, nn

import tosaic
from tosaic.tosa.graph import Graph

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
ROWS, WIDTH = 6, 8


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = [t.reshape(1, ROWS, 2, WIDTH // 2).transpose(1, 2) for t in (q, k, v)]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(1, ROWS, WIDTH)


def _flat(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of images, for [1, ROWS, WIDTH] seen as [1, ROWS, 2, WIDTH / 2]."""
    return lambda *t: function(*(x.reshape(1, ROWS, 2, WIDTH // 2) for x in t)).reshape(1, ROWS, WIDTH)


# name -> (number of operands, function); all keep the shape [1, ROWS, WIDTH]
OPERATORS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "add": (2, torch.add),
    "sub": (2, torch.sub),
    "mul": (2, lambda a, b: 0.3 * a * b),
    "div": (2, lambda a, b: a / (b.abs() + 0.5)),
    "max": (2, torch.maximum),
    "min": (2, torch.minimum),
    "where": (3, lambda a, b, c: torch.where(a > b, b, c)),
    "relu": (1, torch.relu),
    "clamp": (1, lambda a: a.clamp(-1.0, 1.5)),
    "abs": (1, torch.abs),
    "leaky_relu": (1, F.leaky_relu),
    "sigmoid": (1, torch.sigmoid),
    "tanh": (1, torch.tanh),
    "silu": (1, F.silu),
    "gelu": (1, F.gelu),
    "exp": (1, lambda a: torch.exp(a.clamp(-4.0, 2.0))),
    "sqrt": (1, lambda a: torch.sqrt(a.abs() + 0.1)),
    "softmax": (1, lambda a: torch.softmax(a, -1)),
    "softmax_rows": (1, lambda a: torch.softmax(a, 1)),
    "log_softmax": (1, lambda a: torch.log_softmax(a, -1)),
    "layer_norm": (1, lambda a: F.layer_norm(a, (WIDTH,))),
    "rms_norm": (1, lambda a: F.rms_norm(a, (WIDTH,), eps=1e-5)),
    "group_norm": (1, _flat(lambda a: F.group_norm(a, 3))),
    "centred": (1, lambda a: a - a.mean(-1, keepdim=True)),
    "attention": (3, _attention),
    "matmul": (2, lambda a, b: 0.2 * (a @ b.transpose(1, 2)) @ b),
    "cat": (2, lambda a, b: torch.cat([a[..., : WIDTH // 2], b[..., WIDTH // 2 :]], -1)),
    "roll": (1, lambda a: torch.roll(a, 2, 1)),
    "flip": (1, lambda a: a.flip(-1)),
    "transposed": (1, lambda a: a.reshape(1, WIDTH, ROWS).transpose(1, 2)),
    "max_pool": (1, _flat(lambda a: F.max_pool2d(a, 3, 1, 1))),
    "avg_pool": (1, _flat(lambda a: F.avg_pool2d(a, 3, 1, 1))),
    "upsample": (1, _flat(lambda a: F.interpolate(a, scale_factor=2, mode="bilinear")[..., :2, : WIDTH // 2])),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "conv1d": lambda: nn.Conv1d(ROWS, ROWS, 3, padding=1),
    "norm": lambda: nn.LayerNorm(WIDTH),
}
NAMES = sorted({*OPERATORS, *LAYERS})


class Drawn(nn.Module):
    """Steps, each of which reads earlier values; the last three values are the outputs."""

    def __init__(self, steps: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self.steps = list(steps)
        self.layers = nn.ModuleList(LAYERS[name]() if name in LAYERS else nn.Identity() for name, _ in steps)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        values = [x, y]
        for (name, picks), layer in zip(self.steps, self.layers, strict=True):
            operands = [values[p % len(values)] for p in picks]
            values.append(layer(operands[0]) if name in LAYERS else OPERATORS[name][1](*operands[: OPERATORS[name][0]]))
        first = max(2, len(values) - 3)
        return {f"value_{i}": value for i, value in enumerate(values) if i >= first}


# the values that are read are mostly recent ones, so that graphs grow deep
steps = st.lists(st.tuples(st.sampled_from(NAMES), st.tuples(*[st.integers(-4, -1)] * 3)), min_size=2, max_size=7)


@pytest.mark.parametrize("scheme", ["8a8w", "16a8w"])
def test_simulator_equals_reference(scheme: str, reference: Run) -> None:
    @settings(derandomize=True, max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps, st.integers(0, 2**31 - 1), st.floats(0.05, 20.0))
    def holds(drawn: list[tuple[str, tuple[int, ...]]], seed: int, span: float) -> None:
        torch.manual_seed(seed)
        model = Drawn(drawn).eval()
        samples = [tuple(torch.randn(1, ROWS, WIDTH) * span for _ in range(2)) for _ in range(4)]
        quantized = tosaic.quantize(model, samples[0], samples, scheme)
        artifact = tosaic.compile(quantized)
        for inputs in (samples[0], tuple(3 * t for t in samples[1])):
            arrays = [
                artifact._stored(t.numpy(), p, v, True)
                for t, p, v in zip(inputs, artifact.passport.inputs, artifact.graph.inputs, strict=True)
            ]
            for ours, theirs in zip(artifact.run(arrays, float_io=False), reference(artifact.graph, arrays), strict=True):
                assert np.array_equal(ours, theirs)
        whole = [torch.cat(parts) for parts in zip(*samples, strict=True)]
        for single, together in zip(*(artifact.run(whole, float_io=True, batch=batch) for batch in (1, 3)), strict=True):
            assert np.array_equal(single, together)
        for port, ours in zip(artifact.passport.outputs, artifact.run(list(samples[0]), float_io=True), strict=True):
            fake = quantized(*samples[0])[port.name].numpy()
            steps_off = float(np.abs(fake - ours).max()) / (port.scale or 1.0)
            assert steps_off <= 0.02 * (1 << 8 if scheme == "8a8w" else 1 << 16) or sqnr(torch.as_tensor(fake), ours) > 25

    holds()
