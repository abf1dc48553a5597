"""The ledger: each operator's precision and the reason, in the passport, in what `export` prints, in the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_cli import model, ok
from torch import nn

import tosaic
from tosaic.errors import UnsupportedError
from tosaic.report.facts import ArtifactFacts, Report, Row
from tosaic.report.html import to_html
from tosaic.report.markdown import to_markdown


class Net(nn.Module):
    """An operator at each precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.stem(x)
        z = self.head((y * y + y).mean((2, 3)))
        return z, z.argmax(1), z > 0.5


def artifact(**options: object) -> tosaic.artifact.Artifact:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    return tosaic.compile(tosaic.quantize(net, x, [x], **options))  # type: ignore[arg-type]


def rows(ledger: list) -> dict[str, tuple[str, str]]:
    return {row.aten: (row.precision, row.reason) for row in ledger}


def test_every_precision_with_its_reason() -> None:
    passport = artifact(overrides={"head": "fp32"}).passport
    found = rows(passport.ledger)
    assert found["aten.convolution.default"] == ("int32", "arithmetic reads it")
    assert found["aten.mul.Tensor"] == ("int32", "arithmetic reads it")
    assert found["aten.linear.default"] == ("fp32", "override")
    assert found["aten.argmax.default"][0] == "index"
    assert found["aten.gt.Scalar"] == ("bool", "a condition")
    assert all("test_ledger.py:" in row.location for row in passport.ledger)
    assert all(row.name and row.reason for row in passport.ledger)


def test_precision_of_activations() -> None:
    for scheme, precision in (("8a8w", "int8"), ("16a8w", "int16")):
        found = rows(artifact(scheme=scheme).passport.ledger)
        assert found["aten.mean.dim"] == (precision, "the precision that its readers take")


def test_strict_refuses_what_stays_float() -> None:
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    quantized = tosaic.quantize(net, x, [x], overrides={"head": "fp32"})
    with pytest.raises(UnsupportedError, match=r"stays? float, and --strict forbids it") as error:
        tosaic.compile(quantized, strict=True)
    assert "aten.linear.default" in str(error.value) and "override" in str(error.value) and "test_ledger.py" in str(error.value)
    tosaic.compile(tosaic.quantize(net, x, [x]), strict=True)


def test_export_prints_it_in_brief(tmp_path: Path) -> None:
    text = ok("export", model("net"), "--input-shape", "1,3,8,8", "--calibration", model("samples"), "-o", tmp_path / "net.vgf")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("precision"))
    counts = tosaic.load(tmp_path / "net.vgf").passport.ledger
    for precision in {row.precision for row in counts}:
        assert f"{precision} {sum(row.precision == precision for row in counts)}" in line
    assert "float:" not in text


def test_the_report_has_it_in_full(tmp_path: Path) -> None:
    passport = artifact(overrides={"head": "fp32"}).passport
    facts = ArtifactFacts("net.vgf", 1, passport.model_dump(), {}, ())
    report = Report("a net", "today", (), "net", (Row("net", {"cat": 30.0}, facts),))
    count = sum(row.precision == "int32" for row in passport.ledger)
    for text in (to_markdown(report), to_html(report, tmp_path)):
        for row in passport.ledger:
            assert row.aten in text.replace("\\", "") and row.reason in text
        assert f"{count} in int32" in text and "test_ledger.py:" in text.replace("\\", "")
