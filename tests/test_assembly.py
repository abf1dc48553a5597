"""Artifacts one behind the other compute what they compute one after the other, whatever scales they have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Run
from torch import nn

import tosaic
from tosaic.assembly import Piece, assemble
from tosaic.errors import GraphError


def part(seed: int, size: float, ports: dict[str, str]) -> tosaic.Artifact:
    """x -> x + W x, calibrated on values of a size."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.inner(x)

    torch.manual_seed(seed)
    data = [torch.randn(1, 5, 12) * size for _ in range(4)]
    return tosaic.compile(tosaic.quantize(Residual(), data[0], data, ports=ports, bias_correction=False))


@pytest.mark.parametrize("sizes", [(1.0, 2.0), (3.0, 0.002), (0.01, 500.0)], ids=["near", "finer", "coarser"])
@pytest.mark.parametrize("between", ["int32", "int8"])
def test_two_parts(between: str, sizes: tuple[float, float], reference: Run) -> None:
    first = part(0, sizes[0], {"output": between})
    second = part(1, sizes[1], {"x": between})
    pieces = [Piece(first, "a.", {}, {"output": "middle"}), Piece(second, "b.", {"x": "middle"}, {"output": "y"})]
    whole = assemble("whole", pieces, ["y"], "TOSA-1.0+INT")
    assert [p.name for p in whole.passport.inputs] == ["x"] and [p.name for p in whole.passport.outputs] == ["y"]
    assert {row.name.split(".")[0] for row in whole.passport.ledger} == {"a", "b"}
    assert all(record.node[:2] in ("a.", "b.") for record in whole.passport.values.values())
    x = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(7)) * sizes[0]
    stored = whole.run(x, float_io=True)[0]
    middle = first.run(x, float_io=True)[0]
    expected = second.run(middle, float_io=True)[0]
    # the value between is rounded once more; what the second part was not calibrated for saturates in both
    np.testing.assert_allclose(stored, expected, rtol=0, atol=2 * whole.passport.outputs[0].scale)
    extremes = [np.where(np.arange(60).reshape(1, 5, 12) % 2, 127, -128).astype(np.int8)]
    for a, b in zip(whole.run(extremes, float_io=False), reference(whole.graph, extremes), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parts_that_do_not_fit() -> None:
    torch.manual_seed(0)
    in_float = tosaic.compile(nn.Linear(12, 12), torch.randn(1, 5, 12))
    pieces = [Piece(in_float, "a.", {}, {"output": "middle"}), Piece(part(1, 1.0, {}), "b.", {"x": "middle"})]
    with pytest.raises(GraphError, match=r"middle is f32\[1, 5, 12\], and is taken as i8\[1, 5, 12\]"):
        assemble("whole", pieces, ["output"], "TOSA-1.0+INT+FP")
