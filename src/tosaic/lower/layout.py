"""Views: the stored values stay as they are, in other shapes and orders.

A tensor of more axes than TOSA's level holds stays a pending view of fewer: axes that an operator does not tell apart are
one axis to it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.operand import Operand, compose
from tosaic.lower.registry import Lowering, lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_LOOK_BACK = 100  # operators


def axis_of(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def axes_of(dims: Sequence[int], rank: int) -> list[int]:
    return [axis_of(d, rank) for d in dims]


def movable(ctx: Context, value: Value, move: Callable[[Value], Value]) -> Value:
    """`move(value)`; the FP profile moves no int32, so that an index travels as float32 there (exact up to 2^24)."""
    if value.dtype is not DType.INT32 or ctx.spec.holds("INT"):
        return move(value)
    return as_bounded(ctx, ctx.emit(ops.Cast(DType.INT32), move(in_float(ctx, value))), value)


def as_bounded(ctx: Context, value: Value, like: Value) -> Value:
    """`value`, which holds no other numbers than `like`, with the bound of that."""
    return value if like.bound is None else ctx.bounded(value, like.bound.low, like.bound.high, like.bound.why)


def in_float(ctx: Context, index: Value) -> Value:
    """An int32 value as float32; what was float32 before it became int32 is taken from there, as casts and movement commute."""
    made = maker(ctx, index)
    if made is not None and isinstance(made.op, ops.Cast) and made.inputs[0].dtype is DType.FP32:
        return made.inputs[0]
    return ctx.emit(ops.Cast(DType.FP32), index)


def maker(ctx: Context, value: Value) -> Node | None:
    """The operator that a value comes from, if it is one of the last."""
    nodes = ctx.builder.graph.nodes
    return next((n for n in itertools.islice(reversed(nodes), _LOOK_BACK) if n.output is value), None)


def moves(*targets: torch._ops.OpOverload) -> Callable[[Lowering], Lowering]:
    """Register a lowering that moves the values of its first operand, of whatever type they are."""

    def register(function: Lowering) -> Lowering:
        @functools.wraps(function)
        def move(ctx: Context, x: Operand, *arguments: Any, **options: Any) -> Any:
            if x.value is None or x.value.dtype is not DType.INT32 or x.quant is not None or ctx.spec.holds("INT"):
                return function(ctx, x, *arguments, **options)
            result = function(ctx, replace(x, value=in_float(ctx, x.value)), *arguments, **options)
            if isinstance(result, tuple):
                return tuple(_to_index(ctx, r) for r in result)
            return _to_index(ctx, result)

        return lower(*targets)(move)

    return register


def _to_index(ctx: Context, x: Operand) -> Operand:
    if x.value is None:
        return x
    x = Operand(ctx.logical(x)) if fits_level(ctx, x.shape) else x
    return replace(x, value=ctx.emit(ops.Cast(DType.INT32), x.tensor))


def constant(x: Operand, move: Callable[[np.ndarray], np.ndarray]) -> Operand:
    """A constant with its array moved; scales that belong to one of its axes become part of the numbers."""
    if x.axis is not None:
        x = Operand(array=x.reals())
    return replace(x, array=move(x.constant))


def fits_level(ctx: Context, shape: Sequence[int]) -> bool:
    return len(shape) <= ctx.spec.level.max_rank


def reshaped(ctx: Context, x: Operand, shape: Sequence[int]) -> Operand:
    """RESHAPE; it stays pending where TOSA has no tensor of that rank."""
    if x.is_const:
        return constant(x, lambda a: a.reshape(shape))
    x = replace(ctx.resolve_clamp(ctx.uniform(x)), view=tuple(shape))
    return replace(x, value=ctx.logical(x), perm=None, view=None) if fits_level(ctx, shape) else x


def compact(ctx: Context, x: Operand, axes: Sequence[int]) -> tuple[Operand, list[int]]:
    """`x` with the axes between `axes` merged, and where `axes` are then."""
    runs: list[list[int]] = []
    for axis in range(len(x.shape)):
        if axis in axes or not runs or runs[-1][-1] in axes:
            runs.append([axis])
        else:
            runs[-1].append(axis)
    places = [next(i for i, run in enumerate(runs) if axis in run) for axis in axes]
    return reshaped(ctx, x, [math.prod(x.shape[a] for a in run) for run in runs]), places


def unviewed(ctx: Context, x: Operand) -> Operand:
    """`x` as its value is stored, or plain: nothing pending but a permutation."""
    x = ctx.resolve_clamp(ctx.uniform(ctx.store(x)))
    return ctx.plain(x) if x.view is not None else x


def stored_axis(x: Operand, axis: int) -> int:
    """The axis of the stored value that is axis `axis` of a permuted operand."""
    return axis if x.perm is None else x.perm[axis]


@moves(aten.reshape.default)
def reshape(ctx: Context, x: Operand, shape: list[int]) -> Operand:
    """reshape(Tensor self, SymInt[] shape) -> Tensor"""
    size = math.prod(x.shape)
    known = math.prod(d for d in shape if d != -1)
    return reshaped(ctx, x, [size // known if d == -1 else d for d in shape])


@moves(aten.permute.default)
def permute(ctx: Context, x: Operand, dims: list[int]) -> Operand:
    """permute(Tensor self, int[] dims) -> Tensor"""
    perm = tuple(axes_of(dims, len(x.shape)))
    if x.is_const:
        return constant(x, lambda a: a.transpose(perm))
    if perm == tuple(range(len(perm))):
        return x
    x = ctx.uniform(x)
    if not fits_level(ctx, perm):
        return _permuted_in_steps(ctx, x, perm)
    if x.view is not None:
        x = replace(x, value=ctx.logical(x), perm=None, view=None)
    return replace(x, perm=compose(x.perm, perm))


def _permuted_in_steps(ctx: Context, x: Operand, perm: Sequence[int]) -> Operand:
    """A permutation of more axes than a level has: those that stay adjacent are one, and what is left over goes in several steps."""
    shape, order = list(x.shape), list(perm)
    value = x.value
    assert value is not None
    if x.perm is not None and x.perm != tuple(range(len(x.perm))):
        value = ctx.emit(ops.Transpose(x.perm), value)
    while True:
        # the longest prefix of the wanted order that one TRANSPOSE can bring to the front
        for count in range(len(order), 0, -1):
            step = order[:count] + sorted(order[count:])
            merged, perm = merge_axes(shape, step)
            if fits_level(ctx, merged):
                break
        value = ctx.reshape(value, merged)
        shape = [shape[a] for a in step]
        if step == order:
            return replace(x, value=value, perm=tuple(perm), view=tuple(shape))
        value = ctx.emit(ops.Transpose(tuple(perm)), value)
        order = [step.index(a) for a in order]


def merge_axes(shape: Sequence[int], perm: Sequence[int]) -> tuple[list[int], list[int]]:
    """A shape and permutation of as few axes as possible that move the same elements."""
    runs: list[list[int]] = []
    for axis in (a for a in perm if shape[a] != 1):
        if runs and all(shape[a] == 1 for a in range(runs[-1][-1] + 1, axis)) and runs[-1][-1] < axis:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    before = sorted(runs)
    return [math.prod(shape[a] for a in run) for run in before], [before.index(run) for run in runs]


@moves(aten.transpose.int)
def transpose(ctx: Context, x: Operand, dim0: int, dim1: int) -> Operand:
    """transpose.int(Tensor self, int dim0, int dim1) -> Tensor"""
    dims = list(range(len(x.shape)))
    if not dims:
        return x
    a, b = axes_of((dim0, dim1), len(dims))
    dims[a], dims[b] = dims[b], dims[a]
    return permute(ctx, x, dims)


@moves(aten.t.default)
def t(ctx: Context, x: Operand) -> Operand:
    """t(Tensor self) -> Tensor"""
    return permute(ctx, x, [1, 0]) if len(x.shape) == 2 else x


@moves(aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default)
def squeeze(ctx: Context, x: Operand, dims: int | list[int] | None = None) -> Operand:
    """squeeze.dims(Tensor self, int[] dim) -> Tensor"""
    rank = len(x.shape)
    wanted = set(range(rank) if dims is None else axes_of([dims] if isinstance(dims, int) else dims, rank))
    return reshaped(ctx, x, [d for i, d in enumerate(x.shape) if i not in wanted or d != 1])


@moves(aten.unsqueeze.default)
def unsqueeze(ctx: Context, x: Operand, dim: int) -> Operand:
    """unsqueeze(Tensor self, int dim) -> Tensor"""
    shape = list(x.shape)
    shape.insert(axis_of(dim, len(shape) + 1), 1)
    return reshaped(ctx, x, shape)


@moves(aten.expand.default)
def expand(ctx: Context, x: Operand, sizes: list[int], implicit: bool = False) -> Operand:
    """expand(Tensor self, SymInt[] size, *, bool implicit=False) -> Tensor"""
    x = _with_rank(ctx, x, len(sizes))
    return tiled(ctx, x, [1 if want in (-1, have) else want for want, have in zip(sizes, x.shape, strict=True)])


@moves(aten.repeat.default)
def repeat(ctx: Context, x: Operand, repeats: list[int]) -> Operand:
    """repeat(Tensor self, SymInt[] repeats) -> Tensor"""
    return tiled(ctx, _with_rank(ctx, x, len(repeats)), repeats)


def _with_rank(ctx: Context, x: Operand, rank: int) -> Operand:
    return x if len(x.shape) == rank else reshaped(ctx, x, (1,) * (rank - len(x.shape)) + x.shape)


def tiled(ctx: Context, x: Operand, multiples: Sequence[int]) -> Operand:
    """TILE of a logical tensor."""
    if all(m == 1 for m in multiples):
        return x
    shape = [d * m for d, m in zip(x.shape, multiples, strict=True)]
    if x.is_const:
        return constant(x, lambda a: np.tile(a, multiples))
    if not fits_level(ctx, shape):
        for axis, multiple in enumerate(multiples):
            if multiple > 1:
                low, (place,) = compact(ctx, x, [axis])
                low = tiled(ctx, low, [multiple if i == place else 1 for i in range(len(low.shape))])
                x = reshaped(ctx, low, [*shape[: axis + 1], *x.shape[axis + 1 :]])
        return x
    x = unviewed(ctx, x)
    stored = [1] * len(shape)
    for axis, multiple in enumerate(multiples):
        stored[stored_axis(x, axis)] = multiple
    return replace(x, value=ctx.emit(ops.Tile(tuple(stored)), x.tensor))


def sliced(ctx: Context, value: Value, axis: int, start: int, stop: int) -> Value:
    begin, size = [0] * len(value.shape), list(value.shape)
    begin[axis], size[axis] = start, stop - start
    if tuple(size) == value.shape:
        return value
    return ctx.emit(ops.Slice(tuple(begin), tuple(size)), value)


@moves(aten.slice.Tensor)
def slice_(ctx: Context, x: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Operand:
    """slice.Tensor(Tensor self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor"""
    axis = axis_of(dim, len(x.shape))
    begin, stop, step = slice(start, end, step).indices(x.shape[axis])
    shape = [len(range(begin, stop, step)) if i == axis else d for i, d in enumerate(x.shape)]
    if x.is_const:
        return constant(x, lambda a: a[(slice(None),) * axis + (slice(begin, stop, step),)])
    if not fits_level(ctx, shape):
        low, (place,) = compact(ctx, x, [axis])
        return reshaped(ctx, slice_(ctx, low, place, begin, stop, step), shape)
    x = unviewed(ctx, x)
    assert x.value is not None
    if step == 1 or shape[axis] == 1:
        return replace(x, value=sliced(ctx, x.value, stored_axis(x, axis), begin, begin + shape[axis] if step > 1 else stop))
    return replace(x, value=_strided(ctx, x.value, stored_axis(x, axis), begin, stop, step))


def _strided(ctx: Context, value: Value, axis: int, begin: int, stop: int, step: int) -> Value:
    """Every step-th element: reshape [pre, n, step, post], and keep the first of each."""
    shape = value.shape
    count = len(range(begin, stop, step))
    folded = _in_groups(ctx, sliced(ctx, value, axis, begin, min(begin + count * step, shape[axis])), axis, step)
    return ctx.reshape(sliced(ctx, folded, 2, 0, 1), (*shape[:axis], count, *shape[axis + 1 :]))


def _in_groups(ctx: Context, value: Value, axis: int, step: int) -> Value:
    """[pre, n, step, post] of an axis of n * step elements; it is padded to a multiple."""
    pre, length, post = around(value.shape, axis)
    if short := -length % step:
        padding = [0] * (2 * len(value.shape))
        padding[2 * axis + 1] = short
        value = ctx.emit(ops.Pad(tuple(padding), _zero(value.dtype)), value)
    return ctx.reshape(value, (pre, (length + short) // step, step, post))


def _zero(dtype: DType) -> int | float | bool:
    return 0.0 if dtype.is_float else False if dtype is DType.BOOL else 0


def around(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Sizes of what is before an axis, of itself, and of what is behind."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


@moves(aten.select.int)
def select(ctx: Context, x: Operand, dim: int, index: int) -> Operand:
    """select.int(Tensor self, int dim, SymInt index) -> Tensor"""
    axis = axis_of(dim, len(x.shape))
    at = index + x.shape[axis] if index < 0 else index
    picked = slice_(ctx, x, axis, at, at + 1)
    return reshaped(ctx, picked, [d for i, d in enumerate(picked.shape) if i != axis])


@moves(aten.split_with_sizes.default)
def split_with_sizes(ctx: Context, x: Operand, sizes: list[int], dim: int = 0) -> tuple[Operand, ...]:
    """split_with_sizes(Tensor self, SymInt[] split_sizes, int dim=0) -> Tensor[]"""
    edges = np.cumsum([0, *sizes]).tolist()
    return tuple(slice_(ctx, x, dim, a, b) for a, b in itertools.pairwise(edges))


@moves(aten.flip.default)
def flip(ctx: Context, x: Operand, dims: list[int]) -> Operand:
    """flip(Tensor self, int[] dims) -> Tensor"""
    axes = axes_of(dims, len(x.shape))
    if x.is_const:
        return constant(x, lambda a: np.flip(a, axes))
    if not fits_level(ctx, x.shape):
        shape = x.shape
        for axis in axes:
            low, (place,) = compact(ctx, x, [axis])
            x = reshaped(ctx, flip(ctx, low, [place]), shape)
        return x
    x = unviewed(ctx, x)
    value = x.value
    assert value is not None
    for axis in axes:
        if x.shape[axis] > 1:
            value = ctx.emit(ops.Reverse(stored_axis(x, axis)), value)
    return replace(x, value=value)


@moves(aten.unfold.default)
def unfold(ctx: Context, x: Operand, dim: int, size: int, step: int) -> Operand:
    """unfold(Tensor self, int dimension, int size, int step) -> Tensor

    Windows of `size` along an axis, `step` apart, become a last axis. In groups of `step` elements, the window that starts with
    group i is made of the groups i, i + 1, ...: one SLICE for each of them, not for each element.
    """
    if not x.shape:
        return reshaped(ctx, x, (1,))
    axis = axis_of(dim, len(x.shape))
    x = ctx.plain(x)
    assert x.value is not None
    shape, count, per_window = x.shape, (x.shape[axis] - size) // step + 1, -(-size // step)
    groups = _in_groups(ctx, sliced(ctx, x.value, axis, 0, (count - 1) * step + size), axis, step)
    windows = concatenated(ctx, [sliced(ctx, groups, 1, i, i + count) for i in range(per_window)], 2)
    windows = sliced(ctx, windows, 2, 0, size)  # [pre, count, size, post]
    pre, post = shape[:axis], shape[axis + 1 :]
    return reshaped(ctx, replace(x, value=windows, perm=(0, 1, 3, 2)), (*pre, count, *post, size))


def concatenated(ctx: Context, parts: Sequence[Value], axis: int) -> Value:
    """CONCAT of any number of values; a level limits how many one operator takes."""
    limit = ctx.spec.level.max_tensor_list_size
    while len(parts) > 1:
        some = [parts[i : i + limit] for i in range(0, len(parts), limit)]
        parts = [ctx.emit(ops.Concat(axis), *group) if len(group) > 1 else group[0] for group in some]
    return parts[0]
