"""How each aten operator is quantized: one row each.

MAC     what enters is at activation precision, its weight int8 per channel; the accumulator is free
WIDE    arithmetic: takes and gives any precision; between MACs that is int32
TABLE   a function of one value: takes and gives activation precision
MOVE    data movement: the result shares the scale of its input, at any precision
POOL    like MOVE, but the operator exists for activation precision only
INDEX   takes any precision, the result is an index
CLAMP   a range limit: fuses into the requantization of what produces its input, else like WIDE
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

aten = torch.ops.aten


class Kind(enum.Enum):
    MAC = "mac"
    WIDE = "wide"
    TABLE = "table"
    MOVE = "move"
    POOL = "pool"
    INDEX = "index"
    CLAMP = "clamp"


@dataclass(frozen=True)
class Rule:
    """One row.

    Attributes:
        inputs: positions of the arguments that are quantized activations (a list argument counts whole).
        weight: position of the weight, whose output-channel axis is 0 (1 for a transposed convolution).
        fixed_range: (low, high) that the result cannot leave, used instead of calibration.
        natural: the integer result needs no calibrated scale (an accumulator, or a value at its input's scale),
            so that a following CLAMP fuses with it.
    """

    kind: Kind
    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    fixed_range: tuple[float, float] | None = None
    natural: bool = False


_MOVES = (
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.dims,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.repeat.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split_with_sizes.default,
    aten.adaptive_max_pool2d.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.constant_pad_nd.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
)

RULES: dict[torch._ops.OpOverload, Rule] = {
    aten.convolution.default: Rule(Kind.MAC, (0,), weight=1, natural=True),
    aten.linear.default: Rule(Kind.MAC, (0,), weight=1, natural=True),
    aten.bmm.default: Rule(Kind.MAC, (0, 1), natural=True),
    aten.mm.default: Rule(Kind.MAC, (0, 1), natural=True),
    aten.batch_norm.default: Rule(Kind.WIDE, natural=True),
    aten.add.Tensor: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.sub.Tensor: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.mul.Tensor: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.add.Scalar: Rule(Kind.WIDE, natural=True),
    aten.sub.Scalar: Rule(Kind.WIDE, natural=True),
    aten.rsub.Scalar: Rule(Kind.WIDE, natural=True),
    aten.mul.Scalar: Rule(Kind.WIDE, natural=True),
    aten.div.Tensor: Rule(Kind.WIDE, natural=True),
    aten.div.Scalar: Rule(Kind.WIDE, natural=True),
    aten.neg.default: Rule(Kind.WIDE, natural=True),
    aten.mean.dim: Rule(Kind.WIDE, natural=True),
    aten.mean.default: Rule(Kind.WIDE, natural=True),
    aten.sum.dim_IntList: Rule(Kind.WIDE, natural=True),
    aten.leaky_relu.default: Rule(Kind.WIDE, natural=True),
    aten.prelu.default: Rule(Kind.WIDE, natural=True),
    aten.upsample_linear1d.vec: Rule(Kind.TABLE, natural=True),
    aten.upsample_bilinear2d.vec: Rule(Kind.TABLE, natural=True),
    aten.avg_pool2d.default: Rule(Kind.TABLE, natural=True),
    aten.adaptive_avg_pool2d.default: Rule(Kind.TABLE, natural=True),
    aten._adaptive_avg_pool2d.default: Rule(Kind.TABLE, natural=True),
    aten.relu.default: Rule(Kind.CLAMP, natural=True),
    aten.relu6.default: Rule(Kind.CLAMP, natural=True),
    aten.hardtanh.default: Rule(Kind.CLAMP, natural=True),
    aten.clamp.default: Rule(Kind.CLAMP, natural=True),
    aten.sigmoid.default: Rule(Kind.TABLE, fixed_range=(0.0, 1.0)),
    aten.hardsigmoid.default: Rule(Kind.TABLE, fixed_range=(0.0, 1.0)),
    aten.tanh.default: Rule(Kind.TABLE, fixed_range=(-1.0, 1.0)),
    aten.silu.default: Rule(Kind.TABLE),
    aten.hardswish.default: Rule(Kind.TABLE),
    aten._softmax.default: Rule(Kind.TABLE, fixed_range=(0.0, 1.0)),
    aten.cat.default: Rule(Kind.MOVE),
    aten.max_pool1d.default: Rule(Kind.POOL),
    aten.max_pool2d.default: Rule(Kind.POOL),
    aten.argmax.default: Rule(Kind.INDEX),
    **{op: Rule(Kind.MOVE, natural=True) for op in _MOVES},
}
