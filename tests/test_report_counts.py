"""What `inspect` counts, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np

from tosaic.execute.compare import difference, sqnr
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
    assert not difference(a, a.astype(np.int16)).agrees
    real = np.array([1.0, np.nan], np.float32)
    near = difference(real, np.array([1.0001, np.nan], np.float32))
    assert near.agrees and near.count == 1
    assert not difference(real, np.array([1.1, np.nan], np.float32)).agrees


def test_sqnr() -> None:
    a = np.array([3.0, 4.0], np.float32)
    assert sqnr(a, a) == math.inf
    assert math.isclose(sqnr(a, a + np.float32(0.5)), 10 * math.log10(25 / 0.5))
