"""torchao's PT2E, without what it would do again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.ao.quantization.fx import utils as _fx_utils
from torchao.quantization.pt2e import quantize_pt2e
from torchao.quantization.pt2e import utils as pt2e_utils
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.utils import _assert_and_get_unique_device

from tosaic.errors import QuantizeError

_fx_prepare = importlib.import_module("torch.ao.quantization.fx.prepare")  # its package has a function of this name
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def prepare(module: torch.fx.GraphModule, quantizer: Quantizer, *, training: bool = False) -> torch.fx.GraphModule:
    """Insert observers (or, for training, fake quantization) as the quantizer annotates."""
    with _without_searches(), _without_memory():
        return (quantize_pt2e.prepare_qat_pt2e if training else quantize_pt2e.prepare_pt2e)(module, quantizer)


def convert(prepared: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Replace observers by quantize and dequantize operators; weights stay float, behind their quantize operator."""
    try:
        with _without_searches(), _without_memory():
            return quantize_pt2e.convert_pt2e(prepared, fold_quantize=False)
    except QuantizeError:
        raise
    except Exception as error:  # whatever torchao meets; the user gets one message
        raise QuantizeError(f"conversion failed: {type(error).__name__}: {error}") from error


@contextmanager
def _without_searches() -> Iterator[None]:
    """Replace, for the time of a call, those functions of torchao whose searches we know the results of. There are no options for it.

    Conv-bn pairs: `capture` folded them already, and wherever one batch norm is left, torchao exports 96 patterns to match
    against, which takes 20 to 40 s. Unused attribute names: torchao counts up from 0 for each observer that it inserts, which
    takes time quadratic in their number.
    """
    naming = _continued_names()
    with (
        _replaced(quantize_pt2e, "_fuse_conv_bn_qat", lambda module: module),
        _replaced(quantize_pt2e, "_fold_conv_bn_qat", lambda module: module),
        _replaced(_fx_prepare, "get_new_attr_name_with_prefix", naming),
        _replaced(pt2e_utils, "get_new_attr_name_with_prefix", naming),
    ):
        yield


@contextmanager
def _without_memory() -> Iterator[None]:
    """Forget the modules of a call: torchao and torch.ao note the device of each, and with the note keep the module and its weights."""
    try:
        yield
    finally:
        _assert_and_get_unique_device.cache_clear()
        _fx_utils.assert_and_get_unique_device.cache_clear()


@contextmanager
def _replaced(module: ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, kept)


def _continued_names() -> Callable[[str], Callable[[torch.nn.Module], str]]:
    """`get_new_attr_name_with_prefix` whose searches begin where the one before ended; the names are the same."""
    free: dict[tuple[torch.nn.Module, str], int] = {}

    def with_prefix(prefix: str) -> Callable[[torch.nn.Module], str]:
        prefix = prefix.replace(".", "_")

        def new_name(module: torch.nn.Module) -> str:
            number = free.get((module, prefix), 0)
            while hasattr(module, f"{prefix}{number}"):
                number += 1
            free[module, prefix] = number
            return f"{prefix}{number}"

        return new_name

    return with_prefix
