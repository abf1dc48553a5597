"""Empirical bias correction: Nagel et al. 2019 (arXiv:1906.04721), section 4.2 and appendix D.

Rounding the weights shifts the mean of a layer's output, and such shifts add up over the depth. Layer by layer, in
order, the mean over calibration data of what the quantized layer gives is moved to that of the float layer, by its bias.
The correction costs nothing at run time. It takes two samples at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from tosaic.quantization.biases import bias_of, is_layer, set_bias, stored_bias

Inputs = tuple[Any, ...]
LIMIT = 32  # calibration samples that are used; their activations are held in memory


def _means(node: Node, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of each output channel over samples and positions (channels are axis 1 after convolutions, last after linears)."""
    axis = 1 if node.target is torch.ops.aten.convolution.default else outputs[0].dim() - 1
    others = [d for d in range(outputs[0].dim()) if d != axis]
    return torch.stack([y.double().mean(others) if others else y.double() for y in outputs]).mean(0)


class FloatMeans(Interpreter):
    """Runs a float module (observers may be in it) and keeps its first samples and what its layers gave for them.

    Attributes:
        samples: the first `limit` inputs.
    """

    def __init__(self, module: GraphModule, limit: int = LIMIT) -> None:
        super().__init__(module)
        self.samples: list[Inputs] = []
        self._totals: dict[str, torch.Tensor] = {}
        self._limit, self._recording = limit, True

    def sample(self, inputs: Inputs) -> None:
        """Run one sample, its tensors flattened."""
        self._recording = len(self.samples) < self._limit
        if self._recording:
            self.samples.append(inputs)
        self.run(*inputs, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if self._recording and is_layer(n):
            self._totals[n.name] = self._totals.get(n.name, 0) + _means(n, [result])
        return result

    def means(self) -> dict[str, torch.Tensor]:
        """Mean of each output channel of each layer over the samples, by node name."""
        return {name: total / len(self.samples) for name, total in self._totals.items()}


class _Corrector(Interpreter):
    """Runs all samples through one node after the other, so that each layer sees what the corrected ones before it give."""

    def __init__(self, module: GraphModule, samples: Sequence[Inputs], means: dict[str, torch.Tensor]) -> None:
        super().__init__(module)
        self.samples, self.targets = samples, means

    def run_all(self) -> None:
        values: dict[Node, list[Any]] = {}
        last_use = {a: n for n in self.module.graph.nodes for a in n.all_input_nodes}
        inputs = iter(range(len(self.samples[0])))
        for node in list(self.module.graph.nodes):
            arguments = node.all_input_nodes  # before a correction gives the node another bias
            if node.op == "placeholder":
                position = next(inputs)
                values[node] = [s[position] for s in self.samples]
            elif node.op == "get_attr":
                values[node] = [self.fetch_attr(node.target)]
            elif node.op != "output":
                values[node] = self._node(node, values)
            for argument in arguments:
                if last_use[argument] is node:
                    values.pop(argument, None)

    def _node(self, node: Node, values: dict[Node, list[Any]]) -> list[Any]:
        # constants, and what only depends on them, have one value for all samples
        count = max((len(values[a]) for a in node.all_input_nodes), default=1)
        results = []
        for i in range(count):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda a, i=i: values[a][i if len(values[a]) > 1 else 0])
            results.append(getattr(self, node.op)(node.target, args, kwargs))
        if is_layer(node) and node.name in self.targets and count > 1:
            return self._correct(node, results)
        return results

    def _correct(self, node: Node, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        before = bias_of(self.module, node)
        delta = (self.targets[node.name] - _means(node, outputs)).to(outputs[0].dtype)
        after = stored_bias(self.module, node, delta if before is None else before + delta)
        set_bias(self.module, node, after)
        delta = after if before is None else after - before
        if node.target is torch.ops.aten.convolution.default:
            delta = delta.reshape(-1, *[1] * (outputs[0].dim() - 2))
        return [y + delta for y in outputs]


@torch.no_grad()
def correct_biases(converted: GraphModule, samples: Sequence[Inputs], means: dict[str, torch.Tensor]) -> None:
    """Correct the biases of a converted module in place, first layer first.

    Args:
        samples: calibration inputs (at most `LIMIT` are sensible).
        means: what `FloatMeans` found on the same samples.
    """
    _Corrector(converted, samples, means).run_all()
    converted.graph.eliminate_dead_code()
    converted.recompile()
