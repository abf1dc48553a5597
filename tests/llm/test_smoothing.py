"""Smoothing keeps what a decoder computes, and evens out its channels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from llm import tiny
from torch import Tensor, nn

from tosaic.llm.checkpoint import Checkpoint, open_checkpoint
from tosaic.llm.decoder import Decoder, Layer
from tosaic.llm.smoothing import Smoothing, Statistics, observed, smooth, smooth_end

IDS = torch.randint(0, tiny.VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(1))


def logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder(IDS, torch.tensor([0]), torch.tensor([0]), *decoder.empty_caches())[0]


def layer_of(decoder: Decoder, index: int) -> Layer:
    step = decoder.steps[index]
    assert isinstance(step.layer, Layer)
    return step.layer


def statistics_of(decoder: Decoder, index: int) -> Statistics:
    with observed(layer_of(decoder, index)) as statistics:
        logits(decoder)
    return statistics


def spread(maxima: Tensor) -> float:
    """Octaves from the typical channel to the largest."""
    return float((maxima.max() / maxima.median()).log2())


def uneven(checkpoint: Checkpoint) -> Decoder:
    """A decoder with channels of different sizes at every place."""
    decoder, generator = checkpoint.decoder(24, 24), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in decoder.steps.named_parameters():
            if "norm" in name or name.endswith(("up_proj.weight", "v_proj.weight", "k_proj.weight")):
                factors = torch.exp2(2 * torch.randn(parameter.shape[0], generator=generator))
                parameter *= factors if parameter.dim() == 1 else factors[:, None]
    return decoder


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_function_stays(name: str, tmp_path: Path) -> None:
    decoder = uneven(open_checkpoint(tiny.save_hugging_face(name, tmp_path)))
    expected, before = logits(decoder), [p.clone() for p in decoder.parameters()]
    all_statistics = [statistics_of(decoder, index) for index in range(tiny.LAYERS)]
    for index, statistics in enumerate(all_statistics):
        smooth(layer_of(decoder, index), statistics)
    changed = [not torch.equal(p, q) for p, q in zip(before, decoder.parameters(), strict=True)]
    assert sum(changed) >= tiny.LAYERS * 9
    found = logits(decoder)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gemma2"])
def test_statistics_become_those_of_the_smooth_layer(name: str, tmp_path: Path) -> None:
    decoder = uneven(open_checkpoint(tiny.save_hugging_face(name, tmp_path)))
    statistics = statistics_of(decoder, 1)
    smooth(layer_of(decoder, 1), statistics)
    measured = statistics_of(decoder, 1)
    assert statistics.channels.keys() == measured.channels.keys() and len(measured.channels) == 8
    for place, maxima in measured.channels.items():
        torch.testing.assert_close(statistics.channels[place], maxima, rtol=1e-3, atol=1e-5)


def test_channels_are_evened_out(tmp_path: Path) -> None:
    decoder = uneven(open_checkpoint(tiny.save_hugging_face("llama", tmp_path)))
    before = {place: spread(maxima) for place, maxima in statistics_of(decoder, 0).channels.items()}
    smooth(layer_of(decoder, 0), statistics_of(decoder, 0), Smoothing(1.0, 1.0, 1.0, 1.0, 1.0))
    after = {place: spread(maxima) for place, maxima in statistics_of(decoder, 0).channels.items()}
    even = [place for place in before if place not in ("self_attn.o_proj", "queries")]
    assert len(even) == 6
    for place in even:
        assert before[place] > 1.5 and after[place] < 0.05, place
    assert after["self_attn.o_proj"] < before["self_attn.o_proj"] - 1


def test_or_the_weights_are_evened_out(tmp_path: Path) -> None:
    decoder = uneven(open_checkpoint(tiny.save_hugging_face("llama", tmp_path)))
    layer = layer_of(decoder, 0)
    smooth(layer, statistics_of(decoder, 0), Smoothing(0.0, 0.0, 0.0, 0.0, 0.0))
    down = layer.mlp.down_proj.weight
    relative = (down.abs() / down.abs().amax(1, keepdim=True)).amax(0)
    assert spread(relative) < 1


def test_dead_channels(tmp_path: Path) -> None:
    decoder = open_checkpoint(tiny.save_hugging_face("llama", tmp_path)).decoder(24, 24)
    layer = layer_of(decoder, 0)
    with torch.no_grad():
        for linear in (layer.self_attn.v_proj, layer.mlp.up_proj, layer.self_attn.k_proj):
            linear.weight[:4] = 0
        layer.input_layernorm.weight[3] = 0
        nn.init.zeros_(layer.mlp.gate_proj.weight[5])
    expected = logits(decoder)
    smooth(layer, statistics_of(decoder, 0))
    assert all(torch.isfinite(p).all() for p in decoder.parameters())
    torch.testing.assert_close(logits(decoder), expected, atol=1e-4, rtol=1e-4)


def test_hooks_leave(tmp_path: Path) -> None:
    decoder = open_checkpoint(tiny.save_hugging_face("llama", tmp_path)).decoder(24, 24)
    statistics = statistics_of(decoder, 0)
    rows = statistics.powers["mlp.down_proj"]
    logits(decoder)
    assert len(rows) == 1 and rows[0].shape == (24,)


def test_noise_at_eight_bits() -> None:
    """By quantizing; one token that is far larger than the others makes them noisy."""
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(4))
    for factor, least, most in ((1.0, 25, 40), (16.0, 10, 25)):
        x[0] *= factor
        statistics = Statistics()
        for some in x.split(50):
            statistics.see("here", some, powers=True)
        step = 2 * x.abs().max() / 255
        error = (x / step).round() * step - x
        measured = float(10 * torch.log10(x.square().mean(1) / error.square().mean(1)).median())
        assert least < measured < most
        assert statistics.signal_to_noise("here") == pytest.approx(measured, abs=1)
    assert Statistics({"zero": torch.zeros(4)}, {"zero": [torch.zeros(3)]}).signal_to_noise("zero") == math.inf


@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_the_end(name: str, tmp_path: Path) -> None:
    """The head has weights of its own then, also where the embedding had the same."""
    decoder = open_checkpoint(tiny.save_hugging_face(name, tmp_path)).decoder(24, 24)
    with torch.no_grad():
        decoder.end.norm.weight *= torch.exp2(2 * torch.randn(tiny.HIDDEN, generator=torch.Generator().manual_seed(2)))
    seen: list[Tensor] = []
    hook = decoder.end.norm.register_forward_hook(lambda _, __, output: seen.append(output.abs().amax((0, 1))))
    before = logits(decoder)
    smooth_end(decoder.end, seen[0])
    torch.testing.assert_close(logits(decoder), before, atol=1e-4 * float(before.abs().max()), rtol=0)
    hook.remove()
    assert spread(seen[1]) < 0.7 * spread(seen[0])
