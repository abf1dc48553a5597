"""Spelled-out normalisations, activations and attention become the operators that are one unit of quantization."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tosaic.lower  # noqa: F401  registers the lowerings
from tosaic.capture.export import capture
from tosaic.lower.registry import LOWERINGS
from tosaic.operators import exp_below_max

aten = torch.ops.aten
SIZE = 8


class Spelled(nn.Module):
    """A function of (x, weight, bias)."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.rand(SIZE) + 0.5), nn.Parameter(torch.rand(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))


WHOLE: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], list[torch._ops.OpOverload]]] = {
    "rms_norm": (lambda x, w, b: w * (x * torch.rsqrt(mean_square(x) + 1e-6)), [aten.rms_norm.default]),
    "rms_norm_by_root": (lambda x, w, b: x / torch.sqrt(mean_square(x) + 1e-6) * w, [aten.rms_norm.default]),
    "rms_norm_plain": (lambda x, w, b: x * torch.rsqrt(mean_square(x) + 1e-6), [aten.rms_norm.default]),
    "rms_norm_one_plus_weight": (
        lambda x, w, b: x * torch.rsqrt((x * x).mean(-1, True) + 1e-6) * (1 + w),
        [aten.add.Tensor, aten.rms_norm.default],
    ),
    "layer_norm": (lambda x, w, b: centred(x) / torch.sqrt(mean_square(centred(x)) + 1e-5) * w + b, [aten.layer_norm.default]),
    "layer_norm_of_var": (
        lambda x, w, b: w * centred(x) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5) + b,
        [aten.layer_norm.default],
    ),
    "gelu": (lambda x, w, b: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), [aten.gelu.default]),
    "gelu_tanh": (lambda x, w, b: 0.5 * x * (1.0 + torch.tanh(cubic(x))), [aten.gelu.default]),
    "gelu_tanh_factored": (
        lambda x, w, b: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
        [aten.gelu.default],
    ),
    "silu": (lambda x, w, b: x * torch.sigmoid(x), [aten.silu.default]),
    "quick_gelu": (lambda x, w, b: x * torch.sigmoid(1.702 * x), [aten.mul.Tensor, aten.silu.default, aten.mul.Tensor]),
}

# alike, but not the same function
OTHER: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "another_axis": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "another_value": lambda x, w, b: (x + 1) * torch.rsqrt(mean_square(x) + 1e-6),
    "unbiased": lambda x, w, b: centred(x) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5),
    "another_number": lambda x, w, b: x * 0.5 * (1.0 + torch.erf(x / 1.3)),
    "doubled": lambda x, w, b: x * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "another_gate": lambda x, w, b: x * torch.sigmoid(x + 1),
}


def operators(model: nn.Module, *inputs: Tensor) -> tuple[list[torch._ops.OpOverload], torch.fx.GraphModule]:
    captured = capture(model.eval(), inputs, keep=LOWERINGS)
    return [n.target for n in captured.module.graph.nodes if n.op == "call_function"], captured.module


@pytest.mark.parametrize("name", WHOLE)
def test_put_together(name: str) -> None:
    torch.manual_seed(0)
    function, expected = WHOLE[name]
    model, x = Spelled(function), torch.randn(2, 3, SIZE)
    found, module = operators(model, x)
    assert found == expected
    torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHER)
def test_left_alone(name: str) -> None:
    torch.manual_seed(0)
    model, x = Spelled(OTHER[name]), torch.randn(2, 3, SIZE)
    found, module = operators(model, x)
    assert not {aten.rms_norm.default, aten.layer_norm.default, aten.gelu.default, aten.silu.default} & set(found)
    torch.testing.assert_close(module(x), model(x))


class Attention(nn.Module):
    """Attention in the forms that models write it in."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.form == "eager":
            return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1) @ v
        if self.form == "dropout":
            return F.dropout(torch.softmax(q @ k.transpose(-2, -1), -1), 0.1, self.training) @ v
        if self.form == "masked":
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(1)
            return F.scaled_dot_product_attention(q, k, v, mask)
        if self.form == "added":
            mask = torch.zeros(q.shape[-2], k.shape[-2]).masked_fill(torch.ones(q.shape[-2], k.shape[-2]).triu(2) > 0, -math.inf)
            return F.scaled_dot_product_attention(q, k, v, mask, scale=0.3)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.form == "causal", enable_gqa=grouped)


FORMS = [(form, 4) for form in ("eager", "dropout", "plain", "causal", "masked", "added")]


# with two heads of keys, four of queries share them in pairs
@pytest.mark.parametrize(("form", "heads"), [*FORMS, ("plain", 2), ("causal", 2)])
def test_attention_divides_after_the_product(form: str, heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, heads, 7, 6), torch.randn(2, heads, 7, 3)
    model = Attention(form)
    found, module = operators(model, q, k, v)
    assert exp_below_max in found and aten.div.Tensor in found
    assert not any("softmax" in str(target) for target in found)
    assert aten.expand.default not in found  # heads that share a key are rows of one product
    torch.testing.assert_close(module(q, k, v), model(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mean",
    [
        lambda p, v: p @ v,
        lambda p, v: torch.einsum("bkn,nc->bkc", p, v),
        lambda p, v: torch.bmm(v.t().expand(2, 3, 7), p.permute(0, 2, 1)),
        lambda p, v: torch.bmm(v.t().expand(2, 3, 7), p.transpose(2, 1)),
    ],
    ids=["product", "einsum", "on the right", "transposed"],
)
@pytest.mark.parametrize("constant", [True, False])
def test_means_by_softmax_divide_behind_the_product(mean: Callable[[Tensor, Tensor], Tensor], constant: bool) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.randn(7, 3))

        def forward(self, scores: Tensor, v: Tensor) -> Tensor:
            return mean(torch.softmax(scores, -1), self.places if constant else v)

    model, inputs = Mean(), (torch.randn(2, 4, 7), torch.randn(7, 3))
    found, module = operators(model, *inputs)
    assert exp_below_max in found and not any("softmax" in str(target) for target in found)
    torch.testing.assert_close(module(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_weights_that_are_returned_stay_normalised() -> None:
    class Returned(nn.Module):
        def forward(self, scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            weights = torch.softmax(scores, -1)
            return weights @ v, weights

    found, _ = operators(Returned(), torch.randn(2, 5, 7), torch.randn(2, 7, 3))
    assert exp_below_max not in found


@pytest.mark.parametrize(
    "function",
    [lambda x: 1 - torch.exp(-x), lambda x: torch.exp(x) - 1.0, lambda x: x.exp() + -1],
)
def test_exponential_less_one(function: Callable[[Tensor], Tensor]) -> None:
    class Spelled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    x = torch.randn(3, 8) * 1e-3
    found, module = operators(Spelled(), x)
    assert aten.expm1.default in found
    assert aten.exp.default not in found
    torch.testing.assert_close(module(x), function(x.double()).float())


def test_other_differences_of_exponentials_stay() -> None:
    class Others(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            e = torch.exp(x * 2)
            return 2 - torch.exp(x), torch.exp(x) + 1, e - 1, e

    x = torch.randn(3, 8)
    found, module = operators(Others(), x)
    assert aten.expm1.default not in found
    torch.testing.assert_close(module(x), Others()(x))
