"""Decompositions of distances, norms and running reductions: into operators that are computed as one unit each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_MOST_DIFFERENCES = 1 << 20  # elements of all pairwise differences, before distances come from a product instead


def _vector_norm(
    x: Tensor, order: float = 2, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Orders that have no lowering of their own: (sum |x|^p)^(1/p); order 0 counts."""
    if order in (1, 2, math.inf, -math.inf):
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    dims = list(range(x.ndim)) if dims is None else dims
    if order == 0:
        return (x != 0).to(x.dtype).sum(dims, keepdim)
    return x.abs().pow(order).sum(dims, keepdim).pow(1 / order)


def _cdist(a: Tensor, b: Tensor, p: float = 2, compute_mode: int | None = None) -> Tensor:
    """Distances of all rows of `a` [.., P, M] to all of `b` [.., R, M]: norms of the differences; where these are many and the
    norm is Euclidean, |a|^2 + |b|^2 - 2 a b. The default makes one product of both, in which 8 bits would hold squares beside numbers.
    """
    pairs = math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])) * a.shape[-2] * b.shape[-2]
    if p != 2 or pairs * a.shape[-1] <= _MOST_DIFFERENCES:
        return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)
    squares = (a * a).sum(-1).unsqueeze(-1) + (b * b).sum(-1).unsqueeze(-2)
    return (squares - 2 * (a @ b.transpose(-1, -2))).clamp(min=0).sqrt()


def _pdist(x: Tensor, p: float = 2) -> Tensor:
    """Distances of each row to those behind it."""
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1)
    return torch.linalg.vector_norm(x.index_select(0, first) - x.index_select(0, second), p, -1)


def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """For each element logsumexp of those up to it; relative to one maximum for all, early ones could vanish."""
    if x.ndim == 0:
        return x.clone()
    rows = x.movedim(dim, -1).unsqueeze(-2)
    until = torch.ones(rows.shape[-1], rows.shape[-1], dtype=torch.bool).tril()
    return torch.where(until, rows, torch.full((), -math.inf, dtype=x.dtype)).logsumexp(-1).movedim(-1, dim)


def _quantile(x: Tensor, q: float, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear") -> Tensor:
    """Between two of the sorted elements, which a number `q` names; the default looks for NaN first, and computes where to look."""
    whole = dim is None
    rows, dim = (x.reshape(-1), 0) if dim is None else (x, dim % max(x.ndim, 1))
    ordered, rank = torch.sort(rows, dim)[0], q * (rows.shape[dim] - 1)
    low, part = math.floor(rank), rank - math.floor(rank)
    part = {"linear": part, "lower": 0.0, "higher": float(part > 0), "midpoint": 0.5 * (part > 0), "nearest": round(rank) - low}[
        interpolation
    ]
    found = ordered.narrow(dim, low, 1)
    if part:
        found = found + (ordered.narrow(dim, low + 1, 1) - found) * part
    if whole:
        return found.reshape([1] * x.ndim if keepdim else [])
    return found if keepdim else found.squeeze(dim)


DISTANCES: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    aten.linalg_vector_norm.default: _vector_norm,
    aten.cdist.default: _cdist,
    aten._cdist_forward.default: _cdist,
    aten._euclidean_dist.default: _cdist,
    aten._pdist_forward.default: _pdist,
    aten.logcumsumexp.default: _logcumsumexp,
    aten.quantile.scalar: _quantile,
}
