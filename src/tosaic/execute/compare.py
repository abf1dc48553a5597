"""Two results of the same computation: how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

RELATIVE, ABSOLUTE = 1e-3, 1e-4  # float results: executors may sum in another order and approximate exp and tanh


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB; inf when the two are equal."""
    signal, noise = np.square(expected, dtype=np.float64).sum(), np.square(expected.astype(np.float64) - found).sum()
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@dataclass(frozen=True)
class Difference:
    """How an array differs from the expected one.

    Attributes:
        count: elements that differ at all.
        size: elements.
        largest: the largest magnitude of a difference.
        agrees: equal (integers), or within `RELATIVE` and `ABSOLUTE` (float32), or two units in the last place and one of the largest
            value's (shorter floats: a convolution rounds its sum before the bias, which may cancel it).
    """

    count: int
    size: int
    largest: float
    agrees: bool


def _tolerance(expected: np.ndarray) -> tuple[float, float]:
    """Relative and absolute, of a float type."""
    unit = float(ml_dtypes.finfo(expected.dtype).eps)
    largest = float(np.abs(expected.astype(np.float64)).max(initial=0.0, where=np.isfinite(expected)))
    return max(RELATIVE, 2 * unit), max(ABSOLUTE, unit * largest)


def difference(expected: np.ndarray, found: np.ndarray) -> Difference:
    """Compare element by element; NaN equals NaN."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return Difference(expected.size, expected.size, math.inf, False)
    is_float = expected.dtype.kind not in "biu"
    a, b = (x.astype(np.float64) if is_float or x.dtype.kind == "b" else x.astype(np.int64) for x in (expected, found))
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b)) if is_float else a != b
    largest = float(np.abs(a - b)[differs].max()) if differs.any() else 0.0
    agrees = bool(np.allclose(a, b, *_tolerance(expected), equal_nan=True)) if is_float else not differs.any()
    return Difference(int(differs.sum()), expected.size, largest, agrees)
