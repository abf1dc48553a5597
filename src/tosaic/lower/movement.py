"""Data movement: concatenation, padding and shuffles; the stored values stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.layout import (
    axis_of,
    compact,
    concatenated,
    fits_level,
    moves,
    reshaped,
    slice_,
    sliced,
    squeeze,
    unsqueeze,
    unviewed,
)
from tosaic.lower.operand import Operand
from tosaic.lower.reals import promoted
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


def joined(ctx: Context, operands: Sequence[Operand]) -> list[Operand]:
    """Operands at one quantization or type, as they can stand in one tensor: what the readers want, or the first one's."""
    quantized = [x for x in operands if x.quant is not None]
    if (quantized or ctx.want is not None) and all(x.quant is not None or x.is_const for x in operands):
        target = ctx.want or ctx.uniform(quantized[0]).quant
        assert target is not None
        return [ctx.requantize(x, target) for x in operands]
    kinds = {x.value.dtype for x in operands if x.value is not None and x.quant is None}
    if kinds and kinds <= {DType.INT32, DType.BOOL}:
        dtype = np.int64 if DType.INT32 in kinds else np.bool_
        return [replace(x, array=x.constant.astype(dtype)) if x.is_const else x for x in operands]
    return [ctx.floats(x)[0] if x.quant is not None or x.is_const else x for x in operands]


@lower(aten.cat.default)
def cat(ctx: Context, tensors: list[Operand], dim: int = 0) -> Operand:
    """cat(Tensor[] tensors, int dim=0) -> Tensor"""
    some = promoted(ctx, *(x for x in tensors if math.prod(x.shape)))  # constants may be empty
    axis = axis_of(dim, len(some[0].shape))
    if not fits_level(ctx, some[0].shape):
        shape = [sum(x.shape[axis] for x in some) if i == axis else d for i, d in enumerate(some[0].shape)]
        low = [compact(ctx, x, [axis]) for x in some]
        return reshaped(ctx, cat(ctx, [x for x, _ in low], low[0][1][0]), shape)
    parts, perm = ctx.same_layout(*joined(ctx, some))
    stored = [ctx.store(x) for x in parts]
    place = axis if perm is None else perm[axis]
    if stored[0].quant is None and stored[0].tensor.dtype is DType.INT32 and not ctx.spec.holds("INT"):
        values = [ctx.emit(ops.Cast(DType.FP32), x.tensor) for x in stored]
        return Operand(ctx.emit(ops.Cast(DType.INT32), concatenated(ctx, values, place)), perm=perm)
    return Operand(concatenated(ctx, [x.tensor for x in stored], place), quant=stored[0].quant, perm=perm)


@moves(aten.constant_pad_nd.default)
def constant_pad_nd(ctx: Context, x: Operand, pad: list[int], value: float = 0) -> Operand:
    """constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    rank = len(x.shape)
    both = [(0, 0)] * rank
    for i in range(len(pad) // 2):
        both[rank - 1 - i] = (pad[2 * i], pad[2 * i + 1])
    for axis, (before, after) in enumerate(both):
        if min(before, after) < 0:
            x = slice_(ctx, x, axis, max(0, -before), x.shape[axis] - max(0, -after))
    amounts = [(max(0, a), max(0, b)) for a, b in both]
    if not any(a or b for a, b in amounts):
        return x
    shape = [d + a + b for d, (a, b) in zip(x.shape, amounts, strict=True)]
    if not fits_level(ctx, shape):
        for axis, amount in enumerate(amounts):
            if any(amount):
                low, (place,) = compact(ctx, x, [axis])
                low = _padded(ctx, low, [amount if i == place else (0, 0) for i in range(len(low.shape))], value)
                x = reshaped(ctx, low, [*shape[: axis + 1], *x.shape[axis + 1 :]])
        return x
    return _padded(ctx, x, amounts, value)


def _padded(ctx: Context, x: Operand, amounts: Sequence[tuple[int, int]], value: float) -> Operand:
    x = unviewed(ctx, x)
    assert x.value is not None
    perm = x.perm or tuple(range(len(amounts)))
    stored: list[tuple[int, int]] = [(0, 0)] * len(amounts)
    for axis, amount in enumerate(amounts):
        stored[perm[axis]] = amount
    fill: float = float(value)
    if x.quant is not None:
        fill = int(x.quant.store(np.array(float(value))))
    elif not x.value.dtype.is_float:
        fill = bool(value) if x.value.dtype is DType.BOOL else int(value)
    return replace(x, value=ctx.emit(ops.Pad(tuple(n for pair in stored for n in pair), fill), x.value), bits=None)


def _border_pad(ctx: Context, x: Operand, pad: list[int], border: Callable[[Value, int, int, bool], Value]) -> Operand:
    """Concatenate borders that are made of the input itself, one axis after the other, last first."""
    x = unviewed(ctx, x)
    value, rank = x.value, len(x.shape)
    assert value is not None
    for i in range(len(pad) // 2):
        axis, (before, after) = rank - 1 - i if x.perm is None else x.perm[rank - 1 - i], pad[2 * i : 2 * i + 2]
        if min(before, after) < 0:
            raise ctx.refuse(f"negative padding {pad} with a border mode")
        parts = [border(value, axis, before, False)] if before else []
        parts.append(value)
        parts += [border(value, axis, after, True)] if after else []
        value = concatenated(ctx, parts, axis)
    return replace(x, value=value)


@moves(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
def reflection_pad(ctx: Context, x: Operand, pad: list[int]) -> Operand:
    """reflection_pad2d(Tensor self, SymInt[4] padding) -> Tensor"""

    def border(value: Value, axis: int, count: int, far: bool) -> Value:
        start = value.shape[axis] - 1 - count if far else 1  # the border element itself is not repeated
        return ctx.emit(ops.Reverse(axis), sliced(ctx, value, axis, start, start + count))

    return _border_pad(ctx, x, pad, border)


@moves(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def replication_pad(ctx: Context, x: Operand, pad: list[int]) -> Operand:
    """replication_pad2d(Tensor self, SymInt[4] padding) -> Tensor"""

    def border(value: Value, axis: int, count: int, far: bool) -> Value:
        at = value.shape[axis] - 1 if far else 0
        multiples = tuple(count if i == axis else 1 for i in range(len(value.shape)))
        return ctx.emit(ops.Tile(multiples), sliced(ctx, value, axis, at, at + 1))

    return _border_pad(ctx, x, pad, border)


def _shuffled(ctx: Context, x: Operand, shape: Sequence[int], perm: Sequence[int], result: Sequence[int]) -> Operand:
    """RESHAPE, TRANSPOSE, RESHAPE, all channels last."""
    x = ctx.resolve_clamp(ctx.uniform(x))
    value = ctx.emit(ops.Transpose(tuple(perm)), ctx.reshape(ctx.permuted(x, NHWC), shape))
    return Operand(ctx.reshape(value, result), quant=x.quant, perm=NCHW)


@moves(aten.pixel_shuffle.default)
def pixel_shuffle(ctx: Context, x: Operand, r: int) -> Operand:
    """pixel_shuffle(Tensor self, int upscale_factor) -> Tensor"""
    if len(x.shape) == 3:
        return squeeze(ctx, pixel_shuffle(ctx, unsqueeze(ctx, x, 0), r), 0)
    n, c, h, w = _four(ctx, x)
    c //= r * r
    return _shuffled(ctx, x, (n * h, w, c, r, r), (0, 3, 1, 4, 2), (n, h * r, w * r, c))


@moves(aten.pixel_unshuffle.default)
def pixel_unshuffle(ctx: Context, x: Operand, r: int) -> Operand:
    """pixel_unshuffle(Tensor self, int downscale_factor) -> Tensor"""
    if len(x.shape) == 3:
        return squeeze(ctx, pixel_unshuffle(ctx, unsqueeze(ctx, x, 0), r), 0)
    n, c, h, w = _four(ctx, x)
    return _shuffled(ctx, x, (n * h // r, r, w // r, r, c), (0, 2, 4, 1, 3), (n, h // r, w // r, c * r * r))


def _four(ctx: Context, x: Operand) -> tuple[int, int, int, int]:
    if len(x.shape) != 4:
        raise ctx.refuse(f"takes [N, C, H, W], found {list(x.shape)}")
    n, c, h, w = x.shape
    return n, c, h, w
