"""A report as JSON, and back."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from tosaic.errors import InputError
from tosaic.report.facts import Report

_REPORT = TypeAdapter(Report)


def to_json(report: Report) -> str:
    """The facts as JSON, one field of `Report` after the other."""
    return _REPORT.dump_json(report, indent=1).decode() + "\n"


def from_json(text: str) -> Report:
    """The report that `to_json` wrote.

    Raises:
        InputError: the text is not such a report; the first wrong field is named.
    """
    try:
        return _REPORT.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"not a report: {'.'.join(map(str, first['loc'])) or 'the text'}: {first['msg']}") from None
