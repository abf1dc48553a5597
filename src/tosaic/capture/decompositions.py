"""Decompositions of our own, beside those to Core ATen: into operators that have lowerings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tosaic.capture.decompose_arithmetic import ARITHMETIC
from tosaic.capture.decompose_distances import DISTANCES
from tosaic.capture.decompose_movement import MOVEMENT, write_with_step
from tosaic.capture.decompose_products import PRODUCTS
from tosaic.capture.decompose_writes import WRITES

aten = torch.ops.aten


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`x[...] = source`, of which the functional form keeps the new values only."""
    return source.to(x.dtype).expand(x.shape)


def _slice_scatter(x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """A write to a slice: what is before it, the new values, and what is behind."""
    size = x.shape[dim]
    begin, stop, step = slice(start, end, step).indices(size)
    if stop <= begin:
        return x.clone()
    if step != 1:
        return write_with_step(x, source, dim % x.ndim, begin, step)
    parts = [aten.slice.Tensor(x, dim, 0, begin), source, aten.slice.Tensor(x, dim, stop, size)]
    return torch.cat([p for p in parts if p.shape[dim]], dim)


def _select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """A write to one index; the default makes a comparison with every index of it."""
    at = index % x.shape[dim]
    return _slice_scatter(x, source.unsqueeze(dim), dim, at, at + 1)


def _rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: object = None) -> Tensor:
    """In evaluation the slope is the middle one."""
    return NotImplemented if training else aten.leaky_relu.default(x, (lower + upper) / 2)


def _empty(size: list[int], *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    """What a model fills later (circular padding does); what memory holds must not reach an observer."""
    return torch.zeros(size, dtype=dtype)


def _full_like(x: Tensor, value: float, *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    """A constant, of the shape of `x`."""
    return torch.full(x.shape, value, dtype=dtype or x.dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention. Query heads that share a key head become rows of one product: nothing is repeated."""
    rows, columns = query.shape[-2], key.shape[-2]
    batch, shared = query.shape[:-2], query.shape[:-3]
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    if grouped:
        query = query.reshape(*shared, key.shape[-3], -1, query.shape[-1])
    scores = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(rows, columns, dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.reshape(*batch, rows, columns) if grouped else scores
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype is torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    if grouped:
        weights = weights.reshape(*key.shape[:-2], -1, columns)
    return (weights @ value).reshape(*batch, rows, value.shape[-1])


def _max(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The extreme keeps the precision of `x`; which of nearly equal elements it is, activation precision decides."""
    return aten.amax.default(x, [dim], keepdim), aten.argmax.default(x, dim, keepdim)


def _min(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Like `_max`."""
    return aten.amin.default(x, [dim], keepdim), aten.argmin.default(x, dim, keepdim)


def _var_mean(x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Each of the two by itself: they share little, and each is a unit of quantization."""
    dims = dim or list(range(x.dim()))
    return aten.var.correction(x, dim, correction=correction, keepdim=keepdim), aten.mean.dim(x, dims, keepdim)


def _std_mean(x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Like `_var_mean`; the default takes the root of the variance."""
    dims = dim or list(range(x.dim()))
    return aten.std.correction(x, dim, correction=correction, keepdim=keepdim), aten.mean.dim(x, dims, keepdim)


DECOMPOSITIONS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    **PRODUCTS,
    **MOVEMENT,
    **WRITES,
    **DISTANCES,
    **ARITHMETIC,
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.empty.memory_format: _empty,
    aten.full_like.default: _full_like,
    aten.max.dim: _max,
    aten.min.dim: _min,
    aten.var_mean.correction: _var_mean,
    aten.std_mean.correction: _std_mean,
    aten.rrelu.default: _rrelu,
    aten.scaled_dot_product_attention.default: _attention,
}
