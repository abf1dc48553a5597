"""Sums that are kept in f16 (of 8-bit floats always): each partial sum is rounded, so that the order of the specification counts."""

from __future__ import annotations

import numpy as np

from tosaic.execute.handlers import Kernel
from tosaic.execute.windows import surrounded, taps, windows
from tosaic.tosa.graph import Node


def _add(total: np.ndarray, term: np.ndarray) -> None:
    """total += term, in place; a sum in f32 rounds to f16 as the exact one does."""
    total[...] = total.astype(np.float32) + term


def _add_product(total: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """total += a * b, in place; the product, exact in f32, becomes f16 too: beyond its range it is infinite."""
    _add(total, (a * b).astype(np.float16))


def convolution(node: Node) -> Kernel:
    """CONV2D, CONV3D, TRANSPOSE_CONV2D: over the positions in the kernel, then over the input channels."""
    op, shape = node.op, node.output.shape

    def kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, w, size = x.astype(np.float32), w.astype(np.float32), w.shape[1:-1]
        total = np.zeros(shape, np.float16)
        for tap, part in taps(op, x, size, shape[1:-1]):
            for channel in range(x.shape[-1]):
                _add_product(total, part[..., channel, None], w[:, *tap, channel])
        return total + b

    return kernel


def depthwise(node: Node) -> Kernel:
    """DEPTHWISE_CONV2D: over the positions in the kernel."""
    op, shape = node.op, node.output.shape

    def kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, w = x.astype(np.float32), w.astype(np.float32)
        total = np.zeros((*shape[:-1], *w.shape[2:]), np.float16)
        for tap, part in taps(op, x, w.shape[:2], shape[1:-1]):
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
        total, count = np.zeros(shape, np.float16), np.zeros((1, *shape[1:3], 1), np.float16)
        place = op.kernel, op.stride, (1, 1), shape[1:3]
        for _, part in windows(surrounded(x.astype(np.float32), op.pad), *place):
            _add(total, part)
        for _, part in windows(surrounded(np.ones((1, *x.shape[1:3], 1), np.float16), op.pad), *place):
            count += part
        return (total / count).astype(node.output.dtype.numpy)

    return kernel
