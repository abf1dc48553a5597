"""Two results of the same computation: how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

# How far floats may be apart, in ULP: executors sum in another order, and approximate exp and tanh to a few ULP. Whole networks on
# the reference model and on the emulation layers stayed within 4 (float32) and 1 (shorter types).
TOLERANCE, TOLERANCE_OF_HALVES = 64.0, 4.0
EXAMPLES = 5


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB; inf when the two are equal."""
    signal, noise = np.square(expected, dtype=np.float64).sum(), np.square(expected.astype(np.float64) - found).sum()
    return decibels(signal, noise)


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers in dB; inf without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@dataclass(frozen=True)
class Example:
    """One element that differs."""

    index: tuple[int, ...]
    expected: float
    found: float


@dataclass(frozen=True)
class Difference:
    """How an array differs from the expected one.

    Attributes:
        count: elements that differ at all.
        size: elements.
        largest: the largest magnitude of a difference.
        ulp: the largest difference of floats in ULP, see `difference`; 0 for other types.
        agrees: equal, or floats within the tolerance.
        examples: the first elements that differ; of floats those beyond the tolerance.
    """

    count: int
    size: int
    largest: float
    ulp: float
    agrees: bool
    examples: tuple[Example, ...] = ()

    def __str__(self) -> str:
        if self.count == 0:
            return f"equal in all {self.size:,} values"
        text = f"{self.count:,} of {self.size:,} values differ, by {self.largest:g} at most"
        if math.isinf(self.largest) and not self.examples:
            return "of another shape or type"
        return f"{text}, {self.ulp:.3g} ULP{' (within the tolerance)' if self.agrees else ''}" if self.ulp else text


def difference(expected: np.ndarray, found: np.ndarray, tolerance: float | None = None) -> Difference:
    """Compare element by element; NaN equals NaN, an infinity itself.

    Args:
        tolerance: of floats, in units in the last place (ULP) of the element, or of the array's root mean square where the
            element is smaller: what a sum loses by cancellation is of the size of its terms. Without one, `TOLERANCE` for
            float32 and `TOLERANCE_OF_HALVES` for shorter floats.
    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return Difference(expected.size, expected.size, math.inf, math.inf, False)
    is_float = expected.dtype.kind not in "biu"
    a, b = (x.astype(np.float64) if is_float or x.dtype.kind == "b" else x.astype(np.int64) for x in (expected, found))
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b)) if is_float else a != b
    if not differs.any():
        return Difference(0, expected.size, 0.0, 0.0, True)
    with np.errstate(invalid="ignore"):
        apart = np.where(differs, np.abs(a - b), 0)
    apart = np.where(np.isnan(apart), math.inf, apart)
    wrong, ulp = differs, 0.0
    if is_float:
        units = apart / _ulp(a, expected.dtype)
        ulp = float(units.max())
        if tolerance is None:
            tolerance = TOLERANCE if expected.dtype == np.float32 else TOLERANCE_OF_HALVES
        wrong = units > tolerance
    places = np.argwhere(wrong if wrong.any() else differs)[:EXAMPLES]
    examples = tuple(Example(tuple(map(int, i)), a[tuple(i)].item(), b[tuple(i)].item()) for i in places)
    return Difference(int(differs.sum()), expected.size, float(apart.max()), ulp, not wrong.any(), examples)


def merged(a: Difference, b: Difference) -> Difference:
    """Two parts of the data together."""
    examples = a.examples if a.examples and not a.agrees else b.examples or a.examples
    worst = max(a.largest, b.largest), max(a.ulp, b.ulp)
    return Difference(a.count + b.count, a.size + b.size, *worst, a.agrees and b.agrees, examples)


def _ulp(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The unit in the last place of each value in `dtype`, at least that of their root mean square."""
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    rms = math.sqrt(float(np.square(finite).mean()))
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    exponent = np.frexp(np.maximum(np.maximum(finite, rms), smallest))[1] - 1
    return np.ldexp(float(ml_dtypes.finfo(dtype).eps), exponent)
