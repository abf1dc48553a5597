"""A report as Markdown, for a pull request or a wiki."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tosaic.report.facts import ArtifactFacts, Report, score_table


def to_markdown(report: Report) -> str:
    """The report; pictures are linked, not embedded."""
    header, body = score_table(report)
    parts = [f"# {_text(report.title)}", *map(_text, report.summary), _table(header, body, numbers=range(1, len(header) - 1))]
    for picture in report.pictures:
        parts += [f"## {_text(picture.title)}", f"![{_text(picture.title)}]({picture.file})", _text(picture.caption)]
    for model, artifact in report.artifacts:
        parts += [f"## {_text(model)}: `{artifact.file}`", *_artifact(artifact)]
    for title, section in report.sections.items():
        parts += [f"## {_text(title)}", _pairs(section)]
    parts += ["## Seconds", _pairs({name: f"{value:.1f}" for name, value in report.seconds.items()})]
    return "\n\n".join(parts) + f"\n\n{_text(report.created)}\n"


def _artifact(artifact: ArtifactFacts) -> list[str]:
    passport = artifact.passport
    ports = [
        [kind, p["name"], p["dtype"], str(p["shape"]), _number(p["scale"]), _number(p["zero_point"])]
        for kind in ("input", "output")
        for p in passport[f"{kind}s"]
    ]
    checks = [
        [c.executor, {True: "equal", False: "DIFFERENT", None: "not run"}[c.agrees], f"{c.values:,}", c.detail] for c in artifact.checks
    ]
    ledger = [[r["name"], r["aten"], r["precision"], r["reason"], r["location"].partition(" | ")[2]] for r in passport["ledger"]]
    counts = Counter(r["precision"] for r in passport["ledger"])
    return [
        f"{passport['spec']}, {artifact.size:,} bytes, SHA-256 `{passport['sha256']}`",
        _table(["", "name", "type", "shape", "scale", "zero point"], ports),
        _table(["executor", "stored values", "compared", "detail"], checks),
        "Operators of the model: " + ", ".join(f"{count} in {precision}" for precision, count in counts.most_common()),
        _table(["operator", "aten", "precision", "reason", "where"], ledger),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    rule = ["---:" if i in numbers else "---" for i in range(len(header))]
    return "\n".join("| " + " | ".join(map(_text, cells)) + " |" for cells in (header, rule, *rows))


def _pairs(section: Mapping[str, str]) -> str:
    return "\n".join(f"- {_text(name)}: {_text(text)}" for name, text in section.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _text(text: str) -> str:
    """Text that Markdown neither takes for markup nor breaks a table at."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
