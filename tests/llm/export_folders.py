"""Tiny decoders, exported: what tests of sessions, scores and the command line start from."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import tokenizers
from llm import tiny
from tokenizers import models, pre_tokenizers

from tosaic.artifact import Artifact
from tosaic.llm.checkpoint import open_checkpoint
from tosaic.llm.export import Exported, export
from tosaic.llm.settings import Settings
from tosaic.llm.tokenizer import Tokenizer

INT16 = "TOSA-1.0+INT+int16"
TEXT = "The quick brown fox jumps over the lazy dog; so do we all, now and then. " * 12
LENGTH, CHUNK = 32, 8


def tokenizer() -> Tokenizer:
    """One token for each printable character."""
    known = {"<pad>": 0, "<s>": 1, "</s>": 2, **{chr(32 + i): 3 + i for i in range(tiny.VOCABULARY - 3)}}
    model = tokenizers.Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return Tokenizer(model, frozenset({2}))


def settings(mode: str | None, **options: object) -> Settings:
    """Small ones."""
    sizes = {"max_seq_length": LENGTH, "prefill_chunk": CHUNK, "calibration_seq_length": LENGTH, "calibration_limit": 4}
    return Settings(mode, **{**sizes, **options})  # type: ignore[arg-type]


@functools.cache
def checkpoint(name: str) -> Path:
    """A folder as `transformers` writes it, one for each process."""
    return tiny.save_hugging_face(name, Path(tempfile.mkdtemp()))


@functools.cache
def exported(name: str, mode: str | None, spec: str = "", **options: object) -> Exported:
    """An export folder, one for each process."""
    folder = Path(tempfile.mkdtemp())
    return export(open_checkpoint(checkpoint(name)), settings(mode, spec=spec, **options), tokenizer(), TEXT, folder)


class Caches:
    """A program run by hand: stored values in, stored values out, caches kept."""

    def __init__(self, folder: Exported) -> None:
        self.records = folder.manifest.caches
        types = {"i8": np.int8, "i16": np.int16, "f32": np.float32}
        self.arrays = [np.full(c.shape, c.zero_point or 0, types[c.dtype]) for c in self.records]

    def inputs(self, program: Artifact, ids: np.ndarray, position: int) -> list[np.ndarray]:
        """In the order of the program's; logits of the last position are wanted."""
        numbers = {"ids": ids, "position": np.array([position]), "last": np.array([ids.shape[1] - 1])}
        feed = {name: array.astype(np.int32) for name, array in numbers.items()}
        feed |= {c.input: array for c, array in zip(self.records, self.arrays, strict=True)}
        return [feed[p.name] for p in program.passport.inputs]

    def call(self, program: Artifact, ids: np.ndarray, position: int) -> np.ndarray:
        """Logits as stored."""
        logits, *self.arrays = program.run(self.inputs(program, ids, position), float_io=False)
        return logits
