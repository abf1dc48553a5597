"""Floats of the simulator within the specification's precision requirements (chapter 2, of each operator).

Every f16 and bf16 number, and f32 numbers of all magnitudes, against f64 arithmetic with the specification's own bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tosaic.execute.simulator import evaluate
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder
from tosaic.tosa.ops import BF16, F16, F32
from tosaic.tosa.types import DType

# fraction bits, smallest and largest normal number
FRACTION = {F32: 23, F16: 10, BF16: 7}
LEAST = {F32: 2.0**-126, F16: 2.0**-14, BF16: 2.0**-126}
MOST = {F32: (2 - 2.0**-23) * 2.0**127, F16: 65504.0, BF16: (2 - 2.0**-7) * 2.0**127}
Array = np.ndarray


def all_numbers(dtype: DType) -> Array:
    """Every number of 16 bits; of 32 bits those with random fraction at each exponent, and those of usual size."""
    if dtype is not F32:
        return np.arange(1 << 16, dtype=np.uint16).view(dtype.numpy)
    rng = np.random.default_rng(5)
    patterns = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    usual = rng.uniform(-20, 20, 1 << 15).astype(np.float32)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, MOST[F32], -MOST[F32], 88.5, -88.5, 1, -1], np.float32)
    return np.concatenate([patterns, usual, edges])


def ulps(count: float) -> Callable[..., Array]:
    """tosa_reference_check_fp: so many units in the last place of the exact result."""

    def bound(dtype: DType, want: Array, *operands: Array) -> Array:
        exponent = np.floor(np.log2(np.abs(want), where=want != 0, out=np.zeros_like(want)))
        unit = np.maximum(np.exp2(exponent), LEAST[dtype]) * 2.0 ** -FRACTION[dtype]
        return np.where((want == 0) | ~np.isfinite(want), 0.0, count * unit)

    return bound


def absolute(dtype: DType, magnitude: Array, factor: Array, low: float | Array = 0.0, divisor: float = 1.0) -> Array:
    """calcAbsErrorBound of the specification's pseudocode; 0 at infinity, where tables state the results."""
    size = np.maximum(np.maximum(np.abs(magnitude), LEAST[dtype]), low / factor)
    return np.where(np.isfinite(factor), 2.0 ** (-FRACTION[dtype] / divisor) * size * factor, 0.0)


def base(dtype: DType) -> float:
    return 3.0 if dtype is F32 else 1.0


def power(dtype: DType, want: Array, x: Array, y: Array) -> Array:
    exponent = y * np.log(x)
    product = absolute(dtype, exponent, np.full_like(x, 5.5), np.abs(0.55 * y))
    return want * np.expm1(product) + absolute(dtype, want, base(dtype) + 2 * np.abs(exponent + product))


def double(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    return lambda x: function(torch.from_numpy(x)).numpy()


# operator -> exact function on f64, bound of the error from (type, exact result, operands)
UNARY: dict[type[ops.Op], tuple[Callable[[Array], Array], Callable[..., Array]]] = {
    ops.Ceil: (np.ceil, ulps(0.5)),
    ops.Floor: (np.floor, ulps(0.5)),
    ops.Erf: (double(torch.erf), ulps(5)),
    ops.Reciprocal: (np.reciprocal, ulps(1)),
    ops.Rsqrt: (double(torch.rsqrt), ulps(2)),
    ops.Exp: (np.exp, lambda d, want, x: absolute(d, want, base(d) + 2 * np.abs(x))),
    ops.Log: (np.log, lambda d, want, x: absolute(d, want, np.full_like(x, 5.0), 0.5)),
    ops.Sigmoid: (double(torch.sigmoid), lambda d, want, x: absolute(d, want, 2 * (1 + np.abs(x)))),
    ops.Tanh: (np.tanh, lambda d, want, x: absolute(d, want, 4 * (base(d) + 2 * np.abs(x)), 0.5)),
    ops.Sin: (np.sin, lambda d, want, x: np.maximum(absolute(d, x, np.full_like(x, 2.0), 0.0, 2.0), np.pi * LEAST[d])),
    ops.Cos: (np.cos, lambda d, want, x: absolute(d, 1 + np.abs(x), np.ones_like(x), 0.0, 2.0)),
    ops.Abs: (np.abs, ulps(0)),
    ops.Negate: (np.negative, ulps(0)),
}
BINARY: dict[type[ops.Op], tuple[Callable[[Array, Array], Array], Callable[..., Array]]] = {
    ops.Add: (np.add, ulps(0.5)),
    ops.Sub: (np.subtract, ulps(0.5)),
    ops.Mul: (np.multiply, ulps(0.5)),
    ops.Pow: (np.power, power),
}


def outside(dtype: DType, found: Array, want: Array, bound: Array) -> Array:
    """tosa_reference_check_fp_bnd, negated: where a result is not within the bound."""
    sign = np.where(want < 0, -1.0, 1.0)
    want, found = want * sign, found.astype(np.float64) * sign
    high, low = want + bound, want - bound
    high, low = np.where(high > MOST[dtype], np.inf, high), np.where(low > MOST[dtype], np.inf, low)
    low = np.where(low < -MOST[dtype], -np.inf, low)
    good = (low <= found) & (found <= high) | ((found == 0) & (low < LEAST[dtype]))
    return ~np.where(np.isnan(want), np.isnan(found), good | ~np.isfinite(bound))


def check(op: ops.Op, dtype: DType, exact: Callable[..., Array], bound: Callable[..., Array], *operands: Array) -> None:
    b = Builder()
    graph = b.finish([b.emit(op, *(b.input("x", dtype, x.shape) for x in operands))])
    (found,) = evaluate(graph, operands)
    with np.errstate(all="ignore"):
        wide = [x.astype(np.float64) for x in operands]
        want = exact(*wide)
        wrong = outside(dtype, found, want, bound(dtype, want, *wide))
    examples = [(*(x[i] for x in operands), found[i], want[i]) for i in np.flatnonzero(wrong)[:5]]
    assert not examples, f"{wrong.sum()} of {wrong.size}: (operands, found, exact) {examples}"


@pytest.mark.parametrize("dtype", FRACTION)
@pytest.mark.parametrize("cls", UNARY)
def test_of_one_operand(cls: type[ops.Op], dtype: DType) -> None:
    x = all_numbers(dtype)
    check(cls(), dtype, *UNARY[cls], x)


@pytest.mark.parametrize("dtype", FRACTION)
@pytest.mark.parametrize("cls", BINARY)
def test_of_two_operands(cls: type[ops.Op], dtype: DType) -> None:
    x = all_numbers(dtype)
    y = np.random.default_rng(6).permutation(x)
    if cls is ops.Pow:  # undefined for negative numbers, 0, infinities and NaN
        fits = (x > 0) & np.isfinite(x) & np.isfinite(y)
        x, y = x[fits], y[fits]
        y = np.where(np.arange(y.size) % 2, y, np.clip(y, -3, 3)).astype(x.dtype)
    check(cls(), dtype, *BINARY[cls], x, y)


@pytest.mark.parametrize("dtype", FRACTION)
def test_products_of_an_axis(dtype: DType) -> None:
    x = np.random.default_rng(7).uniform(-2, 2, (500, 9)).astype(dtype.numpy)

    def bound(dtype: DType, want: Array, x: Array) -> Array:
        return np.maximum(np.abs(want), LEAST[dtype]) * ((1 + 2.0 ** (-FRACTION[dtype] - 1)) ** x.shape[1] - 1)

    check(ops.ReduceProduct(1), dtype, lambda x: np.prod(x, axis=1, keepdims=True), bound, x)


def test_every_elementwise_float_operator_is_here() -> None:
    """Comparisons, selections and reductions are compared with the reference model."""
    floats = {cls for cls in ops.BY_NAME.values() if issubclass(cls, ops._FloatUnary)}
    assert floats <= UNARY.keys()
