"""Programs that another PT2E quantizer converted compile, and compute what the converted module does, to one step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from golden_networks import Classifier, Residual, UNet, Upscaler, picture, reproducible
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

import tosaic
from tosaic.artifact import Artifact
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph
from tosaic.tosa.types import DType

aten = torch.ops.aten
Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
KEY = "quantization_annotation"


class Standard(Quantizer):
    """Quantizes what enters and leaves the usual operators, as most vendors' quantizers do; activations of one type."""

    OPERATORS = (aten.conv2d, aten.conv_transpose2d, aten.linear, aten.add, aten.max_pool2d, aten.sigmoid, aten.mean, aten.leaky_relu)
    FUSED = (aten.relu, aten.relu6)

    def __init__(self, dtype: torch.dtype, per_channel: bool) -> None:
        super().__init__()
        low, high = (0, 255) if dtype is torch.uint8 else (-128, 127)
        self.activation = QuantizationSpec(
            dtype=dtype, quant_min=low, quant_max=high, qscheme=torch.per_tensor_affine, observer_or_fake_quant_ctr=HistogramObserver
        )
        observer = PerChannelMinMaxObserver if per_channel else MinMaxObserver
        scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
        self.weight = QuantizationSpec(
            dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=scheme, ch_axis=0, observer_or_fake_quant_ctr=observer
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            packet = getattr(node.target, "overloadpacket", None)
            if packet in self.OPERATORS:
                self._operator(node)
            elif packet in self.FUSED:
                node.meta[KEY] = QuantizationAnnotation(output_qspec=self.activation, _annotated=True)
            elif packet is aten.cat:
                self._concatenation(node)
        return model

    def _operator(self, node: Node) -> None:
        inputs: dict[Node, Any] = {a: self.activation for a in node.args[:2] if isinstance(a, Node) and a.op != "get_attr"}
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, Node) and weight.op == "get_attr":
            # a transposed convolution's channels lie along axis 1, so its weight is quantized as a whole
            transposed = node.target.overloadpacket is aten.conv_transpose2d  # type: ignore[union-attr]
            whole = {"qscheme": torch.per_tensor_symmetric, "ch_axis": None, "observer_or_fake_quant_ctr": MinMaxObserver}
            inputs[weight] = QuantizationSpec(**{**self.weight.__dict__, **whole}) if transposed else self.weight
        fused = [u for u in node.users if getattr(u.target, "overloadpacket", None) in self.FUSED]
        output = None if fused else self.activation
        node.meta[KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)

    def _concatenation(self, node: Node) -> None:
        first, *rest = node.args[0]  # type: ignore[misc]
        shared = SharedQuantizationSpec((first, node))
        inputs = {first: self.activation, **dict.fromkeys(rest, shared)}
        node.meta[KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=shared, _annotated=True)

    def validate(self, model: GraphModule) -> None:
        """Nothing to check."""


def xnnpack() -> Quantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "int8": lambda: Standard(torch.int8, per_channel=True),
    "uint8": lambda: Standard(torch.uint8, per_channel=False),
    "xnnpack": xnnpack,
}
NETWORKS: dict[str, tuple[type[nn.Module], int]] = {
    "classifier": (Classifier, 3),
    "residual": (Residual, 4),
    "upscaler": (Upscaler, 3),
    "unet": (UNet, 2),
}


def converted(network: type[nn.Module], channels: int, quantizer: Quantizer) -> nn.Module:
    """What PyTorch's own flow gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = picture(channels, 8, 8)
        model = torch.export.export(reproducible(network()), (example,)).module()
        prepared = prepare_pt2e(model, quantizer)
        for phase in (0.0, 1.0, 2.0):
            prepared(picture(channels, 8, 8, phase))
        return convert_pt2e(prepared)


def last_scale(module: nn.Module, artifact: Artifact) -> float:
    """The step of the output: the artifact's own, or that of the last quantization where the result is float."""
    [port] = artifact.passport.outputs
    if port.scale is not None:
        return port.scale
    quantizations = [n for n in module.graph.nodes if "quantize_per_tensor" in str(n.target) and "dequantize" not in str(n.target)]  # type: ignore[union-attr]
    return max(n.args[1] for n in quantizations)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_converted_programs(network: str, quantizer: str, reference: Run) -> None:
    cls, channels = NETWORKS[network]
    module = converted(cls, channels, QUANTIZERS[quantizer]())
    artifact = tosaic.compile(copy.deepcopy(module), picture(channels, 8, 8))
    assert "CONV2D" in artifact.passport.operators
    assert all(node.inputs[0].dtype is DType.INT8 for node in artifact.graph.nodes if isinstance(node.op, ops.Conv2d))
    for phase in (0.0, 0.5, 3.0):
        x = picture(channels, 8, 8, phase)
        with torch.no_grad():
            want = module(x).numpy()
        difference = np.abs(artifact.run(x.numpy(), float_io=True)[0] - want) / last_scale(module, artifact)
        assert difference.max() <= 1.01, f"{difference.max():.2f} steps"
        assert (difference < 0.5).mean() >= 0.9
    value, port = artifact.graph.inputs[0], artifact.passport.inputs[0]
    stored = artifact._stored(picture(channels, 8, 8).numpy(), port, value, True)
    ours, theirs = artifact.run([stored], float_io=False)[0], reference(artifact.graph, [stored])[0]
    assert np.array_equal(ours, theirs) if ours.dtype.kind != "f" else np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
