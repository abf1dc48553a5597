"""Sums that are kept in f16 (of 8-bit floats always): each partial sum is rounded, so that the order of the specification counts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tosaic.execute.handlers import Kernel
from tosaic.tosa import ops
from tosaic.tosa.graph import Node


def _add(total: np.ndarray, term: np.ndarray) -> None:
    """total += term, in place; a sum in f32 rounds to f16 as the exact one does."""
    total[...] = total.astype(np.float32) + term


def _add_product(total: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """total += a * b, in place; the product, exact in f32, becomes f16 too: beyond its range it is infinite."""
    _add(total, (a * b).astype(np.float16))


def _windows(op: ops.Op, x: np.ndarray, kernel: tuple[int, ...], spatial: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each position in the kernel, with the input [N,*spatial,C] that it meets; zeros in `x` stand for the padding."""
    for tap in np.ndindex(*kernel):
        axes = zip(tap, op.dilation, op.stride, spatial, strict=True)
        yield tap, x[:, *(slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in axes)]


def _surrounded(x: np.ndarray, pad: tuple[int, ...]) -> np.ndarray:
    return np.pad(x, [(0, 0), *zip(pad[::2], pad[1::2], strict=True), (0, 0)])


def _spread(op: ops.TransposeConv2d, x: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """x as the convolution of stride 1 with the turned kernel reads it: its elements `stride` apart, zeros around and between."""
    n, h, w, c = x.shape
    inside = np.zeros((n, (h - 1) * op.stride[0] + 1, (w - 1) * op.stride[1] + 1, c), x.dtype)
    inside[:, :: op.stride[0], :: op.stride[1]] = x
    edges = [k - 1 for k in kernel for _ in range(2)]
    around = [p + e for p, e in zip(op.pad, edges, strict=True)]  # at least 0: out_pad is above -kernel
    return _surrounded(inside, tuple(around))


def convolution(node: Node) -> Kernel:
    """CONV2D, CONV3D, TRANSPOSE_CONV2D: over the positions in the kernel, then over the input channels."""
    op, shape = node.op, node.output.shape

    def kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, w, size = x.astype(np.float32), w.astype(np.float32), w.shape[1:-1]
        total = np.zeros(shape, np.float16)
        for tap, part in _taps(op, x, size, shape[1:-1]):
            for channel in range(x.shape[-1]):
                _add_product(total, part[..., channel, None], w[:, *tap, channel])
        return total + b

    return kernel


def _taps(op: ops.Op, x: np.ndarray, size: tuple[int, ...], spatial: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    if not isinstance(op, ops.TransposeConv2d):
        yield from _windows(op, _surrounded(x, op.pad), size, spatial)
        return
    x = _spread(op, x, size)
    for ky, kx in np.ndindex(*size):
        y0, x0 = size[0] - 1 - ky, size[1] - 1 - kx
        yield (ky, kx), x[:, y0 : y0 + spatial[0], x0 : x0 + spatial[1]]


def depthwise(node: Node) -> Kernel:
    """DEPTHWISE_CONV2D: over the positions in the kernel."""
    op, shape = node.op, node.output.shape

    def kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, w = _surrounded(x.astype(np.float32), op.pad), w.astype(np.float32)
        total = np.zeros((*shape[:-1], *w.shape[2:]), np.float16)
        for tap, part in _windows(op, x, w.shape[:2], shape[1:-1]):
            _add_product(total, part[..., None], w[tap])
        return total.reshape(shape) + b

    return kernel


def matmul(node: Node) -> Kernel:
    """MATMUL: over the inner dimension. Products keep their range, as in Arm's reference model."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float32), b.astype(np.float32)
        total = np.zeros(node.output.shape, np.float16)
        for c in range(a.shape[2]):
            _add(total, a[:, :, c, None] * b[:, c, None])
        return total

    return kernel


def avg_pool(node: Node) -> Kernel:
    """AVG_POOL2D: over the positions in the window; the mean is rounded to f16, then to the type."""
    op, shape = node.op, node.output.shape

    def kernel(x: np.ndarray) -> np.ndarray:
        inside = _surrounded(np.ones((1, *x.shape[1:3], 1), np.float16), op.pad)
        x = _surrounded(x.astype(np.float32), op.pad)
        total, count = np.zeros(shape, np.float16), np.zeros((1, *shape[1:3], 1), np.float16)
        for ky, kx in np.ndindex(*op.kernel):
            rows, columns = (slice(k, k + (o - 1) * s + 1, s) for k, o, s in zip((ky, kx), shape[1:3], op.stride, strict=True))
            _add(total, x[:, rows, columns])
            count += inside[:, rows, columns]
        return (total / count).astype(node.output.dtype.numpy)

    return kernel
