"""Element types and tensor types of TOSA (specification section 1.8, "Number formats")."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np


class DType(enum.Enum):
    """A TOSA element type; the value is its name in the text form."""

    BOOL = "i1"
    INT4 = "i4"
    INT8 = "i8"
    INT16 = "i16"
    INT32 = "i32"
    INT48 = "i48"
    FP8E4M3 = "f8e4m3"
    FP8E5M2 = "f8e5m2"
    FP16 = "f16"
    BF16 = "bf16"
    FP32 = "f32"

    @property
    def is_integer(self) -> bool:
        """True for the signed integer types (not for BOOL)."""
        return self is not DType.BOOL and not self.is_float

    @property
    def is_float(self) -> bool:
        return self in (DType.FP8E4M3, DType.FP8E5M2, DType.FP16, DType.BF16, DType.FP32)

    @property
    def bits(self) -> int:
        """Width in bits as stored in a file (INT48 takes 48, INT4 takes 4, BOOL takes 8)."""
        return _BITS[self]

    @property
    def numpy(self) -> np.dtype:
        """The numpy type that holds one element in memory (int48 in int64, int4 in int8)."""
        return _NUMPY[self]

    @property
    def min(self) -> int:
        """Smallest value of an integer type; int4 has no -8 (specification section 1.8)."""
        return -(1 << (self.bits - 1)) + (self is DType.INT4)

    @property
    def max(self) -> int:
        """Largest value of an integer type."""
        return (1 << (self.bits - 1)) - 1

    def __repr__(self) -> str:
        return f"DType.{self.name}"


_BITS = {
    DType.BOOL: 8,
    DType.INT4: 4,
    DType.INT8: 8,
    DType.INT16: 16,
    DType.INT32: 32,
    DType.INT48: 48,
    DType.FP8E4M3: 8,
    DType.FP8E5M2: 8,
    DType.FP16: 16,
    DType.BF16: 16,
    DType.FP32: 32,
}
_NUMPY = {
    dtype: np.dtype(kind)
    for dtype, kind in {
        DType.BOOL: np.bool_,
        DType.INT4: np.int8,
        DType.INT8: np.int8,
        DType.INT16: np.int16,
        DType.INT32: np.int32,
        DType.INT48: np.int64,
        DType.FP8E4M3: ml_dtypes.float8_e4m3fn,
        DType.FP8E5M2: ml_dtypes.float8_e5m2,
        DType.FP16: np.float16,
        DType.BF16: ml_dtypes.bfloat16,
        DType.FP32: np.float32,
    }.items()
}


@dataclass(frozen=True)
class TensorType:
    """Element type and static shape of a value."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensor."""
        return (self.size * self.dtype.bits + 7) // 8

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        return TensorType(self.dtype, tuple(int(d) for d in shape))

    def __str__(self) -> str:
        return f"{self.dtype.value}[{','.join(map(str, self.shape))}]"
