"""Means over windows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.conv import FIRST, LAST, fit_window, strided
from tosaic.lower.elementwise import multiply
from tosaic.lower.layout import sliced
from tosaic.lower.mac import poolable, zero_point
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.pool import Numbers, Windows, adaptive_windows, along_windows, folded, reduced, through_images, windows_of
from tosaic.lower.reduce import mean
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


@lower(aten.avg_pool2d.default)
def avg_pool2d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Operand:
    """avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False,
    bool count_include_pad=True, int? divisor_override=None) -> Tensor

    AVG_POOL2D in float: it counts elements of the input only; padding that counts is written out first. Integers are summed
    by a depthwise convolution instead: AVG_POOL2D rounds at the scale of its input, every tie upwards.
    """
    if len(x.shape) == 3:
        return through_images(ctx, avg_pool2d, x, 0, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    x, w = poolable(ctx, x), windows_of(x.shape[2:], kernel, stride, padding, 1, ceil_mode)
    value = ctx.permuted(x, LAST[2])
    if x.quant is not None or divisor is not None:
        return _divided(ctx, _image_sums(ctx, x, value, w), value.shape[1:-1], w, count_include_pad, divisor)
    (top, bottom), (left, right) = w.pads
    if count_include_pad and (top or left):
        value = ctx.emit(ops.Pad((0, 0, top, top, left, left, 0, 0), 0.0), value)
        w = Windows(w.kernel, w.stride, ((0, bottom - top), (0, right - left)), w.dilation)
    value, pad = fit_window(ctx, value, w.kernel, w.stride, w.pads, w.dilation)
    return Operand(ctx.emit(ops.AvgPool2d(w.kernel, w.stride, pad), value), perm=FIRST[2])  # type: ignore[arg-type]


@lower(aten.avg_pool3d.default)
def avg_pool3d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Operand:
    """avg_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, bool ceil_mode=False,
    bool count_include_pad=True, int? divisor_override=None) -> Tensor
    """
    if len(x.shape) == 4:
        return through_images(ctx, avg_pool3d, x, 0, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    x, w = poolable(ctx, x), windows_of(x.shape[2:], kernel, stride, padding, 1, ceil_mode)
    value = ctx.permuted(x, LAST[3])
    return _divided(ctx, _volume_sums(ctx, x, value, w), value.shape[1:-1], w, count_include_pad, divisor)


def _divided(ctx: Context, sums: Operand, sizes: Sequence[int], w: Windows, count_include_pad: bool, divisor: int | None) -> Operand:
    """Sums over windows divided by `divisor`, or by how many elements each window counts."""
    if divisor is not None:
        return multiply(ctx, sums, 1.0 / divisor)
    each = [_counted(sizes[i], w.kernel[i], w.stride[i], w.pads[i], w.pads[i][0] if count_include_pad else 0) for i in range(len(sizes))]
    counts = functools.reduce(np.multiply.outer, map(np.array, each))
    if (counts == counts.flat[0]).all():
        return multiply(ctx, sums, 1.0 / float(counts.flat[0]))
    return multiply(ctx, sums, Operand(array=1.0 / counts[None, None]))


def _counted(size: int, kernel: int, stride: int, pads: tuple[int, int], counts: int) -> list[int]:
    """Of each window along one axis, how many elements an average counts: the input's, and of the padding `counts` beside it."""
    starts = range(-pads[0], size + pads[1] - kernel + 1, stride)
    return [min(start + kernel, size + counts) - max(start, -counts) for start in starts]


def _image_sums(ctx: Context, x: Operand, value: Value, w: Windows) -> Operand:
    """Sums over windows of [N, H, W, C]: a depthwise convolution by ones, which keeps every bit."""
    value, pad = fit_window(ctx, value, w.kernel, w.stride, w.pads, w.dilation)
    channels, ones = value.shape[3], np.ones((*w.kernel, value.shape[3], 1))
    op = ops.DepthwiseConv2d(w.stride, pad, (1, 1), zero_point(x))
    if x.quant is None:
        return Operand(ctx.emit(op, value, ctx.real(ones, value), ctx.real(np.zeros(channels), value)), perm=FIRST[2])
    dtype = ops.ACCUMULATOR[x.quant.dtype]
    out = ctx.emit(op, value, ctx.i8(ones), ctx.builder.const(np.zeros(channels), dtype))
    bits = math.ceil(math.log2(math.prod(w.kernel))) + ctx.magnitude_bits(x)
    return Operand(out, quant=Quant(x.scale, 0, dtype), perm=FIRST[2], bits=bits)


def _volume_sums(ctx: Context, x: Operand, value: Value, w: Windows) -> Operand:
    """Sums over windows of [N, D, H, W, C]: those of each slice, then over the depth in int32.

    A sum of int16 has 15 bits and those of the window, below 2^29 for 2^14 elements; larger windows are refused.
    """
    n, d = value.shape[:2]
    sums = _image_sums(ctx, x, folded(ctx, value), Windows(w.kernel[1:], w.stride[1:], w.pads[1:], w.dilation[1:]))
    bits = None if sums.bits is None else sums.bits + math.ceil(math.log2(w.kernel[0]))
    if bits is not None and bits > 29:
        raise ctx.refuse(f"average over windows of {w.kernel}: int32 sums hold {2 ** (29 - ctx.magnitude_bits(x))} elements")
    if sums.quant is not None:
        sums = ctx.to_i32(Operand(sums.value, quant=Quant(sums.quant.scale, 0, sums.quant.dtype), bits=sums.bits), float(sums.quant.scales))
    assert sums.value is not None
    total = ctx.reshape(sums.value, (n, d, *sums.value.shape[1:]))
    front, back = w.pads[0]
    count = w.count(d, 0)
    if front or back:
        total = ctx.emit(ops.Pad((0, 0, front, back, *[0] * 6), 0.0 if total.dtype.is_float else 0), total)
    if w.stride[0] == w.kernel[0]:
        total = along_windows(ctx, sliced(ctx, total, 1, 0, count * w.kernel[0]), 1, count, ops.ReduceSum)
        return Operand(total, quant=sums.quant, perm=FIRST[3], bits=bits)
    taps = [strided(ctx, total, 1, tap, count, w.stride[0]) for tap in range(w.kernel[0])]
    total = taps[0] if len(taps) == 1 else reduced(ctx, ctx.emit(ops.Concat(1), *taps), 1, len(taps), ops.ReduceSum)
    return Operand(total, quant=sums.quant, perm=FIRST[3], bits=bits)


@lower(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(ctx: Context, x: Operand, size: list[int]) -> Operand:
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    if len(x.shape) == 3:
        return through_images(ctx, adaptive_avg_pool2d, x, 0, size)
    return _adaptive(ctx, x, size)


@lower(aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default)
def adaptive_avg_pool3d(ctx: Context, x: Operand, size: list[int]) -> Operand:
    """adaptive_avg_pool3d(Tensor self, SymInt[3] output_size) -> Tensor"""
    if len(x.shape) == 4:
        return through_images(ctx, adaptive_avg_pool3d, x, 0, size)
    return _adaptive(ctx, x, size)


def _adaptive(ctx: Context, x: Operand, size: Sequence[int]) -> Operand:
    spatial = len(size)
    if set(size) == {1}:
        return mean(ctx, x, list(range(-spatial, 0)), True)
    if all(have % want == 0 for have, want in zip(x.shape[2:], size, strict=True)):
        # not AVG_POOL2D where integers are meant: it rounds at the scale of its input, the result may have a finer one
        kernel = tuple(have // want for have, want in zip(x.shape[2:], size, strict=True))
        x, w = poolable(ctx, x), Windows(kernel, kernel, ((0, 0),) * spatial, (1,) * spatial)
        sums = (_image_sums if spatial == 2 else _volume_sums)(ctx, x, ctx.permuted(x, LAST[spatial]), w)
        return multiply(ctx, sums, 1.0 / math.prod(kernel))
    return _uneven_means(ctx, x, [(2 + i, count) for i, count in enumerate(size)])


def _uneven_means(ctx: Context, x: Operand, sizes: Sequence[tuple[int, int]]) -> Operand:
    """Means over windows [floor(i n / m), ceil((i + 1) n / m)), one axis after the other."""
    integer = x.quant is not None
    x = ctx.plain(x) if integer else ctx.floats(x)[0]
    value, scale, bits = x.value, 1.0, None
    if integer:
        # up to 12 more bits than the input has, so that the two roundings are far below its own; sums stay below 2^30
        longest = max(-(-x.shape[axis] // count) + 1 for axis, count in sizes)
        extra = min(12 if ctx.magnitude_bits(x) <= 15 else 0, 30 - ctx.magnitude_bits(x) - math.ceil(math.log2(longest)))
        scale, bits = x.scale / 2.0**extra, ctx.magnitude_bits(x) + extra
        value = ctx.to_i32(x, scale).value
    for axis, count in sizes:
        assert value is not None
        windows = adaptive_windows(value.shape[axis], count)
        parts = [_window_mean(ctx, sliced(ctx, value, axis, a, b), axis, integer) for a, b in windows]
        value = ctx.emit(ops.Concat(axis), *parts) if count > 1 else parts[0]
    return Operand(value, quant=Quant(scale, 0, DType.INT32), bits=bits) if integer else Operand(value)


def _window_mean(ctx: Context, window: Value, axis: int, integer: bool) -> Value:
    length = window.shape[axis]
    total = ctx.emit(ops.ReduceSum(axis), window)
    if not integer:
        return ctx.emit(ops.Mul(), total, ctx.real(1.0 / length, total))
    return ctx.rescale(total, Quant(1.0 / length, 0, DType.INT32), Quant(1.0, 0, DType.INT32))
