"""Rows: softmax and its relatives, normalisations, variances, vector norms, divisions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ops.rows import Row, function, layer
from torch import Tensor, nn

import tosaic.operators

aten = torch.ops.aten
SOFTMAX, LOG_SOFTMAX, LSE, DIV = aten._softmax.default, aten._log_softmax.default, aten.logsumexp.default, aten.div.Tensor
LAYER, GROUP, INSTANCE, RMS = aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default, aten.rms_norm.default
COSINE = aten.cosine_similarity.default
VAR, STD, NORM = aten.var.correction, aten.std.correction, aten.linalg_vector_norm.default
PICTURE = (2, 4, 5, 6)
WIDE = (-8.0, 8.0)


class Scaled(nn.Module):
    """A normalisation whose weight is negative or zero in some channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.normal_()
            norm.weight.view(-1)[:2] = torch.tensor([0.0, -1.0])  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class BehindConv(nn.Module):
    """A function of a convolution's output, stored channels last, between arithmetic: int32 in and out."""

    def __init__(self, run: object) -> None:
        super().__init__()
        self.conv, self.last, self.run = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1), run

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(self.run(y + 0.5) + y)  # type: ignore[operator]


def exp_below_max(x: Tensor, dim: int = -1) -> Tensor:
    return tosaic.operators.exp_below_max(x, dim)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The division behind the product, written out."""
    e = exp_below_max(q @ k.transpose(-1, -2))
    return (e @ v) / e.sum(-1, keepdim=True)


def scaled(name: str, op: torch._ops.OpOverload, make: object, *shapes: tuple[int, ...], **options: object) -> Row:
    return layer(name, op, lambda: Scaled(make()), *shapes, **options)  # type: ignore[operator]


def behind_conv(name: str, op: torch._ops.OpOverload, run: object) -> Row:
    return layer(name, op, lambda: BehindConv(run), PICTURE, lsb_at_16=4)


_LONG = (("8a8w", 12.0), ("16a8w", 50.0))  # 1500 probabilities share few steps of 1/256 or 1/32767

SOFTMAXES = (
    function("softmax_wide_span", SOFTMAX, lambda a: F.softmax(a, -1), (3, 40), span=WIDE),
    function("softmax_one", SOFTMAX, lambda a: F.softmax(a, 1), (3, 1)),
    function("softmax_long_dominant", SOFTMAX, lambda a: F.softmax(a, -1), (2, 1500), span=(-2.0, 30.0), decibels=_LONG),
    function("softmax_coarse", SOFTMAX, lambda a: F.softmax(a, -1), (4, 20), span=(-3000.0, 2000.0)),
    behind_conv("softmax_behind_conv", SOFTMAX, lambda a: F.softmax(a, 1)),
    function("log_softmax", LOG_SOFTMAX, lambda a: F.log_softmax(a, -1), (3, 40), span=WIDE),
    function("log_softmax_channels", LOG_SOFTMAX, lambda a: F.log_softmax(a, 1), PICTURE),
    function("log_softmax_long", LOG_SOFTMAX, lambda a: F.log_softmax(a, -1), (2, 1500)),
    behind_conv("log_softmax_behind_conv", LOG_SOFTMAX, lambda a: F.log_softmax(a, 1)),
    function("logsumexp", LSE, lambda a: torch.logsumexp(a, -1), (3, 40), span=WIDE),
    function("logsumexp_image", LSE, lambda a: torch.logsumexp(a, (-1, -2), keepdim=True), PICTURE, span=WIDE),
    behind_conv("logsumexp_behind_conv", LSE, lambda a: torch.logsumexp(a, 1, keepdim=True)),
    function("exp_below_max", tosaic.operators.exp_below_max, exp_below_max, (3, 40), span=WIDE),
    function("exp_below_max_channels", tosaic.operators.exp_below_max, lambda a: exp_below_max(a, 1), PICTURE),
)

NORMS = (
    layer("layer_norm", LAYER, lambda: nn.LayerNorm(6), PICTURE),
    layer("layer_norm_plain", LAYER, lambda: nn.LayerNorm(40, elementwise_affine=False), (3, 40)),
    scaled("layer_norm_scaled", LAYER, lambda: nn.LayerNorm(40), (3, 40)),
    scaled("layer_norm_no_bias", LAYER, lambda: nn.LayerNorm(12, bias=False), (3, 5, 12)),
    scaled("layer_norm_image", LAYER, lambda: nn.LayerNorm([4, 5, 6]), PICTURE),
    layer("layer_norm_one", LAYER, lambda: Scaled(nn.LayerNorm([2, 1])), (3, 2, 1)),
    scaled("layer_norm_large_eps", LAYER, lambda: nn.LayerNorm(40, eps=10.0), (3, 40)),
    scaled("layer_norm_no_eps", LAYER, lambda: nn.LayerNorm(40, eps=0.0), (3, 40)),
    scaled("layer_norm_small", LAYER, lambda: nn.LayerNorm(40), (3, 40), span=(-1e-3, 2e-3)),
    scaled("layer_norm_long", LAYER, lambda: nn.LayerNorm(1200), (2, 1200)),
    behind_conv("layer_norm_behind_conv", LAYER, lambda a: F.layer_norm(a, a.shape[1:])),
    layer("group_norm", GROUP, lambda: nn.GroupNorm(2, 4), PICTURE),
    scaled("group_norm_scaled", GROUP, lambda: nn.GroupNorm(2, 6), (2, 6, 3, 5)),
    scaled("group_norm_all", GROUP, lambda: nn.GroupNorm(1, 4), PICTURE),
    layer("group_norm_each", GROUP, lambda: nn.GroupNorm(4, 4), (2, 4, 9)),
    scaled("group_norm_volume", GROUP, lambda: nn.GroupNorm(2, 4), (1, 4, 2, 3, 4)),
    behind_conv("group_norm_behind_conv", GROUP, lambda a: F.group_norm(a, 2)),
    layer("instance_norm", INSTANCE, lambda: nn.InstanceNorm2d(4), PICTURE),
    scaled("instance_norm_scaled", INSTANCE, lambda: nn.InstanceNorm2d(4, affine=True), PICTURE),
    layer("instance_norm_1d", INSTANCE, lambda: nn.InstanceNorm1d(4), (2, 4, 30)),
    layer("instance_norm_statistics", INSTANCE, lambda: nn.InstanceNorm2d(4, track_running_stats=True), PICTURE),
    behind_conv("instance_norm_behind_conv", INSTANCE, F.instance_norm),
    layer("rms_norm", RMS, lambda: nn.RMSNorm(40), (3, 40)),
    scaled("rms_norm_scaled", RMS, lambda: nn.RMSNorm(40, eps=1e-5), (3, 40)),
    scaled("rms_norm_image", RMS, lambda: nn.RMSNorm([5, 6]), PICTURE),
    behind_conv("rms_norm_behind_conv", RMS, lambda a: F.rms_norm(a, a.shape[-1:])),
)

MOMENTS = (
    function("var", VAR, lambda a: a.var(-1), (4, 30)),
    function("var_image", VAR, lambda a: a.var((2, 3), unbiased=False, keepdim=True), PICTURE),
    function("var_all", VAR, lambda a: a.var(), (4, 30)),
    function("std", STD, lambda a: a.std(-1), (4, 30)),
    function("std_channels", STD, lambda a: a.std(1, keepdim=True), PICTURE),
    function("var_mean", VAR, lambda a: torch.var_mean(a, -1), (4, 30)),
    function("std_mean", STD, lambda a: torch.std_mean(a, -1, correction=0), (4, 30)),
    function("norm", NORM, lambda a: a.norm(dim=-1), (4, 30)),
    function("norm_all", NORM, torch.norm, PICTURE),
    function("norm_1", NORM, lambda a: a.norm(p=1, dim=1), PICTURE),
    function("norm_largest", NORM, lambda a: torch.linalg.vector_norm(a, float("inf"), -1), (4, 30)),
    function("norm_smallest", NORM, lambda a: torch.linalg.vector_norm(a, -float("inf"), -1), (4, 30), span=(1.0, 3.0)),
    behind_conv("std_behind_conv", STD, lambda a: a.std(1, keepdim=True)),
    behind_conv("norm_behind_conv", NORM, lambda a: a.norm(dim=1, keepdim=True)),
)

_HEADS = ((2, 3, 9, 8), (2, 3, 12, 8), (2, 3, 12, 8))

DIVISIONS = (
    function("div_negative", DIV, lambda a, b: a / (b - 3.5), PICTURE, PICTURE),
    function("div_broadcast", DIV, torch.div, (2, 3, 5), (3, 1), span=(0.5, 2.0)),
    function("div_of_number", DIV, lambda a: torch.div(torch.tensor(2.5), a + 3.0), PICTURE),
    function("div_by_sum", DIV, lambda a: a / a.sum(1, keepdim=True), PICTURE, span=(0.1, 2.0)),
    behind_conv("div_behind_conv", DIV, lambda a: a / (a.abs() + 1.0)),
    function("normalize", DIV, lambda a: F.normalize(a, dim=1), PICTURE),
    function("normalize_1", DIV, lambda a: F.normalize(a, p=1, dim=-1), (4, 30)),
    function("cosine_similarity", COSINE, lambda a, b: F.cosine_similarity(a, b, dim=-1), (40, 30), (40, 30)),
    function("cosine_similarity_channels", COSINE, lambda a, b: F.cosine_similarity(a, b), PICTURE, (1, 4, 1, 1)),
    function("cosine_similarity_eps", COSINE, lambda a, b: F.cosine_similarity(a, b, -1, 2.0), (40, 5), (40, 5), span=(-2.0, 2.0)),
    function("standardize", DIV, lambda a: (a - a.mean(-1, keepdim=True)) / (a.std(-1, keepdim=True) + 1e-3), (4, 30)),
    function("attention_written_out", DIV, attention, *_HEADS, lsb_at_16=6, equal_at_16=0.3),
    function("attention_of_module", DIV, F.scaled_dot_product_attention, *_HEADS, lsb_at_16=6, equal_at_16=0.3),
)
