"""Cosine similarity: one product of rows and two reciprocal roots; neither operand is divided."""

from __future__ import annotations

import math

import torch

from tosaic.lower.context import Context
from tosaic.lower.elementwise import broadcast_ranks
from tosaic.lower.fixed import as_wanted, in_integers, reduced, rsqrt
from tosaic.lower.layout import axis_of, squeeze
from tosaic.lower.moments import Deviations, deviations, root_scale, whole_sum
from tosaic.lower.norms import NO_EPS, eps_square
from tosaic.lower.operand import Operand
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.graph import Value

aten = torch.ops.aten
_LONGEST = 4096  # elements whose products one int32 sums with enough bits


@lower(aten.cosine_similarity.default)
def cosine_similarity(ctx: Context, a: Operand, b: Operand, dim: int = 1, eps: float = 1e-8) -> Operand:
    """cosine_similarity(Tensor x1, Tensor x2, int dim=1, float eps=1e-08) -> Tensor"""
    a, b = broadcast_ranks(ctx, a, b)
    axis = axis_of(dim, len(a.shape))
    if in_integers(ctx, a) and in_integers(ctx, b):
        return squeeze(ctx, _of_integers(ctx, a, b, axis, eps), axis)
    x, y = (v.value for v in ctx.floats(a, b))
    assert x is not None and y is not None
    dot = ctx.emit(ops.ReduceSum(axis), ctx.emit(ops.Mul(), x, y))
    for value in (x, y):
        square = ctx.emit(ops.ReduceSum(axis), ctx.emit(ops.Mul(), value, value))
        square = ctx.emit(ops.Maximum(), square, ctx.real(max(eps * eps, 1e-30), square))
        dot = ctx.emit(ops.Mul(), dot, ctx.emit(ops.Rsqrt(), square))
    return squeeze(ctx, Operand(dot), axis)


def _of_integers(ctx: Context, a: Operand, b: Operand, axis: int, eps: float) -> Operand:
    """P / sqrt(va vb) at scale 2^-27, with |P| = |sum(da db)| 2^(bits - 62) <= sqrt(va vb) and v below 2^31.

    With f = s 2^16 / sqrt(v) <= 2^30 for both: P fa <= s 2^16 sqrt(vb) < s 2^31.5, shifted right to below 2^30; times fb it is the
    cosine times s^2 2^32 less the shift. A row of zeros has P = 0. 36 operators, 7 of them for each element.
    """
    length = a.shape[axis]
    if length > _LONGEST or b.shape[axis] != length:
        raise ctx.refuse(f"a cosine similarity over {length} and {b.shape[axis]} elements; integers take one length up to {_LONGEST}")
    want, ctx.want = ctx.want, None
    a, b = (ctx.to_i32(x) for x in (a, b))
    ctx.want = want
    (a, b), perm = ctx.same_layout(a, b)
    stored = axis if perm is None else perm[axis]
    (da, fa, s), (db, fb, _) = (_inverse_norm(ctx, x, stored, eps) for x in (a, b))
    terms = ctx.emit(ops.Mul(62 - da.bits), da.value, db.value)
    dot = reduced(ctx, ops.ReduceSum, terms, [stored])
    first = math.ceil(s) + 2
    part = ctx.bounded(ctx.emit(ops.Mul(first), dot, fa), -(2**30), 2**30, "a product of vectors is at most that of their norms")
    second = math.floor(2 * s) + 32 - first - 27
    value = ctx.bounded(ctx.emit(ops.Mul(second), part, fb), -(2**28) + 1, 2**28 - 1, "a cosine is at most 1")
    return as_wanted(ctx, value, 2.0 ** -(2 * s + 32 - first - second), 28, perm)


def _inverse_norm(ctx: Context, x: Operand, axis: int, eps: float) -> tuple[Deviations, Value, float]:
    """A row that fills int32, s 2^16 / its norm, and log2 s."""
    assert x.value is not None and x.quant is not None
    unit = min(eps / x.scale, 2.0**30)
    seen = unit >= NO_EPS
    d = deviations(ctx, x.value, [axis], False, least=math.ceil(unit) if seen else 1)
    v, _ = whole_sum(ctx, d)
    if seen:
        v = ctx.emit(ops.Maximum(), v, eps_square(ctx, d, unit, 1))
    root = rsqrt(ctx, v, 14, root_scale(d.bits))
    factor = ctx.bounded(ctx.emit(ops.LogicalLeftShift(), root.mantissa, root.count), 0, 2**30, "a sum of squares is 2^(bits - 3) or zero")
    return d, factor, math.log2(root.scale)
