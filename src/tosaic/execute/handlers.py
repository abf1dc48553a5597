"""The table of the simulator: operator class -> handler, and what the handlers share.

A handler takes a node once and returns its kernel, a function from the operand arrays to the result array (a tuple of
arrays where the operator has several results). What is
constant (weights, tables, multipliers) is prepared by the handler, so that the kernel only does the work of one run.
Kernels never write to their operands; a result may be a view of an operand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from tosaic.tosa.graph import Node
from tosaic.tosa.ops import Op
from tosaic.tosa.types import DType

Kernel = Callable[..., Any]
Handler = Callable[[Node], Kernel]

HANDLERS: dict[type[Op], Handler] = {}
_FOREIGN = {d.numpy for d in (DType.BF16, DType.FP8E4M3, DType.FP8E5M2)}  # types that numpy itself lacks


def handles(*classes: type[Op]) -> Callable[[Handler], Handler]:
    """Register the function below as the handler of these operators."""

    def register(function: Handler) -> Handler:
        for cls in classes:
            HANDLERS[cls] = function
        return function

    return register


def as_torch(x: np.ndarray) -> torch.Tensor:
    """`x` as a tensor without a copy; bf16 and 8-bit floats, which torch does not take from numpy, become f32."""
    if not x.flags.writeable:
        _warned()
    try:
        return torch.from_numpy(x)
    except TypeError:
        return torch.from_numpy(x.astype(np.float32))
    except ValueError:  # it goes backwards
        return torch.from_numpy(np.ascontiguousarray(x))


@cache
def _warned() -> None:
    """Torch warns once that one could write to a constant, which no kernel does: let it, where nobody listens."""
    constant = np.zeros(1, np.int8)
    constant.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(constant)


def as_float(x: np.ndarray) -> torch.Tensor:
    """`x` as an f32 tensor."""
    return as_torch(x).to(torch.float32)


def from_torch(t: torch.Tensor, dtype: DType) -> np.ndarray:
    """`t` as an array of `dtype`; floats are rounded to nearest even."""
    return t.numpy().astype(dtype.numpy, copy=False)


def packed(x: np.ndarray) -> np.ndarray:
    """`x` contiguous and writable: one array type, so that a numba kernel compiles once."""
    if x.flags.c_contiguous and x.flags.writeable:
        return x
    if x.flags.c_contiguous or x.dtype in _FOREIGN:
        return x.copy(order="C")
    return as_torch(x).contiguous().numpy()  # torch copies transposed arrays several times faster than numpy
