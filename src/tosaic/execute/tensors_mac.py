"""Sums of products, and pools, as kernels of torch operations alone; see `tensors`.

Integers are multiplied as floats that hold each partial sum. Nothing here asks torch for a convolution, whose algorithms on a GPU
(Winograd, Fourier) round: one is a matrix product for each position in its kernel.
"""

from __future__ import annotations

from functools import cache, reduce

import torch

from tosaic.execute.handlers import Kernel
from tosaic.execute.tensors import TYPES, T, on_tensors
from tosaic.execute.windows import surrounded, taps, windows
from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.types import DType

EXACT_F32 = 1 << 24


@cache
def _is_f32_exact(device: torch.device) -> bool:
    """Whether matrix products of f32 sum integers up exactly there, tried once on the largest values that they are used for."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, shape, generator=generator, dtype=torch.int64) for shape in ((67, 1024), (1024, 45)))
    for left, right in ((a, b), (torch.full_like(a, -128), torch.full_like(b, -128))):
        if not torch.equal((left.float().to(device) @ right.float().to(device)).cpu().long(), left @ right):
            return False
    return True


def _products(a: T, b: T, largest: int, kind: torch.dtype) -> T:
    """[..., K] x [..., K, N] of integers in floats; `largest`: bound of one product's magnitude. The sums have the type `kind`."""
    wide, bound = (torch.float32, EXACT_F32) if largest < 1 << 16 and _is_f32_exact(a.device) else (torch.float64, 1 << 53)
    step = bound // largest  # so many products sum up exactly
    a, b = a.to(wide), b.to(wide)
    total = (a[..., :step] @ b[..., :step, :]).to(kind)
    for k in range(step, a.shape[-1], step):
        total += (a[..., k : k + step] @ b[..., k : k + step, :]).to(kind)
    return total


def _largest(dtype: DType, zero_point: int) -> int:
    return max(dtype.max - zero_point, zero_point - dtype.min)


@on_tensors(ops.MatMul)
def matmul(node: Node) -> Kernel | None:
    op, dtype, kind = node.op, node.inputs[0].dtype, TYPES[node.output.dtype]
    if node.output.dtype is DType.FP16:
        return None
    if dtype.is_float:
        return lambda a, b: torch.bmm(a.float(), b.float()).to(kind)
    largest = _largest(dtype, op.a_zp) * _largest(dtype, op.b_zp)
    return lambda a, b: _products(a.int() - op.a_zp, b.int() - op.b_zp, largest, kind)


@on_tensors(ops.Conv2d, ops.Conv3d, ops.DepthwiseConv2d, ops.TransposeConv2d)
def convolution(node: Node) -> Kernel | None:
    op, (x_type, w_type), result = node.op, [v.dtype for v in node.inputs[:2]], node.output
    if op.accumulator(x_type) is DType.FP16:
        return None
    kind, size = TYPES[result.dtype], op.kernel(node.inputs[1].type)
    depthwise, floats = isinstance(op, ops.DepthwiseConv2d), x_type.is_float
    largest = 0 if floats else _largest(x_type, op.input_zp) * _largest(w_type, op.weight_zp)
    sums = torch.float32 if floats else kind

    def kernel(x: T, w: T, b: T) -> T:
        x, w = (x.float(), w.float()) if floats else (x.int() - op.input_zp, w.int() - op.weight_zp)
        w = w.to(sums) if depthwise else w.movedim(0, -1)  # [*size,IC,OC]
        x = x.to(sums) if depthwise else x
        total = torch.zeros((*result.shape[:-1], *w.shape[-2:]) if depthwise else result.shape, dtype=sums, device=x.device)
        for tap, part in taps(op, x, size, result.shape[1:-1]):
            if depthwise:
                total += part[..., None] * w[tap]
            else:
                total += part @ w[tap] if floats else _products(part, w[tap], largest, kind)
        total = total.reshape(result.shape).to(kind)
        return (total.float() + b.float()).to(kind) if floats else total + b.to(kind)

    return kernel


@on_tensors(ops.AvgPool2d)
def avg_pool(node: Node) -> Kernel | None:
    op, dtype, shape = node.op, node.inputs[0].dtype, node.output.shape
    if op.accumulator(dtype) is DType.FP16:
        return None
    sums = torch.float32 if dtype.is_float else torch.int64

    def summed(x: T) -> T:
        return sum((part for _, part in windows(surrounded(x, op.pad), op.kernel, op.stride, (1, 1), shape[1:3])), x.new_zeros(()))

    def kernel(x: T) -> T:
        total, count = summed(x.to(sums)), summed(torch.ones((1, *x.shape[1:3], 1), dtype=sums, device=x.device))
        if dtype.is_float:
            return (total / count).to(x.dtype)
        # reciprocal_scale: 2^(k-1) < count <= 2^k, multiplier in [2^30, 2^31)
        k = torch.frexp((count - 1).double())[1].long()
        value = (total - count * op.input_zp) * ((((1 << 30) + 1) << k) // count) + (1 << (29 + k))
        return ((value >> (30 + k)) + op.output_zp).clamp(dtype.min, dtype.max).to(x.dtype)

    return kernel


@on_tensors(ops.MaxPool2d)
def max_pool(node: Node) -> Kernel | None:
    op, dtype, shape = node.op, node.inputs[0].dtype, node.output.shape
    if dtype.is_float and op.nan_mode is ops.NanMode.IGNORE:
        return None
    lowest = -torch.inf if dtype.is_float else dtype.min

    def kernel(x: T) -> T:
        parts = (part for _, part in windows(surrounded(x, op.pad, lowest), op.kernel, op.stride, (1, 1), shape[1:3]))
        return reduce(torch.maximum, parts)

    return kernel
