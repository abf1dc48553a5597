"""Intervals through TABLE, RESCALE and the multiply-accumulates (see `ranges`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.interval import Analysis, Interval, corners, of, of_type, transfer
from tosaic.tosa.types import DType

_I32 = DType.INT32
_MOST_PAIRS = 1 << 20  # of output and input channels, for which products are bounded one by one


# Lookups


@transfer(ops.Table)
def _table(a: Analysis, node: Node, x: Interval, entries: Interval) -> Interval:
    table, (low, high) = node.inputs[1].data, x.ends
    narrow = node.output.dtype is DType.INT8
    if table is None:
        return of_type(DType.INT8) if narrow else of(*(v << 7 for v in entries.ends))
    if narrow:
        used = table[low + 128 : high + 129].astype(np.int64)
        return of(used.min(), used.max())
    used = table[(low + 32768) >> 7 : ((high + 32768) >> 7) + 2].astype(np.int64)
    steepest = int(np.abs(np.diff(used)).max())
    if (slopes := np.diff(used)).min() < DType.INT16.min or slopes.max() > DType.INT16.max:
        a.problem(node, f"neighbouring entries differ by {steepest}, beyond i16")
    return of(used.min() << 7, used.max() << 7)


# RESCALE


@transfer(ops.Rescale)
def _rescale(a: Analysis, node: Node, x: Interval) -> Interval:
    op = node.op
    assert isinstance(op, ops.Rescale)
    dtype = node.inputs[0].dtype
    if op.input_unsigned:
        x = x if x.ends[0] >= 0 else of(0, (1 << dtype.bits) - 1)
    multiplier, shift = (np.array(v, dtype=np.int64) if len(v) > 1 else np.array(v[0], dtype=np.int64) for v in (op.multiplier, op.shift))
    value = Interval(x.low - op.input_zp, x.high - op.input_zp)
    if op.scale32:
        limit = np.int64(1) << (shift - 1)
        wrong = np.flatnonzero(np.atleast_1d((value.low < -limit) | (value.high >= limit)))
        if wrong.size:
            first = int(np.broadcast_to(shift, np.broadcast(value.low, shift).shape).ravel()[wrong[0]])
            channel = f" in channel {wrong[0]}" if value.low.ndim or shift.ndim else ""
            a.problem(node, f"{value} less its zero point enters{channel}, shift {first} takes -2^{first - 1}..2^{first - 1}-1")
        value = Interval(np.clip(value.low, -limit, limit - 1), np.clip(value.high, -limit, limit - 1))
    low, high = (_scaled(end, multiplier, shift, op.rounding) for end in (value.low, value.high))
    if op.rounding is ops.Rounding.INEXACT:
        low, high = low - 1, high + 1
    result = Interval(low, high)
    if not op.scale32 and (result.ends[0] < _I32.min or result.ends[1] > _I32.max):
        a.problem(node, f"the scaled value is {result}, beyond i32")
    result = Interval(result.low + op.output_zp, result.high + op.output_zp)
    if not op.output_unsigned:
        return result.within(op.dtype.min, op.dtype.max)
    result = result.within(0, (1 << op.dtype.bits) - 1)
    return result if result.ends[1] <= op.dtype.max else of_type(op.dtype)


def _scaled(value: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, rounding: ops.Rounding) -> np.ndarray:
    """Specification section 1.10.2, apply_scale_32 and apply_scale_16."""
    constant = np.int64(1) << (shift - 1)
    if rounding is ops.Rounding.DOUBLE:
        constant = constant + np.where(shift > 31, np.where(value >= 0, 1 << 30, -(1 << 30)), 0)
    return (value * multiplier + constant) >> shift


# Multiply-accumulates: of any part of the terms, since an overflow on the way counts, and a window may lie in the padding


@transfer(ops.Conv2d, ops.Conv3d, ops.TransposeConv2d)
def _conv(a: Analysis, node: Node, x: Interval, weight: Interval, bias: Interval) -> Interval:
    op: Any = node.op
    value, shape = _from_zero(x, op.input_zp), node.inputs[1].shape
    data = node.inputs[1].data
    if data is None:
        return _with_bias(a, node, _terms(value.whole(), _from_zero(weight, op.weight_zp).whole(), math.prod(shape[1:])), bias)
    if shape[0] * shape[-1] > _MOST_PAIRS:
        value = value.whole()
    up, down = _signed_sums(data, op.weight_zp, tuple(range(1, data.ndim - value.low.ndim)))
    times = np.matmul if value.low.ndim else np.multiply  # [OC, IC] by [IC], or [OC] by a number
    total = Interval(times(up, value.low) + times(down, value.high), times(up, value.high) + times(down, value.low))
    return _with_bias(a, node, total, bias)


@transfer(ops.DepthwiseConv2d)
def _depthwise(a: Analysis, node: Node, x: Interval, weight: Interval, bias: Interval) -> Interval:
    op: Any = node.op
    value, shape = _from_zero(x, op.input_zp), node.inputs[1].shape
    data = node.inputs[1].data
    if data is None:
        return _with_bias(a, node, _terms(value.whole(), _from_zero(weight, op.weight_zp).whole(), math.prod(shape[:2])), bias)
    up, down = _signed_sums(data, op.weight_zp, (0, 1))  # [C, M]
    low, high = (end[:, None] if end.ndim else end for end in (value.low, value.high))
    return _with_bias(a, node, Interval((up * low + down * high).ravel(), (up * high + down * low).ravel()), bias)


@transfer(ops.MatMul)
def _matmul(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    op: Any = node.op
    return _terms(_from_zero(x, op.a_zp).whole(), _from_zero(y, op.b_zp).whole(), node.inputs[0].shape[2])


def _signed_sums(weight: np.ndarray, zero_point: int, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the positive and of the negative weights."""
    weight = weight.astype(np.int64) - zero_point if zero_point else weight
    return np.maximum(weight, 0).sum(axes, dtype=np.int64), np.minimum(weight, 0).sum(axes, dtype=np.int64)


def _from_zero(x: Interval, zero_point: int) -> Interval:
    """x - zero_point, or a zero instead of it."""
    return Interval(np.minimum(x.low - zero_point, 0), np.maximum(x.high - zero_point, 0))


def _terms(x: Interval, y: Interval, count: int) -> Interval:
    product = corners(np.multiply, x, y)
    return Interval(product.low * count, product.high * count)


def _with_bias(a: Analysis, node: Node, total: Interval, bias: Interval) -> Interval:
    dtype = node.output.dtype
    if total.ends[0] < dtype.min or total.ends[1] > dtype.max:
        a.problem(node, f"the sum of products can be {total}, beyond {dtype.value}")
        total = total.within(dtype.min, dtype.max)
    return Interval(total.low + bias.low, total.high + bias.high)


@transfer(ops.AvgPool2d)
def _average(a: Analysis, node: Node, x: Interval) -> Interval:
    op: Any = node.op
    part, count = _from_zero(x, op.input_zp), math.prod(op.kernel)
    total = Interval(part.low * count, part.high * count)
    if total.ends[0] < _I32.min or total.ends[1] > _I32.max:
        a.problem(node, f"a window of {count} elements sums to {total}, beyond i32")
    offset, dtype = op.output_zp - op.input_zp, node.output.dtype
    return Interval(x.low + offset, x.high + offset).within(dtype.min, dtype.max)


@transfer(ops.Resize)
def _resize(a: Analysis, node: Node, x: Interval) -> Interval:
    op: Any = node.op
    factor = 1 if op.mode is ops.ResizeMode.NEAREST else op.scale[0] * op.scale[2]
    return Interval(x.low * factor, x.high * factor)
