"""Which numbers an operand holds, and how operands of different kinds meet: promotion, constants at a scale, masks.

Attention masks are numbers of no meaning but their size (-inf, the least float, -10000): calibration leaves them out of
ranges, and stored as int32 they saturate at -2^28, beyond every calibrated value by a factor of 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tosaic.lower.context import Context
from tosaic.lower.operand import Operand, Quant
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

SATURATED = 1 << 28  # what a RESCALE by up to 2 and int32 kernels take
WHOLE = Quant(1.0, 0, DType.INT32)
_STORED_BITS = 30
_INTEGERS = (DType.INT8, DType.INT16, DType.INT32)


def operand(x: Operand | float) -> Operand:
    """A Python number as a constant."""
    return x if isinstance(x, Operand) else Operand(array=np.array(x))


def is_bool(x: Operand) -> bool:
    return x.array.dtype.kind == "b" if x.array is not None else x.tensor.dtype is DType.BOOL


def is_whole(x: Operand) -> bool:
    """Integers and bools of the model: no quantization, no fractions."""
    if x.quant is not None:
        return False
    return x.array.dtype.kind in "biu" if x.array is not None else x.tensor.dtype in (DType.BOOL, *_INTEGERS)


def is_quantized(ctx: Context, *operands: Operand) -> bool:
    """Whether real operands are computed with as integers: one is quantized, and the others are, or are constants or integers."""
    if any(x.quant is None and not x.is_const and not is_whole(x) for x in operands):
        return False
    return any(x.quant is not None and not x.is_const for x in operands) or wants_integers(ctx)


def wants_integers(ctx: Context) -> bool:
    """Whether a result that no quantized operand decides about is stored quantized."""
    return ctx.want is not None or not ctx.spec.holds("FP")


def as_int(ctx: Context, x: Operand) -> Operand:
    """Integers or bools as int32 in logical layout."""
    if x.is_const:
        rounded = np.rint(x.reals())
        if not np.array_equal(rounded, x.reals()):
            raise ctx.refuse("integer tensor combined with a constant that is not an integer")
        if rounded.size and (rounded.min() < DType.INT32.min or rounded.max() > DType.INT32.max):
            raise ctx.refuse(f"integers {rounded.min():.0f}..{rounded.max():.0f} are outside int32")
        return Operand(array=rounded.astype(np.int64))
    value = ctx.logical(x)
    if value.dtype in (DType.INT8, DType.INT16):
        raise ctx.refuse(f"arithmetic of {value.dtype.value} tensors, which wrap at {value.dtype.bits} bits; cast to torch.int32 first")
    if value.dtype is not DType.BOOL:
        return Operand(value)
    if not ctx.spec.holds("INT"):  # where CAST has no bools, as it has none to floats
        value = ctx.emit(ops.Select(), value, *(ctx.builder.const(np.full((1,) * len(value.shape), n), DType.FP32) for n in (1.0, 0.0)))
    return Operand(ctx.emit(ops.Cast(DType.INT32), value))


def as_real(ctx: Context, x: Operand) -> Operand:
    """Integers and bools as real numbers: int32 of scale 1 where the model is quantized, else float."""
    if not is_whole(x):
        return x
    if x.is_const:
        return Operand(array=x.constant.astype(np.float64))
    if wants_integers(ctx):
        if x.value is not None and x.value.dtype in (DType.INT8, DType.INT16):
            return replace(x, quant=Quant(1.0, 0, x.value.dtype))
        number = as_int(ctx, x).value
        assert number is not None
        return Operand(number, quant=WHOLE, bits=ctx.whole_bits(number), exact=True)
    value = ctx.logical(x)
    if value.dtype is DType.BOOL:  # CAST has no bool to float
        like = ctx.builder.const(np.ones((1,) * len(value.shape)), ctx.floating)
        return Operand(ctx.emit(ops.Select(), value, like, ctx.real(0.0, like)))
    return Operand(ctx.emit(ops.Cast(ctx.floating), value))


def promoted(ctx: Context, *operands: Operand) -> list[Operand]:
    """Operands of arithmetic: all integers, or all real numbers."""
    if all(is_whole(x) for x in operands):
        return list(operands)
    return [as_real(ctx, x) for x in operands]


def stored(ctx: Context, target: Quant, x: Operand) -> Operand:
    """A constant at a quantization; int32 saturates at +-2^28."""
    reals = np.clip(x.reals(), x.low, x.high)
    if np.isnan(reals).any():
        raise ctx.refuse("a constant that holds NaN")
    array = target.store(reals)
    return Operand(array=np.clip(array, -SATURATED, SATURATED) if target.dtype is DType.INT32 else array, quant=target)


def bring(ctx: Context, x: Operand, target: Quant) -> Operand:
    """`x` at a quantization, saturated where it is beyond, for any stored value: |stored| < 2^30."""
    if x.is_const:
        return stored(ctx, target, x)
    if x.quant is not None and x.quant.dtype is DType.INT32 and x.bits is None:
        x = replace(x, bits=_STORED_BITS)
    return ctx.requantize(x, target)


def structural_bits(x: Operand) -> int:
    """b with |stored - zero_point| < 2^b for every input (`bits` of what was rounded to its scale may be a calibrated range)."""
    assert x.quant is not None
    if x.bits is not None and x.exact:
        return x.bits
    return {DType.INT8: 8, DType.INT16: 16}.get(x.quant.dtype, _STORED_BITS)


def common_scale(operands: Sequence[Operand], bits: int = 29) -> float:
    """A scale at which none of the quantized operands reaches 2^bits: a power of two times the scale of the largest."""
    reach = [(float(x.quant.scales.max()) * 2.0 ** structural_bits(x), float(x.quant.scales.max())) for x in operands if x.quant]
    top, scale = max(reach)
    return scale * 2.0 ** min(0, structural_exponent(top, scale, bits))


def structural_exponent(top: float, scale: float, bits: int) -> int:
    """e with top / (scale 2^e) <= 2^bits."""
    return math.ceil(math.log2(top / scale)) - bits


def broadcast(ctx: Context, *operands: Operand) -> tuple[list[Operand], tuple[int, ...] | None]:
    """Operands of one rank and one pending permutation, stored, and that permutation."""
    rank = max(len(x.shape) for x in operands)
    same, perm = ctx.same_layout(*(ctx.with_rank(x, rank) for x in operands))
    return [ctx.store(x) for x in same], perm


def values(operands: Sequence[Operand]) -> list[Value]:
    return [x.tensor for x in operands]
