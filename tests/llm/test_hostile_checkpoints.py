"""Damaged and hostile checkpoints end in one error, without a crash, and in no more memory than the file has, times a constant."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from llm import tiny

from tosaic.errors import InputError
from tosaic.llm.checkpoint import Checkpoint, open_checkpoint
from tosaic.llm.gguf_file import GgufCheckpoint
from tosaic.llm.tokenizer import from_gguf, open_tokenizer

CASES = 200


def _gguf(folder: Path) -> Path:
    return tiny.save_gguf(folder / "x.gguf")


def _safetensors(folder: Path) -> Path:
    return tiny.save_hugging_face("llama", folder) / "model.safetensors"


def _config(folder: Path) -> Path:
    return tiny.save_hugging_face("gemma3", folder) / "config.json"


def _pth(folder: Path) -> Path:
    return tiny.save_meta(folder) / "consolidated.00.pth"


def _use(path: Path) -> Checkpoint:
    checkpoint = open_checkpoint(path if path.suffix == ".gguf" else path.parent)
    checkpoint.decoder(4, 8)
    return checkpoint


def damage(data: bytes, head: int, random: random.Random) -> bytes:
    """Cut off, or with bits, bytes or words of its first `head` bytes replaced."""
    if random.randrange(4) == 0:
        return data[: random.randrange(min(len(data), 2 * head))]
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        size = random.choice((1, 4, 8))
        at = random.randrange(min(head, len(data)) - size)
        flipped = (int.from_bytes(made[at : at + size], "little") ^ 1 << random.randrange(8 * size)).to_bytes(size, "little")
        made[at : at + size] = random.choice((flipped, b"\xff" * size, b"\0" * size, random.randbytes(size)))
    return bytes(made)


@pytest.mark.parametrize(("make", "head"), [(_gguf, 2500), (_safetensors, 3200), (_config, 1500), (_pth, 60000)])
def test_damaged_files(make: Callable[[Path], Path], head: int, tmp_path: Path) -> None:
    file = make(tmp_path)
    whole, source, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(CASES):
        file.unlink()  # the old one may still be mapped
        file.write_bytes(damage(whole, head, source))
        try:
            _use(file)
        except InputError as error:
            refused += 1
            assert str(error).strip()
    assert refused > CASES / 4


def _string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _header(tensors: int, fields: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)


_ARRAY, _UINT8, _STRING = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8, gguf.GGUFValueType.STRING
_NESTED = struct.pack("<IQ", _ARRAY, 1) * 5000 + struct.pack("<IQ", _UINT8, 0)
_ARCHITECTURE = _string(b"general.architecture") + struct.pack("<I", _STRING) + _string(b"llama")
_TENSOR = _string(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 2**40, 2**24, 0, 0)
HOSTILE = {
    "fields without end": _header(0, 2**63),
    "tensors without end": _header(2**64 - 1, 0),
    "a name without end": _header(0, 1) + _string(b"x", 2**63),
    "an array without end": _header(0, 1) + _string(b"x") + struct.pack("<IIQ", _ARRAY, _UINT8, 2**62),
    "texts without end": _header(0, 1) + _string(b"x") + struct.pack("<IIQ", _ARRAY, _STRING, 2**62) + bytes(64),
    "arrays in arrays": _header(0, 1) + _string(b"x") + struct.pack("<I", _ARRAY) + _NESTED,
    "dimensions without end": _header(1, 0) + _string(b"x") + struct.pack("<I", 2**32 - 1),
    "a tensor larger than the file": _header(1, 1) + _ARCHITECTURE + _TENSOR + bytes(100),
    "no architecture": _header(0, 0),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_gguf(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"x\.gguf"):
            open_checkpoint(tmp_path / "x.gguf")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_layers_without_end(tmp_path: Path) -> None:
    file = _gguf(tmp_path)
    key = struct.pack("<Q", 17) + b"llama.block_count" + struct.pack("<I", gguf.GGUFValueType.UINT32)
    whole = file.read_bytes()
    at = whole.index(key) + len(key)
    file.write_bytes(whole[:at] + b"\xff" * 4 + whole[at + 4 :])
    with pytest.raises(InputError, match=r"block_count is 4294967295, expected a whole number from 1 to 1000"):
        GgufCheckpoint(file)


def test_much_out_of_little(tmp_path: Path) -> None:
    """Strides of zero let a small file claim a large tensor."""
    file = _pth(tmp_path)
    state = torch.load(file, weights_only=True)
    state["tok_embeddings.weight"] = torch.zeros(1).expand(2**40, tiny.HIDDEN)
    torch.save(state, file)
    with pytest.raises(InputError, match=r"tensor tok_embeddings\.weight claims more than the file holds"):
        open_checkpoint(tmp_path)


# (changes of config.json, part of the message)
NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole number from 1"),
    ({"num_attention_heads": True}, "num_attention_heads is True"),
    ({"num_attention_heads": 5}, "5 heads of"),
    ({"num_key_value_heads": 3}, "4 heads of 16, 3 of keys"),
    ({"num_key_value_heads": -2}, "num_key_value_heads is -2"),
    ({"head_dim": 7}, "4 heads of 7"),
    ({"hidden_size": "32"}, "hidden_size is '32'"),
    ({"hidden_size": 10**30}, "hidden_size is 1000000"),
    ({"vocab_size": 2**30}, r"embed_tokens\.weight: expected \[1073741824, 32\], found \[96, 32\]"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected a whole number from 1 to 1000"),
    ({"num_hidden_layers": 2.0}, r"num_hidden_layers is 2\.0"),
    ({"intermediate_size": [64]}, r"intermediate_size is \[64\]"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny', expected a positive number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1"),
    ({"final_logit_softcapping": 0}, "final_logit_softcapping is 0"),
    ({"attention_bias": "no"}, "attention_bias is 'no', expected true or false"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
    ({"rope_parameters": 5}, "rope_parameters is 5, expected a mapping"),
    ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "rope_parameters: full_attention has no 'factor'"),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 items for 2 layers"),
    ({"layer_types": "full"}, "layer_types is 'full', expected a list"),
    ({"sliding_window": -1}, "sliding_window is -1"),
    ({"hidden_activation": ["gelu"]}, "activation '.*gelu.*' is not supported"),
    ({"model_type": ["llama"]}, "names no model_type"),
    ({"quantization_config": {"quant_method": "fp8"}}, "(?s)weights that are quantized already.*give the checkpoint that it was made of"),
]


@pytest.mark.parametrize(("changes", "message"), NONSENSE, ids=[str(changes) for changes, _ in NONSENSE])
def test_nonsense_in_a_config(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = _config(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


def test_config_of_brackets(tmp_path: Path) -> None:
    file = _config(tmp_path)
    file.write_text('{"a":' * 100_000)
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        open_checkpoint(tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    """Of quantizers that keep the names and put scales elsewhere."""
    file = _pth(tmp_path)
    state = torch.load(file, weights_only=True)
    state["norm.weight"] = state["norm.weight"].to(torch.int8)
    torch.save(state, file)
    with pytest.raises(InputError, match=r"tensor model\.norm\.weight cannot be read: it holds torch\.int8, expected floating-point"):
        _use(file)


VOCABULARY = ["<unk>", "<s>", "</s>", *"abc"]
_TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": VOCABULARY,
    "tokenizer.ggml.scores": [0.0] * len(VOCABULARY),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.tokens": 7}, "tokens is 7, expected a list"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "its tokens are not text"),
        ({"tokenizer.ggml.scores": [0.0]}, "1 scores for 6 tokens"),
        ({"tokenizer.ggml.scores": None}, "0 scores for 6 tokens"),
        ({"tokenizer.ggml.scores": ["a"] * 6}, "expected a number for each"),
        ({"tokenizer.ggml.bos_token_id": 6}, "bos_token_id is 6, expected a whole number from 0 to 5"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is 1, expected true or false"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a"]}, "tokenizer is damaged"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a z"]}, "tokenizer is damaged"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": 3}, "merges is 3, expected a list"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": ["x"]}, "splits text the way of"),
    ],
    ids=str,
)
def test_damaged_gguf_tokenizers(changes: dict[str, Any], message: str) -> None:
    from_gguf(_TOKENIZER)
    with pytest.raises(InputError, match=message):
        from_gguf(_TOKENIZER | changes)


def test_damage_beside_a_tokenizer(tmp_path: Path) -> None:
    """What cannot be meant counts as not given, or is named."""
    model = {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, "x", null]}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [3, {"name": "other"}], "bos_token": {}}')
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.end == {1} and tokenizer.template is None and tokenizer.start is None
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": "yes"}')
    with pytest.raises(InputError, match=r"tokenizer_config\.json: add_bos_token is 'yes'"):
        open_tokenizer(tmp_path)
