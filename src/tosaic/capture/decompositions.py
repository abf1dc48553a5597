"""Decompositions of our own, beside those to Core ATen: into operators that have lowerings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`x[...] = source`, of which the functional form keeps the new values only."""
    return source.to(x.dtype).expand(x.shape)


def _slice_scatter(x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """A write to a slice: what is before it, the new values, and what is behind."""
    size = x.shape[dim]
    begin, stop, step = slice(start, end, step).indices(size)
    if step != 1:
        return NotImplemented
    if stop <= begin:
        return x.clone()
    parts = [aten.slice.Tensor(x, dim, 0, begin), source, aten.slice.Tensor(x, dim, stop, size)]
    return torch.cat([p for p in parts if p.shape[dim]], dim)


def _select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """A write to one index; the default makes a comparison with every index of it."""
    at = index % x.shape[dim]
    return _slice_scatter(x, source.unsqueeze(dim), dim, at, at + 1)


def _power(x: Tensor, exponent: float) -> Tensor:
    """A small whole power is a product."""
    if exponent == 1:
        return x.clone()
    if exponent not in (2, 3, 4):
        return NotImplemented
    square = x * x
    return square if exponent == 2 else square * (x if exponent == 3 else square)


def _empty(size: list[int], *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    """What a model fills later (circular padding does); what memory holds must not reach an observer."""
    return torch.zeros(size, dtype=dtype)


def _lerp(x: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """A blend; the default's case distinction is about the last bits."""
    return x + (end - x) * weight


def _full_like(x: Tensor, value: float, *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    """A constant, of the shape of `x`."""
    return torch.full(x.shape, value, dtype=dtype or x.dtype)


DECOMPOSITIONS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.empty.memory_format: _empty,
    aten.full_like.default: _full_like,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.pow.Tensor_Scalar: _power,
}
