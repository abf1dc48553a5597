"""What all operators share: the base class, support tables and checks."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tosaic.errors import GraphError
from tosaic.tosa.spec import Level
from tosaic.tosa.types import DType, TensorType

if TYPE_CHECKING:
    from tosaic.tosa.graph import Graph

B, I4, I8, I16, I32, I48 = DType.BOOL, DType.INT4, DType.INT8, DType.INT16, DType.INT32, DType.INT48
F16, BF16, F32 = DType.FP16, DType.BF16, DType.FP32
E4M3, E5M2 = DType.FP8E4M3, DType.FP8E5M2

# Support tables: type of the first data operand -> profile or extension that it needs.
FLOATS = {F16: "FP", BF16: "bf16", F32: "FP"}
FP8 = {E4M3: "fp8e4m3", E5M2: "fp8e5m2"}
INTS = {I8: "INT", I16: "INT", I32: "INT"}
BOOLS = {B: "INT|FP"}
DATA = BOOLS | INTS | FLOATS
MOVEMENT = DATA | FP8
ARITHMETIC = {I32: "INT|FP"} | FLOATS
NARROW = {I8: "INT", I16: "int16"} | FLOATS
MACS = NARROW | FP8
SHIFTS = {I8: "INT|FP", I16: "INT|FP", I32: "INT|FP"}
STORED = SHIFTS | BOOLS | FLOATS | FP8 | {I4: "int4", I48: "int16"}
ACCUMULATOR = {I8: I32, I16: I48, E4M3: F16, E5M2: F16, F16: F16, BF16: BF16, F32: F32}


class Rounding(enum.Enum):
    """Rounding of RESCALE (specification section 2.13.2)."""

    SINGLE = "single"
    DOUBLE = "double"
    INEXACT = "inexact"


class ResizeMode(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"


class NanMode(enum.Enum):
    """What a comparison of a NaN with a number gives: the NaN, or the number."""

    PROPAGATE = "propagate"
    IGNORE = "ignore"


@dataclass(frozen=True)
class Op:
    """Base of all operators."""

    NAME: ClassVar[str]
    ARITY: ClassVar[int | None] = 1
    SUPPORT: ClassVar[dict[DType, str]] = DATA

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """Those that the operator runs: none, but of control flow."""
        return ()

    def results(self, *types: TensorType) -> tuple[TensorType, ...]:
        """Types of the results: one, but of FFT2D, RFFT2D and control flow.

        Raises:
            GraphError: the operator does not take these operand types.
        """
        if self.ARITY is not None and len(types) != self.ARITY:
            raise self.error(f"takes {self.ARITY} operands, found {len(types)}")
        self.require(bool(types), "takes operands, found none")
        if types[0].dtype not in self.SUPPORT:
            known = ", ".join(d.value for d in self.SUPPORT)
            raise self.error(f"takes {known}, found {types[0]}")
        found = self.rule(*types)
        return found if isinstance(found, tuple) else (found,)

    def result(self, *types: TensorType) -> TensorType:
        """Type of the only result; see `results`."""
        (only,) = self.results(*types)
        return only

    def rule(self, *types: TensorType) -> TensorType | tuple[TensorType, ...]:
        """The operator's own part of `results`, after the count and the first type were checked."""
        return types[0]

    def requires(self, *types: TensorType) -> str:
        """The profile or extension (`A|B`: either) that these operand types need."""
        return self.SUPPORT[types[0].dtype]

    def exceeds(self, level: Level, *types: TensorType) -> str | None:
        """What is beyond the level's limits, or None. The types of the results follow those of the operands."""
        for t in types:
            if t.rank > level.max_rank:
                return f"rank {t.rank} of {t} is over {level.max_rank}"
            # specification section 1.9.1: in bytes, elements below 8 bits counting as one
            if t.size * max(t.dtype.bits, 8) // 8 >= 1 << level.max_log2_size:
                return f"size of {t} is not below 2^{level.max_log2_size} bytes"
        return None

    def error(self, message: str) -> GraphError:
        return GraphError(f"{self.NAME}: {message}")

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise self.error(message)


def broadcast(op: Op, *types: TensorType) -> tuple[int, ...]:
    """Shape of a broadcast result: equal ranks, each dimension equal or 1 (specification section 1.9.2)."""
    shape = list(types[0].shape)
    for t in types[1:]:
        op.require(t.rank == len(shape), f"operands differ in rank: {', '.join(map(str, types))}; insert a reshape")
        for i, d in enumerate(t.shape):
            op.require(d == shape[i] or 1 in (d, shape[i]), f"shapes do not broadcast: {', '.join(map(str, types))}")
            shape[i] = d if shape[i] == 1 else shape[i]
    return tuple(shape)


def same_dtype(op: Op, *types: TensorType) -> None:
    op.require(len({t.dtype for t in types}) == 1, f"operands differ in type: {', '.join(map(str, types))}; insert a rescale")


def zero_point(op: Op, name: str, value: int, dtype: DType) -> None:
    op.require(value == 0 or dtype is I8, f"{name} is {value}, only i8 may have one; found {dtype.value}")
    op.require(-128 <= value <= 127, f"{name} {value} is outside i8")
