"""Values of a checkpoint's config, which people and damaged files get wrong."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn

from tosaic.errors import InputError

MAX_LAYERS = 1000  # the largest models that are known have 126; a damaged file may claim billions


class Values:
    """The values of a config, of the kinds that they must be.

    Args:
        given: key -> value.
        where: the file, for messages.
    """

    def __init__(self, given: Mapping[str, Any], where: str) -> None:
        self._given, self._where = given, where

    def __contains__(self, key: str) -> bool:
        """Whether there is a value other than null."""
        return self._given.get(key) is not None

    def get(self, key: str, *default: Any) -> Any:
        """A value of any kind; null counts as missing.

        Raises:
            InputError: there is none, and no default (so for all that follow; or it is of another kind).
        """
        value = self._given.get(key)
        if value is None and not default:
            raise InputError(f"{self._where} has no '{key}'")
        return default[0] if value is None else value

    def whole(self, key: str, *default: int, least: int = 1, largest: int = 2**31 - 1) -> int:
        """A whole number within limits."""
        value = self.get(key, *default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
            self._refuse(key, value, f"a whole number from {least} to {largest}")
        return value

    def number(self, key: str, *default: float) -> float:
        """A positive finite number."""
        value = self.get(key, *default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:  # NaN is not
            self._refuse(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Yes or no."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            self._refuse(key, value, "true or false")
        return value

    def inner(self, key: str) -> Values | None:
        """A mapping; None if there is none, or nothing in it."""
        value = self.get(key, None)
        if not isinstance(value, Mapping | None):
            self._refuse(key, value, "a mapping")
        return None if not value else Values(value, f"{self._where}: {key}")

    def items(self, key: str) -> list[Any] | None:
        """A list; None if there is none."""
        value = self.get(key, None)
        if not isinstance(value, list | None):
            self._refuse(key, value, "a list")
        return value

    def _refuse(self, key: str, value: Any, expected: str) -> NoReturn:
        raise InputError(f"{self._where}: {key} is {reprlib.repr(value)}, expected {expected}")
