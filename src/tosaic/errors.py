"""The exceptions of Tosaic: one tree, one message form.

    TosaicError
    ├── InputError         a file, tensor, option or data set that the user gave
    ├── CaptureError       torch.export cannot capture the model
    ├── QuantizeError      calibration or training left a value without a scale
    ├── UnsupportedError   operators that have no lowering (all of them at once)
    ├── SpecError          the TOSA specification string cannot hold what was asked
    ├── GraphError         a TOSA graph that breaks the specification
    ├── EmitError          a file cannot be written, or the converter is missing or failed
    └── ExecuteError       an executor is missing or failed

Every message says what is wrong, where, and what to do about it. The command line prints it and exits with code 2.
"""

from __future__ import annotations

import difflib
import functools
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType


class TosaicError(Exception):
    """Base of all errors that a user can meet.

    Args:
        what: what was expected and what was found.
        where: the place in the user's model or command, if there is one.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  at: {self.where}")
        if self.remedy:
            lines.append(f"  try: {self.remedy}")
        return "\n".join(lines)


class InputError(TosaicError):
    """A file, tensor, option or data set that the user gave is missing or wrong."""


class CaptureError(TosaicError):
    """The model cannot be captured by torch.export."""


class QuantizeError(TosaicError):
    """A value has no usable quantization."""


class UnsupportedError(TosaicError):
    """Operators that have no lowering; the message lists every one of them."""


class SpecError(TosaicError):
    """The TOSA specification string is malformed or cannot hold what was asked."""


class GraphError(TosaicError):
    """A TOSA graph that breaks the specification."""


class EmitError(TosaicError):
    """A file cannot be written, or the external converter is missing or failed."""


class ExecuteError(TosaicError):
    """An executor is not installed, or it failed."""


def check_known(what: str, value: str, known: Iterable[str]) -> None:
    """Refuse a word that is not among those known.

    Raises:
        InputError: names the nearest, and all.
    """
    names = list(known)
    if value not in names:
        close = difflib.get_close_matches(value, names, 1)
        raise InputError(
            f"unknown {what} '{value}'", remedy=(f"did you mean {close[0]}? " if close else "") + f"known are {', '.join(names)}"
        )


def place_of(error: BaseException) -> str | None:
    """The innermost line of the user's own code that an exception passed, as `file:line`; None if it met none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    traceback: TracebackType | None = error.__traceback__
    found = None
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if not is_library(name):
            found = f"{name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def line_of(trace: str | None) -> tuple[str, str] | None:
    """(file, line number) of the innermost line of the user's own code in a stack trace that torch.export recorded."""
    return next(((file, line) for file, line in reversed(_FRAME.findall(trace or "")) if not is_library(file)), None)


@functools.cache
def is_library(file: str) -> bool:
    """Whether a source file is not the user's own: installed, generated, or this package."""
    return file.startswith("<") or any(Path(file).is_relative_to(p) for p in _NOT_THE_USERS)


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# installed packages and the standard library (`bin`: the console script), and this package where it is installed editable
_NOT_THE_USERS = (*(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib", "scripts")), Path(__file__).parent)
