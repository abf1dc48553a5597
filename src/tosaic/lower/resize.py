"""Interpolation by RESIZE (specification section 2.11.1).

PyTorch samples source position (o + 1/2) d/n - 1/2 (bilinear), o d/n (align_corners and nearest), with n/d the
upscaling ratio; RESIZE samples (o * scale_d + offset) / scale_n.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.layout import sliced
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reduce import _poolable, through_images
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


def _ratio(size: int, out: int, factor: float | None) -> Fraction:
    """Upscaling ratio: the user's scale_factor where one was given, else out / size."""
    return Fraction(out, size) if factor is None else Fraction(factor).limit_denominator(1024)


def _sizes(ctx: Context, x: Operand, size: list[int] | None, factors: list[float] | None) -> tuple[list[int], list[float | None]]:
    if len(x.shape) != 4:
        raise ctx.refuse(f"takes [N, C, H, W], found {list(x.shape)}")
    if size is not None:
        return list(size), [None, None]
    assert factors is not None
    return [math.floor(d * f) for d, f in zip(x.shape[2:], factors, strict=True)], list(factors)


def _axis(ctx: Context, size: int, out: int, n: int, d: int, offset: int) -> tuple[int, int, int, int]:
    """(scale_n, scale_d, offset, border) in lowest terms, checked against what RESIZE can hold."""
    common = math.gcd(n, d, offset)
    n, d, offset = n // common, d // common, offset // common
    border = (out - 1) * d + offset - (size - 1) * n
    if n > 2048 or d >= 16 * n or n > ctx.spec.level.max_scale * d or not -n <= offset < 16 * n or not -16 * n <= border < n:
        raise ctx.refuse(f"interpolation of {size} to {out}: RESIZE cannot hold the ratio {n}/{d} (offset {offset}, border {border})")
    return n, d, offset, border


def _resize(ctx: Context, x: Operand, value: Value, axes: list[tuple[int, int, int, int]], mode: ops.ResizeMode) -> Operand:
    (yn, yd, yo, yb), (xn, xd, xo, xb) = axes
    out = ctx.emit(ops.Resize((yn, yd, xn, xd), (yo, xo), (yb, xb), mode), value)
    if x.quant is None or mode is ops.ResizeMode.NEAREST:
        return Operand(out, quant=x.quant, perm=NCHW)
    weight = yn * xn  # the weights of the four neighbours sum to it
    if x.quant.zero_point:
        out = ctx.emit(ops.Sub(), out, ctx.i32(weight * x.quant.zero_point, 4))
    dtype = ops.ACCUMULATOR[x.quant.dtype]
    bits = ctx.magnitude_bits(x) + weight.bit_length()
    return Operand(out, quant=Quant(float(x.quant.scale) / weight, 0, dtype), perm=NCHW, bits=bits)  # type: ignore[arg-type]


@lower(aten.upsample_bilinear2d.vec)
def upsample_bilinear2d(ctx: Context, x: Operand, size: list[int] | None, align_corners: bool, factors: list[float] | None) -> Operand:
    """upsample_bilinear2d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""
    outs, given = _sizes(ctx, x, size, factors)
    x = _poolable(ctx, x)
    value = ctx.permuted(x, NHWC)
    axes = []
    for i, (out, factor) in enumerate(zip(outs, given, strict=True)):
        have = value.shape[1 + i]
        if align_corners and (out == 1 or have == 1):
            value = sliced(ctx, value, 1 + i, 0, 1)
            axes.append(_axis(ctx, 1, out, 1 if out == 1 else out, 1, 0))
        elif align_corners:
            axes.append(_axis(ctx, have, out, out - 1, have - 1, 0))
        else:
            ratio = _ratio(have, out, factor)
            axes.append(_axis(ctx, have, out, 2 * ratio.numerator, 2 * ratio.denominator, ratio.denominator - ratio.numerator))
    return _resize(ctx, x, value, axes, ops.ResizeMode.BILINEAR)


@lower(aten.upsample_nearest2d.vec)
def upsample_nearest2d(ctx: Context, x: Operand, size: list[int] | None, factors: list[float] | None) -> Operand:
    """upsample_nearest2d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor

    RESIZE rounds to the nearest; an offset of half a source step makes a floor of it, which is PyTorch's "nearest".
    """
    outs, given = _sizes(ctx, x, size, factors)
    if x.quant is not None and not ctx.is_narrow(x) and (ctx.want is None or ctx.want.dtype is DType.INT32):
        return _repeated(ctx, x, outs, given)
    x = _poolable(ctx, x)
    axes = []
    for have, out, factor in zip(x.shape[2:], outs, given, strict=True):
        ratio = _ratio(have, out, factor)
        axes.append(_axis(ctx, have, out, 2 * ratio.numerator, 2 * ratio.denominator, -ratio.numerator))
    return _resize(ctx, x, ctx.permuted(x, NHWC), axes, ops.ResizeMode.NEAREST)


def _repeated(ctx: Context, x: Operand, outs: list[int], factors: list[float | None]) -> Operand:
    """Nearest neighbours of an int32 value, which RESIZE does not take: TILE for whole ratios, else one GATHER for each axis."""
    x = ctx.resolve_clamp(ctx.uniform(x))
    value = ctx.permuted(x, NHWC)
    n, h, w, c = value.shape
    oh, ow = outs
    if oh % h == 0 and ow % w == 0 and all(f is None or f == o / d for f, o, d in zip(factors, outs, (h, w), strict=True)):
        value = ctx.emit(ops.Tile((1, 1, oh // h, 1, ow // w, 1)), ctx.reshape(value, (n, h, 1, w, 1, c)))
        return Operand(ctx.reshape(value, (n, oh, ow, c)), quant=x.quant, perm=NCHW)
    value = _gathered(ctx, ctx.reshape(value, (n, h, w * c)), oh, factors[0])
    value = _gathered(ctx, ctx.reshape(value, (n * oh, w, c)), ow, factors[1])
    return Operand(ctx.reshape(value, (n, oh, ow, c)), quant=x.quant, perm=NCHW)


def _gathered(ctx: Context, value: Value, out: int, factor: float | None) -> Value:
    """[N, K, C] -> [N, out, C], source row floor(i / ratio)."""
    batch, size, _ = value.shape
    ratio = _ratio(size, out, factor)
    rows = [min(size - 1, i * ratio.denominator // ratio.numerator) for i in range(out)]
    return ctx.emit(ops.Gather(), value, ctx.i32(np.tile(rows, (batch, 1))))


@lower(aten.upsample_nearest1d.vec)
def upsample_nearest1d(ctx: Context, x: Operand, size: list[int] | None, factors: list[float] | None) -> Operand:
    """upsample_nearest1d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor"""
    return through_images(ctx, upsample_nearest2d, x, -2, *_with_height(size, factors))


@lower(aten.upsample_linear1d.vec)
def upsample_linear1d(ctx: Context, x: Operand, size: list[int] | None, align_corners: bool, factors: list[float] | None) -> Operand:
    """upsample_linear1d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor"""
    sizes, scales = _with_height(size, factors)
    return through_images(ctx, upsample_bilinear2d, x, -2, sizes, align_corners, scales)


def _with_height(size: list[int] | None, factors: list[float] | None) -> tuple[list[int] | None, list[float] | None]:
    """Arguments of an interpolation along one axis, for images one pixel high."""
    return None if size is None else [1, *size], None if factors is None else [1.0, *factors]
