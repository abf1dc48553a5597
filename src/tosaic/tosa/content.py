"""The bytes of arrays, without a copy of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

_PIECE = 1 << 20


def pieces(data: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in order, a piece at a time; only what does not lie in a row is copied, a piece at a time."""
    flat = data.reshape(-1).view(np.uint8) if data.flags.c_contiguous else data.flat
    for start in range(0, flat.size if isinstance(flat, np.ndarray) else len(flat), _PIECE):
        yield flat[start : start + _PIECE].view(np.uint8).data


def digest(data: np.ndarray) -> bytes:
    """SHA-256 of an array's bytes."""
    state = hashlib.sha256()
    for piece in pieces(data):
        state.update(piece)
    return state.digest()
