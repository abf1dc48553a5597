"""Windows of images: what each position in a kernel meets, of numpy arrays and of tensors alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch

from tosaic.tosa import ops

A = TypeVar("A", np.ndarray, torch.Tensor)
Tap = tuple[int, ...]  # a position in the kernel


def taps(op: ops.Op, x: A, size: tuple[int, ...], spatial: tuple[int, ...]) -> Iterator[tuple[Tap, A]]:
    """Each position in the kernel of a convolution, with the input [N,*spatial,C] that it meets; zeros stand for the padding.

    Args:
        x: [N,*,C], without its zero point.
        size: of the kernel.
        spatial: of the result.
    """
    if not isinstance(op, ops.TransposeConv2d):
        yield from windows(surrounded(x, op.pad), size, op.stride, op.dilation, spatial)  # type: ignore[attr-defined]
        return
    x = _spread(op, x, size)
    for ky, kx in np.ndindex(*size):
        y0, x0 = size[0] - 1 - ky, size[1] - 1 - kx
        yield (ky, kx), x[:, y0 : y0 + spatial[0], x0 : x0 + spatial[1]]


def windows(
    x: A, size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], spatial: tuple[int, ...]
) -> Iterator[tuple[Tap, A]]:
    """The same of an input with its padding."""
    for tap in np.ndindex(*size):
        places: list[slice] = [slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in zip(tap, dilation, stride, spatial, strict=True)]
        yield tap, x[:, *places]


def surrounded(x: A, pad: tuple[int, ...], value: float = 0) -> A:
    """x [N,*spatial,C] with `value` around it; `pad` is (before, after) for each spatial dimension."""
    if not any(pad):
        return x
    out = _full(x, (x.shape[0], *(d + b + a for d, b, a in zip(x.shape[1:-1], pad[::2], pad[1::2], strict=True)), x.shape[-1]), value)
    out[:, *(slice(b, b + d) for b, d in zip(pad[::2], x.shape[1:-1], strict=True))] = x
    return out


def _spread(op: ops.TransposeConv2d, x: A, kernel: tuple[int, ...]) -> A:
    """x as the convolution of stride 1 with the turned kernel reads it: its elements `stride` apart, zeros around and between."""
    n, h, w, c = x.shape
    inside = _full(x, (n, (h - 1) * op.stride[0] + 1, (w - 1) * op.stride[1] + 1, c), 0)
    inside[:, :: op.stride[0], :: op.stride[1]] = x
    edges = [k - 1 for k in kernel for _ in range(2)]
    return surrounded(inside, tuple(p + e for p, e in zip(op.pad, edges, strict=True)))  # at least 0: out_pad is above -kernel


def _full(like: A, shape: tuple[int, ...], value: float) -> A:
    return like.new_full(shape, value) if isinstance(like, torch.Tensor) else np.full(shape, value, like.dtype)
