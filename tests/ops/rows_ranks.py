"""Rows: tensors of seven axes inside a model, one more than TOSA's levels take."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ops.rows import Row, function
from torch import Tensor

aten = torch.ops.aten
SHAPE = (2, 2, 1, 3, 2, 2, 3)


def row(name: str, op: torch._ops.OpOverload, run: Callable[[Tensor], Tensor], **options: object) -> Row:
    """A function of a tensor of seven axes."""
    return function(f"rank_7_{name}", op, lambda a: run(a.reshape(SHAPE)).reshape(4, -1), (4, 36), **options)


RANKS = (
    row("add", aten.add.Tensor, lambda a: a + 0.5 * a.flip(0)),
    row("broadcast", aten.mul.Tensor, lambda a: a * torch.arange(1.0, 4.0).reshape(3, 1, 1, 1)),
    row("broadcast_both", aten.mul.Tensor, lambda a: a[:, :, :, :1] * a[..., :1]),
    row("where", aten.where.self, lambda a: torch.where(a > 0, a, -0.5 * a), equal_at_16=0.85),  # halves are ties
    row("gelu", aten.gelu.default, F.gelu, span=(-4.0, 4.0)),
    row("mean", aten.mean.dim, lambda a: a.mean((2, 3))),
    row("mean_apart", aten.mean.dim, lambda a: a.mean((1, -1), keepdim=True)),
    row("amax", aten.amax.default, lambda a: a.amax(-1)),
    row("softmax", aten._softmax.default, lambda a: a.softmax(3), span=(-4.0, 4.0)),
    row("layer_norm", aten.layer_norm.default, lambda a: F.layer_norm(a, (2, 3))),
    row("cat", aten.cat.default, lambda a: torch.cat((a, a[:, :, :, 1:]), 3)),
    row("cumsum", aten.cumsum.default, lambda a: a.cumsum(-1)),
)
