"""Reading by index: constant indices become slices where they run evenly, all others GATHER.

Indices are int32. Constant ones may be negative and count from the end then; computed ones must lie in 0..n-1, as GATHER
demands (specification section 2.10.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.layout import (
    around,
    as_bounded,
    axis_of,
    compact,
    concatenated,
    constant,
    fits_level,
    flip,
    maker,
    movable,
    permute,
    reshaped,
    slice_,
    sliced,
    stored_axis,
    tiled,
    unviewed,
)
from tosaic.lower.operand import Operand
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_MOST_RUNS, _FEW_RUNS = 8, 4  # so many slices and a CONCAT, before it is a GATHER; few may be of one element
_MOST_INDICES = 1 << 16  # of a constant that repeats, before it is a TILE


def index_below(ctx: Context, index: Operand, size: int) -> Operand:
    """An index tensor into an axis of `size`: in 0..size-1, which of a computed one is the model's duty."""
    kind = index.array.dtype.kind if index.array is not None else "b" if index.tensor.dtype is DType.BOOL else "i"
    if kind != "i":
        raise ctx.refuse("index by a boolean mask: the shape of the result would depend on its values")
    if index.array is None:
        ctx.bounded(index.tensor, 0, size - 1, "an index into that axis")
        return index
    array = index.array.astype(np.int64)
    if array.size and (array.min() < -size or array.max() >= size):
        raise ctx.refuse(f"index {int(array.min())}..{int(array.max())} is outside an axis of {size}")
    return Operand(array=np.where(array < 0, array + size, array))


def readable(ctx: Context, x: Operand) -> Operand:
    """What is read from, stored; a constant of real numbers as the readers of the result want it."""
    if x.axis is not None:
        x = Operand(array=x.reals())
    if x.is_real_const and x.constant.dtype.kind == "f":
        return ctx.floats(x)[0] if ctx.want is None else ctx.store(Operand(array=ctx.want.store(x.reals()), quant=ctx.want))
    return unviewed(ctx, x)


def index_value(ctx: Context, index: Operand, shape: Sequence[int]) -> Value:
    """An index tensor as an int32 value of another shape."""
    if index.array is not None:
        return ctx.i32(index.array.reshape(shape))
    assert index.value is not None
    if index.perm is None and index.value.shape == tuple(shape):
        return index.value
    return movable(ctx, index.value, lambda v: ctx.reshape(ctx.logical(replace(index, value=v)), shape))


def repeated(ctx: Context, index: Operand, times: int) -> Value:
    """Indices [times, W] that are the same for each of `times` batches."""
    width = math.prod(index.shape)
    if index.array is not None and times * width <= _MOST_INDICES:
        return ctx.i32(np.tile(index.array.reshape(1, width), (times, 1)))
    row = index_value(ctx, index, (1, width))
    return row if times == 1 else movable(ctx, row, lambda v: ctx.emit(ops.Tile((times, 1)), v))


def gather_rows(ctx: Context, values: Value, indices: Value) -> Value:
    """GATHER of [N, K, C] by [N, W]; it takes no bool, and the FP profile no int32."""
    if values.dtype is not DType.BOOL:
        return movable(ctx, values, lambda v: ctx.emit(ops.Gather(), v, indices))
    if ctx.spec.holds("INT"):
        return ctx.emit(ops.Cast(DType.BOOL), ctx.emit(ops.Gather(), ctx.emit(ops.Cast(DType.INT8), values), indices))
    one, zero = (ctx.builder.const(np.full((1, 1, 1), v), DType.FP32) for v in (1.0, 0.0))
    found = ctx.emit(ops.Gather(), ctx.emit(ops.Select(), values, one, zero), indices)
    return ctx.emit(ops.Greater(), found, zero)


@lower(aten.index_select.default)
def index_select(ctx: Context, x: Operand, dim: int, index: Operand) -> Operand:
    """index_select(Tensor self, int dim, Tensor index) -> Tensor"""
    if not x.shape:
        return x
    axis = axis_of(dim, len(x.shape))
    index = index_below(ctx, index, x.shape[axis])
    shape = (*x.shape[:axis], math.prod(index.shape), *x.shape[axis + 1 :])
    if not fits_level(ctx, shape):
        low, (place,) = compact(ctx, x, [axis])
        return reshaped(ctx, index_select(ctx, low, place, index), shape)
    if index.array is not None:
        if x.is_const:
            return constant(x, lambda a: a.take(index.constant.reshape(-1), axis))
        if (even := _even(ctx, x, axis, index.array.reshape(-1))) is not None:
            return even
    x = readable(ctx, x)
    assert x.value is not None
    place = stored_axis(x, axis)
    stored = x.value.shape
    pre, size, post = around(stored, place)
    found = gather_rows(ctx, ctx.reshape(x.value, (pre, size, post)), repeated(ctx, index, pre))
    return replace(x, value=ctx.reshape(found, (*stored[:place], found.shape[1], *stored[place + 1 :])))


def _even(ctx: Context, x: Operand, axis: int, index: np.ndarray) -> Operand | None:
    """Constant indices that are few runs of equal steps, as slices; None if they are not."""
    steps = np.diff(index)
    if len(index) == 1 or ((steps == steps[0]).all() and steps[0] > 0):
        return slice_(ctx, x, axis, int(index[0]), int(index[-1]) + 1, int(steps[0]) if len(index) > 1 else 1)
    if (steps == steps[0]).all() and steps[0] < 0:
        return flip(ctx, slice_(ctx, x, axis, int(index[-1]), int(index[0]) + 1, -int(steps[0])), [axis])
    count = int(np.argmax(steps != 0)) + 1 if steps.any() else len(index)
    if count > 1 and len(index) % count == 0 and (index.reshape(-1, count) == index[::count, None]).all():
        once = index_select(ctx, x, axis, Operand(array=index[::count]))
        shape = (*once.shape[: axis + 1], 1, *once.shape[axis + 1 :])
        if not fits_level(ctx, shape):
            return None
        many = tiled(ctx, reshaped(ctx, once, shape), [count if i == axis + 1 else 1 for i in range(len(shape))])
        return reshaped(ctx, many, (*once.shape[:axis], len(index), *once.shape[axis + 1 :]))
    runs = _runs(index.tolist())
    if len(runs) > (_MOST_RUNS if len(runs) * 2 <= len(index) else _FEW_RUNS):
        return None
    x = unviewed(ctx, x)
    assert x.value is not None
    place = stored_axis(x, axis)
    return replace(x, value=concatenated(ctx, [_run(ctx, x.value, place, *run) for run in runs], place))


@dataclass
class _Run:
    start: int
    count: int = 1
    step: int = 0


def _runs(index: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, count, step) of runs with steps 1, -1 or 0, the longest from the left."""
    found: list[_Run] = []
    for i in index:
        last = found[-1] if found else None
        step = i - (last.start + last.step * (last.count - 1)) if last else 0
        if last is not None and step in (-1, 0, 1) and (last.count == 1 or step == last.step):
            last.step, last.count = step, last.count + 1
        else:
            found.append(_Run(i))
    return [(r.start, r.count, r.step) for r in found]


def _run(ctx: Context, value: Value, axis: int, start: int, count: int, step: int) -> Value:
    first, last = min(start, start + step * (count - 1)), max(start, start + step * (count - 1))
    part = sliced(ctx, value, axis, first, last + 1)
    if step < 0:
        return ctx.emit(ops.Reverse(axis), part)
    if step == 0 and count > 1:
        return ctx.emit(ops.Tile(tuple(count if i == axis else 1 for i in range(len(part.shape)))), part)
    return part


def _alike_behind(ctx: Context, index: Operand, axis: int) -> Operand | None:
    """Indices that are the same along all axes behind `axis`, without these; None if they are not known to be."""
    kept = index.shape[: axis + 1]
    rest = math.prod(index.shape[axis + 1 :])
    if rest == 1:
        return replace(index, array=index.array.reshape(kept)) if index.array is not None else index
    if index.array is not None:
        flat = index.array.reshape(*kept, rest)
        return Operand(array=flat[..., 0]) if (flat == flat[..., :1]).all() else None
    whole = made = maker(ctx, index.value) if index.value is not None and index.perm is None and index.view is None else None
    if made is not None and isinstance(made.op, ops.Cast):
        made = maker(ctx, made.inputs[0])
    if whole is None or made is None or not isinstance(made.op, ops.Tile):
        return None
    source = made.inputs[0]
    if math.prod(source.shape[axis + 1 :]) != 1 or source.shape[: axis + 1] != kept:
        return None
    return Operand(as_bounded(ctx, source if made is whole else ctx.emit(whole.op, source), whole.output))


@lower(aten.gather.default)
def gather(ctx: Context, x: Operand, dim: int, index: Operand, sparse_grad: bool = False) -> Operand:
    """gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor

    An index that is the same for everything behind its axis picks rows; else each element has an index of its own into
    [axis, behind] laid flat.
    """
    if not x.shape:
        return x
    axis = axis_of(dim, len(x.shape))
    index = index_below(ctx, index, x.shape[axis])
    for other, (have, want) in enumerate(zip(x.shape, index.shape, strict=True)):
        if other != axis and want < have:
            x = slice_(ctx, x, other, 0, want)
    rows = _alike_behind(ctx, index, axis)
    if rows is not None and rows.array is not None:
        same = rows.array.reshape(-1, rows.array.shape[-1])
        if (same == same[:1]).all():
            return index_select(ctx, x, axis, Operand(array=same[0]))
    x = readable(ctx, x)
    value = ctx.logical(x)
    pre, size, post = around(value.shape, axis)
    if rows is not None:
        values, indices = ctx.reshape(value, (pre, size, post)), index_value(ctx, rows, (pre, index.shape[axis]))
    else:
        values = ctx.reshape(value, (pre, size * post, 1))
        indices = flat_index(ctx, index_value(ctx, index, (pre, index.shape[axis] * post)), post)
    return replace(x, value=ctx.reshape(gather_rows(ctx, values, indices), index.shape), perm=None, view=None)


def flat_index(ctx: Context, indices: Value, post: int) -> Value:
    """Positions in [axis, post] laid flat, of indices [pre, W * post] into the axis."""
    if post == 1:
        return indices
    behind = np.tile(np.arange(post), indices.shape[1] // post)[None]
    if indices.data is not None:
        return ctx.i32(indices.data.astype(np.int64) * post + behind)
    return ctx.emit(ops.Add(), ctx.emit(ops.Mul(), indices, ctx.i32(post, 2)), ctx.i32(behind))


@dataclass(frozen=True)
class Indexed:
    """An operand as indexing by several tensors sees it: one axis of rows, and one index into it.

    Attributes:
        x: permuted so that the indexed axes are adjacent, and merged, at `axis`.
        index: into that axis, 1-d.
        block: shape of the index tensors, broadcast: what stands in the result instead of the indexed axes.
        order: the permutation that was applied.
    """

    x: Operand
    axis: int
    index: Operand
    block: tuple[int, ...]
    order: tuple[int, ...]


def indexed(ctx: Context, x: Operand, indices: Sequence[Operand | None]) -> Indexed:
    """Merge the axes that are indexed; they come first if they are not adjacent, as in the result of PyTorch's indexing."""
    places = [i for i, index in enumerate(indices) if index is not None]
    tensors = [index_below(ctx, index, x.shape[i]) for i, index in enumerate(indices) if index is not None]
    block = np.broadcast_shapes(*(index.shape for index in tensors))
    axis = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    rest = [i for i in range(len(x.shape)) if i not in places]
    order = (*rest[:axis], *places, *rest[axis:])
    if order != tuple(range(len(order))):
        x = permute(ctx, x, list(order))
    sizes = x.shape[axis : axis + len(places)]
    flat = _flattened(ctx, tensors, sizes, block)
    x = reshaped(ctx, x, (*x.shape[:axis], math.prod(sizes), *x.shape[axis + len(places) :])) if len(places) > 1 else x
    return Indexed(x, axis, flat, block, order)


def _flattened(ctx: Context, tensors: Sequence[Operand], sizes: Sequence[int], block: tuple[int, ...]) -> Operand:
    """One index into axes laid flat."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    width = math.prod(block)
    if all(t.array is not None for t in tensors):
        total = np.zeros(block, np.int64)
        for tensor, stride in zip(tensors, strides, strict=True):
            total += tensor.constant * stride
        return Operand(array=total.reshape(width))
    summed: Value | None = None
    rank = max(len(block), 1)
    for tensor, stride in zip(tensors, strides, strict=True):
        value = index_value(ctx, tensor, (1,) * (rank - len(tensor.shape)) + tensor.shape)
        if stride > 1:
            value = (
                ctx.i32(value.data.astype(np.int64) * stride)
                if value.data is not None
                else ctx.emit(ops.Mul(), value, ctx.i32(stride, rank))
            )
        summed = value if summed is None else ctx.emit(ops.Add(), summed, value)
    assert summed is not None
    return Operand(index_value(ctx, Operand(summed), (width,)))


@lower(aten.index.Tensor)
def index_tensor(ctx: Context, x: Operand, indices: Sequence[Operand | None]) -> Operand:
    """index.Tensor(Tensor self, Tensor?[] indices) -> Tensor"""
    if (found := _one_by_one(ctx, x, indices)) is not None:
        return found
    at = indexed(ctx, x, indices)
    rows = index_select(ctx, at.x, at.axis, at.index)
    return reshaped(ctx, rows, (*rows.shape[: at.axis], *at.block, *rows.shape[at.axis + 1 :]))


def _one_by_one(ctx: Context, x: Operand, indices: Sequence[Operand | None]) -> Operand | None:
    """Adjacent axes whose constant indices vary along axes of their own, in order (a grid): each can be picked by itself."""
    places = [i for i, index in enumerate(indices) if index is not None]
    tensors = [indices[i] for i in places]
    if places != list(range(places[0], places[-1] + 1)) or any(t is None or t.array is None or t.array.dtype.kind == "b" for t in tensors):
        return None
    arrays: list[np.ndarray] = [t.array for t in tensors]  # type: ignore[union-attr, misc]
    block = np.broadcast_shapes(*(a.shape for a in arrays))
    varies = [[len(block) - a.ndim + i for i, d in enumerate(a.shape) if d > 1] for a in arrays]
    if list(itertools.chain(*varies)) != sorted({i for own in varies for i in own}):
        return None
    for place, array in zip(places, arrays, strict=True):
        x = index_select(ctx, x, place, index_below(ctx, Operand(array=array.reshape(-1)), x.shape[place]))
    return reshaped(ctx, x, (*x.shape[: places[0]], *block, *x.shape[places[-1] + 1 :]))
