"""Division."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from tosaic.lower.context import CALIBRATED, Context
from tosaic.lower.elementwise import broadcast_ranks, multiply
from tosaic.lower.fixed import TOP, as_wanted, calc, inner_scale, reciprocal, wide_scale
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.reals import as_real, is_quantized, operand
from tosaic.lower.registry import lower
from tosaic.lower.softmax import LARGEST_IS_ONE
from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_NEAR = 4000  # operators that are searched for what made a product


@lower(aten.div.Tensor, aten.div.Scalar)
def divide(ctx: Context, a: Operand | float, b: Operand | float) -> Operand:
    """div.Tensor(Tensor self, Tensor other) -> Tensor

    By a constant it is a product. Of integers, a divisor of zero counts as the smallest positive one of its scale: x / 0 saturates with the
    sign of x, and 0 / 0 is 0.
    """
    a, b = (as_real(ctx, operand(x)) for x in (a, b))
    if b.is_const:
        divisors = b.reals()
        if not divisors.all():
            raise ctx.refuse("division by a constant that is zero")
        return multiply(ctx, a, Operand(array=1.0 / divisors))
    if is_quantized(ctx, a, b):
        return _quotient(ctx, a, b)
    a, b = broadcast_ranks(ctx, a, b)
    a, b = ctx.floats(a, b)
    return Operand(ctx.emit(ops.Mul(), a.tensor, ctx.emit(ops.Reciprocal(), b.tensor)))


def _quotient(ctx: Context, a: Operand, b: Operand) -> Operand:
    """Both normalised: a 2^(ca - 1) below 2^31 and `_inverse`, a product of 27 to 29 bits, and one shift right by ca - cb.

    Where that would be negative there is none: quotients beyond 2^26, 8 times the wanted range, stay between that and 2^29.
    """
    b = _untiled(ctx, b)
    average = _Average.find(ctx, a, b)
    if average is not None:
        return _divide_average(ctx, average)
    want, ctx.want = ctx.want, None
    a, b = (x if x.is_const else _narrowed(ctx, x) for x in (a, b))
    top_reach = _reach(a)
    a, b = (x if x.is_const else ctx.to_i32(x) for x in (a, b))
    ctx.want = want
    assert b.quant is not None and b.value is not None
    (top, below), perm = ctx.same_layout(*broadcast_ranks(ctx, Operand(array=a.reals()) if a.is_const else a, b))
    reach = top_reach / b.scale
    scale = inner_scale(ctx, reach)
    unit = 1.0 if a.is_const else a.scale
    numerator, exponent = _mantissa(unit / (b.scale * scale))
    inverse, count = _inverse(ctx, below.tensor, numerator)
    # a / b = mantissa 2^-lead * inverse 2^(count - 16) / numerator, times numerator 2^-exponent
    mantissa, lead = _constant_mantissas(ctx, top.reals()) if a.is_const else _leading(ctx, top.tensor)
    product = ctx.emit(ops.Mul(18), mantissa, inverse)
    shift = ctx.emit(ops.Sub(), lead, calc(ctx, ops.Sub(), count, exponent - 3))
    shift = calc(ctx, ops.Minimum(), calc(ctx, ops.Maximum(), shift, 0), 31)
    value = ctx.emit(ops.ArithmeticRightShift(round=True), product, shift)
    return as_wanted(ctx, value, scale, 29, perm)


def _untiled(ctx: Context, x: Operand) -> Operand:
    """`x` before an expansion that the division's own broadcasting repeats, so that there are fewer reciprocals."""
    node = next((n for n in reversed(ctx.builder.graph.nodes) if n.output is x.value), None)
    if node is None or not isinstance(node.op, ops.Tile) or x.view is not None:
        return x
    repeated = all(m == 1 or d == 1 for m, d in zip(node.op.multiples, node.inputs[0].shape, strict=True))
    return replace(x, value=node.inputs[0]) if repeated else x


def _narrowed(ctx: Context, x: Operand) -> Operand:
    """A 48-bit accumulator as int32 of 29 bits; others as they are, with one scale and no pending clamp."""
    if x.quant is None or x.quant.dtype is not DType.INT48:
        return ctx.resolve_clamp(ctx.uniform(x))
    bits = x.bits if x.bits is not None else 47
    target = Quant(float(x.quant.scales.max()) * 2.0 ** max(0, bits - 29), 0, DType.INT32)
    assert x.value is not None
    done = replace(x, value=ctx.rescale(x.value, x.quant, target), quant=target, bits=min(bits, 29) + 1, exact=False)
    return ctx.resolve_clamp(done)


def _reach(x: Operand) -> float:
    if x.is_const:
        return float(np.abs(x.reals()).max(initial=0.0)) or 1.0
    return x.scale * (x.calibrated or CALIBRATED)


def _mantissa(number: float) -> tuple[int, int]:
    """(m, e) with number = m 2^-e, m in [2^30, 2^31)."""
    fraction, exponent = math.frexp(number)
    return min(TOP, round(fraction * 2**31)), 31 - exponent


def _leading(ctx: Context, x: Value) -> tuple[Value, Value]:
    """x 2^(count - 1), |.| in [2^30, 2^31) unless x is zero, and count = CLZ(|x|), for |x| < 2^31: its type's own least is not held."""
    count = ctx.emit(ops.Clz(), ctx.emit(ops.Abs(), x))
    lead = ctx.emit(ops.LogicalLeftShift(), x, calc(ctx, ops.Sub(), count, 1))
    return ctx.bounded(lead, -TOP, TOP, "shifted by its leading zeros"), count


def _constant_mantissas(ctx: Context, numbers: np.ndarray) -> tuple[Value, Value]:
    """What `_leading` gives, of real constants: x = mantissa 2^(1 - count)."""
    fraction, exponent = np.frexp(numbers)
    return ctx.i32(np.clip(np.rint(fraction * 2.0**31), -TOP, TOP)), ctx.i32(32 - exponent)


def _inverse(ctx: Context, b: Value, numerator: int) -> tuple[Value, Value]:
    """q and c with 1/b = q 2^(c - 16) / numerator, |q| < 2^16; relative error below 2^-13, as numerator >= 2^30.

    n = |b| 2^(c - 16) in [2^15, 2^16), q = numerator / n. Zero counts as one.
    """
    signed = not is_nonnegative(ctx, b)
    size = calc(ctx, ops.Maximum(), ctx.emit(ops.Abs(), b) if signed else b, 1)
    found = reciprocal(ctx, size, numerator)
    q = found.mantissa
    if signed:
        sign = calc(ctx, ops.BitwiseOr(), calc(ctx, ops.ArithmeticRightShift(), b, 31), 1)
        q = ctx.emit(ops.Mul(), q, ctx.bounded(sign, -1, 1, "-1 or 0, and the last bit"))
    return q, found.count


_KEEP_SIGN = (ops.Add, ops.Reshape, ops.Transpose, ops.Identity, ops.Tile, ops.Slice, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin)


def is_nonnegative(ctx: Context, value: Value) -> bool:
    """Whether the operators nearest to a value say that it is not below zero."""
    makers = {n.output: n for n in ctx.builder.graph.nodes[-_NEAR:]}

    def known(v: Value, depth: int = 8) -> bool:
        node = makers.get(v)
        if v.data is not None:
            return bool((v.data >= 0).all())
        if v.bound is not None and v.bound.low >= 0:
            return True
        if node is None or not depth:
            return False
        if isinstance(node.op, ops.Maximum):
            return any(known(x, depth - 1) for x in node.inputs)
        if isinstance(node.op, ops.Rescale):
            lowest = node.inputs[0].bound.low if node.inputs[0].bound else node.inputs[0].dtype.min
            above = lowest >= node.op.input_zp or (node.op.input_zp == 0 and known(node.inputs[0], depth - 1))
            return above and node.op.output_zp == 0
        return isinstance(node.op, ops.Abs) or (
            isinstance(node.op, (*_KEEP_SIGN, ops.Add)) and all(known(x, depth - 1) for x in node.inputs)
        )

    return known(value)


@dataclass(frozen=True)
class _Average:
    """(e v) / sum(e) of rows e >= 0 whose largest element is the type's own range: attention.

    Attributes:
        top, below: the product and the sum, int32 or int48, in the logical layout of the quotient.
        reach: the largest |v|, and with it the largest quotient.
        least, most: of the stored sum.
    """

    top: Operand
    below: Value
    unit: float
    reach: float
    least: int
    most: int

    @staticmethod
    def find(ctx: Context, a: Operand, b: Operand) -> _Average | None:
        """The numerator and denominator as such a pair, if the operators that made them say so."""
        if a.value is None or b.value is None or a.quant is None or b.quant is None or a.quant.per_channel or a.clamped or b.clamped:
            return None
        makers = {n.output: n for n in ctx.builder.graph.nodes[-_NEAR:]}
        product, total = _source(makers, a.value, ops.MatMul), _source(makers, b.value, ops.ReduceSum, ops.MatMul)
        if product is None or total is None or len(a.shape) != len(b.shape) or b.shape != (*a.shape[:-1], 1):
            return None
        e, rows = _through(makers, product.inputs[0]), product.inputs[0]
        terms, length = _terms(makers, product, total), rows.shape[-1]
        if terms is None or terms.shape[-1] != length or length > 2**14 or a.perm is not None or b.perm is not None:
            return None
        if _through(makers, terms) is not e or not _has_ones(makers, rows):
            return None
        zp_e, zp_v = product.op.a_zp, product.op.b_zp  # type: ignore[attr-defined]
        dtype = e.dtype
        one, largest = dtype.max - zp_e, max(dtype.max - zp_v, zp_v - dtype.min)
        unit = a.scale / b.scale
        reach, below = unit * largest, ctx.logical(b)
        wide = _unnarrowed(makers, e)
        if wide is not None and wide.bound is not None and wide.bound.high * length <= TOP:
            fine = wide.bound.high // one
            below = ctx.reshape(ctx.emit(ops.ReduceSum(len(wide.shape) - 1), wide), below.shape)
            # terms that were rounded up by half a step each are in the product only
            unit, reach, one = unit * fine, reach * (1 + length / (2 * one)), wide.bound.high
        return _Average(a, below, unit, reach, one, one * length)


def _dropped(x: _Average, wanted: DType) -> int | None:
    """How many bits the sum may lose, so that both it and (2^31 - 1) / sum keep what a narrow result asks for; None where they cannot.

    For 8 bits that is 12 of the quotient. For 16 it is 12 of both: the smallest sums have 12, the largest a quotient of 12 (a row
    is off by 2^-12 at most, 77 dB), and those between have more of both. Rows of up to 128 elements have room for that.
    """
    if wanted is DType.INT8 and x.most < 2**19:
        return 0
    drop = (x.least.bit_length() + x.most.bit_length() - 31) // 2
    fits = wanted is not DType.INT32 and drop > 0 and min(x.least >> drop, 2**31 // (x.most >> drop)) >= 2**12 - 1
    return drop if fits else None


def _unnarrowed(makers: dict[Value, Node], e: Value) -> Value | None:
    """Exponentials in int32 before they were rounded to the 16 bits of a product: their sum needs no widening.

    Of 8 bits the rounding is not left out of the sum, as what is below half a step may add up to a large part of it.
    """
    node = makers.get(e)
    if node is None or e.dtype is not DType.INT16 or not isinstance(node.op, ops.Rescale):
        return None
    x = node.inputs[0]
    return x if x.dtype is DType.INT32 and x.bound is not None and x.bound.why == LARGEST_IS_ONE else None


def _terms(makers: dict[Value, Node], product: Node, total: Node) -> Value | None:
    """What is summed along its last axis: by a product with ones, or by REDUCE_SUM after a RESCALE to int32."""
    x = total.inputs[0]
    if isinstance(total.op, ops.MatMul):
        ones = total.inputs[1].data
        plain = ones is not None and bool((ones == 1).all()) and ones.shape[-1] == 1
        return x if plain and (total.op.a_zp, total.op.b_zp) == (product.op.a_zp, 0) else None  # type: ignore[attr-defined]
    if total.op.axis != len(x.shape) - 1:  # type: ignore[attr-defined]
        return None
    widened = _source(makers, x, ops.Rescale)
    return widened.inputs[0] if widened is not None and widened.op == _widening(product) else x


def _widening(product: Node) -> ops.Rescale:
    """The RESCALE of the left operand of a product to int32 at its own scale."""
    return ops.Rescale(DType.INT32, (1 << 30,), (30,), input_zp=product.op.a_zp)  # type: ignore[attr-defined]


def _through(makers: dict[Value, Node], value: Value) -> Value:
    """What a value was before reshapes."""
    while (node := makers.get(value)) is not None and isinstance(node.op, ops.Reshape | ops.Identity):
        value = node.inputs[0]
    return value


def _has_ones(makers: dict[Value, Node], value: Value) -> bool:
    """Whether the largest of each row (along the last axis) is known to be 1."""
    length = value.shape[-1]
    while value.bound is None or value.bound.why != LARGEST_IS_ONE:
        node = makers.get(value)
        if node is None or not isinstance(node.op, ops.Reshape | ops.Identity):
            return False
        value = node.inputs[0]
    return value.shape[-1] == length


def _source(makers: dict[Value, Node], value: Value, *kinds: type[ops.Op]) -> Node | None:
    node = makers.get(_through(makers, value))
    return node if node is not None and isinstance(node.op, kinds) else None


def _divide_average(ctx: Context, x: _Average) -> Operand:
    """An average of v: |quotient| <= max |v| for every input, so that its scale needs no head-room, and MUL is all that is not reduced.

    n = b 2^(c - 16) in [2^15, 2^16) of the sum b in [least, most], q = numerator / n <= 2^16, and q 2^c < 2^31 for b >= 2^18. Of
    smaller sums it is q 2^(c - c0), where c0 is the count of `most`, as most / least <= 2^14. Where that is small,
    and the result is narrow, q = (2^31 - 1) / b has bits enough (`_dropped`).
    """
    top = _narrowed(ctx, x.top)
    assert top.quant is not None and x.top.quant is not None
    unit = x.unit * top.scale / x.top.scale
    a, b = ctx.logical(top), ctx.bounded(x.below, x.least, x.most, LARGEST_IS_ONE)
    drop = None if ctx.want is None else _dropped(x, ctx.want.dtype)
    if drop is not None:
        shorter = calc(ctx, ops.ArithmeticRightShift(round=True), b, drop) if drop else b
        inverse = calc(ctx, ops.IntDiv(), TOP, shorter)
        shift = max(0, 2 + drop + math.ceil(math.log2(1.001 * x.reach / unit)))
        scale, bits = unit * 2.0 ** (shift - 31 - drop), 29
    else:
        scale, bits = wide_scale(ctx, 1.001 * x.reach)
        numerator, exponent = _mantissa(unit / scale)
        # of sums that are large the quotient has room for the whole count
        found, least_count = reciprocal(ctx, b, numerator), 0 if x.least >= 2**18 else 32 - x.most.bit_length()
        count = calc(ctx, ops.Sub(), found.count, least_count) if least_count else found.count
        inverse = ctx.emit(ops.LogicalLeftShift(), found.mantissa, count)
        ctx.bounded(inverse, 1, TOP, "a sum of 2^k has a count of 31 - k")
        shift = 16 + exponent - least_count
    limit = int(1.001 * x.reach / scale) + 1
    value = ctx.bounded(ctx.emit(ops.Mul(shift), a, inverse), -limit, limit, "an average is not beyond its largest term")
    return as_wanted(ctx, value, scale, bits)
