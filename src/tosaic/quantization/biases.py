"""Biases of a converted module: what they are, and what an integer program stores of them.

An accumulator counts in steps of scale_in * scale_weight, and its bias is a whole number of them. The converted module has the same
numbers, so that it means what the program computes. With 4-bit weights a step is 127/7 times as coarse as with 8 bits: behind two layers,
one int8 result in twenty would be the neighbour of what unrounded biases give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from tosaic import digits
from tosaic.operators import per_token_linear
from tosaic.quantization.analysis import attribute
from tosaic.quantization.pt2e import DEQUANTIZE
from tosaic.quantization.rules import RULES

_DEQUANTIZE_CHANNELS = torch.ops.quantized_decomposed.dequantize_per_channel.default


def is_layer(node: Node) -> bool:
    """Whether a node has weights, and a bias that is a parameter or none."""
    rule = RULES.get(node.target)
    if node.op != "call_function" or rule is None or rule.weight is None or not rule.inputs:  # an embedding has no bias
        return False
    bias = node.args[2] if len(node.args) > 2 else None
    return bias is None or bias.op == "get_attr"


def bias_of(module: GraphModule, node: Node) -> torch.Tensor | None:
    """The bias [channels] of a layer."""
    bias = node.args[2] if len(node.args) > 2 else None
    return None if bias is None else attribute(module, bias)


def set_bias(module: GraphModule, node: Node, bias: torch.Tensor) -> None:
    """Give a layer another bias, in a parameter of its own (another layer may share the old one)."""
    name = f"{node.name}_stored_bias"
    module.register_parameter(name, nn.Parameter(bias.detach(), requires_grad=False))
    with module.graph.inserting_before(node):
        parameter = module.graph.get_attr(name)
    parameter.meta["val"] = bias
    node.args = (*node.args[:2], parameter, *node.args[3:])


def stored_bias(module: GraphModule, node: Node, bias: torch.Tensor) -> torch.Tensor:
    """A bias of a layer in whole steps of its accumulator.

    A channel without weights has no such step: lowering gives it one that holds the bias. Where input or weights do not have one scale for
    each channel (float, per token, in two digits) the bias stays as it is.
    """
    steps = _steps(module, node)
    if steps is None:
        return bias
    steps = steps.repeat(bias.numel() // steps.numel())  # the groups of a transposed convolution share scales
    exact = bias.double()
    return torch.where(steps > 0, torch.round(exact / steps) * steps, exact).to(bias.dtype)


@torch.no_grad()
def round_biases(converted: GraphModule) -> None:
    """Give all layers of a converted module, in place, the biases that are stored."""
    for node in list(converted.graph.nodes):
        if is_layer(node) and (bias := bias_of(converted, node)) is not None:
            stored = stored_bias(converted, node, bias)
            if not torch.equal(stored, bias):
                set_bias(converted, node, stored)
    converted.graph.eliminate_dead_code()
    converted.recompile()


def _steps(module: GraphModule, node: Node) -> torch.Tensor | None:
    """The accumulator's step for each channel, 0 in those without weights; None where input or weights do not have such scales."""
    x, weight = node.args[:2]
    assert isinstance(x, Node) and isinstance(weight, Node)
    if node.target is per_token_linear or x.target is not DEQUANTIZE or weight.target is not _DEQUANTIZE_CHANNELS:
        return None
    scale, _, least, most, dtype = x.args[1:6]
    if dtype not in (torch.int8, torch.int16) or (least, most) == (digits.LEAST, digits.MOST):
        return None
    quantize, scales, _, axis = weight.args[:4]
    assert isinstance(quantize, Node)
    numbers = _constant(module, quantize.args[0]).movedim(axis, 0)
    return attribute(module, scales).double() * scale * numbers.flatten(1).any(1)


def _constant(module: GraphModule, node: Any) -> torch.Tensor:
    """A parameter, or what is computed from nothing else."""
    if node.op == "get_attr":
        return attribute(module, node)
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: _constant(module, n))
    return node.target(*args, **kwargs)
