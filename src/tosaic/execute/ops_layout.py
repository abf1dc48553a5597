"""Data layout, gather and scatter, RESIZE, CAST and RESCALE (specification sections 2.9 to 2.12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tosaic.errors import ExecuteError
from tosaic.execute import kernels
from tosaic.execute.handlers import Kernel, as_torch, handles, packed
from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.types import DType


@handles(ops.Concat)
def concat(node: Node) -> Kernel:
    return lambda *operands: np.concatenate(operands, axis=node.op.axis)


@handles(ops.Pad)
def pad(node: Node) -> Kernel:
    padding, value, result = node.op.padding, node.op.value, node.output
    inside = tuple(slice(b, b + d) for b, d in zip(padding[::2], node.inputs[0].shape, strict=True))

    def kernel(x: np.ndarray) -> np.ndarray:
        out = np.full(result.shape, value, result.dtype.numpy)
        out[inside] = x
        return out

    return kernel


@handles(ops.Reshape)
def reshape(node: Node) -> Kernel:
    return lambda x: packed(x).reshape(node.op.shape) if not x.flags.c_contiguous else x.reshape(node.op.shape)


@handles(ops.Reverse)
def reverse(node: Node) -> Kernel:
    return lambda x: np.ascontiguousarray(np.flip(x, node.op.axis))


@handles(ops.Slice)
def slice_(node: Node) -> Kernel:
    index = tuple(slice(s, s + n) for s, n in zip(node.op.start, node.op.size, strict=True))
    return lambda x: x[index]


@handles(ops.Tile)
def tile(node: Node) -> Kernel:
    return lambda x: np.tile(x, node.op.multiples)


@handles(ops.Transpose)
def transpose(node: Node) -> Kernel:
    return lambda x: x.transpose(node.op.perms)


def _rows(op: ops.Op, indices: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    if indices.size and (indices.min() < 0 or indices.max() >= count):
        raise ExecuteError(f"{op.NAME}: indices are {indices.min()}..{indices.max()}, expected 0..{count - 1}")
    return np.arange(indices.shape[0])[:, None], indices


@handles(ops.Gather)
def gather(node: Node) -> Kernel:
    source = node.inputs[0]
    n, count, channels = source.shape
    if n == channels == 1 and source.dtype.is_integer and source.data is not None:  # as lowering writes a table
        return _lookup(node, packed(source.data).reshape(-1))

    def kernel(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
        first, rows = _rows(node.op, indices, count)
        rows = rows.reshape(-1) if n == 1 else (rows + first * count).reshape(-1)
        # as integers, since only bytes move, and torch lacks some types
        raw = as_torch(np.ascontiguousarray(values).view(f"i{values.itemsize}")).reshape(n * count, channels)
        return raw.index_select(0, as_torch(rows)).numpy().view(values.dtype).reshape(*indices.shape, channels)

    return kernel


def _lookup(node: Node, table: np.ndarray) -> Kernel:
    """GATHER from a constant [1,K,1]; table: [K]."""

    def kernel(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
        _rows(node.op, indices, table.size)
        out = np.empty(node.output.shape, table.dtype)
        kernels.lookup(packed(indices).reshape(-1), table, out.reshape(-1))
        return out

    return kernel


@handles(ops.Scatter)
def scatter(node: Node) -> Kernel:
    def kernel(values: np.ndarray, indices: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = values.copy()
        out[_rows(node.op, indices, values.shape[1])] = x
        return out

    return kernel


def positions(out: int, size: int, n: int, d: int, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output position of an axis: the two input positions, and the distance from the first in 1/n."""
    position = np.arange(out, dtype=np.int64) * d + offset
    first = position // n  # toward minus infinity
    return np.maximum(first, 0), np.minimum(first + 1, size - 1), position - first * n


@handles(ops.Resize)
def resize(node: Node) -> Kernel:
    op, x, result = node.op, node.inputs[0], node.output
    y_n, y_d, x_n, x_d = op.scale
    iy0, iy1, dy = positions(result.shape[1], x.shape[1], y_n, y_d, op.offset[0])
    ix0, ix1, dx = positions(result.shape[2], x.shape[2], x_n, x_d, op.offset[1])
    if op.mode is ops.ResizeMode.NEAREST:
        rows, columns = np.where(2 * dy >= y_n, iy1, iy0), np.where(2 * dx >= x_n, ix1, ix0)
        return lambda x: np.take(np.take(x, rows, axis=1), columns, axis=2)
    if x.dtype.is_float:
        wide = np.dtype(np.float32)
        weights = (wide.type(1), (dy / y_n).astype(wide)), (wide.type(1), (dx / x_n).astype(wide))
    else:
        wide = result.dtype.numpy
        weights = (wide.type(y_n), dy.astype(wide)), (wide.type(x_n), dx.astype(wide))
    (unit_y, dy), (unit_x, dx) = weights

    def kernel(x: np.ndarray) -> np.ndarray:
        out = np.empty(result.shape, wide)
        values = packed(x.astype(wide, copy=False) if wide == np.float32 else x)
        kernels.resize_bilinear(values, iy0, iy1, dy, unit_y, ix0, ix1, dx, unit_x, out)
        return out.astype(result.dtype.numpy, copy=False)

    return kernel


@handles(ops.Cast)
def cast(node: Node) -> Kernel:
    source, target = node.inputs[0].dtype, node.op.dtype
    if target is DType.BOOL:
        return lambda x: x != 0
    if source.is_float and target.is_integer:
        return lambda x: _to_integer(x, target)

    def kernel(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # too large for f16 is infinity
            return x.astype(target.numpy)

    return kernel


def _to_integer(x: np.ndarray, target: DType) -> np.ndarray:
    """Rounds to nearest even and saturates; f64 holds every i32. NaN, unspecified, gives 0."""
    rounded = np.rint(x.astype(np.float64))
    return np.where(np.isnan(rounded), 0, np.clip(rounded, target.min, target.max)).astype(target.numpy)


class RowScale:
    """RESCALE of rows [n, C], each channel with its own offset (section 2.12.2), and of the CLAMP behind it."""

    def __init__(self, node: Node, clamp: Node | None = None) -> None:
        op, source, channels = node.op, node.inputs[0], node.inputs[0].shape[-1]
        self.stored, self.out_type = op.dtype.numpy, _view(op.dtype, op.output_unsigned)
        low, high = limits(op) if clamp is None else (int(clamp.op.min), int(clamp.op.max))
        multiplier, self.shift = (np.broadcast_to(np.array(v, np.int64), channels).copy() for v in (op.multiplier, op.shift))
        extra, half = extra_of(op, self.shift), np.int64(1) << (self.shift - 1)
        self.wide = bool(extra.any()) or source.dtype is DType.INT48
        self.multiplier = multiplier if self.wide else multiplier.astype(np.int32)
        self.rest = (half, extra, op.output_zp, low, high) if self.wide else (half, op.output_zp, low, high)

    def __call__(self, parts: Sequence[np.ndarray], offset: np.ndarray, out: np.ndarray) -> None:
        """out [n, C] = rescale(x + offset); offset: int64 [C].

        Args:
            parts: x alone, which may be f32 that holds integers, or int32 parts of it: x = 256 * first + second.
        """
        function = kernels.rescale_channels
        if self.wide:
            function = kernels.rescale_channels_wide if len(parts) == 1 else kernels.rescale_channels_split
        function(*parts, *self.arguments(offset), out.view(self.out_type))

    def arguments(self, offset: np.ndarray) -> tuple[Any, ...]:
        """What the kernels take between the values and the result."""
        return offset.astype(self.multiplier.dtype, copy=False), self.multiplier, self.shift, *self.rest


@handles(ops.Rescale)
def rescale(node: Node) -> Kernel:
    op, result = node.op, node.output
    x_type = _view(node.inputs[0].dtype, op.input_unsigned)
    if op.per_channel:
        scale, offset = RowScale(node), np.full(result.shape[-1], -op.input_zp, np.int64)

        def by_channel(x: np.ndarray) -> np.ndarray:
            out = np.empty(result.shape, result.dtype.numpy)
            scale([packed(x).view(x_type).reshape(-1, result.shape[-1])], offset, out.reshape(-1, result.shape[-1]))
            return out

        return by_channel

    low, high = limits(op)
    multiplier, shift, extra = op.multiplier[0], op.shift[0], int(extra_of(op, np.array(op.shift))[0])

    def whole(x: np.ndarray) -> np.ndarray:
        out = np.empty(result.shape, _view(op.dtype, op.output_unsigned))
        values = packed(x).view(x_type).reshape(-1)
        kernels.rescale_tensor(values, multiplier, shift, op.input_zp, op.output_zp, low, high, extra, out.reshape(-1))
        return out.view(result.dtype.numpy)

    return whole


def limits(op: ops.Rescale) -> tuple[int, int]:
    return (0, (1 << op.dtype.bits) - 1) if op.output_unsigned else (op.dtype.min, op.dtype.max)


def extra_of(op: ops.Rescale, shift: np.ndarray) -> np.ndarray:
    """What double rounding adds to the magnitude before the shift."""
    return np.where((op.rounding is ops.Rounding.DOUBLE) & (shift > 31), np.int64(1) << 30, np.int64(0))


def _view(dtype: DType, unsigned: bool) -> np.dtype:
    return np.dtype(f"u{dtype.bits // 8}") if unsigned else dtype.numpy
