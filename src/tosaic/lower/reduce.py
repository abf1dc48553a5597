"""Means, pools, softmax and argmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.conv import fit_window, reshapable
from tosaic.lower.elementwise import multiply
from tosaic.lower.layout import axis_of, sliced, squeeze, unsqueeze
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
    return _total(ctx, x, dims, keepdim, average=True)


@lower(aten.mean.default)
def mean_of_all(ctx: Context, x: Operand, dtype: object = None) -> Operand:
    """mean(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return _total(ctx, x, None, False, average=True)


@lower(aten.sum.dim_IntList)
def sum_(ctx: Context, x: Operand, dims: list[int] | None = None, keepdim: bool = False, dtype: object = None) -> Operand:
    """sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return _total(ctx, x, dims, keepdim, average=False)


def _total(ctx: Context, x: Operand, dims: Sequence[int] | None, keepdim: bool, *, average: bool) -> Operand:
    """Sum, or mean, over `dims` (all, if empty)."""
    axes = sorted(axis_of(d, len(x.shape)) for d in (dims or range(len(x.shape))))
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    final = shape if keepdim else tuple(d for i, d in enumerate(x.shape) if i not in axes)
    count = math.prod(x.shape[a] for a in axes)
    divisor = count if average else 1
    if x.quant is None:
        value = ctx.floats(x)[0].value
        assert value is not None
        for axis in axes:
            value = ctx.emit(ops.ReduceSum(axis), value)
        if divisor > 1:
            value = ctx.emit(ops.Mul(), value, ctx.f32(1.0 / divisor, len(value.shape)))
        return Operand(ctx.reshape(value, final))
    x = ctx.uniform(x)
    total, scale = _sum(ctx, x, axes, count)
    out = replace(total, quant=Quant(scale / divisor, 0, DType.INT32))
    return out if keepdim else Operand(ctx.reshape(ctx.logical(out), final), quant=out.quant, bits=out.bits)


def _sum(ctx: Context, x: Operand, axes: Sequence[int], count: int) -> tuple[Operand, float]:
    """Sum over logical axes in int32, and its scale; inputs whose sum could pass 2^30 are shifted down first."""
    if x.view is not None:
        x = ctx.plain(x)
    bits = ctx.magnitude_bits(x) + math.ceil(math.log2(count))
    over = max(0, bits - 29)
    assert x.quant is not None
    scale = float(x.quant.scale) * 2.0**over  # type: ignore[arg-type]
    x = ctx.to_i32(x, scale)
    value = x.value
    assert value is not None
    for axis in axes:
        value = ctx.emit(ops.ReduceSum(axis if x.perm is None else x.perm[axis]), value)
    return replace(x, value=value, bits=bits - over), scale


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


def through_images(ctx: Context, function: Callable[..., Operand], x: Operand, dim: int, *arguments: object) -> Operand:
    """A function of [N, C, H, W], of `x` with a dimension of 1 inserted at `dim`, which is removed from the result."""
    return squeeze(ctx, reshapable(ctx, function(ctx, unsqueeze(ctx, x, dim), *arguments)), dim)


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


def _windowed(
    ctx: Context, x: Operand, kernel: list[int], stride: list[int] | None, padding: list[int] | int, ceil_mode: bool
) -> tuple[Operand, Value, tuple[int, int], tuple[int, int], list[tuple[int, int]]]:
    """What a pool works on: the operand at a type that pools take, its value [N, H, W, C], kernel, stride, and pads of H and W."""
    k = _two(kernel, ())
    s, p = _two(stride, k), _two(padding, (0, 0))
    x = _poolable(ctx, x)
    value = _channels_last(ctx, x)
    return x, value, k, s, [(p[i], p[i] + _ceil_extra(value.shape[1 + i], k[i], s[i], p[i], ceil_mode)) for i in range(2)]


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
    if len(x.shape) == 3:
        return through_images(ctx, max_pool2d, x, 0, kernel, stride, padding, dilation, ceil_mode)
    x, value, k, s, pads = _windowed(ctx, x, kernel, stride, padding, ceil_mode)
    value, pad = fit_window(ctx, value, k, s, pads, (1, 1))
    return Operand(ctx.emit(ops.MaxPool2d(k, s, pad), value), quant=x.quant, perm=NCHW)  # type: ignore[arg-type]


@lower(aten.max_pool1d.default)
def max_pool1d(
    ctx: Context,
    x: Operand,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    dilation: list[int] | int = 1,
    ceil_mode: bool = False,
) -> Operand:
    """max_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=0, int[1] dilation=1,
    bool ceil_mode=False) -> Tensor
    """
    (k, _), (p, _), (d, _) = _two(kernel, ()), _two(padding, (0, 0)), _two(dilation, (1, 1))
    s, _ = _two(stride, (k, k))
    return through_images(ctx, max_pool2d, x, -2, [1, k], [1, s], [0, p], [1, d], ceil_mode)


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

    AVG_POOL2D in float: it counts elements of the input only; padding that counts is written out first. Integers are summed
    by a depthwise convolution instead: AVG_POOL2D rounds at the scale of its input, every tie upwards.
    """
    if len(x.shape) == 3:
        return through_images(ctx, avg_pool2d, x, 0, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    x, value, k, s, pads = _windowed(ctx, x, kernel, stride, padding, ceil_mode)
    p = [before for before, _ in pads]
    if divisor is not None:
        return _window_sums(ctx, x, value, k, s, pads, divisor)
    if x.quant is not None:
        rows, columns = (_counted(value.shape[1 + i], k[i], s[i], pads[i], p[i] if count_include_pad else 0) for i in range(2))
        counts = np.outer(rows, columns)
        if (counts == counts[0, 0]).all():
            return _window_sums(ctx, x, value, k, s, pads, float(counts[0, 0]))
        return multiply(ctx, _window_sums(ctx, x, value, k, s, pads, 1.0), Operand(array=1.0 / counts[None, None]))
    if any(p) and count_include_pad:
        value = ctx.emit(ops.Pad((0, 0, p[0], p[0], p[1], p[1], 0, 0), 0.0), value)
        pads = [(0, after - before) for before, after in pads]
    value, pad = fit_window(ctx, value, k, s, pads, (1, 1))
    return Operand(ctx.emit(ops.AvgPool2d(k, s, pad), value), perm=NCHW)  # type: ignore[arg-type]


def _counted(size: int, kernel: int, stride: int, pads: tuple[int, int], counts: int) -> list[int]:
    """Of each window along one axis, how many elements an average counts: the input's, and of the padding `counts` beside it."""
    starts = range(-pads[0], size + pads[1] - kernel + 1, stride)
    return [min(start + kernel, size + counts) - max(start, -counts) for start in starts]


def _window_sums(
    ctx: Context, x: Operand, value: Value, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[Sequence[int]], divisor: float
) -> Operand:
    """Sums over windows of [N, H, W, C], divided: a depthwise convolution by ones, which keeps every bit of the sum."""
    value, pad = fit_window(ctx, value, kernel, stride, pads, (1, 1))
    channels, integer = value.shape[3], x.quant is not None
    dtype = ops.ACCUMULATOR[x.quant.dtype if x.quant else DType.FP32]
    ones = np.full((*kernel, channels, 1), 1.0 if integer else 1.0 / divisor)
    weight = ctx.builder.const(ones, DType.INT8 if integer else DType.FP32)
    bias = ctx.builder.const(np.zeros(channels), dtype)
    op = ops.DepthwiseConv2d(tuple(stride), pad, (1, 1), x.quant.zero_point if x.quant else 0)
    quant = Quant(float(x.quant.scale) / divisor, 0, dtype) if x.quant else None  # type: ignore[arg-type]
    bits = math.ceil(math.log2(kernel[0] * kernel[1])) + ctx.magnitude_bits(x) if integer else None
    return Operand(ctx.emit(op, value, weight, bias), quant=quant, perm=NCHW, bits=bits)


@lower(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(ctx: Context, x: Operand, size: list[int]) -> Operand:
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    if len(x.shape) == 3:
        return through_images(ctx, adaptive_avg_pool2d, x, 0, size)
    h, w = x.shape[-2:]
    oh, ow = size
    if (oh, ow) == (1, 1):
        return mean(ctx, x, [-2, -1], True)
    if h % oh == 0 and w % ow == 0:
        # not AVG_POOL2D where integers are meant: it rounds at the scale of its input, the result may have a finer one
        kernel = (h // oh, w // ow)
        x = _poolable(ctx, x)
        return _window_sums(ctx, x, _channels_last(ctx, x), kernel, kernel, ((0, 0), (0, 0)), kernel[0] * kernel[1])
    return _uneven_means(ctx, x, [(2, oh), (3, ow)])


def _windows(n: int, count: int) -> list[tuple[int, int]]:
    """Start and end of PyTorch's adaptive windows: floor(i n / count), ceil((i + 1) n / count)."""
    return [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]


@lower(aten.adaptive_max_pool2d.default)
def adaptive_max_pool2d(ctx: Context, x: Operand, size: list[int]) -> tuple[Operand]:
    """adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor); the indices are not computed"""
    x = ctx.plain(x) if x.quant is not None else ctx.floats(x)[0]
    value = x.value
    assert value is not None
    for axis, count in zip((len(x.shape) - 2, len(x.shape) - 1), size, strict=True):
        parts = [ctx.emit(ops.ReduceMax(axis), sliced(ctx, value, axis, a, b)) for a, b in _windows(value.shape[axis], count)]
        value = ctx.emit(ops.Concat(axis), *parts) if count > 1 else parts[0]
    return (replace(x, value=value),)


def _uneven_means(ctx: Context, x: Operand, sizes: Sequence[tuple[int, int]]) -> Operand:
    """Means over windows [floor(i n / m), ceil((i + 1) n / m)), one axis after the other."""
    integer = x.quant is not None
    x = ctx.plain(x) if integer else ctx.floats(x)[0]
    value, scale, bits = x.value, 1.0, None
    if integer:
        # up to 12 more bits than the input has, so that the two roundings are far below its own; sums stay below 2^30
        longest = max(-(-x.shape[axis] // count) + 1 for axis, count in sizes)
        extra = min(12 if ctx.magnitude_bits(x) <= 15 else 0, 30 - ctx.magnitude_bits(x) - math.ceil(math.log2(longest)))
        scale, bits = float(x.quant.scale) / 2.0**extra, ctx.magnitude_bits(x) + extra  # type: ignore[union-attr, arg-type]
        value = ctx.to_i32(x, scale).value
    for axis, count in sizes:
        assert value is not None
        parts = [_window_mean(ctx, sliced(ctx, value, axis, a, b), axis, integer) for a, b in _windows(value.shape[axis], count)]
        value = ctx.emit(ops.Concat(axis), *parts) if count > 1 else parts[0]
    return Operand(value, quant=Quant(scale, 0, DType.INT32), bits=bits) if integer else Operand(value)


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
    # ARGMAX drops its axis; a dimension that stays is added before, as the FP profile does not reshape int32
    shape = (math.prod(x.shape),) if dim is None else x.shape
    axis = 0 if dim is None else axis_of(dim, len(shape))
    kept = () if not keepdim else (1,) * len(x.shape) if dim is None else (1,)
    value = ctx.reshape(ctx.logical(x), (*shape[: axis + 1], *kept, *shape[axis + 1 :]))
    return Operand(ctx.emit(ops.ArgMax(axis), value))


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
    steps = {DType.INT8: 256, DType.INT16: 65536}.get(x.quant.dtype)
    if steps is not None and (steps == 256 or steps * scale <= 18):
        index, entries = below, np.arange(steps) * scale
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
