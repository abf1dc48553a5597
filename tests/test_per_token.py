"""Linear layers with scales per token: rows of any magnitude keep 7 bits, and the artifact computes what fake quantization says."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from networks import sqnr
from torch import Tensor, nn

import tosaic
from tosaic.artifact import Artifact
from tosaic.digits import MOST
from tosaic.errors import InputError
from tosaic.operators import per_token_linear

TOKENS, FEATURES = 12, 48
SCHEMES = pytest.mark.parametrize("scheme", ["8a8w-per-token", "16a8w-per-token"])
MAGNITUDES = torch.logspace(0, -2.7, TOKENS)[:, None]  # of the rows inside the model: from 1 to 1/500


class Block(nn.Module):
    """The feed-forward block of a language model, on rows of very different magnitudes; they are brought back to one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(FEATURES, 64, bias=False), nn.Linear(FEATURES, 64, bias=False)
        self.down = nn.Linear(64, FEATURES)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x * MAGNITUDES
        return self.down(F.relu(self.gate(x)) + self.up(x)) * (1 / MAGNITUDES)


def model() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def sample(seed: int) -> Tensor:
    """Rows of one magnitude; one is zero."""
    x = torch.randn(1, TOKENS, FEATURES, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
    x[:, 3] = 0
    return x


@functools.cache
def compiled(scheme: str, override: str | None = None, **options: object) -> tuple[Artifact, tosaic.Quantized]:
    overrides = {override: "8a8w-per-token"} if override else {}
    data = [sample(i) for i in range(8)]
    quantized = tosaic.quantize(model(), data[0], data, scheme, overrides=overrides, bias_correction=False, **options)
    return tosaic.compile(quantized, strict=True), quantized


def row_scores(scheme: str, **options: object) -> list[float]:
    """SQNR of each row of the artifact against float, without the row that is zero."""
    x = sample(20)
    with torch.no_grad():
        exact = model()(x).numpy()
    found = compiled(scheme, **options)[0].run(x, float_io=True)[0]
    return [sqnr(exact[:, i], found[:, i]) for i in range(TOKENS) if i != 3]


def test_small_rows_keep_their_bits() -> None:
    """At one scale for all rows the smallest vanish; with their own, what a row loses does not depend on the rows beside it."""
    static, per_token = row_scores("8a8w"), row_scores("8a8w-per-token")
    assert min(static) < 3
    assert min(per_token) > 25
    assert max(per_token) - min(per_token) < 6


def test_rows_of_two_digits() -> None:
    """With 16 bits for each row nothing is lost but what weights of 8 bits lose."""
    eight, sixteen, static = (row_scores(s, between="int32") for s in ("8a8w-per-token", "16a8w-per-token", "16a8w-digits"))
    assert min(sixteen) > min(eight) + 2 and min(sixteen) > min(static) + 2


@pytest.mark.parametrize(("scheme", "port"), [("8a8w-per-token", "int8"), ("8a8w-per-token", "int16"), ("16a8w-per-token", "int16")])
def test_rows_from_outside(scheme: str, port: str, reference: Run) -> None:
    """Rows of int16 are normalised as those of int32 are, and 16 bits of them are asked for; rows of int8 are taken as they are."""
    x = sample(0)
    ports = {"input_1": port} if scheme == "8a8w-per-token" else {}
    torch.manual_seed(0)
    artifact = tosaic.compile(tosaic.quantize(nn.Linear(FEATURES, 8), x, [x], scheme, ports=ports, bias_correction=False))
    assert ("CLZ" in artifact.passport.operators) == (port == "int16")
    dtype = artifact.graph.inputs[0].dtype.numpy
    assert dtype == np.dtype(port)
    stored = np.random.default_rng(0).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, x.shape, endpoint=True, dtype=dtype)
    np.testing.assert_array_equal(artifact.run([stored], float_io=False)[0], reference(artifact.graph, [stored])[0])


@SCHEMES
def test_artifact_is_what_fake_quantization_says(scheme: str) -> None:
    artifact, quantized = compiled(scheme)
    assert artifact.passport.spec == "TOSA-1.0+INT"
    step = artifact.passport.outputs[0].scale
    steps = []
    for seed in range(20, 28):
        found, fake = artifact.run(sample(seed), float_io=True)[0], np.asarray(quantized(sample(seed)))
        steps.append(np.abs(found - fake.reshape(found.shape)) / step)
    # 8-bit inputs brought to 7 bits are ties often, which RESCALE rounds up and PyTorch to even
    assert np.max(steps) < 2.5
    assert np.mean(np.less(steps, 0.5)) > 0.9


@SCHEMES
def test_reference_model_agrees(scheme: str, reference: Run) -> None:
    artifact, _ = compiled(scheme)
    x = np.random.default_rng(0).integers(-128, 128, (1, TOKENS, FEATURES)).astype(np.int8)
    [found] = artifact.run([x], float_io=False)
    [expected] = reference(artifact.graph, [x])
    np.testing.assert_array_equal(found, expected)


def test_one_layer_by_override() -> None:
    """`down` alone: rows are normalised once; the layers before it have one scale."""
    artifact, _ = compiled("8a8w", "down")
    assert artifact.passport.operators["CLZ"] == 1
    with pytest.raises(InputError, match="names no module"):
        compiled("8a8w", "sideways")


def test_layers_of_one_input_normalise_it_once() -> None:
    assert compiled("8a8w-per-token")[0].passport.operators["CLZ"] == 2


def test_training_is_refused() -> None:
    for options in ({"scheme": "8a8w-per-token"}, {"scheme": "16a8w-per-token"}, {"overrides": {"down": "8a8w-per-token"}}):
        with pytest.raises(InputError, match="scales per token are found at run time"):
            tosaic.prepare_qat(model(), sample(0), **options)


@pytest.mark.parametrize(("bits", "steps"), [(8, 128), (16, MOST)])
def test_rows_take_half_of_all_steps_at_least(bits: int, steps: int) -> None:
    """The operator against its definition; a row of zeros stays zero, and unit 0 is plain float."""
    x = torch.tensor([[1.0, -0.4, 0.001], [1.99, 0.7, -0.011], [0.0, 0.0, 0.0], [1e-3, 9e-4, -1e-5]])
    unit, eye = 2.0**-20 * 1.3, torch.eye(3)
    found = per_token_linear(x, eye, None, unit, bits)
    for row, result in zip(x.double(), found.double(), strict=True):
        if not row.any():
            assert not result.any()
            continue
        step = unit * 2.0 ** (np.floor(np.log2(float(row.abs().max()) / unit)) + 1) / steps
        assert steps / 2 <= float(row.abs().max()) / step < steps
        torch.testing.assert_close(result, (row / step).round().clamp(-steps, steps - 1) * step, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(per_token_linear(x, eye, torch.ones(3), 0.0), x + 1)


class Outlier(nn.Module):
    """A feed-forward block in which one token is 2^12 times as large as the others, as the first one is in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(FEATURES, 256, bias=False), nn.Linear(256, FEATURES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.ones(TOKENS, 1)
        rows[0] = 2.0**12
        return x + self.down(self.up(x) * rows)


@pytest.mark.parametrize(
    ("scheme", "scope", "least"), [("8a8w-per-token", "full", 40), ("8a8w-per-token", "linear", 45), ("16a8w", "linear", 45)]
)
def test_rows_beside_an_outlier_are_what_fake_quantization_says(scheme: str, scope: str, least: float) -> None:
    """Each row alone, against float quantize and dequantize; results in float are not rounded again."""
    torch.manual_seed(1)
    ports = {"x": "int32", "output": "int32"} if scope == "full" else {}
    samples = [sample(i) for i in range(8)]
    quantized = tosaic.quantize(Outlier().eval(), samples[0], samples, scheme, scope=scope, ports=ports, bias_correction=False)
    artifact = tosaic.compile(quantized)
    x = sample(21)
    found, fake = np.asarray(artifact.run(x, float_io=True)[0]), np.asarray(quantized(x))
    scores = [sqnr(fake[0, i], found[0, i]) for i in range(TOKENS) if i != 3]
    assert min(scores) > least, scores


@SCHEMES
def test_rows_that_are_stored_coarser_than_they_were_calibrated(scheme: str) -> None:
    """What is left of large sums behind a clamp is a small part of what its type holds, and keeps its size."""

    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 8, bias=False), nn.Linear(8, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).clamp(-0.3, 0.5))

    torch.manual_seed(0)
    data = [torch.randn(2, 9, 16) * 3000 for _ in range(4)]
    quantized = tosaic.quantize(Clamped().eval(), data[0], data, overrides={"b": scheme}, bias_correction=False)
    fake = np.asarray(quantized(data[0]))
    artifact = tosaic.compile(quantized)
    step = artifact.passport.outputs[0].scale
    np.testing.assert_allclose(artifact.run(data[0], float_io=True)[0], fake, atol=1.01 * step, rtol=0)  # of the int8 result


class Queries(nn.Module):
    """A layer whose input is a parameter is a constant itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.queries = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.second(self.queries).t()


@SCHEMES
def test_layers_of_constants(scheme: str) -> None:
    torch.manual_seed(0)
    model, data = Queries().eval(), [torch.randn(6, 8) for _ in range(4)]
    artifact = tosaic.compile(tosaic.quantize(model, data[0], data, scheme))
    with torch.no_grad():
        assert sqnr(model(data[0]), artifact.run(data[0], float_io=True)[0]) > 30
