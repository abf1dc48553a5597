"""Layer, group, instance and root-mean-square normalisation.

One integer kernel serves all: rows are shifted until they fill int32, so that neither large nor small rows lose bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.elementwise import batch_norm
from tosaic.lower.fixed import as_wanted, calc, in_integers, rows, rsqrt, wide_scale
from tosaic.lower.moments import Deviations, deviations, float_mean, root_scale, whole_sum
from tosaic.lower.operand import Operand, Quant, inverse
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType

aten = torch.ops.aten
_NARROW_BITS, _WIDE_BITS = 12, 14  # of the table of 1/sqrt, for results of 8 bits and of more
_EPS = {DType.FP32: 2.0**-23, DType.FP16: 2.0**-10, DType.BF16: 2.0**-7}
NO_EPS = 2.0**-9  # eps that adds less than this to the root of a sum of squared integers is not seen


def _normalised(ctx: Context, x: Value, axes: Sequence[int], scale: float, eps: float, centre: bool, rounded: bool) -> tuple[Value, float]:
    """y and C with y C = (x - mean) / sqrt(var + eps), or x / sqrt(mean(x^2) + eps); |y| <= 2^29.

    With E = sqrt(eps) in the units of x, v = sum(d^2) + N (E 2^count)^2, where count leaves E 2^count < 2^31, and y = d / sqrt(v)
    is at most 1. Of an input that was rounded to its scale, an E of half a step is not seen: it is below that rounding. Where E is
    beyond 2^30, x is shifted down first: then eps is larger than all that the head-room of an input holds. Constant rows have d = 0,
    and with it y = 0, whatever v is.
    """
    length = math.prod(x.shape[a] for a in axes)
    unit = math.sqrt(eps) / scale
    if unit > 2.0**30:
        down = 2.0 ** min(31, math.ceil(math.log2(unit / 2.0**30)))
        x = ctx.rescale(x, Quant(1.0, 0, DType.INT32), Quant(down, 0, DType.INT32))
        unit = min(unit / down, 2.0**30)
    seen = unit > 0.5 if rounded else unit * math.sqrt(length) >= NO_EPS
    d = deviations(ctx, x, axes, centre, least=max(2, math.ceil(unit)) if seen else 0)
    v, lift = whole_sum(ctx, d, eps_square(ctx, d, unit, length) if seen else None)
    narrow = ctx.want is not None and ctx.want.dtype is DType.INT8
    inverse_root = rsqrt(ctx, v, _NARROW_BITS if narrow else _WIDE_BITS, root_scale(d.bits))
    q = math.log2(inverse_root.scale)
    count = inverse_root.count if lift is None else ctx.emit(ops.Add(), inverse_root.count, lift)
    factor = ctx.emit(ops.LogicalLeftShift(), inverse_root.mantissa, count)
    shift = math.ceil((62 - d.bits) / 2) + math.ceil(q) - 13
    y = ctx.bounded(ctx.emit(ops.Mul(shift), d.value, factor), -(2**30) + 1, 2**30 - 1, "no part is larger than the whole")
    return y, math.sqrt(length) * 2.0 ** (shift - q - 16 - (62 - d.bits) / 2)


def eps_square(ctx: Context, d: Deviations, unit: float, length: int) -> Value:
    """N (E 2^count)^2 2^(bits - 62), of e = sqrt(N) E 2^(count - p) < 2^31, where 2^p >= sqrt(N)."""
    p = math.ceil(math.log2(length) / 2)
    root = unit * math.sqrt(length) / 2.0**p
    fraction = max(0, 29 - math.ceil(math.log2(root)))
    factor, more = d.twice, 1
    if factor is None:
        assert d.count is not None
        one = calc(ctx, ops.LogicalLeftShift(), ctx.i32(1, len(d.count.shape)), d.count)
        factor, more = ctx.bounded(one, 1, 2**30, "the count leaves room for eps"), 0
    e = calc(ctx, ops.Mul(fraction + more), factor, round(root * 2.0**fraction))
    ctx.bounded(e, 0, 2**31 - 1, "the factor leaves room for eps")
    return ctx.emit(ops.Mul(62 - d.bits - 2 * p), e, e)


def _float_normalised(ctx: Context, x: Value, axes: Sequence[int], eps: float, centre: bool) -> Value:
    if centre:
        x = ctx.emit(ops.Sub(), x, float_mean(ctx, x, axes))
    v = float_mean(ctx, ctx.emit(ops.Mul(), x, x), axes)
    v = ctx.emit(ops.Add(), v, ctx.real(eps, v))
    return ctx.emit(ops.Mul(), x, ctx.emit(ops.Rsqrt(), v))


def _merged(sizes: Sequence[int], flags: Sequence[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Neighbouring dimensions that are both reduced, or both not, as one: the shape, and which of it are reduced."""
    runs = [(flag, [size for size, _ in group]) for flag, group in itertools.groupby(zip(sizes, flags, strict=True), lambda p: p[1])]
    return tuple(math.prod(run) for _, run in runs), tuple(i for i, (flag, _) in enumerate(runs) if flag)


def _normalise(
    ctx: Context,
    x: Operand,
    dims: Sequence[int],
    eps: float,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    *,
    groups: int = 0,
    centre: bool = True,
) -> Operand:
    """A normalisation over logical `dims`, times a weight, plus a bias (both broadcast to the logical shape).

    Args:
        groups: dimension 1 is split into so many rows, each over its share of it and `dims`.
    """
    rank = len(x.shape)
    integer = in_integers(ctx, x)
    if integer:
        r = rows(ctx, x, dims)
        value, perm = r.value, r.perm or tuple(range(rank))
    else:
        value, perm = ctx.floats(x)[0].tensor, tuple(range(rank))
    shape, reduced_dims = value.shape, {perm[d % rank] for d in dims}
    sizes = [(shape[i], i in reduced_dims) for i in range(rank)]
    if groups:
        channels = perm[1]
        sizes[channels : channels + 1] = [(groups, False), (shape[channels] // groups, True)]
    merged, axes = _merged([s for s, _ in sizes], [f for _, f in sizes])
    if not axes or math.prod(merged[a] for a in axes) > 2**20:
        raise ctx.refuse(f"a normalisation over {math.prod(merged[a] for a in axes)} elements; integer arithmetic holds 2^20")
    stored = [None if a is None else np.transpose(a.reshape((1,) * (rank - a.ndim) + a.shape), inverse(perm)) for a in (weight, bias)]
    if not integer:
        y = ctx.reshape(_float_normalised(ctx, ctx.reshape(value, merged), axes, eps, centre), shape)
        for op, array in zip((ops.Mul(), ops.Add()), stored, strict=True):
            y = y if array is None else ctx.emit(op, y, ctx.real(array, y))
        return Operand(y)
    flat = ctx.reshape(ctx.to_i32(r.x).tensor, merged)
    y, factor = _normalised(ctx, flat, axes, r.scale, eps, centre, r.x.scaling.dtype is DType.INT32)
    length = math.prod(merged[a] for a in axes)
    return _affine(ctx, Operand(ctx.reshape(y, shape), perm=r.perm), factor, math.sqrt(length), *stored)


def _affine(ctx: Context, y: Operand, factor: float, reach: float, weight: np.ndarray | None, bias: np.ndarray | None) -> Operand:
    """y factor weight + bias at the wanted scale: MUL and ADD, or only another scale where one positive weight serves all.

    |y factor| <= reach (1.001 covers its errors); the result is below 2^29 as `wide_scale` takes care of.
    """
    weights = np.ones(1) if weight is None else weight
    assert y.value is not None
    if (bias is None or not bias.any()) and weights.min() == weights.max() > 0:
        return Operand(y.value, quant=Quant(factor * float(weights.max()), 0, DType.INT32), perm=y.perm, bits=30)
    largest = float(np.abs(weights).max())
    scale, bits = wide_scale(ctx, 1.001 * (reach * largest + (float(np.abs(bias).max()) if bias is not None else 0.0)) or 1.0)
    shift = 30 - math.ceil(math.log2(largest * factor / scale)) if largest else 0
    shift = min(shift, 62)
    value = calc(ctx, ops.Mul(shift), y.value, _full(np.rint(weights * factor / scale * 2.0**shift), len(y.shape)))
    if bias is not None and bias.any():
        value = calc(ctx, ops.Add(), value, _full(np.rint(bias / scale), len(y.shape)))
    return as_wanted(ctx, value, scale, bits, y.perm)


def _full(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _constants(ctx: Context, *parameters: Operand | None) -> list[np.ndarray | None]:
    """Weights and biases; ones that the model computes are refused."""
    if any(p is not None and not p.is_const for p in parameters):
        raise ctx.refuse("a normalisation whose weight or bias is not constant; multiply and add them behind it")
    return [None if p is None else p.reals() for p in parameters]


@lower(aten.layer_norm.default)
def layer_norm(
    ctx: Context,
    x: Operand,
    shape: Sequence[int],
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Operand:
    """layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05,
    bool cudnn_enable=True) -> Tensor
    """
    return _normalise(ctx, x, range(-len(shape), 0), eps, *_constants(ctx, weight, bias))


@lower(aten.rms_norm.default)
def rms_norm(ctx: Context, x: Operand, shape: Sequence[int], weight: Operand | None = None, eps: float | None = None) -> Operand:
    """rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor"""
    eps = float(_EPS[ctx.floating]) if eps is None else eps
    return _normalise(ctx, x, range(-len(shape), 0), eps, *_constants(ctx, weight, None), centre=False)


def _over_channels(array: np.ndarray | None, rank: int) -> np.ndarray | None:
    return None if array is None else array.reshape(-1, *[1] * (rank - 2))


@lower(aten.group_norm.default)
def group_norm(
    ctx: Context,
    x: Operand,
    groups: int,
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Operand:
    """group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05,
    bool cudnn_enabled=True) -> Tensor
    """
    rank = len(x.shape)
    parameters = [_over_channels(a, rank) for a in _constants(ctx, weight, bias)]
    return _normalise(ctx, x, range(2, rank), eps, *parameters, groups=groups)


@lower(aten.instance_norm.default)
def instance_norm(
    ctx: Context,
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    mean: Operand | None,
    var: Operand | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Operand:
    """instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,
    bool use_input_stats, float momentum, float eps, bool cudnn_enabled) -> Tensor
    """
    if not use_input_stats:
        assert mean is not None and var is not None
        return batch_norm(ctx, x, weight, bias, mean, var, False, momentum, eps, cudnn)
    rank = len(x.shape)
    parameters = [_over_channels(a, rank) for a in _constants(ctx, weight, bias)]
    return _normalise(ctx, x, range(2, rank), eps, *parameters)
