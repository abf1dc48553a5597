"""Sessions: an exported model gives the logits of the decoder it was made of, whatever way the tokens go in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from llm import export_folders, exported, tiny

from tosaic.errors import InputError
from tosaic.llm.session import Session

IDS = np.random.default_rng(0).integers(3, tiny.VOCABULARY, exported.S).tolist()


def _expected(count: int) -> np.ndarray:
    """Float logits of `transformers` behind so many tokens."""
    return tiny.logits("llama", torch.tensor([IDS[:count]]))[0, -1].numpy()


@pytest.mark.parametrize("prompt", [1, 5, exported.P, 11, 2 * exported.P])
def test_prefill_then_steps(folder: Path, prompt: int) -> None:
    session = Session(folder)
    logits = session.prefill(IDS[:prompt])
    np.testing.assert_allclose(logits, _expected(prompt), atol=1e-3)
    for count in range(prompt + 1, prompt + 4):
        logits = session.step(IDS[count - 1])
        np.testing.assert_allclose(logits, _expected(count), atol=1e-3)
    assert (session.position, session.left) == (prompt + 3, exported.S - prompt - 3)


def test_tokens_come_in_parts(folder: Path) -> None:
    """Calls that begin anywhere, and the last positions, where no whole call of prefill fits."""
    session = Session(folder)
    for begin, end in ((0, 3), (3, 14), (14, 29), (29, exported.S)):
        np.testing.assert_allclose(session.prefill(IDS[begin:end]), _expected(end), atol=1e-3)
    session.reset()
    np.testing.assert_allclose(session.prefill(IDS[:4]), _expected(4), atol=1e-3)


def test_what_does_not_fit_is_refused_before_it_runs(folder: Path) -> None:
    session = Session(folder)
    with pytest.raises(InputError, match="longer than the cache: 33 tokens, and there are 32 positions"):
        session.prefill([*IDS, 3])
    assert session.position == 0
    session.prefill(IDS)
    with pytest.raises(InputError, match="1 tokens, and there are 32 positions, of which 32 are taken"):
        session.step(3)
    session.reset()
    for ids, message in (([], "the text is empty"), ([3, 96], "token 96 is not in the vocabulary of tiny, 0..95"), ([-1], "token -1")):
        with pytest.raises(InputError, match=message):
            session.prefill(ids)


def test_programs_that_do_not_fit_the_manifest(folder: Path, tmp_path: Path) -> None:
    changed = json.loads((folder / "llm.json").read_text())
    for file in ("prefill.vgf", "prefill.json", "decode.vgf", "decode.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    for change, message in (
        ({"vocabulary": 97}, r"prefill.vgf: output logits: expected f32\[1, 1, 97\], found f32\[1, 1, 96\]"),
        ({"caches": changed["caches"][:-1]}, "prefill.vgf: input values_1: expected none, found f32"),
        (
            {"caches": [c | {"dtype": "i8", "scale": 0.5} for c in changed["caches"]]},
            "keys_0: expected i8.* with scale 0.5, zero point 0, found f32",
        ),
        ({"prefill": changed["prefill"] | {"tokens": 4}}, r"input ids: expected i32\[1, 4\], found i32\[1, 8\]"),
    ):
        (tmp_path / "llm.json").write_text(json.dumps(changed | change))
        with pytest.raises(InputError, match=message):
            Session(tmp_path)
    with pytest.raises(InputError, match="unknown executor 'gpu'"):
        Session(folder, on="gpu")


@pytest.mark.parametrize(("mode", "spec"), [("vgf_16a8w", export_folders.INT16), ("vgf_8a8w", "")])
@pytest.mark.parametrize("on", ["reference", "vulkan"])
def test_quantized_programs_on_all_executors(mode: str, spec: str, on: str) -> None:
    """Prefill and steps, bit for bit; a step behind prefill gives what prefill of all of them does."""
    made = export_folders.exported("llama", mode, spec)
    ids = IDS[: export_folders.CHUNK + 3]
    first, other, whole = Session(made.folder), Session(made.folder, on), Session(made.folder)
    np.testing.assert_array_equal(other.prefill(ids), first.prefill(ids))
    for token in IDS[len(ids) : len(ids) + 2]:
        expected = first.step(token)
        np.testing.assert_array_equal(other.step(token), expected)
        ids = [*ids, token]
    np.testing.assert_array_equal(whole.prefill(ids), expected)
