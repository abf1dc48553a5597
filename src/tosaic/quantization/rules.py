"""How each aten operator is quantized: one row each.

MAC     what enters is at activation precision, its weight int8 per channel; the accumulator is free
WIDE    arithmetic: takes and gives any precision; between MACs that is int32
UNARY   a function of one value: like WIDE, but at activation precision (one TABLE) behind a convolution
NARROW  arithmetic that exists for activation precision only
MOVE    data movement: the result shares the scale of its input, at any precision
JOIN    several values become one tensor: all are brought to the scale of the result, at any precision
POOL    like MOVE, but the operator exists for activation precision only
INDEX   takes activation precision, the result is an index
COMPARE  takes any precision, the result is no real number (a bool, or an index)
CLAMP   a range limit: fuses into the requantization of what produces its input, else like WIDE
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from tosaic.operators import exp_below_max, per_token_linear

aten = torch.ops.aten


class Kind(enum.Enum):
    MAC = "mac"
    WIDE = "wide"
    UNARY = "unary"
    NARROW = "narrow"
    MOVE = "move"
    JOIN = "join"
    POOL = "pool"
    INDEX = "index"
    COMPARE = "compare"
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
        narrow_result: the result is at activation precision even where arithmetic reads it.
        depth: how far below the largest element of its input others still matter (a softmax: masked scores are no numbers to
            calibrate for).
        writes: the result is the first operand, of which a part is replaced; an input of the model, as a cache is, keeps its scale.
    """

    kind: Kind
    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    fixed_range: tuple[float, float] | None = None
    natural: bool = False
    narrow_result: bool = False
    depth: float | None = None
    writes: bool = False


_MOVES = (
    aten.amax.default,
    aten.amin.default,
    aten.max.default,
    aten.min.default,
    aten.nan_to_num.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.dims,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.repeat.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split_with_sizes.default,
    aten.flip.default,
    aten.unfold.default,
    aten.index_select.default,
    aten.index.Tensor,
    aten.gather.default,
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
    aten.cummax.default,
    aten.cummin.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.constant_pad_nd.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.vec,
    aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.vec,
    aten._upsample_nearest_exact3d.default,
)

_FUNCTIONS = (
    *(aten.silu.default, aten.gelu.default, aten.mish.default, aten.hardswish.default, aten.elu.default, aten.celu.default),
    *(aten.softplus.default, aten.log_sigmoid.default, aten.threshold.default),
    *(aten.exp.default, aten.exp2.default, aten.expm1.default, aten.erfc.default, aten.erfinv.default),
    *(aten.log.default, aten.log2.default, aten.log10.default, aten.log1p.default, aten.logit.default),
    *(aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default, aten.pow.Tensor_Scalar),
    *(aten.tan.default, aten.asin.default, aten.acos.default, aten.atan.default),
    *(aten.sinh.default, aten.cosh.default, aten.asinh.default, aten.acosh.default, aten.atanh.default),
)

_COMPARISONS = (
    *(getattr(getattr(aten, name), overload) for name in ("eq", "ne", "lt", "le", "gt", "ge") for overload in ("Tensor", "Scalar")),
    *(aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default, aten.logical_not.default),
    *(getattr(getattr(aten, f"bitwise_{name}"), overload) for name in ("and", "or", "xor") for overload in ("Tensor", "Scalar")),
    *(aten.bitwise_not.default, aten.bitwise_left_shift.Tensor, aten.bitwise_right_shift.Tensor),
    *(aten.__lshift__.Scalar, aten.__lshift__.Tensor, aten.__rshift__.Scalar, aten.__rshift__.Tensor),
    *(aten.isnan.default, aten.isinf.default, aten.isfinite.default),
    *(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims),
)

_ROWS = (
    *(aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default, aten.rms_norm.default),
    *(aten.var.correction, aten.std.correction, aten.linalg_vector_norm.default),
)

RULES: dict[torch._ops.OpOverload, Rule] = {
    aten.convolution.default: Rule(Kind.MAC, (0,), weight=1, natural=True),
    aten.linear.default: Rule(Kind.MAC, (0,), weight=1, natural=True),
    per_token_linear: Rule(Kind.WIDE, weight=1, natural=True),
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
    aten.div.Tensor: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.div.Scalar: Rule(Kind.WIDE, natural=True),
    aten.neg.default: Rule(Kind.WIDE, natural=True),
    aten.mean.dim: Rule(Kind.WIDE, natural=True),
    aten.mean.default: Rule(Kind.WIDE, natural=True),
    aten.sum.dim_IntList: Rule(Kind.WIDE, natural=True),
    aten.leaky_relu.default: Rule(Kind.WIDE, natural=True),
    aten.prelu.default: Rule(Kind.WIDE, natural=True),
    aten.upsample_linear1d.vec: Rule(Kind.NARROW, natural=True),
    aten.upsample_linear1d.default: Rule(Kind.NARROW, natural=True),
    aten.upsample_bilinear2d.vec: Rule(Kind.NARROW, natural=True),
    aten.upsample_bicubic2d.vec: Rule(Kind.NARROW, natural=True),
    aten.grid_sampler_2d.default: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.grid_sampler_3d.default: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.upsample_trilinear3d.vec: Rule(Kind.NARROW, natural=True),
    aten.upsample_trilinear3d.default: Rule(Kind.NARROW, natural=True),
    aten._upsample_bilinear2d_aa.default: Rule(Kind.NARROW, natural=True),
    aten._upsample_bicubic2d_aa.default: Rule(Kind.NARROW, natural=True),
    aten.avg_pool2d.default: Rule(Kind.NARROW, natural=True),
    aten.adaptive_avg_pool2d.default: Rule(Kind.NARROW, natural=True),
    aten._adaptive_avg_pool2d.default: Rule(Kind.NARROW, natural=True),
    aten.avg_pool3d.default: Rule(Kind.NARROW, natural=True),
    aten.adaptive_avg_pool3d.default: Rule(Kind.NARROW, natural=True),
    aten._adaptive_avg_pool3d.default: Rule(Kind.NARROW, natural=True),
    aten.relu.default: Rule(Kind.CLAMP, natural=True),
    aten.relu6.default: Rule(Kind.CLAMP, natural=True),
    aten.hardtanh.default: Rule(Kind.CLAMP, natural=True),
    aten.clamp.default: Rule(Kind.CLAMP, natural=True),
    aten.sigmoid.default: Rule(Kind.UNARY, fixed_range=(0.0, 1.0)),
    aten.hardsigmoid.default: Rule(Kind.UNARY, fixed_range=(0.0, 1.0)),
    aten.tanh.default: Rule(Kind.UNARY, fixed_range=(-1.0, 1.0)),
    aten.cos.default: Rule(Kind.UNARY, fixed_range=(-1.0, 1.0)),
    aten.sin.default: Rule(Kind.UNARY, fixed_range=(-1.0, 1.0)),
    aten.erf.default: Rule(Kind.UNARY, fixed_range=(-1.0, 1.0)),
    **{op: Rule(Kind.UNARY) for op in _FUNCTIONS},
    aten.abs.default: Rule(Kind.WIDE, natural=True),
    aten.floor.default: Rule(Kind.WIDE),
    aten.ceil.default: Rule(Kind.WIDE),
    aten.round.default: Rule(Kind.WIDE),
    aten.round.decimals: Rule(Kind.WIDE),
    aten.trunc.default: Rule(Kind.WIDE),
    aten.pow.Scalar: Rule(Kind.UNARY, (1,)),
    aten.pow.Tensor_Tensor: Rule(Kind.WIDE, (0, 1)),
    aten.atan2.default: Rule(Kind.WIDE, (0, 1)),
    aten._softmax.default: Rule(Kind.WIDE, fixed_range=(0.0, 1.0), depth=64.0),
    aten._log_softmax.default: Rule(Kind.WIDE),
    aten.logsumexp.default: Rule(Kind.WIDE),
    aten.cosine_similarity.default: Rule(Kind.WIDE, (0, 1)),
    **{op: Rule(Kind.WIDE) for op in _ROWS},
    exp_below_max: Rule(Kind.WIDE, fixed_range=(0.0, 1.0), narrow_result=True, depth=64.0),
    aten.cat.default: Rule(Kind.JOIN),
    aten.scatter.src: Rule(Kind.JOIN, (0, 3), writes=True),
    aten.scatter.value: Rule(Kind.JOIN, writes=True),
    aten.index_put.default: Rule(Kind.JOIN, (0, 2), writes=True),
    aten.embedding.default: Rule(Kind.MAC, (), weight=0, natural=True),
    aten.max_pool1d.default: Rule(Kind.POOL),
    aten.max_pool2d.default: Rule(Kind.POOL),
    aten.max_pool3d.default: Rule(Kind.POOL),
    aten.max_pool2d_with_indices.default: Rule(Kind.POOL),
    aten.max_pool3d_with_indices.default: Rule(Kind.POOL),
    aten.argmax.default: Rule(Kind.INDEX),
    aten.argmin.default: Rule(Kind.INDEX),
    aten.where.self: Rule(Kind.WIDE, (1, 2), natural=True),
    aten.maximum.default: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.minimum.default: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.fmax.default: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.fmin.default: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.clamp.Tensor: Rule(Kind.WIDE, (0, 1, 2), natural=True),
    aten.sign.default: Rule(Kind.WIDE, fixed_range=(-1.0, 1.0), natural=True),
    aten.prod.default: Rule(Kind.WIDE, natural=True),
    aten.prod.dim_int: Rule(Kind.WIDE, natural=True),
    aten.cumsum.default: Rule(Kind.WIDE, natural=True),
    aten.cumprod.default: Rule(Kind.WIDE, natural=True),
    aten.div.Tensor_mode: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.div.Scalar_mode: Rule(Kind.WIDE, natural=True),
    aten.floor_divide.default: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.remainder.Scalar: Rule(Kind.WIDE, natural=True),
    aten.remainder.Tensor: Rule(Kind.WIDE, (0, 1), natural=True),
    aten.remainder.Scalar_Tensor: Rule(Kind.WIDE, (1,), natural=True),
    aten.fmod.Scalar: Rule(Kind.WIDE, natural=True),
    aten.fmod.Tensor: Rule(Kind.WIDE, (0, 1), natural=True),
    aten._to_copy.default: Rule(Kind.WIDE, natural=True),
    **{op: Rule(Kind.MOVE, natural=True) for op in _MOVES},
    **{op: Rule(Kind.COMPARE, (0, 1)) for op in _COMPARISONS},
}
