"""Decompositions of data movement: diagonals, windows, writes with steps, order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def write_with_step(x: Tensor, source: Tensor, dim: int, begin: int, step: int) -> Tensor:
    """`x` with `source` at begin, begin + step, ...: what is between stays beside each but the last."""
    count = source.shape[dim]
    if count == 1:
        return torch.cat([x.narrow(dim, 0, begin), source, x.narrow(dim, begin + 1, x.shape[dim] - begin - 1)], dim)
    last = begin + (count - 1) * step
    groups = x.narrow(dim, begin, last - begin).unflatten(dim, (count - 1, step))
    mixed = torch.cat([source.narrow(dim, 0, count - 1).unsqueeze(dim + 1), groups.narrow(dim + 1, 1, step - 1)], dim + 1)
    parts = [
        x.narrow(dim, 0, begin),
        mixed.flatten(dim, dim + 1),
        source.narrow(dim, count - 1, 1),
        x.narrow(dim, last + 1, x.shape[dim] - last - 1),
    ]
    return torch.cat([p for p in parts if p.shape[dim]], dim)


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Of axes laid flat, each (columns + 1)-th element."""
    dim1, dim2 = dim1 % x.ndim, dim2 % x.ndim
    x = x.permute(*(i for i in range(x.ndim) if i not in (dim1, dim2)), dim1, dim2)
    rows, columns = x.shape[-2:]
    count = min(rows + min(offset, 0), columns - max(offset, 0))
    if count <= 0:
        return x.new_zeros((*x.shape[:-2], 0))
    start = max(offset, 0) - min(offset, 0) * columns
    return x.flatten(-2)[..., start : start + (count - 1) * (columns + 1) + 1 : columns + 1]


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Where the diagonal is, the source; it may be shorter than the other of two sizes."""
    side = source.shape[-1] + abs(offset)
    border = [0, x.shape[dim2] - side, 0, x.shape[dim1] - side]

    def square(values: Tensor) -> Tensor:
        return torch.constant_pad_nd(torch.diag_embed(values, offset), border).movedim((-2, -1), (dim1, dim2))

    return torch.where(square(torch.ones(source.shape)) > 0, square(source), x)


def _as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Tensor:
    """Where memory is in order, elements of the tensor laid flat; a plain view is a reshape."""
    if not x.is_contiguous():
        return NotImplemented
    offset = offset or 0
    if offset == 0 and math.prod(size) == x.numel() and list(stride) == _strides(size):
        return x.reshape(size)
    index = torch.zeros(1, dtype=torch.int64) + offset
    for axis, (length, step) in enumerate(zip(size, stride, strict=True)):
        index = index + (torch.arange(length) * step).reshape([-1 if i == axis else 1 for i in range(len(size))])
    return x.reshape(-1).index_select(0, index.reshape(-1)).reshape(size)


def _strides(size: Sequence[int]) -> list[int]:
    return [math.prod(size[i + 1 :]) for i in range(len(size))]


def _im2col(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Windows of the padded image, `kernel` beside channels, places flat."""
    batched = x.ndim == 4
    x = x if batched else x.unsqueeze(0)
    if any(padding):
        x = torch.constant_pad_nd(x, [padding[1], padding[1], padding[0], padding[0]])
    for axis, (k, d, s) in enumerate(zip(kernel, dilation, stride, strict=True)):
        x = x.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
    n, c, h, w, kh, kw = x.shape
    x = x.permute(0, 1, 4, 5, 2, 3).reshape(n, c * kh * kw, h * w)
    return x if batched else x.squeeze(0)


def _col2im(
    x: Tensor, size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Windows that do not overlap go side by side; else the places of each kernel element are spread by the stride, and summed."""
    batched = x.ndim == 3
    x = x if batched else x.unsqueeze(0)
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = kernel, dilation, padding, stride
    height, width = size[0] + 2 * ph, size[1] + 2 * pw
    h, w = (height - (kh - 1) * dh - 1) // sh + 1, (width - (kw - 1) * dw - 1) // sw + 1
    x = x.reshape(x.shape[0], -1, kh, kw, h, w)
    if (kh, kw) == (sh, sw) and (dh, dw) == (1, 1):
        image = torch.constant_pad_nd(x.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3), [0, width - w * kw, 0, height - h * kh])
    else:
        image = _overlapping(x, (height, width), (dh, dw), (sh, sw))
    image = image[..., ph : height - ph, pw : width - pw]
    return image if batched else image.squeeze(0)


def _overlapping(x: Tensor, size: tuple[int, int], dilation: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    n, c, kh, kw, h, w = x.shape
    (height, width), (dh, dw), (sh, sw) = size, dilation, stride
    total = None
    for i in range(kh):
        for j in range(kw):
            part = x[:, :, i, j]
            if (sh, sw) != (1, 1):
                spread = torch.constant_pad_nd(part.reshape(n, c, h, 1, w, 1), [0, sw - 1, 0, 0, 0, sh - 1])
                part = spread.reshape(n, c, h * sh, w * sw)[..., : (h - 1) * sh + 1, : (w - 1) * sw + 1]
            top, left = i * dh, j * dw
            part = torch.constant_pad_nd(part, [left, width - left - part.shape[3], top, height - top - part.shape[2]])
            total = part if total is None else total + part
    assert total is not None
    return total


def _take_along(x: Tensor, index: Tensor, dim: int | None = None) -> Tensor:
    """Indices are not negative here; the default wraps them."""
    if dim is None:
        return x.reshape(-1).gather(0, index.reshape(-1))
    dim = dim % x.ndim
    shape = torch.broadcast_shapes(*(part.shape[:dim] + part.shape[dim + 1 :] for part in (x, index)))
    x, index = (part.expand(*shape[:dim], part.shape[dim], *shape[dim:]) for part in (x, index))
    return x.gather(dim, index)


def _kth(x: Tensor, k: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        return x.clone(), torch.zeros((), dtype=torch.int64)
    values, indices = (part.narrow(dim, k - 1, 1) for part in torch.sort(x, dim))
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _kth(x, k, dim, keepdim)


def _median_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower one of two."""
    return _kth(x, (x.shape[dim] + 1) // 2 if x.ndim else 1, dim, keepdim)


def _median(x: Tensor) -> Tensor:
    return _median_dim(x.reshape(-1), 0)[0]


def _bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """How many boundaries are below (not above, if `right`)."""
    x = x.unsqueeze(-1)
    return (x >= boundaries if right else x > boundaries).sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _searchsorted(
    boundaries: Tensor, x: Tensor, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Tensor | None = None
) -> Tensor:
    if sorter is not None:
        return NotImplemented
    right = right or side == "right"
    if boundaries.ndim == 1:
        return _bucketize(x, boundaries, out_int32=out_int32, right=right)
    return _bucketize(x, boundaries.unsqueeze(-2), out_int32=out_int32, right=right)


MOVEMENT: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    aten.diagonal.default: _diagonal,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.as_strided.default: _as_strided,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
    aten.take_along_dim.default: _take_along,
    aten.kthvalue.default: _kthvalue,
    aten.median.default: _median,
    aten.median.dim: _median_dim,
    aten.bucketize.Tensor: _bucketize,
    aten.searchsorted.Tensor: _searchsorted,
}
