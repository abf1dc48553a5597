"""Perplexity of language models on a text, and how far each is from the float model.

A model is a function of chunks of token ids that gives logits in blocks of positions. All models advance together, so that no more
than one block of logits of each is in memory, and what is said of two models is said of the same tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.blocks import artifact_model
from tosaic.llm.chain import Progress
from tosaic.llm.checkpoint import Checkpoint, open_checkpoint
from tosaic.llm.fake_quantized import fake_quantized_model
from tosaic.llm.manifest import read_manifest
from tosaic.llm.session import check_ids
from tosaic.llm.tokenizer import Tokenizer, open_tokenizer

# int64 [N,C], each chunk from an empty cache -> logits float32 [n,V] of the positions in order, N C in all, n as it likes
Model = Callable[[Tensor], Iterator[Tensor]]

_BLOCK = 64  # positions of which the float model gives logits at once


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of a token.
        standard_error: of the perplexity, from the spread over tokens.
        tokens: how many were predicted: all of a chunk but its first.
        seconds: that the model took.
        change: perplexity over that of the float model, less 1; None (so for all that follow): there is none to compare with.
        change_error: standard error of `change`, from the spread of the differences over tokens: what differs between models, and
            not what differs between texts.
        kl: mean Kullback-Leibler divergence from the float model's distribution, in nats.
        top1: share of positions where both find the same token the most likely.
    """

    perplexity: float
    standard_error: float
    tokens: int
    seconds: float
    change: float | None = None
    change_error: float | None = None
    kl: float | None = None
    top1: float | None = None


def perplexity(
    folder: Path | str,
    text: str,
    *,
    checkpoint: Checkpoint | Path | str | None = None,
    calibration_text: str | None = None,
    chunk: int = 512,
    limit: int | None = None,
    on: str = "simulator",
    progress: Progress | None = None,
) -> dict[str, Score]:
    """Score an export on a text, beside the float model that it was made of.

    Args:
        folder: of the export.
        checkpoint: of the float model; None: the one that the manifest names, if it is still there.
        calibration_text: that calibrated the export; with it, the quantized model is scored as PyTorch has it, before it was compiled.
        chunk: tokens of a chunk; each begins with an empty cache.
        limit: score so many chunks at most.
        on: executor of the artifacts.
        progress: called with what is being done, how much is done, and how much there is.

    Returns:
        Scores of "float" (where there is a checkpoint), of "fake-quantized" (where there is `calibration_text`), and of "artifacts".

    Raises:
        InputError: no export, no tokenizer, a text shorter than a chunk, a chunk longer than the caches, or another vocabulary;
            `calibration_text` without a checkpoint, or one that did not calibrate the export.
        ExecuteError: the executor is missing or failed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if chunk > manifest.max_seq_length:
        remedy = f"use --chunk {manifest.max_seq_length}, or export with a larger --max-seq-length"
        raise InputError(f"chunks of {chunk} tokens are longer than the cache: it has {manifest.max_seq_length} positions", remedy=remedy)
    if checkpoint is None and manifest.checkpoint and Path(manifest.checkpoint).exists():
        checkpoint = manifest.checkpoint
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    if checkpoint is not None and checkpoint.config.vocabulary != manifest.vocabulary:
        found = f"{checkpoint.path} has a vocabulary of {checkpoint.config.vocabulary}"
        raise InputError(f"{found}, {folder} one of {manifest.vocabulary}", remedy="give the checkpoint that was exported")
    if manifest.tokenizer is None:
        raise InputError(f"{folder} has no tokenizer", remedy="export with --tokenizer")
    tokenizer = open_tokenizer(folder / manifest.tokenizer)
    chunks = cut(text, tokenizer, chunk, limit)
    check_ids([int(chunks.max())], manifest)
    models: dict[str, Model] = {}
    if checkpoint is not None:
        models["float"] = float_model(checkpoint, progress)
    if calibration_text is not None:
        if checkpoint is None:
            raise InputError("the fake-quantized model is made of the checkpoint, which is not there", remedy="give --checkpoint")
        models["fake-quantized"] = fake_quantized_model(checkpoint, manifest, tokenizer, calibration_text, progress)
    return score(chunks, {**models, "artifacts": artifact_model(folder, on)}, progress)


def cut(text: str, tokenizer: Tokenizer, chunk: int = 512, limit: int | None = None) -> Tensor:
    """A text as chunks of token ids, int64 [N,C], each behind the token that begins a text, where the tokenizer has one; what is left
    over is left out.

    Raises:
        InputError: the text has not as many tokens as one chunk.
    """
    front = tokenizer.encode("")[:1]
    ids, wanted = tokenizer.encode(text, start=False), chunk - len(front)
    if wanted < 1 or chunk < 2:
        raise InputError(f"chunks of {chunk} tokens predict nothing", remedy="use --chunk 512")
    if len(ids) < wanted:
        raise InputError(
            f"the text has {len(ids)} tokens; a chunk takes {wanted}", remedy=f"give a longer text, or --chunk {max(2, len(ids))}"
        )
    count = min(len(ids) // wanted, limit or len(ids))
    body = torch.tensor(ids[: count * wanted]).view(count, wanted)
    return torch.cat((torch.tensor(front, dtype=torch.int64).expand(count, -1), body), 1)


def float_model(checkpoint: Checkpoint, progress: Progress | None = None) -> Model:
    """The model in float32, all chunks through one layer after the other: weights of one layer are in memory at a time."""

    @torch.inference_mode()
    def hidden(chunks: Tensor) -> Tensor:
        config, (_, length) = checkpoint.config, chunks.shape
        config.check_length(length)
        cache = torch.zeros(config.kv_heads, length, config.head_dim)
        start, position = checkpoint.start(), torch.zeros(1, dtype=torch.int64)
        x = [start(ids[None]) for ids in chunks]
        del start
        for index in range(config.layers):
            if progress is not None:
                progress("layers of the float model", index, config.layers)
            step = checkpoint.step(index, length, length)
            x = [step(each, position, cache, cache)[0] for each in x]
        return torch.cat(x, 1)

    def model(chunks: Tensor) -> Iterator[Tensor]:
        x, end, last = hidden(chunks), checkpoint.end(one=False), torch.zeros(1, dtype=torch.int64)
        for block in x.split(_BLOCK, 1):
            with torch.inference_mode():
                logits = end(block, last)[0]
            yield logits

    return model


def score(chunks: Tensor, models: Mapping[str, Model], progress: Progress | None = None) -> dict[str, Score]:
    """Score models on the same chunks; the first is what the others are compared with, if its name is "float".

    Args:
        chunks: int64 [N,C].
        progress: called with "tokens", how many are scored, and how many there are.
    """
    count, length = chunks.shape
    following = chunks.roll(-1, 1).reshape(-1)  # the last of each chunk has none, and is left out below
    streams = [_Timed(model(chunks)) for model in models.values()]
    reference = next(iter(models)) == "float"
    losses: list[list[Tensor]] = [[] for _ in streams]
    apart: list[list[Tensor]] = [[] for _ in streams]
    agree: list[list[Tensor]] = [[] for _ in streams]
    done = 0
    for blocks in _aligned(streams):
        at = torch.arange(done, done + len(blocks[0]))
        at = at[at % length != length - 1]
        first: Tensor | None = None
        for i, block in enumerate(blocks):
            likely = block[at - done].float().log_softmax(-1)
            losses[i].append(-likely.gather(1, following[at, None])[:, 0].double())
            if first is None:
                first = likely
            elif reference:
                apart[i].append((first.exp() * (first - likely)).sum(-1).double())
                agree[i].append(first.argmax(-1) == likely.argmax(-1))
        done += len(blocks[0])
        if progress is not None:
            progress("tokens", done, count * length)
    if done != count * length:
        raise InputError(f"a model gave logits of {done} positions, expected {count * length}")
    found, base = {}, torch.cat(losses[0])
    for i, (name, stream) in enumerate(zip(models, streams, strict=True)):
        loss = torch.cat(losses[i])
        value, error = _perplexity(loss)
        made = Score(value, error, len(loss), stream.seconds)
        if reference and i:
            ratio, ratio_error = _perplexity(loss - base)
            kl, top1 = float(torch.cat(apart[i]).mean()), float(torch.cat(agree[i]).double().mean())
            made = Score(value, error, len(loss), stream.seconds, ratio - 1, ratio_error, kl, top1)
        found[name] = made
    return found


def _perplexity(loss: Tensor) -> tuple[float, float]:
    """exp of the mean, and its standard error to first order."""
    value = math.exp(float(loss.mean()))
    return value, value * float(loss.std()) / math.sqrt(len(loss)) if len(loss) > 1 else math.nan


class _Timed:
    """An iterator, and the seconds spent in it."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        self._blocks, self.seconds = blocks, 0.0

    def next(self) -> Tensor | None:
        start = time.perf_counter()
        block = next(self._blocks, None)
        self.seconds += time.perf_counter() - start
        return block


def _aligned(streams: Sequence[_Timed]) -> Iterator[list[Tensor]]:
    """Blocks of the same positions, whatever the borders that each stream has."""
    held: list[Tensor | None] = [None] * len(streams)
    while True:
        for i, stream in enumerate(streams):
            if held[i] is None:
                held[i] = stream.next()
        blocks = [block for block in held if block is not None]
        if not blocks:
            return
        if len(blocks) < len(streams):
            raise InputError("one model gave logits of fewer positions than another")
        size = min(map(len, blocks))
        yield [block[:size] for block in blocks]
        held = [block[size:] if len(block) > size else None for block in blocks]
