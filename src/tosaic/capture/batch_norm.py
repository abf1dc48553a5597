"""Batch normalization: folded for inference, simulated folded for training.

    conv(x, w) -> batch_norm            =>  conv(x, w * s, (b - mean) * s + beta)       s = gamma / sqrt(var + eps)
    conv(x, w) -> batch_norm, training  =>  fold(conv(x, quantize(w * s)))              Jacob et al. 2018, section 3.2
    anything else -> batch_norm         =>  stays, one quantization unit

Conditions for folding: the convolution (or linear on [N, C]) has no other user, and its weights are parameters.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tosaic.errors import InputError

aten = torch.ops.aten
_FOLDS_INTO = (aten.convolution.default, aten.linear.default)
TINY_GAMMA = 2.0**-20


def canonicalize_batch_norm(module: torch.fx.GraphModule) -> None:
    """Rewrite each decomposed batch norm and its getitem to one `aten.batch_norm` node in evaluation mode."""
    for node in list(module.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        x, gamma, beta, mean, var, momentum, eps = node.args
        results = [u for u in node.users if u.target is operator.getitem and u.args[1] == 0]
        with module.graph.inserting_before(node):
            single = module.graph.call_function(aten.batch_norm.default, (x, gamma, beta, mean, var, False, momentum, eps, False))
        single.meta = {**node.meta, "val": node.meta["val"][0]}
        for result in results:
            result.replace_all_uses_with(single)
            module.graph.erase_node(result)


def get_parameter(module: torch.fx.GraphModule, node: torch.fx.Node | None) -> torch.Tensor | None:
    """The tensor of a get_attr node, or None."""
    if node is None or node.op != "get_attr":
        return None
    found: object = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, torch.Tensor) else None


def _foldable(module: torch.fx.GraphModule) -> Iterator[tuple[torch.fx.Node, torch.fx.Node]]:
    for norm in list(module.graph.nodes):
        if norm.target is not aten.batch_norm.default:
            continue
        conv = norm.args[0]
        fits = conv.target in _FOLDS_INTO and len(conv.users) == 1 and get_parameter(module, conv.args[1]) is not None
        # after a linear, channels are the last axis; batch norm's are axis 1
        fits = fits and (conv.target is aten.convolution.default or conv.meta["val"].dim() == 2)
        if fits and all(get_parameter(module, n) is not None for n in norm.args[3:5]):
            yield conv, norm


def transposed_groups(conv: torch.fx.Node) -> int | None:
    """Number of groups of a transposed convolution, None for the others."""
    return conv.args[8] if conv.target is aten.convolution.default and conv.args[6] else None


def channel_view(per_channel: torch.Tensor, weight: torch.Tensor, groups: int | None) -> torch.Tensor:
    """`per_channel` [C] in a shape that multiplies the weight's output channels.

    Transposed convolutions (`groups` given) have weights [IC, OC/groups, ...]: a group's channels repeat along the first axis.
    """
    if groups is not None:
        view = per_channel.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        return view.reshape(weight.shape[0], -1, *[1] * (weight.dim() - 2))
    return per_channel.reshape(-1, *[1] * (weight.dim() - 1))


def fold_batch_norm(module: torch.fx.GraphModule) -> None:
    """Fold every batch norm that follows a convolution or linear into its weights and bias.

    Raises:
        InputError: a batch norm divides by zero.
    """
    _check_variances(module)
    for i, (conv, norm) in enumerate(_foldable(module)):
        gamma, beta, mean, var = (get_parameter(module, n) for n in norm.args[1:5])
        weight, bias = get_parameter(module, conv.args[1]), get_parameter(module, conv.args[2] if len(conv.args) > 2 else None)
        scale = torch.rsqrt(var.double() + norm.args[7]) * (gamma.double() if gamma is not None else 1.0)
        shift = -mean.double() if bias is None else bias.double() - mean.double()
        new_bias = shift * scale + (beta.double() if beta is not None else 0.0)
        new_weight = weight.double() * channel_view(scale, weight, transposed_groups(conv))
        replace_parameters(module, conv, f"folded_{i}", new_weight.to(weight.dtype), new_bias.to(weight.dtype))
        norm.replace_all_uses_with(conv)
        module.graph.erase_node(norm)
    module.graph.eliminate_dead_code()
    module.recompile()


def _check_variances(module: torch.fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target is aten.batch_norm.default and (var := get_parameter(module, node.args[4])) is not None:
            bad = torch.nonzero(var.double() + node.args[7] <= 0).flatten().tolist()
            if bad:
                raise InputError(
                    f"batch norm '{node.args[4].target}' is not positive in channel {bad[0]} and eps is {node.args[7]}: it divides by zero",
                    remedy="give the layer an eps, or check the checkpoint",
                )


def replace_parameters(module: torch.fx.GraphModule, conv: torch.fx.Node, name: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give a convolution or linear new weights and a bias."""
    for part, tensor in (("weight", weight), ("bias", bias)):
        module.register_parameter(f"{name}_{part}", nn.Parameter(tensor.detach().clone(), requires_grad=False))
    with module.graph.inserting_before(conv):
        nodes = [module.graph.get_attr(f"{name}_{part}") for part in ("weight", "bias")]
    for node, tensor in zip(nodes, (weight, bias), strict=True):
        node.meta["val"] = tensor.detach()
    conv.args = (conv.args[0], *nodes, *conv.args[3:])


class ScaleWeight(nn.Module):
    """w -> w * gamma / sqrt(running_var + eps), the weight that the artifact will hold."""

    def __init__(self, norm: SimulatedFold, conv: torch.fx.Node) -> None:
        super().__init__()
        self._norm = [norm]  # in a list: the parameters belong to SimulatedFold alone
        self._groups = transposed_groups(conv)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * channel_view(self._norm[0].scale(), weight, self._groups)


class SimulatedFold(nn.Module):
    """Batch norm after a convolution whose weights are scaled by it already.

    In train mode the scaling is divided out, so that batch statistics are those of the unscaled convolution; in eval
    mode (or frozen) the result is exactly that of the folded convolution.
    """

    def __init__(
        self,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        mean: torch.Tensor,
        var: torch.Tensor,
        eps: float,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        channels = mean.numel()
        self.weight = nn.Parameter(torch.ones(channels) if gamma is None else gamma.detach().clone(), requires_grad=gamma is not None)
        self.bias = nn.Parameter(torch.zeros(channels) if beta is None else beta.detach().clone(), requires_grad=beta is not None)
        self.register_buffer("running_mean", mean.detach().clone())
        self.register_buffer("running_var", var.detach().clone())
        self.eps, self.momentum, self.frozen = eps, momentum, False

    def scale(self) -> torch.Tensor:
        # gammas of zero are usual at the start of residual branches; the scale must stay a divisor
        gamma = torch.where(self.weight.abs() < TINY_GAMMA, TINY_GAMMA, self.weight)
        return gamma * torch.rsqrt(self.running_var + self.eps)

    def folded_bias(self, bias: torch.Tensor | None) -> torch.Tensor:
        mean = self.running_mean if bias is None else self.running_mean - bias
        return self.bias - mean * self.scale()

    def forward(self, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        shape = (1, -1, *[1] * (y.dim() - 2))
        if not self.training or self.frozen:
            return y + self.folded_bias(bias).reshape(shape)
        plain = y / self.scale().reshape(shape)
        if bias is not None:
            plain = plain + bias.reshape(shape)
        return F.batch_norm(plain, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps)


def simulate_folding(module: torch.fx.GraphModule) -> None:
    """Replace each foldable batch norm by `SimulatedFold`, for training."""
    for i, (conv, norm) in enumerate(_foldable(module)):
        gamma, beta, mean, var = (get_parameter(module, n) for n in norm.args[1:5])
        assert mean is not None and var is not None
        momentum = norm.args[6] or 0.1  # export writes 0 for None, a cumulative average
        fold = SimulatedFold(gamma, beta, mean, var, norm.args[7], momentum)
        module.add_submodule(f"fold_{i}", fold)
        module.add_submodule(f"fold_{i}_weight", ScaleWeight(fold, conv))
        bias = conv.args[2] if len(conv.args) > 2 else None
        with module.graph.inserting_before(conv):
            scaled = module.graph.call_module(f"fold_{i}_weight", (conv.args[1],))
        scaled.meta = conv.args[1].meta.copy()
        conv.args = (conv.args[0], scaled, None, *conv.args[3:])
        with module.graph.inserting_before(norm):
            folded = module.graph.call_module(f"fold_{i}", (conv, bias))
        folded.meta = norm.meta.copy()
        norm.replace_all_uses_with(folded)
        module.graph.erase_node(norm)
    module.graph.eliminate_dead_code()
    module.recompile()


def finish_folding(module: torch.fx.GraphModule) -> None:
    """Turn every `SimulatedFold` into the folded convolution that it stands for; fake-quantize nodes stay in place."""
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        child = module.get_submodule(str(node.target))
        if isinstance(child, ScaleWeight):
            weight = child(get_parameter(module, node.args[0])).detach()
            name = f"{node.target}_folded".replace(".", "_")
            module.register_parameter(name, nn.Parameter(weight.clone(), requires_grad=False))
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta["val"] = weight
            node.replace_all_uses_with(constant)
            module.graph.erase_node(node)
        elif isinstance(child, SimulatedFold):
            conv, bias = node.args
            name = f"{node.target}_bias".replace(".", "_")
            folded = child.folded_bias(get_parameter(module, bias)).detach()
            module.register_parameter(name, nn.Parameter(folded.clone(), requires_grad=False))
            with module.graph.inserting_before(conv):
                constant = module.graph.get_attr(name)
            constant.meta["val"] = folded
            conv.args = (*conv.args[:2], constant, *conv.args[3:])
            node.replace_all_uses_with(conv)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
