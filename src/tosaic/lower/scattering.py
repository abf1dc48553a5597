"""Writing by index: a mask and SELECT where all places get one number, else SCATTER.

SCATTER forbids that two writes meet (specification section 2.10.2). Of constant indices the last write of a place is kept, as
PyTorch does on a CPU; computed indices must be distinct, as PyTorch asks for a defined result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from tosaic.lower.choose import where
from tosaic.lower.compare import compare
from tosaic.lower.context import Context
from tosaic.lower.elementwise import add_operands
from tosaic.lower.indexing import Indexed, flat_index, gather_rows, index_below, index_select, index_value, indexed
from tosaic.lower.layout import around, axis_of, movable, permute, reshaped, slice_, tiled
from tosaic.lower.movement import cat, joined
from tosaic.lower.operand import Operand, inverse
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


def scatter_rows(ctx: Context, values: Value, indices: Value, rows: Value) -> Value:
    """SCATTER into [N, K, C] at [N, W] of [N, W, C]; it takes no bool, and the FP profile no int32."""
    if values.dtype is DType.BOOL:
        raise ctx.refuse("write of booleans by index")
    if values.dtype is DType.INT32 and not ctx.spec.holds("INT"):
        values, rows = (ctx.emit(ops.Cast(DType.FP32), v) for v in (values, rows))
        return ctx.emit(ops.Cast(DType.INT32), ctx.emit(ops.Scatter(), values, indices, rows))
    return ctx.emit(ops.Scatter(), values, indices, rows)


def write(ctx: Context, values: Value, index: Operand, rows: Value) -> Value:
    """`values` [N, K, C] with `rows` [N, W, C] at `index` [N, W]."""
    if index.array is None:
        if index.shape[1] > values.shape[1]:
            raise ctx.refuse(f"{index.shape[1]} writes to {values.shape[1]} places at computed indices: some are the same")
        return scatter_rows(ctx, values, index.tensor, rows)
    array = index.array.astype(np.int64)
    batches, size = values.shape[:2]
    whole = (array + np.arange(batches)[:, None] * size).reshape(-1)
    places, last = np.unique(whole[::-1], return_index=True)
    if len(places) == len(whole):
        return scatter_rows(ctx, values, ctx.i32(array), rows)
    channels = values.shape[2]
    kept = gather_rows(ctx, ctx.reshape(rows, (1, len(whole), channels)), ctx.i32((len(whole) - 1 - last)[None]))
    flat = scatter_rows(ctx, ctx.reshape(values, (1, batches * size, channels)), ctx.i32(places[None]), kept)
    return ctx.reshape(flat, values.shape)


@lower(aten.scatter.src)
def scatter(ctx: Context, x: Operand, dim: int, index: Operand, src: Operand) -> Operand:
    """scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    axis = axis_of(dim, len(x.shape))
    index = index_below(ctx, index, x.shape[axis])
    for other, (have, want) in enumerate(zip(src.shape, index.shape, strict=True)):
        if want < have:
            src = slice_(ctx, src, other, 0, want)
    x, src = (ctx.plain(p) for p in joined(ctx, (x, src)))
    assert x.value is not None and src.value is not None
    pre, size, post = around(x.shape, axis)
    if index.shape[:axis] != x.shape[:axis] or index.shape[axis + 1 :] != x.shape[axis + 1 :]:
        flat = _whole_index(ctx, x.shape, axis, index)
        values, rows = ctx.reshape(x.value, (1, math.prod(x.shape), 1)), ctx.reshape(src.value, (1, math.prod(src.shape), 1))
        return Operand(ctx.reshape(write(ctx, values, flat, rows), x.shape), quant=x.quant)
    count = index.shape[axis]
    at = flat_index(ctx, index_value(ctx, index, (pre, count * post)), post)
    values, rows = ctx.reshape(x.value, (pre, size * post, 1)), ctx.reshape(src.value, (pre, count * post, 1))
    return Operand(ctx.reshape(write(ctx, values, _operand(at), rows), x.shape), quant=x.quant)


def _operand(indices: Value) -> Operand:
    return Operand(array=indices.data) if indices.data is not None else Operand(indices)


def _whole_index(ctx: Context, shape: Sequence[int], axis: int, index: Operand) -> Operand:
    """Positions [1, W] in a tensor laid flat, of an index that is smaller than the tensor along other axes."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    grid = np.indices(index.shape)
    base = sum(grid[i] * strides[i] for i in range(len(shape)) if i != axis) + np.zeros(index.shape, np.int64)
    width = math.prod(index.shape)
    if index.array is not None:
        return Operand(array=(base + index.array * strides[axis]).reshape(1, width))
    value = ctx.emit(ops.Mul(), index_value(ctx, index, (1, width)), ctx.i32(strides[axis], 2))
    return Operand(ctx.emit(ops.Add(), value, ctx.i32(base.reshape(1, width))))


@lower(aten.scatter.value)
def scatter_value(ctx: Context, x: Operand, dim: int, index: Operand, value: float) -> Operand:
    """scatter.value(Tensor self, int dim, Tensor index, Scalar value) -> Tensor

    A mask of the places, and SELECT: it does not matter how often a place is written.
    """
    axis = axis_of(dim, len(x.shape))
    index = index_below(ctx, index, x.shape[axis])
    number = Operand(array=np.array(value))
    if index.array is None:
        return where(ctx, _mask(ctx, x.shape, axis, index), number, x)
    mask = np.zeros(x.shape, np.bool_)
    at = list(np.indices(index.shape))
    at[axis] = index.array
    mask[tuple(at)] = True
    return where(ctx, Operand(array=mask), number, x)


def _mask(ctx: Context, shape: Sequence[int], axis: int, index: Operand) -> Operand:
    """Where any of the computed indices along `axis` points: [pre, W, 1, post] == [1, 1, K, 1], any over W."""
    pre, count, post = around(index.shape, axis)
    size = shape[axis]
    at = Operand(index_value(ctx, index, (pre, count, 1, post)))
    mask = ctx.logical(compare(ctx, at, Operand(array=np.arange(size).reshape(1, 1, size, 1)), "eq"))
    mask = ctx.emit(ops.ReduceAny(1), mask) if count > 1 else mask
    mask = ctx.reshape(mask, (*index.shape[:axis], size, *index.shape[axis + 1 :]))
    padding = [n for have, want in zip(mask.shape, shape, strict=True) for n in (0, want - have)]
    return Operand(ctx.emit(ops.Pad(tuple(padding), False), mask) if any(padding) else mask)


@lower(aten.index_put.default)
def index_put(ctx: Context, x: Operand, indices: Sequence[Operand | None], values: Operand, accumulate: bool = False) -> Operand:
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) == 1 and _is_mask(given[0][1]):
        return _masked(ctx, x, *given[0], values, accumulate)
    at = indexed(ctx, x, indices)
    if at.index.array is not None and not accumulate and (one := _same_for_all(ctx, at, values)) is not None:
        mask = np.isin(np.arange(at.x.shape[at.axis]), at.index.array)
        shape = [len(mask) if i == at.axis else 1 for i in range(len(at.x.shape))]
        return _unordered(ctx, where(ctx, Operand(array=mask.reshape(shape)), one, at.x), x.shape, at.order)
    values = _written(ctx, at, values)
    if accumulate:
        if at.index.array is None or len(set(at.index.array.tolist())) < math.prod(at.block):
            raise ctx.refuse("sums at indices that may meet, of axes that are not adjacent (accumulate=True)")
        values = add_operands(ctx, index_select(ctx, at.x, at.axis, at.index), values, ops.Add())
    if (found := _run_written(ctx, at, values)) is None:
        rows = [ctx.plain(p) for p in joined(ctx, (at.x, values))]
        pre, size, post = around(at.x.shape, at.axis)
        count = math.prod(at.block)
        index = _batched(ctx, at.index, pre)
        old, new = ctx.reshape(rows[0].tensor, (pre, size, post)), ctx.reshape(rows[1].tensor, (pre, count, post))
        result = write(ctx, old, index, new)
        found = Operand(ctx.reshape(result, at.x.shape), quant=rows[0].quant)
    return _unordered(ctx, found, x.shape, at.order)


def _unordered(ctx: Context, x: Operand, shape: Sequence[int], order: tuple[int, ...]) -> Operand:
    """What `indexed` merged and permuted, as it was."""
    return permute(ctx, reshaped(ctx, x, tuple(shape[a] for a in order)), list(inverse(order)))


def _same_for_all(ctx: Context, at: Indexed, values: Operand) -> Operand | None:
    """Values that are the same for each index, with an axis of 1 instead of the indices' own; None if they are not."""
    behind, block = len(at.x.shape) - at.axis - 1, len(at.block)
    shape = (1,) * (at.axis + block + behind - len(values.shape)) + values.shape
    if math.prod(shape[at.axis : at.axis + block]) != 1:
        return None
    return reshaped(ctx, values, (*shape[: at.axis], 1, *shape[at.axis + block :]))


def _is_mask(index: Operand) -> bool:
    return index.array.dtype.kind == "b" if index.array is not None else index.tensor.dtype is DType.BOOL


def _masked(ctx: Context, x: Operand, axis: int, mask: Operand, values: Operand, accumulate: bool) -> Operand:
    """x[.., mask, ..] = a number (or what is the same for each place), or plus it."""
    behind = len(x.shape) - axis - len(mask.shape)
    shape = (1,) * (axis + 1 + behind - len(values.shape)) + values.shape
    if shape[axis] != 1:
        raise ctx.refuse("write of several values to a boolean mask: where each goes would depend on the mask's values")
    values = reshaped(ctx, values, (*shape[:axis], *(1,) * len(mask.shape), *shape[axis + 1 :]))
    values = add_operands(ctx, x, values, ops.Add()) if accumulate else values
    return where(ctx, reshaped(ctx, mask, (*mask.shape, *(1,) * behind)), values, x)


def _written(ctx: Context, at: Indexed, values: Operand) -> Operand:
    """The values to write, broadcast to [before, *block, behind], and the block laid flat."""
    want = (*at.x.shape[: at.axis], *at.block, *at.x.shape[at.axis + 1 :])
    values = reshaped(ctx, values, (1,) * (len(want) - len(values.shape)) + values.shape)
    values = tiled(ctx, values, [n // have for n, have in zip(want, values.shape, strict=True)])
    return reshaped(ctx, values, (*at.x.shape[: at.axis], math.prod(at.block), *at.x.shape[at.axis + 1 :]))


def _run_written(ctx: Context, at: Indexed, values: Operand) -> Operand | None:
    """A write to a run of constant indices: what is before it, the values, and what is behind."""
    array = at.index.array
    if array is None or (np.diff(array) != 1).any():
        return None
    first, last = int(array[0]), int(array[-1])
    size = at.x.shape[at.axis]
    parts = [slice_(ctx, at.x, at.axis, a, b) for a, b in ((0, first), (last + 1, size)) if a < b]
    return cat(ctx, [*parts[: first > 0], values, *parts[first > 0 :]], at.axis)


def _batched(ctx: Context, index: Operand, times: int) -> Operand:
    if index.array is not None:
        return Operand(array=np.tile(index.array.reshape(1, -1), (times, 1)))
    row = index_value(ctx, index, (1, math.prod(index.shape)))
    return Operand(movable(ctx, row, lambda v: ctx.emit(ops.Tile((times, 1)), v)) if times > 1 else row)
