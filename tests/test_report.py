"""Reports from facts: what is in them, that nothing in them is taken for markup, and that JSON gives the facts back."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from tosaic.errors import InputError
from tosaic.report.facts import ArtifactFacts, Check, Picture, Report, Row, agreement, score_table
from tosaic.report.html import to_html
from tosaic.report.json import from_json, to_json
from tosaic.report.markdown import to_markdown

PNG = b"\x89PNG\r\n\x1a\n and so on"
NASTY = "<script>alert('&')</script> | *"
PASSPORT = {
    "spec": "TOSA-1.0+INT",
    "sha256": "ab" * 32,
    "inputs": [{"name": "x", "dtype": "i8", "shape": [1, 3, 4, 4], "scale": 1 / 255, "zero_point": -128, "layout": "model"}],
    "outputs": [{"name": "y", "dtype": "f32", "shape": [1, 10], "scale": None, "zero_point": None, "layout": "model"}],
    "recipe": {"scheme": "8a8w"},
    "calibration": {"samples": 4},
    "operators": {"CONV2D": 3, "RESCALE": 2},
    "ledger": [{"name": "conv", "aten": "conv2d", "precision": "int8", "reason": NASTY, "location": "net.py:3"}],
}
CHECKS = (
    Check("simulator", True, 100, "tosaic", 0.1),
    Check("reference", True, 100, "tosa-tools", 0.2),
    Check("vulkan", None, 0, NASTY, 0.0),
)


def _report(**changes: object) -> Report:
    artifact = ArtifactFacts("model.vgf", 16144, PASSPORT, {"lower": 0.5, "write": 0.25}, CHECKS)
    report = Report(
        title=NASTY,
        created="now",
        summary=("one", NASTY),
        baseline="FP32",
        rows=(Row("FP32", {"cat": 30.0, "dog": 32.0}), Row("PTQ", {"cat": 29.0, "dog": 31.5}, artifact)),
        pictures=(Picture("Before", "p.png", NASTY),),
        sections={"Data": {"training": NASTY}},
        seconds={"training": 3.0},
    )
    return dataclasses.replace(report, **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.png").write_bytes(PNG)
    return tmp_path


def test_the_table() -> None:
    header, body = score_table(_report())
    assert header == ["model", "cat", "dog", "mean, dB", "vs FP32", "file, bytes", "operators", "seconds", "executors"]
    assert body[0] == ["FP32", "30.00", "32.00", "31.00", "", "", "", "", "not compiled"]
    assert body[1] == ["PTQ", "29.00", "31.50", "30.25", "-0.75", "16,144", "5", "0.8", "simulator = reference (vulkan: not run)"]


def test_agreement_says_who_differs() -> None:
    differs = (*CHECKS[:1], Check("reference", False, 100, "x", 0.1), Check("vulkan", True, 100, "", 0.1))
    assert agreement(differs) == "simulator ≠ reference = vulkan"


def test_json_gives_the_facts_back() -> None:
    report = _report()
    assert from_json(to_json(report)) == report


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"title": 3}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a report"):
        from_json(text)


def test_html_escapes_and_is_self_contained(folder: Path) -> None:
    html = to_html(_report(), folder)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in html
    for outside in ("http:", "https:", 'src="p.png"', "<link"):
        assert outside not in html
    for fact in ("16,144", "0.0039215686", "TOSA-1.0+INT", "CONV2D", "not run", "-0.75"):
        assert fact in html


def test_html_without_pictures_and_artifacts(folder: Path) -> None:
    html = to_html(_report(pictures=(), rows=(Row("FP32", {"cat": 30.0}),), seconds={}, sections={}), folder)
    assert "<img" not in html and "Artifacts" not in html


def test_markdown_escapes(folder: Path) -> None:
    text = to_markdown(_report())
    assert "<script" not in text.replace("\\<", "")
    rows = [line for line in text.splitlines() if line.startswith("| conv ")]
    assert len(rows) == 1 and rows[0].replace("\\|", "").count("|") == 6
    assert "![" in text and "(p.png)" in text


def test_json_is_plain() -> None:
    assert json.loads(to_json(_report()))["rows"][1]["artifact"]["checks"][2] == {
        "executor": "vulkan",
        "agrees": None,
        "values": 0,
        "detail": NASTY,
        "seconds": 0.0,
    }
