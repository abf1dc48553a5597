"""Generation: greedy text is what `transformers` would say, samples follow their distribution, text streams in whole characters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llm import exported, tiny

from tosaic.errors import InputError
from tosaic.llm.generate import Generation, Sampling, Stream, generate
from tosaic.llm.session import Session
from tosaic.llm.tokenizer import Tokenizer, from_gguf

PROMPT = "Once upon"


def _greedy(prompt: list[int], count: int) -> list[int]:
    """What the float model says, token by token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(tiny.logits("llama", torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def _ending_at(folder: Path, copy: Path, token: int) -> Path:
    """The export with another token that ends the text."""
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "llm.json").read_text())
    (copy / "llm.json").write_text(json.dumps(manifest | {"end_tokens": [token]}))
    return copy


def test_greedy(folder: Path, tmp_path: Path) -> None:
    tokenizer = exported.tokenizer()
    prompt = tokenizer.encode(PROMPT)
    assert prompt[0] == tokenizer.start
    expected = _greedy(prompt, 12)
    pieces: list[str] = []
    made = generate(folder, PROMPT, raw=True, max_new_tokens=12, write=pieces.append)
    assert made.ids == expected and made.stopped == "length"
    assert (made.prompt_tokens, made.steps) == (len(prompt), 11)
    assert made.text == "".join(pieces) == tokenizer.decode(expected) and len(pieces) > 1
    assert made.prefill_speed > 0 and made.decode_speed > 0
    end = expected[5]
    assert end not in expected[:5]
    made = generate(_ending_at(folder, tmp_path / "copy", end), PROMPT, raw=True, max_new_tokens=12)
    assert made.ids == expected[:5] and made.stopped == "end"


def test_until_the_caches_are_full(folder: Path) -> None:
    made = generate(folder, "a long prompt, it is, so long", raw=True)
    assert made.stopped == "cache"
    assert made.prompt_tokens + made.steps == exported.S
    assert len(made.ids) == made.steps + 1  # the last one is said, and not taken in


def test_chat(folder: Path) -> None:
    tokenizer = exported.tokenizer()
    prompt = tokenizer.encode("s:Be kinda:", start=False)
    asked = tokenizer.encode("s:Beu:Hi?a:", start=False)
    assert len(prompt) == len(asked)
    made = generate(folder, "Hi?", system="Be", max_new_tokens=6)
    assert made.ids == _greedy(asked, 6) and made.prompt_tokens == len(asked)


def test_a_session_begins_anew(folder: Path) -> None:
    session = Session(folder)
    first, second = (generate(session, PROMPT, raw=True, max_new_tokens=4) for _ in range(2))
    assert first.ids == second.ids


def test_seeds(folder: Path) -> None:
    session = Session(folder)

    def text(seed: int | None, **options: Any) -> str:
        return generate(session, PROMPT, raw=True, max_new_tokens=16, sampling=Sampling(2.0, seed=seed, **options)).text

    assert text(1) == text(1) != text(2)
    assert text(None) != text(None)
    assert text(1, top_k=1) == generate(session, PROMPT, raw=True, max_new_tokens=16).text


LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1e-6}, [0, 1, 0, 0, 0]),
        ({"temperature": 1}, [0.05, 0.4, 0.1, 0.3, 0.15]),
        ({"temperature": 0.5}, [0.0025, 0.16, 0.01, 0.09, 0.0225]),
        ({"temperature": 1, "top_k": 2}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1, "top_p": 0.69}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1, "top_p": 0.71}, [0, 0.4, 0, 0.3, 0.15]),
        ({"temperature": 1, "top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"temperature": 1, "top_k": 3, "top_p": 0.6}, [0, 0.4, 0, 0.3, 0]),
    ],
)
def test_samples_follow_their_distribution(options: dict[str, Any], expected: list[float]) -> None:
    sampling = Sampling(**options, seed=0)
    generator, count = sampling.generator(), 4000
    found = np.bincount([sampling.choose(LOGITS, generator) for _ in range(count)], minlength=len(expected)) / count
    shares = np.array(expected) / sum(expected)
    assert (np.abs(found - shares) <= 4 * np.sqrt(shares * (1 - shares) / count)).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top-k is 0"),
        ({"top_p": 0}, "top-p is 0"),
        ({"top_p": 1.5}, "top-p is 1.5"),
    ],
)
def test_sampling_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**options)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max-new-tokens is 0"):
        generate(folder, PROMPT, max_new_tokens=0)
    with pytest.raises(InputError, match="a raw prompt has no system message"):
        generate(folder, PROMPT, raw=True, system="Be")
    with pytest.raises(InputError, match="sequence longer than the cache"):
        generate(folder, "x" * 40, raw=True)
    shutil.copytree(folder, tmp_path / "bare")
    manifest = json.loads((folder / "llm.json").read_text())
    (tmp_path / "bare" / "llm.json").write_text(json.dumps(manifest | {"tokenizer": None}))
    with pytest.raises(InputError, match="has no tokenizer"):
        generate(tmp_path / "bare", PROMPT)


@pytest.mark.parametrize("text", ["Zürich 你好 🙂🙂 мир\n", "plain", " leading and trailing ", "🙂"])
def test_streams_whole_characters(smollm2: Tokenizer, text: str) -> None:
    stream, ids = Stream(smollm2), smollm2.encode(text)
    pieces = [stream.add(i) for i in ids]
    assert "".join(pieces) == text and stream.end() == ""
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert len([p for p in pieces if p]) > 1 or len(text) < 6  # it comes as it is said


def test_what_is_held_back_comes_in_the_end(smollm2: Tokenizer) -> None:
    stream, ids = Stream(smollm2), smollm2.encode("ab🙂")
    assert len(ids) > 2
    pieces = [stream.add(i) for i in ids[:-1]]
    assert "".join(pieces) == "ab" and stream.end() == "\N{REPLACEMENT CHARACTER}"


def test_words_of_sentence_piece_keep_their_blanks() -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁ab"]
    tokenizer = from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1, 1],
            "tokenizer.ggml.scores": [0.0] * len(pieces),
        }
    )
    stream, ids = Stream(tokenizer), tokenizer.encode("a b ü b")
    assert "".join(map(stream.add, ids)) + stream.end() == "a b ü b"


def test_speed_of_no_step() -> None:
    assert Generation().decode_speed == 0
