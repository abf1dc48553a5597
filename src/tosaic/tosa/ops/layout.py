"""Data layout (specification section 2.9)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tosaic.tosa.ops.base import I16, MOVEMENT, Op, same_dtype
from tosaic.tosa.spec import Level
from tosaic.tosa.types import TensorType


@dataclass(frozen=True)
class Concat(Op):
    NAME = "CONCAT"
    ARITY = None
    SUPPORT = MOVEMENT | {I16: "int16"}
    axis: int

    def rule(self, *types: TensorType) -> TensorType:
        same_dtype(self, *types)
        first = types[0]
        self.require(0 <= self.axis < first.rank, f"axis {self.axis} is outside {first}")
        for t in types[1:]:
            fits = t.rank == first.rank and all(d == e for i, (d, e) in enumerate(zip(t.shape, first.shape, strict=True)) if i != self.axis)
            self.require(fits, f"shapes differ outside axis {self.axis}: {', '.join(map(str, types))}")
        length = sum(t.shape[self.axis] for t in types)
        return first.with_shape((*first.shape[: self.axis], length, *first.shape[self.axis + 1 :]))

    def exceeds(self, level: Level, *types: TensorType) -> str | None:
        if len(types) - 1 > level.max_tensor_list_size:
            return f"{len(types) - 1} operands are over {level.max_tensor_list_size}"
        return super().exceeds(level, *types)


@dataclass(frozen=True)
class Pad(Op):
    """`padding` is (before, after) for each dimension in turn; `value` is the stored (quantized) value."""

    NAME = "PAD"
    SUPPORT = MOVEMENT
    padding: tuple[int, ...]
    value: int | float = 0

    def rule(self, x: TensorType) -> TensorType:
        self.require(len(self.padding) == 2 * x.rank and min(self.padding, default=0) >= 0, f"padding {self.padding} does not fit {x}")
        return x.with_shape(tuple(d + self.padding[2 * i] + self.padding[2 * i + 1] for i, d in enumerate(x.shape)))


@dataclass(frozen=True)
class Reshape(Op):
    NAME = "RESHAPE"
    SUPPORT = MOVEMENT
    shape: tuple[int, ...]

    def rule(self, x: TensorType) -> TensorType:
        self.require(math.prod(self.shape) == x.size, f"{x} does not have the size of {self.shape}")
        return x.with_shape(self.shape)


@dataclass(frozen=True)
class Reverse(Op):
    NAME = "REVERSE"
    SUPPORT = MOVEMENT
    axis: int

    def rule(self, x: TensorType) -> TensorType:
        self.require(0 <= self.axis < x.rank, f"axis {self.axis} is outside {x}")
        return x


@dataclass(frozen=True)
class Slice(Op):
    NAME = "SLICE"
    SUPPORT = MOVEMENT
    start: tuple[int, ...]
    size: tuple[int, ...]

    def rule(self, x: TensorType) -> TensorType:
        inside = len(self.start) == len(self.size) == x.rank and all(
            s >= 0 and n > 0 and s + n <= d for s, n, d in zip(self.start, self.size, x.shape, strict=True)
        )
        self.require(inside, f"start {self.start} size {self.size} is outside {x}")
        return x.with_shape(self.size)


@dataclass(frozen=True)
class Tile(Op):
    NAME = "TILE"
    SUPPORT = MOVEMENT
    multiples: tuple[int, ...]

    def rule(self, x: TensorType) -> TensorType:
        self.require(len(self.multiples) == x.rank, f"multiples {self.multiples} do not fit {x}")
        return x.with_shape(tuple(d * m for d, m in zip(x.shape, self.multiples, strict=True)))


@dataclass(frozen=True)
class Transpose(Op):
    """Result dimension i is input dimension perms[i]."""

    NAME = "TRANSPOSE"
    SUPPORT = MOVEMENT
    perms: tuple[int, ...]

    def rule(self, x: TensorType) -> TensorType:
        self.require(sorted(self.perms) == list(range(x.rank)), f"perms {self.perms} do not fit {x}")
        return x.with_shape(tuple(x.shape[p] for p in self.perms))
