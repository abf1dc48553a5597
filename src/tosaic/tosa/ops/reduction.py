"""Reductions (specification section 2.8): the reduced axis stays, with length 1."""

from __future__ import annotations

from dataclasses import dataclass

from tosaic.tosa.ops.base import BOOLS, FLOATS, I32, INTS, NanMode, Op
from tosaic.tosa.types import TensorType


@dataclass(frozen=True)
class _Reduce(Op):
    axis: int

    def rule(self, x: TensorType) -> TensorType:
        self.require(0 <= self.axis < x.rank, f"axis {self.axis} is outside {x}")
        return x.with_shape((*x.shape[: self.axis], 1, *x.shape[self.axis + 1 :]))


@dataclass(frozen=True)
class ReduceAll(_Reduce):
    NAME = "REDUCE_ALL"
    SUPPORT = BOOLS


@dataclass(frozen=True)
class ReduceAny(_Reduce):
    NAME = "REDUCE_ANY"
    SUPPORT = BOOLS


@dataclass(frozen=True)
class ReduceMax(_Reduce):
    NAME = "REDUCE_MAX"
    SUPPORT = INTS | FLOATS
    nan_mode: NanMode = NanMode.PROPAGATE


@dataclass(frozen=True)
class ReduceMin(_Reduce):
    NAME = "REDUCE_MIN"
    SUPPORT = INTS | FLOATS
    nan_mode: NanMode = NanMode.PROPAGATE


@dataclass(frozen=True)
class ReduceProduct(_Reduce):
    NAME = "REDUCE_PRODUCT"
    SUPPORT = FLOATS


@dataclass(frozen=True)
class ReduceSum(_Reduce):
    NAME = "REDUCE_SUM"
    SUPPORT = {I32: "INT"} | FLOATS
