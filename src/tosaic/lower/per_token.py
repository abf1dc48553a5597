"""Linear layers with scales per token: the row is normalised by CLZ, multiplied in int8, and shifted back."""

from __future__ import annotations

import math
from dataclasses import replace

from tosaic import digits, operators
from tosaic.lower.context import Context
from tosaic.lower.digits import linear_in_digits
from tosaic.lower.elementwise import add_operands
from tosaic.lower.fixed import as_wanted, calc, inner_scale
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.products import linear
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

_MOST_ROOM = 26  # bits to which a row is normalised: products, and what they are shifted by, keep to int32
_LIMIT = 30  # bits of magnitude of what RESCALE gives


@lower(operators.per_token_linear)
def per_token_linear(ctx: Context, x: Operand, weight: Operand, bias: Operand | None, unit: float, bits: int = 8) -> Operand:
    """per_token_linear(Tensor self, Tensor weight, Tensor? bias, float unit, int bits=8) -> Tensor

    x is int32, |x| < 2^31. count = max(CLZ(max |x|) - (32 - room), 0) in [0, room] for each row, where 2^room is 8 times the
    calibrated |x|; h = x 2^(count + 7 - room), int8 (saturated where count is 0 and the row passes 2^room); the product with the
    weight is an int32 accumulator as any linear's. Where integers are wanted, it is brought to their scale, limited to 2^30
    there, and shifted right by count: rows far smaller than the largest keep all the bits that the scale has for them. Where
    floats are, it is multiplied by 2^-count, which is exact. Of 16 bits, h is two int8 digits (see `linear`).
    """
    if x.quant is not None and x.quant.dtype is DType.INT16:
        x = replace(ctx.to_i32(x), calibrated=2.0**15)
    if x.quant is None or x.quant.dtype is not DType.INT32 or not unit:
        return linear(ctx, x, weight, bias)
    room = min(_MOST_ROOM, max(7, ctx.used_bits(x)))
    x = ctx.plain(x)
    value, scale = x.value, x.scale
    assert value is not None
    largest = ctx.emit(ops.ReduceMax(len(value.shape) - 1), ctx.emit(ops.Abs(), value))
    count = calc(ctx, ops.Maximum(), calc(ctx, ops.Sub(), ctx.emit(ops.Clz(), largest), 32 - room), 0)
    normal = ctx.emit(ops.LogicalLeftShift(), value, count)
    low, high = ctx.interval(value)
    normal = ctx.bounded(normal, min(low, -(2**room)), max(high, 2**room), "normalised, or as it is where the row is larger than that")
    row = Operand(normal, quant=Quant(scale, 0, DType.INT32))
    if bits == 8:
        product = linear(ctx, ctx.requantize(row, Quant(scale * 2.0 ** (room - 7), 0, DType.INT8)), weight)
    else:
        product = linear_in_digits(ctx, row, weight, None, scale * 2.0**room / digits.MOST)
    assert product.quant is not None and product.bits is not None
    if ctx.want is None and ctx.spec.holds("FP"):
        result = _in_float(ctx, product, count, room)
    else:
        reach = float(product.quant.scales.max()) * 2.0**product.bits
        fine = reach / 2.0**_LIMIT if ctx.want is None else inner_scale(ctx, reach)
        product = ctx.plain(ctx.requantize(product, Quant(fine, 0, DType.INT32)))
        assert product.value is not None
        most = min(_LIMIT, math.ceil(math.log2(reach / fine) + 1e-9))
        result = as_wanted(ctx, ctx.emit(ops.ArithmeticRightShift(True), product.value, count), fine, max(most, 1))
    return result if bias is None else add_operands(ctx, result, bias, ops.Add())


def _in_float(ctx: Context, product: Operand, count: Value, room: int) -> Operand:
    """product 2^-count, count in [0, room]."""
    assert product.quant is not None
    scaled = ctx.plain(ctx.dequantize(replace(product, quant=product.quant.times(2.0**-room))))
    assert scaled.value is not None
    power = calc(ctx, ops.LogicalRightShift(), 1 << room, count)
    return Operand(ctx.emit(ops.Mul(), scaled.value, ctx.emit(ops.Cast(DType.FP32), power)))
