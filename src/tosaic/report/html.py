"""A report as one HTML file that needs nothing beside it: styles and pictures are inside."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from tosaic.report.facts import Report, agreement, score_table

_WORDS = {True: "equal", False: "different", None: "not run"}


def to_html(report: Report, folder: Path) -> str:
    """The report.

    Args:
        folder: where the pictures lie; they are embedded.
    """
    environment = Environment(
        loader=PackageLoader("tosaic", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["embedded"] = lambda file: "data:image/png;base64," + base64.b64encode((folder / file).read_bytes()).decode()
    header, body = score_table(report)
    template = environment.get_template("report.html.jinja")
    return template.render(report=report, header=header, body=body, agreement=agreement, words=_WORDS)
