"""Checkpoints of every architecture and format: our decoder's logits are those of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from llm import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.checkpoint import Checkpoint, open_checkpoint

IDS = torch.randint(0, tiny.VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(1))


def ours(checkpoint: Checkpoint, chunk: int = 24) -> Tensor:
    """Logits of all tokens, fed in chunks through the caches."""
    decoder = checkpoint.decoder(chunk, 40)
    caches, parts = list(decoder.empty_caches()), []
    with torch.no_grad():
        for start in range(0, IDS.shape[1], chunk):
            part, *caches = decoder(IDS[:, start : start + chunk], torch.tensor([start]), torch.tensor([0]), *caches)
            parts.append(part)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_architectures(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.save_hugging_face(name, tmp_path))
    expected = tiny.logits(name, IDS)
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours(checkpoint), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 8])
def test_chunks_continue_one_another(chunk: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.save_hugging_face("qwen3", tmp_path))
    torch.testing.assert_close(ours(checkpoint, chunk), tiny.logits("qwen3", IDS), atol=1e-4, rtol=0)


def test_logits_of_one_position(tmp_path: Path) -> None:
    """The last chunk may be padded: what lies behind the position that is asked for does not matter."""
    decoder = open_checkpoint(tiny.save_hugging_face("gemma2", tmp_path)).decoder(32, 32, one=True)
    padded = torch.cat((IDS, torch.full((1, 8), 7)), 1)
    with torch.no_grad():
        found = decoder(padded, torch.tensor([0]), torch.tensor([23]), *decoder.empty_caches())[0]
    torch.testing.assert_close(found, tiny.logits("gemma2", IDS)[:, -1:], atol=1e-4, rtol=0)


def test_shards_and_a_single_file(tmp_path: Path) -> None:
    sharded = tiny.save_hugging_face("llama", tmp_path / "sharded", shard="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    single = tiny.save_hugging_face("llama", tmp_path / "single") / "model.safetensors"
    expected = tiny.logits("llama", IDS)
    for path in (sharded, single):
        torch.testing.assert_close(ours(open_checkpoint(path)), expected, atol=1e-4, rtol=0)


def test_meta(tmp_path: Path) -> None:
    torch.testing.assert_close(ours(open_checkpoint(tiny.save_meta(tmp_path))), tiny.logits("llama", IDS), atol=1e-4, rtol=0)


def test_meta_in_two_places(tmp_path: Path) -> None:
    folder = tiny.save_meta(tmp_path / "weights")
    params = (folder / "params.json").rename(tmp_path / "other.json")
    torch.testing.assert_close(ours(open_checkpoint(folder / "consolidated.00.pth", params)), tiny.logits("llama", IDS), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match=r"params\.json: No such file"):
        open_checkpoint(folder / "consolidated.00.pth")
    with pytest.raises(InputError, match=r"params\.json belongs to \.pth files, and x\.gguf is none"):
        open_checkpoint(tiny.save_gguf(tmp_path / "x.gguf"), params)


def test_gguf(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.save_gguf(tmp_path / "x.gguf"))
    torch.testing.assert_close(ours(checkpoint), tiny.logits("llama", IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0"])
def test_gguf_quantized(kind: str, tmp_path: Path) -> None:
    """Each tensor is what the file's type can hold of it, in our order of rows."""
    quantized = gguf.GGMLQuantizationType[kind]
    checkpoint = open_checkpoint(tiny.save_gguf(tmp_path / "x.gguf", quantized))
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        weight = tiny.model("llama").state_dict()[name]
        expected = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), quantized), quantized))
        assert not torch.equal(expected, weight)
        torch.testing.assert_close(checkpoint.tensor(name), expected, atol=0, rtol=0)


def _edit(file: Path, **changes: object) -> None:
    config = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    file.write_text(json.dumps(config))


def test_missing_and_misshapen_tensors_are_named_at_once(tmp_path: Path) -> None:
    tiny.save_hugging_face("llama", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    state["model.norm.weight"] = torch.ones(7)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"(?s)layers\.1\.mlp\.up_proj\.weight: expected \[64, 32\], found none.*norm\.weight.*found \[7\]"
    ):
        open_checkpoint(tmp_path)


def test_infinite_weights(tmp_path: Path) -> None:
    tiny.save_hugging_face("llama", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinite"):
        open_checkpoint(tmp_path).step(1, 1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "(?s)unknown architecture .lama.*did you mean llama"),
        ({"model_type": "mamba"}, "(?s)unknown architecture .mamba.*known are llama"),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"num_attention_heads": 3}, "3 heads of 8, 2 of keys"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, expected a whole number from 1 to 1000"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rotary embedding 'yarn' is not supported"),
    ],
)
def test_bad_configs(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    tiny.save_hugging_face("llama", tmp_path)
    _edit(tmp_path / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 30, 300, 5000])
def test_truncated_files(keep: int, tmp_path: Path) -> None:
    file = tiny.save_gguf(tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.gguf"):
        open_checkpoint(file)
    tiny.save_hugging_face("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)
    file = tiny.save_meta(tmp_path / "meta") / "consolidated.00.pth"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"consolidated\.00\.pth"):
        open_checkpoint(file.parent)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"without config\.json or params\.json"):
        open_checkpoint(tmp_path)
    tiny.save_hugging_face("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"(?s)only pickled ones.*safe_serialization"):
        open_checkpoint(tmp_path)


def test_sequences_that_do_not_fit(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.save_hugging_face("gemma3", tmp_path))
    with pytest.raises(InputError, match="sequences of 65 tokens are longer than the model's context, 64"):
        checkpoint.config.check_length(65)
    _edit(tmp_path / "config.json", sliding_window=16)
    with pytest.raises(InputError, match="longer than the window of local attention, 16"):
        open_checkpoint(tmp_path).config.check_length(32)
