"""The fake-quantized model of an export: what its artifacts compute, but for their last roundings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from llm import export_folders as folders
from llm import tiny
from networks import sqnr
from typer.testing import CliRunner

from tosaic.cli.main import app
from tosaic.errors import InputError
from tosaic.llm.blocks import artifact_model
from tosaic.llm.checkpoint import open_checkpoint
from tosaic.llm.fake_quantized import fake_quantized_model
from tosaic.llm.manifest import Manifest
from tosaic.llm.score import float_model, perplexity

CHUNKS = torch.from_numpy(np.random.default_rng(3).integers(3, tiny.VOCABULARY, (2, 20)))  # no whole number of blocks


def _fake(manifest: Manifest, text: str = folders.TEXT) -> np.ndarray:
    model = fake_quantized_model(open_checkpoint(folders.checkpoint("llama")), manifest, folders.tokenizer(), text)
    return torch.cat(list(model(CHUNKS))).numpy()


@pytest.mark.parametrize(("mode", "spec", "least"), [("vgf_16a8w", folders.INT16, 45), ("vgf_8a8w", "", 30)])
def test_it_is_what_the_artifacts_compute(mode: str, spec: str, least: float) -> None:
    made = folders.exported("llama", mode, spec)
    fake = _fake(made.manifest)
    artifacts = torch.cat(list(artifact_model(made.folder)(CHUNKS))).numpy()
    real = torch.cat(list(float_model(open_checkpoint(folders.checkpoint("llama")))(CHUNKS))).numpy()
    assert sqnr(fake, artifacts) > least
    assert 10 < sqnr(real, fake) < sqnr(fake, artifacts), "nothing was quantized"


def test_it_is_scored_beside_the_artifacts(tmp_path: Path) -> None:
    made = folders.exported("llama", "vgf_8a8w")
    text, calibration = tmp_path / "text.txt", tmp_path / "calibration.txt"
    text.write_text(folders.TEXT[:80])
    calibration.write_text(folders.TEXT)
    arguments = [
        "llm",
        "perplexity",
        str(made.folder),
        "--text",
        str(text),
        "--chunk",
        "20",
        "--calibration-text",
        str(calibration),
        "--json",
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    scores = json.loads(found.stdout)["scores"]
    assert list(scores) == ["float", "fake-quantized", "artifacts"]
    assert scores["fake-quantized"]["kl"] > 0
    assert scores["fake-quantized"]["perplexity"] == pytest.approx(scores["artifacts"]["perplexity"], rel=0.01)


def test_refusals(tmp_path: Path) -> None:
    made = folders.exported("llama", "vgf_8a8w")
    with pytest.raises(InputError, match="is not the text that calibrated the export"):
        _fake(made.manifest, folders.TEXT[1:])
    with pytest.raises(InputError, match="was exported in float"):
        _fake(folders.exported("llama", None).manifest)
    shutil.copytree(made.folder, tmp_path / "copy")
    (tmp_path / "copy" / "llm.json").write_text(made.manifest.model_copy(update={"checkpoint": "gone"}).model_dump_json())
    with pytest.raises(InputError, match="made of the checkpoint, which is not there"):
        perplexity(tmp_path / "copy", folders.TEXT, chunk=20, calibration_text=folders.TEXT)
