"""Operators of our own that capture puts into a graph for the later stages."""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("tosaic", "FRAGMENT")
_library.define("exp_below_max(Tensor self, int dim) -> Tensor")
_library.define("dropout_marker(Tensor self, float p, int kind) -> Tensor")


@torch.library.impl(_library, "exp_below_max", "CompositeImplicitAutograd")
def _exp_below_max(x: Tensor, dim: int) -> Tensor:
    return torch.exp(x - x.amax(dim, keepdim=True))


@torch.library.impl(_library, "dropout_marker", "CompositeExplicitAutograd")
def _dropout_marker(x: Tensor, p: float, kind: int) -> Tensor:
    return x.clone()


# exp(x - max(x)) along an axis: a softmax before its division, in (0, 1]
exp_below_max = torch.ops.tosaic.exp_below_max.default
# stands for a dropout while the model is exported for evaluation, where dropouts vanish
dropout_marker = torch.ops.tosaic.dropout_marker.default
