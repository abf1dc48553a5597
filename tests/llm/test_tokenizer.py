"""Tokenizers: GGUF's give what `transformers` makes of the same file; chat templates; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from tosaic import zoo
from tosaic.errors import InputError
from tosaic.llm.gguf_file import GgufCheckpoint
from tosaic.llm.tokenizer import Tokenizer, from_gguf, has_tokenizer, open_tokenizer, save_tokenizer

TEXTS = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
    "It's 1234.5 and they've 7 cafés\n\n  in  Zürich\t(again)…",
    "def f(x):\n    return x ** 2  # 你好, мир, 🙂\r\n",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n",
    "",
)


def test_gguf_byte_level(smollm2: Tokenizer) -> None:
    path = zoo.smollm2()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = smollm2.encode(text)
        assert ids == theirs.encode(text)
        assert smollm2.decode(ids, special=True) == text
    assert smollm2.end == {theirs.convert_tokens_to_ids("<|im_end|>")}
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert smollm2.chat(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_saved_tokenizer_is_the_same(smollm2: Tokenizer, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    for tokenizer in (smollm2, from_gguf(_sentence_piece())):
        save_tokenizer(tokenizer, tmp_path)
        again = open_tokenizer(tmp_path)
        assert (again.end, again.start, again.template, again.names) == (
            tokenizer.end,
            tokenizer.start,
            tokenizer.template,
            tokenizer.names,
        )
        for text in TEXTS[:4]:
            assert again.encode(text) == tokenizer.encode(text)
            assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    save_tokenizer(smollm2, tmp_path)
    assert open_tokenizer(tmp_path).chat(messages) == smollm2.chat(messages)


def _sentence_piece() -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁helo wrd", "he", "ll", "▁he", "▁hello", "llo", "rl", "ld"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces) - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def test_gguf_sentence_piece() -> None:
    tokenizer = from_gguf(_sentence_piece())
    ids = tokenizer.encode("hello world ü")
    pieces = [tokenizer.model.id_to_token(i) for i in ids]
    # of "rl" and "ld" the one with the better score is merged
    assert pieces == ["<s>", "▁hello", "▁", "w", "o", "rl", "d", "▁", "<0xC3>", "<0xBC>"]
    assert tokenizer.decode(ids) == "hello world ü"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "of kind 't5'; known are gpt2 and llama"),
        ({"tokenizer.ggml.tokens": []}, "has no tokenizer"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}, "the way of 'tekken'"),
    ],
)
def test_unknown_gguf_tokenizers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_gguf({**_sentence_piece(), **change})


def test_of_an_open_gguf_file_nothing_is_read_again(tmp_path: Path) -> None:
    checkpoint = object.__new__(GgufCheckpoint)
    checkpoint.path = tmp_path / "gone.gguf"
    for fields, there in (({}, False), (_sentence_piece(), True)):
        vars(checkpoint)["fields"] = fields
        assert has_tokenizer(checkpoint) == there
    assert open_tokenizer(checkpoint).end == from_gguf(_sentence_piece()).end


def test_folder(tmp_path: Path) -> None:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "<s>": 3, "</s>": 4, "<end>": 5}, "[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "chat_template": "{{ bos_token }}{{ oops() }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("a b") == [3, 0, 1]
    assert tokenizer.encode("a b", start=False) == [0, 1]
    assert tokenizer.end == {4, 5}
    with pytest.raises(InputError, match="chat template fails: 'oops' is undefined"):
        tokenizer.chat([{"role": "user", "content": "a"}])
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    assert open_tokenizer(tmp_path).chat([{"role": "user", "content": "a"}]) == "a</s>"


def test_none_or_broken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer: .*tokenizer\.json does not exist"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="no usable tokenizer"):
        open_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no chat template"):
        from_gguf(_sentence_piece()).chat([])
