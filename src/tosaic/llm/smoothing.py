"""Smoothing: scale is moved between channels of a layer, so that few steps of a quantized tensor are wasted on few channels.

The function stays the same (Xiao et al. 2022, arXiv:2211.10438): what one operator divides a channel by, the next multiplies it with.
Where the two meet: the weights of a norm and the layers behind it, values and the output projection, `up_proj` and `down_proj`, queries
and keys. H is the hidden size, D the size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tosaic.llm.decoder import End, Layer, RmsNorm

_LEAST = 2.0**-20  # of the largest channel: smaller ones are not enlarged further, since nothing may ever be seen of them
_ROWS = 4096  # of a weight that are looked at together


@dataclass(frozen=True)
class Smoothing:
    """For each place: 1 evens out the channels of the activations, 0 those of the weights that read them."""

    attention: float = 0.5
    ffn: float = 0.5
    values: float = 0.5
    down: float = 0.5
    scores: float = 0.5


@dataclass
class Statistics:
    """What calibration saw in one layer.

    Attributes:
        channels: for each place, the largest magnitude of each channel: inputs of linear layers by the path of the layer (q_proj and
            gate_proj stand for those with the same input), "queries" and "keys" [heads,D] before rotation, of a pair that is rotated the
            larger norm, "values", and "products", what enters `down_proj` before it is rotated.
        powers: for inputs of linear layers, the mean square of each token.
    """

    channels: dict[str, Tensor] = field(default_factory=dict)
    powers: dict[str, list[Tensor]] = field(default_factory=dict)

    def see(self, place: str, x: Tensor, *, powers: bool = False) -> None:
        """Count x, channels last (heads first, tokens second, channels last, if it has heads)."""
        magnitude = x.detach().abs()
        found = magnitude.amax(-2)
        self.channels[place] = torch.maximum(self.channels[place], found) if place in self.channels else found
        if powers:
            self.powers.setdefault(place, []).append(magnitude.square().mean(-1).flatten())

    def signal_to_noise(self, place: str) -> float:
        """Median over tokens of signal to quantization noise in dB, were the input of a linear layer int8 with one static scale."""
        step = 2 * float(self.channels[place].max()) / 255
        power = float(torch.cat(self.powers[place]).median())
        return 10 * math.log10(max(power, 1e-38) / (step**2 / 12)) if step else math.inf


# the linear layers of a layer, by the first of those with the same input
INPUTS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


@contextmanager
def observed(layer: Layer) -> Iterator[Statistics]:
    """While it lasts, what `layer` is called with counts."""
    statistics, attention = Statistics(), layer.self_attn

    def input_of(place: str) -> Any:
        return lambda _, inputs: statistics.see(place, inputs[0][0], powers=True)

    def pairs_of(place: str) -> Any:
        def see(_: nn.Module, __: Any, output: Tensor) -> None:
            # a rotation keeps the norm of a pair
            norms = torch.hypot(*output.detach().chunk(2, -1))
            statistics.see(place, torch.cat((norms, norms), -1))

        return see

    hooks = [layer.get_submodule(place).register_forward_pre_hook(input_of(place)) for place in INPUTS]
    hooks += [attention.q_norm.register_forward_hook(pairs_of("queries")), attention.k_norm.register_forward_hook(pairs_of("keys"))]
    hooks += [attention.v_proj.register_forward_hook(lambda _, __, output: statistics.see("values", output[0]))]
    hooks += [layer.mlp.rotation.register_forward_pre_hook(lambda _, inputs: statistics.see("products", inputs[0][0]))]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def smooth(layer: Layer, statistics: Statistics, smoothing: Smoothing = Smoothing()) -> None:
    """Move scale between the channels of a layer, in place; its function stays.

    Args:
        statistics: of this layer, `observed` in calibration; they are brought to what the layer shows then, but for what is rotated
            as the model runs, of which nothing is known without running it.
    """
    attention, mlp, seen = layer.self_attn, layer.mlp, statistics.channels
    ffn_norm = layer.pre_feedforward_layernorm if layer.post_norms else layer.post_attention_layernorm
    _behind_norm(
        layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], seen, "self_attn.q_proj", smoothing.attention
    )
    _behind_norm(ffn_norm, [mlp.gate_proj, mlp.up_proj], seen, "mlp.gate_proj", smoothing.ffn)
    _smooth_products(layer, seen, smoothing.down)
    _smooth_values(layer, seen, smoothing.values)
    _smooth_scores(layer, seen, smoothing.scores)


@torch.no_grad()
def smooth_end(end: End, largest: Tensor, share: float = 0.5) -> None:
    """Move scale between the last norm and the head, in place; a tied embedding stays as it is.

    Args:
        largest: magnitude of each channel of the head's input in calibration, float [H].
    """
    _behind_norm(end.norm, [end.lm_head], {"lm_head": largest.clone()}, "lm_head", share)


def _smooth_products(layer: Layer, seen: dict[str, Tensor], share: float) -> None:
    """In front of a rotation, which is its own inverse, the weights of `down_proj` are the rotated ones."""
    mlp = layer.mlp
    before = mlp.rotation(mlp.down_proj.weight)
    factors = _factors(seen["products"], _columns([before]), share)
    _divide_rows(mlp.up_proj, factors)
    mlp.down_proj.weight.copy_(mlp.rotation(before * factors))
    seen["products"] /= factors
    if isinstance(mlp.rotation, nn.Identity):
        seen["mlp.down_proj"] /= factors
    else:
        del seen["mlp.down_proj"]


def _smooth_values(layer: Layer, seen: dict[str, Tensor], share: float) -> None:
    """Each channel of a head's values serves the heads of queries that share it."""
    attention = layer.self_attn

    def for_queries(per_value: Tensor) -> Tensor:
        heads = per_value.view(attention.kv_heads, attention.head_dim)
        return heads.repeat_interleave(attention.heads // attention.kv_heads, 0).flatten()

    columns = _columns([attention.o_proj.weight]).view(attention.kv_heads, -1, attention.head_dim).amax(1).flatten()
    factors = _factors(seen["values"], columns, share)
    _divide_rows(attention.v_proj, factors)
    attention.o_proj.weight.mul_(for_queries(factors))
    seen["values"] /= factors
    seen["self_attn.o_proj"] /= for_queries(factors)


def _smooth_scores(layer: Layer, seen: dict[str, Tensor], share: float) -> None:
    """A pair of channels that is rotated has one factor. Norms of queries and keys have one weight for all heads."""
    attention = layer.self_attn
    groups = (attention.kv_heads, attention.heads // attention.kv_heads, attention.head_dim)
    queries, keys = seen["queries"].view(groups).amax(1), seen["keys"]
    normed = isinstance(attention.q_norm, RmsNorm)
    if normed:
        queries, keys = queries.amax(0, keepdim=True), keys.amax(0, keepdim=True)
    factors = _factors(keys, queries, share)
    per_query = factors.expand(attention.kv_heads, -1).repeat_interleave(groups[1], 0)
    if isinstance(attention.q_norm, RmsNorm) and isinstance(attention.k_norm, RmsNorm):
        attention.k_norm.weight.div_(factors[0])
        attention.q_norm.weight.mul_(factors[0])
    else:
        _divide_rows(attention.k_proj, factors.flatten())
        _divide_rows(attention.q_proj, 1 / per_query.flatten())
    seen["keys"] /= factors
    seen["queries"] *= per_query


def _behind_norm(norm: RmsNorm, linears: list[nn.Linear], seen: dict[str, Tensor], place: str, share: float) -> None:
    factors = _factors(seen[place], _columns([linear.weight for linear in linears]), share)
    norm.weight.div_(factors)
    for linear in linears:
        linear.weight.mul_(factors)
    seen[place] /= factors


def _factors(activations: Tensor, weights: Tensor, share: float) -> Tensor:
    """By what channels are divided, and what reads them is multiplied. Their geometric mean is 1."""
    a, w = (x.double().clamp(min=max(float(x.max()) * _LEAST, 1e-30)).log2() for x in (activations, weights))
    exponents = share * a - (1 - share) * w
    return torch.exp2(exponents - exponents.mean()).float()


def _columns(weights: list[Tensor]) -> Tensor:
    """The largest weight of each input channel, relative to the largest of its row, which has a scale of its own."""

    def largest(rows: Tensor) -> Tensor:
        magnitude = rows.abs()
        return (magnitude / magnitude.amax(1, keepdim=True).clamp(min=1e-30)).amax(0)

    # some rows at a time: a head has as many as the vocabulary has tokens
    return torch.stack([largest(rows) for weight in weights for rows in weight.split(_ROWS)]).amax(0)


def _divide_rows(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.div_(factors[:, None])
    if linear.bias is not None:
        linear.bias.div_(factors)
