"""Gather and scatter (specification section 2.10)."""

from __future__ import annotations

from dataclasses import dataclass

from tosaic.tosa.ops.base import FLOATS, FP8, I32, INTS, Op, same_dtype
from tosaic.tosa.types import TensorType


@dataclass(frozen=True)
class Gather(Op):
    """values [N, K, C], indices i32 [N, W] -> [N, W, C]."""

    NAME = "GATHER"
    ARITY = 2
    SUPPORT = INTS | FLOATS | FP8

    def rule(self, values: TensorType, indices: TensorType) -> TensorType:
        fits = values.rank == 3 and indices.rank == 2 and values.shape[0] == indices.shape[0]
        self.require(fits and indices.dtype is I32, f"takes [N,K,C] and i32[N,W], found {values}, {indices}")
        return values.with_shape((values.shape[0], indices.shape[1], values.shape[2]))


@dataclass(frozen=True)
class Scatter(Op):
    """values_in [N, K, C], indices i32 [N, W], input [N, W, C] -> [N, K, C]."""

    NAME = "SCATTER"
    ARITY = 3
    SUPPORT = INTS | FLOATS | FP8

    def rule(self, values: TensorType, indices: TensorType, x: TensorType) -> TensorType:
        same_dtype(self, values, x)
        fits = (
            values.rank == 3 and indices.rank == 2 and x.shape == (*indices.shape, values.shape[2]) and values.shape[0] == indices.shape[0]
        )
        self.require(fits and indices.dtype is I32, f"takes [N,K,C], i32[N,W] and [N,W,C], found {values}, {indices}, {x}")
        return values
