"""The operators of TOSA 1.0: one frozen dataclass each, with its own type rule.

Fields are the attributes, and those operands that TOSA demands to be compile-time constants. `results` is the type
rule (specification chapter 2, the operator's own section): it raises GraphError where the specification has ERROR_IF.
`requires` names the profile or extension for the given operand types; `exceeds` checks the level limits.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import ClassVar

from tosaic.errors import GraphError
from tosaic.tosa.spec import Level
from tosaic.tosa.types import DType, TensorType

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

    def results(self, *types: TensorType) -> tuple[TensorType, ...]:
        """Types of the results: one, but of FFT2D and RFFT2D.

        Raises:
            GraphError: the operator does not take these operand types.
        """
        if self.ARITY is not None and len(types) != self.ARITY:
            raise self.error(f"takes {self.ARITY} operands, found {len(types)}")
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


def _same_dtype(op: Op, *types: TensorType) -> None:
    op.require(len({t.dtype for t in types}) == 1, f"operands differ in type: {', '.join(map(str, types))}; insert a rescale")


def _zero_point(op: Op, name: str, value: int, dtype: DType) -> None:
    op.require(value == 0 or dtype is I8, f"{name} is {value}, only i8 may have one; found {dtype.value}")
    op.require(-128 <= value <= 127, f"{name} {value} is outside i8")


def _sliding(op: Op, size: int, kernel: int, stride: int, before: int, after: int, dilation: int, axis: str) -> int:
    """Output length of a sliding window; TOSA demands that the window ends exactly at the border."""
    span = size - 1 + before + after - (kernel - 1) * dilation
    op.require(span >= 0, f"kernel is larger than the padded input along {axis}")
    op.require(span % stride == 0, f"stride {stride} leaves {span % stride} elements over along {axis}; slice or pad the input")
    return span // stride + 1


# Tensor operators (specification section 2.2)


@dataclass(frozen=True)
class ArgMax(Op):
    NAME = "ARGMAX"
    SUPPORT = MACS
    axis: int
    nan_mode: NanMode = NanMode.PROPAGATE

    def rule(self, x: TensorType) -> TensorType:
        self.require(0 <= self.axis < x.rank, f"axis {self.axis} is outside {x}")
        return TensorType(I32, x.shape[: self.axis] + x.shape[self.axis + 1 :])


class _Sums(Op):
    """Operators whose sums have a type of their own; of f16 they may be kept in f16 (`acc`) instead of f32."""

    acc: DType | None

    @classmethod
    def usual(cls, x: DType) -> DType:
        """The type that sums of `x` are kept in where `acc` says nothing."""
        return {F16: F32, BF16: F32}.get(x, ACCUMULATOR[x])

    def accumulator(self, x: DType) -> DType:
        """The type that sums of `x` are kept in."""
        return self.acc or self.usual(x)

    def _check_sums(self, x: DType) -> None:
        allowed = self.acc is None or (self.acc is F16 and x is F16)
        self.require(allowed, f"sums of {x.value} are kept in {self.usual(x).value}, found {self.acc and self.acc.value}")


@dataclass(frozen=True)
class _Pool(Op):
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]  # top, bottom, left, right

    def rule(self, x: TensorType) -> TensorType:
        self.require(x.rank == 4, f"takes [N,H,W,C], found {x}")
        (n, h, w, c), (t, b, l, r) = x.shape, self.pad
        self.require(
            min(self.pad) >= 0 and max(t, b) < self.kernel[0] and max(l, r) < self.kernel[1],
            f"pad {self.pad} is not below kernel {self.kernel}",
        )
        oh = _sliding(self, h, self.kernel[0], self.stride[0], t, b, 1, "H")
        ow = _sliding(self, w, self.kernel[1], self.stride[1], l, r, 1, "W")
        return TensorType(x.dtype, (n, oh, ow, c))

    def exceeds(self, level: Level, *types: TensorType) -> str | None:
        if max(*self.kernel, *self.pad) > level.max_kernel:
            return f"kernel {self.kernel} is over {level.max_kernel}"
        if max(self.stride) > level.max_stride:
            return f"stride {self.stride} is over {level.max_stride}"
        return super().exceeds(level, *types)


@dataclass(frozen=True)
class AvgPool2d(_Pool, _Sums):
    NAME = "AVG_POOL2D"
    SUPPORT = MACS
    input_zp: int = 0
    output_zp: int = 0
    acc: DType | None = None

    @classmethod
    def usual(cls, x: DType) -> DType:
        return I32 if x is I16 else super().usual(x)

    def rule(self, x: TensorType) -> TensorType:
        self._check_sums(x.dtype)
        _zero_point(self, "input_zp", self.input_zp, x.dtype)
        _zero_point(self, "output_zp", self.output_zp, x.dtype)
        return super().rule(x)


@dataclass(frozen=True)
class MaxPool2d(_Pool):
    NAME = "MAX_POOL2D"
    SUPPORT = MACS
    nan_mode: NanMode = NanMode.PROPAGATE


@dataclass(frozen=True)
class _Conv(_Sums):
    ARITY = 3
    SUPPORT = MACS
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]
    input_zp: int = 0
    weight_zp: int = 0
    local_bound: bool = False  # asks for the precision of a direct sum of floats
    acc: DType | None = None

    def _operands(self, x: TensorType, w: TensorType, b: TensorType, channels: int) -> None:
        weights = {I8: (I8, I4), I16: (I8,)}.get(x.dtype, (x.dtype,))
        self.require(w.dtype in weights, f"weights of {x.dtype.value} inputs are {' or '.join(d.value for d in weights)}, found {w}")
        self.require(b.dtype is ACCUMULATOR[x.dtype], f"bias of {x.dtype.value} inputs is {ACCUMULATOR[x.dtype].value}, found {b}")
        self.require(b.shape in ((channels,), (1,)), f"bias of {channels} channels has shape {b.shape}")
        _zero_point(self, "input_zp", self.input_zp, x.dtype)
        _zero_point(self, "weight_zp", self.weight_zp, w.dtype)
        self._check_sums(x.dtype)

    def requires(self, *types: TensorType) -> str:
        return "int4" if types[1].dtype is I4 else super().requires(*types)

    def kernel(self, weight: TensorType) -> tuple[int, ...]:
        """Spatial extent of the kernel."""
        return weight.shape[1:-1]

    def exceeds(self, level: Level, *types: TensorType) -> str | None:
        extent = max(k * d for k, d in zip(self.kernel(types[1]), self.dilation, strict=True))
        if max(extent, *self.pad) > level.max_kernel:
            return f"dilated kernel or pad {extent} is over {level.max_kernel}"
        if max(self.stride) > level.max_stride:
            return f"stride {self.stride} is over {level.max_stride}"
        return super().exceeds(level, *types)


def _spatial(op: _Conv, x: TensorType, kernel: tuple[int, ...]) -> tuple[int, ...]:
    op.require(min(op.pad) >= 0, f"pad {op.pad} is negative")
    return tuple(
        _sliding(op, x.shape[1 + i], kernel[i], op.stride[i], op.pad[2 * i], op.pad[2 * i + 1], op.dilation[i], "DHW"[-len(kernel) :][i])
        for i in range(len(kernel))
    )


@dataclass(frozen=True)
class Conv2d(_Conv):
    """weight [OC, KH, KW, IC], pad (top, bottom, left, right)."""

    NAME = "CONV2D"

    def rule(self, x: TensorType, w: TensorType, b: TensorType) -> TensorType:
        self.require(x.rank == 4 and w.rank == 4, f"takes [N,H,W,IC] and [OC,KH,KW,IC], found {x}, {w}")
        self.require(x.shape[3] == w.shape[3], f"input channels differ: {x}, {w}")
        self._operands(x, w, b, w.shape[0])
        return TensorType(ACCUMULATOR[x.dtype], (x.shape[0], *_spatial(self, x, w.shape[1:3]), w.shape[0]))


@dataclass(frozen=True)
class Conv3d(_Conv):
    """weight [OC, KD, KH, KW, IC], pad (front, back, top, bottom, left, right)."""

    NAME = "CONV3D"

    def rule(self, x: TensorType, w: TensorType, b: TensorType) -> TensorType:
        self.require(x.rank == 5 and w.rank == 5, f"takes [N,D,H,W,IC] and [OC,KD,KH,KW,IC], found {x}, {w}")
        self.require(x.shape[4] == w.shape[4], f"input channels differ: {x}, {w}")
        self._operands(x, w, b, w.shape[0])
        return TensorType(ACCUMULATOR[x.dtype], (x.shape[0], *_spatial(self, x, w.shape[1:4]), w.shape[0]))


@dataclass(frozen=True)
class DepthwiseConv2d(_Conv):
    """weight [KH, KW, C, M], result [N, OH, OW, C*M]."""

    NAME = "DEPTHWISE_CONV2D"

    def kernel(self, weight: TensorType) -> tuple[int, ...]:
        return weight.shape[:2]

    def rule(self, x: TensorType, w: TensorType, b: TensorType) -> TensorType:
        self.require(x.rank == 4 and w.rank == 4, f"takes [N,H,W,C] and [KH,KW,C,M], found {x}, {w}")
        self.require(x.shape[3] == w.shape[2], f"input channels differ: {x}, {w}")
        channels = w.shape[2] * w.shape[3]
        self._operands(x, w, b, channels)
        return TensorType(ACCUMULATOR[x.dtype], (x.shape[0], *_spatial(self, x, w.shape[:2]), channels))


@dataclass(frozen=True)
class TransposeConv2d(_Conv):
    """weight [OC, KH, KW, IC]; `pad` is TOSA's out_pad, added to the full result (negative crops); no dilation."""

    NAME = "TRANSPOSE_CONV2D"

    def rule(self, x: TensorType, w: TensorType, b: TensorType) -> TensorType:
        self.require(x.rank == 4 and w.rank == 4, f"takes [N,H,W,IC] and [OC,KH,KW,IC], found {x}, {w}")
        self.require(x.shape[3] == w.shape[3], f"input channels differ: {x}, {w}")
        self.require(self.dilation == (1, 1), "has no dilation")
        self._operands(x, w, b, w.shape[0])
        (_, kh, kw, _), (t, bottom, l, r) = w.shape, self.pad
        self.require(min(t, bottom) > -kh and min(l, r) > -kw, f"out_pad {self.pad} crops the whole kernel {(kh, kw)}")
        oh = (x.shape[1] - 1) * self.stride[0] + t + bottom + kh
        ow = (x.shape[2] - 1) * self.stride[1] + l + r + kw
        self.require(oh > 0 and ow > 0, f"result would be {oh}x{ow}")
        return TensorType(ACCUMULATOR[x.dtype], (x.shape[0], oh, ow, w.shape[0]))


@dataclass(frozen=True)
class MatMul(_Sums):
    """[N, H, C] x [N, C, W] -> [N, H, W], in the type that its sums are kept in."""

    NAME = "MATMUL"
    ARITY = 2
    SUPPORT = MACS
    a_zp: int = 0
    b_zp: int = 0
    acc: DType | None = None

    def rule(self, a: TensorType, b: TensorType) -> TensorType:
        _same_dtype(self, a, b)
        self.require(a.rank == 3 and b.rank == 3, f"takes [N,H,C] and [N,C,W], found {a}, {b}")
        self.require(a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1], f"shapes do not match: {a}, {b}")
        _zero_point(self, "a_zp", self.a_zp, a.dtype)
        _zero_point(self, "b_zp", self.b_zp, b.dtype)
        self._check_sums(a.dtype)
        return TensorType(self.accumulator(a.dtype), (a.shape[0], a.shape[1], b.shape[2]))


@dataclass(frozen=True)
class _Fourier(Op):
    """Results: real part, imaginary part. `local_bound` asks for the precision of a direct sum of floats."""

    SUPPORT = {F32: "fft"}

    def exceeds(self, level: Level, *types: TensorType) -> str | None:
        if max(types[0].shape[1:]) > level.max_kernel:
            return f"image of {types[0]} is over {level.max_kernel}"
        return super().exceeds(level, *types)

    def _check(self, x: TensorType) -> None:
        self.require(x.rank == 3, f"takes [N,H,W], found {x}")
        self.require(all(d & (d - 1) == 0 for d in x.shape[1:]), f"height and width are powers of two, found {x}")


@dataclass(frozen=True)
class Fft2d(_Fourier):
    """Real and imaginary part [N, H, W] -> both [N, H, W]."""

    NAME = "FFT2D"
    ARITY = 2
    inverse: bool
    local_bound: bool = False

    def rule(self, real: TensorType, imaginary: TensorType) -> tuple[TensorType, ...]:
        self._check(real)
        self.require(real == imaginary, f"real and imaginary part differ: {real}, {imaginary}")
        return real, imaginary


@dataclass(frozen=True)
class RFft2d(_Fourier):
    """Real [N, H, W] -> real and imaginary part [N, H, W/2 + 1]."""

    NAME = "RFFT2D"
    local_bound: bool = False

    def rule(self, x: TensorType) -> tuple[TensorType, ...]:
        self._check(x)
        half = x.with_shape((*x.shape[:2], x.shape[2] // 2 + 1))
        return half, half


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
        _same_dtype(self, *types)
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
        _same_dtype(self, a, b)
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
        _zero_point(self, "input_zp", self.input_zp, x.dtype)
        _zero_point(self, "output_zp", self.output_zp, x.dtype)
        return x


@dataclass(frozen=True)
class Select(Op):
    """condition ? a : b."""

    NAME = "SELECT"
    ARITY = 3
    SUPPORT = BOOLS

    def rule(self, c: TensorType, a: TensorType, b: TensorType) -> TensorType:
        _same_dtype(self, a, b)
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


# Reductions (section 2.8): the reduced axis stays, with length 1


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


# Data layout (section 2.9)


@dataclass(frozen=True)
class Concat(Op):
    NAME = "CONCAT"
    ARITY = None
    SUPPORT = MOVEMENT | {I16: "int16"}
    axis: int

    def rule(self, *types: TensorType) -> TensorType:
        _same_dtype(self, *types)
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


# Scatter, gather, image, conversion (sections 2.10 to 2.12)


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
        _same_dtype(self, values, x)
        fits = (
            values.rank == 3 and indices.rank == 2 and x.shape == (*indices.shape, values.shape[2]) and values.shape[0] == indices.shape[0]
        )
        self.require(fits and indices.dtype is I32, f"takes [N,K,C], i32[N,W] and [N,W,C], found {values}, {indices}, {x}")
        return values


@dataclass(frozen=True)
class Resize(Op):
    """scale (y_n, y_d, x_n, x_d), offset (y, x), border (y, x) (section 2.11.1).

    Integer bilinear results are scaled by y_n * x_n and have the accumulator type.
    """

    NAME = "RESIZE"
    SUPPORT = NARROW
    scale: tuple[int, int, int, int]
    offset: tuple[int, int]
    border: tuple[int, int]
    mode: ResizeMode

    def rule(self, x: TensorType) -> TensorType:
        self.require(x.rank == 4, f"takes [N,H,W,C], found {x}")
        out = []
        for i, axis in enumerate("HW"):
            n, d = self.scale[2 * i], self.scale[2 * i + 1]
            size, offset, border = x.shape[1 + i], self.offset[i], self.border[i]
            self.require(0 < n <= 1 << 11 and 0 < d < 16 * n, f"scale {n}/{d} along {axis} is outside 1/16..2048")
            self.require(-n <= offset < 16 * n, f"offset {offset} along {axis} is outside -{n}..{16 * n - 1}")
            self.require(-16 * n <= border < n, f"border {border} along {axis} is outside -{16 * n}..{n - 1}")
            span = (size - 1) * n - offset + border
            self.require(
                span >= 0 and span % d == 0, f"{size} at {n}/{d}, offset {offset}, border {border} along {axis} leaves {span % d} over"
            )
            out.append(span // d + 1)
        self.require(max(*out, *x.shape[1:3]) < 16384, f"{x} to {out} is not below 16384")
        exact = x.dtype.is_integer and self.mode is ResizeMode.BILINEAR
        return TensorType(ACCUMULATOR[x.dtype] if exact else x.dtype, (x.shape[0], *out, x.shape[3]))

    def exceeds(self, level: Level, *types: TensorType) -> str | None:
        if max(self.scale[0] / self.scale[1], self.scale[2] / self.scale[3]) > level.max_scale:
            return f"scale {self.scale} is over {level.max_scale}"
        return super().exceeds(level, *types)


@dataclass(frozen=True)
class Cast(Op):
    """Float to integer rounds to nearest even and saturates; integer to narrower integer truncates (section 2.12.1)."""

    NAME = "CAST"
    SUPPORT = MOVEMENT
    dtype: DType

    def rule(self, x: TensorType) -> TensorType:
        pair = {x.dtype, self.dtype}
        self.require(self.dtype in MOVEMENT and len(pair) == 2, f"does not cast {x} to {self.dtype.value}")
        self.require(B not in pair or pair <= {B, *INTS}, f"does not cast {x} to {self.dtype.value}")
        self.require(pair != {F16, BF16}, f"does not cast {x} to {self.dtype.value}; cast to f32 between them")
        self.require(not pair & {*FP8} or len(pair & {*FLOATS}) == 1, f"does not cast {x} to {self.dtype.value}; cast to f32 between")
        return x.with_dtype(self.dtype)

    def requires(self, *types: TensorType) -> str:
        pair = (types[0].dtype, self.dtype)
        needs = [FP8[d] for d in pair if d in FP8] + (["bf16"] if BF16 in pair else [])
        if needs:
            return "&".join(needs)
        return "FP" if any(d.is_float for d in pair) else "INT"


@dataclass(frozen=True)
class Rescale(Op):
    """out = clip(round((in - input_zp) * multiplier / 2^shift) + output_zp) (section 2.12.2).

    One multiplier and shift, or one for each index of the last dimension (`per_channel`). Multipliers are 32 bits wide
    unless the input is i48, then 16.
    """

    NAME = "RESCALE"
    SUPPORT = {I8: "INT", I16: "INT", I32: "INT", I48: "int16"}
    dtype: DType
    multiplier: tuple[int, ...]
    shift: tuple[int, ...]
    input_zp: int = 0
    output_zp: int = 0
    per_channel: bool = False
    rounding: Rounding = Rounding.SINGLE
    input_unsigned: bool = False
    output_unsigned: bool = False

    @property
    def scale32(self) -> bool:
        """Whether multipliers are 32 bits wide; set from their size, since the file states it for the whole tensor."""
        return max(self.multiplier) > 32767 or self.rounding is Rounding.DOUBLE

    def rule(self, x: TensorType) -> TensorType:
        self.require(self.dtype in INTS, f"result is {self.dtype.value}; i8, i16 or i32 may be")
        for name, zp, dtype, unsigned in (
            ("input_zp", self.input_zp, x.dtype, self.input_unsigned),
            ("output_zp", self.output_zp, self.dtype, self.output_unsigned),
        ):
            if unsigned:
                self.require(
                    dtype in (I8, I16) and zp in (range(256) if dtype is I8 else (0, 32768)),
                    f"{name} {zp} does not fit unsigned {dtype.value}",
                )
            else:
                _zero_point(self, name, zp, dtype)
        self.require(not (self.input_unsigned and self.output_unsigned), "input and output are both unsigned")
        self.require(not (self.input_unsigned and self.dtype is I32), "unsigned input has no i32 result")
        self.require(
            not (self.output_unsigned and x.dtype in (I32, I48) and x.dtype is not I8), f"{x.dtype.value} input has no unsigned result"
        )
        self.require(len(self.multiplier) == len(self.shift), "multiplier and shift differ in length")
        count = x.shape[-1] if self.per_channel and x.rank else 1
        self.require(len(self.multiplier) == count, f"{len(self.multiplier)} multipliers for {x}, per_channel={self.per_channel}")
        self.require(not (x.dtype is I48 and self.scale32), "i48 takes 16-bit multipliers")
        self.require(min(self.multiplier) >= 0 and max(self.multiplier) <= 2**31 - 1, "multiplier is outside 0..2^31-1")
        self.require(min(self.shift) >= 2 and max(self.shift) <= 62, "shift is outside 2..62")
        return x.with_dtype(self.dtype)

    def requires(self, *types: TensorType) -> str:
        profile = super().requires(*types)
        rounding = {Rounding.DOUBLE: "doubleround", Rounding.INEXACT: "inexactround"}.get(self.rounding)
        # the extension of a rounding implies the profile, but not the extension of a type
        return profile if rounding is None else rounding if profile == "INT" else f"{profile}&{rounding}"


def _subclasses(cls: type[Op]) -> list[type[Op]]:
    return [s for c in cls.__subclasses__() for s in (c, *_subclasses(c))]


# TOSA name -> operator class; what readers, the text form and the simulator look up.
BY_NAME: dict[str, type[Op]] = {c.NAME: c for c in _subclasses(Op) if "NAME" in vars(c)}
