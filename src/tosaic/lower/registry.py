"""aten operator -> lowering function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Lowering = Callable[..., Any]
LOWERINGS: dict[torch._ops.OpOverload, Lowering] = {}


def lower(*targets: torch._ops.OpOverload) -> Callable[[Lowering], Lowering]:
    """Register a function `(ctx, *arguments) -> Operand` (or a tuple of them) for aten operators.

    Tensor arguments arrive as Operand, the rest as Python values. The function emits integer operators where its
    tensors are quantized, and float operators else.
    """

    def register(function: Lowering) -> Lowering:
        for target in targets:
            LOWERINGS[target] = function
        return function

    return register
