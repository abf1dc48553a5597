"""What several files test: a tiny checkpoint, its export, and a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from llm import exported, tiny

from tosaic import zoo
from tosaic.llm.gguf_file import GgufCheckpoint
from tosaic.llm.tokenizer import Tokenizer, from_gguf


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_hugging_face("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported.export(checkpoint, tmp_path_factory.mktemp("export") / "one")


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    return from_gguf(GgufCheckpoint(zoo.smollm2()).fields)
