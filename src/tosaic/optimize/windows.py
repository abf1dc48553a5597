"""PAD in front of a sliding window becomes the window's own padding.

    CONV2D(PAD(x, value), w, b) pad=p -> CONV2D(x, w, b) pad=p + padding     (also CONV3D, DEPTHWISE_CONV2D)
    MAX_POOL2D(PAD(x, value)) pad=p   -> MAX_POOL2D(x) pad=p + padding

Conditions: only spatial axes are padded; the value is what the window pads with (a convolution its input zero point, a
MAX_POOL2D the smallest number); the sum keeps the operator's limits. AVG_POOL2D never: it does not count its padding.
"""

from __future__ import annotations

import dataclasses

from tosaic.errors import GraphError
from tosaic.optimize.rewrite import Refused, Rewriter, rule
from tosaic.optimize.simplify import is_finite
from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.spec import LEVELS


@rule(ops.Conv2d, ops.Conv3d, ops.DepthwiseConv2d)
def pad_into_convolution(r: Rewriter, node: Node) -> Value | Refused | None:
    """CONV(PAD(x)) -> CONV(x), the value being the input zero point"""
    pad = r.made_by(node.inputs[0], ops.Pad)
    if pad is None:
        return None
    assert isinstance(node.op, ops._Conv) and isinstance(pad.op, ops.Pad)
    if pad.op.value != node.op.input_zp:
        return Refused(f"PAD writes {pad.op.value}, the convolution pads with its input zero point {node.op.input_zp}")
    if node.inputs[0].dtype.is_float and not is_finite(node.inputs[1]):
        return Refused("weights may be infinite or NaN, times a padded 0.0")
    return _fold(r, node, pad)


@rule(ops.MaxPool2d)
def pad_into_max_pool(r: Rewriter, node: Node) -> Value | Refused | None:
    """MAX_POOL2D(PAD(x)) -> MAX_POOL2D(x), the value being the smallest of the (integer) type"""
    pad = r.made_by(node.inputs[0], ops.Pad)
    if pad is None:
        return None
    assert isinstance(pad.op, ops.Pad)
    dtype = node.inputs[0].dtype
    if dtype.is_float or pad.op.value != dtype.min:
        return Refused(f"PAD writes {pad.op.value}, which may be the maximum")
    return _fold(r, node, pad)


def _fold(r: Rewriter, node: Node, pad: Node) -> Value | Refused:
    assert isinstance(pad.op, ops.Pad) and isinstance(node.op, ops._Conv | ops._Pool)
    padding = pad.op.padding
    if any(padding[:2]) or any(padding[-2:]):
        return Refused("PAD pads the batch or the channels")
    total = tuple(a + b for a, b in zip(node.op.pad, padding[2:-2], strict=True))
    if max(total) > LEVELS["8K"].max_kernel:
        return Refused(f"pad {total} is beyond level 8K")
    op = dataclasses.replace(node.op, pad=total)  # type: ignore[arg-type]
    operands = (*pad.inputs, *node.inputs[1:])
    try:
        op.result(*(v.type for v in operands))
    except GraphError as error:
        return Refused(error.what)
    return r.emit(op, *operands)


RULES = (pad_into_convolution, pad_into_max_pool)
