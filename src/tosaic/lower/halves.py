"""Operators in float16 and bfloat16: each rounds its result once, as PyTorch's do.

An operator that is one rounding operation of TOSA stays in its type. A composite (a mean, a softmax, silu) computes in float32 between
two CASTs: roundings would add up in it, and sums of squares leave float16. The FP profile always has float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tosaic.lower.context import Context
from tosaic.lower.operand import Operand
from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.types import DType

FLOATS = {torch.float16: DType.FP16, torch.bfloat16: DType.BF16, torch.float32: DType.FP32}
HALVES = (DType.FP16, DType.BF16)
# Results that are numbers of their operands, or whole numbers: nothing is rounded.
_EXACT = (
    *(ops.Concat, ops.Pad, ops.Reshape, ops.Reverse, ops.Slice, ops.Tile, ops.Transpose, ops.Gather, ops.Scatter, ops.Identity),
    *(ops.Abs, ops.Negate, ops.Ceil, ops.Floor, ops.Select, ops.Clamp, ops.Maximum, ops.Minimum),
    *(ops.MaxPool2d, ops.ReduceMax, ops.ReduceMin),
)


def float_type(result: Any, operands: Sequence[Any]) -> DType:
    """The float type that an operator computes in: that of its result, or what its operands are promoted to.

    Args:
        result, operands: what the FX nodes hold, tensors or lists of them.
    """
    for values in (result, operands):
        kinds = [leaf.dtype for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.dtype in FLOATS]
        if kinds:
            kind = kinds[0]
            for other in kinds[1:]:
                kind = torch.promote_types(kind, other)
            return FLOATS[kind]
    return DType.FP32


def cast(ctx: Context, value: Value, dtype: DType) -> Value:
    """CAST between float types; float16 and bfloat16 meet in float32."""
    if value.dtype is dtype:
        return value
    if {value.dtype, dtype} == set(HALVES):
        value = ctx.emit(ops.Cast(DType.FP32), value)
    return ctx.emit(ops.Cast(dtype), value)


def brought(ctx: Context, arguments: Any, dtype: DType) -> Any:
    """Arguments of a lowering function with each float operand in `dtype`; what is pending on it stays so."""

    def one(x: Any) -> Any:
        if not isinstance(x, Operand) or x.value is None or not x.value.dtype.is_float:
            return x
        return replace(x, value=cast(ctx, x.value, dtype))

    return pytree.tree_map(one, arguments)


def finished(ctx: Context, results: Any, expected: Any) -> Any:
    """Results in the float types that PyTorch gives them; MATMUL of halves has float32 results.

    Args:
        expected: the tensors of the FX node, in the structure of `results` (or fewer, where a lowering gives more).
    """
    if isinstance(results, tuple | list):
        kinds = list(expected) if isinstance(expected, tuple | list) else []
        return type(results)(finished(ctx, x, kinds[i] if i < len(kinds) else None) for i, x in enumerate(results))
    want = FLOATS.get(getattr(expected, "dtype", None))  # type: ignore[arg-type]
    if want is None or not isinstance(results, Operand) or results.value is None or not results.value.dtype.is_float:
        return results
    return replace(results, value=cast(ctx, results.value, want))


def _accumulates(node: Node) -> bool:
    """Whether the specification computes the result by steps of its own type, each of which rounds."""
    if isinstance(node.op, ops.ReduceProduct) or (isinstance(node.op, ops.ReduceSum) and node.output.dtype is DType.FP16):
        return node.inputs[0].shape != node.output.shape
    return isinstance(node.op, ops.Resize) and node.op.mode is ops.ResizeMode.BILINEAR


def rounds_once(nodes: Sequence[Node]) -> bool:
    """Whether no value of these nodes in float16 or bfloat16 was rounded more than once on its way through them."""
    roundings: dict[Value, int] = {}
    for node in nodes:
        before = max((roundings.get(v, 0) for v in node.inputs), default=0)
        in_half = node.output.dtype in HALVES
        if in_half and _accumulates(node):
            return False
        roundings[node.output] = before + (in_half and not isinstance(node.op, _EXACT))
    return max(roundings.values(), default=0) <= 1
