"""Rows: writes whose places may meet, distances of all pairs, running extremes, positions of maxima, arithmetic of integers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from ops.rows import Row, exact, function, layer
from ops.rows_choices import INTEGER, integers
from ops.rows_indexing import at, computed, put
from torch import nn

aten = torch.ops.aten
WHERE, NORM = aten.where.self, aten.linalg_vector_norm.default
MAX_2D, MAX_3D = aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default
CUMMAX, CUMMIN, BAGS = aten.cummax.default, aten.cummin.default, aten.embedding.default
BAG: dict[str, Any] = {"equal_at_16": 0.4}  # a product: 48-bit accumulators take 16-bit multipliers
HALVES: dict[str, Any] = {"equal_at_16": 0.7}  # of sums of two, which make ties
_HITS = ([0, 2, 0], [1, 3, 3], [4, 4, 4])


def reduced(reduce: str, include_self: bool = True) -> Any:
    return lambda a, b: a.scatter_reduce(1, at(*_HITS), b, reduce, include_self=include_self)


MEETING = (
    *(function(f"scatter_{how}", WHERE, reduced(how), (3, 9), (3, 3), span=(0.3, 1.7)) for how in ("sum", "mean", "amax", "amin", "prod")),
    *(
        function(f"scatter_{how}_alone", WHERE, reduced(how, False), (3, 9), (3, 3), span=(-1.7, 1.6))
        for how in ("sum", "mean", "amax", "amin", "prod")
    ),
    computed("scatter_mean_computed", WHERE, lambda i, a, b: a.scatter_reduce(1, i, b, "mean"), (3, 4), (3, 6), (3, 4), below=6, **HALVES),
    computed("scatter_amax_computed", WHERE, lambda i, a, b: a.scatter_reduce(1, i, b, "amax"), (3, 4), (3, 6), (3, 4), below=6),
    computed("scatter_sum_smaller", WHERE, lambda i, a, b: a.scatter_reduce(0, i, b, "sum"), (4, 3), (6, 9), (5, 4), below=6),
    function("scatter_multiplied", aten.mul.Tensor, lambda a: a.scatter(1, at(*_HITS), 0.5, reduce="multiply"), (3, 9)),
    function("index_reduced", WHERE, lambda a, b: a.index_reduce(0, at(3, 0, 3), b, "amin"), (4, 9), (3, 9)),
    computed("index_put_sums", aten.mm.default, lambda i, a, b: put(a, (i,), b, True), (5,), (6, 9), (5, 9), below=6),
    function("index_put_sums_pairs", aten.add.Tensor, lambda a, b: put(a, (at(3, 0, 3), at(1, 2, 1)), b, True), (4, 9, 2), (3, 2)),
    function("put_sums", aten.add.Tensor, lambda a, b: a.put(at(1, 5, 1), b, accumulate=True), (3, 9), (3,)),
    function("index_masked_inside", aten.index_put.default, lambda a, b: put(a, (None, b > 0), at(0.5)), (4, 9, 3), (9,)),
    function("index_masked_sum", aten.index_put.default, lambda a: put(a, (a > 0,), at(0.5), True), (4, 9)),
    function("masked_scatter", WHERE, lambda a, b: a.masked_scatter(a > 0.5, b), (4, 9), (6, 8), precisions=INTEGER),
    function("diagonal_of_rectangle", WHERE, lambda a, b: a.diagonal_scatter(b, 1, 2, 1), (3, 5, 9), (3, 4)),
    integers(
        "index_put_written_to_zeros", aten.index_put.default, lambda i: put(torch.zeros(3, 9), (at(0, 1, 2), i), at(1.0)), (3,), span=(0, 8)
    ),
    *(
        layer(f"bag_{mode}", BAGS, lambda mode=mode: nn.EmbeddingBag(20, 16, mode=mode), (3, 4), span=(0, 19), dtypes=(torch.int64,), **BAG)
        for mode in ("sum", "mean", "max")
    ),
    computed("bag_offsets", BAGS, lambda i, w: F.embedding_bag(i, w, at(0, 2, 2), mode="mean"), (6,), (9, 8), below=9, **BAG),
)


def maxima(name: str, op: torch._ops.OpOverload, run: Any, shape: tuple[int, ...], **options: Any) -> Row:
    return function(f"positions_{name}", op, lambda a: run(a, **options, return_indices=True), shape)


EXTREMES = (
    *exact(
        function("cummax", CUMMAX, lambda a: a.cummax(1), (3, 9)),
        function("cummin", CUMMIN, lambda a: a.cummin(-1)[0], (2, 3, 7)),
        function("cummax_equal", CUMMAX, lambda a: torch.relu(a).cummax(0), (33, 2)),
    ),
    integers("cummax_integers", CUMMAX, lambda a: a.cummax(1), (4, 5)),
    maxima("of_image", MAX_2D, F.max_pool2d, (2, 3, 6, 8), kernel_size=2),
    maxima("padded", MAX_2D, F.max_pool2d, (2, 3, 7, 8), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    maxima("dilated", MAX_2D, F.max_pool2d, (3, 9, 8), kernel_size=(2, 3), stride=1, padding=1, dilation=2),
    maxima("of_signal", MAX_2D, F.max_pool1d, (2, 3, 8), kernel_size=2),
    maxima("of_volume", MAX_3D, F.max_pool3d, (1, 2, 4, 4, 6), kernel_size=2),
    function(
        "unpooled",
        aten.index_put.default,
        lambda a: F.max_unpool2d(*F.max_pool2d(a, 2, return_indices=True), 2),
        (2, 3, 6, 8),
        decibels=(("8a8w", 10.0), ("16a8w", 72.0)),  # of elements that are equal at 8 bits the first goes back, not the larger
    ),
    function("logcumsumexp", aten.logsumexp.default, lambda a: a.logcumsumexp(1), (3, 9)),
    function("quantile", aten.sort.default, lambda a: torch.quantile(a, 0.3, 1), (3, 9)),
    function("nanquantile", aten.sort.default, lambda a: torch.nanquantile(a, 0.3, 1), (3, 9), precisions=INTEGER),
    function("nanquantile_at_an_element", aten.sort.default, lambda a: torch.nanquantile(a, 0.5, 1), (3, 9), precisions=INTEGER),
    function("quantile_nearest", aten.sort.default, lambda a: torch.quantile(a, 0.4, interpolation="nearest"), (3, 4)),
)

DISTANCES = (
    function("cdist", NORM, torch.cdist, (2, 7, 5), (2, 4, 5)),
    function("cdist_1", NORM, lambda a, b: torch.cdist(a, b, p=1.0), (7, 5), (4, 5)),
    function("cdist_many", aten.mm.default, torch.cdist, (200, 40), (140, 40)),
    function("pdist", NORM, F.pdist, (5, 4), lsb_at_16=2),
    function("norm_3", aten.pow.Tensor_Scalar, lambda a: a.norm(3, dim=1), (6, 9), lsb_at_16=2, equal_at_16=0.3),
    function("norm_0", aten.ne.Scalar, lambda a: torch.relu(a).norm(0, dim=1), (6, 9)),
    function("dist", NORM, torch.dist, (6, 9), (6, 9)),
    function("hypot", NORM, torch.hypot, (6, 9), (6, 9)),
    function("copysign", WHERE, torch.copysign, (6, 9), (6, 9)),
    function("angle", WHERE, torch.angle, (6, 9)),
    function("heaviside", WHERE, lambda a, b: torch.heaviside(torch.relu(a), b), (6, 9), (9,)),
    function(
        "xlog1py",
        WHERE,
        lambda a, b: torch.special.xlog1py(torch.relu(a), b.abs()),
        (6, 9),
        (6, 9),
        lsb_at_16=4,  # a TABLE, and a product
        equal_at_16=0.6,
    ),
    function(
        "histogram",
        aten.ge.Tensor,
        lambda a: torch.histc(a, 7, -1.3, 2.6),
        (6, 30),
        decibels=(("8a8w", 20.0), ("16a8w", 40.0)),  # what quantization moves across an edge
    ),
    function("kl_div", WHERE, lambda a, b: F.kl_div(a.log_softmax(1), b.softmax(1), reduction="none"), (6, 9), (6, 9), equal_at_16=0.8),
    function("softmax_of_scalar", aten.add.Tensor, lambda a: a.sum().softmax(0) + a, (6, 9)),
    integers("power_of_integers", aten.mul.Tensor, lambda a: a**3, (4, 5), span=(-9.0, 9.0)),
    integers("product_of_integers", aten.sum.dim_IntList, torch.matmul, (4, 5), (5, 3)),
)
