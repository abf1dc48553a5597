"""Kernels of torch operations alone, which run on any device that torch has, with the results of the other kernels.

Integers are exact: arithmetic is done in up to 64 bits. See `tensors_mac` for sums of products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from tosaic.errors import ExecuteError
from tosaic.execute.handlers import Kernel
from tosaic.execute.ops_layout import extra_of, limits, positions
from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.types import DType

T = torch.Tensor
TensorHandler = Callable[[Node], Kernel | None]  # None: this node has no kernel here
TYPES = {
    DType.BOOL: torch.bool,
    DType.INT4: torch.int8,
    DType.INT8: torch.int8,
    DType.INT16: torch.int16,
    DType.INT32: torch.int32,
    DType.INT48: torch.int64,
    DType.FP8E4M3: torch.float8_e4m3fn,
    DType.FP8E5M2: torch.float8_e5m2,
    DType.FP16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.FP32: torch.float32,
}
TENSOR_HANDLERS: dict[type[ops.Op], TensorHandler] = {}


def on_tensors(*classes: type[ops.Op]) -> Callable[[TensorHandler], TensorHandler]:
    """Register the function below as the handler of these operators."""

    def register(function: TensorHandler) -> TensorHandler:
        TENSOR_HANDLERS.update(dict.fromkeys(classes, function))
        return function

    return register


# Elementwise operators


def _same(function: Callable[..., T]) -> TensorHandler:
    """Handler of an operator whose torch function is right for each of its types."""
    return lambda node: function


def _either(integers: Callable[..., T] | None, floats: Callable[..., T]) -> TensorHandler:
    """Handler of an operator that is computed in f32 and rounded where its types are floats."""

    def handler(node: Node) -> Kernel | None:
        result = TYPES[node.output.dtype]
        if node.inputs[0].dtype.is_float:
            return lambda *operands: floats(*(x.float() for x in operands)).to(result)
        return integers

    return handler


def _by_nan_mode(integers: Callable[..., T], propagate: Callable[..., T], ignore: Callable[..., T]) -> TensorHandler:
    return lambda node: _either(integers, ignore if node.op.nan_mode is ops.NanMode.IGNORE else propagate)(node)


def _unsigned(x: T) -> T:
    """int64 of the same bits without their sign."""
    return x.long() & ((1 << 8 * x.element_size()) - 1)


def _intdiv(a: T, b: T) -> T:
    """Truncates toward zero; division by zero, unpredictable, gives 0."""
    a, b = a.long(), b.long()
    return torch.where(b == 0, 0, torch.div(a, torch.where(b == 0, 1, b), rounding_mode="trunc")).int()


def _right_shift(a: T, b: T, rounded: bool) -> T:
    shifted = a >> b
    return shifted + torch.where(b > 0, (a >> (b - 1).clamp(min=0)) & 1, 0).to(a.dtype) if rounded else shifted


TENSOR_HANDLERS |= {
    **{
        cls: _either(None, function)
        for cls, function in {
            **{ops.Erf: torch.erf, ops.Sigmoid: torch.sigmoid, ops.Tanh: torch.tanh, ops.Ceil: torch.ceil, ops.Cos: torch.cos},
            **{ops.Exp: torch.exp, ops.Floor: torch.floor, ops.Log: torch.log, ops.Reciprocal: torch.reciprocal},
            **{ops.Rsqrt: torch.rsqrt, ops.Sin: torch.sin, ops.Pow: torch.pow},
        }.items()
    },
    ops.Abs: _either(torch.abs, torch.abs),
    ops.Add: _either(torch.add, torch.add),
    ops.Sub: _either(torch.sub, torch.sub),
    ops.Maximum: _by_nan_mode(torch.maximum, torch.maximum, torch.fmax),
    ops.Minimum: _by_nan_mode(torch.minimum, torch.minimum, torch.fmin),
    ops.BitwiseNot: _same(torch.bitwise_not),
    ops.BitwiseAnd: _same(torch.bitwise_and),
    ops.BitwiseOr: _same(torch.bitwise_or),
    ops.BitwiseXor: _same(torch.bitwise_xor),
    ops.LogicalNot: _same(torch.logical_not),
    ops.LogicalAnd: _same(torch.logical_and),
    ops.LogicalOr: _same(torch.logical_or),
    ops.LogicalXor: _same(torch.logical_xor),
    ops.LogicalLeftShift: _same(lambda a, b: (a.long() << b).to(a.dtype)),
    ops.LogicalRightShift: _same(lambda a, b: (_unsigned(a) >> b).to(a.dtype)),
    ops.ArithmeticRightShift: lambda node: lambda a, b: _right_shift(a, b, node.op.round),
    ops.IntDiv: _same(_intdiv),
    # frexp gives the count of significant bits, exactly: 32 bits fit the 53 of f64
    ops.Clz: _same(lambda x: (32 - torch.frexp(_unsigned(x).double())[1]).int()),
    ops.Identity: _same(lambda x: x),
    ops.Select: _same(torch.where),
    ops.Equal: _same(torch.eq),
    ops.Greater: _same(torch.gt),
    ops.GreaterEqual: _same(torch.ge),
}


@on_tensors(ops.Clamp)
def clamp(node: Node) -> Kernel:
    op, dtype = node.op, node.inputs[0].dtype
    if dtype.is_integer:
        return lambda x: x.clamp(int(op.min), int(op.max))
    low, high = (float(v) for v in np.array([op.min, op.max]).astype(dtype.numpy))
    if op.nan_mode is ops.NanMode.IGNORE:  # NaN is as low as the least
        return lambda x: x.float().nan_to_num(low, torch.inf, -torch.inf).clamp(low, high).to(x.dtype)
    return lambda x: x.float().clamp(low, high).to(x.dtype)


@on_tensors(ops.Mul)
def mul(node: Node) -> Kernel | None:
    shift = node.op.shift
    half = 1 << shift >> 1
    return _either(lambda a, b: ((a.long() * b.long() + half) >> shift).int(), torch.mul)(node)


@on_tensors(ops.Negate)
def negate(node: Node) -> Kernel | None:
    op, dtype = node.op, node.inputs[0].dtype
    if dtype.is_float:
        return _same(torch.neg)(node)
    return lambda x: (op.input_zp + op.output_zp - x.long()).clamp(dtype.min, dtype.max).to(x.dtype)


@on_tensors(ops.Table)
def table(node: Node) -> Kernel:
    if node.inputs[0].dtype is DType.INT8:
        return lambda x, entries: torch.take(entries, x.long() + 128)

    def interpolated(x: T, entries: T) -> T:
        position, entries = x.long() + 32768, entries.int()
        base = torch.take(entries, position >> 7)
        return (base << 7) + (torch.take(entries, (position >> 7) + 1) - base) * (position & 127).int()

    return interpolated


@on_tensors(ops.Cast)
def cast(node: Node) -> Kernel | None:
    source, target = node.inputs[0].dtype, node.op.dtype
    kind = TYPES[target]
    if target is DType.BOOL:
        return lambda x: x != 0
    if source.is_float and target.is_integer:  # f64 holds every i32; NaN, unspecified, gives 0
        return lambda x: x.double().round().nan_to_num(0.0, target.max, target.min).clamp(target.min, target.max).to(kind)
    if source is DType.INT32 and target.bits == 16 and target.is_float:
        return None  # torch rounds to f32 in between
    return lambda x: x.to(kind)


@on_tensors(ops.Rescale)
def rescale(node: Node) -> Kernel:
    op = node.op
    (low, high), kind = limits(op), TYPES[op.dtype]
    shift = np.array(op.shift, np.int64)
    constants = [np.array(v, np.int64) for v in (op.multiplier, shift, np.int64(1) << (shift - 1), extra_of(op, shift))]
    on = cache(lambda device: [torch.from_numpy(c).to(device) for c in constants])

    def kernel(x: T) -> T:
        multiplier, shift, half, extra = on(x.device)
        value = (_unsigned(x) if op.input_unsigned else x.long()) - op.input_zp
        value = value * multiplier + half + torch.where(value >= 0, extra, -extra)
        return (
            ((value >> shift) + op.output_zp).clamp(low, high).to(kind).reshape(x.shape)
        )  # the constants have a dimension, a scalar has none

    return kernel


# Reductions


def _reduced(integers: Callable[..., T], floats: Callable[..., T]) -> TensorHandler:
    return lambda node: _either(*(lambda x, f=f: f(x, node.op.axis, keepdim=True) for f in (integers, floats)))(node)


def _ignoring(reduce: Callable[..., T], lowest: float) -> Callable[..., T]:
    """A reduction of floats without their NaN; NaN where there is nothing else."""

    def function(x: T, axis: int, keepdim: bool) -> T:
        numbers = reduce(torch.where(x.isnan(), lowest, x), axis, keepdim=keepdim)
        return torch.where(x.isnan().all(axis, keepdim=keepdim), torch.nan, numbers)

    return function


def _extreme(reduce: Callable[..., T], lowest: float) -> TensorHandler:
    propagate, ignore = _reduced(reduce, reduce), _reduced(reduce, _ignoring(reduce, lowest))
    return lambda node: (ignore if node.op.nan_mode is ops.NanMode.IGNORE else propagate)(node)


TENSOR_HANDLERS |= {
    ops.ReduceAll: _reduced(torch.all, torch.all),
    ops.ReduceAny: _reduced(torch.any, torch.any),
    ops.ReduceMax: _extreme(torch.amax, -torch.inf),
    ops.ReduceMin: _extreme(torch.amin, torch.inf),
    ops.ReduceProduct: _reduced(torch.prod, torch.prod),
    ops.ReduceSum: _reduced(lambda x, axis, keepdim: x.sum(axis, keepdim=keepdim, dtype=torch.int32), torch.sum),
}


@on_tensors(ops.ArgMax)
def argmax(node: Node) -> Kernel:
    axis = node.op.axis

    def kernel(x: T) -> T:
        if node.inputs[0].dtype.is_float:
            x = x.float()
            if node.op.nan_mode is ops.NanMode.IGNORE:  # 0 where all are NaN
                x = (x == _ignoring(torch.amax, -torch.inf)(x, axis, keepdim=True)).int()
        return x.argmax(axis).int()

    return kernel


# Data layout, gather and scatter


@on_tensors(ops.Pad)
def pad(node: Node) -> Kernel:
    padding, value, shape = node.op.padding, node.op.value, node.output.shape
    inside = tuple(slice(b, b + d) for b, d in zip(padding[::2], node.inputs[0].shape, strict=True))

    def kernel(x: T) -> T:
        out = x.new_full(shape, value)
        out[inside] = x
        return out

    return kernel


@on_tensors(ops.Slice)
def slice_(node: Node) -> Kernel:
    index = tuple(slice(s, s + n) for s, n in zip(node.op.start, node.op.size, strict=True))
    return lambda x: x[index]


def _rows(op: ops.Op, indices: T, count: int) -> tuple[T, T]:
    low, high = (int(v) for v in indices.aminmax())
    if low < 0 or high >= count:
        raise ExecuteError(f"{op.NAME}: indices are {low}..{high}, expected 0..{count - 1}")
    return torch.arange(indices.shape[0], device=indices.device)[:, None], indices.long()


@on_tensors(ops.Scatter)
def scatter(node: Node) -> Kernel:
    def kernel(values: T, indices: T, x: T) -> T:
        out = values.clone()
        out[_rows(node.op, indices, values.shape[1])] = x
        return out

    return kernel


TENSOR_HANDLERS |= {
    ops.Concat: lambda node: lambda *operands: torch.cat(operands, node.op.axis),
    ops.Reshape: lambda node: lambda x: x.reshape(node.op.shape),
    ops.Reverse: lambda node: lambda x: x.flip(node.op.axis),
    ops.Tile: lambda node: lambda x: x.repeat(node.op.multiples),
    ops.Transpose: lambda node: lambda x: x.permute(node.op.perms),
    ops.Gather: lambda node: lambda values, indices: values[_rows(node.op, indices, values.shape[1])],
}


@on_tensors(ops.Resize)
def resize(node: Node) -> Kernel:
    op, source, result = node.op, node.inputs[0], node.output
    scales = zip(result.shape[1:3], source.shape[1:3], op.scale[::2], op.scale[1::2], op.offset, strict=True)
    axes = [[torch.from_numpy(a) for a in positions(*scale)] for scale in scales]
    units, kind = op.scale[::2], TYPES[result.dtype]

    def nearest(x: T) -> T:
        for axis, ((first, second, distance), unit) in enumerate(zip(axes, units, strict=True), 1):
            x = x.index_select(axis, torch.where(2 * distance >= unit, second, first).to(x.device))
        return x

    def bilinear(x: T) -> T:
        floats = x.is_floating_point()
        x = x.float() if floats else x.to(kind)
        weights = []
        for i, ((_, _, distance), unit) in enumerate(zip(axes, units, strict=True)):
            after = ((distance / unit).float() if floats else distance.to(kind)).reshape(-1, *[1] * (2 - i)).to(x.device)
            weights.append(((1 if floats else unit) - after, after))
        total = torch.zeros(result.shape, dtype=x.dtype, device=x.device)
        for y in range(2):
            rows = x.index_select(1, axes[0][y].to(x.device))
            for column in range(2):
                total += rows.index_select(2, axes[1][column].to(x.device)) * (weights[0][y] * weights[1][column])
        return total.to(kind)

    return nearest if op.mode is ops.ResizeMode.NEAREST else bilinear
