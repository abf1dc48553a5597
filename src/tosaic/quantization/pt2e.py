"""torchao's PT2E, without what it would do again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torchao.quantization.pt2e import quantize_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer

from tosaic.errors import QuantizeError


def prepare(module: torch.fx.GraphModule, quantizer: Quantizer, *, training: bool = False) -> torch.fx.GraphModule:
    """Insert observers (or, for training, fake quantization) as the quantizer annotates."""
    with _own_folding():
        return (quantize_pt2e.prepare_qat_pt2e if training else quantize_pt2e.prepare_pt2e)(module, quantizer)


def convert(prepared: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Replace observers by quantize and dequantize operators; weights stay float, behind their quantize operator."""
    try:
        with _own_folding():
            return quantize_pt2e.convert_pt2e(prepared, fold_quantize=False)
    except QuantizeError:
        raise
    except Exception as error:  # whatever torchao meets; the user gets one message
        raise QuantizeError(f"conversion failed: {type(error).__name__}: {error}") from error


@contextmanager
def _own_folding() -> Iterator[None]:
    """Keep torchao from looking for conv-bn pairs, which `capture` folded already.

    Wherever one batch norm is left, it exports 96 patterns to match against, which takes 20 to 40 s. There is no option
    for it, so its two functions are replaced for the time of the call.
    """
    names = ("_fuse_conv_bn_qat", "_fold_conv_bn_qat")
    kept = {name: getattr(quantize_pt2e, name) for name in names}
    try:
        for name in names:
            setattr(quantize_pt2e, name, lambda module: module)
        yield
    finally:
        for name, function in kept.items():
            setattr(quantize_pt2e, name, function)
