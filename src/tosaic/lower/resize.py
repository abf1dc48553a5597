"""Interpolation: RESIZE (specification section 2.11.1) where it can hold it, else one axis after the other by its matrix.

The matrix of an axis is what PyTorch itself gives for unit impulses, so that each mode, ratio and border is PyTorch's.
PyTorch samples source position (o + 1/2) d/n - 1/2 (bilinear), o d/n (align_corners and nearest), with n/d the
upscaling ratio; RESIZE samples (o * scale_d + offset) / scale_n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.conv import FIRST, LAST
from tosaic.lower.layout import squeeze, unsqueeze
from tosaic.lower.mac import poolable, reshapable
from tosaic.lower.operand import Operand, Quant, inverse
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.types import DType

aten = torch.ops.aten
Sizes = list[int] | None
Factors = Sequence[float | None] | None
Axis = tuple[int, int, int, int]  # (scale_n, scale_d, offset, border)
_WEIGHT_BITS = 24
_BITS = 22  # of an integer that is interpolated


def _matrices(shape: Sequence[int], size: Sizes, factors: Factors, run: Callable[..., torch.Tensor]) -> list[np.ndarray]:
    """[out, in] for each spatial axis: `run(x, size, factors)` of images that are two pixels wide elsewhere.

    Not one pixel: what PyTorch 2.13 makes of those with antialiasing is wrong.
    """
    found = []
    for i, n in enumerate(shape):
        before, after = [2] * i, [2] * (len(shape) - 1 - i)
        impulses = torch.eye(n, dtype=torch.float64).reshape(1, n, *[1] * i, n, *[1] * len(after)).repeat(1, 1, *before, 1, *after)
        own_size = None if size is None else [*before, size[i], *after]
        own_factors = None if factors is None else [*[1.0] * i, factors[i], *[1.0] * len(after)]
        result = run(impulses, own_size, own_factors)[0].movedim(1 + i, 1)
        found.append(result.reshape(n, result.shape[1], -1)[:, :, 0].T.numpy())
    return found


def _ratio(size: int, out: int, factor: float | None) -> Fraction:
    """Upscaling ratio: the user's scale_factor where one was given, else out / size."""
    return Fraction(out, size) if factor is None else Fraction(factor).limit_denominator(1024)


def _axis(ctx: Context, matrix: np.ndarray, n: int, d: int, offset: int, mode: ops.ResizeMode) -> Axis | None:
    """RESIZE's numbers for an axis in lowest terms; None where it cannot hold them, or would not give `matrix`."""
    out, size = matrix.shape
    common = math.gcd(n, d, offset)
    n, d, offset = n // common, d // common, offset // common
    border = (out - 1) * d + offset - (size - 1) * n
    if n > 2048 or d >= 16 * n or n > ctx.spec.level.max_scale * d or not -n <= offset < 16 * n or not -16 * n <= border < n:
        return None
    position = np.arange(out) * d + offset
    low, fraction = position // n, position % n / n
    if mode is ops.ResizeMode.NEAREST:
        fraction = np.floor(fraction + 0.5)
    expected = np.zeros(matrix.shape)
    np.add.at(expected, (np.arange(out), np.clip(low, 0, size - 1)), 1 - fraction)
    np.add.at(expected, (np.arange(out), np.clip(low + 1, 0, size - 1)), fraction)
    return (n, d, offset, border) if np.abs(expected - matrix).max() < 1e-6 else None


def _axes(
    ctx: Context, matrices: Sequence[np.ndarray], factors: Factors, mode: ops.ResizeMode, corners: bool, exact: bool
) -> list[Axis] | None:
    axes = []
    for i, matrix in enumerate(matrices):
        out, size = matrix.shape
        if corners and (out == 1 or size == 1):
            axis = _axis(ctx, matrix, 1, 1, 0, mode) if out == size else None
        elif corners:
            axis = _axis(ctx, matrix, out - 1, size - 1, 0, mode)
        else:
            ratio = _ratio(size, out, None if factors is None else factors[i])
            n, d = ratio.numerator, ratio.denominator
            axis = _axis(ctx, matrix, 2 * n, 2 * d, -n if mode is ops.ResizeMode.NEAREST and not exact else d - n, mode)
        if axis is None:
            return None
        axes.append(axis)
    return axes


def _resize(ctx: Context, x: Operand, axes: list[Axis], mode: ops.ResizeMode) -> Operand:
    (yn, yd, yo, yb), (xn, xd, xo, xb) = axes
    out = ctx.emit(ops.Resize((yn, yd, xn, xd), (yo, xo), (yb, xb), mode), ctx.permuted(x, NHWC))
    if x.quant is None or mode is ops.ResizeMode.NEAREST:
        return Operand(out, quant=x.quant, perm=NCHW)
    weight = yn * xn  # the weights of the four neighbours sum to it
    if x.quant.zero_point:
        out = ctx.emit(ops.Sub(), out, ctx.i32(weight * x.quant.zero_point, 4))
    dtype = ops.ACCUMULATOR[x.quant.dtype]
    bits = ctx.magnitude_bits(x) + weight.bit_length()
    return Operand(out, quant=Quant(x.scale / weight, 0, dtype), perm=NCHW, bits=bits)


def _taps(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source positions and weights of each row, [out, taps]; rows with fewer have weights of 0."""
    count = int((matrix != 0).sum(1).max())
    order = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(matrix, order, 1)


def interpolated(ctx: Context, x: Operand, matrices: Sequence[np.ndarray]) -> Operand:
    """`x` [N, C, *spatial] with a matrix [out, in] applied along each spatial axis.

    Integers are int32 of 22 bits there (an int32 operand keeps what it has) and weights have 24 fractional bits. The sum of
    a row's weights is below 2^s: where an operand is wide, s bits are dropped, so that results stay below 2^30 as it does.
    """
    x = ctx.resolve_clamp(ctx.uniform(x)) if x.quant is not None else ctx.floats(x)[0]
    repeats = [_repeat(matrix) for matrix in matrices]
    if all(repeats):
        return _repeated(ctx, x, repeats)
    for i, matrix in enumerate(matrices):
        if matrix.shape[0] != matrix.shape[1] or not np.array_equal(matrix, np.eye(len(matrix))):
            x = _along(ctx, x, 2 + i, *_taps(matrix))
    return x


def _repeat(matrix: np.ndarray) -> int:
    """How often each element stands in the result, in order; 0 if that is not what the matrix does."""
    times = matrix.shape[0] // matrix.shape[1]
    return times if np.array_equal(matrix, np.repeat(np.eye(matrix.shape[1]), times, 0)) else 0


def _repeated(ctx: Context, x: Operand, times: Sequence[int]) -> Operand:
    """Nearest neighbours in whole ratios: one TILE for two axes, as there are six dimensions at most."""
    spatial = len(times)
    value = ctx.permuted(x, LAST[spatial])
    n, *sizes, c = value.shape
    outs = [size * t for size, t in zip(sizes, times, strict=True)]
    while sizes:
        left, right = sizes[:2], times[spatial - len(sizes) :][:2]
        rest = math.prod(sizes[2:]) * c
        shape = [n, *(d for size in left for d in (size, 1)), rest]
        if max(right) > 1:
            value = ctx.emit(ops.Tile((1, *(m for t in right for m in (1, t)), 1)), ctx.reshape(value, shape))
        n, sizes = n * math.prod(a * b for a, b in zip(left, right, strict=True)), sizes[2:]
    return replace(x, value=ctx.reshape(value, (x.shape[0], *outs, c)), perm=FIRST[spatial], view=None)


def _along(ctx: Context, x: Operand, axis: int, index: np.ndarray, weights: np.ndarray) -> Operand:
    """One axis, brought to the front: [N, in, rest] -> GATHER [N, out * taps, rest] -> sum over the taps."""
    rank, (out, taps) = len(x.shape), index.shape
    perm = (0, axis, *(i for i in range(2, rank) if i != axis), 1)
    value = ctx.permuted(x, perm)
    n, size, *rest = value.shape
    value = ctx.reshape(value, (n, size, math.prod(rest)))
    value = ctx.emit(ops.Gather(), value, ctx.i32(np.tile(index.reshape(1, -1), (n, 1))))
    x = replace(x, value=value, perm=None, view=None)
    if taps > 1 or (weights != 1).any():
        x = _weighted(ctx, replace(x, value=ctx.reshape(value, (n, out, taps, math.prod(rest)))), weights)
    assert x.value is not None
    return replace(x, value=ctx.reshape(x.value, (n, out, *rest)), perm=inverse(perm))


def _weighted(ctx: Context, x: Operand, weights: np.ndarray) -> Operand:
    """[N, out, taps, rest] times the weights [out, taps], summed over the taps."""
    factors = weights.reshape(1, *weights.shape, 1)
    value = x.value
    assert value is not None
    if x.quant is None:
        return replace(x, value=ctx.emit(ops.ReduceSum(2), ctx.emit(ops.Mul(), value, ctx.real(factors, value))))
    if x.quant.dtype is not DType.INT32:
        x = ctx.to_i32(x, float(x.quant.scales) / 2.0 ** (_BITS - ctx.magnitude_bits(x)))
        x = replace(x, bits=_BITS)
    grows = math.ceil(math.log2(np.abs(weights).sum(1).max()) - 1e-9)
    drop = grows if x.bits is None else 0
    stored = ctx.i32(np.rint(factors * 2.0 ** (_WEIGHT_BITS - drop)))
    total = ctx.emit(ops.ReduceSum(2), ctx.emit(ops.Mul(_WEIGHT_BITS), x.tensor, stored))
    assert x.quant is not None
    scale = float(x.quant.scales) * 2.0**drop
    return replace(x, value=total, quant=Quant(scale, 0, DType.INT32), bits=None if x.bits is None else x.bits + grows + 1)


def _interpolation(
    ctx: Context, x: Operand, size: Sizes, factors: Factors, mode: ops.ResizeMode | None, run: Callable[..., torch.Tensor],
    corners: bool = False, exact: bool = False,
) -> Operand:  # fmt: skip
    """By RESIZE where `mode` names one and it holds the ratios; images of one dimension are one pixel high there."""
    spatial = len(x.shape) - 2
    matrices = _matrices(x.shape[2:], size, factors, run)
    wide = x.quant is not None and not ctx.is_narrow(x) and (ctx.want is None or ctx.want.dtype is DType.INT32)
    wide |= x.quant is not None and x.quant.dtype is DType.INT16 and not ctx.spec.holds("int16")
    axes = None if mode is None or wide or spatial > 2 else _axes(ctx, matrices, factors, mode, corners, exact)
    if axes is None or mode is None:
        return interpolated(ctx, x if wide else poolable(ctx, x), matrices)
    x = poolable(ctx, x)
    if spatial == 1:
        return squeeze(ctx, reshapable(ctx, _resize(ctx, unsqueeze(ctx, x, -2), [(1, 1, 0, 0), *axes], mode)), -2)
    return _resize(ctx, x, axes, mode)


def _given(x: Operand, size: list[int], scales: Sequence[float | None]) -> tuple[Sizes, Factors]:
    """The scales where they are known and make this size, else the size: positions are computed from what was given."""
    known = [s for s in scales if s is not None]
    if len(known) == len(size) and all(math.floor(n * s) == out for n, s, out in zip(x.shape[2:], known, size, strict=True)):
        return None, known
    return size, None


def _with_corners(packet: torch._ops.OpOverloadPacket, mode: ops.ResizeMode | None, *, both: bool) -> None:
    """Register an interpolation that has align_corners: the form of `interpolate`, and the other where torch.export keeps it."""

    def vec(ctx: Context, x: Operand, size: Sizes, align_corners: bool, factors: Factors) -> Operand:
        """upsample_*.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""
        return _interpolation(ctx, x, size, factors, mode, lambda t, s, f: packet.vec(t, s, align_corners, f), align_corners)

    def default(ctx: Context, x: Operand, size: list[int], align_corners: bool, *scales: float | None) -> Operand:
        """upsample_*(Tensor self, SymInt[] output_size, bool align_corners, float? scales=None, ..) -> Tensor"""
        return vec(ctx, x, _given(x, size, scales)[0], align_corners, _given(x, size, scales)[1])

    lower(packet.vec)(vec)
    if both:
        lower(packet.default)(default)


def _nearest(packet: torch._ops.OpOverloadPacket, exact: bool) -> None:
    """Register both forms of a choice of nearest neighbours."""

    def vec(ctx: Context, x: Operand, size: Sizes, factors: Factors) -> Operand:
        """upsample_nearest*.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor

        RESIZE rounds to the nearest; an offset of half a source step makes a floor of it, which is PyTorch's "nearest".
        """
        return _interpolation(ctx, x, size, factors, ops.ResizeMode.NEAREST, packet.vec, exact=exact)

    def default(ctx: Context, x: Operand, size: list[int], *scales: float | None) -> Operand:
        """upsample_nearest*(Tensor self, SymInt[] output_size, float? scales=None, ..) -> Tensor"""
        return vec(ctx, x, *_given(x, size, scales))

    lower(packet.vec)(vec)
    lower(packet.default)(default)


def _antialiased(packet: torch._ops.OpOverloadPacket) -> None:
    def lowered(ctx: Context, x: Operand, size: list[int], align_corners: bool, *scales: float | None) -> Operand:
        """_upsample_*2d_aa(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor"""
        factors = scales or (None, None)
        return _interpolation(ctx, x, size, factors, None, lambda t, s, f: packet.default(t, s, align_corners, *f))

    lower(packet.default)(lowered)


_with_corners(aten.upsample_linear1d, ops.ResizeMode.BILINEAR, both=True)
_with_corners(aten.upsample_bilinear2d, ops.ResizeMode.BILINEAR, both=False)
_with_corners(aten.upsample_trilinear3d, None, both=True)
_with_corners(aten.upsample_bicubic2d, None, both=False)
_nearest(aten.upsample_nearest1d, exact=False)
_nearest(aten.upsample_nearest2d, exact=False)
_nearest(aten.upsample_nearest3d, exact=False)
_nearest(aten._upsample_nearest_exact1d, exact=True)
_nearest(aten._upsample_nearest_exact2d, exact=True)
_nearest(aten._upsample_nearest_exact3d, exact=True)
_antialiased(aten._upsample_bilinear2d_aa)
_antialiased(aten._upsample_bicubic2d_aa)
