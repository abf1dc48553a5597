"""Functions of one value: TABLE where the input is int8 or int16, the operators themselves in float."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from tosaic.lower.context import Context
from tosaic.lower.elementwise import broadcast_ranks, clamp_to, multiply
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import lower
from tosaic.tosa import ops
from tosaic.tosa.types import DType

aten = torch.ops.aten
Function = Callable[[np.ndarray], np.ndarray]


def table(ctx: Context, x: Operand, function: Function) -> Operand | None:
    """A real function of a quantized operand by TABLE; None where no TABLE exists for its type.

    int8: 256 entries that include both quantizations, so the result is round(function(x)) exactly. int16: 513
    entries at the best int16 scale, linear between them, with the 7 interpolated bits kept (specification 2.4.17).
    """
    if not ctx.is_narrow(x):
        return None
    x = ctx.resolve_clamp(x)
    assert x.quant is not None and x.value is not None
    if x.quant.dtype is DType.INT8:
        if ctx.want is None or ctx.want.dtype is not DType.INT8:
            return None
        entries = ctx.want.store(function(x.quant.real(np.arange(-128, 128))))
        return replace(x, value=ctx.emit(ops.Table(), x.value, ctx.i8(entries)), quant=ctx.want, bits=None)
    points = function(x.quant.real(np.arange(-32768, 32769, 128)))
    scale = max(float(np.abs(points).max()), 1e-30) / 32767
    entries = np.clip(np.rint(points / scale), -32768, 32767)
    value = ctx.emit(ops.Table(), x.value, ctx.builder.const(entries, DType.INT16))
    return replace(x, value=value, quant=Quant(scale / 128, 0, DType.INT32), bits=22)


def unary(ctx: Context, x: Operand, function: Function, in_float: Callable[[Operand], Operand]) -> Operand:
    """TABLE if the operand is quantized and its result is wanted quantized, else `in_float`."""
    if x.quant is not None and ctx.want is not None and (found := table(ctx, x, function)) is not None:
        return found
    return in_float(ctx.floats(x)[0])


def _one(ctx: Context, op: ops.Op) -> Callable[[Operand], Operand]:
    return lambda x: Operand(ctx.emit(op, x.value))  # type: ignore[arg-type]


def _sigmoid(v: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * v))


@lower(aten.sigmoid.default)
def sigmoid(ctx: Context, x: Operand) -> Operand:
    """sigmoid(Tensor self) -> Tensor"""
    return unary(ctx, x, _sigmoid, _one(ctx, ops.Sigmoid()))


@lower(aten.tanh.default)
def tanh(ctx: Context, x: Operand) -> Operand:
    """tanh(Tensor self) -> Tensor"""
    return unary(ctx, x, np.tanh, _one(ctx, ops.Tanh()))


@lower(aten.silu.default)
def silu(ctx: Context, x: Operand) -> Operand:
    """silu(Tensor self) -> Tensor"""

    def in_float(v: Operand) -> Operand:
        return Operand(ctx.emit(ops.Mul(), v.value, ctx.emit(ops.Sigmoid(), v.value)))  # type: ignore[arg-type]

    return unary(ctx, x, lambda v: v * _sigmoid(v), in_float)


def _hardsigmoid_float(ctx: Context, x: Operand) -> Operand:
    shifted = ctx.emit(ops.Add(), x.value, ctx.f32(3.0, len(x.shape)))  # type: ignore[arg-type]
    return multiply(ctx, clamp_to(ctx, Operand(shifted), 0.0, 6.0), 1.0 / 6.0)


@lower(aten.hardsigmoid.default)
def hardsigmoid(ctx: Context, x: Operand) -> Operand:
    """hardsigmoid(Tensor self) -> Tensor"""
    return unary(ctx, x, lambda v: np.clip(v + 3.0, 0.0, 6.0) / 6.0, lambda v: _hardsigmoid_float(ctx, v))


@lower(aten.hardswish.default)
def hardswish(ctx: Context, x: Operand) -> Operand:
    """hardswish(Tensor self) -> Tensor"""
    gate = lambda v: multiply(ctx, v, _hardsigmoid_float(ctx, v))  # noqa: E731
    return unary(ctx, x, lambda v: v * np.clip(v + 3.0, 0.0, 6.0) / 6.0, gate)


@lower(aten.leaky_relu.default)
def leaky_relu(ctx: Context, x: Operand, slope: float = 0.01) -> Operand:
    """leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor"""
    if ctx.want is not None and x.quant is not None and x.quant.dtype is DType.INT8:
        found = table(ctx, x, lambda v: np.where(v >= 0, v, slope * v))
        if found is not None:
            return found
    return _two_slopes(ctx, x, Operand(array=np.full((1,) * len(x.shape), slope)))


@lower(aten.prelu.default)
def prelu(ctx: Context, x: Operand, weight: Operand) -> Operand:
    """prelu(Tensor self, Tensor weight) -> Tensor"""
    if not weight.is_const:
        raise ctx.refuse("prelu whose weight is not a constant")
    slopes = weight.reals().reshape(-1)
    if slopes.size == 1:
        return leaky_relu(ctx, x, float(slopes[0]))
    return _two_slopes(ctx, x, Operand(array=slopes.reshape(1, -1, *[1] * (len(x.shape) - 2))))


def _two_slopes(ctx: Context, x: Operand, slopes: Operand) -> Operand:
    """x where x >= 0, else x * slopes."""
    if x.quant is None:
        x = ctx.floats(x)[0]
        below = multiply(ctx, x, slopes)
        zero = ctx.f32(0.0, len(x.shape))
        keep = ctx.emit(ops.GreaterEqual(), x.value, zero)  # type: ignore[arg-type]
        return Operand(ctx.emit(ops.Select(), keep, x.value, below.value))  # type: ignore[arg-type]
    x = ctx.resolve_clamp(ctx.uniform(x))
    x, slopes = broadcast_ranks(ctx, x, slopes)
    assert x.quant is not None
    # both branches at one scale, slopes as 31-bit fixed point. Narrow inputs get 28 magnitude bits, less what slopes
    # above 1 add; wide ones keep their own scale, and with it their head-room
    growth = max(0, math.ceil(math.log2(max(1.0, float(np.abs(slopes.reals()).max())))))
    room = 0 if x.quant.dtype is DType.INT32 else 28 - ctx.magnitude_bits(x)
    scale = float(x.quant.scale) * 2.0 ** (growth - room)  # type: ignore[arg-type]
    bits = ctx.magnitude_bits(x) + room
    (x, slopes), perm = ctx.same_layout(ctx.to_i32(x, scale), slopes)
    assert x.value is not None
    below = ctx.emit(ops.Mul(30 - growth), x.value, ctx.i32(np.rint(slopes.reals() * 2.0 ** (30 - growth))))
    keep = ctx.emit(ops.GreaterEqual(), x.value, ctx.i32(0, len(x.value.shape)))
    return Operand(ctx.emit(ops.Select(), keep, x.value, below), quant=Quant(scale, 0, DType.INT32), perm=perm, bits=bits)
