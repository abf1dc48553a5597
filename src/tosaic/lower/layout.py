"""Data movement: the stored values stay as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.operand import Operand, compose
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value

aten = torch.ops.aten


def axis_of(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def reshaped(ctx: Context, x: Operand, shape: Sequence[int]) -> Operand:
    x = ctx.plain(x)
    return replace(x, value=ctx.reshape(x.value, shape))  # type: ignore[arg-type]


@lower(aten.reshape.default)
def reshape(ctx: Context, x: Operand, shape: list[int]) -> Operand:
    """reshape(Tensor self, SymInt[] shape) -> Tensor"""
    size = int(np.prod(x.shape, dtype=np.int64))
    known = int(np.prod([d for d in shape if d != -1], dtype=np.int64))
    return reshaped(ctx, x, [size // known if d == -1 else d for d in shape])


@lower(aten.permute.default)
def permute(ctx: Context, x: Operand, dims: list[int]) -> Operand:
    """permute(Tensor self, int[] dims) -> Tensor"""
    perm = tuple(axis_of(d, len(x.shape)) for d in dims)
    x = ctx.uniform(x)
    if x.view is not None:
        x = replace(x, value=ctx.logical(x), perm=None, view=None)
    return replace(x, perm=compose(x.perm, perm))


@lower(aten.transpose.int)
def transpose(ctx: Context, x: Operand, dim0: int, dim1: int) -> Operand:
    """transpose.int(Tensor self, int dim0, int dim1) -> Tensor"""
    dims = list(range(len(x.shape)))
    a, b = axis_of(dim0, len(dims)), axis_of(dim1, len(dims))
    dims[a], dims[b] = dims[b], dims[a]
    return permute(ctx, x, dims)


@lower(aten.t.default)
def t(ctx: Context, x: Operand) -> Operand:
    """t(Tensor self) -> Tensor"""
    return permute(ctx, x, [1, 0]) if len(x.shape) == 2 else x


@lower(aten.squeeze.dims, aten.squeeze.dim)
def squeeze(ctx: Context, x: Operand, dims: int | list[int]) -> Operand:
    """squeeze.dims(Tensor self, int[] dim) -> Tensor"""
    wanted = {axis_of(d, len(x.shape)) for d in ([dims] if isinstance(dims, int) else dims)}
    return reshaped(ctx, x, [d for i, d in enumerate(x.shape) if i not in wanted or d != 1])


@lower(aten.unsqueeze.default)
def unsqueeze(ctx: Context, x: Operand, dim: int) -> Operand:
    """unsqueeze(Tensor self, int dim) -> Tensor"""
    shape = list(x.shape)
    shape.insert(axis_of(dim, len(shape) + 1), 1)
    return reshaped(ctx, x, shape)


@lower(aten.expand.default)
def expand(ctx: Context, x: Operand, sizes: list[int]) -> Operand:
    """expand(Tensor self, SymInt[] size) -> Tensor"""
    x = ctx.plain(ctx.with_rank(x, len(sizes)))
    multiples = tuple(1 if want in (-1, have) else want for want, have in zip(sizes, x.shape, strict=True))
    if set(multiples) == {1}:
        return x
    return replace(x, value=ctx.emit(ops.Tile(multiples), x.value))  # type: ignore[arg-type]


@lower(aten.repeat.default)
def repeat(ctx: Context, x: Operand, repeats: list[int]) -> Operand:
    """repeat(Tensor self, SymInt[] repeats) -> Tensor"""
    x = ctx.plain(ctx.with_rank(x, len(repeats)))
    return replace(x, value=ctx.emit(ops.Tile(tuple(repeats)), x.value))  # type: ignore[arg-type]


def sliced(ctx: Context, value: Value, axis: int, start: int, stop: int) -> Value:
    begin, size = [0] * len(value.shape), list(value.shape)
    begin[axis], size[axis] = start, stop - start
    if tuple(size) == value.shape:
        return value
    return ctx.emit(ops.Slice(tuple(begin), tuple(size)), value)


@lower(aten.slice.Tensor)
def slice_(ctx: Context, x: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Operand:
    """slice.Tensor(Tensor self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor"""
    axis = axis_of(dim, len(x.shape))
    begin, stop, step = slice(start, end, step).indices(x.shape[axis])
    if stop <= begin:
        raise ctx.refuse(f"slice {start}:{end} of length {x.shape[axis]} is empty")
    if step > 1:
        return _strided(ctx, x, axis, begin, stop, step)
    x = ctx.resolve_clamp(ctx.uniform(x))
    if x.view is None and x.perm is not None and x.value is not None:
        return replace(x, value=sliced(ctx, x.value, x.perm[axis], begin, stop))
    x = ctx.plain(x)
    return replace(x, value=sliced(ctx, x.value, axis, begin, stop))  # type: ignore[arg-type]


def _strided(ctx: Context, x: Operand, axis: int, begin: int, stop: int, step: int) -> Operand:
    """Every step-th element: pad to a multiple, reshape [.., n, step, ..], and keep the first of each."""
    x = ctx.plain(x)
    value = sliced(ctx, x.value, axis, begin, stop)  # type: ignore[arg-type]
    shape = value.shape
    short = -shape[axis] % step
    if short:
        padding = [0] * (2 * len(shape))
        padding[2 * axis + 1] = short
        value = ctx.emit(ops.Pad(tuple(padding)), value)
    n = value.shape[axis] // step
    value = ctx.reshape(value, (*shape[:axis], n, step, *shape[axis + 1 :]))
    value = sliced(ctx, value, axis + 1, 0, 1)
    return replace(x, value=ctx.reshape(value, (*shape[:axis], n, *shape[axis + 1 :])))


@lower(aten.select.int)
def select(ctx: Context, x: Operand, dim: int, index: int) -> Operand:
    """select.int(Tensor self, int dim, SymInt index) -> Tensor"""
    axis = axis_of(dim, len(x.shape))
    at = index + x.shape[axis] if index < 0 else index
    picked = slice_(ctx, x, axis, at, at + 1)
    return reshaped(ctx, picked, [d for i, d in enumerate(picked.shape) if i != axis])


@lower(aten.split_with_sizes.default)
def split_with_sizes(ctx: Context, x: Operand, sizes: list[int], dim: int = 0) -> tuple[Operand, ...]:
    """split_with_sizes(Tensor self, SymInt[] split_sizes, int dim=0) -> Tensor[]"""
    edges = np.cumsum([0, *sizes]).tolist()
    return tuple(slice_(ctx, x, dim, a, b) for a, b in itertools.pairwise(edges))


@lower(aten.cat.default)
def cat(ctx: Context, tensors: list[Operand], dim: int = 0) -> Operand:
    """cat(Tensor[] tensors, int dim=0) -> Tensor"""
    quantized = [x for x in tensors if x.quant is not None]
    tensors = [x for x in tensors if int(np.prod(x.shape))]
    axis = axis_of(dim, len(tensors[0].shape))
    if not quantized or any(x.quant is None and not x.is_const for x in tensors):
        parts = [Operand(ctx.logical(x)) if x.quant is None and not x.is_const else ctx.floats(x)[0] for x in tensors]
        return Operand(ctx.emit(ops.Concat(axis), *(x.value for x in parts)))  # type: ignore[arg-type]
    target = ctx.want or ctx.uniform(quantized[0]).quant
    assert target is not None
    parts, perm = ctx.same_layout(*(ctx.requantize(x, target) for x in tensors))
    parts = [ctx.store(x) for x in parts]
    joined = ctx.emit(ops.Concat(axis if perm is None else perm[axis]), *(x.value for x in parts))  # type: ignore[arg-type]
    return Operand(joined, quant=target, perm=perm)


@lower(aten.constant_pad_nd.default)
def constant_pad_nd(ctx: Context, x: Operand, pad: list[int], value: float = 0) -> Operand:
    """constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    x = ctx.resolve_clamp(ctx.uniform(ctx.store(x)))
    if x.view is not None:
        x = ctx.plain(x)
    rank = len(x.shape)
    both = [(0, 0)] * rank
    for i in range(len(pad) // 2):
        both[rank - 1 - i] = (pad[2 * i], pad[2 * i + 1])
    for axis, (before, after) in enumerate(both):
        if min(before, after) < 0:
            x = slice_(ctx, x, axis, max(0, -before), x.shape[axis] - max(0, -after))
    amounts = [(max(0, a), max(0, b)) for a, b in both]
    perm = x.perm or tuple(range(rank))
    stored: list[tuple[int, int]] = [(0, 0)] * rank
    for axis, amount in enumerate(amounts):
        stored[perm[axis]] = amount
    if not any(a or b for a, b in stored):
        return x
    fill = float(value) if x.quant is None else int(x.quant.store(np.array(float(value))))
    return replace(x, value=ctx.emit(ops.Pad(tuple(n for pair in stored for n in pair), fill), x.value), bits=None)  # type: ignore[arg-type]


def _border_pad(ctx: Context, x: Operand, pad: list[int], border: Callable[[Value, int, int, bool], Value]) -> Operand:
    """Concatenate borders that are made of the input itself, one axis after the other, last first."""
    x = ctx.plain(x)
    value = x.value
    assert value is not None
    for i in range(len(pad) // 2):
        axis, (before, after) = len(value.shape) - 1 - i, pad[2 * i : 2 * i + 2]
        if min(before, after) < 0:
            raise ctx.refuse(f"negative padding {pad} with a border mode")
        parts = [border(value, axis, before, False)] if before else []
        parts.append(value)
        parts += [border(value, axis, after, True)] if after else []
        value = ctx.emit(ops.Concat(axis), *parts) if len(parts) > 1 else value
    return replace(x, value=value)


@lower(aten.reflection_pad1d.default, aten.reflection_pad2d.default)
def reflection_pad(ctx: Context, x: Operand, pad: list[int]) -> Operand:
    """reflection_pad2d(Tensor self, SymInt[4] padding) -> Tensor"""

    def border(value: Value, axis: int, count: int, far: bool) -> Value:
        start = value.shape[axis] - 1 - count if far else 1  # the border element itself is not repeated
        return ctx.emit(ops.Reverse(axis), sliced(ctx, value, axis, start, start + count))

    return _border_pad(ctx, x, pad, border)


@lower(aten.replication_pad1d.default, aten.replication_pad2d.default)
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


@lower(aten.pixel_shuffle.default)
def pixel_shuffle(ctx: Context, x: Operand, r: int) -> Operand:
    """pixel_shuffle(Tensor self, int upscale_factor) -> Tensor"""
    if len(x.shape) == 3:
        return squeeze(ctx, pixel_shuffle(ctx, unsqueeze(ctx, x, 0), r), 0)
    n, c, h, w = _four(ctx, x)
    c //= r * r
    return _shuffled(ctx, x, (n * h, w, c, r, r), (0, 3, 1, 4, 2), (n, h * r, w * r, c))


@lower(aten.pixel_unshuffle.default)
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
