"""Maxima over windows, and the geometry that all pools share. Values are stored channels last, [N, *spatial, C]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tosaic.lower.context import Context, largest
from tosaic.lower.conv import FIRST, LAST, fit_window, strided
from tosaic.lower.layout import sliced, squeeze, unsqueeze
from tosaic.lower.mac import poolable, reshapable
from tosaic.lower.operand import Operand
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
Numbers = Sequence[int] | int | None
# what no number of a float type is below


@dataclass(frozen=True)
class Windows:
    """Geometry of a pool, one number (or pair: before, after) for each spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def count(self, size: int, i: int) -> int:
        """Number of windows along dimension `i`."""
        return (size + sum(self.pads[i]) - (self.kernel[i] - 1) * self.dilation[i] - 1) // self.stride[i] + 1


def windows_of(
    shape: Sequence[int], kernel: Numbers, stride: Numbers, padding: Numbers, dilation: Numbers = 1, ceil_mode: bool = False
) -> Windows:
    """Windows over the last dimensions of `shape`, from PyTorch's arguments."""
    count = len(shape)

    def each(numbers: Numbers) -> tuple[int, ...]:
        numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers or ())
        return numbers * count if len(numbers) == 1 else numbers

    k, p, d = each(kernel), each(padding), each(dilation)
    s = each(stride) or k
    extra = [_ceil_extra(shape[i], (k[i] - 1) * d[i] + 1, s[i], p[i], ceil_mode) for i in range(count)]
    return Windows(k, s, tuple((a, a + b) for a, b in zip(p, extra, strict=True)), d)


def _ceil_extra(size: int, kernel: int, stride: int, pad: int, ceil_mode: bool) -> int:
    """Padding beyond `pad` that PyTorch's ceil_mode adds at the far border."""
    if not ceil_mode:
        return 0
    out = -(-(size + 2 * pad - kernel) // stride) + 1
    if (out - 1) * stride >= size + pad:  # the last window must start inside the input or its left padding
        out -= 1
    return max(0, (out - 1) * stride + kernel - size - 2 * pad)


def through_images(ctx: Context, function: Callable[..., Operand], x: Operand, dim: int, *arguments: object) -> Operand:
    """A function of [N, C, H, W], of `x` with a dimension of 1 inserted at `dim`, which is removed from the result."""
    return squeeze(ctx, reshapable(ctx, function(ctx, unsqueeze(ctx, x, dim), *arguments)), dim)


def folded(ctx: Context, value: Value) -> Value:
    """[N, D, H, W, C] -> [N * D, H, W, C]."""
    n, d, *image = value.shape
    return ctx.reshape(value, (n * d, *image))


@lower(aten.max_pool2d.default)
def max_pool2d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> Operand:
    """max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1,
    bool ceil_mode=False) -> Tensor
    """
    if len(x.shape) == 3:
        return through_images(ctx, max_pool2d, x, 0, kernel, stride, padding, dilation, ceil_mode)
    return max_of_windows(ctx, x, windows_of(x.shape[2:], kernel, stride, padding, dilation, ceil_mode))


@lower(aten.max_pool1d.default)
def max_pool1d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> Operand:
    """max_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=0, int[1] dilation=1,
    bool ceil_mode=False) -> Tensor
    """
    w = windows_of(x.shape[-1:], kernel, stride, padding, dilation, False)
    arguments = [1, *w.kernel], [1, *w.stride], [0, w.pads[0][0]], [1, *w.dilation], ceil_mode
    if len(x.shape) == 2:
        return squeeze(ctx, through_images(ctx, max_pool2d, unsqueeze(ctx, x, 0), -2, *arguments), 0)
    return through_images(ctx, max_pool2d, x, -2, *arguments)


@lower(aten.max_pool3d.default)
def max_pool3d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> Operand:
    """max_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, int[3] dilation=1,
    bool ceil_mode=False) -> Tensor
    """
    if len(x.shape) == 4:
        return through_images(ctx, max_pool3d, x, 0, kernel, stride, padding, dilation, ceil_mode)
    return max_of_windows(ctx, x, windows_of(x.shape[2:], kernel, stride, padding, dilation, ceil_mode))


def max_of_windows(ctx: Context, x: Operand, w: Windows) -> Operand:
    """Maxima; MAX_POOL2D where it can be; it takes no dilation and no int32."""
    spatial = len(w.kernel)
    wide = x.quant is not None and not ctx.is_narrow(x) and (ctx.want is None or ctx.want.dtype is DType.INT32)
    x = ctx.resolve_clamp(ctx.uniform(x)) if wide else poolable(ctx, x)
    value = ctx.permuted(x, LAST[spatial])
    if wide or max(w.dilation) > 1:
        for i in range(spatial):
            value = _max_along(ctx, value, i, w)
    elif spatial == 2:
        value = _max_of_images(ctx, value, w)
    else:
        value = _max_of_volumes(ctx, value, w)
    return Operand(value, quant=x.quant, perm=FIRST[spatial], bits=x.bits)


def _max_of_images(ctx: Context, value: Value, w: Windows) -> Value:
    value, pad = fit_window(ctx, value, w.kernel, w.stride, w.pads, w.dilation)
    return ctx.emit(ops.MaxPool2d(w.kernel, w.stride, pad), value)  # type: ignore[arg-type]


def _max_of_volumes(ctx: Context, value: Value, w: Windows) -> Value:
    """First of each slice, then over the depth as over the rows of an image [D, H * W]."""
    n, d = value.shape[:2]
    value = _max_of_images(ctx, folded(ctx, value), Windows(w.kernel[1:], w.stride[1:], w.pads[1:], w.dilation[1:]))
    _, h, width, c = value.shape
    value = ctx.reshape(value, (n, d, h * width, c))
    value = _max_of_images(ctx, value, Windows((w.kernel[0], 1), (w.stride[0], 1), (w.pads[0], (0, 0)), (1, 1)))
    return ctx.reshape(value, (n, value.shape[1], h, width, c))


def _max_along(ctx: Context, value: Value, i: int, w: Windows) -> Value:
    """Maxima over windows along spatial dimension `i`: the largest of `kernel` slices."""
    axis = 1 + i
    border = [0] * (2 * len(value.shape))
    border[2 * axis : 2 * axis + 2] = w.pads[i]
    count = w.count(value.shape[axis], i)
    if any(border):
        value = ctx.emit(ops.Pad(tuple(border), -largest(value.dtype) if value.dtype.is_float else value.dtype.min), value)
    taps = [strided(ctx, value, axis, tap * w.dilation[i], count, w.stride[i]) for tap in range(w.kernel[i])]
    if len(taps) == 1:
        return taps[0]
    return reduced(ctx, ctx.emit(ops.Concat(axis), *taps), axis, len(taps), ops.ReduceMax)


def reduced(ctx: Context, value: Value, axis: int, outer: int, op: Callable[[int], ops.Op]) -> Value:
    """The axis as [outer, rest], reduced over `outer`."""
    shape = value.shape
    rest = shape[axis] // outer
    flat = ctx.reshape(value, (math.prod(shape[:axis]), outer, rest * math.prod(shape[axis + 1 :])))
    return ctx.reshape(ctx.emit(op(1), flat), (*shape[:axis], rest, *shape[axis + 1 :]))


def adaptive_windows(n: int, count: int) -> list[tuple[int, int]]:
    """Start and end of PyTorch's adaptive windows: floor(i n / count), ceil((i + 1) n / count)."""
    return [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]


def along_windows(ctx: Context, value: Value, axis: int, count: int, op: Callable[[int], ops.Op]) -> Value:
    """The axis reduced to `count` adaptive windows; where they are equal, by one reduction."""
    shape = value.shape
    if shape[axis] == count:
        return value
    if shape[axis] % count == 0:
        flat = (math.prod(shape[:axis]) * count, shape[axis] // count, math.prod(shape[axis + 1 :]))
        done = ctx.emit(op(1), ctx.reshape(value, flat))
        return ctx.reshape(done, (*shape[:axis], count, *shape[axis + 1 :]))
    parts = [ctx.emit(op(axis), sliced(ctx, value, axis, a, b)) for a, b in adaptive_windows(shape[axis], count)]
    return ctx.emit(ops.Concat(axis), *parts)


@lower(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptivemax_of_windows(ctx: Context, x: Operand, size: list[int]) -> tuple[Operand]:
    """adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor); the indices are not computed"""
    x = ctx.plain(x) if x.quant is not None else ctx.floats(x)[0]
    value = x.value
    assert value is not None
    for i, count in enumerate(size):
        value = along_windows(ctx, value, len(x.shape) - len(size) + i, count, ops.ReduceMax)
    return (replace(x, value=value),)
