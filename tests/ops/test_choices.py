"""Comparisons, choices, masks and integers beyond the table: refusals, constants, whole patterns of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ops.rows import Function
from ops.test_operators import sqnr
from torch import Tensor, nn

import tosaic
from tosaic.artifact import Artifact
from tosaic.errors import InputError, QuantizeError, UnsupportedError
from tosaic.tosa.graph import Graph

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
LOWEST = torch.finfo(torch.float32).min


def compiled(function: Callable[..., Any] | nn.Module, *inputs: Tensor, spec: str = "TOSA-1.0+INT", **options: Any) -> Artifact:
    model = function if isinstance(function, nn.Module) else Function(function)
    return tosaic.compile(tosaic.quantize(model.eval(), inputs, [inputs], **options), spec=spec)


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (lambda a: a.to(torch.uint8), (torch.arange(3),), "a cast to torch.uint8; integers have 32 bits here"),
        (lambda a: a << 40, (torch.arange(3),), "a shift by 40..40; integers have 32 bits here"),
        (lambda a: a > torch.zeros(1) / torch.zeros(1), (torch.rand(3),), "comparison with a constant that holds NaN"),
        (lambda a: torch.where(a > 0, a, torch.zeros(1) / torch.zeros(1)), (torch.rand(3) + 1,), "a constant that holds NaN"),
        (lambda a: a + 2**40, (torch.arange(3),), "are outside int32"),
    ],
)
def test_refusals(function: Callable[..., Any], inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        compiled(function, *inputs)


def test_division_of_reals_by_zero_is_refused() -> None:
    with pytest.raises(QuantizeError, match="'remainder' is not finite during calibration"):
        compiled(lambda a: torch.remainder(a, torch.tensor([2.0, 0.0, 1.0])), torch.rand(3))


@pytest.mark.parametrize("function", [lambda a: a // 0, lambda a: a % 0, lambda a: torch.div(a, 0, rounding_mode="trunc")])
def test_division_of_integers_by_zero_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedError, match="division of integers by a constant that is zero"):
        tosaic.compile(Function(function), torch.arange(3), spec="TOSA-1.0+INT+FP")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.full((3, 4), 0.5),
        lambda: torch.zeros(4) + torch.ones(3, 1),
        lambda: torch.arange(4.0) * 0.1,
        lambda: torch.arange(4),
        lambda: torch.linspace(-1, 1, 4),
        lambda: torch.scalar_tensor(0.25),
        lambda: torch.eye(3, 4),
        lambda: torch.inverse(torch.eye(4) + 0.1)[:3],
        lambda: torch.full((4, 4), 1.0).tril()[:3],
        lambda: torch.arange(12).reshape(3, 4) % 5 > 2,
    ],
)
def test_constants_fold(make: Callable[[], Tensor]) -> None:
    """What depends on no input is one constant beside the operator that reads it."""
    artifact = compiled(lambda a: a * make(), torch.rand(3, 4))
    assert {op.NAME for op in artifact.graph.ops} <= {"MUL", "RESCALE", "RESHAPE", "IDENTITY"}


def test_like_constants_fold() -> None:
    artifact = compiled(lambda a: torch.full_like(a, 2.0) - torch.ones_like(a) * a + torch.zeros_like(a), torch.rand(3, 4))
    assert {op.NAME for op in artifact.graph.ops} <= {"SUB", "ADD", "MUL", "RESCALE"}


class Bert(nn.Module):
    """Two layers of attention behind an embedding, with BERT's mask of padding, computed from the tokens."""

    def __init__(self, lowest: float) -> None:
        super().__init__()
        self.embedding, self.lowest = nn.Embedding(30, 16), lowest
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(16, 16) for _ in range(4)) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (1.0 - (tokens != 0).to(torch.int64)[:, None, None, :].to(torch.float32)) * self.lowest
        x = self.embedding(tokens)
        for query, key, value, out in self.layers:
            q, k, v = (f(x).view(*x.shape[:2], 2, 8).transpose(1, 2) for f in (query, key, value))
            scores = q @ k.transpose(-2, -1) * 0.35 + mask
            x = x + out((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(x.shape))
        return x


@pytest.mark.parametrize("lowest", [LOWEST, -1e9, -1e4])
def test_padding_masks_cost_no_accuracy(lowest: float, reference: Run) -> None:
    torch.manual_seed(0)
    model = Bert(lowest).eval()
    samples = [torch.randint(1, 30, (2, 10)) for _ in range(8)]
    quality = {}
    for padded in (False, True):
        batches = [tokens.clone() for tokens in samples]
        for tokens in batches if padded else ():
            tokens[0, 7:] = 0
        artifact = tosaic.compile(tosaic.quantize(model, batches[0], batches), spec="TOSA-1.0+INT")
        stored = [batches[-1].numpy().astype(np.int32)]
        assert np.array_equal(artifact.run(stored, float_io=False)[0], reference(artifact.graph, stored)[0])
        quality[padded] = sqnr(model(batches[-1]).detach().numpy(), artifact.run(batches[-1], float_io=True)[0])
    assert quality[True] > quality[False] - 1.5 and quality[True] > 28


@pytest.mark.parametrize("value", [-math.inf, LOWEST, -1e9])
def test_rows_that_are_masked_whole_are_uniform(value: float) -> None:
    """As PyTorch has them for finite masks: all scores are equal then."""
    mask = torch.zeros(4, 4)
    mask[2] = value
    artifact = compiled(lambda a: torch.softmax(a.matmul(a.mT) + mask, -1), torch.randn(1, 4, 4))
    result = artifact.run(torch.randn(1, 4, 4), float_io=True)[0]
    assert np.abs(result[0, 2] - 0.25).max() < 0.005


def test_infinite_buffers_are_masks_but_infinite_weights_are_errors() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.data[0, 0] = -math.inf
    with pytest.raises(InputError, match="an infinite value"):
        compiled(layer, torch.rand(1, 3))
    layer = nn.BatchNorm1d(3)
    layer.running_mean[0] = math.inf
    with pytest.raises(InputError, match="an infinite value"):
        compiled(layer, torch.rand(2, 3))


def test_integers_in_float_models() -> None:
    """INT+FP holds integer arithmetic beside float32."""
    model = Function(lambda i, a: ((i % 5).clamp(1, 3) * 2, torch.where(i > 2, a, i), i.cumsum(0), (a * 3).int()))
    inputs = torch.arange(-6, 6).reshape(3, 4), torch.randn(3, 4)
    artifact = tosaic.compile(model, inputs, spec="TOSA-1.0+INT+FP")
    for ours, want in zip(artifact.run(list(inputs)), model(*inputs), strict=True):
        assert np.allclose(ours, want.numpy())


def test_token_masks_in_the_float_profile() -> None:
    """Which has no comparison of integers: as floats they compare the same."""
    tokens = torch.tensor([[0, 1, -5, 2**31 - 1], [2**24 + 1, 2**24, 3, 0]])
    model = Function(lambda t, u: (torch.where(t > 1, 1.0, 0.0), torch.where(t == u, 1.0, 0.0), (t != 0).sum(-1)))
    inputs = tokens, torch.tensor([[0, 1, 2**24, 2**31 - 1], [2**24, 2**24, 3, 1]])
    artifact = tosaic.compile(model, inputs, spec="TOSA-1.0+FP")
    for ours, want in zip(artifact.run(list(inputs)), model(*inputs), strict=True):
        assert np.array_equal(ours, want.numpy())


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_with_numbers_are_exact_for_all_of_int8(name: str) -> None:
    """Equal to the comparison of the dequantized number, also where it is the constant."""
    low, high = -1.7, 2.3
    scale = np.float32((high - low) / 255)
    zero_point = int(-128 - np.rint(low / scale))
    stored = np.arange(-128, 128, dtype=np.int8)
    reals = torch.from_numpy((stored.astype(np.float32) - zero_point) * scale)
    for number in (0.0, 0.4, float(reals[40]), float(reals[200]), float(np.nextafter(reals[40].numpy(), np.float32(9))), -5.0, 5.0):
        inputs = reals.clone()
        inputs[0], inputs[-1] = low, high
        artifact = compiled(lambda a, number=number: getattr(torch, name)(a, number), inputs)
        port = artifact.passport.inputs[0]
        own = torch.from_numpy((stored.astype(np.float32) - port.zero_point) * np.float32(port.scale))
        assert np.array_equal(artifact.run([stored], float_io=False)[0], getattr(torch, name)(own, number).numpy()), number
