"""Tensor operators (specification section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

from tosaic.tosa.ops.base import ACCUMULATOR, BF16, F16, F32, I4, I8, I16, I32, MACS, NanMode, Op, same_dtype, zero_point
from tosaic.tosa.spec import Level
from tosaic.tosa.types import DType, TensorType


def _sliding(op: Op, size: int, kernel: int, stride: int, before: int, after: int, dilation: int, axis: str) -> int:
    """Output length of a sliding window; TOSA demands that the window ends exactly at the border."""
    span = size - 1 + before + after - (kernel - 1) * dilation
    op.require(span >= 0, f"kernel is larger than the padded input along {axis}")
    op.require(span % stride == 0, f"stride {stride} leaves {span % stride} elements over along {axis}; slice or pad the input")
    return span // stride + 1


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
        zero_point(self, "input_zp", self.input_zp, x.dtype)
        zero_point(self, "output_zp", self.output_zp, x.dtype)
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
        zero_point(self, "input_zp", self.input_zp, x.dtype)
        zero_point(self, "weight_zp", self.weight_zp, w.dtype)
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
        same_dtype(self, a, b)
        self.require(a.rank == 3 and b.rank == 3, f"takes [N,H,C] and [N,C,W], found {a}, {b}")
        self.require(a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1], f"shapes do not match: {a}, {b}")
        zero_point(self, "a_zp", self.a_zp, a.dtype)
        zero_point(self, "b_zp", self.b_zp, b.dtype)
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
