"""Objects that live in the user's code: `file.py:name` and `package.module:name`, and exceptions that come from there."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tosaic.errors import InputError, TosaicError, place_of


def is_reference(text: str) -> bool:
    """Whether `text` has the form `place:name`."""
    place, _, name = text.rpartition(":")
    return bool(place) and all(part.isidentifier() for part in name.split("."))


def check_reference(option: str, text: str) -> None:
    """Refuse a reference to a file that is not there, before anything slow is done.

    Raises:
        InputError: no such file.
    """
    place = text.rpartition(":")[0]
    if (place.endswith(".py") or os.sep in place) and not Path(place).is_file():
        raise InputError(f"{option}: no such file: {place}")


def find(option: str, text: str) -> Any:
    """Import the place and return the object.

    Args:
        option: what the text was given for; messages name it.
        text: `file.py:name` or `package.module:name`.

    Raises:
        InputError: no such file, module or name, or the import raised.
    """
    check_reference(option, text)
    place, _, name = text.rpartition(":")
    with reporting(f"{option}: importing {place}"):
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(option, place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{option}: {place} has no '{name}'", remedy=_suggestion(part, found))
        found = getattr(found, part)
    return found


def _suggestion(name: str, owner: Any) -> str:
    own = [n for n, v in vars(owner).items() if not n.startswith("_") and callable(v) and getattr(v, "__module__", None) == owner.__name__]
    close = difflib.get_close_matches(name, own, 1)
    return f"did you mean {close[0]}?" if close else f"it defines {', '.join(own) or 'no functions'}"


def _import_file(path: Path) -> ModuleType:
    """Run a file once; its folder is on the path, so that it finds its neighbours as a script would."""
    path = path.resolve()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_{path.parent.name}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(option: str, name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module is there, and imports another that is not
        raise InputError(
            f"{option}: there is no module '{name}'", remedy="write file.py:name or package.module:name; is it installed?"
        ) from None


@contextmanager
def reporting(doing: str) -> Iterator[None]:
    """Exceptions of the user's code become one message with the user's own file and line.

    Raises:
        InputError: instead of whatever was raised inside, errors of our own excepted.
    """
    try:
        yield
    except TosaicError:
        raise
    except (Exception, SystemExit) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise InputError(f"{doing} failed: {message}", where=place_of(error), remedy="--debug shows the whole report") from error


def guarded(doing: str, items: Iterable[Any]) -> Iterator[Any]:
    """`items`, with the exceptions of the user's iterator reported."""
    with reporting(doing):
        iterator = iter(items)
    while True:
        with reporting(doing):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
