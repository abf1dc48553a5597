"""Decompositions of products: into as few matrix products as possible, whose batches are not repeated in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """A matrix on one side makes one product of all the other's rows; the default repeats it for each of a batch."""
    if a.dim() == 1:
        return _matmul(a.unsqueeze(0), b).squeeze(-2 if b.dim() > 1 else 0)
    if b.dim() == 1:
        return _matmul(a, b.unsqueeze(1)).squeeze(-1)
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    if a.dim() == b.dim() == 2:
        return aten.mm.default(a, b)
    if b.dim() == 2:
        return aten.mm.default(a.reshape(-1, inner), b).reshape(*a.shape[:-1], columns)
    if a.dim() == 2:
        turned = aten.mm.default(b.transpose(-1, -2).reshape(-1, inner), a.t())
        return turned.reshape(*b.shape[:-2], columns, rows).transpose(-1, -2)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = a.expand(*batch, rows, inner).reshape(-1, rows, inner), b.expand(*batch, inner, columns).reshape(-1, inner, columns)
    return aten.bmm.default(left, right).reshape(*batch, rows, columns)


def _of_integers(a: Tensor, b: Tensor) -> Tensor:
    """TOSA has no product of int32 matrices: the sum of products of elements. Floats have a lowering."""
    return NotImplemented if a.is_floating_point() else (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def _mv(matrix: Tensor, vector: Tensor) -> Tensor:
    return aten.mm.default(matrix, vector.unsqueeze(1)).squeeze(1)


def _sum_of(start: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    """beta start + alpha product; the start last, where a bias is looked for."""
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (start if beta == 1 else start * beta)


def _addmm(start: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _sum_of(start, aten.mm.default(a, b), beta, alpha)


def _addmv(start: Tensor, matrix: Tensor, vector: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _sum_of(start, _mv(matrix, vector), beta, alpha)


def _baddbmm(start: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _sum_of(start, aten.bmm.default(a, b), beta, alpha)


def _addbmm(start: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The sum over the batch is the inner dimension of one product."""
    left, right = a.transpose(0, 1).reshape(a.shape[1], -1), b.reshape(-1, b.shape[2])
    return _sum_of(start, aten.mm.default(left, right), beta, alpha)


def _bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """sum over i, j of a_i weight_oij b_j: one linear layer for all (o, j), and a sum of products."""
    outputs, inner, other = weight.shape
    rows = aten.linear.default(a, weight.transpose(1, 2).reshape(outputs * other, inner))
    result = (rows.reshape(*a.shape[:-1], outputs, other) * b.unsqueeze(-2)).sum(-1)
    return result if bias is None else result + bias


PRODUCTS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    aten.matmul.default: _matmul,
    aten.mm.default: _of_integers,
    aten.bmm.default: _of_integers,
    aten.mv.default: _mv,
    aten.addmm.default: _addmm,
    aten.addmv.default: _addmv,
    aten.baddbmm.default: _baddbmm,
    aten.addbmm.default: _addbmm,
    aten.bilinear.default: _bilinear,
}
