"""Local rules for RESCALE and CLAMP. Each is exact for every input of the type.

    RESCALE(x) by 1, types and zero points equal        -> x
    RESCALE(RESCALE(x) by 2^k)                          -> RESCALE(x)
    CLAMP(x), x known to lie inside                     -> x
    CLAMP(CLAMP(x))                                     -> CLAMP(x)

The second: the inner RESCALE must be exact, that is a shift to the left by k >= 0 (multiplier = 2^(shift + k)) that cannot
saturate, and both must name the same zero point in between. The outer one then sees (x - zp) * 2^k, and
(v * 2^k * m + 2^(s - 1)) >> s is (v * m + 2^(s - k - 1)) >> (s - k), the rounding being the same.
"""

from __future__ import annotations

import dataclasses

from tosaic.optimize.rewrite import Refused, Rewriter, rule
from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.types import DType

_LEAST_SHIFT, _MOST_MULTIPLIER = 2, 2**31 - 1  # RESCALE's own limits


def _left_shift(op: ops.Rescale) -> int | None:
    """k if the scale of every channel is exactly 2^k with k >= 0, the rounding therefore without effect."""
    if op.rounding is ops.Rounding.INEXACT:
        return None
    shifts = {m.bit_length() - 1 - s if m and not m & (m - 1) else -1 for m, s in zip(op.multiplier, op.shift, strict=True)}
    (k,) = shifts if len(shifts) == 1 else (-1,)
    return k if k >= 0 else None


def _unsigned(op: ops.Rescale) -> bool:
    return op.input_unsigned or op.output_unsigned


@rule(ops.Rescale)
def remove_rescale_by_one(r: Rewriter, node: Node) -> Value | Refused | None:
    """RESCALE(x) -> x: scale exactly 1, same type, same zero point"""
    (x,), op = node.inputs, node.op
    assert isinstance(op, ops.Rescale)
    if op.dtype is not x.dtype:
        return None
    if _left_shift(op) != 0:
        return Refused("the scale is not exactly 1")
    if op.input_zp != op.output_zp:
        return Refused(f"zero points differ: {op.input_zp} and {op.output_zp}")
    if _unsigned(op):
        return Refused("one side is unsigned")
    return x


@rule(ops.Rescale)
def fuse_rescales(r: Rewriter, node: Node) -> Value | Refused | None:
    """RESCALE(RESCALE(x)) -> RESCALE(x): the inner one is an exact left shift that cannot saturate"""
    inner = r.made_by(node.inputs[0], ops.Rescale)
    if inner is None:
        return None
    first, second, x = inner.op, node.op, inner.inputs[0]
    assert isinstance(first, ops.Rescale) and isinstance(second, ops.Rescale)
    if _unsigned(first) or _unsigned(second):
        return Refused("one side is unsigned")
    k = _left_shift(first)
    if k is None:
        return Refused("the inner scale is not a power of two of at least 1, so it rounds")
    if first.output_zp != second.input_zp:
        return Refused(f"the zero point in between is {first.output_zp} for one and {second.input_zp} for the other")
    low, high = ((v - first.input_zp << k) + first.output_zp for v in (x.dtype.min, x.dtype.max))
    if low < first.dtype.min or high > first.dtype.max:
        return Refused(f"the inner result {low}..{high} saturates {first.dtype.value}")
    if k and second.rounding is not ops.Rounding.SINGLE:
        return Refused(f"{second.rounding.value} rounding depends on the shift")
    scales = [_shifted(m, s, k) for m, s in zip(second.multiplier, second.shift, strict=True)]
    if any(m > _MOST_MULTIPLIER or s < _LEAST_SHIFT for m, s in scales):
        return Refused(f"no multiplier and shift hold 2^{k} more")
    multiplier, shift = zip(*scales, strict=True)
    fused = dataclasses.replace(second, multiplier=multiplier, shift=shift, input_zp=first.input_zp)
    if x.dtype is DType.INT48 and fused.scale32:
        return Refused("i48 takes 16-bit multipliers")
    return r.emit(fused, x)


def _shifted(multiplier: int, shift: int, k: int) -> tuple[int, int]:
    """Scale times 2^k: by a smaller shift, which is always exact, and the rest by the multiplier."""
    less = min(k, max(shift - _LEAST_SHIFT, 0))
    return multiplier << (k - less), shift - less


def bounds(r: Rewriter, value: Value) -> tuple[int, int]:
    """Numbers between which an integer value lies, from the operator that makes it."""
    whole = value.dtype.min, value.dtype.max
    node = r.producer(value)
    if node is None:
        return (int(value.data.min()), int(value.data.max())) if value.data is not None and value.data.size else whole
    op = node.op
    if isinstance(op, ops.Transpose | ops.Reshape | ops.Slice | ops.Tile | ops.Reverse | ops.MaxPool2d):
        return bounds(r, node.inputs[0])
    if isinstance(op, ops.Clamp):
        low, high = bounds(r, node.inputs[0])
        return min(max(low, int(op.min)), int(op.max)), max(min(high, int(op.max)), int(op.min))
    if isinstance(op, ops.Table) and value.dtype is DType.INT8:
        return bounds(r, node.inputs[1])
    if isinstance(op, ops.Rescale) and op.rounding is ops.Rounding.SINGLE and not _unsigned(op):
        x = node.inputs[0].dtype
        ends = [_scaled(v - op.input_zp, m, s) + op.output_zp for v in (x.min, x.max) for m, s in zip(op.multiplier, op.shift, strict=True)]
        return max(min(ends), whole[0]), min(max(ends), whole[1])
    return whole


def _scaled(value: int, multiplier: int, shift: int) -> int:
    """Specification section 2.13.2, SINGLE_ROUND."""
    return (value * multiplier + (1 << (shift - 1))) >> shift


@rule(ops.Clamp)
def remove_clamp(r: Rewriter, node: Node) -> Value | Refused | None:
    """CLAMP(x) -> x: the operand cannot lie outside"""
    (x,), op = node.inputs, node.op
    assert isinstance(op, ops.Clamp)
    if x.dtype.is_float:
        return Refused("a float operand has no bounds, and NaN")
    low, high = bounds(r, x)
    if low < op.min or high > op.max:
        return Refused(f"the operand lies in {low}..{high}, the clamp keeps {op.min}..{op.max}")
    return x


@rule(ops.Clamp)
def merge_clamps(r: Rewriter, node: Node) -> Value | Refused | None:
    """CLAMP(CLAMP(x, a, b), c, d) -> CLAMP(x, a clamped to c..d, b clamped to c..d)"""
    inner = r.made_by(node.inputs[0], ops.Clamp)
    if inner is None:
        return None
    assert isinstance(inner.op, ops.Clamp) and isinstance(node.op, ops.Clamp)
    if node.inputs[0].dtype.is_float:
        return Refused("which of 0.0 and -0.0 a float clamp keeps is not specified")
    low, high = (min(max(v, node.op.min), node.op.max) for v in (inner.op.min, inner.op.max))
    return r.emit(ops.Clamp(low, high), *inner.inputs)


RULES = (remove_rescale_by_one, fuse_rescales, remove_clamp, merge_clamps)
