"""Intervals of stored integers, and the registry of what each operator makes of them (see `ranges`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.types import DType


@dataclass(frozen=True)
class Interval:
    """low <= stored <= high; int64 arrays, () or (size of the last axis,)."""

    low: np.ndarray
    high: np.ndarray

    @property
    def ends(self) -> tuple[int, int]:
        return int(self.low.min()), int(self.high.max())

    def whole(self) -> Interval:
        """One interval that holds those of all channels."""
        return self if not self.low.ndim else of(*self.ends)

    def join(self, other: Interval) -> Interval:
        return Interval(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def within(self, low: int, high: int) -> Interval:
        """Saturated."""
        return Interval(np.clip(self.low, low, high), np.clip(self.high, low, high))

    def __str__(self) -> str:
        low, high = self.ends
        return f"{low}..{high}"


def of(low: int | np.ndarray, high: int | np.ndarray) -> Interval:
    return Interval(np.asarray(low, dtype=np.int64), np.asarray(high, dtype=np.int64))


def of_type(dtype: DType) -> Interval:
    """All that a type holds."""
    return of(0, 1) if dtype is DType.BOOL else of(dtype.min, dtype.max)


def corners(function: Callable[[np.ndarray, np.ndarray], np.ndarray], a: Interval, b: Interval) -> Interval:
    """Of a function that is monotone in each operand."""
    ends = [function(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    low, high = ends[0], ends[0]
    for end in ends[1:]:
        low, high = np.minimum(low, end), np.maximum(high, end)
    return Interval(low, high)


class Analysis(Protocol):
    """What a transfer function may ask, and where it reports."""

    known: dict[Value, Interval]

    def maker(self, value: Value, *kinds: type[ops.Op]) -> Node | None: ...

    def problem(self, node: Node, what: str) -> None: ...


Transfer = Callable[..., Interval]
TRANSFER: dict[type[ops.Op], Transfer] = {}


def transfer(*kinds: type[ops.Op]) -> Callable[[Transfer], Transfer]:
    """Register a function `(analysis, node, *operand intervals) -> Interval`.

    The result may pass the type: then the operator overflows, or wraps around.
    """

    def register(function: Transfer) -> Transfer:
        for kind in kinds:
            TRANSFER[kind] = function
        return function

    return register
