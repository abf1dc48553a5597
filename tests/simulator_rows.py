"""The rows of the simulator's table: operators on operands with the edges of their types; see `test_simulator`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tosaic.errors import GraphError
from tosaic.execute.simulator import evaluate
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph
from tosaic.tosa.ops import BF16, E4M3, E5M2, F16, F32, I4, I8, I16, I32, I48, B
from tosaic.tosa.types import DType, TensorType


@dataclass(frozen=True)
class Operand:
    dtype: DType
    data: np.ndarray
    const: bool = False


@dataclass(frozen=True)
class Row:
    """One operator on given operands."""

    op: ops.Op
    operands: tuple[Operand, ...]

    def __str__(self) -> str:
        return "-".join((self.op.NAME, *(f"{o.dtype.value}{list(o.data.shape)}".replace(" ", "") for o in self.operands)))

    def graph(self) -> tuple[Graph, list[np.ndarray]]:
        build, inputs, values = Builder(), [], []
        for o in self.operands:
            values.append(build.const(o.data, o.dtype) if o.const else build.input("x", o.dtype, o.data.shape))
            inputs += [] if o.const else [o.data]
        results = build.emit_all(self.op, *values)
        graph, result = build.finish(results), results[0]
        if result.dtype is I48:  # the reference model gives out no i48: look at its leading 31 bits (all of it, where it fits)
            largest = int(np.abs(evaluate(graph, inputs)[0]).max())
            shift = 14 + max(0, largest.bit_length() - 31)
            build.finish([build.emit(ops.Rescale(I32, (1 << 14,), (shift,)), result)])
        if result.dtype is I4:  # nor does it give out i4 [m,1,1,n], which only a convolution reads: let it weigh the unit matrix
            units = build.const(np.eye(result.shape[-1])[None, None], I8)
            bias = build.const(np.zeros(result.shape[0]), I32)
            build.finish([build.emit(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), units, result, bias)])
        return graph, inputs


RNG = np.random.default_rng(20)


def ints(dtype: DType, *shape: int, low: int | None = None, high: int | None = None, const: bool = False) -> Operand:
    """Random integers (booleans) that begin with the edge values."""
    if dtype is B:
        return Operand(B, RNG.integers(0, 2, shape).astype(bool), const)
    low, high = dtype.min if low is None else low, dtype.max if high is None else high
    data = RNG.integers(low, high, shape, endpoint=True, dtype=np.int64)
    edges = [e for e in (low, high, 0, -1, 1, low + 1, high - 1) if low <= e <= high][: data.size]
    data.reshape(-1)[: len(edges)] = edges
    return Operand(dtype, data.astype(dtype.numpy), const)


def floats(dtype: DType, *shape: int, low: float = -3.0, high: float = 3.0, const: bool = False) -> Operand:
    """Random floats, with a zero where the range has one."""
    data = RNG.uniform(low, high, shape)
    data.reshape(-1)[:1] = max(low, min(high, 0.0))
    return Operand(dtype, data.astype(dtype.numpy), const)


def numbers(dtype: DType, *shape: int, const: bool = False) -> Operand:
    """Values of any type; i32 stays far from overflow."""
    if dtype.is_float:
        return floats(dtype, *shape, const=const)
    return ints(dtype, *shape, const=const) if dtype is not I32 else ints(I32, *shape, low=-(2**30), high=2**30 - 1, const=const)


def given(dtype: DType, *values: float, shape: tuple[int, ...] | None = None) -> Operand:
    with np.errstate(over="ignore"):  # 3e38 is infinity in f16
        return Operand(dtype, np.array(values).astype(dtype.numpy).reshape(shape if shape is not None else -1))


ROWS: list[Row] = []


def row(op: ops.Op, *operands: Operand) -> None:
    ROWS.append(Row(op, operands))


def _elementwise() -> None:
    positive = (ops.Log, ops.Rsqrt, ops.Pow, ops.Reciprocal)
    for cls in (ops.Erf, ops.Sigmoid, ops.Tanh, ops.Ceil, ops.Cos, ops.Exp, ops.Floor, ops.Log, ops.Reciprocal, ops.Rsqrt, ops.Sin):
        for dtype in cls.SUPPORT:
            row(cls(), given(dtype, np.nan, 0.0, np.inf, 1.0, *([] if cls in positive else [-np.inf, -0.5, -30.0]), 30.0))
            low = 0.1 if cls in positive else -3.0
            row(cls(), floats(dtype, 2, 37, low=low))
            row(cls(), floats(dtype, low=low))
        row(cls(), given(F32, np.nan, 1.5, 2.5))
    for cls in (ops.Abs, ops.BitwiseNot, ops.Clz, ops.LogicalNot, ops.Identity):
        for dtype in cls.SUPPORT:
            const = dtype in (I4, I48)  # the reference model takes no inputs of these
            if dtype is I4:
                row(cls(), numbers(dtype, 3, 1, 1, 41, const=const))
                continue
            row(cls(), ints(I32, 3, 41, low=-(2**31) + 1) if cls is ops.Abs and dtype is I32 else numbers(dtype, 3, 41, const=const))
            row(cls(), numbers(dtype, const=const))
    row(ops.Clz(), given(I32, *(s * 2**k + d for k in range(31) for s in (1, -1) for d in (-1, 0, 1))))
    binary = (ops.Add, ops.Sub, ops.Maximum, ops.Minimum, ops.BitwiseAnd, ops.BitwiseOr, ops.BitwiseXor, ops.LogicalAnd, ops.LogicalOr)
    for cls in (*binary, ops.LogicalXor, ops.Equal, ops.Greater, ops.GreaterEqual):
        for dtype in cls.SUPPORT:
            row(cls(), numbers(dtype, 2, 3, 5), numbers(dtype, 2, 3, 5))
            row(cls(), numbers(dtype, 2, 1, 5), numbers(dtype, 1, 3, 1))
            row(cls(), numbers(dtype), numbers(dtype))
    for cls in (ops.Equal, ops.Greater, ops.GreaterEqual, ops.Maximum, ops.Minimum):
        modes = list(ops.NanMode) if issubclass(cls, ops._Extremum) else [None]
        for dtype in ops.FLOATS:
            for mode in modes:
                op = cls() if mode is None else cls(nan_mode=mode)
                row(op, given(dtype, np.nan, 1, np.nan, 0, np.inf, -3), given(dtype, 1, np.nan, np.nan, -0.0, np.inf, np.nan))
    for dtype in ops.FLOATS:
        row(ops.Pow(), floats(dtype, 3, 7, low=0.1), floats(dtype, 3, 1))
    row(ops.IntDiv(), given(I32, -7, 7, -7, 7, -(2**31), 2**31 - 1, 0, -1), given(I32, 2, -2, -2, 2, 1, -1, 5, 2**31 - 1))
    row(ops.IntDiv(), ints(I32, 40, 5), ints(I32, 1, 5, low=1, high=1000))
    row(ops.IntDiv(), given(I32, -(2**31), -(2**31), 2**31 - 1, 1, -1), given(I32, 2**31 - 1, -(2**31), -(2**31), -(2**31), 2**31 - 1))
    for dtype in ops.INTS:
        for cls in (ops.LogicalLeftShift, ops.LogicalRightShift, ops.ArithmeticRightShift):
            row(cls(), ints(dtype, 30, dtype.bits), given(dtype, *range(dtype.bits), shape=(1, -1)))
            row(cls(), ints(dtype), given(dtype, 3, shape=()))
        row(ops.ArithmeticRightShift(round=True), ints(dtype, 30, dtype.bits), given(dtype, *range(dtype.bits), shape=(1, -1)))
        for shift in (0, 1, 5, dtype.bits - 1):
            row(ops.ArithmeticRightShift(round=True), ints(dtype, 30), given(dtype, shift))
    for dtype in ops.Mul.SUPPORT:
        row(ops.Mul(), ints(I32, 2, 9) if dtype is I32 else numbers(dtype, 2, 9), numbers(dtype, 2, 1))
    for shift in range(1, 64):
        bound = 2 ** min(31, (30 + shift) // 2) - 1
        row(ops.Mul(shift=shift), ints(I32, 20, low=-bound, high=bound), ints(I32, 20, low=-bound, high=bound))
    row(ops.Mul(shift=1), given(I32, 1, -1, 3, -3, 5, -5), given(I32, 1))
    for dtype in ops.Negate.SUPPORT:
        row(ops.Negate(), ints(I32, 9, low=-(2**31) + 1) if dtype is I32 else numbers(dtype, 3, 3))
    for zps in ((-128, 127), (127, -128), (5, -3), (127, 127), (-128, -128)):
        row(ops.Negate(*zps), given(I8, *range(-128, 128)))
    for dtype in ops.DATA:
        row(ops.Select(), ints(B, 2, 3, 1), numbers(dtype, 2, 1, 4), numbers(dtype, 1, 3, 4))
    row(ops.Select(), ints(B), numbers(I8), numbers(I8))
    for dtype, low, high in ((I8, -100, 77), (I8, -128, 127), (I16, -32768, 100), (F32, -1.1, 1.1), (F16, -1.1, 1.1), (BF16, -1.1, 1.1)):
        row(ops.Clamp(low, high), numbers(dtype, 4, 50))
        row(ops.Clamp(low, high), numbers(dtype))
    for dtype in ops.FLOATS:
        for mode in ops.NanMode:
            for low, high in ((-1.0, np.inf), (-np.inf, 2.0), (0.5, 0.5)):
                row(ops.Clamp(low, high, mode), given(dtype, np.nan, np.inf, -np.inf, 0.5, -0.0))
    row(ops.Clamp(-100, 77, ops.NanMode.IGNORE), ints(I8, 40))
    row(ops.Table(), given(I8, *range(-128, 128)), ints(I8, 256, const=True))
    row(ops.Table(), ints(I8, 2, 3, 4), ints(I8, 256, const=True))
    smooth = np.round(32767 * np.tanh(np.linspace(-4, 4, 513)))
    for entries in (smooth, smooth[::-1], RNG.integers(-16384, 16384, 513)):
        row(ops.Table(), given(I16, *range(-32768, 32768, 7), 32767), Operand(I16, entries.astype(np.int16), True))
    row(ops.Table(), ints(I16), Operand(I16, smooth.astype(np.int16), True))


def _reductions() -> None:
    for cls in (ops.ReduceAll, ops.ReduceAny, ops.ReduceMax, ops.ReduceMin, ops.ReduceProduct, ops.ReduceSum):
        for dtype in cls.SUPPORT:
            for axis in range(3):
                row(cls(axis=axis), ints(I32, 3, 4, 5, low=-(2**28), high=2**28) if dtype is I32 else numbers(dtype, 3, 4, 5))
    for dtype in ops.ArgMax.SUPPORT:
        for axis in range(3):
            row(ops.ArgMax(axis=axis), numbers(dtype, 3, 4, 5))
        row(ops.ArgMax(axis=1), given(dtype, 3, 5, 5, 5, -1, -1, shape=(2, 3)))  # ties: the first
    nans = (np.nan, 1, np.nan, 3, *(np.nan,) * 4, np.nan, -np.inf, np.nan, np.nan, np.inf, np.nan, np.inf, -1, *(-np.inf,) * 4)
    for mode in ops.NanMode:
        for dtype in ops.FLOATS:
            for op in (ops.ArgMax(1, mode), ops.ReduceMax(1, mode), ops.ReduceMin(1, mode)):
                row(op, given(dtype, *nans, shape=(5, 4)))
        row(ops.ArgMax(1, mode), given(E5M2, *nans, shape=(5, 4)))
        row(ops.ArgMax(1, mode), given(E4M3, 1, np.nan, np.nan, 3, np.nan, np.nan, shape=(2, 3)))
        for cls in (ops.ArgMax, ops.ReduceMax, ops.ReduceMin):
            row(cls(1, mode), ints(I16, 5, 4))


def _casts(source: DType, target: DType) -> bool:
    try:
        return bool(ops.Cast(target).result(TensorType(source, (1,))))
    except GraphError:
        return False


def _layout() -> None:
    for dtype in ops.MOVEMENT:
        x = numbers(dtype, 2, 3, 4)
        row(ops.Pad((0, 1, 2, 0, 1, 1), value=1), x)
        row(ops.Reshape((4, 6)), x)
        row(ops.Reverse(axis=1), x)
        row(ops.Slice((1, 0, 2), (1, 3, 2)), x)
        row(ops.Tile((2, 1, 3)), x)
        row(ops.Transpose((2, 0, 1)), x)
        row(ops.Concat(axis=1), x, numbers(dtype, 2, 1, 4), numbers(dtype, 2, 2, 4))
    row(ops.Pad((1, 2), value=-128), ints(I8, 3))
    row(ops.Reshape((1,)), ints(I8))
    row(ops.Reshape(()), ints(I8, 1, 1))
    for dtype in ops.Gather.SUPPORT:
        row(ops.Gather(), numbers(dtype, 2, 5, 3), ints(I32, 2, 7, low=0, high=4))
        row(ops.Gather(), numbers(dtype, 1, 9, 1, const=True), ints(I32, 1, 30, low=0, high=8))
        row(ops.Scatter(), numbers(dtype, 2, 5, 3), given(I32, 4, 0, 1, 2, 3, 0, shape=(2, 3)), numbers(dtype, 2, 3, 3))
    for source in ops.MOVEMENT:
        for target in ops.MOVEMENT:
            if not _casts(source, target):
                continue
            row(ops.Cast(target), ints(I32, 60) if source is I32 else numbers(source, 60))
            row(ops.Cast(target), numbers(source))
    for source in ops.FLOATS:
        for target in ops.INTS:
            ties = (0.5, 1.5, 2.5, -0.5, -1.5, 127.5, -128.5, 32767.5, -32768.5, 3e38, -3e38, np.inf, -np.inf)
            row(ops.Cast(target), given(source, *ties))
    row(ops.Cast(BF16), given(I32, 257, 259, 16842753, 33685505, 2**31 - 1, -(2**31)))
    row(ops.Cast(F16), given(I32, 2049, 2051, 65519, 65520, 2**31 - 1, -(2**31)))
    row(ops.Cast(F16), given(F32, 65519, 65520, 1e-8, 6e-8, 1.00048828125, 1.00146484375))
    for source in ops.FLOATS:  # beyond the largest, half-way between neighbours, below the least
        for target, edges in ((E4M3, (447, 448, 463, 464, 465, 480, 1.0625, 1.1875)), (E5M2, (57344, 61439, 61440, 1.125, 1.375))):
            row(ops.Cast(target), given(source, *edges, *(-e for e in edges), 2**-10, 2**-9, 2**-17, 2**-16, 0.0, np.inf, -np.inf, np.nan))
            if source is not F32:
                row(ops.Cast(source), given(target, *edges, np.nan, 2**-9, 2**-16))
    for scale, offset, border in (
        ((4, 2, 4, 2), (0, 0), (0, 0)),
        ((4, 2, 4, 2), (-1, -1), (1, 1)),
        ((6, 2, 8, 2), (-2, -3), (2, 3)),
        ((2, 4, 2, 6), (1, -2), (-3, -2)),
        ((1, 1, 1, 1), (0, 0), (0, 0)),
    ):
        for mode in ops.ResizeMode:
            for dtype in ops.Resize.SUPPORT:
                row(ops.Resize(scale, offset, border, mode), numbers(dtype, 2, 5, 7, 3))


def _macs() -> None:
    for dtype in ops.MACS:
        weight, bias = (I8 if dtype is I16 else dtype), ops.ACCUMULATOR[dtype]
        zps = ((0, 0), (-128, 0), (7, -3)) if dtype is I8 else ((0, 0),)

        def biases(n: int, dtype: DType = bias) -> Operand:
            return floats(dtype, n, const=True) if dtype.is_float else ints(dtype, n, low=-(2**20), high=2**20, const=True)

        for zp in zps:
            x, b = numbers(dtype, 2, 7, 6, 5), biases(4)
            w = numbers(weight, 4, 3, 2, 5, const=True)
            row(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), *zp), x, w, b)
            row(ops.Conv2d((2, 1), (1, 1, 1, 0), (1, 1), *zp), x, w, b)
            row(ops.Conv2d((1, 2), (2, 2, 2, 2), (2, 3), *zp), x, w, biases(1))
            row(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), *zp), x, Operand(weight, w.data), b)
            row(ops.Conv3d((1, 1, 1), (1, 0, 1, 1, 0, 1), (1, 1, 1), *zp), numbers(dtype, 1, 3, 4, 5, 3), numbers(weight, 4, 2, 3, 2, 3), b)
            row(ops.Conv3d((2, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 2), *zp), numbers(dtype, 1, 3, 4, 5, 3), numbers(weight, 4, 3, 3, 2, 3), b)
            for m in (1, 3):
                w, b = numbers(weight, 3, 2, 5, m, const=True), biases(5 * m)
                row(ops.DepthwiseConv2d((1, 1), (1, 1, 1, 0), (1, 1), *zp), x, w, b)
                row(ops.DepthwiseConv2d((2, 2), (1, 1, 1, 2), (2, 2), *zp), x, w, biases(1))
                row(ops.DepthwiseConv2d((1, 1), (0, 0, 0, 0), (1, 1), *zp), x, Operand(weight, w.data), b)
            w = numbers(weight, 4, 3, 2, 5, const=True)
            row(ops.TransposeConv2d((1, 1), (0, 0, 0, 0), (1, 1), *zp), x, w, biases(4))
            row(ops.TransposeConv2d((2, 3), (1, -2, -1, 2), (1, 1), *zp), x, w, biases(4))
            row(ops.TransposeConv2d((3, 3), (-1, -1, 0, -1), (1, 1), *zp), x, Operand(weight, w.data), biases(1))
        for kernel, stride, pad in (((2, 3), (1, 1), (0, 0, 0, 0)), ((3, 3), (2, 1), (1, 1, 2, 1)), ((7, 6), (1, 1), (0, 0, 0, 0))):
            row(ops.MaxPool2d(kernel, stride, pad), numbers(dtype, 2, 7, 6, 5))
            for zp in zps:
                row(ops.AvgPool2d(kernel, stride, pad, *zp), numbers(dtype, 2, 7, 6, 5))
    for bias in (-(2**30), 2**30):  # beyond f32 and still exact
        row(
            ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), 1),
            ints(I8, 1, 3, 3, 2),
            ints(I8, 2, 2, 2, 2, const=True),
            ints(I32, 2, low=bias, high=bias),
        )
    row(
        ops.Conv2d((1, 1), (1, 1, 1, 1), (1, 1), 3),
        ints(I8, 1, 5, 5, 6),
        ints(I4, 4, 3, 3, 6, low=-7, const=True),
        ints(I32, 4, low=-9, high=9),
    )
    x = ints(I8, 1, 5, 5, 6)
    row(ops.DepthwiseConv2d((2, 1), (1, 1, 0, 1), (1, 1), -9), x, ints(I4, 3, 2, 6, 2, const=True), ints(I32, 12, low=-9, high=9))
    row(ops.TransposeConv2d((2, 3), (-1, 0, 1, -2), (1, 1), 3), x, ints(I4, 4, 2, 3, 6, const=True), ints(I32, 1, low=-9, high=9))
    x = ints(I8, 1, 3, 4, 5, 3)
    row(ops.Conv3d((1, 1, 1), (1, 0, 0, 1, 1, 1), (1, 2, 1), 5), x, ints(I4, 4, 2, 2, 3, 3, const=True), ints(I32, 4, low=-9, high=9))
    # sums beyond 2^24: input channels are split
    row(
        ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), -128),
        ints(I8, 1, 3, 3, 300, low=126),
        ints(I8, 2, 3, 3, 300, low=126, const=True),
        ints(I32, 2, low=0, high=9),
    )
    row(
        ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), -128),
        ints(I8, 1, 29, 29, 2, low=126),
        ints(I8, 1, 29, 29, 2, low=126, const=True),
        ints(I32, 1, low=0, high=9),
    )
    for mode in ops.NanMode:
        for dtype in (*ops.FLOATS, E4M3, E5M2):
            nans = (*([1, np.nan] * 4), *([np.nan] * 5), -2, np.nan, -3)
            row(ops.MaxPool2d((2, 2), (1, 1), (0, 0, 0, 0), mode), given(dtype, *nans, shape=(1, 4, 4, 1)))
            row(ops.MaxPool2d((2, 2), (1, 1), (1, 0, 1, 1), mode), given(dtype, *nans, shape=(1, 2, 2, 4)))
        row(ops.MaxPool2d((2, 2), (1, 1), (1, 0, 1, 0), mode), ints(I8, 1, 4, 4, 1))
    _sums_in_f16()
    for dtype, tiny in ((E4M3, 2**-9), (E5M2, 2**-15)):  # products beyond f16, and between its least numbers
        x = given(dtype, -320, 320, -256, 256, 2**-9, 2**-9, shape=(1, 1, 3, 2))
        w = np.array([[192, 256], [tiny, 1.5 * tiny]]).astype(dtype.numpy)
        row(ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, Operand(dtype, w.reshape(2, 1, 1, 2)), given(F16, 0, 1))
        row(ops.TransposeConv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, Operand(dtype, w.reshape(2, 1, 1, 2)), given(F16, 0, 1))
        row(ops.DepthwiseConv2d((1, 1), (0, 0, 0, 0), (1, 1)), x, Operand(dtype, w.reshape(1, 2, 2, 1)), given(F16, 0, 1))
        row(ops.MatMul(), Operand(dtype, x.data.reshape(1, 3, 2)), Operand(dtype, w.T.reshape(1, 2, 2)))
    for dtype in ops.MatMul.SUPPORT:
        for zp in ((0, 0), (-128, 5)) if dtype is I8 else ((0, 0),):
            row(ops.MatMul(*zp), numbers(dtype, 2, 3, 7), numbers(dtype, 2, 7, 5))
    for zp in ((-128, -128), (0, 0)):
        row(ops.MatMul(*zp), ints(I8, 1, 2, 3000, low=125), ints(I8, 1, 3000, 2, low=125))
    row(ops.MatMul(), ints(I16, 1, 2, 2000, low=32760), ints(I16, 1, 2000, 2, low=32760))


def _sums_in_f16() -> None:
    """f16 operands whose sums are f16 too: partial sums round, and leave the range."""
    unit = (1, 1), (0, 0, 0, 0), (1, 1)
    x, b = floats(F16, 2, 7, 6, 5), floats(F16, 4, const=True)
    w, large = floats(F16, 4, 3, 2, 5, const=True), given(F16, 300, 300, -300, 300, shape=(1, 1, 2, 2))
    row(ops.Conv2d(*unit, acc=F16), x, w, b)
    row(ops.Conv2d(*unit, acc=F16), large, given(F16, 200, 200, -200, 200, shape=(2, 1, 1, 2)), given(F16, 0, 1))
    row(ops.Conv2d(*unit), large, given(F16, 200, 200, -200, 200, shape=(2, 1, 1, 2)), given(F16, 0, 1))
    row(ops.TransposeConv2d((2, 3), (1, -2, -1, 2), (1, 1), acc=F16), x, w, b)
    row(ops.DepthwiseConv2d((1, 1), (1, 1, 1, 0), (1, 1), acc=F16), x, floats(F16, 3, 2, 5, 2, const=True), floats(F16, 10, const=True))
    w = floats(F16, 4, 2, 3, 2, 3, const=True)
    row(ops.Conv3d((1, 1, 1), (1, 0, 1, 1, 0, 1), (1, 1, 1), acc=F16), floats(F16, 1, 3, 4, 5, 3), w, b)
    row(ops.MatMul(acc=F16), floats(F16, 2, 3, 7), floats(F16, 2, 7, 5))
    row(ops.MatMul(acc=F16), given(F16, 300, 300, -300, shape=(1, 1, 3)), given(F16, 200, 200, 200, shape=(1, 3, 1)))
    for kernel, stride, pad in (((2, 3), (1, 1), (0, 0, 0, 0)), ((3, 3), (2, 1), (1, 1, 2, 1))):
        row(ops.AvgPool2d(kernel, stride, pad, acc=F16), floats(F16, 2, 7, 6, 5))
    for acc in (None, F16):
        row(ops.AvgPool2d((2, 2), (1, 1), (0, 0, 0, 0), acc=acc), given(F16, 60000, 60000, -60000, 1, shape=(1, 2, 2, 1)))
    for op in (ops.Conv2d, ops.TransposeConv2d):
        row(op(*unit, local_bound=True), floats(F32, 1, 3, 3, 2), floats(F32, 2, 2, 2, 2, const=True), floats(F32, 1))
    row(ops.DepthwiseConv2d(*unit, local_bound=True), floats(F32, 1, 3, 3, 2), floats(F32, 2, 2, 2, 2, const=True), floats(F32, 1))
    conv3d = ops.Conv3d((1,) * 3, (0,) * 6, (1,) * 3, local_bound=True)
    row(conv3d, floats(F32, 1, 3, 3, 3, 2), floats(F32, 2, 2, 2, 2, 2, const=True), floats(F32, 1))


def _rescale() -> None:
    def scale(dtype: DType, multiplier: int, shift: int, **options: object) -> ops.Rescale:
        return ops.Rescale(dtype=dtype, multiplier=(multiplier,), shift=(shift,), **options)

    for shift in range(2, 63):  # the value is below 2^(shift-1), as the specification requires
        bound = 2 ** min(31, shift - 1)
        for multiplier in (2**31 - 1, 2**30, 2**30 + 1, 0):
            row(scale(I32, multiplier, shift), ints(I32, 40, low=-bound, high=bound - 1))
        row(scale(I32, 2**30 + 12345, shift, rounding=ops.Rounding.DOUBLE), ints(I32, 40, low=-bound, high=bound - 1))
        bound = 2 ** min(47, shift + 16)
        row(scale(I32, 2**14 - 1, shift), Operand(I48, ints(I48, 40, low=-bound, high=bound - 1).data, True))
        bound = 2 ** min(31, shift + 16)
        row(scale(I32, 2**14, shift), ints(I32, 40, low=-bound, high=bound - 1))
        row(scale(I32, 2**14, shift, rounding=ops.Rounding.INEXACT), ints(I8, 40))
    for rounding in ops.Rounding:  # ties
        row(scale(I8, 2**30, 31, rounding=rounding), given(I32, *range(-9, 10)))
        row(scale(I8, 2**30, 33, rounding=rounding), given(I32, *range(-40, 41)))
    for source in (I8, I16, I32):
        for target in (I8, I16, I32):
            for zps in {(0, 0), (-128 if source is I8 else 0, 127 if target is I8 else 0), (11 if source is I8 else 0, 0)}:
                row(scale(target, 1518500249, 33, input_zp=zps[0], output_zp=zps[1]), ints(source, 2, 50, low=max(source.min, -(2**31))))
    row(scale(I8, 2**30, 30), ints(I16, 60))  # saturates
    row(scale(I8, 2**14, 20), Operand(I48, ints(I48, 40, low=-(2**36), high=2**36).data, True))
    row(scale(I16, 2**14, 40), Operand(I48, ints(I48, 40).data, True))
    row(scale(I8, 2**30, 31), ints(I8))
    for target in (I8, I16):
        for zp in (0, 200) if target is I8 else (0, 32768):
            row(scale(target, 2**30, 31, output_zp=zp, output_unsigned=True), ints(I8, 60))
            row(scale(target, 2**30, 31, output_zp=zp, output_unsigned=True), ints(I16, 60))
        for zp in (0, 200):
            row(scale(target, 2**30, 31, input_zp=zp, input_unsigned=True), ints(I8, 60))
        for zp in (0, 32768):
            row(scale(target, 2**30, 32, input_zp=zp, input_unsigned=True), ints(I16, 60))
    for rounding in (ops.Rounding.SINGLE, ops.Rounding.DOUBLE):
        multiplier, shift = tuple(RNG.integers(2**30, 2**31, 6).tolist()), (31, 32, 36, 40, 50, 62)
        for source, target in ((I32, I8), (I8, I32), (I16, I16)):
            op = ops.Rescale(target, multiplier, shift, output_zp=3 if target is I8 else 0, per_channel=True, rounding=rounding)
            row(op, ints(source, 2, 3, 6, low=max(source.min, -(2**30)), high=min(source.max, 2**30 - 1)))
    row(
        ops.Rescale(I8, (16384, 3, 32767), (14, 2, 30), per_channel=True),
        Operand(I48, ints(I48, 4, 3, low=-(2**17), high=2**17).data, True),
    )


def _fourier() -> None:
    for shape in ((2, 4, 8), (1, 1, 4), (1, 8, 1), (1, 1, 1), (1, 2, 2), (1, 8, 16)):
        row(ops.RFft2d(), floats(F32, *shape))
        for inverse in (False, True):
            row(ops.Fft2d(inverse), floats(F32, *shape), floats(F32, *shape))
    row(ops.RFft2d(local_bound=True), floats(F32, 1, 4, 4))
    row(ops.Fft2d(False, local_bound=True), floats(F32, 1, 4, 4), floats(F32, 1, 4, 4))


for fill in (_elementwise, _reductions, _layout, _macs, _rescale, _fourier):
    fill()
