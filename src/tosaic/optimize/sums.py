"""Sums with several constants.

    ADD(ADD(x, c), d) -> ADD(x, c + d)

i32 only, where c + d fits it, and only if nobody else reads the inner sum. Exact: where the inner sum overflows, which is
unpredictable, anything may stand for the result.
"""

from __future__ import annotations

import numpy as np

from tosaic.optimize.rewrite import Refused, Rewriter, rule
from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.types import DType


@rule(ops.Add)
def merge_constant_sums(r: Rewriter, node: Node) -> Value | Refused | None:
    """ADD(ADD(x, c), d) -> ADD(x, c + d)"""
    outer = _split(node)
    inner = r.made_by(outer[0], ops.Add) if outer else None
    parts = _split(inner) if inner is not None else None
    if outer is None or inner is None or parts is None:
        return None
    if node.output.dtype is not DType.INT32:
        return Refused("a float sum depends on the order")
    if r.readers(inner.output) > 1:
        return Refused("the inner sum has other readers")
    (x, c), d = parts, outer[1]
    assert c.data is not None and d.data is not None
    total = c.data.astype(np.int64) + d.data
    if total.size and (total.min() < DType.INT32.min or total.max() > DType.INT32.max):
        return Refused("the sum of the constants does not fit i32")
    return r.emit(ops.Add(), x, r.const(total, DType.INT32, f"{node.output.name}_sum"))


def _split(node: Node) -> tuple[Value, Value] | None:
    """The operand that is no constant, and the one that is."""
    a, b = node.inputs
    if a.is_const == b.is_const:
        return None
    return (b, a) if a.is_const else (a, b)


RULES = (merge_constant_sums,)
