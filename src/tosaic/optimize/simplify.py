"""Constants: equal ones become one, and what depends on constants only is computed now.

Common subexpressions and dead code need no pass of their own, each sweep of `rewrite` removes them.
"""

from __future__ import annotations

import numpy as np

from tosaic.optimize.rewrite import Evaluate, Rewriter
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value

LARGE = 1 << 20  # bytes
GROWTH = 4
_SAMPLES = 64


def merge_constants(graph: Graph) -> Graph:
    """Constants of one type with equal bytes -> one constant."""
    rewriter = Rewriter(graph)
    known: dict[tuple, list[Value]] = {}
    merged = False
    for value in graph.constants():
        assert value.data is not None
        flat = value.data.reshape(-1)
        # A sample tells weights of one shape apart without reading all of them.
        key = (value.type, flat[:: max(1, flat.size // _SAMPLES)].tobytes())
        same = known.setdefault(key, [])
        twin = next((v for v in same if v.data is not None and v.data.tobytes() == value.data.tobytes()), None)
        if twin is None:
            same.append(value)
        else:
            rewriter.replace(value, twin)
            merged = True
    return rewriter.run() if merged else graph


def fold_constants(graph: Graph, evaluate: Evaluate) -> Graph:
    """OP(constants) -> constant, computed by `evaluate`.

    Refused where the result is larger than `LARGE` and `GROWTH` times its operands: a TILE is cheaper than its result.
    An IDENTITY between a constant and a graph output stays.
    """
    folded: dict[Value, Node] = {}
    for node in graph.nodes:
        if not isinstance(node.op, ops.Identity) and all(v.is_const or v in folded for v in node.inputs) and not _grows(node):
            folded |= dict.fromkeys(node.outputs, node)
    if not folded:
        return graph
    outputs = set(graph.outputs)
    read = {v for n in graph.nodes if n.outputs[0] not in folded for v in n.inputs}
    wanted = [v for v in folded if v in read or v in outputs]
    rewriter = Rewriter(graph)
    if wanted:
        results = evaluate(Graph("constants", [], wanted, list(dict.fromkeys(folded.values()))), [])
        for value, data in zip(wanted, results, strict=True):
            rewriter.replace(value, rewriter.const(data, value.dtype, value.name))
    return rewriter.run()


def _grows(node: Node) -> bool:
    size = sum(v.type.nbytes for v in node.outputs)
    return size > LARGE and size > GROWTH * sum(v.type.nbytes for v in node.inputs)


def is_finite(value: Value) -> bool:
    """Whether `value` is a constant without infinities and NaN."""
    return value.data is not None and (not value.dtype.is_float or bool(np.isfinite(value.data.astype(np.float32)).all()))
