"""The manifest of an export folder: what is written is read, and what does not fit together is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tosaic.errors import InputError
from tosaic.llm.manifest import CacheRecord, Manifest, ProgramRecord, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    programs = {}
    for name, tokens in (("prefill", 8), ("decode", 1)):
        (tmp_path / f"{name}.vgf").write_bytes(name.encode())
        programs[name] = ProgramRecord(file=f"{name}.vgf", sha256=hashlib.sha256(name.encode()).hexdigest(), tokens=tokens)
    (tmp_path / "tokenizer.json").write_text("{}")
    cache = CacheRecord(input="keys_0", output="keys_0_out", dtype="i8", shape=[2, 16, 8], scale=0.1, zero_point=-3)
    made = Manifest(
        name="tiny", architecture="llama", vocabulary=96, max_seq_length=16, caches=[cache], tokenizer="tokenizer.json", **programs
    )
    write_manifest(made, tmp_path)
    assert read_manifest(tmp_path) == made
    return tmp_path


def _change(**fields: Any) -> Callable[[Path], None]:
    """The manifest with other fields."""
    return lambda folder: (path := folder / "llm.json").write_text(json.dumps(json.loads(path.read_text()) | fields)) and None


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "llm.json").unlink(), "has no llm.json"),
        (lambda folder: (folder / "llm.json").write_text("{"), "llm.json is no manifest of this version: Invalid JSON"),
        (_change(format=2), "no manifest of this version: format"),
        (_change(shards=2), "no manifest of this version: shards: Extra inputs"),
        (_change(vocabulary=0), "no manifest of this version: vocabulary"),
        (_change(tokenizer="../tokenizer.json"), "no manifest of this version: tokenizer"),
        (_change(tokenizer=".."), "no manifest of this version: tokenizer"),
        (lambda folder: (folder / "decode.vgf").unlink(), "names decode.vgf, which is missing"),
        (lambda folder: (folder / "prefill.vgf").write_bytes(b"other"), "prefill.vgf is another file than"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "names tokenizer.json, which is missing"),
    ],
)
def test_refusals(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        read_manifest(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no folder"):
        read_manifest(tmp_path / "nowhere")
