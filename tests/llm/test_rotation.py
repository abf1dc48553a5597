"""Rotation keeps what a decoder computes, and leaves no channel that is much larger than the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llm import export_folders as e
from llm import tiny
from networks import sqnr
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.blocks import artifact_model
from tosaic.llm.checkpoint import Checkpoint, open_checkpoint
from tosaic.llm.decoder import Decoder, Layer
from tosaic.llm.export import export
from tosaic.llm.fake_quantized import fake_quantized_model
from tosaic.llm.rotation import BlockRotation, Rotated, rotate
from tosaic.llm.score import float_model
from tosaic.llm.smoothing import observed, smooth, smooth_end

IDS = torch.randint(3, tiny.VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
KINDS = [name for name in tiny.ARCHITECTURES if not name.startswith("gemma")]
_OUTLIER = 5  # of the channels
_PLACES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


class Uneven(Checkpoint):
    """Another checkpoint with norms whose weights differ, and a channel far larger than the others of what enters linear layers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.given = open_checkpoint(path)
        self.config = self.given.config

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.given.shape(name)

    def _read(self, name: str) -> Tensor:
        tensor = self.given._read(name).clone()
        if name.endswith("norm.weight"):
            tensor *= torch.exp2(2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
        elif name.endswith("embed_tokens.weight"):
            tensor[:, _OUTLIER] *= 100
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[_OUTLIER] *= 30
        elif name.endswith(("v_proj.weight", "up_proj.weight")):
            size = self.config.head_dim if "v_proj" in name else self.config.ffn
            tensor.unflatten(0, (-1, size))[:, _OUTLIER] *= 50
        return tensor


def logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder(IDS[:1], torch.tensor([0]), torch.tensor([0]), *decoder.empty_caches())[0]


@pytest.mark.parametrize("size", [1, 2, 12, 32, 36, 80, 576])
def test_the_basis(size: int) -> None:
    matrix = rotate(torch.eye(size))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    assert matrix.abs().max() * size**0.5 < 1.42
    assert size < 12 or 0.25 < (matrix < 0).double().mean() < 0.75
    rows = torch.randn(3, 4, size, generator=torch.Generator().manual_seed(0)).transpose(0, 1)  # not contiguous
    torch.testing.assert_close(rotate(rows), rows.double() @ matrix)


def test_what_is_rotated_as_the_model_runs() -> None:
    """int8 holds the matrix, and it is its own inverse."""
    for channels, size in ((64, 64), (1536, 64), (48, 16), (7, 1)):
        rotation = BlockRotation(channels)
        assert rotation.hadamard.weight.shape == (size, size) and len(rotation.hadamard.weight.abs().unique()) == 1
        x = torch.randn(2, 3, channels, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(rotation(rotation(x)), x, atol=1e-5, rtol=0)
            assert size == 1 or not torch.allclose(rotation(x), x, atol=0.1)


@pytest.mark.parametrize("name", KINDS)
def test_the_function_stays(name: str) -> None:
    """By itself, and smoothed afterwards, as an export does it."""
    given = Uneven(e.checkpoint(name))
    expected, decoder = logits(given.decoder(20, 20)), Rotated(given).decoder(20, 20)
    bound = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(logits(decoder), expected, atol=bound, rtol=0)
    for step in decoder.steps:
        assert isinstance(step.layer, Layer)
        with observed(step.layer) as statistics:
            logits(decoder)
        smooth(step.layer, statistics)
    smooth_end(decoder.end, torch.rand(tiny.HIDDEN, generator=torch.Generator().manual_seed(3)) + 0.1)
    torch.testing.assert_close(logits(decoder), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3"])
def test_no_channel_is_much_larger_than_the_others(name: str) -> None:
    given = Uneven(e.checkpoint(name))
    before, after = (_spreads(c.decoder(20, 20)) for c in (given, Rotated(given)))
    for place in before:
        assert before[place] > 4 * after[place] and after[place] < 4, (place, before[place], after[place])


def _spreads(decoder: Decoder) -> dict[str, float]:
    """How much larger than the median the largest channel is: of the last layer's input, and of what is multiplied there."""
    seen: dict[str, float] = {}

    def see(place: str, x: Tensor) -> None:
        maxima = x.abs().amax((0, 1))
        seen[place] = float(maxima.max() / maxima.median())

    layer = decoder.steps[-1].layer
    assert isinstance(layer, Layer)
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: see("stream", inputs[0]))]
    for place in _PLACES:
        hooks.append(layer.get_submodule(place).register_forward_pre_hook(lambda _, inputs, place=place: see(place, inputs[0])))
    logits(decoder)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_what_is_normalised_behind_is_refused(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(e.checkpoint(name))
    with pytest.raises(InputError, match=f"(?s){checkpoint.config.architecture} cannot be rotated.*--rotation"):
        export(checkpoint, e.settings("vgf_8a8w", rotation=True), e.tokenizer(), e.TEXT, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "rotation", "name", "rotates"),
    [
        ("vgf_8a8w", None, "llama", True),
        ("vgf_8a8w", None, "gemma2", False),
        ("vgf_8a8w", False, "llama", False),
        ("vgf_16a8w", None, "llama", False),
        ("vgf_16a8w", True, "llama", True),
        (None, None, "llama", False),
    ],
)
def test_what_is_rotated(mode: str | None, rotation: bool | None, name: str, rotates: bool) -> None:
    config = open_checkpoint(e.checkpoint(name)).config
    assert e.settings(mode, rotation=rotation).rotates(config) == rotates


def test_exported() -> None:
    """What the artifacts compute is near to the float model, and nearer to the fake-quantized model."""
    made = e.exported("llama-tied", "vgf_8a8w")
    assert made.manifest.quantization["rotation"] is True
    checkpoint = open_checkpoint(e.checkpoint("llama-tied"))
    fake_quantized = fake_quantized_model(checkpoint, made.manifest, e.tokenizer(), e.TEXT)
    real, fake, found = (
        torch.cat(list(model(IDS))).numpy() for model in (float_model(checkpoint), fake_quantized, artifact_model(made.folder))
    )
    assert sqnr(real, found) > 18
    assert sqnr(fake, found) > sqnr(real, found) + 6
