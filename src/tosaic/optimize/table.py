"""Chains of unary i8 operators around a TABLE become one TABLE.

    TABLE(TABLE(x))                                      -> TABLE(x)
    TABLE(f(x)), f(TABLE(x)), f an elementwise i8 operator -> TABLE(x)

f is CLAMP, NEGATE, BITWISE_NOT, or a RESCALE from i8 to i8 with one scale and without inexact rounding. The new entries are
what `evaluate` returns for all 256 inputs, so the rewrite is exact by construction.
"""

from __future__ import annotations

import numpy as np

from tosaic.optimize.rewrite import Refused, Rewriter, rule
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.types import DType, TensorType

_ALL = np.arange(-128, 128, dtype=np.int8)
_UNARY = (ops.Table, ops.Clamp, ops.Negate, ops.BitwiseNot, ops.Rescale)


def _is_function(node: Node) -> bool:
    """Whether the node is a function of each i8 element of its first operand alone, known now, with an i8 result."""
    op = node.op
    if not isinstance(op, _UNARY) or not node.inputs[0].dtype is node.output.dtype is DType.INT8:
        return False
    if isinstance(op, ops.Rescale):
        return not (op.per_channel or op.input_unsigned or op.output_unsigned or op.rounding is ops.Rounding.INEXACT)
    return not isinstance(op, ops.Table) or node.inputs[1].is_const


@rule(*_UNARY)
def fuse_tables(r: Rewriter, node: Node) -> Value | Refused | None:
    """f(g(x)) -> TABLE(x): f or g is a TABLE"""
    inner = r.made_by(node.inputs[0], *_UNARY)
    if inner is None or (not isinstance(node.op, ops.Table) and not isinstance(inner.op, ops.Table)):
        return None
    if not _is_function(node) or not _is_function(inner):
        return Refused("not a function of each i8 element alone with an i8 result")
    if r.readers(inner.output) > 1:
        return Refused("the operand has other readers, so it stays, and a second table is no gain")
    if r.evaluate is None:
        return Refused("nothing to evaluate the table with")
    first, second = (Value(name, TensorType(DType.INT8, (256,))) for name in ("first", "second"))
    domain = Value("all", TensorType(DType.INT8, (256,)), _ALL)
    chain = [Node(inner.op, (domain, *inner.inputs[1:]), (first,)), Node(node.op, (first, *node.inputs[1:]), (second,))]
    (entries,) = r.evaluate(Graph("table", [], [second], chain), [])
    table = r.const(entries, DType.INT8, f"{node.output.name}_table")
    return r.emit(ops.Table(), inner.inputs[0], table)


RULES = (fuse_tables,)
