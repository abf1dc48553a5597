"""Scales per token: linear layers whose input is quantized row by row, over ranges that are found at run time.

The input stays wide. Each row is shifted so that its largest element takes 7 bits and a sign, by a power of two, since a shift costs
one operator and a multiplication by a computed scale costs several. Rows of a language model differ by orders of magnitude.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from tosaic.errors import QuantizeError
from tosaic.operators import per_token_linear
from tosaic.quantization.analysis import constants
from tosaic.quantization.pt2e import DEQUANTIZE
from tosaic.quantization.quantizer import aten_name, is_linear_layer, module_path
from tosaic.quantization.schemes import Recipe

aten = torch.ops.aten


def mark_linears(module: GraphModule, recipe: Recipe) -> None:
    """Replace the linear layers to which a recipe gives scales per token, in place; they compute in float until `set_units`."""
    folded = constants(module)
    for node in module.graph.find_nodes(op="call_function", target=aten.linear.default):
        if node in folded:
            continue
        scheme = recipe.scheme_of(module_path(node), aten_name(node), is_linear_layer(node))
        if scheme.per_token and node.args[1].op == "get_attr":
            bias = node.args[2] if len(node.args) > 2 else None
            node.target, node.args = per_token_linear, (*node.args[:2], bias, 0.0, 8 if scheme.linear is None else 16)
    module.recompile()


def set_units(converted: GraphModule) -> None:
    """Tell each marked layer the scale of its int32 input, of which the scale of a row is a multiple by a power of two."""
    for node in converted.graph.find_nodes(op="call_function", target=per_token_linear):
        source = node.args[0]
        if source.target is not DEQUANTIZE:
            raise QuantizeError(f"'{node.name}' has an input that is not quantized, and scales per token need one")
        node.args = (*node.args[:3], float(source.args[1]), *node.args[4:])
    converted.recompile()
