"""Where the maximum of each window of a pool is, and the maxima themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from tosaic.lower.context import Context, largest
from tosaic.lower.conv import LAST, strided
from tosaic.lower.layout import squeeze, unsqueeze
from tosaic.lower.mac import poolable, reshapable
from tosaic.lower.operand import Operand
from tosaic.lower.pool import Numbers, Windows, max_of_windows, windows_of
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


@lower(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def max_pool_with_indices(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> tuple[Operand, Operand]:
    """max_pool2d_with_indices(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1,
    bool ceil_mode=False) -> (Tensor, Tensor)

    Positions in the image laid flat: the least among those that equal the maximum of their window, as PyTorch takes the first.
    """
    spatial = len(kernel)
    if len(x.shape) == spatial + 1:
        pair = max_pool_with_indices(ctx, unsqueeze(ctx, x, 0), kernel, stride, padding, dilation, ceil_mode)
        values, places = (squeeze(ctx, reshapable(ctx, part), 0) for part in pair)
        return values, places
    w = windows_of(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    x = poolable(ctx, x)
    return max_of_windows(ctx, x, w), _first_places(ctx, x, w)


def _first_places(ctx: Context, x: Operand, w: Windows) -> Operand:
    """int32 [N, C, *outs]. Windows are an axis of their taps here: [N, taps, places, C]."""
    spatial, sizes = len(w.kernel), x.shape[2:]
    whole = ctx.spec.holds("INT")
    if not whole and math.prod(sizes) > 2**24:
        raise ctx.refuse(f"positions of maxima in {math.prod(sizes)} elements; floats count to 2^24, so use an INT+FP specification")
    value = ctx.permuted(x, LAST[spatial])
    if value.dtype.is_integer and value.dtype is not DType.INT32:
        value = ctx.emit(ops.Cast(DType.INT32), value)  # whose least number none of the elements is
    outs = [w.count(size, i) for i, size in enumerate(sizes)]
    border = (0, 0, *(n for pair in w.pads for n in pair), 0, 0)
    if any(border):
        value = ctx.emit(ops.Pad(border, -largest(value.dtype) if value.dtype.is_float else DType.INT32.min), value)
    n, channels = x.shape[:2]
    taps = [ctx.reshape(_tap(ctx, value, w, outs, tap), (n, 1, math.prod(outs), channels)) for tap in np.ndindex(*w.kernel)]
    each = ctx.emit(ops.Concat(1), *taps) if len(taps) > 1 else taps[0]
    equal = ctx.emit(ops.Equal(), each, ctx.emit(ops.ReduceMax(1), each))
    kind = DType.INT32 if whole else DType.FP32
    places = ctx.builder.const(_positions(w, sizes, outs).reshape(1, len(taps), math.prod(outs), 1), kind)
    beyond = ctx.builder.const(np.full((1, 1, 1, 1), math.prod(sizes) - 1), kind)
    first = ctx.emit(ops.ReduceMin(1), ctx.emit(ops.Select(), equal, places, beyond))
    first = ctx.emit(ops.Transpose((0, 2, 1)), ctx.reshape(first, (n, math.prod(outs), channels)))
    first = ctx.reshape(first, (n, channels, *outs))
    if not whole:
        first = ctx.bounded(ctx.emit(ops.Cast(DType.INT32), first), 0, math.prod(sizes) - 1, "positions in the image")
    return Operand(first)


def _tap(ctx: Context, value: Value, w: Windows, outs: Sequence[int], tap: Sequence[int]) -> Value:
    """One element of each window."""
    for i, count in enumerate(outs):
        value = strided(ctx, value, 1 + i, tap[i] * w.dilation[i], count, w.stride[i])
    return value


def _positions(w: Windows, sizes: Sequence[int], outs: Sequence[int]) -> np.ndarray:
    """[*kernel, *outs]: where the element of each window is in the image laid flat (of padding, any number)."""
    total = np.zeros((1,) * 2 * len(sizes), np.int64)
    for i, size in enumerate(sizes):
        tap = np.arange(w.kernel[i]).reshape([-1 if j == i else 1 for j in range(2 * len(sizes))]) * w.dilation[i]
        place = np.arange(outs[i]).reshape([-1 if j == len(sizes) + i else 1 for j in range(2 * len(sizes))]) * w.stride[i]
        total = total * size + np.clip(tap + place - w.pads[i][0], 0, size - 1)
    return np.broadcast_to(total, (*w.kernel, *outs))
