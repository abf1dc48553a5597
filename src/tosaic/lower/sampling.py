"""grid_sample: GATHER of the neighbours of computed positions, weighted by the distances.

Positions are int32 fixed point for quantized tensors, and numbers for float ones; a neighbour is one element of the trailing
dimensions of [N, P, 2, 2] (two for each spatial axis; one where the nearest is taken, four where it is bicubic), P positions in
each image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.conv import FIRST, LAST
from tosaic.lower.layout import sliced
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import is_quantized
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
BILINEAR, NEAREST, BICUBIC = 0, 1, 2
ZEROS, BORDER, REFLECTION = 0, 1, 2
_BITS = 22  # of an image of int8 or int16 while it is weighted
_REACH = {ZEROS: 2.0, BORDER: 2.0, REFLECTION: 16.0}  # grids beyond saturate; with zeros and borders that changes nothing
_REACH_CUBIC = 6.0  # likewise, where two pixels beyond the image have their neighbours in it
# weights of the neighbours -1, 0, 1, 2 as cubic polynomials of the fraction, highest power first (Keys 1981, a = -3/4 as in PyTorch)
_CUBIC = 0.25 * np.array([[-3.0, 5.0, -5.0, 3.0], [6.0, -9.0, 6.0, -3.0], [-3.0, 0.0, 3.0, 0.0], [0.0, 4.0, 0.0, 0.0]])
_GAIN = {BILINEAR: 1.0, BICUBIC: 1.375**2}  # largest sum of the magnitudes of the weights of a position: at its half for a cubic


@dataclass(frozen=True)
class _Axis:
    """One coordinate of all positions.

    Attributes:
        index: of the neighbours, inside the image, [N, P, .., 2, ..]: int32, or whole float numbers.
        weight: theirs, fixed point with the fractional bits of the call, or float; None: the nearest, which weighs 1.
        inside: whether they are in the image, bool; None where all are.
    """

    index: Value
    weight: Value | None
    inside: Value | None


@dataclass(frozen=True)
class _Numbers:
    """Arithmetic on positions; `bits` fractional bits of integers, None for floats."""

    ctx: Context
    bits: int | None

    def const(self, number: float | np.ndarray, like: Value) -> Value:
        """A number in the position's own format."""
        if self.bits is None:
            return self.ctx.real(number, like)
        return self.ctx.i32(np.rint(np.asarray(number, dtype=np.float64) * 2.0**self.bits), len(like.shape))

    def times(self, x: Value, scale: float, factor: float) -> Value:
        """Stored numbers of a scale (1 for floats), times a factor."""
        if self.bits is None:
            return self.ctx.emit(ops.Mul(), x, self.const(factor, x))
        if factor == 0:
            return self.ctx.emit(ops.Mul(), x, self.ctx.i32(0, len(x.shape)))
        return self.ctx.rescale(x, Quant(scale * factor * 2.0**self.bits, 0, DType.INT32), Quant(1.0, 0, DType.INT32))

    def between(self, x: Value, low: int, high: int) -> Value:
        """Whole numbers, limited."""
        if self.bits is None:
            return self.ctx.emit(ops.Clamp(float(low), float(high)), x)
        return self.ctx.emit(ops.Minimum(), self.ctx.emit(ops.Maximum(), x, self.whole(low, x)), self.whole(high, x))

    def clamped(self, x: Value, low: float, high: float) -> Value:
        if self.bits is None:
            return self.ctx.emit(ops.Clamp(low, high), x)
        return self.ctx.emit(ops.Minimum(), self.ctx.emit(ops.Maximum(), x, self.const(low, x)), self.const(high, x))

    def floor(self, x: Value) -> Value:
        """As whole numbers: int32, or float."""
        if self.bits is None:
            return self.ctx.emit(ops.Floor(), x)
        return self.ctx.emit(ops.ArithmeticRightShift(), x, self.ctx.i32(self.bits, len(x.shape)))

    def fraction(self, x: Value, whole: Value) -> Value:
        if self.bits is None:
            return self.ctx.emit(ops.Sub(), x, whole)
        return self.ctx.emit(ops.BitwiseAnd(), x, self.ctx.i32(2**self.bits - 1, len(x.shape)))

    def whole(self, number: float | np.ndarray, like: Value) -> Value:
        """A whole number in the format of `floor`."""
        return self.ctx.i32(number, len(like.shape)) if self.bits is not None else self.ctx.real(number, like)

    def nearest(self, x: Value) -> Value:
        """Rounded, ties to even as PyTorch does: floor(x + 1/2), one less where that is odd and x was a tie.

        For integers: (x + 1/2 - 1 step + (floor(x) mod 2)) >> bits.
        """
        emit = self.ctx.emit
        if self.bits is not None:
            odd = emit(ops.BitwiseAnd(), self.floor(x), self.ctx.i32(1, len(x.shape)))
            step = self.ctx.i32(2 ** (self.bits - 1) - 1, len(x.shape))
            return self.floor(emit(ops.Add(), emit(ops.Add(), x, step), odd))
        up = emit(ops.Floor(), emit(ops.Add(), x, self.const(0.5, x)))
        tie = emit(ops.Equal(), emit(ops.Sub(), up, x), self.const(0.5, x))
        half = emit(ops.Mul(), up, self.const(0.5, x))
        odd = emit(ops.Greater(), half, emit(ops.Floor(), half))
        return emit(ops.Select(), emit(ops.LogicalAnd(), tie, odd), emit(ops.Sub(), up, self.const(1.0, x)), up)

    def reflected(self, x: Value, low: float, span: float) -> Value:
        """Reflected at `low` and `low + span` until it is between them."""
        emit = self.ctx.emit
        away = emit(ops.Abs(), emit(ops.Sub(), x, self.const(low, x)))
        if self.bits is not None:
            size = self.const(span, x)
            times = emit(ops.IntDiv(), away, size)
            rest = emit(ops.Sub(), away, emit(ops.Mul(), times, size))
            odd = emit(ops.Equal(), emit(ops.BitwiseAnd(), times, self.ctx.i32(1, len(x.shape))), self.ctx.i32(1, len(x.shape)))
        else:
            times = emit(ops.Floor(), emit(ops.Mul(), away, self.const(1.0 / span, x)))
            rest = emit(ops.Sub(), away, emit(ops.Mul(), times, self.const(span, x)))
            half = emit(ops.Mul(), times, self.const(0.5, x))
            odd = emit(ops.Greater(), half, emit(ops.Floor(), half))
        back = emit(ops.Select(), odd, emit(ops.Sub(), self.const(span, x), rest), rest)
        return emit(ops.Add(), back, self.const(low, x))


@lower(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(ctx: Context, x: Operand, grid: Operand, mode: int, padding: int, align_corners: bool) -> Operand:
    """grid_sampler_2d(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor

    Bilinear, nearest and (of images) bicubic.
    """
    sizes, outs = x.shape[2:], grid.shape[1:-1]
    if math.prod(sizes) >= 2**24:
        raise ctx.refuse(f"grid_sample of {math.prod(sizes)} pixels; positions hold 2^24")
    integer = is_quantized(ctx, x, grid)
    if integer:
        x = _stored_image(ctx, x) if x.is_const else ctx.resolve_clamp(ctx.uniform(x))
        x = ctx.limited(x) if mode == BICUBIC else x
    else:
        x, grid = ctx.floats(x, grid)
    # positions are below (reach + 1) size / 2, with their fractional bits (20 at most) below 2^28
    reach = max(_REACH[padding], _REACH_CUBIC) if mode == BICUBIC else _REACH[padding]
    bits = min(20, 28 - math.ceil(math.log2((reach + 1) * max(sizes) / 2))) if integer else None
    numbers = _Numbers(ctx, bits)
    places = _places(numbers, grid, sizes, reach, align_corners)
    neighbours = _cubic_neighbours if mode == BICUBIC else functools.partial(_neighbours, nearest=mode == NEAREST)
    axes = [neighbours(numbers, place, i, sizes[i], padding, align_corners) for i, place in enumerate(places)]
    result = _picked(numbers, x, axes, sizes, _GAIN.get(mode, 1.0))
    assert result.value is not None
    value = ctx.reshape(result.value, (x.shape[0], *outs, x.shape[1]))
    return replace(result, value=value, perm=FIRST[len(sizes)], view=None)


def _stored_image(ctx: Context, x: Operand) -> Operand:
    """A constant image, as a texture of features is, in 16 bits."""
    scale = (float(np.abs(x.reals()).max(initial=0.0)) or 1.0) / DType.INT16.max
    target = Quant(scale, 0, DType.INT16)
    return ctx.store(Operand(array=target.store(x.reals()), quant=target))


def _places(numbers: _Numbers, grid: Operand, sizes: Sequence[int], reach: float, align_corners: bool) -> list[Value]:
    """Source positions, one tensor [N, P, 1, ..] for each axis of the image: g (size - 1) / 2 + (size - 1) / 2 with
    align_corners, else g size / 2 + (size - 1) / 2. The last coordinate of the grid is that of the first axis.

    RESCALE reads |value| < 2^(shift-1), as the product stays below 2^28.
    """
    ctx, (n, *outs, spatial), scale = numbers.ctx, grid.shape, 1.0
    if numbers.bits is None:
        value = ctx.logical(ctx.store(grid))
    else:
        grid = _whole_grid(ctx, grid)
        scale = float(grid.scaling.scales)
        value, limit = ctx.logical(ctx.store(grid)), int(reach / scale)
        if limit < 2**30:
            value = ctx.emit(ops.Minimum(), value, ctx.i32(limit, len(value.shape)))
            value = ctx.emit(ops.Maximum(), value, ctx.i32(-limit, len(value.shape)))
    found = []
    for i, size in enumerate(sizes):
        place = sliced(ctx, value, len(value.shape) - 1, spatial - 1 - i, spatial - i)
        place = ctx.reshape(place, (n, math.prod(outs), *[1] * spatial))
        half = (size - 1 if align_corners else size) / 2
        found.append(ctx.emit(ops.Add(), numbers.times(place, scale, half), numbers.const((size - 1) / 2, place)))
    return found


def _whole_grid(ctx: Context, grid: Operand) -> Operand:
    """The grid as int32."""
    if not grid.is_const:
        return ctx.to_i32(grid)
    scale = max(float(np.abs(grid.reals()).max(initial=0.0)), 1.0) * 2.0**-24
    return ctx.requantize(replace(grid, array=grid.reals(), quant=None, axis=None), Quant(scale, 0, DType.INT32))


def _reflected(numbers: _Numbers, place: Value, size: int, align_corners: bool) -> Value:
    """Reflected at the centres of the outermost pixels, or at their outer edges."""
    if not align_corners:
        return numbers.reflected(place, -0.5, float(size))
    return numbers.reflected(place, 0.0, float(size - 1)) if size > 1 else place


def _along(shape: Sequence[int], axis: int, numbers: Sequence[float]) -> np.ndarray:
    """One number for each neighbour along a spatial axis of positions [N, P, 1, ..]."""
    return np.array(numbers).reshape([-1 if i == 2 + axis else 1 for i in range(len(shape))])


def _neighbours(numbers: _Numbers, place: Value, axis: int, size: int, padding: int, align_corners: bool, nearest: bool) -> _Axis:
    ctx, last = numbers.ctx, size - 1
    if padding == REFLECTION:
        place = _reflected(numbers, place, size, align_corners)
    place = numbers.clamped(place, -1.0, float(size)) if padding == ZEROS else numbers.clamped(place, 0.0, float(last))
    if nearest:
        return _within(numbers, numbers.nearest(place), None, size, padding)
    low = numbers.floor(place)
    index = ctx.emit(ops.Add(), low, numbers.whole(_along(place.shape, axis, [0.0, 1.0]), low))
    # 1 - fraction and |0 - fraction|
    weight = ctx.emit(ops.Sub(), numbers.const(_along(place.shape, axis, [1.0, 0.0]), place), numbers.fraction(place, low))
    return _within(numbers, index, ctx.emit(ops.Abs(), weight), size, padding)


def _cubic_neighbours(numbers: _Numbers, place: Value, axis: int, size: int, padding: int, align_corners: bool) -> _Axis:
    """Positions beyond the image are interpolated too; it is their neighbours that padding concerns."""
    ctx, shape = numbers.ctx, place.shape
    if padding != REFLECTION:  # from two pixels outside on, all neighbours are
        place = numbers.clamped(place, -2.0, float(size + 1))
    low = numbers.floor(place)
    fraction = numbers.fraction(place, low)
    cubic, *others = [numbers.const(_along(shape, axis, list(row)), place) for row in _CUBIC]
    weight = cubic
    for other in others:
        weight = ctx.emit(ops.Add(), ctx.emit(ops.Mul(numbers.bits or 0), weight, fraction), other)
    whole = low if numbers.bits is None else ctx.emit(ops.Sub(), place, fraction)  # a position, too
    near = ctx.emit(ops.Add(), whole, numbers.const(_along(shape, axis, [-1.0, 0.0, 1.0, 2.0]), place))
    if padding == REFLECTION:
        near = _reflected(numbers, near, size, align_corners)
    return _within(numbers, numbers.floor(near), weight, size, padding)


def _within(numbers: _Numbers, index: Value, weight: Value | None, size: int, padding: int) -> _Axis:
    """Neighbours moved into the image, and whether they were there."""
    nearby = numbers.between(index, 0, size - 1)
    return _Axis(nearby, weight, numbers.ctx.emit(ops.Equal(), nearby, index) if padding == ZEROS else None)


def _picked(numbers: _Numbers, x: Operand, axes: Sequence[_Axis], sizes: Sequence[int], gain: float) -> Operand:
    """The neighbours of each position, summed by weight: [N, P, C]. What is outside the image is zero."""
    ctx = numbers.ctx
    index = axes[0].index
    for axis, size in zip(axes[1:], sizes[1:], strict=True):
        index = ctx.emit(ops.Add(), ctx.emit(ops.Mul(), index, numbers.whole(size, index)), axis.index)
    n, places, *each = index.shape
    count = math.prod(each)
    index = ctx.reshape(index, (n, places * count))  # before the cast: the FP profile does not reshape int32
    if index.dtype is not DType.INT32:
        index = ctx.emit(ops.Cast(DType.INT32), index)
    value = ctx.permuted(x, LAST[len(sizes)])
    value = ctx.reshape(value, (n, math.prod(sizes), x.shape[1]))
    found = ctx.emit(ops.Gather(), value, index)
    inside = [axis.inside for axis in axes if axis.inside is not None]
    if axes[0].weight is None:
        return Operand(_or_zero(ctx, x, found, inside), quant=x.quant, bits=x.bits)
    weight = functools.reduce(lambda a, b: ctx.emit(ops.Mul(numbers.bits or 0), a, b), [_weight(numbers, axis) for axis in axes])
    weight = ctx.reshape(weight, (n, places, count, 1))
    neighbours = replace(x, value=ctx.reshape(found, (n, places, count, x.shape[1])), perm=None, view=None)
    if x.quant is not None and x.quant.dtype is not DType.INT32:
        neighbours = ctx.to_i32(neighbours, float(x.quant.scales) / 2.0 ** (_BITS - ctx.magnitude_bits(x)))
        neighbours = replace(neighbours, bits=_BITS + 1)
    assert neighbours.value is not None
    largest = 0 if numbers.bits is None else max(abs(end) for end in ctx.interval(neighbours.value))
    total = ctx.emit(ops.ReduceSum(2), ctx.emit(ops.Mul(numbers.bits or 0), neighbours.value, weight))
    if numbers.bits is not None:
        # each weight is off by 4 of its last bits at most (three roundings of a cubic, and their products'), and each product by one
        limit = int(largest * (gain + 4 * count * 2.0**-numbers.bits)) + count
        ctx.bounded(total, -limit, limit, "the magnitudes of a position's weights add up to at most 1, or 1.375^2")
        if neighbours.bits is not None:
            neighbours = replace(neighbours, bits=neighbours.bits + math.ceil(math.log2(gain)))
    return replace(neighbours, value=ctx.reshape(total, (n, places, x.shape[1])))


def _weight(numbers: _Numbers, axis: _Axis) -> Value:
    """0 outside the image."""
    assert axis.weight is not None
    if axis.inside is None:
        return axis.weight
    return numbers.ctx.emit(ops.Select(), axis.inside, axis.weight, numbers.const(0.0, axis.weight))


def _or_zero(ctx: Context, x: Operand, found: Value, inside: Sequence[Value]) -> Value:
    if not inside:
        return found
    keep = functools.reduce(lambda a, b: ctx.emit(ops.LogicalAnd(), a, b), inside)
    keep = ctx.reshape(keep, (*keep.shape[:2], 1))
    zero = ctx.real(0.0, found) if x.quant is None else ctx.builder.const(np.full((1, 1, 1), x.quant.zero_point), found.dtype)
    return ctx.emit(ops.Select(), keep, found, zero)
