"""What `inspect` counts, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tosaic.execute.compare import Example, difference, sqnr
from tosaic.report.counts import count
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder
from tosaic.tosa.types import DType


def test_convolutions_and_products() -> None:
    b = Builder()
    x = b.input("x", DType.INT8, (1, 8, 8, 3))
    bias = b.const(np.zeros(4), DType.INT32)
    y = b.emit(ops.Conv2d(pad=(1, 1, 1, 1), stride=(1, 1), dilation=(1, 1)), x, b.const(np.ones((4, 3, 3, 3)), DType.INT8), bias)
    z = b.input("z", DType.INT16, (1, 2, 5))
    w = b.input("w", DType.INT16, (1, 5, 7))
    product = b.emit(ops.MatMul(), z, w)
    counts = count(b.finish([y, product]))
    assert counts.macs == 8 * 8 * 4 * 27 + 2 * 7 * 5
    assert counts.operators == {"CONV2D": 1, "MATMUL": 1}
    assert counts.weight_bytes == 4 * 27 + 4 * 4
    assert str(counts.spec) == "TOSA-1.0+INT+int16"


def test_a_graph_that_either_profile_holds() -> None:
    b = Builder()
    x = b.input("x", DType.BOOL, (4,))
    assert str(count(b.finish([b.emit(ops.Reshape((2, 2)), x)])).spec) == "TOSA-1.0+INT"


def test_differences() -> None:
    a = np.array([1, 2, 3], np.int8)
    assert difference(a, a).agrees and difference(a, a).count == 0
    found = difference(a, np.array([1, 2, -128], np.int8))
    assert (found.count, found.size, found.largest, found.agrees) == (1, 3, 131.0, False)
    assert found.examples == (Example((2,), 3, -128),)
    assert not difference(a, a.astype(np.int16)).agrees


UNIT = 2.0**-23  # of float32 at 1
# (expected, found, ULP apart, within the tolerance)
FLOATS = {
    "a few units": ([1.0, np.nan], [1 + 3 * UNIT, np.nan], 3, True),
    "at the tolerance": ([1.0], [1 + 64 * UNIT], 64, True),
    "beyond it": ([1.0], [1 + 65 * UNIT], 65, False),
    "the last place is the element's": ([1.0, 1024.0], [1.0, 1024 + 1024 * UNIT * 5], 5, True),
    "what cancelled is as exact as its terms": ([0.0, 1.0, 1.0], [4 * UNIT, 1.0, 1.0], 8, True),
    "infinity is no number": ([1.0], [np.inf], math.inf, False),
    "NaN is no number": ([1.0], [np.nan], math.inf, False),
    "equal infinities": ([np.inf, 1.0], [np.inf, 1.0], 0, True),
}


@pytest.mark.parametrize("case", FLOATS)
def test_differences_of_floats(case: str) -> None:
    expected, found, ulp, agrees = FLOATS[case]
    d = difference(np.array(expected, np.float32), np.array(found, np.float32))
    assert d.agrees == agrees and (d.ulp == ulp or math.isclose(d.ulp, ulp, rel_tol=1e-6))


def test_a_tolerance_of_ones_own() -> None:
    a, b = np.float32([1.0]), np.float32([1 + 9 * UNIT])
    assert difference(a, b, 9).agrees and not difference(a, b, 8).agrees
    halves = np.float16([1.0]), np.float16([1 + 5 * 2.0**-10])
    assert not difference(*halves).agrees and difference(*halves, 5).agrees


def test_sqnr() -> None:
    a = np.array([3.0, 4.0], np.float32)
    assert sqnr(a, a) == math.inf
    assert math.isclose(sqnr(a, a + np.float32(0.5)), 10 * math.log10(25 / 0.5))
