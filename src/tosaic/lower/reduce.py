"""Means, pools, softmax and argmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.conv import fit_window
from tosaic.lower.layout import axis_of, sliced
from tosaic.lower.operand import Operand, Quant, inverse
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


@lower(aten.mean.dim)
def mean(ctx: Context, x: Operand, dims: list[int] | None = None, keepdim: bool = False, dtype: object = None) -> Operand:
    """mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor

    An exact int32 sum whose scale is divided by the count.
    """
    axes = sorted(axis_of(d, len(x.shape)) for d in (dims or range(len(x.shape))))
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    final = shape if keepdim else tuple(d for i, d in enumerate(x.shape) if i not in axes)
    count = math.prod(x.shape[a] for a in axes)
    if x.quant is None:
        value = ctx.floats(x)[0].value
        assert value is not None
        for axis in axes:
            value = ctx.emit(ops.ReduceSum(axis), value)
        value = ctx.emit(ops.Mul(), value, ctx.f32(1.0 / count, len(value.shape)))
        return Operand(ctx.reshape(value, final))
    x = ctx.uniform(x)
    total, scale = _sum(ctx, x, axes, count)
    out = replace(total, quant=Quant(scale / count, 0, DType.INT32))
    return out if keepdim else Operand(ctx.reshape(ctx.logical(out), final), quant=out.quant)


def _sum(ctx: Context, x: Operand, axes: Sequence[int], count: int) -> tuple[Operand, float]:
    """Sum over logical axes in int32, and its scale; inputs whose sum could pass 2^30 are shifted down first."""
    if x.view is not None:
        x = ctx.plain(x)
    over = max(0, ctx.magnitude_bits(x) + math.ceil(math.log2(count)) - 29)
    assert x.quant is not None
    scale = float(x.quant.scale) * 2.0**over  # type: ignore[arg-type]
    x = ctx.to_i32(x, scale)
    value = x.value
    assert value is not None
    for axis in axes:
        value = ctx.emit(ops.ReduceSum(axis if x.perm is None else x.perm[axis]), value)
    return replace(x, value=value), scale


def _two(numbers: Sequence[int] | int | None, default: Sequence[int]) -> tuple[int, int]:
    if not numbers and numbers != 0:
        return tuple(default)  # type: ignore[return-value]
    if isinstance(numbers, int):
        return (numbers, numbers)
    return (numbers[0], numbers[-1])


def _ceil_extra(size: int, kernel: int, stride: int, pad: int, ceil_mode: bool) -> int:
    """Padding beyond `pad` that PyTorch's ceil_mode adds at the far border."""
    if not ceil_mode:
        return 0
    out = -(-(size + 2 * pad - kernel) // stride) + 1
    if (out - 1) * stride >= size + pad:  # the last window must start inside the input or its left padding
        out -= 1
    return max(0, (out - 1) * stride + kernel - size - 2 * pad)


def _channels_last(ctx: Context, x: Operand) -> Value:
    if len(x.shape) != 4:
        raise ctx.refuse(f"takes [N, C, H, W], found {list(x.shape)}")
    return ctx.permuted(x, NHWC)


def _poolable(ctx: Context, x: Operand) -> Operand:
    """An operand at the type that pools take: int8 or int16, or float."""
    if ctx.is_narrow(x):
        return ctx.resolve_clamp(x)
    if x.quant is not None and ctx.want is not None and ctx.want.dtype is not DType.INT32:
        return ctx.requantize(x, ctx.want)
    return ctx.floats(x)[0]


@lower(aten.max_pool2d.default)
def max_pool2d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    dilation: list[int] | int = 1,
    ceil_mode: bool = False,
) -> Operand:
    """max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1,
    bool ceil_mode=False) -> Tensor
    """
    if _two(dilation, (1, 1)) != (1, 1):
        raise ctx.refuse("max_pool2d with dilation")
    k = _two(kernel, ())
    s, p = _two(stride, k), _two(padding, (0, 0))
    x = _poolable(ctx, x)
    value = _channels_last(ctx, x)
    extra = [_ceil_extra(value.shape[1 + i], k[i], s[i], p[i], ceil_mode) for i in range(2)]
    value, pad = fit_window(ctx, value, k, s, [(p[i], p[i] + extra[i]) for i in range(2)], (1, 1))
    return Operand(ctx.emit(ops.MaxPool2d(k, s, pad), value), quant=x.quant, perm=NCHW)  # type: ignore[arg-type]


@lower(aten.avg_pool2d.default)
def avg_pool2d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Operand:
    """avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False,
    bool count_include_pad=True, int? divisor_override=None) -> Tensor

    AVG_POOL2D counts elements of the input only; padding that counts is written out first.
    """
    k = _two(kernel, ())
    s, p = _two(stride, k), _two(padding, (0, 0))
    x = _poolable(ctx, x)
    value = _channels_last(ctx, x)
    extra = [_ceil_extra(value.shape[1 + i], k[i], s[i], p[i], ceil_mode) for i in range(2)]
    zp = x.quant.zero_point if x.quant else 0
    if divisor is not None and (any(extra) or (any(p) and not count_include_pad)):
        raise ctx.refuse("avg_pool2d with divisor_override over windows that padding cuts")
    if any(p) and count_include_pad:
        value = ctx.emit(ops.Pad((0, 0, p[0], p[0], p[1], p[1], 0, 0), zp), value)
        p = (0, 0)
    value, pad = fit_window(ctx, value, k, s, [(p[i], p[i] + extra[i]) for i in range(2)], (1, 1))
    out = Operand(ctx.emit(ops.AvgPool2d(k, s, pad, zp, zp), value), quant=x.quant, perm=NCHW)  # type: ignore[arg-type]
    if divisor is None:
        return out
    factor = k[0] * k[1] / divisor
    if out.quant is None:
        return replace(out, value=ctx.emit(ops.Mul(), out.value, ctx.f32(factor, 4)))  # type: ignore[arg-type]
    return replace(out, quant=replace(out.quant, scale=float(out.quant.scale) * factor))  # type: ignore[arg-type]


@lower(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(ctx: Context, x: Operand, size: list[int]) -> Operand:
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    h, w = x.shape[-2:]
    oh, ow = size
    if (oh, ow) == (1, 1):
        return mean(ctx, x, [-2, -1], True)
    if h % oh == 0 and w % ow == 0:
        return avg_pool2d(ctx, x, [h // oh, w // ow])
    return _uneven_means(ctx, x, [(2, oh), (3, ow)])


def _uneven_means(ctx: Context, x: Operand, sizes: Sequence[tuple[int, int]]) -> Operand:
    """Means over windows [floor(i n / m), ceil((i + 1) n / m)), one axis after the other."""
    integer = x.quant is not None
    x = ctx.plain(x) if integer else ctx.floats(x)[0]
    value, scale = x.value, 1.0
    if integer:
        # 12 more bits than the input has, so that the two roundings are far below its own
        scale = float(x.quant.scale) / (2.0**12 if ctx.magnitude_bits(x) <= 15 else 1.0)  # type: ignore[union-attr, arg-type]
        value = ctx.to_i32(x, scale).value
    for axis, count in sizes:
        n = value.shape[axis]  # type: ignore[union-attr]
        windows = [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
        parts = [_window_mean(ctx, sliced(ctx, value, axis, a, b), axis, integer) for a, b in windows]  # type: ignore[arg-type]
        value = ctx.emit(ops.Concat(axis), *parts) if count > 1 else parts[0]
    return Operand(value, quant=Quant(scale, 0, DType.INT32) if integer else None)


def _window_mean(ctx: Context, window: Value, axis: int, integer: bool) -> Value:
    length = window.shape[axis]
    total = ctx.emit(ops.ReduceSum(axis), window)
    if not integer:
        return ctx.emit(ops.Mul(), total, ctx.f32(1.0 / length, len(window.shape)))
    return ctx.rescale(total, Quant(1.0 / length, 0, DType.INT32), Quant(1.0, 0, DType.INT32))


@lower(aten.argmax.default)
def argmax(ctx: Context, x: Operand, dim: int | None = None, keepdim: bool = False) -> Operand:
    """argmax(Tensor self, int? dim=None, bool keepdim=False) -> Tensor (int32 here)"""
    x = _poolable(ctx, x)
    if dim is None:
        value, axis, final = ctx.reshape(ctx.logical(x), (int(np.prod(x.shape)),)), 0, (1,) * len(x.shape) if keepdim else ()
    else:
        axis = axis_of(dim, len(x.shape))
        value = ctx.logical(x)
        final = tuple(1 if i == axis else d for i, d in enumerate(x.shape) if keepdim or i != axis)
    return Operand(ctx.reshape(ctx.emit(ops.ArgMax(axis), value), final))


@lower(aten._softmax.default)
def softmax(ctx: Context, x: Operand, dim: int, half_to_float: bool = False) -> Operand:
    """_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    axis = axis_of(dim, len(x.shape))
    last = [i for i in range(len(x.shape)) if i != axis] + [axis]
    if x.quant is None or ctx.want is None:
        value = ctx.floats(x)[0].value
        assert value is not None
        shifted = ctx.emit(ops.Sub(), value, ctx.emit(ops.ReduceMax(axis), value))
        exponent = ctx.emit(ops.Exp(), shifted)
        return Operand(ctx.emit(ops.Mul(), exponent, ctx.emit(ops.Reciprocal(), ctx.emit(ops.ReduceSum(axis), exponent))))
    x = ctx.resolve_clamp(ctx.uniform(x))
    rows = Operand(ctx.permuted(x, last), quant=x.quant)
    return Operand(_integer_softmax(ctx, rows), quant=Quant(2.0**-23, 0, DType.INT32), perm=inverse(tuple(last)))


def _integer_softmax(ctx: Context, x: Operand) -> Value:
    """Softmax over the last axis, int32 at scale 2^-23.

    e = exp(x - max) from a table in Q bits, S = sum e < 2^31 as Q <= 31 - ceil log2 N, and r = 2^47 / S from the
    16 leading bits of S: n = S 2^c 2^-16 in [2^15, 2^16), r = ((2^31 - 1) / n) 2^c <= 2^(47 - Q) < 2^31 as Q >= 17.
    Probabilities e r 2^-24 are at most 2^23 (1 + 2^-15).
    """
    assert x.quant is not None and x.value is not None
    rank, n = len(x.shape), x.shape[-1]
    bits = min(30, 31 - math.ceil(math.log2(n))) if n > 1 else 30
    if bits < 17:
        raise ctx.refuse(f"softmax over {n} elements; integer arithmetic holds 16384")
    top = Operand(ctx.emit(ops.ReduceMax(rank - 1), x.value), quant=x.quant)
    below = ctx.emit(ops.Sub(), ctx.to_i32(top).value, ctx.to_i32(x).value)  # type: ignore[arg-type]
    scale = float(x.quant.scale)  # type: ignore[arg-type]
    if x.quant.dtype is DType.INT8:
        index, entries = below, np.arange(256) * scale
    else:
        # 2^16 steps over 18 nats, beyond which a probability is below 2^-26
        factor = scale * 65536 / 18
        below = ctx.emit(ops.Minimum(), below, ctx.i32(int(min(65535.4 / factor, 2.0**30)), rank))
        index = ctx.rescale(below, Quant(factor, 0, DType.INT32), Quant(1.0, 0, DType.INT32))
        entries = np.arange(65536) * 18 / 65536
    e = lookup(ctx, np.minimum(np.rint(np.exp(-entries) * 2.0**bits), 2.0**bits - 1), index)
    total = ctx.emit(ops.ReduceSum(rank - 1), e)
    lead = ctx.emit(ops.Clz(), total)
    mantissa = ctx.emit(ops.LogicalRightShift(), ctx.emit(ops.LogicalLeftShift(), total, lead), ctx.i32(16, rank))
    quotient = ctx.emit(ops.IntDiv(), ctx.i32(2**31 - 1, rank), mantissa)
    reciprocal = ctx.emit(ops.LogicalLeftShift(), quotient, lead)
    return ctx.emit(ops.Mul(24), e, reciprocal)


def lookup(ctx: Context, entries: np.ndarray, index: Value) -> Value:
    """entries[index], int32, by GATHER; index is int32 in range."""
    count = math.prod(index.shape)
    values = ctx.i32(entries.reshape(1, -1, 1))
    found = ctx.emit(ops.Gather(), values, ctx.reshape(index, (1, count)))
    return ctx.reshape(found, index.shape)
