"""Approximations of a real function over [-radius, radius] by entries at equal steps, their errors, and how they are looked up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tosaic.lower.context import Context
from tosaic.lower.fixed import calc, lookup
from tosaic.lower.operand import Operand, Quant
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

Real = Callable[[np.ndarray], np.ndarray]
STORED = 1 << 30  # kernels take |stored| below it
SATURATED = (1 << 29) - 1
WHOLE16 = Quant(1.0, 0, DType.INT16)
_LARGEST = float(np.finfo(np.float32).max)
_TOP_BITS = 29  # entries are below 2^29, so that an entry and a slope add up
_POSITION_BITS = 24  # of an int32 operand within the interval


def index_of(ctx: Context, value: Value) -> Value:
    """Position of an int8 or int16 value among all of its type."""
    if value.dtype is DType.INT8:
        return ctx.rescale(value, Quant(1.0, DType.INT8.min, DType.INT8), Quant(1.0, 0, DType.INT32))
    return calc(ctx, ops.Add(), ctx.emit(ops.Cast(DType.INT32), value), -DType.INT16.min)


@dataclass(frozen=True)
class Error:
    """How far an approximation is from its function over a range: SQNR, and whether every result is within half a step of int16."""

    decibels: float
    close: bool


def _error(want: np.ndarray, got: np.ndarray) -> Error:
    noise = float(np.square(want - got).mean())
    signal = float(np.square(want).mean())
    top = float(np.abs(want).max())
    return Error(
        10 * math.log10(signal / noise) if noise and signal else 0.0 if noise else math.inf,
        float(np.abs(want - got).max()) <= 0.6 * top / DType.INT16.max,
    )


@dataclass(frozen=True)
class Steps:
    """Entries at `count` + 1 equal steps of [-radius, radius]; real = entry * scale."""

    entries: np.ndarray
    scale: float
    radius: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """The approximation, in reals."""
        return np.interp(x, self._places(), self.entries) * self.scale

    def _places(self) -> np.ndarray:
        return _places(self.radius, len(self.entries) - 1)

    def error(self, real: Real, is_gate: bool, edge: float, in_use: float) -> Error:
        """Over the part of [-edge, edge] whose results are in use."""
        x = np.linspace(-edge, edge, 6007)
        want, got = finite(real, 4 * in_use)(x), self.at(np.clip(x, -self.radius, self.radius))
        used = np.abs(want) <= 1.001 * in_use
        if used.any():
            x, want, got = x[used], want[used], got[used]
        return _error(x * want, x * got) if is_gate else _error(want, got)

    def bits(self) -> int:
        """b with |value| < 2^b."""
        return _TOP_BITS

    def emit(self, ctx: Context, position: Value) -> Value:
        raise NotImplementedError

    def position(self, ctx: Context, x: Operand, centre: int) -> Value:
        """x - centre in the units that `emit` takes."""
        return position16(ctx, x, self.radius, centre)


def _places(radius: float, count: int) -> np.ndarray:
    return np.linspace(-1.0, 1.0, count + 1) * radius


def finite(real: Real, limit: float) -> Real:
    """`real` with 0 for what is not a number, and saturated; at the largest float32 at the latest."""
    limit = min(limit, _LARGEST)

    def function(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.clip(np.nan_to_num(real(x), nan=0.0, posinf=math.inf, neginf=-math.inf), -limit, limit)

    return function


class Curve(Steps):
    """TABLE of int16."""

    @classmethod
    def of(cls, real: Real, radius: float, limit: float) -> Curve | None:
        """Entries of least squared error: chords lie on one side of an arc, so knots move by a twelfth of the second difference.

        None where the function is infinite within the radius.
        """
        points = finite(real, limit)(_places(radius, 512))
        if not np.isfinite(points).all():
            return None
        moved = points.copy()
        moved[1:-1] -= (points[:-2] - 2 * points[1:-1] + points[2:]) / 12
        moved = np.clip(moved, points.min(), points.max())  # also where the limit cuts the function off
        dense = np.linspace(-radius, radius, 16 * 512 + 1)
        want = finite(real, limit)(dense)
        return min((cls._stored(p, radius) for p in (points, moved)), key=lambda c: float(np.square(c.at(dense) - want).sum()))

    @classmethod
    def _stored(cls, points: np.ndarray, radius: float) -> Curve:
        scale = max(float(np.abs(points).max()), 1e-30) / DType.INT16.max
        return cls(np.clip(np.rint(points / scale), DType.INT16.min, DType.INT16.max) * 128, scale / 128, radius)

    def bits(self) -> int:
        return 22

    def emit(self, ctx: Context, position: Value) -> Value:
        return ctx.emit(ops.Table(), position, ctx.builder.const(self.entries / 128, DType.INT16))


class Nearest(Steps):
    """GATHER of the nearest of 2^16 entries; the last place is one step short of the radius."""

    @classmethod
    def of(cls, real: Real, radius: float, limit: float) -> Nearest | None:
        return cls(*_wide_entries(real, _places(radius, 1 << 16)[:-1], limit), radius) if math.isfinite(radius) else None

    def at(self, x: np.ndarray) -> np.ndarray:
        index = np.clip(np.rint((x / self.radius + 1.0) * 2**15), 0, 2**16 - 1).astype(np.int64)
        return self.entries[index] * self.scale

    def emit(self, ctx: Context, position: Value) -> Value:
        return lookup(ctx, self.entries, index_of(ctx, position))


class Line(Steps):
    """Two GATHERs and a MUL: an entry and its slope to the next."""

    @classmethod
    def of(cls, real: Real, radius: float, limit: float, bits: int) -> Line | None:
        return cls(*_wide_entries(real, _places(radius, 1 << bits), limit), radius)

    def position(self, ctx: Context, x: Operand, centre: int) -> Value:
        """In [0, 2^24]."""
        assert not centre
        return position24(ctx, x, self.radius)

    def emit(self, ctx: Context, position: Value) -> Value:
        # entries are within 2^29 and slopes within 2^30, so that the sum of their intervals is below 2^31
        rest = _POSITION_BITS - (len(self.entries) - 1).bit_length() + 1
        index = calc(ctx, ops.LogicalRightShift(), position, rest)
        part = calc(ctx, ops.BitwiseAnd(), position, (1 << rest) - 1)
        slopes = np.append(np.diff(self.entries), 0)
        return ctx.emit(ops.Add(), lookup(ctx, self.entries, index), ctx.emit(ops.Mul(rest), lookup(ctx, slopes, index), part))


def _wide_entries(real: Real, places: np.ndarray, limit: float) -> tuple[np.ndarray, float]:
    points = finite(real, limit)(places)
    if not np.isfinite(points).all():  # no result is wanted that could say where it saturates
        points = np.clip(points, *_outermost(points))
    top = float(np.abs(points).max()) or 1.0
    scale = 2.0 ** math.ceil(math.log2(top)) / SATURATED
    return np.rint(points / scale), scale


def _outermost(points: np.ndarray) -> tuple[float, float]:
    known = points[np.isfinite(points)]
    return (float(known.min()), float(known.max())) if known.size else (-1.0, 1.0)


def _limited(ctx: Context, x: Operand, radius: float, centre: int) -> Value:
    """x - centre for an int32 operand, with |x - centre| <= ceil(radius / scale) unless that is beyond 2^30."""
    assert x.quant is not None and x.value is not None
    steps, value = math.ceil(radius / x.scale), x.value
    if centre - steps > -STORED:
        value = calc(ctx, ops.Maximum(), value, centre - steps)
    if centre + steps < STORED:
        value = calc(ctx, ops.Minimum(), value, centre + steps)
    return calc(ctx, ops.Sub(), value, centre) if centre else value


def position16(ctx: Context, x: Operand, radius: float, centre: int = 0) -> Value:
    """(x - centre) / radius * 2^15 as int16, saturated.

    A factor of at most 1 has a shift of 31 at least: RESCALE reads any |stored| < 2^30. A larger one, up to 2^17 as then
    each step of the operand is beyond int16, reads v <= radius / scale + 1, v * factor <= 2^15 + 2^17 < 2^30.
    """
    assert x.quant is not None and x.value is not None
    if x.quant.dtype is DType.INT16:
        return x.value
    factor = min(x.scale * 2**15 / radius, 2.0**17)
    if x.origin is not None and factor <= 1 and not centre:
        return ctx.requantize(x, Quant(radius / 2**15, 0, DType.INT16)).tensor
    value = _limited(ctx, x, radius, centre) if factor > 1 or centre else x.value
    return ctx.rescale(value, Quant(factor, 0, DType.INT32), WHOLE16)


def position24(ctx: Context, x: Operand, radius: float) -> Value:
    """x / radius * 2^23 + 2^23 in [0, 2^24], exactly so at the ends.

    In a fine scale the radius is a whole number of steps. In a coarse one (factors up to 2^24, of at most radius / scale + 1) what
    is beyond the radius by a part of a step is cut off behind the RESCALE.
    """
    assert x.quant is not None and x.value is not None
    scale, half = x.scale, 1 << (_POSITION_BITS - 1)
    whole = round(radius / scale)
    factor = half / whole if whole >= 1 << 15 else min(scale * half / radius, 2.0 * half)
    source, unit = Quant(factor, 0, DType.INT32), Quant(1.0, 0, DType.INT32)
    if factor <= 1:
        value = _between(ctx, ctx.rescale(x.value, source, unit), half)
    elif whole >= 1 << 15:
        value = ctx.rescale(_between(ctx, x.value, whole), source, unit)
    else:
        value = _between(ctx, ctx.rescale(_limited(ctx, x, radius, 0), source, unit), half)
    return calc(ctx, ops.Add(), value, half)


def _between(ctx: Context, value: Value, limit: int) -> Value:
    return calc(ctx, ops.Minimum(), calc(ctx, ops.Maximum(), value, -limit), limit)
