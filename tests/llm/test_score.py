"""Perplexity: exports in float score what the float model scores, and what differs is measured as it is defined."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from llm import exported, tiny
from torch import Tensor

from tosaic.artifact import load
from tosaic.errors import InputError
from tosaic.llm.blocks import artifact_model, split
from tosaic.llm.checkpoint import open_checkpoint
from tosaic.llm.manifest import read_manifest
from tosaic.llm.score import cut, float_model, perplexity, score
from tosaic.llm.session import Session
from tosaic.llm.tokenizer import Tokenizer

CHUNK = 20  # which is no whole number of calls of prefill
CHUNKS = torch.from_numpy(np.random.default_rng(0).integers(3, tiny.VOCABULARY, (3, CHUNK)))
TEXT = "".join(chr(32 + i) for i in np.random.default_rng(1).integers(0, 90, 70))


@pytest.fixture(scope="module")
def full(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported.export(checkpoint, tmp_path_factory.mktemp("export") / "full", full_logits=True)


def _all(blocks: Iterator[Tensor]) -> np.ndarray:
    return torch.cat(list(blocks)).numpy()


def _expected() -> np.ndarray:
    return tiny.logits("llama", CHUNKS).reshape(-1, tiny.VOCABULARY).numpy()


def test_float_model(checkpoint: Path) -> None:
    np.testing.assert_allclose(_all(float_model(open_checkpoint(checkpoint))(CHUNKS)), _expected(), atol=1e-3)


@pytest.mark.parametrize("which", ["folder", "full"])
def test_artifacts(which: str, request: pytest.FixtureRequest) -> None:
    found = _all(artifact_model(request.getfixturevalue(which))(CHUNKS))
    np.testing.assert_allclose(found, _expected(), atol=1e-3)


def test_the_two_halves_are_the_whole(folder: Path) -> None:
    """A row through the end is what the whole graph gives of it."""
    session, rows = Session(folder), _all(artifact_model(folder)(CHUNKS[:1]))
    for count in (1, 5, CHUNK):
        session.reset()
        np.testing.assert_allclose(rows[count - 1], session.prefill(CHUNKS[0, :count].tolist()), atol=1e-4)


def test_a_graph_without_the_cut(full: Path) -> None:
    with pytest.raises(InputError, match="not made of one row"):
        split(load(full / read_manifest(full).prefill.file).graph)


def test_perplexity_of_an_export(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    scores = perplexity(folder, TEXT, chunk=CHUNK, progress=lambda *at: seen.append(at))
    assert list(scores) == ["float", "artifacts"]
    chunks = cut(TEXT, exported.tokenizer(), CHUNK)
    assert chunks.shape == (70 // (CHUNK - 1), CHUNK) and (chunks[:, 0] == 1).all()
    loss = torch.nn.functional.cross_entropy(tiny.logits("llama", chunks)[:, :-1].flatten(0, 1), chunks[:, 1:].flatten(), reduction="none")
    want, error = loss.mean().exp().item(), (loss.mean().exp() * loss.std() / math.sqrt(len(loss))).item()
    for made in scores.values():
        assert made.perplexity == pytest.approx(want, rel=1e-4)
        assert made.standard_error == pytest.approx(error, rel=1e-3)
        assert made.tokens == len(loss) and made.seconds > 0
    assert scores["float"].change is None and scores["float"].kl is None
    made = scores["artifacts"]
    assert abs(made.change or 1) < 1e-4 and abs(made.kl or 1) < 1e-5 and made.top1 == 1
    assert seen[0][0] == "layers of the float model" and seen[-1] == ("tokens", chunks.numel(), chunks.numel())


def test_limit_and_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((folder / "llm.json").read_text())
    (tmp_path / "copy" / "llm.json").write_text(json.dumps(manifest | {"checkpoint": str(tmp_path / "gone")}))
    scores = perplexity(tmp_path / "copy", TEXT, chunk=CHUNK, limit=1)
    assert list(scores) == ["artifacts"]
    assert scores["artifacts"].tokens == CHUNK - 1 and scores["artifacts"].kl is None


def _model(logits: Tensor, block: int) -> Iterator[Tensor]:
    yield from logits.split(block)


def test_what_differs() -> None:
    """By definition, and whatever the blocks."""
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(CHUNKS.numel(), tiny.VOCABULARY, generator=generator)
    second = first + torch.randn(first.shape, generator=generator) / 2
    scores = score(CHUNKS, {"float": lambda _: _model(first, 7), "other": lambda _: _model(second, 60), "same": lambda _: _model(first, 1)})
    kept = (torch.arange(len(first)) % CHUNK) != CHUNK - 1
    p, q = first[kept].double().log_softmax(-1), second[kept].double().log_softmax(-1)
    target = CHUNKS[:, 1:].flatten()[:, None]
    worse = p.gather(1, target) - q.gather(1, target)
    made = scores["other"]
    assert made.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    assert made.top1 == (p.argmax(-1) == q.argmax(-1)).double().mean().item() < 1
    assert made.change == pytest.approx(worse.mean().exp().item() - 1, rel=1e-5)
    assert made.change == pytest.approx(made.perplexity / scores["float"].perplexity - 1, rel=1e-9)
    assert made.change_error == pytest.approx((worse.mean().exp() * worse.std() / math.sqrt(len(worse))).item(), rel=1e-5)
    assert scores["same"].change == 0 and scores["same"].kl == 0 and scores["same"].top1 == 1


def test_models_of_different_lengths() -> None:
    logits = torch.zeros(CHUNKS.numel(), 4)
    with pytest.raises(InputError, match="logits of fewer positions"):
        score(CHUNKS % 4, {"float": lambda _: _model(logits, 8), "short": lambda _: _model(logits[:-8], 8)})
    with pytest.raises(InputError, match="logits of 59 positions, expected 60"):
        score(CHUNKS % 4, {"float": lambda _: _model(logits[:-1], 8)})


def test_refusals(folder: Path, smollm2: Tokenizer) -> None:
    with pytest.raises(InputError, match="the text has 5 tokens; a chunk takes 19"):
        perplexity(folder, "short", chunk=CHUNK)
    with pytest.raises(InputError, match="chunks of 33 tokens are longer than the cache: it has 32 positions"):
        perplexity(folder, TEXT, chunk=33)
    with pytest.raises(InputError, match="chunks of 1 tokens predict nothing"):
        perplexity(folder, TEXT, chunk=1)
    with pytest.raises(InputError, match="no such checkpoint"):
        perplexity(folder, TEXT, checkpoint="nowhere", chunk=CHUNK)
    assert cut(TEXT, smollm2, 8).shape[1] == 8  # no token begins a text there
