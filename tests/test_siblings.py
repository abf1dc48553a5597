"""Projections of one input become one convolution: which are joined, that the bits stay, and one zero point for attention's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import sqnr
from torch import Tensor, nn

import tosaic
from tosaic.execute.simulator import evaluate
from tosaic.optimize.siblings import merge_siblings
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Value, verify
from tosaic.tosa.types import DType


def branch(
    b: Builder, x: Value, channels: int, zero_point: int = 3, heads: int | None = 2, *, single: bool = False, rescaled: bool = True
) -> list[Value]:
    """CONV2D, RESCALE and RESHAPE of random numbers; all that they compute."""
    rng = np.random.default_rng(channels)
    weight = b.const(rng.integers(-127, 128, (channels, 1, 1, x.shape[3])), DType.INT8)
    bias = b.const(rng.integers(-999, 999, 1 if single else channels), DType.INT32)
    values = [b.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), -5), x, weight, bias)]
    if rescaled:
        scales = tuple(int(m) for m in rng.integers(2**30, 2**31, 1 if single else channels))
        values.append(b.emit(ops.Rescale(DType.INT8, scales, (40,) * len(scales), 0, zero_point, per_channel=not single), values[-1]))
    if heads:
        values.append(b.emit(ops.Reshape((x.shape[2], heads, channels // heads)), values[-1]))
    return values


def both(build: Callable[[Builder, Value], list[Value]]) -> tuple[Graph, Graph]:
    """A graph of branches of one input before and after, the same bits."""
    b = Builder()
    x = b.input("x", DType.INT8, (1, 1, 6, 8))
    graph = b.finish(build(b, x))
    after = merge_siblings(graph)
    verify(after)
    data = np.random.default_rng(0).integers(-128, 128, (1, 1, 6, 8)).astype(np.int8)
    for found, expected in zip(evaluate(after, [data]), evaluate(graph, [data]), strict=True):
        np.testing.assert_array_equal(found, expected)
    return graph, after


def negated(b: Builder, branches: list[list[Value]]) -> list[Value]:
    return [b.emit(ops.Transpose(tuple(reversed(range(len(v[-1].shape))))), v[-1]) for v in branches]


JOINED = {
    "three of equal size": lambda b, x: negated(b, [branch(b, x, 8, single=i == 1) for i in range(3)]),
    "query, key and value of few heads": lambda b, x: negated(b, [branch(b, x, 16, heads=4), branch(b, x, 8), branch(b, x, 4, heads=1)]),
    "two with heads": lambda b, x: negated(b, [branch(b, x, 8), branch(b, x, 4, heads=1)]),
    "three without heads": lambda b, x: negated(b, [branch(b, x, n, heads=None) for n in (4, 6, 8)]),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined(name: str) -> None:
    before, after = both(JOINED[name])
    assert sum(isinstance(op, ops.Conv2d) for op in after.ops) == 1
    assert len(after.ops) < len(before.ops)
    assert merge_siblings(after) is after


def with_reader(b: Builder, x: Value) -> list[Value]:
    """The second RESCALE is an output too, so only two branches have one alone."""
    branches = [branch(b, x, 4, heads=None) for _ in range(3)]
    return [*negated(b, branches), b.emit(ops.Abs(), branches[1][0])]


APART = {
    "zero points differ": lambda b, x: negated(b, [branch(b, x, 8, zero_point=i, heads=None) for i in range(3)]),
    "parts differ in size": lambda b, x: negated(b, [branch(b, x, 8, heads=2), branch(b, x, 8, heads=4)]),
    "nothing is saved": lambda b, x: negated(b, [branch(b, x, n, heads=None) for n in (4, 8)]),
    "convolutions alone": lambda b, x: negated(b, [branch(b, x, n, heads=None, rescaled=False) for n in (4, 6, 8)]),
    "another reader": with_reader,
    "an output": lambda b, x: [v for n in (4, 6, 8) for v in branch(b, x, n, heads=None)],
}


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    before, after = both(APART[name])
    assert after is before


class Attention(nn.Module):
    """Values with a bias of `shift` in all channels."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.v.bias.data += shift

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(1, -1, 2, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        return self.o(y.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    ("scheme", "observer", "shift", "convolutions"),
    [("8a8w", "minmax", 0.0, 2), ("8a8w", "percentile", 0.0, 2), ("16a8w", "minmax", 0.0, 2), ("8a8w", "minmax", 9.0, 4)],
)
def test_projections_of_attention(scheme: str, observer: str, shift: float, convolutions: int) -> None:
    """One layer and the output's; where a common zero point would cost too much, they stay apart."""
    torch.manual_seed(1)
    model = Attention(shift).eval()
    samples = [(torch.randn(1, 6, 16),) for _ in range(4)]
    quantized = tosaic.quantize(model, samples[0], samples, scheme, observer=observer)
    artifact = tosaic.compile(quantized)
    assert Counter(op.NAME for op in artifact.graph.ops)["CONV2D"] == convolutions
    with torch.no_grad():
        exact, fake = (np.concatenate([f(*s).numpy() for s in samples]) for f in (model, quantized))
    found = np.concatenate([artifact.run(s, float_io=True)[0] for s in samples])
    assert sqnr(exact, found) >= sqnr(exact, fake) - 1.0
