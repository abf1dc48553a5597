"""Linear layers with scales per token: the row is normalised by CLZ, multiplied in int8, and shifted back."""

from __future__ import annotations

from tosaic import operators
from tosaic.lower.context import Context
from tosaic.lower.elementwise import add_operands
from tosaic.lower.fixed import as_wanted, calc, wide_scale
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.products import linear
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.types import DType

_ROOM = 24  # bits of magnitude that a row is normalised to; rows beyond twice their calibrated range saturate
_STEP = 2.0 ** (_ROOM - 7)  # of a normalised row, in its own units


@lower(operators.per_token_linear)
def per_token_linear(ctx: Context, x: Operand, weight: Operand, bias: Operand | None, unit: float) -> Operand:
    """per_token_linear(Tensor self, Tensor weight, Tensor? bias, float unit) -> Tensor

    x is int32, |x| < 2^31. count = max(CLZ(max |x|) - 8, 0) in [0, 24] for each row; h = x 2^(count - 17), int8 (saturated where count
    is 0 and the row passes 2^24); the product with the weight, an int32 accumulator as any linear's, is brought to a scale at
    which its structural bound is below 2^29 for count = 0, then shifted right by count.
    """
    if x.quant is None or x.quant.dtype is not DType.INT32 or not unit:
        return linear(ctx, x, weight, bias)
    x = ctx.plain(x)
    value, scale = x.value, float(x.quant.scale)  # type: ignore[arg-type, union-attr]
    assert value is not None
    largest = ctx.emit(ops.ReduceMax(len(value.shape) - 1), ctx.emit(ops.Abs(), value))
    count = calc(ctx, ops.Maximum(), calc(ctx, ops.Sub(), ctx.emit(ops.Clz(), largest), 31 - _ROOM + 1), 0)
    normal = ctx.emit(ops.LogicalLeftShift(), value, count)
    step = Quant(scale * _STEP, 0, DType.INT8)
    row = Operand(ctx.rescale(normal, Quant(scale, 0, DType.INT32), step), quant=step)
    product = linear(ctx, row, weight)
    assert product.quant is not None and product.bits is not None
    reach = float(product.quant.scales.max()) * 2.0**product.bits
    fine, bits = wide_scale(ctx, reach)
    product = ctx.plain(ctx.requantize(product, Quant(fine, 0, DType.INT32)))
    assert product.value is not None
    result = as_wanted(ctx, ctx.emit(ops.ArithmeticRightShift(True), product.value, count), fine, bits)
    return result if bias is None else add_operands(ctx, result, bias, ops.Add())
