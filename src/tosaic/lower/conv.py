"""Convolutions, linear and matrix products: the multiply-accumulates.

Integer results are accumulators: int32 (int48 for int16 inputs) with one scale for each output channel, which the
requantization that follows brings to its own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten


def _is_integer_mac(ctx: Context, x: Operand, weight: Operand) -> bool:
    return ctx.is_narrow(x) and weight.quant is not None and weight.quant.dtype is DType.INT8


def _accumulator(x: Operand, weight: Operand, channels: int) -> Quant:
    """Quantization of the accumulator: scale_x * scale_w for each output channel.

    A transposed convolution's weight scales are those of one group; the groups share them.
    """
    assert x.quant is not None and weight.quant is not None
    scales = np.atleast_1d(weight.quant.scales)
    scales = np.tile(scales, channels // scales.size)
    dtype = ops.ACCUMULATOR[x.quant.dtype]
    return Quant(tuple(float(s) for s in scales * float(x.quant.scale)), 0, dtype)  # type: ignore[arg-type]


def _with_room_for_bias(x: Operand, weight: Operand, bias: Operand | None, axis: int, groups: int = 1) -> Operand:
    """`weight` at coarser scales in channels whose bias would not fit the accumulator.

    Where a folded batch norm has a gamma near zero, weights and with them the accumulator's scale are tiny, the bias is not.
    What the weights lose is below 2^-15 of that bias.
    """
    if bias is None or x.quant is None or weight.quant is None:
        return weight
    largest = np.abs(bias.reals()).reshape(groups, -1).max(0)  # the groups of a transposed convolution share their scales
    scales = np.broadcast_to(weight.quant.scales, largest.shape)
    over = largest / (scales * float(x.quant.scale) * 2.0 ** (29 if x.quant.dtype is DType.INT8 else 45))  # type: ignore[arg-type]
    if (over <= 1).all():
        return weight
    factors = 2.0 ** np.ceil(np.log2(np.maximum(over, 1.0)))
    stored = np.moveaxis(np.rint(np.moveaxis(np.asarray(weight.array), axis, -1) / factors), -1, axis)
    quant = replace(weight.quant, scale=tuple((scales * factors).tolist()))
    return replace(weight, array=stored.astype(np.int64), quant=quant, axis=axis)


def _bits(x: Operand, weight: np.ndarray, terms_axis: tuple[int, ...], bias: Value) -> int | None:
    """Magnitude bits of an accumulator: of the largest sum that these weights can make."""
    if x.quant is None:
        return None
    assert bias.data is not None
    largest = 255 if x.quant.dtype is DType.INT8 else 32768
    sums = np.abs(weight.astype(np.int64)).sum(terms_axis) * largest + int(np.abs(bias.data).max(initial=0))
    return int(sums.max()).bit_length()


def _bias(ctx: Context, bias: Operand | None, acc: Quant | None, channels: int) -> Value:
    """Bias [channels] in the accumulator's own quantization, or float."""
    numbers = np.zeros(channels) if bias is None else bias.reals()
    if acc is None:
        return ctx.builder.const(numbers, DType.FP32)
    return ctx.builder.const(acc.store(numbers), acc.dtype)


def _const(ctx: Context, weight: np.ndarray, integer: bool) -> Value:
    return ctx.builder.const(weight, DType.INT8 if integer else DType.FP32)


def fit_window(
    ctx: Context, x: Value, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[Sequence[int]], dilation: Sequence[int]
) -> tuple[Value, tuple[int, ...]]:
    """Drop what a stride leaves over at the far border, from the padding first, then from the input [N, H, W, C].

    TOSA demands that windows end exactly at the border; PyTorch ignores the rest.
    """
    size, after = list(x.shape), [list(p) for p in pads]
    for i in range(2):
        span = x.shape[1 + i] - 1 + sum(after[i]) - (kernel[i] - 1) * dilation[i]
        if span < 0:
            raise ctx.refuse(f"kernel {tuple(kernel)} is larger than the padded input {x.shape[1:3]}")
        over = span % stride[i]
        from_pad = min(over, after[i][1])
        after[i][1] -= from_pad
        size[1 + i] -= over - from_pad
    if tuple(size) != x.shape:
        x = ctx.emit(ops.Slice((0,) * 4, tuple(size)), x)
    return x, (*after[0], *after[1])


@lower(aten.convolution.default)
def convolution(
    ctx: Context,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Operand:
    """convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation,
    bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor
    """
    spatial = len(x.shape) - 2
    if spatial not in (1, 2):
        raise ctx.refuse(f"convolution over {spatial} spatial dimensions")
    if not weight.is_const:
        raise ctx.refuse("convolution whose weight is not a constant")
    if not _is_integer_mac(ctx, x, weight):
        x, weight = ctx.floats(x)[0], Operand(array=weight.reals())
    weight = _with_room_for_bias(x, weight, bias, 1, groups) if transposed else _with_room_for_bias(x, weight, bias, 0)
    # a single number stands for all dimensions
    stride, padding, dilation, output_padding = (
        list(v) * spatial if len(v) == 1 else list(v) for v in (stride, padding, dilation, output_padding)
    )
    if spatial == 1:
        x = _as_2d(ctx, x)
        weight = replace(weight, array=weight.array[:, :, None, :])  # type: ignore[index]
        stride, padding, dilation, output_padding = [1, *stride], [0, *padding], [1, *dilation], [0, *output_padding]
    if transposed:
        out = _transposed(ctx, x, weight, bias, stride, padding, dilation, output_padding, groups)
    else:
        out = _forward(ctx, x, weight, bias, stride, padding, dilation, groups)
    return _as_1d(ctx, out) if spatial == 1 else out


def _as_2d(ctx: Context, x: Operand) -> Operand:
    """[N, C, L] -> [N, C, 1, L], stored channels last."""
    value = ctx.permuted(ctx.resolve_clamp(x), (0, 2, 1))
    n, l, c = value.shape
    return Operand(ctx.reshape(value, (n, 1, l, c)), quant=x.quant, perm=NCHW)


def _as_1d(ctx: Context, x: Operand) -> Operand:
    """[N, C, 1, L] -> [N, C, L]; a 48-bit accumulator is requantized first, as RESHAPE does not take it."""
    x = reshapable(ctx, x)
    value = ctx.permuted(x, NHWC)
    n, _, l, c = value.shape
    return replace(x, value=ctx.reshape(value, (n, l, c)), perm=(0, 2, 1), view=None)


def reshapable(ctx: Context, x: Operand) -> Operand:
    """`x` in a type that data movement takes: a 48-bit accumulator is requantized to what is wanted."""
    if x.quant is None or x.quant.dtype is not DType.INT48:
        return x
    return ctx.requantize(x, ctx.want) if ctx.want is not None else ctx.uniform(x)


def _split(ctx: Context, x: Value, groups: int) -> list[Value]:
    size = x.shape[3] // groups
    return [ctx.emit(ops.Slice((0, 0, 0, g * size), (*x.shape[:3], size)), x) for g in range(groups)]


def _join(ctx: Context, parts: list[Value], acc: Quant | None, bits: int | None) -> Operand:
    """Concatenate group results along channels; 48-bit parts are requantized first, as CONCAT does not take them."""
    if len(parts) == 1:
        return Operand(parts[0], quant=acc, perm=NCHW, bits=bits)
    if acc is None or acc.dtype is not DType.INT48:
        return Operand(ctx.emit(ops.Concat(3), *parts), quant=acc, perm=NCHW, bits=bits)
    size = parts[0].shape[3]
    pieces = [
        Operand(part, quant=Quant(acc.scale[g * size : (g + 1) * size], 0, DType.INT48))  # type: ignore[index]
        for g, part in enumerate(parts)
    ]
    target = ctx.want or Quant(float(acc.scales.max()) * 2.0 ** ((bits or 31) - 23), 0, DType.INT32)
    joined = ctx.emit(ops.Concat(3), *(ctx.requantize(p, target).value for p in pieces))  # type: ignore[arg-type]
    return Operand(joined, quant=target, perm=NCHW)


def _forward(
    ctx: Context, x: Operand, weight: Operand, bias: Operand | None, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Operand:
    """[N, C, H, W] by [OC, C / groups, KH, KW]."""
    integer = x.quant is not None
    w = np.asarray(weight.array)
    channels, kernel = w.shape[0], w.shape[2:]
    acc = _accumulator(x, weight, channels) if integer else None
    value = ctx.permuted(ctx.resolve_clamp(x), NHWC)
    value, pad = fit_window(ctx, value, kernel, stride, [(p, p) for p in padding], dilation)
    zp = x.quant.zero_point if x.quant else 0
    b = _bias(ctx, bias, acc, channels)
    attributes, bits = (tuple(stride), pad, tuple(dilation), zp), _bits(x, w, (1, 2, 3), b)
    if groups > 1 and groups == value.shape[3]:
        # [C * M, 1, KH, KW] -> [KH, KW, C, M]
        kernels = w.reshape(groups, channels // groups, *kernel).transpose(2, 3, 0, 1)
        out = ctx.emit(ops.DepthwiseConv2d(*attributes), value, _const(ctx, kernels, integer), b)
        return Operand(out, quant=acc, perm=NCHW, bits=bits)
    w = w.transpose(0, 2, 3, 1)
    if groups == 1:
        return Operand(ctx.emit(ops.Conv2d(*attributes), value, _const(ctx, w, integer), b), quant=acc, perm=NCHW, bits=bits)
    size = channels // groups
    parts = [
        ctx.emit(ops.Conv2d(*attributes), part, _const(ctx, w[g * size : (g + 1) * size], integer), _slice_bias(ctx, b, g, size))
        for g, part in enumerate(_split(ctx, value, groups))
    ]
    return _join(ctx, parts, acc, bits)


def _slice_bias(ctx: Context, bias: Value, group: int, size: int) -> Value:
    assert bias.data is not None
    return ctx.builder.const(bias.data[group * size : (group + 1) * size], bias.dtype)


def _transposed(
    ctx: Context,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_padding: list[int],
    groups: int,
) -> Operand:
    """[N, IC, H, W] by [IC, OC / groups, KH, KW]; a dilated kernel is written out with zeros between its elements."""
    integer = x.quant is not None
    w = np.asarray(weight.array)
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).transpose(0, 2, 3, 4, 1)  # [G, OC / G, KH, KW, IC / G]
    if max(dilation) > 1:
        spread = np.zeros((*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(w.shape[2:4], dilation, strict=True)), w.shape[4]), w.dtype)
        spread[:, :, :: dilation[0], :: dilation[1]] = w
        w = spread
    size, kernel = w.shape[1], w.shape[2:4]
    channels = groups * size
    acc = _accumulator(x, weight, channels) if integer else None
    value = ctx.permuted(ctx.resolve_clamp(x), NHWC)
    # out_pad may crop at most kernel - 1; what PyTorch's padding crops beyond is sliced off
    before = [max(-p, 1 - k) for p, k in zip(padding, kernel, strict=True)]
    after = [max(o - p, 1 - k) for p, k, o in zip(padding, kernel, output_padding, strict=True)]
    op = ops.TransposeConv2d(tuple(stride), (before[0], after[0], before[1], after[1]), (1, 1), x.quant.zero_point if x.quant else 0)
    b = _bias(ctx, bias, acc, channels)
    inputs = [value] if groups == 1 else _split(ctx, value, groups)
    parts = [
        ctx.emit(op, part, _const(ctx, w[g], integer), b if groups == 1 else _slice_bias(ctx, b, g, size)) for g, part in enumerate(inputs)
    ]
    out = _join(ctx, parts, acc, _bits(x, w, (2, 3, 4), b))
    start = [before[i] + padding[i] for i in range(2)]
    extra = [after[i] + padding[i] - output_padding[i] for i in range(2)]
    if any(start) or any(extra):
        out = reshapable(ctx, out)
        n, h, ww, c = out.value.shape  # type: ignore[union-attr]
        crop = ops.Slice((0, *start, 0), (n, h - start[0] - extra[0], ww - start[1] - extra[1], c))
        out = replace(out, value=ctx.emit(crop, out.value))  # type: ignore[arg-type]
    return out


@lower(aten.linear.default)
def linear(ctx: Context, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    """linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor

    A 1x1 CONV2D over [1, rows, 1, features]: unlike MATMUL it takes int8 weights per channel for int16 inputs too.
    """
    if not weight.is_const:
        raise ctx.refuse("linear whose weight is not a constant")
    if not _is_integer_mac(ctx, x, weight):
        x, weight = ctx.floats(x)[0], Operand(array=weight.reals())
    weight = _with_room_for_bias(x, weight, bias, 0)
    integer = x.quant is not None
    w = np.asarray(weight.array)
    acc = _accumulator(x, weight, w.shape[0]) if integer else None
    rows = int(np.prod(x.shape[:-1], dtype=np.int64))
    value = ctx.reshape(ctx.logical(ctx.resolve_clamp(x)), (1, rows, 1, x.shape[-1]))
    conv = ops.Conv2d((1, 1), (0,) * 4, (1, 1), x.quant.zero_point if x.quant else 0)
    b = _bias(ctx, bias, acc, w.shape[0])
    out = ctx.emit(conv, value, _const(ctx, w[:, None, None, :], integer), b)
    return Operand(out, quant=acc, view=(*x.shape[:-1], w.shape[0]), bits=_bits(x, w, (1,), b))


@lower(aten.bmm.default, aten.mm.default)
def matmul(ctx: Context, a: Operand, b: Operand) -> Operand:
    """bmm(Tensor self, Tensor mat2) -> Tensor"""
    integer = ctx.is_narrow(a) and ctx.is_narrow(b) and a.quant.dtype is b.quant.dtype  # type: ignore[union-attr]
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
    acc = Quant(float(a.quant.scale) * float(b.quant.scale), 0, dtype)  # type: ignore[arg-type]
    out = ctx.emit(ops.MatMul(a.quant.zero_point, b.quant.zero_point), lhs, rhs)
    bits = (255 * 255 if dtype is DType.INT32 else 1 << 30) * a.shape[-1]
    return Operand(out, quant=acc, view=shape, bits=bits.bit_length())
