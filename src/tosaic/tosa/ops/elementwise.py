"""Activation functions, elementwise and comparison operators (specification sections 2.3 to 2.7)."""

from __future__ import annotations

from dataclasses import dataclass

from tosaic.tosa.ops.base import (
    ARITHMETIC,
    BOOLS,
    DATA,
    FLOATS,
    I8,
    I16,
    I32,
    INTS,
    NARROW,
    SHIFTS,
    STORED,
    B,
    NanMode,
    Op,
    broadcast,
    same_dtype,
    zero_point,
)
from tosaic.tosa.types import DType, TensorType

# Activation functions (section 2.3)


@dataclass(frozen=True)
class Clamp(Op):
    NAME = "CLAMP"
    SUPPORT = NARROW
    min: int | float
    max: int | float
    nan_mode: NanMode = NanMode.PROPAGATE

    def rule(self, x: TensorType) -> TensorType:
        self.require(self.min <= self.max, f"min {self.min} is above max {self.max}")
        self.require(
            x.dtype.is_float or (x.dtype.min <= self.min and self.max <= x.dtype.max), f"{self.min}..{self.max} is outside {x.dtype.value}"
        )
        return x


@dataclass(frozen=True)
class _FloatUnary(Op):
    SUPPORT = FLOATS


# Elementwise operators (sections 2.4 to 2.6)


@dataclass(frozen=True)
class _Binary(Op):
    ARITY = 2

    def rule(self, *types: TensorType) -> TensorType:
        same_dtype(self, *types)
        return TensorType(types[0].dtype, broadcast(self, *types))


@dataclass(frozen=True)
class _Compare(_Binary):
    SUPPORT = {I32: "INT"} | FLOATS

    def rule(self, *types: TensorType) -> TensorType:
        return super().rule(*types).with_dtype(B)


@dataclass(frozen=True)
class _Extremum(_Binary):
    SUPPORT = {I32: "INT"} | FLOATS
    nan_mode: NanMode = NanMode.PROPAGATE


@dataclass(frozen=True)
class Maximum(_Extremum):
    NAME = "MAXIMUM"


@dataclass(frozen=True)
class Minimum(_Extremum):
    NAME = "MINIMUM"


@dataclass(frozen=True)
class ArithmeticRightShift(_Binary):
    NAME = "ARITHMETIC_RIGHT_SHIFT"
    SUPPORT = INTS
    round: bool = False


@dataclass(frozen=True)
class Mul(Op):
    """`shift` (i32 only): the 64-bit product is rounded and shifted right by it."""

    NAME = "MUL"
    ARITY = 2
    SUPPORT = {I8: "INT", I16: "INT", I32: "INT|FP"} | FLOATS
    shift: int = 0

    def rule(self, a: TensorType, b: TensorType) -> TensorType:
        same_dtype(self, a, b)
        self.require(0 <= self.shift <= 63 and (self.shift == 0 or a.dtype is I32), f"shift {self.shift} does not fit {a.dtype.value}")
        return TensorType(I32 if a.dtype.is_integer else a.dtype, broadcast(self, a, b))


@dataclass(frozen=True)
class Table(Op):
    """i8: 256 i8 entries; i16: 513 i16 entries, interpolated, i32 result with 7 fractional bits (section 2.4.17)."""

    NAME = "TABLE"
    ARITY = 2
    SUPPORT = {I8: "INT", I16: "int16"}

    def rule(self, x: TensorType, table: TensorType) -> TensorType:
        want = TensorType(I8, (256,)) if x.dtype is I8 else TensorType(I16, (513,))
        self.require(table == want, f"table of {x.dtype.value} inputs is {want}, found {table}")
        return x if x.dtype is I8 else x.with_dtype(I32)


@dataclass(frozen=True)
class Negate(Op):
    NAME = "NEGATE"
    SUPPORT = INTS | FLOATS
    input_zp: int = 0
    output_zp: int = 0

    def rule(self, x: TensorType) -> TensorType:
        zero_point(self, "input_zp", self.input_zp, x.dtype)
        zero_point(self, "output_zp", self.output_zp, x.dtype)
        return x


@dataclass(frozen=True)
class Select(Op):
    """condition ? a : b."""

    NAME = "SELECT"
    ARITY = 3
    SUPPORT = BOOLS

    def rule(self, c: TensorType, a: TensorType, b: TensorType) -> TensorType:
        same_dtype(self, a, b)
        self.require(a.dtype in DATA, f"does not select {a}")
        return TensorType(a.dtype, broadcast(self, c, a, b))

    def requires(self, *types: TensorType) -> str:
        return DATA[types[1].dtype]


def _elementwise(base: type[Op], name: str, cls: str, support: dict[DType, str]) -> type[Op]:
    """An operator without attributes: its base, its name and its support table are all there is to say."""
    return dataclass(frozen=True)(type(cls, (base,), {"NAME": name, "SUPPORT": support, "__module__": __name__}))


Erf = _elementwise(_FloatUnary, "ERF", "Erf", FLOATS)
Sigmoid = _elementwise(_FloatUnary, "SIGMOID", "Sigmoid", FLOATS)
Tanh = _elementwise(_FloatUnary, "TANH", "Tanh", FLOATS)
Ceil = _elementwise(_FloatUnary, "CEIL", "Ceil", FLOATS)
Cos = _elementwise(_FloatUnary, "COS", "Cos", FLOATS)
Exp = _elementwise(_FloatUnary, "EXP", "Exp", FLOATS)
Floor = _elementwise(_FloatUnary, "FLOOR", "Floor", FLOATS)
Log = _elementwise(_FloatUnary, "LOG", "Log", FLOATS)
Reciprocal = _elementwise(_FloatUnary, "RECIPROCAL", "Reciprocal", FLOATS)
Rsqrt = _elementwise(_FloatUnary, "RSQRT", "Rsqrt", FLOATS)
Sin = _elementwise(_FloatUnary, "SIN", "Sin", FLOATS)
Abs = _elementwise(Op, "ABS", "Abs", {I32: "INT"} | FLOATS)
BitwiseNot = _elementwise(Op, "BITWISE_NOT", "BitwiseNot", INTS)
Clz = _elementwise(Op, "CLZ", "Clz", {I32: "INT"})
LogicalNot = _elementwise(Op, "LOGICAL_NOT", "LogicalNot", BOOLS)
Identity = _elementwise(Op, "IDENTITY", "Identity", STORED)
Add = _elementwise(_Binary, "ADD", "Add", ARITHMETIC)
Sub = _elementwise(_Binary, "SUB", "Sub", ARITHMETIC)
Pow = _elementwise(_Binary, "POW", "Pow", FLOATS)
IntDiv = _elementwise(_Binary, "INTDIV", "IntDiv", {I32: "INT|FP"})
BitwiseAnd = _elementwise(_Binary, "BITWISE_AND", "BitwiseAnd", INTS)
BitwiseOr = _elementwise(_Binary, "BITWISE_OR", "BitwiseOr", INTS)
BitwiseXor = _elementwise(_Binary, "BITWISE_XOR", "BitwiseXor", INTS)
LogicalAnd = _elementwise(_Binary, "LOGICAL_AND", "LogicalAnd", BOOLS)
LogicalOr = _elementwise(_Binary, "LOGICAL_OR", "LogicalOr", BOOLS)
LogicalXor = _elementwise(_Binary, "LOGICAL_XOR", "LogicalXor", BOOLS)
LogicalLeftShift = _elementwise(_Binary, "LOGICAL_LEFT_SHIFT", "LogicalLeftShift", SHIFTS)
LogicalRightShift = _elementwise(_Binary, "LOGICAL_RIGHT_SHIFT", "LogicalRightShift", SHIFTS)
Equal = _elementwise(_Compare, "EQUAL", "Equal", _Compare.SUPPORT)
Greater = _elementwise(_Compare, "GREATER", "Greater", _Compare.SUPPORT)
GreaterEqual = _elementwise(_Compare, "GREATER_EQUAL", "GreaterEqual", _Compare.SUPPORT)
