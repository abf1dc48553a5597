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
from tosaic.errors import InputError
from tosaic.operators import per_token_linear

TOKENS, FEATURES = 12, 48
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
def compiled(scheme: str, override: str | None = None) -> tuple[Artifact, tosaic.Quantized]:
    overrides = {override: "8a8w-per-token"} if override else {}
    quantized = tosaic.quantize(model(), sample(0), [sample(i) for i in range(8)], scheme, overrides=overrides, bias_correction=False)
    return tosaic.compile(quantized, strict=True), quantized


def row_scores(scheme: str) -> list[float]:
    """SQNR of each row of the artifact against float, without the row that is zero."""
    x = sample(20)
    with torch.no_grad():
        exact = model()(x).numpy()
    found = compiled(scheme)[0].run(x, float_io=True)[0]
    return [sqnr(exact[:, i], found[:, i]) for i in range(TOKENS) if i != 3]


def test_small_rows_keep_their_bits() -> None:
    """At one scale for all rows the smallest vanish; with their own, what a row loses does not depend on the rows beside it."""
    static, per_token = row_scores("8a8w"), row_scores("8a8w-per-token")
    assert min(static) < 3
    assert min(per_token) > 25
    assert max(per_token) - min(per_token) < 6


def test_artifact_is_what_fake_quantization_says() -> None:
    artifact, quantized = compiled("8a8w-per-token")
    assert artifact.passport.spec == "TOSA-1.0+INT"
    step = artifact.passport.outputs[0].scale
    steps = []
    for seed in range(20, 28):
        found, fake = artifact.run(sample(seed), float_io=True)[0], np.asarray(quantized(sample(seed)))
        steps.append(np.abs(found - fake.reshape(found.shape)) / step)
    # 8-bit inputs brought to 7 bits are ties often, which RESCALE rounds up and PyTorch to even
    assert np.max(steps) < 2.5
    assert np.mean(np.less(steps, 0.5)) > 0.9


def test_reference_model_agrees(reference: Run) -> None:
    artifact, _ = compiled("8a8w-per-token")
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
    for options in ({"scheme": "8a8w-per-token"}, {"overrides": {"down": "8a8w-per-token"}}):
        with pytest.raises(InputError, match="scales per token are found at run time"):
            tosaic.prepare_qat(model(), sample(0), **options)


def test_rows_take_64_to_128_steps_each() -> None:
    """The operator against its definition; a row of zeros stays zero, and unit 0 is plain float."""
    x = torch.tensor([[1.0, -0.4, 0.001], [1.99, 0.7, -0.011], [0.0, 0.0, 0.0], [1e-3, 9e-4, -1e-5]])
    unit, eye = 2.0**-20 * 1.3, torch.eye(3)
    found = per_token_linear(x, eye, None, unit)
    for row, result in zip(x.double(), found.double(), strict=True):
        if not row.any():
            assert not result.any()
            continue
        step = unit * 2.0 ** (np.floor(np.log2(float(row.abs().max()) / unit)) - 6)
        assert 64 <= float(row.abs().max()) / step < 128
        torch.testing.assert_close(result, (row / step).round().clamp(-128, 127) * step, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(per_token_linear(x, eye, torch.ones(3), 0.0), x + 1)
