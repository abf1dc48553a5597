"""Operators of our own that capture puts into a graph for the later stages."""

from __future__ import annotations

import torch
from torch import Tensor

from tosaic import digits

_library = torch.library.Library("tosaic", "FRAGMENT")
_library.define("exp_below_max(Tensor self, int dim) -> Tensor")
_library.define("per_token_linear(Tensor self, Tensor weight, Tensor? bias, float unit, int bits=8) -> Tensor")
_library.define("dropout_marker(Tensor self, float p, int kind) -> Tensor")


@torch.library.impl(_library, "exp_below_max", "CompositeImplicitAutograd")
def _exp_below_max(x: Tensor, dim: int) -> Tensor:
    return torch.exp(x - x.amax(dim, keepdim=True))


@torch.library.impl(_library, "per_token_linear", "CompositeImplicitAutograd")
def _per_token_linear(x: Tensor, weight: Tensor, bias: Tensor | None, unit: float, bits: int = 8) -> Tensor:
    if unit:
        # the largest of a row is in [2^(e-1), 2^e) units: it takes 64 to 128 steps, or in two digits 16256 to 32512
        least, most, steps = (-128, 127, 128) if bits == 8 else (digits.LEAST, digits.MOST, digits.MOST)
        largest = x.abs().amax(-1, keepdim=True)
        step = torch.ldexp(torch.full_like(largest, unit / steps), torch.frexp(largest / unit).exponent)
        rounded = torch.clamp(torch.round(x / step), least, most) * step
        x = x + (rounded - x).detach()
    return torch.nn.functional.linear(x, weight, bias)


@torch.library.impl(_library, "dropout_marker", "CompositeExplicitAutograd")
def _dropout_marker(x: Tensor, p: float, kind: int) -> Tensor:
    return x.clone()


# exp(x - max(x)) along an axis: a softmax before its division, in (0, 1]
exp_below_max = torch.ops.tosaic.exp_below_max.default
# a linear layer whose input is int8 (or 16 bits, in two digits), each row of it over its own range: unit 2^k steps; unit 0: not quantized
per_token_linear = torch.ops.tosaic.per_token_linear.default
# stands for a dropout while the model is exported for evaluation, where dropouts vanish
dropout_marker = torch.ops.tosaic.dropout_marker.default
# of a product along an axis that is one operator of a quantized program; more are multiplied in pairs
MOST_FACTORS = 8
