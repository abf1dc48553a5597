"""A real function of one quantized operand by tables.

int8, int16   one entry for each stored value: TABLE (int8 to int8) or GATHER. Nothing is lost but the rounding of the result.
int16, int32  entries at equal steps of an interval, beyond which the result is that at its ends. The cheapest that keeps
              `ENOUGH` decibels over the calibrated range is taken:
    curve     TABLE of 513 int16 entries, linear between them (int16 extension)
    nearest   GATHER from 2^16 int32 entries
    line      two GATHERs, of an entry and of the slope to the next: 2^12 or 2^15 intervals

Radii come from few values for each function (`radius_of`) and entries do not depend on the scales of operand and result, so that
the layers of a model share their tables. All kernels take any |stored| < 2^30.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tosaic.lower.approximate import SATURATED, WHOLE16, Curve, Line, Nearest, Real, Steps, finite, index_of, position16
from tosaic.lower.context import CALIBRATED, Context
from tosaic.lower.fixed import lookup
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import as_real, structural_bits
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

ENOUGH = 80.0  # dB; the target is 72, and the result is rounded once more
_ENOUGH_FOR_8 = 62.0  # dB, of what is rounded to int8
_SMALL_STEP = 0.05  # of an int8 result, between neighbouring entries
_LINES = (12, 15)
_PARTS = 256  # of an interval, some of which are needed
COVERED = 1.25  # times the calibrated range of operand and result: of what grows, farther entries and larger ones cost bits of the others
_COVERED_AT_16 = 1.3  # as far as int16 values reach


@dataclass(frozen=True)
class Function:
    """A real function of one value, in float and in integers.

    Attributes:
        real: of float64 numbers. Where it is not a number the integer result is 0; where it is infinite, it saturates.
        in_float: of a float value, composed of TOSA's operators.
        reach: the magnitude of x beyond which the result (of a gate: the gate) does not change, or is not defined.
        is_gate: the function is x * real(x), with 0 <= real(x) <= 1, and 0 and 1 at the two ends.
        wide: lowering of an int32 operand, if it is not by tables over an interval.
    """

    real: Real
    in_float: Callable[[Context, Value], Value]
    reach: float = math.inf
    is_gate: bool = False
    wide: Callable[[Context, Operand], Operand] | None = None

    @property
    def covered(self) -> float:
        """How many times the calibrated range a TABLE covers; of bounded functions more, as farther entries cost no bits of the others."""
        return 2.0 if 1.0 < self.reach < math.inf else _COVERED_AT_16

    def whole(self, x: np.ndarray) -> np.ndarray:
        """The function itself."""
        with np.errstate(all="ignore"):
            return x * self.real(x) if self.is_gate else self.real(x)


def unary(ctx: Context, x: Operand, function: Function) -> Operand:
    """A function of a quantized operand in integers, unless its result is wanted in float."""
    x = as_real(ctx, x)
    if x.quant is None or (ctx.want is None and ctx.spec.holds("FP")):
        value = ctx.floats(x)[0].value
        assert value is not None
        return Operand(function.in_float(ctx, value))
    x = ctx.store(ctx.resolve_clamp(ctx.uniform(x)))
    assert x.quant is not None
    if x.quant.dtype is DType.INT8:
        return by_stored(ctx, x, function.whole)
    if x.quant.dtype is DType.INT16:
        return _of_int16(ctx, x, function)
    return function.wide(ctx, x) if function.wide is not None else by_interval(ctx, x, function)


def like(x: Operand, value: Value, quant: Quant, bits: int | None) -> Operand:
    """A result in the (pending) layout of its operand."""
    return Operand(value, quant=quant, perm=x.perm, view=x.view, bits=bits)


def times(x: Operand, factor: float) -> Operand:
    """x * factor, by its scale."""
    assert x.quant is not None
    return replace(x, quant=replace(x.quant, scale=x.scale * factor))


def wanted_limit(ctx: Context) -> float:
    """The largest magnitude that the wanted quantization holds; int32 has 6 bits of head-room over its calibrated range."""
    want = ctx.want
    if want is None:
        return math.inf
    if want.dtype is DType.INT32:
        return float(want.scales) * SATURATED
    return float(want.scales) * max(want.dtype.max - want.zero_point, want.zero_point - want.dtype.min)


def wanted_in_use(ctx: Context) -> float:
    """The largest magnitude of a result in calibration."""
    return wanted_limit(ctx) / (64 if ctx.want is not None and ctx.want.dtype is DType.INT32 else 1)


# One entry for each stored value


def by_stored(ctx: Context, x: Operand, real: Real) -> Operand:
    """A function of an int8 or int16 operand, exactly: the entries include both quantizations."""
    assert x.quant is not None and x.value is not None
    dtype = x.quant.dtype
    with np.errstate(all="ignore"):
        results = np.nan_to_num(real(x.quant.real(np.arange(dtype.min, dtype.max + 1))), nan=0.0, posinf=math.inf, neginf=-math.inf)
    finite = np.abs(results[np.isfinite(results)])
    want = ctx.want or Quant((float(finite.max(initial=0.0)) or 1.0) / 2**23, 0, DType.INT32)
    entries = want.store(results)
    if want.dtype is DType.INT32:
        entries = np.clip(entries, -SATURATED, SATURATED)
    if dtype is want.dtype is DType.INT8:
        return like(x, ctx.emit(ops.Table(), x.value, ctx.i8(entries)), want, None)
    bits = int(np.abs(entries).max()).bit_length() if want.dtype is DType.INT32 else None
    return like(x, lookup(ctx, entries, index_of(ctx, x.value), want.dtype), want, bits)


def _of_int16(ctx: Context, x: Operand, function: Function) -> Operand:
    """TABLE of int16 where the result stays within a step of int16, else one entry for each stored value."""
    assert x.quant is not None and x.value is not None
    edge = x.scale * 2**15
    if ctx.spec.holds("int16"):
        whole, limit = replace(function, real=function.whole, is_gate=False), wanted_in_use(ctx)
        for radius in sorted({edge, min(edge, function.reach)}, reverse=True):
            curve = Curve.of(whole.real, radius, limit)
            if curve is not None and curve.error(whole.real, False, edge, limit).close:
                value = x.value if radius == edge else ctx.rescale(x.value, Quant(edge / radius, 0, DType.INT16), WHOLE16)
                return like(x, curve.emit(ctx, value), Quant(curve.scale, 0, DType.INT32), 22)
    return by_stored(ctx, x, function.whole)


# Entries at equal steps of an interval


def by_interval(ctx: Context, x: Operand, function: Function, centre: int = 0, radius: float | None = None) -> Operand:
    """A function of x - centre for an int32 operand, or for an int16 one whose whole range is the interval.

    Args:
        centre: in stored units.
        radius: of the interval, if it is not for `radius_of` to choose.
    """
    assert x.quant is not None and x.value is not None
    limit, in_use = (math.inf, math.inf) if function.is_gate else (wanted_limit(ctx), wanted_in_use(ctx))
    radius = radius_of(x, function.reach) if radius is None else radius
    around_zero = x.quant.dtype is DType.INT32 and not centre
    if around_zero and ctx.want is not None and ctx.want.dtype is not DType.INT32 and (short := _to_narrow(ctx, x, function)) is not None:
        return short
    edges = [min(edge, radius) for edge in _edges(x)] if around_zero else [radius]
    reached = np.abs(finite(function.real, in_use)(np.linspace(-max(edges), max(edges), 999))).max()
    in_use = min(in_use, float(reached) or 1.0)
    steps = _cheapest(ctx, function, radius, edges, limit, in_use, _LINES if around_zero else ())
    value = steps.emit(ctx, steps.position(ctx, x, centre))
    if not function.is_gate:
        return like(x, value, Quant(steps.scale, 0, DType.INT32), steps.bits())
    # |gate| < 2^bits, so that the product is within the operand
    shift = steps.bits()
    scale = x.scale * steps.scale * 2.0**shift
    return like(x, ctx.emit(ops.Mul(shift), x.value, value), Quant(scale, 0, DType.INT32), structural_bits(x))


def _to_narrow(ctx: Context, x: Operand, function: Function) -> Operand | None:
    """The function itself for a narrow result, where 16 bits of the operand are enough: a TABLE, or a GATHER of results in int8."""
    assert ctx.want is not None
    to_int8 = ctx.want.dtype is DType.INT8
    if not to_int8 and not ctx.spec.holds("int16"):
        return None
    limit = wanted_limit(ctx)
    edge = _reached(ctx, x, function)
    radius = COVERED * edge if function.is_gate else min(COVERED * edge, function.reach)
    radius = radius if to_int8 else _needed(ctx, function, radius)
    if ctx.spec.holds("int16"):
        curve = Curve.of(function.whole, radius, 2 * limit)
        if curve is None or curve.error(function.whole, False, min(edge, radius), limit).decibels < (_ENOUGH_FOR_8 if to_int8 else ENOUGH):
            return None
        return like(x, curve.emit(ctx, position16(ctx, x, radius)), Quant(curve.scale, 0, DType.INT32), curve.bits())
    results = finite(function.whole, 4 * limit)(np.arange(-(2**15), 2**15) / 2**15 * radius)
    if float(np.abs(np.diff(results)).max()) > _SMALL_STEP * float(ctx.want.scales):
        return None
    found = lookup(ctx, ctx.want.store(results), index_of(ctx, position16(ctx, x, radius)), DType.INT8)
    return like(x, found, ctx.want, None)


def _reached(ctx: Context, x: Operand, function: Function) -> float:
    """Magnitude of the operand that the table of a narrow result must hold: what calibration saw, or else typical of its bound, twice, four
    times, .. that, until farther operands have the results of the ends.
    """
    assert ctx.want is not None
    edge, bound = typical(x), _bound(x)
    if bound is None:
        return edge
    far = np.linspace(-bound, bound, 4095)
    results = finite(function.whole, 4 * wanted_limit(ctx))
    while edge < bound and (ctx.want.store(results(far)) != ctx.want.store(results(np.clip(far, -COVERED * edge, COVERED * edge)))).any():
        edge *= 2
    return min(edge, bound)


def _needed(ctx: Context, function: Function, radius: float) -> float:
    """The part of `radius` beyond which operands have the results of the ends: entries are closer there."""
    assert ctx.want is not None
    x, results = np.linspace(-radius, radius, 4095), finite(function.whole, 4 * wanted_limit(ctx))
    stored, low, high = ctx.want.store(results(x)), 0, _PARTS
    while high - low > 1:
        middle = (low + high) // 2
        end = radius * middle / _PARTS
        same = (ctx.want.store(results(np.clip(x, -end, end))) == stored).all()
        low, high = (low, middle) if same else (middle, high)
    return radius * high / _PARTS


def _cheapest(
    ctx: Context, function: Function, radius: float, edges: list[float], limit: float, in_use: float, lines: tuple[int, ...]
) -> Steps:
    """The first kind of entries that is good enough, else the last."""
    kinds: list[Callable[[], Steps | None]] = [lambda: Nearest.of(function.real, radius, limit)]
    kinds += [lambda bits=bits: Line.of(function.real, radius, limit, bits) for bits in lines]  # type: ignore[misc]
    if ctx.spec.holds("int16"):
        # its entries are few, and of 16 bits: no sharing, but an interval and results no larger than they must be
        kinds.insert(0, lambda: Curve.of(function.real, min(radius, function.covered * max(edges)), COVERED * in_use))
    found: Steps | None = None
    for kind in kinds:
        steps = kind()
        if steps is None:
            continue
        found = steps
        if all(found.error(function.real, function.is_gate, edge, in_use).decibels >= ENOUGH for edge in edges):
            break
    assert found is not None
    return found


def typical(x: Operand) -> float:
    """Magnitude that an int32 operand reaches in use.

    What calibration saw, or else 2^23 steps. Of an accumulator only the bound is known, which its inputs do not come near.
    """
    assert x.quant is not None
    steps = x.calibrated or (2.0 ** (x.bits - 4) if x.bits is not None else CALIBRATED)
    return x.scale * steps


def _bound(x: Operand) -> float | None:
    """The bound of an operand of which calibration says nothing."""
    assert x.quant is not None
    return None if x.bits is None or x.calibrated is not None else x.scale * 2.0**x.bits


def _edges(x: Operand) -> list[float]:
    """Ranges over which an approximation must be good."""
    bound = _bound(x)
    return [typical(x)] if bound is None else [typical(x), bound]


def radius_of(x: Operand, reach: float) -> float:
    """Radius of the interval: the bound, or twice the calibrated range, up to the next of few values."""
    largest = _bound(x) or 2 * typical(x)
    if math.isinf(reach):
        return 2.0 ** math.ceil(math.log2(largest))
    return reach * 2.0 ** min(0, math.ceil(math.log2(largest / reach)))
