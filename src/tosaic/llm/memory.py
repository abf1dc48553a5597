"""Memory that nothing uses any more goes back to the system."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable
from typing import Any


def release() -> None:
    """Collect what refers to itself, as captured programs do, and give back free memory that malloc keeps in between (glibc)."""
    gc.collect()
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], Any] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return None
