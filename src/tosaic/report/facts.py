"""What a report says, as data: every form of it (terminal, JSON, Markdown, HTML) reads this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """What one executor made of an artifact, compared with the simulator's stored values.

    Attributes:
        executor: "simulator", "reference" or "vulkan".
        agrees: every value is equal; None when the executor could not run here.
        values: how many were compared.
        detail: what it is (its version, its device), or why it could not run.
        seconds: for all runs, with what the executor does before its first one.
    """

    executor: str
    agrees: bool | None
    values: int
    detail: str
    seconds: float


@dataclass(frozen=True)
class ArtifactFacts:
    """A written file.

    Attributes:
        file: its name, relative to the report.
        size: bytes.
        passport: as it stands in the JSON file beside it.
        timings: seconds of each stage of making it.
    """

    file: str
    size: int
    passport: dict[str, Any]
    timings: dict[str, float]
    checks: tuple[Check, ...]

    @property
    def operators(self) -> int:
        return sum(self.passport["operators"].values())


@dataclass(frozen=True)
class Row:
    """A model, or a baseline, and how it scored.

    Attributes:
        scores: picture -> PSNR in dB.
    """

    model: str
    scores: dict[str, float]
    artifact: ArtifactFacts | None = None

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the report."""

    title: str
    file: str
    caption: str


@dataclass(frozen=True)
class Report:
    """Everything about a run.

    Attributes:
        summary: paragraphs.
        baseline: the row that differences refer to.
        sections: title -> (name -> text), such as data, training and versions.
        seconds: of each part of the run.
    """

    title: str
    created: str
    summary: tuple[str, ...]
    baseline: str
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...] = ()
    sections: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def row(self, model: str) -> Row:
        return next(row for row in self.rows if row.model == model)

    @property
    def artifacts(self) -> tuple[tuple[str, ArtifactFacts], ...]:
        """(model, artifact) of the rows that have one."""
        return tuple((row.model, row.artifact) for row in self.rows if row.artifact is not None)


def score_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: PSNR in dB of each picture and their mean; all columns but the first and the last are numbers."""
    pictures = list(report.rows[0].scores)
    reference = report.row(report.baseline)
    header = ["model", *pictures, "mean, dB", f"vs {report.baseline}", "file, bytes", "operators", "seconds", "executors"]
    body = []
    for row in report.rows:
        scores = [f"{row.scores[picture]:.2f}" for picture in pictures]
        delta = "" if row is reference else f"{row.mean - reference.mean:+.2f}"
        made = ["", "", "", "not compiled"]
        if (artifact := row.artifact) is not None:
            made = [f"{artifact.size:,}", str(artifact.operators), f"{sum(artifact.timings.values()):.1f}", agreement(artifact.checks)]
        body.append([row.model, *scores, f"{row.mean:.2f}", delta, *made])
    return header, body


def agreement(checks: tuple[Check, ...]) -> str:
    """`simulator = reference = vulkan`, or who differs, or who could not run."""
    parts = []
    for check in checks:
        sign = "=" if check.agrees else "≠"
        parts.append(f"{sign} {check.executor}" if check.agrees is not None else f"({check.executor}: not run)")
    return " ".join(parts).removeprefix("= ")
