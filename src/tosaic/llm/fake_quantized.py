"""An export as it was before it was compiled: quantize and dequantize operators around float arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.chain import Progress, Streams, calibrations, digest_of, samples_of, through
from tosaic.llm.checkpoint import Checkpoint
from tosaic.llm.decoder import End
from tosaic.llm.manifest import Manifest
from tosaic.llm.parts import Variant, quantize_part
from tosaic.llm.settings import Settings
from tosaic.llm.tokenizer import Tokenizer


def fake_quantized_model(
    checkpoint: Checkpoint, manifest: Manifest, tokenizer: Tokenizer, text: str, progress: Progress | None = None
) -> Callable[[Tensor], Iterator[Tensor]]:
    """The quantized model of an export as PyTorch computes it, as a model that can be scored (see `tosaic.llm.score`).

    It is calibrated and quantized once more, one part at a time.

    Args:
        checkpoint, text: that the export was made from.

    Raises:
        InputError: nothing was quantized, or the text is not what calibrated the export.
    """
    known = {field.name for field in fields(Settings)}
    settings = Settings(
        **{k: v for k, v in manifest.quantization.items() if k in known}, max_seq_length=manifest.max_seq_length, full_logits=True
    )
    settings.check()
    if settings.mode is None:
        raise InputError(f"{manifest.name} was exported in float: it has no fake-quantized model", remedy="leave out --calibration-text")
    samples = samples_of(settings, tokenizer, text, checkpoint.config.vocabulary)
    if digest_of(samples) != manifest.calibration.get("sha256"):
        raise InputError("--calibration-text is not the text that calibrated the export", remedy="give that one")

    def model(chunks: Tensor) -> Iterator[Tensor]:
        length = chunks.shape[1]
        whole = -(-length // settings.prefill_chunk) * settings.prefill_chunk
        scored = torch.nn.functional.pad(chunks, (0, whole - length)).numpy()

        def told(_: str, number: int) -> None:
            if progress is not None:
                progress("parts of the fake-quantized model", number, checkpoint.config.layers + 2)

        for part, choice, calibration in calibrations(checkpoint, settings, samples, Streams(), told):
            quantized = quantize_part(part, choice, settings.spec, calibration)
            variant = Variant(quantized.module, part.calibrated.inputs)
            if isinstance(part.calibrated.module, End):
                yield from _logits(variant, scored, length)
            else:
                found = np.empty((*scored.shape[:2], checkpoint.config.hidden), np.float32)
                for _ in through(variant, scored, found):
                    pass
                scored = found
            del part, calibration, quantized, variant

    return model


@torch.no_grad()
def _logits(end: Variant, stream: np.ndarray, length: int) -> Iterator[Tensor]:
    """Of the first `length` positions of each sequence."""
    size = end.inputs[0].shape[1]
    for sequence in stream:
        for at in range(0, length, size):
            block = torch.from_numpy(sequence[None, at : at + size])
            yield end.module(block)[0, : length - at]
