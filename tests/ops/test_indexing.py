"""Indexing, embeddings and order beyond the table: what is refused, the precision of embeddings, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ops.rows import Function
from ops.test_operators import sqnr

import tosaic
from tosaic.errors import CaptureError, TosaicError, UnsupportedError
from tosaic.execute.simulator import Simulator
from tosaic.lower.context import Context
from tosaic.lower.embedding import embedding
from tosaic.lower.layout import merge_axes
from tosaic.lower.operand import Operand, Quant
from tosaic.tosa.graph import Builder, Graph
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
Axes = tuple[int, ...]
INDEX = torch.tensor([0, 1])


def put(x: torch.Tensor, index: torch.Tensor, values: torch.Tensor, accumulate: bool = False) -> torch.Tensor:
    return torch.ops.aten.index_put.default(x, [index], values, accumulate)


REFUSED: tuple[tuple[str, type[TosaicError], Callable[..., Any], tuple[torch.Tensor, ...], str], ...] = (
    ("mask", CaptureError, lambda x: x[x > 0], (torch.rand(4, 5),), "depends on the values of a tensor"),
    ("masked_select", CaptureError, lambda x: x.masked_select(x > 0), (torch.rand(4, 5),), "depends on the values of a tensor"),
    ("nonzero", CaptureError, torch.nonzero, (torch.rand(4, 5),), "depends on the values of a tensor"),
    ("outside", UnsupportedError, lambda x: x.index_select(0, INDEX + 3), (torch.rand(4, 5),), "index 3..4 is outside an axis of 4"),
    ("put_mask", UnsupportedError, lambda x: put(x, x > 0, x.reshape(-1)[:20]), (torch.rand(4, 5) + 1,), "where each goes would depend"),
    (
        "put_sum",
        UnsupportedError,
        lambda x, y: torch.ops.aten.index_put.default(x, [INDEX * 0, None, INDEX * 0], y, True),
        (torch.rand(4, 5, 6), torch.rand(2, 5)),
        "sums at indices that may meet, of axes that are not adjacent",
    ),
    (
        "adaptive_positions",
        UnsupportedError,
        lambda x: torch.nn.functional.adaptive_max_pool2d(x, 3, return_indices=True),
        (torch.rand(1, 2, 9, 8),),
        "adaptive_max_pool2d.default: its result number 1 is not computed",
    ),
    ("short_integers", UnsupportedError, lambda x: x + 1, (torch.zeros(4, dtype=torch.int8),), "i8 tensors, which wrap at 8 bits"),
    (
        "scatter_more",
        UnsupportedError,
        lambda x, i: x.scatter(1, i, torch.ones(2, 3) * x[:, :1]),
        (torch.rand(2, 2), torch.zeros(2, 3, dtype=torch.int64)),
        "3 writes to 2 places",
    ),
    ("sort_long", UnsupportedError, lambda x: x.sort()[0], (torch.rand(2, 4000),), "sort of 2 rows of 4000"),
    ("topk_long", UnsupportedError, lambda x: x.topk(100)[0], (torch.rand(2, 4000),), "sort of 2 rows of 4000"),
)


@pytest.mark.parametrize(("error", "run", "inputs", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(error: type[TosaicError], run: Callable[..., Any], inputs: tuple[torch.Tensor, ...], reason: str) -> None:
    with pytest.raises(error, match=reason):
        tosaic.compile(Function(run), inputs, spec="TOSA-1.0+FP")


def rows_of(ids: np.ndarray, weight: Operand, want: Quant | None) -> tuple[Graph, Operand]:
    builder = Builder()
    ctx = Context(builder, Spec.parse("TOSA-1.0+INT"))
    ctx.want = want
    result = embedding(ctx, weight, Operand(builder.input("ids", DType.INT32, ids.shape)))
    return builder.finish([result.value]), result  # type: ignore[list-item]


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_wide_rows_of_an_int8_table(spread: float, reference: Run) -> None:
    """Scales that differ by 10^spread between rows: at least 72 dB against the dequantized rows, each row for itself too."""
    random = np.random.default_rng(0)
    entries, scales = random.integers(-127, 128, (400, 64)), 0.01 * 10 ** (-spread * random.random(400))
    weight = Operand(array=entries, quant=Quant(tuple(scales), 0, DType.INT8), axis=0)
    ids = random.integers(0, 400, (2, 30)).astype(np.int32)
    graph, result = rows_of(ids, weight, Quant(1e-7, 0, DType.INT32))
    (ours,) = Simulator(graph).run([ids])
    assert np.array_equal(ours, reference(graph, [ids])[0])
    real, want = result.quant.real(ours), entries[ids] * scales[ids][..., None]  # type: ignore[union-attr]
    assert sqnr(want, real) > 100
    assert min(sqnr(w, r) for w, r in zip(want.reshape(60, 64), real.reshape(60, 64), strict=True)) > 72
    assert np.abs(entries).max() * 2**22 < 2**29
    assert [op.NAME for op in graph.ops].count("GATHER") == (1 if spread == 0.0 else 2)


def test_narrow_rows_are_one_gather() -> None:
    """Of the table as its readers want it, whose numbers are those of quantizing the dequantized rows."""
    random = np.random.default_rng(0)
    entries, scales = random.integers(-127, 128, (400, 64)), 0.01 * random.random(400)
    target = Quant(0.008, 3, DType.INT8)
    ids = random.integers(0, 400, (1, 30)).astype(np.int32)
    graph, _ = rows_of(ids, Operand(array=entries, quant=Quant(tuple(scales), 0, DType.INT8), axis=0), target)
    (ours,) = Simulator(graph).run([ids])
    assert np.array_equal(ours, target.store(entries[ids] * scales[ids][..., None]))
    assert [op.NAME for op in graph.ops] == ["GATHER"]


def test_sorted_positions_of_equal_elements(reference: Run) -> None:
    """int8 values with many ties, by comparisons and one after the other: of equal elements the first comes first."""
    x = torch.randint(-3, 4, (4, 40)).float()

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*x.sort(stable=True), *x.sort(stable=True, descending=True), x.topk(3)[1])

    quantized = tosaic.quantize(Function(run), (x,), [(x,)])
    artifact = tosaic.compile(quantized, spec="TOSA-1.0+INT")
    up, down = (x.sort(stable=True, descending=d)[1].numpy() for d in (False, True))
    results = artifact.run([x], float_io=True)
    assert np.array_equal(results[1], up)
    assert np.array_equal(results[3], down)
    assert np.array_equal(results[4], down[:, :3])


def test_windows_of_a_signal_are_a_few_slices() -> None:
    """Frames of 400 samples, 160 apart, are three slices, not a gather."""
    artifact = tosaic.compile(Function(lambda x: x.unfold(1, 400, 160)), (torch.rand(1, 16000),), spec="TOSA-1.0+FP")
    names = [op.NAME for op in artifact.graph.ops]
    assert names.count("SLICE") <= 5
    assert "GATHER" not in names


@pytest.mark.parametrize(
    ("shape", "perm", "merged"),
    [
        ((1, 4, 2, 4, 2, 4, 2, 3), (0, 1, 3, 5, 2, 4, 6, 7), ((4, 2, 4, 2, 4, 6), (0, 2, 4, 1, 3, 5))),
        ((2, 3, 1, 4), (0, 1, 3, 2), ((24,), (0,))),
        ((2, 3, 4), (2, 0, 1), ((6, 4), (1, 0))),
    ],
)
def test_axes_that_stay_adjacent_are_one(
    shape: tuple[int, ...], perm: tuple[int, ...], merged: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    small, order = merge_axes(shape, perm)
    assert (tuple(small), tuple(order)) == merged
    x = np.arange(np.prod(shape))
    assert np.array_equal(x.reshape(shape).transpose(perm).reshape(-1), x.reshape(small).transpose(order).reshape(-1))


def test_a_permutation_without_adjacent_axes_takes_several_steps() -> None:
    order = (7, 5, 3, 1, 6, 4, 2, 0)
    x = torch.rand(6, 256)
    model = Function(lambda x: x.reshape(2, 2, 2, 2, 2, 2, 2, 2, 6).permute(*order, 8).reshape(6, 256))
    artifact = tosaic.compile(model, (x,), spec="TOSA-1.0+FP")
    assert np.array_equal(artifact.run([x])[0], model(x).numpy())
    assert [op.NAME for op in artifact.graph.ops].count("TRANSPOSE") == 3
