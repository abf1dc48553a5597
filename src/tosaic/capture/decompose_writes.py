"""Decompositions of writes whose places may meet, and of reads by a mask: into comparisons of places with indices.

SCATTER forbids that two writes meet. What is written to each place is found instead by comparing all places with all indices, which
constant indices leave as a constant mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_LARGEST_MASK = 1 << 24  # elements of a comparison of all places with all indices


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Sums at indices: the product of a matrix of ones, where place and index are the same, with what is added."""
    dim = dim % max(x.ndim, 1)
    if x.ndim == 0 or x.shape[dim] * index.numel() > _LARGEST_MASK:
        return NotImplemented
    ones = (torch.arange(x.shape[dim]).unsqueeze(1) == index.reshape(1, -1)).to(x.dtype)
    source = (source if alpha == 1 else source * alpha).movedim(dim, 0)
    added = (ones @ source.flatten(1)) if source.ndim > 1 else ones @ source
    return x + added.reshape(x.shape[dim], *source.shape[1:]).movedim(0, dim)


def _put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    return aten.index_put.default(x.reshape(-1), [index.reshape(-1)], source.reshape(-1), accumulate).reshape(x.shape)


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """With accumulate=True, sums at places in the indexed axes laid flat."""
    places = [i for i, index in enumerate(indices) if index is not None]
    tensors = [index for index in indices if index is not None]
    if not accumulate or any(t.dtype is torch.bool for t in tensors) or places != list(range(places[0], places[-1] + 1)):
        return NotImplemented
    first, behind = places[0], x.shape[places[-1] + 1 :]
    sizes = x.shape[first : places[-1] + 1]
    flat = sum(t * math.prod(sizes[i + 1 :]) for i, t in enumerate(tensors))
    assert isinstance(flat, Tensor)
    values = values.expand(*x.shape[:first], *flat.shape, *behind).reshape(*x.shape[:first], -1, *behind)
    return _index_add(x.reshape(*x.shape[:first], -1, *behind), first, flat.reshape(-1), values).reshape(x.shape)


def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """At each place the sum of what is written there; an index of its own for each element."""
    return _scatter_reduce(x, dim, index, source, "sum")


def _scatter_reduce(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """At each place one number for all that is written there; an index that is smaller than `x` along other axes reaches a corner."""
    if x.ndim == 0:
        x, index, source = x.reshape(1), index.reshape(1), source.reshape(1)
        return _scatter_reduce(x, 0, index, source, reduce, include_self=include_self).reshape(())
    dim = dim % x.ndim
    if index.numel() * x.shape[dim] > _LARGEST_MASK:
        return NotImplemented
    corner = x[tuple(slice(0, x.shape[i] if i == dim else d) for i, d in enumerate(index.shape))]
    hit = index.movedim(dim, -1).unsqueeze(-2) == torch.arange(x.shape[dim]).unsqueeze(-1)
    source = source[tuple(slice(0, d) for d in index.shape)].movedim(dim, -1).unsqueeze(-2)
    written = _reduced(corner.movedim(dim, -1), hit, source, reduce, include_self).movedim(-1, dim)
    for axis in reversed(range(x.ndim)):  # what is outside the corner stays
        have, want = written.shape[axis], x.shape[axis]
        if have < want:
            rest = x[tuple(slice(have, want) if i == axis else slice(0, d) for i, d in enumerate(written.shape))]
            written = torch.cat([written, rest], axis)
    return written


def _reduced(own: Tensor, hit: Tensor, source: Tensor, reduce: str, include_self: bool) -> Tensor:
    """One number for each of `own` [.., K] and all of `source` [.., 1, W] where `hit` [.., K, W]."""

    def hits(start: float) -> Tensor:
        return torch.where(hit, source, torch.full((), start, dtype=own.dtype))

    if reduce == "amin":
        return -_reduced(-own, hit, -source, "amax", include_self)
    if reduce == "amax":
        most = hits(-math.inf if own.is_floating_point() else -(2**31)).amax(-1)
        found = torch.maximum(own, most) if include_self else most
    elif reduce == "prod":
        found = hits(1).prod(-1) * own if include_self else hits(1).prod(-1)
    elif reduce == "mean":
        count, total = hit.to(own.dtype).sum(-1), hits(0).sum(-1)
        total, count = (total + own, count + 1) if include_self else (total, count.clamp(min=1))
        found = total / count if own.is_floating_point() else torch.div(total, count, rounding_mode="floor")
    else:
        found = hits(0).sum(-1) + own if include_self else hits(0).sum(-1)
    return found if include_self else torch.where(hit.any(-1), found, own)


def _index_reduce(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    dim = dim % max(x.ndim, 1)
    index = index.reshape([-1 if i == dim else 1 for i in range(source.ndim)]).expand(source.shape)
    return _scatter_reduce(x, dim, index, source, reduce, include_self=include_self)


_NAMES = {"add": "sum", "multiply": "prod"}


def _scatter_with(x: Tensor, dim: int, index: Tensor, source: Tensor, *, reduce: str) -> Tensor:
    return _scatter_reduce(x, dim, index, source, _NAMES[reduce])


def _scatter_number(x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    return _scatter_reduce(x, dim, index, torch.full(index.shape, value, dtype=x.dtype), _NAMES[reduce])


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """The n-th place of the mask takes the n-th element of the source: how many come before is a running sum."""
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    x, mask = x.expand(shape), mask.expand(shape)
    place = (mask.reshape(-1).to(torch.int64).cumsum(0) - 1).clamp(0, source.numel() - 1)
    return torch.where(mask, source.reshape(-1).index_select(0, place).reshape(shape), x)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of a table, and the product of a matrix with them that says which row belongs to which bag."""
    starts = offsets[:-1] if include_last_offset else offsets
    ends = torch.cat([starts[1:], torch.full((1,), indices.shape[0], dtype=offsets.dtype)])
    places = torch.arange(indices.shape[0])
    member = (places >= starts.unsqueeze(1)) & (places < ends.unsqueeze(1))
    if padding_idx >= 0:
        member = member & (indices != padding_idx)
    rows, count = aten.embedding.default(weight, indices), member.sum(1)
    if mode == 2:
        most = torch.where(member.unsqueeze(-1), rows, torch.full((), -math.inf, dtype=rows.dtype)).amax(1)
        bags = torch.where((count > 0).unsqueeze(-1), most, torch.zeros((), dtype=rows.dtype))
    else:
        factor = member.to(rows.dtype)
        if per_sample_weights is not None:
            factor = factor * per_sample_weights
        if mode == 1:
            factor = factor / count.clamp(min=1).unsqueeze(1)
        bags = factor @ rows
    bag = (places >= starts.unsqueeze(1)).sum(0) - 1
    return bags, bag, count, count


WRITES: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    aten.index_add.default: _index_add,
    aten.index_put.default: _index_put,
    aten.index_reduce.default: _index_reduce,
    aten.put.default: _put,
    aten.scatter_add.default: _scatter_add,
    aten.scatter_reduce.two: _scatter_reduce,
    aten.scatter.reduce: _scatter_with,
    aten.scatter.value_reduce: _scatter_number,
    aten.masked_scatter.default: _masked_scatter,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
}
