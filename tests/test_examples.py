"""The examples run as they are written, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tosaic

ROOT = Path(__file__).parents[1]
# one thread each: with several, small convolutions wait for each other on a busy machine
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
EXPORT = [Path(sys.executable).parent / "tosaic", "export"]
QAT = [Path(sys.executable).parent / "tosaic", "qat"]


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_own_network(tmp_path: Path) -> None:
    text = run(sys.executable, "examples/own_network.py", tmp_path / "own.vgf")
    assert (found := re.search(r"largest error ([\d.]+)", text)) and float(found[1]) < 0.02
    assert tosaic.load(tmp_path / "own.vgf").passport.spec == "TOSA-1.0+INT"


def test_qat_loop(tmp_path: Path) -> None:
    text = run(sys.executable, "examples/qat_loop.py", tmp_path / "qat.vgf")
    assert (found := re.search(r"float ([\d.]+)%, .*qat.vgf ([\d.]+)%", text)), text
    assert float(found[2]) >= min(90, float(found[1]) - 2)


def test_export_of_the_classifier(tmp_path: Path) -> None:
    out, file = tmp_path / "c.vgf", "examples/classifier.py"
    text = run(*EXPORT, f"{file}:model", "--calibration", f"{file}:calibration", "-o", out)
    assert "SQNR" in text and tosaic.load(out).passport.metrics["sqnr_db"] > 20


def test_export_with_a_configuration_file(tmp_path: Path) -> None:
    run(*EXPORT, "--config", "examples/run.yaml", "-o", tmp_path / "c.vgf")
    passport = tosaic.load(tmp_path / "c.vgf").passport
    assert passport.recipe["overrides"] == {"head": "8a8w"} and passport.spec == "TOSA-1.0+INT+int16"


def test_qat_of_the_classifier(tmp_path: Path) -> None:
    file = "examples/classifier.py"
    text = run(*QAT, f"{file}:model", "--train", f"{file}:train", "--calibration", f"{file}:calibration", "-o", tmp_path / "c.vgf")
    assert "against the trained model" in text


@pytest.mark.parametrize("name", [p.name for p in sorted((ROOT / "examples").iterdir()) if p.suffix in (".py", ".yaml")])
def test_every_example_is_run(name: str) -> None:
    files = (Path(__file__), Path(__file__).parent / "llm" / "test_cli_llm.py")  # examples of language models need a checkpoint
    assert any(f"examples/{name}" in file.read_text() for file in files)
