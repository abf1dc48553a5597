"""Rows: reading and writing by index, embeddings, sorting."""

from __future__ import annotations

from typing import Any

import torch
from ops.rows import Row, exact, function, layer
from torch import Tensor, nn

aten = torch.ops.aten
SELECT, INDEX, GATHER, PUT = aten.index_select.default, aten.index.Tensor, aten.gather.default, aten.index_put.default
SCATTER, FILL, EMBEDDING = aten.scatter.src, aten.scatter.value, aten.embedding.default
SORT, TOPK = aten.sort.default, aten.topk.default
PICTURE = (2, 4, 6, 8)
FLOAT, WHOLE = torch.float32, torch.int64


def at(*numbers: Any) -> Tensor:
    return torch.tensor(numbers)


def computed(
    name: str, op: torch._ops.OpOverload, run: Any, indices: tuple[int, ...], *shapes: tuple[int, ...], below: int, **options: Any
) -> Row:
    """A row whose first input is int64 in 0..below-1, the others float."""
    return function(name, op, run, indices, *shapes, span=(0, below - 1), dtypes=(WHOLE, *[FLOAT] * len(shapes)), **options)


def put(x: Tensor, indices: tuple[Tensor | None, ...], values: Tensor, accumulate: bool = False) -> Tensor:
    return aten.index_put.default(x, list(indices), values, accumulate)


def written(x: Tensor, place: Any, value: Tensor | float) -> Tensor:
    x = x.clone()
    x[place] = value
    return x


class Table(nn.Module):
    """Rows of a buffer, read by index."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(shape) * 2 - 1)

    def forward(self, index: Tensor) -> Tensor:
        return self.table[index]


class Positions(nn.Module):
    """Words and positions, as a transformer begins: readers of both are wide."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width, padding_idx=0), nn.Embedding(12, width)
        self.words.weight.data *= torch.logspace(-1, 1, words).unsqueeze(1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places(torch.arange(ids.shape[1]))


READING = exact(
    function("index_select", SELECT, lambda a: a.index_select(1, at(2, 0)), PICTURE),
    function("index_select_run", SELECT, lambda a: a.index_select(2, torch.arange(1, 4)), PICTURE),
    function("index_select_back", SELECT, lambda a: a.index_select(-1, torch.arange(6, 0, -2)), PICTURE),
    function("index_select_twice", SELECT, lambda a: a.index_select(2, torch.arange(6).repeat_interleave(3)), PICTURE),
    function("index_select_many", SELECT, lambda a: a.index_select(2, torch.arange(30) * 7 % 6), PICTURE),
    function("index_select_rank_1", SELECT, lambda a: a.index_select(0, at(3, 0, 7, 1)), (12,)),
    layer("index_select_of_conv", SELECT, lambda: nn.Sequential(nn.Conv2d(4, 6, 1), Picked(1, 5, 2, 4, 0)), PICTURE),
    computed("index_select_computed", SELECT, lambda i, a: a.index_select(2, i), (4,), PICTURE, below=6),
    computed("index_select_computed_last", SELECT, lambda i, a: a.index_select(-1, i), (3,), PICTURE, below=8),
    function("roll", SELECT, lambda a: a.roll((1, -2), (2, 3)), PICTURE),
    function("roll_flat", SELECT, lambda a: a.roll(5), PICTURE),
    function("index_mirrored", INDEX, lambda a: a[:, :, at(2, 1, 0, 1, 2, 3, 4, 5, 4, 3)], PICTURE),
    function("index_at_border", INDEX, lambda a: a[..., at(0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7)], PICTURE),
    function("index", INDEX, lambda a: a[:, at(2, 0, -1)], PICTURE),
    function("index_block", INDEX, lambda a: a[:, :, at([2, 0, 5], [1, 3, 4])], PICTURE),
    function("index_one", INDEX, lambda a: a[:, at(2)], PICTURE),
    function("index_pairs", INDEX, lambda a: a[:, at(3, 1, 0), at(5, 1, -2)], PICTURE),
    function("index_pairs_apart", INDEX, lambda a: a[at(1, 0, 1), :, at(5, 1, 2)], PICTURE),
    function("index_grid", INDEX, lambda a: a[:, :, at(5, 1, 2)[:, None], at(0, 7, 3, 4)], PICTURE),
    function("index_triangle", INDEX, lambda a: a[:, torch.tril_indices(4, 4)[0], torch.tril_indices(4, 4)[1]], (3, 4, 4)),
    function("take", INDEX, lambda a: a.take(at(3, 0, 11)), (3, 4)),
    computed("index_computed", INDEX, lambda i, a: a[:, i], (3, 2), PICTURE, below=4),
    computed("index_computed_pairs", INDEX, lambda i, a: a[i, torch.arange(5)], (5,), (4, 5, 9), below=4),
    computed("index_computed_apart", INDEX, lambda i, a: a[i, :, i], (5,), (5, 3, 6), below=5),
    layer("index_of_table", INDEX, lambda: Table(9, 5), (3, 4), span=(0, 8), dtypes=(WHOLE,)),
    function("gather", GATHER, lambda a: a.gather(2, (torch.arange(2 * 4 * 3 * 8) * 5 % 6).reshape(2, 4, 3, 8)), PICTURE),
    function("gather_same", GATHER, lambda a: a.gather(1, at(2, 0, 0)[None, :, None, None].expand(2, 3, 6, 8)), PICTURE),
    function("gather_smaller", GATHER, lambda a: a.gather(0, at([[0, 2, 1]]).reshape(1, 3)), (4, 20)),
    computed("gather_computed", GATHER, lambda i, a: a.gather(1, i), (4, 6), (4, 9), below=9),
    computed("gather_computed_inside", GATHER, lambda i, a: a.gather(1, i), (3, 2, 5), (3, 6, 5), below=6),
    computed("gather_computed_rows", GATHER, lambda i, a: a.gather(1, i.unsqueeze(-1).expand(-1, -1, 7)), (3, 2), (3, 6, 7), below=6),
    computed("take_along", GATHER, lambda i, a: torch.take_along_dim(a, i, 1), (4, 6), (4, 9), below=9),
)


class Picked(nn.Module):
    def __init__(self, dim: int, *index: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.tensor(index))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.index)


WRITING = (
    function("scatter", SCATTER, lambda a, b: a.scatter(1, at([0, 2], [1, 3], [4, 0]), b), (3, 9), (3, 2)),
    function("scatter_repeated", SCATTER, lambda a, b: a.scatter(1, at([0, 2, 0], [1, 3, 3], [4, 4, 4]), b), (3, 9), (3, 3)),
    function("scatter_inside", SCATTER, lambda a, b: a.scatter(1, at(2, 0)[None, :, None].expand(2, 2, 5), b), (2, 4, 5), (2, 2, 5)),
    function("scatter_smaller", SCATTER, lambda a, b: a.scatter(0, at([[3, 1, 2]]).reshape(1, 3), b), (4, 9), (2, 5)),
    computed("scatter_computed", SCATTER, lambda i, a, b: a.scatter(1, i, b), (6, 1), (6, 9), (6, 1), below=9),
    computed("scatter_computed_inside", SCATTER, lambda i, a, b: a.scatter(1, i, b), (2, 1, 5), (2, 6, 5), (2, 1, 5), below=6),
    computed("scatter_computed_smaller", SCATTER, lambda i, a, b: a.scatter(1, i, b), (4, 1), (6, 9), (4, 1), below=9),
    function("scatter_number", FILL, lambda a: a.scatter(1, at([0, 2], [1, 3], [4, 4]), 1.5), (3, 9)),
    computed("scatter_number_computed", FILL, lambda i, a: a.scatter(1, i, 0.5), (3, 2), (3, 9), below=9),
    computed("scatter_number_smaller", FILL, lambda i, a: a.scatter(0, i, 0.5), (2, 5), (6, 9), below=6),
    function("scatter_add", aten.where.self, lambda a, b: a.scatter_add(1, at([0, 2], [1, 3], [4, 4]), b), (3, 9), (3, 2)),
    computed("scatter_add_computed", aten.where.self, lambda i, a, b: a.scatter_add(1, i, b), (3, 4), (3, 6), (3, 4), below=6),
    function("index_put", PUT, lambda a, b: put(a, (at(3, 0),), b), (4, 9), (2, 9)),
    function("index_put_run", PUT, lambda a, b: put(a, (None, at(1, 2, 3)), b), (4, 9), (4, 3)),
    function("index_put_first", PUT, lambda a, b: put(a, (at(0, 1),), b), (4, 9), (2, 9)),
    function("index_put_last", PUT, lambda a, b: put(a, (None, at(-2, -1)), b), (4, 9), (4, 2)),
    function("index_put_one_row", PUT, lambda a, b: put(a, (at(3, 0),), b), (4, 9), (9,)),
    function("index_put_pairs", PUT, lambda a, b: put(a, (at(3, 0, 3), at(1, -1, 1)), b), (4, 9, 2), (3, 2)),
    function("index_put_apart", PUT, lambda a, b: put(a, (at(3, 0), None, at(1, -1)), b), (4, 5, 6), (2, 5)),
    function("index_put_sum", aten.linear.default, lambda a, b: put(a, (at(3, 0),), b, True), (4, 9), (2, 9)),
    function("index_number", PUT, lambda a: written(a, (slice(None), at(-1, 0)), 0.5), (4, 9)),
    function("index_masked", PUT, lambda a: written(a, a > 0.5, -0.25), (4, 9)),
    function("index_masked_rows", PUT, lambda a, b: written(a, at(True, False, True, False), b), (4, 9), (9,)),
    function("index_copy", PUT, lambda a, b: a.index_copy(1, at(4, 1), b), (3, 9), (3, 2)),
    function("index_fill", PUT, lambda a: a.index_fill(1, at(4, 1), 0.5), (3, 9)),
    function("put", PUT, lambda a, b: a.put(at(1, 5), b), (3, 9), (2,)),
    computed("index_put_computed", PUT, lambda i, a, b: put(a, (i,), b), (1,), (6, 9), (1, 9), below=6),
    computed("index_put_computed_inside", PUT, lambda i, a, b: put(a, (None, i), b), (1,), (3, 6, 5), (3, 1, 5), below=6),
    function("index_add", aten.linear.default, lambda a, b: a.index_add(1, at(4, 1, 4), b), (3, 9), (3, 3)),
    computed("index_add_computed", aten.mm.default, lambda i, a, b: a.index_add(0, i, b, alpha=2), (5,), (6, 9), (5, 9), below=6),
)

# entries are int8 in each scheme
WORDS = {"span": (0, 19), "dtypes": (WHOLE,), "decibels": (("16a8w", 40.0),)}
EMBEDDINGS = (
    layer("embedding", EMBEDDING, lambda: nn.Embedding(20, 16), (2, 9), **WORDS),
    layer("embedding_rank_1", EMBEDDING, lambda: nn.Embedding(20, 16), (9,), **WORDS),
    layer(
        "embedding_linear", EMBEDDING, lambda: nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 5)), (2, 9), span=(0, 19), dtypes=(WHOLE,)
    ),
    layer("embedding_positions", EMBEDDING, lambda: Positions(20, 16), (2, 9), **WORDS),
    layer("embedding_long", EMBEDDING, lambda: Positions(700, 40), (2, 9), span=(0, 699), dtypes=(WHOLE,), decibels=(("16a8w", 40.0),)),
    layer(
        "embedding_int32", EMBEDDING, lambda: nn.Embedding(20, 16), (2, 9), span=(0, 19), dtypes=(torch.int32,), decibels=WORDS["decibels"]
    ),
    function("bucketize", aten.gt.Tensor, lambda a: torch.bucketize(a, at(-1.0, -0.25, 0.5, 2.0)), (4, 9)),
    function("bucketize_right", aten.ge.Tensor, lambda a: torch.bucketize(a, at(-1.0, -0.25, 0.5, 2.0), right=True), (4, 9)),
    function("searchsorted", aten.gt.Tensor, lambda a: torch.searchsorted(at([-1.0, 0.5], [0.0, 2.0]), a), (2, 9)),
)


def spread(x: Tensor) -> Tensor:
    """Different values in each row, whatever the precision: positions of equal ones are PyTorch's own choice."""
    return x * 0.01 + (torch.arange(x.shape[-1]) * 7 % x.shape[-1]) * 0.25


ORDER = exact(
    function("sort", SORT, lambda a: a.sort()[0], (5, 9)),
    function("sort_axis", SORT, lambda a: a.sort(1, descending=True)[0], (2, 6, 3, 4)),
    function("sort_stable", aten.sort.stable, lambda a: a.sort(stable=True, descending=True), (3, 200)),
    function("sort_positions", SORT, lambda a: spread(a).sort()[1], (2, 30)),
    function("sort_rank_1", SORT, lambda a: a.sort(0)[0], (30,)),
    layer("sort_of_linear", SORT, lambda: nn.Sequential(nn.Linear(8, 12), Sorted()), (6, 8)),
    function("argsort", SORT, lambda a: spread(a).argsort(-1, descending=True), (5, 9)),
    function("msort", SORT, torch.msort, (9, 5)),
    function("topk", TOPK, lambda a: a.topk(3)[0], (5, 9)),
    function("topk_positions", TOPK, lambda a: spread(a).topk(3)[1], (5, 9)),
    function("topk_smallest", TOPK, lambda a: a.topk(2, 1, largest=False)[0], (2, 6, 3, 4)),
    function("topk_half", TOPK, lambda a: a.topk(20)[0], (5, 40)),
    function("topk_long", TOPK, lambda a: a.topk(7)[0], (2, 4000)),
    function("topk_of_softmax", aten.sum.dim_IntList, lambda a: a.softmax(-1).topk(2)[0].sum(-1), (6, 9), equal_at_16=0.3),
    function("topk_places", GATHER, lambda a, b: b.gather(1, spread(a).topk(3)[1] % 4), (5, 9), (5, 4), precisions=("8a8w", "16a8w")),
    layer("topk_of_linear", TOPK, lambda: nn.Sequential(nn.Linear(8, 12), Largest(3)), (6, 8)),
    function("kthvalue", SORT, lambda a: a.kthvalue(3, 1)[0], (5, 9)),
    function("median", SORT, lambda a: a.median(1)[0], (6, 8)),
    function("median_all", SORT, torch.median, (5, 9)),
)


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.5).sort(-1)[0]


class Largest(nn.Module):
    """Of a value that arithmetic reads."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.5).topk(self.count)[0] + 0.25
