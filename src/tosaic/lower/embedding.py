"""Embedding: rows of a table that is quantized row by row."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.indexing import gather_rows, index_below, index_value, readable
from tosaic.lower.layout import reshaped
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.types import DType

aten = torch.ops.aten
_SCALE_BITS = 22  # of a row's scale; times 7 bits of an int8 entry it stays below 2^29
_SMALL_TABLE = 1 << 14  # elements that may rather be stored wide than be multiplied by scales


@lower(aten.embedding.default)
def embedding(
    ctx: Context, weight: Operand, indices: Operand, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Operand:
    """embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False, bool sparse=False) -> Tensor

    Rows of [V, E]. An int8 table whose readers want int8 is stored as they want it: the same numbers as dequantizing and
    quantizing the rows. Else rows keep a scale of their own, gathered beside them: entry * m with m = round(scale / largest
    scale * 2^22), so that |entry * m| <= 127 * 2^22 < 2^29, and the error of m is half a step of 2^-22.
    """
    if len(weight.shape) != 2:
        raise ctx.refuse(f"takes a table [V, E], found {list(weight.shape)}")
    indices = index_below(ctx, indices, weight.shape[0])
    shape = (*indices.shape, weight.shape[1])
    if weight.is_const and indices.array is not None:
        return Operand(array=weight.reals()[indices.array])
    width = math.prod(indices.shape)
    at = index_value(ctx, indices, (1, width))
    if weight.quant is None or not weight.quant.per_channel or not weight.is_const or weight.axis != 0:
        rows = ctx.plain(readable(ctx, weight))
        assert rows.value is not None
        found = gather_rows(ctx, ctx.reshape(rows.value, (1, *weight.shape)), at)
        return reshaped(ctx, replace(rows, value=found), shape)
    target, size = ctx.want, math.prod(weight.shape)
    if target is not None and (target.dtype is DType.INT8 or size <= _SMALL_TABLE):
        values = ctx.builder.const(target.store(weight.reals())[None], target.dtype)
        return reshaped(ctx, Operand(gather_rows(ctx, values, at), quant=target), shape)
    return reshaped(ctx, _scaled_rows(ctx, weight, indices), shape)


def _scaled_rows(ctx: Context, weight: Operand, indices: Operand) -> Operand:
    """int32 [1, W, E]."""
    assert weight.quant is not None and weight.array is not None
    scales = weight.quant.scales
    at = index_value(ctx, indices, (1, math.prod(indices.shape)))
    dtype = DType.INT8 if weight.quant.dtype is DType.INT4 else weight.quant.dtype  # GATHER takes no int4
    entries = ctx.emit(ops.Gather(), ctx.builder.const(weight.array[None], dtype), at)
    if (scales == scales[0]).all():
        return Operand(entries, quant=Quant(float(scales[0]), 0, dtype))
    largest = float(scales.max())
    multipliers = np.maximum(np.rint(scales / largest * 2.0**_SCALE_BITS), 1)
    factors = ctx.emit(ops.Gather(), ctx.i32(multipliers.reshape(1, -1, 1)), at)
    value = ctx.emit(ops.Mul(), ctx.emit(ops.Cast(DType.INT32), entries), factors)
    return Operand(value, quant=Quant(largest / 2.0**_SCALE_BITS, 0, DType.INT32), bits=29)
