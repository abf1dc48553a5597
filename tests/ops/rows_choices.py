"""Rows: comparisons, logic, choices, reductions, running sums, integer arithmetic, casts, attention masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from ops.rows import ALL, Row, function, layer
from torch import Tensor, nn

aten = torch.ops.aten
PICTURE = (2, 3, 5, 6)
INTEGER = ("8a8w", "16a8w")  # int32 arithmetic is not in the FP profile
I64, I32, B = torch.int64, torch.int32, torch.bool
F32 = torch.float32
LOWEST = torch.finfo(torch.float32).min
# the quantized input is on the other side of a whole number here and there
WHOLE = {"decibels": (("8a8w", 9.0), ("16a8w", 16.0))}
NO_SIGNAL = {"decibels": (("8a8w", -1e9), ("16a8w", -1e9))}


class WithConstant(nn.Module):
    """A function of inputs and a random buffer."""

    def __init__(self, function: Callable[..., Any], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", torch.randn(shape))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, self.constant)


class Wide(nn.Module):
    """A function of two linear layers' outputs after arithmetic: int32 values."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(6, 5), nn.Linear(6, 5), function

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        return self.function(a * a, a * b)


def integers(name: str, op: torch._ops.OpOverload, run: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Row:
    """A row about integer tensors."""
    options = {"dtypes": (I64,) * len(shapes), "precisions": INTEGER, "span": (-20.0, 30.0)} | options
    return function(name, op, run, *shapes, **options)


def bools(name: str, op: torch._ops.OpOverload, run: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Row:
    """A row about bool tensors."""
    return function(name, op, run, *shapes, **({"dtypes": (B,) * len(shapes)} | options))


_NAMES = ("eq", "ne", "lt", "le", "gt", "ge")


def _scalar(name: str) -> torch._ops.OpOverload:
    return getattr(aten, name).Scalar


def _tensor(name: str) -> torch._ops.OpOverload:
    return getattr(aten, name).Tensor


COMPARISONS = (
    *(function(f"{n}_tensors", _tensor(n), getattr(torch, n), PICTURE, PICTURE) for n in _NAMES),
    *(function(f"{n}_itself", _tensor(n), lambda a, n=n: getattr(torch, n)(a, a.flip(-1)), (3, 7)) for n in _NAMES),
    *(function(f"{n}_zero", _scalar(n), lambda a, n=n: getattr(torch, n)(torch.relu(a), 0.0), PICTURE) for n in _NAMES),
    *(function(f"{n}_number", _scalar(n), lambda a, n=n: getattr(torch, n)(a, 0.37), PICTURE) for n in _NAMES),
    *(layer(f"{n}_constant", _tensor(n), lambda n=n: WithConstant(getattr(torch, n), (3, 1, 6)), PICTURE) for n in _NAMES),
    *(layer(f"{n}_wide", _tensor(n), lambda n=n: Wide(getattr(torch, n)), (4, 6)) for n in _NAMES),
    *(layer(f"{n}_wide_number", _scalar(n), lambda n=n: Wide(lambda a, b, n=n: getattr(torch, n)(a, 0.21)), (4, 6)) for n in _NAMES),
    *(integers(f"{n}_integers", _tensor(n), getattr(torch, n), (4, 5), (5,), span=(-3.0, 3.0)) for n in _NAMES),
    *(integers(f"{n}_integer_number", _scalar(n), lambda a, n=n: getattr(torch, n)(a, 2), (4, 5), span=(-3.0, 3.0)) for n in _NAMES),
    *(bools(f"{n}_bools", _tensor(n), getattr(torch, n), (4, 5), (4, 1)) for n in ("eq", "ne")),
    bools("gt_bools", aten.gt.Tensor, torch.gt, (4, 5), (4, 1), precisions=INTEGER),
    integers("gt_fraction", aten.gt.Scalar, lambda a: a > 2.5, (4, 5), span=(-3.0, 6.0)),
    integers("integers_and_reals", aten.ge.Tensor, lambda a, b: a >= b, (4, 5), (4, 5), span=(-3.0, 6.0), dtypes=(I64, F32)),
    function("ge_infinity", aten.ge.Scalar, lambda a: (a >= -math.inf, a >= math.inf), (3, 4)),
    function("gt_far_apart", aten.gt.Tensor, lambda a, b: a > b * 0.001, (40,), (40,)),
    function("gt_rank_5", aten.gt.Tensor, torch.gt, (1, 2, 3, 4, 5), (4, 1)),
    function("gt_rank_0", aten.gt.Tensor, lambda a: a.sum() > a.mean(), (3, 4)),
    function("one_hot", aten.eq.Tensor, lambda a: F.one_hot(a.argmax(-1), 6), (4, 6), precisions=INTEGER),
    function("mask_of_reals", aten.logical_and.default, lambda a, b: torch.logical_and(a > 0, b < 1), PICTURE, PICTURE),
    bools("logical_or", aten.logical_or.default, torch.logical_or, (4, 5), (5,)),
    bools("logical_xor", aten.logical_xor.default, torch.logical_xor, (4, 5), (4, 5)),
    bools("logical_not", aten.logical_not.default, torch.logical_not, (4, 5)),
    function("logical_not_real", aten.logical_not.default, lambda a: torch.logical_not(torch.relu(a)), (4, 5)),
    integers("logical_and_integers", aten.logical_and.default, torch.logical_and, (4, 5), (4, 5), span=(-1.0, 2.0), dtypes=(I64, B)),
    *(
        bools(f"bitwise_{n}_bools", getattr(aten, f"bitwise_{n}").Tensor, getattr(torch, f"bitwise_{n}"), (4, 5), (4, 5))
        for n in ("and", "or", "xor")
    ),
    *(
        integers(f"bitwise_{n}", getattr(aten, f"bitwise_{n}").Tensor, getattr(torch, f"bitwise_{n}"), (4, 5), (5,))
        for n in ("and", "or", "xor")
    ),
    *(
        integers(f"bitwise_{n}_number", getattr(aten, f"bitwise_{n}").Scalar, lambda a, n=n: getattr(torch, f"bitwise_{n}")(a, 13), (4, 5))
        for n in ("and", "or", "xor")
    ),
    integers("bitwise_not", aten.bitwise_not.default, torch.bitwise_not, (4, 5)),
    bools("bitwise_not_bools", aten.bitwise_not.default, torch.bitwise_not, (4, 5)),
    integers("shift_left", aten.__lshift__.Scalar, lambda a: a << 3, (4, 5)),
    integers("shift_right", aten.__rshift__.Scalar, lambda a: a >> 2, (4, 5)),
    integers("shift_left_by_tensor", aten.__lshift__.Tensor, lambda a, b: a << (b & 7), (4, 5), (5,)),
    integers("shift_right_by_tensor", aten.__rshift__.Tensor, lambda a, b: a >> (b & 7), (4, 5), (5,)),
    integers("bitwise_left_shift", aten.bitwise_left_shift.Tensor, lambda a, b: torch.bitwise_left_shift(a, b & 3), (4, 5), (5,)),
    integers("bitwise_right_shift", aten.bitwise_right_shift.Tensor, lambda a, b: torch.bitwise_right_shift(a, b & 3), (4, 5), (5,)),
    function("isnan", aten.isnan.default, torch.isnan, (4, 5)),
    function("isinf", aten.isinf.default, torch.isinf, (4, 5)),
    function("isfinite", aten.isfinite.default, torch.isfinite, (4, 5)),
    function("isnan_of_infinite", aten.isnan.default, lambda a: _not_numbers(a).isnan(), (4, 5), precisions=("fp32",)),
    function("isinf_of_infinite", aten.isinf.default, lambda a: _not_numbers(a).isinf(), (4, 5), precisions=("fp32",)),
    function("isfinite_of_infinite", aten.isfinite.default, lambda a: _not_numbers(a).isfinite(), (4, 5), precisions=("fp32",)),
    *(
        function(f"any_{n}", op, lambda a, d=d: (a > 2.5).any(*d), PICTURE)
        for n, op, d in (("all", aten.any.default, ()), ("dim", aten.any.dim, (1, True)), ("dims", aten.any.dims, ((0, -1),)))
    ),
    *(
        function(f"all_{n}", op, lambda a, d=d: (a < 2.5).all(*d), PICTURE)
        for n, op, d in (("all", aten.all.default, ()), ("dim", aten.all.dim, (1, True)), ("dims", aten.all.dims, ((0, -1),)))
    ),
    function("any_real", aten.any.dim, lambda a: torch.relu(a - 3).any(-1), PICTURE),
    integers("all_integers", aten.all.dim, lambda a: a.all(0), (3, 5), span=(-1.0, 2.0)),
)


def _not_numbers(a: Tensor) -> Tensor:
    """Infinities of both signs and NaN among numbers; TOSA's float arithmetic makes them as PyTorch's does."""
    large = torch.where(a > 1.5, 3e38, a)
    large = torch.where(a < -1, -3e38, large) * 2.0
    return torch.where(a > 2.5, large - large, large)


SELECTIONS = (
    function("where", aten.where.self, lambda a, b: torch.where(a > b, a, b * 3), PICTURE, PICTURE),
    function("where_broadcast", aten.where.self, lambda a, b: torch.where(b > 0, a, b), PICTURE, (3, 1, 6)),
    function("where_number", aten.where.self, lambda a: torch.where(a > 0.5, a, 0.3), PICTURE),
    function("where_numbers", aten.where.self, lambda a: torch.where(a > 0.5, 1.0, -0.25), PICTURE),
    function("where_by_bools", aten.where.self, lambda m, a: torch.where(m, a, -a), (3, 5), (2, 3, 5), dtypes=(B, F32)),
    function("where_bools", aten.where.self, lambda m, a: torch.where(m, a > 1, a < 0), (3, 5), (2, 3, 5), dtypes=(B, F32)),
    function("where_scalar_bool", aten.where.self, lambda a: torch.where(a.sum() > 0, a, 2 * a), (3, 4)),
    layer("where_constant", aten.where.self, lambda: WithConstant(lambda a, c: torch.where(c > 0, a, c), (3, 5, 6)), PICTURE),
    layer("where_wide", aten.where.self, lambda: Wide(lambda a, b: torch.where(a > b, a, b)), (4, 6)),
    integers("where_integers", aten.where.self, lambda a, b: torch.where(a > b, a, 7), (4, 5), (5,)),
    function("where_integers_and_reals", aten.where.self, lambda i, a: torch.where(a > 0, i, a), (4, 5), (4, 5), dtypes=(I64, F32)),
    function("where_rank_0", aten.where.self, lambda a: torch.where(a.sum() > 0, a.mean(), a.sum()), (3, 4)),
    function("where_rank_5", aten.where.self, lambda a, b: torch.where(a > 0, a, b), (1, 2, 3, 4, 5), (3, 1, 5)),
    function("masked_fill", aten.where.self, lambda a: a.masked_fill(a > 1, -0.5), PICTURE),
    function("masked_fill_tensor", aten.where.self, lambda a: a.masked_fill(a > 1, a.mean()), PICTURE),
    function("tril", aten.where.self, lambda a: a.tril(), (2, 5, 6)),
    function("triu", aten.where.self, lambda a: a.triu(-1), (5, 5)),
    function("maximum", aten.maximum.default, torch.maximum, PICTURE, PICTURE),
    function("minimum", aten.minimum.default, torch.minimum, PICTURE, (3, 1, 6)),
    function("fmax", aten.fmax.default, torch.fmax, PICTURE, PICTURE),
    function("fmin", aten.fmin.default, torch.fmin, PICTURE, PICTURE),
    function("max_other", aten.maximum.default, torch.max, (40,), (40,)),
    function("min_other_relu", aten.minimum.default, lambda a, b: torch.relu(torch.min(a, b)), (1, 2, 3, 4, 5), (4, 1)),
    function("minimum_far_apart", aten.minimum.default, lambda a, b: torch.minimum(a, b * 1e-4 + 1e-4), (40,), (40,)),
    layer("maximum_constant", aten.maximum.default, lambda: WithConstant(torch.maximum, (3, 1, 6)), PICTURE),
    layer("maximum_wide", aten.maximum.default, lambda: Wide(torch.maximum), (4, 6)),
    integers("maximum_integers", aten.maximum.default, torch.maximum, (4, 5), (5,)),
    bools("maximum_bools", aten.maximum.default, torch.maximum, (4, 5), (5,), precisions=INTEGER),
    function("clamp_tensors", aten.clamp.Tensor, lambda a, b: a.clamp(b, b + 0.5), PICTURE, PICTURE),
    function("clamp_from_tensor", aten.clamp.Tensor, lambda a, b: a.clamp_min(b), PICTURE, (3, 1, 1)),
    function("clamp_to_tensor", aten.clamp.Tensor, lambda a, b: a.clamp_max(b), PICTURE, (3, 1, 1)),
    integers("clamp_integers", aten.clamp.default, lambda a: a.clamp(-2, 5), (4, 5)),
    integers("relu_integers", aten.relu.default, torch.relu, (4, 5)),
    function("nan_to_num", aten.nan_to_num.default, torch.nan_to_num, (4, 5)),
    function("nan_to_num_infinite", aten.nan_to_num.default, lambda a: _not_numbers(a).nan_to_num(0.5), (4, 5), precisions=("fp32",)),
    function("nan_to_num_all", aten.nan_to_num.default, lambda a: _not_numbers(a).nan_to_num(0.5, 1.0, -2.0), (4, 5), precisions=("fp32",)),
    function("sign", aten.sign.default, lambda a: torch.sign(torch.relu(a) - torch.relu(1 - a)), PICTURE),
    integers("sign_integers", aten.sign.default, torch.sign, (4, 5), span=(-2.0, 2.0)),
)

REDUCTIONS = (
    function("amax", aten.amax.default, lambda a: a.amax(1), PICTURE),
    function("amax_dims", aten.amax.default, lambda a: a.amax((0, -1), keepdim=True), PICTURE),
    function("amin", aten.amin.default, lambda a: a.amin(-2), PICTURE),
    function("amin_all", aten.amin.default, lambda a: a.amin(), (1, 2, 3, 4, 5)),
    layer("amax_wide", aten.amax.default, lambda: Wide(lambda a, b: (a + b).amax(-1)), (4, 6)),
    layer("amax_of_conv", aten.amax.default, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), Amax()), PICTURE),
    integers("amax_integers", aten.amax.default, lambda a: a.amax(0), (4, 5)),
    bools("amax_bools", aten.amax.default, lambda a: a.amax(0), (2, 5)),
    function("max_all", aten.max.default, torch.max, PICTURE),
    function("min_all", aten.min.default, torch.min, (7,)),
    function("max_dim", aten.amax.default, lambda a: torch.max(a, 1), PICTURE),
    function("min_dim", aten.argmin.default, lambda a: torch.min(a, -1, keepdim=True), PICTURE),
    layer("max_dim_wide", aten.argmax.default, lambda: Wide(lambda a, b: (a + b).max(-1)), (4, 6)),
    function("aminmax", aten.amin.default, lambda a: torch.aminmax(a, dim=1), PICTURE),
    function("argmin", aten.argmin.default, lambda a: a.argmin(1), PICTURE),
    function("argmin_keepdim", aten.argmin.default, lambda a: a.argmin(-2, keepdim=True), PICTURE),
    function("argmin_all", aten.argmin.default, torch.argmin, (5, 7)),
    function("argmin_all_keepdim", aten.argmin.default, lambda a: a.argmin(keepdim=True), (5, 7)),
    integers("argmin_integers", aten.argmin.default, lambda a: a.argmin(1), (4, 5), span=(-3.0, 3.0)),
    integers("argmax_integers", aten.argmax.default, lambda a: a.argmax(0, keepdim=True), (4, 5), span=(-3.0, 3.0)),
    function("argmax_rank_1", aten.argmax.default, torch.argmax, (9,)),
    function("prod", aten.prod.dim_int, lambda a: a.prod(1), PICTURE),
    function("prod_keepdim", aten.prod.dim_int, lambda a: a.prod(-1, keepdim=True), (2, 3, 7), span=(0.3, 1.5)),
    function("prod_long", aten.prod.dim_int, lambda a: a.prod(-1), (6, 37), span=(0.5, 1.4), precisions=("fp32",)),
    function("prod_in_pairs", aten.mul.Tensor, lambda a: a.prod(-1), (6, 37), span=(0.5, 1.4), precisions=("8a8w", "16a8w")),
    function("prod_all", aten.prod.default, torch.prod, (7,), span=(0.5, 1.5)),
    integers("prod_integers", aten.prod.dim_int, lambda a: a.prod(1), (4, 5), span=(-3.0, 3.0)),
    bools("sum_bools", aten.sum.dim_IntList, lambda a: a.sum(1), (4, 5)),
    bools("mean_bools", aten.mean.dim, lambda a: a.float().mean(1), (4, 5)),
    bools("sum_bools_as_real", aten.sum.dim_IntList, lambda a: a.sum(1, dtype=torch.float32), (4, 5)),
    integers("sum_integers", aten.sum.dim_IntList, lambda a: a.sum((0, 2), keepdim=True), (2, 3, 5)),
    integers("sum_integers_all", aten.sum.dim_IntList, torch.sum, (2, 3, 5)),
    integers("mean_integers", aten.mean.dim, lambda a: a.mean(1, dtype=torch.float32), (4, 5), precisions=("8a8w", "16a8w", "fp32")),
    function("count_nonzero", aten.ne.Scalar, lambda a: torch.count_nonzero(torch.relu(a), dim=1), PICTURE),
    function("share_of_mask", aten._to_copy.default, lambda a: (a > 0.4).float().mean((1, 2)), (2, 8, 8)),
    function("masked_mean", aten._to_copy.default, lambda a: (a * (a > 0).float()).sum(1), PICTURE),
    function("cumsum", aten.cumsum.default, lambda a: a.cumsum(1), PICTURE),
    function("cumsum_last", aten.cumsum.default, lambda a: a.cumsum(-1), (3, 40), span=(-1.0, 1.3)),
    function("cumsum_rank_1", aten.cumsum.default, lambda a: a.cumsum(0), (33,)),
    function("cumsum_long", aten.cumsum.default, lambda a: a.cumsum(1), (2, 600), span=(-1.0, 1.1)),
    layer("cumsum_wide", aten.cumsum.default, lambda: Wide(lambda a, b: (a + b).cumsum(0)), (7, 6)),
    integers("cumsum_integers", aten.cumsum.default, lambda a: a.cumsum(-1), (4, 5)),
    bools("cumsum_bools", aten.cumsum.default, lambda a: a.cumsum(-1), (4, 9), precisions=INTEGER),
    function("cumprod", aten.cumprod.default, lambda a: a.cumprod(1), (2, 6, 3), span=(0.2, 1.6)),
    function("cumprod_long", aten.cumprod.default, lambda a: a.cumprod(1), (2, 40), span=(0.6, 1.2), precisions=("fp32",)),
    function("cumprod_in_steps", aten.mul.Tensor, lambda a: a.cumprod(1), (2, 40), span=(0.6, 1.2), precisions=INTEGER),
    integers("cumprod_integers", aten.cumprod.default, lambda a: a.cumprod(-1), (4, 5), span=(-3.0, 3.0)),
)


class Amax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax(1)


def _divisors(b: Tensor) -> Tensor:
    """Integers but zero."""
    return torch.where(b == 0, 4, b)


INTEGERS = (
    integers("add_integers", aten.add.Tensor, lambda a, b: torch.add(a, b, alpha=3), (4, 5), (5,)),
    integers("add_integer_number", aten.add.Tensor, lambda a: a + 7, (4, 5)),
    integers("sub_integers", aten.sub.Tensor, torch.sub, (4, 5), (5,), dtypes=(I32, I32)),
    integers("rsub_integers", aten.rsub.Scalar, lambda a: 1 - a, (4, 5)),
    integers("mul_integers", aten.mul.Tensor, torch.mul, (4, 5), (5,)),
    integers("mul_integers_and_bools", aten.mul.Tensor, torch.mul, (4, 5), (5,), dtypes=(I64, B)),
    bools("add_bools", aten.add.Tensor, torch.add, (4, 5), (5,), precisions=INTEGER),
    bools("mul_bools", aten.mul.Tensor, torch.mul, (4, 5), (5,), precisions=INTEGER),
    integers("neg_integers", aten.neg.default, torch.neg, (4, 5)),
    integers("mul_integers_by_fraction", aten.mul.Tensor, lambda a: a * 0.125, (4, 5), precisions=("8a8w", "16a8w", "fp32")),
    integers("div_integers", aten.div.Tensor, lambda a: a / 8, (4, 5), precisions=("8a8w", "16a8w", "fp32")),
    function("add_integers_and_reals", aten.add.Tensor, lambda i, a: i + a, (4, 5), (4, 5), dtypes=(I64, F32), span=(-9.0, 20.0)),
    function("mul_integers_and_reals", aten.mul.Tensor, lambda i, a: i * a, (4, 5), (4, 5), dtypes=(I64, F32), span=(-9.0, 20.0)),
    function("argmax_and_reals", aten.add.Tensor, lambda a, b: a.argmax(-1) + b, (40, 3), (40,), precisions=("16a8w",)),
    function("argmax_of_whole_numbers", aten.add.Tensor, lambda a, b: (a > 0).long().argmax(-1) + b, (40, 3), (40,), precisions=INTEGER),
    function("cat_integers_and_reals", aten.cat.default, lambda i, a: torch.cat([i, a]), (9,), (9,), dtypes=(I64, F32)),
    function("maximum_integers_and_reals", aten.maximum.default, torch.maximum, (4, 5), (5,), dtypes=(I64, F32)),
    integers(
        "angles_of_positions",
        aten.cos.default,
        lambda i: torch.cos(i[:, None] * torch.tensor([1.0, 0.3, 0.02])),
        (9,),
        precisions=ALL,
        lsb_at_16=2,
        equal_at_16=0.4,  # angles of many turns
    ),
    integers("sum_as_reals", aten.mul.Tensor, lambda i: i.sum(-1, dtype=F32) * 0.3, (6, 5), precisions=ALL),
    *(
        integers(f"{n}_of_quotient", aten.div.Tensor_mode, run, (60,))
        for n, run in (
            ("floor", lambda i: (i / 7).floor()),
            ("trunc", lambda i: (i.float() / 7).int()),
            ("rest", lambda i: (i / 7.0).trunc()),
        )
    ),
    function("mul_bools_and_reals", aten.mul.Tensor, lambda m, a: m * a, (4, 5), (4, 5), dtypes=(B, F32)),
    *(
        integers(f"{n}_{d}".replace("-", "minus_"), op, lambda a, f=f, d=d: f(a, d), (6, 11))
        for n, op, f in (
            ("remainder", aten.remainder.Scalar, torch.remainder),
            ("fmod", aten.fmod.Scalar, torch.fmod),
            ("floor_divide", aten.floor_divide.default, torch.floor_divide),
        )
        for d in (7, -7, 8)
    ),
    integers("remainder_tensors", aten.remainder.Tensor, lambda a, b: torch.remainder(a, _divisors(b)), (6, 11), (6, 11)),
    integers("remainder_of_number", aten.remainder.Scalar_Tensor, lambda a: torch.remainder(23, _divisors(a)), (6, 11)),
    integers("fmod_tensors", aten.fmod.Tensor, lambda a, b: torch.fmod(a, _divisors(b)), (6, 11), (6, 11)),
    integers("floor_divide_tensors", aten.floor_divide.default, lambda a, b: a // _divisors(b), (6, 11), (6, 11)),
    integers("div_trunc", aten.div.Tensor_mode, lambda a: torch.div(a, 7, rounding_mode="trunc"), (6, 11)),
    integers("div_floor", aten.div.Tensor_mode, lambda a, b: torch.div(a, _divisors(b), rounding_mode="floor"), (6, 11), (11,)),
    integers("div_scalar_trunc", aten.div.Scalar_mode, lambda a: aten.div.Scalar_mode(a, -5, rounding_mode="trunc"), (6, 11)),
    function("floor_divide_reals", aten.floor_divide.default, lambda a: torch.floor_divide(a, 0.8), PICTURE, **WHOLE),
    function("div_trunc_reals", aten.div.Tensor_mode, lambda a: torch.div(a, 0.8, rounding_mode="trunc"), PICTURE, **WHOLE),
    function("remainder_reals", aten.remainder.Scalar, lambda a: torch.remainder(a, 0.8), PICTURE, **WHOLE),
    function("fmod_reals", aten.fmod.Scalar, lambda a: torch.fmod(a, 0.8), PICTURE, **WHOLE),
    *(
        function(f"{name}_{n}", op, lambda a, b, f=f, size=size: f(a, size(b)), (8, 25), (8, 25), **WHOLE)
        for name, op, f in (
            ("floor_divide_pairs", aten.floor_divide.default, torch.floor_divide),
            ("div_trunc_pairs", aten.div.Tensor_mode, lambda a, b: torch.div(a, b, rounding_mode="trunc")),
            ("remainder_pairs", aten.remainder.Tensor, torch.remainder),
            ("fmod_pairs", aten.fmod.Tensor, torch.fmod),
        )
        for n, size in (("positive", lambda b: b.abs() + 0.4), ("signed", lambda b: torch.where(b < 0, b - 0.4, b + 0.4)))
    ),
    layer("remainder_by_constants", aten.remainder.Tensor, lambda: WithConstant(torch.remainder, (5,)), (9, 5), **WHOLE),
    function("remainder_of_constant", aten.remainder.Scalar_Tensor, lambda a: torch.remainder(7.3, a.abs() + 0.5), (9, 5), **WHOLE),
    layer(
        "remainder_wide",
        aten.remainder.Tensor,
        lambda: Wide(lambda a, b: torch.remainder(b, a + 0.3)),
        (9, 6),
        precisions=("8a8w", "fp32"),  # 48-bit accumulators take 16-bit multipliers: the other side of a whole number
        **WHOLE,
    ),
    integers("cast_to_real", aten._to_copy.default, lambda a: a.float() * 0.3, (4, 5), precisions=ALL),
    bools("cast_bools_to_real", aten._to_copy.default, lambda a: a.float(), (4, 5)),
    bools("cast_bools_to_integers", aten._to_copy.default, lambda a: a.long(), (4, 5), precisions=INTEGER),
    integers("cast_to_bool", aten._to_copy.default, lambda a: a.bool(), (4, 5), span=(-1.0, 1.0)),
    function("cast_reals_to_integers", aten._to_copy.default, lambda a: a.long(), (4, 25)),
    function("cells_of_reals", aten._to_copy.default, lambda a: (a * 8).long() * 3 + 1, (4, 25), precisions=("8a8w", "16a8w"), **WHOLE),
    # 48-bit accumulators take 16-bit multipliers: the other side of a whole number
    layer("cast_wide_to_integers", aten._to_copy.default, lambda: Wide(lambda a, b: ((a - b) * 20).int()), (4, 6), precisions=("8a8w",)),
    function("cast_reals_to_bool", aten._to_copy.default, lambda a: torch.relu(a).bool(), (4, 5)),
)


def _causal(n: int, value: float) -> Tensor:
    return torch.full((n, n), value).triu(1)


class Masked(nn.Module):
    """Attention scores with a mask, and the softmax that reads them."""

    def __init__(self, mask: Callable[..., Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.mask = nn.Linear(8, 8), nn.Linear(8, 8), mask

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1)
        return torch.softmax(self.mask(scores, *others), -1)


class Buffered(Masked):
    """A causal mask that is a buffer."""

    def __init__(self, value: float) -> None:
        super().__init__(lambda scores: scores + self.causal)
        self.register_buffer("causal", _causal(6, value))


def masked(name: str, op: torch._ops.OpOverload, mask: Callable[..., Tensor], *others: tuple[int, ...]) -> Row:
    dtypes = (F32, *(I64 for _ in others))
    # at int16 two linears, a product and a softmax are in a row
    return layer(name, op, lambda: Masked(mask), (2, 6, 8), *others, dtypes=dtypes, span=(-1.6, 1.6), lsb_at_16=4)


def extended(mask: Tensor, lowest: float) -> Tensor:
    """BERT's mask of padding, from token counts: 1 where a token is, as float; 0 where a token is and `lowest` elsewhere."""
    return (1.0 - (mask > -1)[:, None, :].float()) * lowest


MASKS = (
    masked("mask_causal_infinite", aten.add.Tensor, lambda s: s + _causal(6, -math.inf)),
    masked("mask_causal_lowest", aten.add.Tensor, lambda s: s + _causal(6, LOWEST)),
    masked("mask_causal_ten_thousand", aten.add.Tensor, lambda s: s + _causal(6, -1e4)),
    layer("mask_buffer_infinite", aten.add.Tensor, lambda: Buffered(-math.inf), (2, 6, 8), span=(-1.6, 1.6)),
    masked("mask_filled_infinite", aten.where.self, lambda s: s.masked_fill(torch.ones(6, 6).triu(1) > 0, -math.inf)),
    masked("mask_filled_billion", aten.where.self, lambda s: s.masked_fill(torch.ones(6, 6).triu(1) > 0, -1e9)),
    masked("mask_filled_by_input", aten.where.self, lambda s, m: s.masked_fill((m < 0)[:, None, :], LOWEST), (2, 6)),
    masked("mask_where_numbers", aten.where.self, lambda s, m: s + torch.where(m[:, None, :] > -1, 0.0, LOWEST), (2, 6)),
    *(
        masked(f"mask_extended_{n}", aten.rsub.Scalar, lambda s, m, lowest=lowest: s + extended(m, lowest), (2, 6))
        for n, lowest in (("lowest", LOWEST), ("billion", -1e9), ("ten_thousand", -1e4))
    ),
    masked("mask_subtracted", aten.sub.Tensor, lambda s, m: s - (m < 0)[:, None, :].float() * 1e30, (2, 6)),
    masked("mask_inverted", aten.sub.Tensor, lambda s, m: s + ((m > -1)[:, None, :].float() - 1) * 1e9, (2, 6)),
    function("masked_maximum", aten.amax.default, lambda a: torch.where(a > 0, a, -math.inf).amax(-1), (4, 20)),
)
