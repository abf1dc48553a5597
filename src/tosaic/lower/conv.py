"""Convolutions over one, two and three spatial dimensions, and transposed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.elementwise import add_operands
from tosaic.lower.layout import sliced
from tosaic.lower.mac import accumulator, magnitude, part, reshapable, stored_bias, stored_weight, typed, with_room_for_bias, zero_point
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
NDHWC = (0, 2, 3, 4, 1)
NCDHW = (0, 4, 1, 2, 3)
LAST = {1: (0, 2, 1), 2: NHWC, 3: NDHWC}
FIRST = {1: (0, 2, 1), 2: NCHW, 3: NCDHW}


@dataclass(frozen=True)
class Window:
    """Attributes of a convolution, one number for each spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int


def fit_window(
    ctx: Context, x: Value, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[Sequence[int]], dilation: Sequence[int]
) -> tuple[Value, tuple[int, ...]]:
    """Drop what a stride leaves over at the far border, from the padding first, then from the input [N, *spatial, C].

    TOSA demands that windows end exactly at the border; PyTorch ignores the rest.
    """
    size, after = list(x.shape), [list(p) for p in pads]
    for i in range(len(kernel)):
        span = x.shape[1 + i] - 1 + sum(after[i]) - (kernel[i] - 1) * dilation[i]
        if span < 0:
            raise ctx.refuse(f"kernel {tuple(kernel)} is larger than the padded input {x.shape[1:-1]}")
        over = span % stride[i]
        from_pad = min(over, after[i][1])
        after[i][1] -= from_pad
        size[1 + i] -= over - from_pad
    if tuple(size) != x.shape:
        x = ctx.emit(ops.Slice((0,) * len(size), tuple(size)), x)
    return x, tuple(n for pair in after for n in pair)


@lower(aten.convolution.default)
def convolution(
    ctx: Context,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Operand:
    """convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation,
    bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor
    """
    spatial = len(x.shape) - 2
    x, weight = typed(ctx, x, weight)
    weight = with_room_for_bias(x, weight, bias, 1, groups) if transposed else with_room_for_bias(x, weight, bias, 0)
    # a single number stands for all dimensions
    strides, pads, steps, extra = (tuple(v) * (spatial if len(v) == 1 else 1) for v in (stride, padding, dilation, output_padding))
    window = Window(strides, pads, steps, extra, groups)
    if spatial == 1:
        x, weight, window = _as_2d(ctx, x, weight, window)
    form = _forward if not transposed else _transposed if spatial < 3 else _transposed3d
    out = form(ctx, x, weight, bias, window)
    out = _as_1d(ctx, out) if spatial == 1 else out
    if bias is None or bias.is_const:
        return out
    bias = ctx.plain(bias)
    addend = Operand(ctx.reshape(bias.tensor, (bias.shape[0], *[1] * spatial)), quant=bias.quant)
    return add_operands(ctx, out, addend, ops.Add())


def _as_2d(ctx: Context, x: Operand, weight: Operand, window: Window) -> tuple[Operand, Operand, Window]:
    """[N, C, L] -> [N, C, 1, L], stored channels last; and the same of the weight [.., .., K]."""
    value = ctx.permuted(ctx.resolve_clamp(x), (0, 2, 1))
    n, l, c = value.shape
    image = Operand(ctx.reshape(value, (n, 1, l, c)), quant=x.quant, perm=NCHW)
    shape = (*weight.shape[:2], 1, weight.shape[2])
    if weight.is_const:
        weight = replace(weight, array=np.asarray(weight.array).reshape(shape))
    else:
        weight = Operand(ctx.reshape(ctx.logical(ctx.resolve_clamp(weight)), shape), quant=weight.quant)
    flat = Window((1, *window.stride), (0, *window.padding), (1, *window.dilation), (0, *window.output_padding), window.groups)
    return image, weight, flat


def _as_1d(ctx: Context, x: Operand) -> Operand:
    """[N, C, 1, L] -> [N, C, L]; a 48-bit accumulator is requantized first, as RESHAPE does not take it."""
    x = reshapable(ctx, x)
    value = ctx.permuted(x, NHWC)
    n, _, l, c = value.shape
    return replace(x, value=ctx.reshape(value, (n, l, c)), perm=(0, 2, 1), view=None)


def _forward(ctx: Context, x: Operand, weight: Operand, bias: Operand | None, window: Window) -> Operand:
    """[N, C, *spatial] by [OC, C / groups, *kernel]."""
    spatial, channels, kernel = len(x.shape) - 2, weight.shape[0], weight.shape[2:]
    value = ctx.permuted(ctx.resolve_clamp(x), LAST[spatial])
    value, pad = fit_window(ctx, value, kernel, window.stride, [(p, p) for p in window.padding], window.dilation)
    acc = accumulator(x, weight, channels)
    attributes = (window.stride, pad, window.dilation, zero_point(x), zero_point(weight))
    b = stored_bias(ctx, bias, acc, channels, value)
    if 1 < window.groups == value.shape[-1]:
        return (
            _depthwise(ctx, x, value, weight, b, acc, attributes) if spatial == 2 else _depthwise3d(ctx, x, value, weight, b, acc, window)
        )
    w = stored_weight(ctx, weight, (0, *range(2, 2 + spatial), 1), value)
    bits = magnitude(x, w, (0,), b)
    op: Any = ops.Conv2d(*attributes) if spatial == 2 else ops.Conv3d(*attributes)
    return _in_groups(ctx, op, value, [part(ctx, w, 0, g, s) for g, s in _shares(channels, window.groups)], b, acc, bits)


def _shares(size: int, groups: int) -> list[tuple[int, int]]:
    """Start and size of each group's part."""
    return [(g * size // groups, size // groups) for g in range(groups)]


def _in_groups(ctx: Context, op: ops.Op, value: Value, weights: list[Value], bias: Value, acc: Quant | None, bits: int | None) -> Operand:
    """One convolution for each group of channels, side by side."""
    axis, groups = len(value.shape) - 1, len(weights)
    inputs = [part(ctx, value, axis, start, size) for start, size in _shares(value.shape[axis], groups)]
    biases = [part(ctx, bias, 0, start, size) for start, size in _shares(bias.shape[0], groups)]
    parts = [ctx.emit(op, *operands) for operands in zip(inputs, weights, biases, strict=True)]
    return _join(ctx, parts, acc, bits)


def _join(ctx: Context, parts: list[Value], acc: Quant | None, bits: int | None) -> Operand:
    """Concatenate group results along channels; 48-bit parts are requantized first, as CONCAT does not take them."""
    axis, size = len(parts[0].shape) - 1, parts[0].shape[-1]
    perm = FIRST[axis - 1]
    if len(parts) == 1:
        return Operand(parts[0], quant=acc, perm=perm, bits=bits)
    if acc is None or acc.dtype is not DType.INT48:
        return Operand(ctx.emit(ops.Concat(axis), *parts), quant=acc, perm=perm, bits=bits)
    assert isinstance(acc.scale, tuple)
    pieces = [Operand(part, quant=Quant(acc.scale[g * size : (g + 1) * size], 0, DType.INT48)) for g, part in enumerate(parts)]
    target = ctx.want or Quant(float(acc.scales.max()) * 2.0 ** ((bits or 31) - 23), 0, DType.INT32)
    joined = ctx.emit(ops.Concat(axis), *(ctx.requantize(p, target).tensor for p in pieces))
    return Operand(joined, quant=target, perm=perm)


def _depthwise(
    ctx: Context, x: Operand, value: Value, weight: Operand, bias: Value, acc: Quant | None, attributes: tuple[Any, ...]
) -> Operand:
    """[C * M, 1, KH, KW] as [KH, KW, C, M]."""
    channels, (kh, kw) = value.shape[3], weight.shape[2:]
    w = stored_weight(ctx, weight, (2, 3, 0, 1), value)  # [KH, KW, C * M, 1]
    shape = (kh, kw, channels, weight.shape[0] // channels)
    w = ctx.reshape(w, shape) if w.data is None else ctx.builder.const(w.data.reshape(shape), w.dtype)
    out = ctx.emit(ops.DepthwiseConv2d(*attributes), value, w, bias)
    return Operand(out, quant=acc, perm=NCHW, bits=magnitude(x, w, (2, 3), bias))


def _depthwise3d(ctx: Context, x: Operand, value: Value, weight: Operand, bias: Value, acc: Quant | None, window: Window) -> Operand:
    """[C * M, 1, KD, KH, KW] over [N, D, H, W, C], which TOSA has in two dimensions only: one for each tap along the depth, added.

    48-bit accumulators, which ADD does not take, become int32 with two bits to spare for each doubling of the taps.
    """
    n, _, h, w, channels = value.shape
    kernel = weight.shape[2:]
    front = window.padding[0]
    if front:
        value = ctx.emit(ops.Pad((0, 0, front, front, *[0] * 6), _zero(x)), value)
    depth = (value.shape[1] - (kernel[0] - 1) * window.dilation[0] - 1) // window.stride[0] + 1
    whole = stored_weight(ctx, weight, (2, 3, 4, 0, 1), value)  # [KD, KH, KW, C * M, 1]
    bits = magnitude(x, whole, (3, 4), bias)
    total: Value | None = None
    for tap in range(kernel[0]):
        rows = strided(ctx, value, 1, tap * window.dilation[0], depth, window.stride[0])
        image = ctx.reshape(rows, (n * depth, h, w, channels))
        image, pad = fit_window(ctx, image, kernel[1:], window.stride[1:], [(p, p) for p in window.padding[1:]], window.dilation[1:])
        shape = (*kernel[1:], channels, weight.shape[0] // channels)
        taps = part(ctx, whole, 0, tap, 1)
        taps = ctx.reshape(taps, shape) if taps.data is None else ctx.builder.const(taps.data.reshape(shape), taps.dtype)
        none = ctx.builder.const(np.zeros(bias.shape), bias.dtype)
        op = ops.DepthwiseConv2d(window.stride[1:], pad, window.dilation[1:], zero_point(x), zero_point(weight))
        out = Operand(ctx.emit(op, image, taps, bias if tap == 0 else none), quant=acc, bits=bits)
        out = _summand(ctx, out, kernel[0])
        total = out.value if total is None else ctx.emit(ops.Add(), total, out.tensor)
    assert total is not None
    summed = ctx.reshape(total, (n, depth, *total.shape[1:]))
    return Operand(summed, quant=out.quant, perm=NCDHW, bits=bits if out.quant is acc else 29)


def _summand(ctx: Context, x: Operand, count: int) -> Operand:
    """A 48-bit accumulator as int32 below 2^29 / count."""
    if x.quant is None or x.quant.dtype is not DType.INT48:
        return x
    assert x.bits is not None
    room = 29 - (count - 1).bit_length()
    return ctx.requantize(x, Quant(float(x.quant.scales.max()) * 2.0 ** (x.bits - room), 0, DType.INT32))


def _zero(x: Operand) -> float | int:
    """What zero is stored as."""
    return 0.0 if x.quant is None else x.quant.zero_point


def strided(ctx: Context, value: Value, axis: int, start: int, count: int, step: int) -> Value:
    """`count` elements along an axis, from `start`, each `step` behind the one before: SLICE, RESHAPE, SLICE."""
    have = value.shape[axis]
    if step == 1 or count == 1:
        return sliced(ctx, value, axis, start, start + (count - 1) * step + 1)
    short = start + count * step - have
    if short > 0:  # the last block is not whole; what is appended is dropped again
        border = [0] * (2 * len(value.shape))
        border[2 * axis + 1] = short
        value = ctx.emit(ops.Pad(tuple(border), 0.0 if value.dtype.is_float else 0), value)
    block = sliced(ctx, value, axis, start, start + count * step)
    shape = block.shape
    block = ctx.reshape(block, (*shape[:axis], count, step, *shape[axis + 1 :]))
    return ctx.reshape(sliced(ctx, block, axis + 1, 0, 1), (*shape[:axis], count, *shape[axis + 1 :]))


def _transposed(ctx: Context, x: Operand, weight: Operand, bias: Operand | None, window: Window) -> Operand:
    """[N, IC, H, W] by [IC, OC / groups, KH, KW]; a dilated kernel is written out with zeros between its elements."""
    groups, channels = window.groups, window.groups * weight.shape[1]
    acc = accumulator(x, weight, channels)
    value = ctx.permuted(ctx.resolve_clamp(x), NHWC)
    w = _spread(ctx, stored_weight(ctx, weight, (0, 2, 3, 1), value), window.dilation, zero_point(weight))  # [IC, KH, KW, OC / groups]
    kernel = w.shape[1:3]
    weights = [_swapped(ctx, part(ctx, w, 0, start, size)) for start, size in _shares(w.shape[0], groups)]
    # out_pad may crop at most kernel - 1; what PyTorch's padding crops beyond is sliced off
    before = [max(-p, 1 - k) for p, k in zip(window.padding, kernel, strict=True)]
    after = [max(o - p, 1 - k) for p, k, o in zip(window.padding, kernel, window.output_padding, strict=True)]
    op = ops.TransposeConv2d(window.stride, (before[0], after[0], before[1], after[1]), (1, 1), zero_point(x), zero_point(weight))
    b = stored_bias(ctx, bias, acc, channels, value)
    bits = max((magnitude(x, v, (0,), part(ctx, b, 0, *share)) or 0) for v, share in zip(weights, _shares(channels, groups), strict=True))
    out = _in_groups(ctx, op, value, weights, b, acc, bits or None)
    start = [before[i] + window.padding[i] for i in range(2)]
    extra = [after[i] + window.padding[i] - window.output_padding[i] for i in range(2)]
    return _cropped(ctx, out, start, extra)


def _swapped(ctx: Context, w: Value) -> Value:
    """[IC, *kernel, OC] -> [OC, *kernel, IC]."""
    rank = len(w.shape)
    perm = (rank - 1, *range(1, rank - 1), 0)
    return ctx.emit(ops.Transpose(perm), w) if w.data is None else ctx.builder.const(w.data.transpose(perm), w.dtype)


def _spread(ctx: Context, w: Value, steps: Sequence[int], fill: int) -> Value:
    """[N, *spatial, C] with step - 1 times `fill` between its elements, none behind the last."""
    number = float(fill) if w.dtype.is_float else fill
    if w.data is not None and max(steps) > 1:
        sizes = [(k - 1) * s + 1 for k, s in zip(w.shape[1:-1], steps, strict=True)]
        spread = np.full((w.shape[0], *sizes, w.shape[-1]), fill, w.data.dtype)
        spread[(slice(None), *(slice(None, None, s) for s in steps))] = w.data
        return ctx.builder.const(spread, w.dtype)
    for i, step in enumerate(steps):
        shape, axis = w.shape, 1 + i
        if step == 1 or shape[axis] == 1:
            continue
        outer, inner = int(np.prod(shape[: axis + 1])), int(np.prod(shape[axis + 1 :]))
        wide = ctx.emit(ops.Pad((0, 0, 0, step - 1, 0, 0), number), ctx.reshape(w, (outer, 1, inner)))
        wide = ctx.reshape(wide, (*shape[:axis], shape[axis] * step, *shape[axis + 1 :]))
        w = sliced(ctx, wide, axis, 0, (shape[axis] - 1) * step + 1)
    return w


def _cropped(ctx: Context, out: Operand, start: Sequence[int], end: Sequence[int]) -> Operand:
    """Without `start` and `end` elements of each spatial dimension of what is stored, [N, *spatial, C]."""
    if not any(start) and not any(end):
        return out
    out = reshapable(ctx, out)
    n, *sizes, c = out.tensor.shape
    kept = (size - s - e for size, s, e in zip(sizes, start, end, strict=True))
    return replace(out, value=ctx.emit(ops.Slice((0, *start, 0), (n, *kept, c)), out.tensor))


def _transposed3d(ctx: Context, x: Operand, weight: Operand, bias: Operand | None, window: Window) -> Operand:
    """[N, IC, D, H, W] by [IC, OC / groups, KD, KH, KW]: CONV3D by the flipped kernel, of the input with zeros between its elements."""
    groups, channels = window.groups, window.groups * weight.shape[1]
    if not weight.is_const:
        raise ctx.refuse("transposed convolution over 3 spatial dimensions whose weight is not a constant")
    acc = accumulator(x, weight, channels)
    value = _spread(ctx, ctx.permuted(ctx.resolve_clamp(x), NDHWC), window.stride, zero_point(x))
    flipped = replace(weight, array=np.flip(np.asarray(weight.array), (2, 3, 4)))
    w = stored_weight(ctx, flipped, (0, 2, 3, 4, 1), value)
    weights = [_swapped(ctx, part(ctx, w, 0, start, size)) for start, size in _shares(w.shape[0], groups)]
    reach = [(k - 1) * d for k, d in zip(w.shape[1:4], window.dilation, strict=True)]
    before = [r - p for r, p in zip(reach, window.padding, strict=True)]
    after = [r - p + o for r, p, o in zip(reach, window.padding, window.output_padding, strict=True)]
    start, end = ([max(0, -p) for p in pads] for pads in (before, after))
    kept = [size - s - e for size, s, e in zip(value.shape[1:4], start, end, strict=True)]
    if any(start) or any(end):  # padding beyond the kernel crops the input itself
        value = ctx.emit(ops.Slice((0, *start, 0), (value.shape[0], *kept, value.shape[4])), value)
    pad = tuple(max(0, p) for pair in zip(before, after, strict=True) for p in pair)
    b = stored_bias(ctx, bias, acc, channels, value)
    bits = max((magnitude(x, v, (0,), part(ctx, b, 0, *share)) or 0) for v, share in zip(weights, _shares(channels, groups), strict=True))
    op = ops.Conv3d((1, 1, 1), pad, window.dilation, zero_point(x))
    return _in_groups(ctx, op, value, weights, b, acc, bits or None)
