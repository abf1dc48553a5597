"""Linear layers and matrix products."""

from __future__ import annotations

import math

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.digits import linear_in_digits
from tosaic.lower.elementwise import add_operands
from tosaic.lower.halves import brought
from tosaic.lower.mac import accumulator, magnitude, stored_bias, stored_weight, typed, with_room_for_bias, zero_point
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.types import DType

aten = torch.ops.aten


@lower(aten.linear.default)
def linear(ctx: Context, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    """linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor

    A 1x1 CONV2D over [1, rows, 1, features]: unlike MATMUL it takes int8 weights per channel for int16 inputs too.
    Inputs in two int8 digits (16a8w-digits), 255 high + low, are twice the rows, folded by MUL with [255, 1] and REDUCE_SUM: exactly,
    or shifted right by as many bits as the sums could have beyond 30.
    """
    if not weight.is_const:
        return _with_computed_weight(ctx, x, weight, bias)
    if ctx.digits is not None:
        return linear_in_digits(ctx, x, weight, bias, ctx.digits)
    x, weight = typed(ctx, x, weight)
    weight = with_room_for_bias(x, weight, bias, 0)
    channels = weight.shape[0]
    acc = accumulator(x, weight, channels)
    rows = math.prod(x.shape[:-1])
    value = ctx.reshape(ctx.logical(ctx.resolve_clamp(x)), (1, rows, 1, x.shape[-1]))
    b = stored_bias(ctx, bias, acc, channels, value)
    w = stored_weight(ctx, Operand(array=weight.constant[:, None, None, :], quant=weight.quant), range(4), value)
    out = ctx.emit(ops.Conv2d((1, 1), (0,) * 4, (1, 1), zero_point(x)), value, w, b)
    result = Operand(out, quant=acc, view=(*x.shape[:-1], channels), bits=magnitude(x, w, (0,), b))
    return result if bias is None or bias.is_const else add_operands(ctx, result, bias, ops.Add())


def _with_computed_weight(ctx: Context, x: Operand, weight: Operand, bias: Operand | None) -> Operand:
    """A matrix product of all rows with the transposed weight."""
    turned = Operand(ctx.permuted(ctx.resolve_clamp(ctx.uniform(weight)), (1, 0)), quant=weight.quant)
    x = ctx.plain(x)
    rows = Operand(ctx.reshape(x.tensor, (math.prod(x.shape[:-1]), x.shape[-1])), quant=x.quant)
    out = matmul(ctx, rows, turned)
    assert out.value is not None
    out = Operand(out.value, quant=out.quant, view=(*x.shape[:-1], weight.shape[0]), bits=out.bits)
    if bias is not None and out.quant is None:  # MATMUL of float16 and bfloat16 gives float32
        bias = Operand(array=bias.reals().astype(np.float32)) if bias.is_const else brought(ctx, bias, DType.FP32)
        ctx.floating = DType.FP32
    return out if bias is None else add_operands(ctx, out, bias, ops.Add())


@lower(aten.bmm.default, aten.mm.default)
def matmul(ctx: Context, a: Operand, b: Operand) -> Operand:
    """bmm(Tensor self, Tensor mat2) -> Tensor"""
    integer = ctx.is_narrow(a) and ctx.is_narrow(b) and a.scaling.dtype is b.scaling.dtype
    if not integer:
        a, b = ctx.floats(a, b)
    shape = (*a.shape[:-1], b.shape[-1])
    lhs, rhs = (ctx.logical(ctx.resolve_clamp(ctx.store(x))) for x in (a, b))
    if len(shape) == 2:
        lhs, rhs = ctx.reshape(lhs, (1, *lhs.shape)), ctx.reshape(rhs, (1, *rhs.shape))
    if not integer:
        return Operand(ctx.emit(ops.MatMul(), lhs, rhs), view=shape)
    assert a.quant is not None and b.quant is not None
    dtype = ops.ACCUMULATOR[a.quant.dtype]
    acc = Quant(a.scale * b.scale, 0, dtype)
    out = ctx.emit(ops.MatMul(a.quant.zero_point, b.quant.zero_point), lhs, rhs)
    bits = (255 * 255 if dtype is DType.INT32 else 1 << 30) * a.shape[-1]
    return Operand(out, quant=acc, view=shape, bits=bits.bit_length(), exact=dtype is DType.INT32)
