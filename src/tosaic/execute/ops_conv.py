"""Convolutions (specification section 2.2), exact in integers.

A convolution makes its accumulators in blocks of rows [rows, OC], row = (n, y, x), small enough to stay in the cache
while the bias is added and, where a RESCALE follows, the result is scaled (`Convolution.rescaled`); a large one gives each thread
a share of the rows. Accumulators come from one of three sources:

- int8 products (`exact_products`), where this processor has exact ones; int16 inputs are split into two bytes;
- f32 convolutions of torch: a float sum of integers is exact, in any order, as long as no partial sum leaves +-2^24;
  input channels are split where the whole sum does, int16 inputs into two bytes, and f64 (+-2^53) is what remains;
- a compiled loop for the depthwise one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tosaic.execute import exact_products, kernels, short_floats, threads
from tosaic.execute.handlers import Kernel, as_float, as_torch, from_torch, handles, packed
from tosaic.execute.ops_layout import RowScale
from tosaic.tosa import ops
from tosaic.tosa.graph import Node
from tosaic.tosa.types import DType

EXACT_F32 = 1 << 24
LONGEST_LOW = (1 << 16) - 1  # |sum| <= K * 255 * 128 fits int32
BLOCK = 1 << 18  # accumulators of a block
BLOCK_OF_SHARE = 1 << 20  # and of one of several threads, which pay for Python's lock at each
# about how many microseconds a result with its scale takes, an int8 product, one in a depthwise convolution, an element of a window
OF_RESULT, OF_PRODUCT, OF_DEPTHWISE, OF_WINDOW = 5e-4, 5e-6, 1.2e-4, 1e-4

Block = tuple[torch.Tensor, ...]  # the accumulators, or their two parts: 256 * first + second
Use = Callable[[int, Block], None]
Pad = tuple[int, ...]


class Convolution(ABC):
    """Kernel of a convolution of integers; the subclasses make the accumulators."""

    def __init__(self, node: Node) -> None:
        self.node, self.op = node, node.op
        weight, self.result = node.inputs[1], node.output
        self.accumulator = torch.int32 if self.result.dtype is DType.INT32 else torch.int64
        self.fixed = self.prepare(weight.data) if weight.data is not None else None
        bias = node.inputs[2].data
        constant = weight.data is not None and bias is not None
        self.fixed_offset = np.ascontiguousarray(self.offset(self.fixed, bias)) if constant else None
        self.units, self.cost = self.work()

    @abstractmethod
    def prepare(self, w: np.ndarray) -> Any:
        """The weight as `blocks` wants it."""

    def inside(self, x: np.ndarray) -> Any:
        """The input as `blocks` wants it."""
        return x

    def work(self) -> tuple[int, float]:
        """What the rows are shared out by: how many, and about how many microseconds all of them take one thread."""
        return 1, 0.0

    @abstractmethod
    def blocks(self, x: Any, weights: Any, begin: int, end: int, size: int, use: Use) -> None:
        """Call `use(first row, block [rows, OC] without the offset)` over the units begin..end; the next block may overwrite it.

        `size`: how many accumulators, or elements of windows, a block has at most.
        """

    def offset(self, weights: Any, b: np.ndarray) -> np.ndarray:
        """What is to be added to each channel: int64 [OC]."""
        return np.broadcast_to(b.astype(np.int64), self.result.shape[-1:])

    def _made(self, w: np.ndarray, b: np.ndarray) -> tuple[Any, np.ndarray]:
        """Weights and offset."""
        weights = self.prepare(w) if self.fixed is None else self.fixed
        return weights, np.ascontiguousarray(self.offset(weights, b)) if self.fixed_offset is None else self.fixed_offset

    def _each(self, x: np.ndarray, weights: Any, use: Use) -> None:
        """Make all blocks and use them, on as many threads as pay."""
        values, parts = self.inside(x), threads.parts(self.units, self.cost)
        size = BLOCK_OF_SHARE if parts > 1 or threads.of_several() else BLOCK
        threads.in_parallel(lambda begin, end: self.blocks(values, weights, begin, end, size, use), self.units, parts)

    def __call__(self, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        weights, constants = self._made(w, b)
        offset = torch.from_numpy(constants).to(self.accumulator)
        out = np.empty(self.result.shape, self.result.dtype.numpy)
        rows = torch.from_numpy(out.reshape(-1, out.shape[-1]))

        def store(start: int, block: Block) -> None:
            first, *low = block
            part = torch.add(first.to(self.accumulator), offset, out=rows[start : start + len(first)])
            if low:
                part.add_(first, alpha=255).add_(low[0])

        self._each(x, weights, store)
        return out

    def rescaled(self, ends: Sequence[tuple[Node, Node | None]]) -> Kernel:
        """Kernel of this convolution and the RESCALEs behind it, each with a CLAMP or none: one result for each."""
        scales = [RowScale(rescale, clamp) for rescale, clamp in ends]
        dtypes = [rescale.output.dtype.numpy for rescale, _ in ends]

        def kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
            weights, offset = self._made(w, b)
            results = tuple(np.empty(self.result.shape, dtype) for dtype in dtypes)
            rows = [out.reshape(-1, out.shape[-1]) for out in results]

            def scale(start: int, block: Block) -> None:
                parts = [part.numpy() for part in block]
                for by, out in zip(scales, rows, strict=True):
                    by(parts, offset, out[start : start + len(parts[0])])

            self._each(x, weights, scale)
            return results

        return kernel


class _Int8(Convolution):
    """CONV2D through int8 products."""

    @staticmethod
    def takes(node: Node) -> bool:
        x, w = node.inputs[:2]
        fits = isinstance(node.op, ops.Conv2d) and x.dtype.is_integer and node.op.weight_zp == 0
        return fits and w.type.size // w.shape[0] <= exact_products.LONGEST and exact_products.is_int8_exact()

    def prepare(self, w: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        matrix = np.ascontiguousarray(w).reshape(w.shape[0], -1)
        return as_torch(matrix).t(), matrix.sum(1, dtype=np.int64)

    def offset(self, weights: Any, b: np.ndarray) -> np.ndarray:
        # sum (x - zp) w = sum x w - zp sum w, and an int16 is 256 * high + low + 128
        extra = 128 if self.node.inputs[0].dtype is DType.INT16 else -self.op.input_zp
        return b + extra * weights[1]

    def inside(self, x: np.ndarray) -> list[np.ndarray]:
        """x, or the two bytes of it, with the padding around it."""
        if x.dtype == np.int8:
            return [_surrounded(x, self.op.pad, self.op.input_zp)]
        high, low = exact_products.split16(x)
        return [_surrounded(high, self.op.pad, 0), _surrounded(low, self.op.pad, -128)]

    def work(self) -> tuple[int, float]:
        oc, weight = self.result.shape[-1], self.node.inputs[1]
        # whether each window is a row of the input
        self._is_plain = weight.shape[1:3] == (1, 1) and self.op.stride == (1, 1) and not any(self.op.pad)
        rows, k = self.result.type.size // oc, weight.type.size // oc
        cost = oc * (OF_RESULT + k * OF_PRODUCT) + (0 if self._is_plain else k * OF_WINDOW)
        return rows, rows * cost * self.node.inputs[0].dtype.bits / 8

    def blocks(self, x: list[np.ndarray], weights: Any, begin: int, end: int, size: int, use: Use) -> None:
        matrix = weights[0]
        (k, oc), rows = matrix.shape, end - begin
        if len(x) == 2 and self._is_plain and 2 * rows * max(k, oc) <= size:  # the weights are read once
            both = as_torch(np.concatenate([part.reshape(-1, k)[begin:end] for part in x]))
            total = exact_products.int8_product(both, matrix, torch.empty((2 * rows, oc), dtype=torch.int32))
            use(begin, (total[:rows], total[rows:]))
            return
        op, (_, oh, ow, _) = self.op, self.result.shape
        step = min(max(1, size // max(k, oc)), rows)
        totals = [torch.empty((step, oc), dtype=torch.int32) for _ in x]
        windows = None if self._is_plain else np.empty((step, k), np.int8)
        for start in range(begin, end, step):
            count = min(step, end - start)
            block = []
            for part, total in zip(x, totals, strict=True):
                if windows is None:
                    values = part.reshape(-1, k)[start : start + count]
                else:
                    values = windows[:count]
                    kernels.im2col(part, self.node.inputs[1].shape[1:3], op.stride, op.dilation, oh, ow, start, values)
                block.append(exact_products.int8_product(as_torch(values), matrix, total[:count]))
            use(start, tuple(block))


def _surrounded(x: np.ndarray, pad: Pad, value: int) -> np.ndarray:
    """x [N,H,W,C] with `value` around it, packed."""
    if not any(pad):
        return packed(x)
    n, h, w, c = x.shape
    top, bottom, left, right = pad
    out = np.empty((n, h + top + bottom, w + left + right, c), x.dtype)
    out[:, :top], out[:, top + h :] = value, value
    out[:, :, :left], out[:, :, left + w :] = value, value
    out[:, top : top + h, left : left + w] = x
    return out


class _Depthwise(Convolution):
    """DEPTHWISE_CONV2D of integers, in 32 bits where those hold the sums of these weights."""

    def prepare(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exact = (w.astype(np.int64) - self.op.weight_zp).reshape(*w.shape[:2], -1)
        largest = int(np.abs(exact).sum((0, 1)).max(initial=0)) << (self.node.inputs[0].dtype.bits - 1)
        return exact.astype(np.int32 if largest < 1 << 31 else np.int64), exact.sum((0, 1))

    def offset(self, weights: Any, b: np.ndarray) -> np.ndarray:
        return b - self.op.input_zp * weights[1]

    def inside(self, x: np.ndarray) -> np.ndarray:
        times = self.result.shape[3] // x.shape[3]
        return _surrounded(np.repeat(x, times, axis=3) if times > 1 else x, self.op.pad, self.op.input_zp)

    def work(self) -> tuple[int, float]:
        n, oh, *_ = self.result.shape
        kh, kw, *_ = self.node.inputs[1].shape
        return n * oh, self.result.type.size * (OF_RESULT + kh * kw * OF_DEPTHWISE)

    def blocks(self, x: np.ndarray, weights: Any, begin: int, end: int, size: int, use: Use) -> None:
        op = self.op
        _, oh, ow, channels = self.result.shape
        function = kernels.depthwise3x3 if weights[0].shape[:2] == (3, 3) else kernels.depthwise
        step = min(max(1, size // (ow * channels)), end - begin)
        acc = np.empty((step, ow, channels), weights[0].dtype)
        for start in range(begin, end, step):
            part = acc[: min(step, end - start)]
            function(x, weights[0], op.stride, op.dilation, oh, start, part)
            use(start * ow, (torch.from_numpy(part).view(-1, channels),))

    def rescaled(self, ends: Sequence[tuple[Node, Node | None]]) -> Kernel:
        if len(ends) == 1 and self.fixed is not None and self.fixed_offset is not None and self.node.inputs[0].dtype is DType.INT8:
            scale, exact = RowScale(*ends[0]), self.fixed[0]
            if not scale.wide and np.abs(exact).max(initial=0) <= 127:
                return self._of_bytes(exact.astype(np.int16), scale, self.fixed_offset)
        return super().rescaled(ends)

    def _of_bytes(self, weights: np.ndarray, scale: RowScale, offset: np.ndarray) -> Kernel:
        """Kernel of this convolution and the RESCALE behind it, both constant."""
        op, shape, factors = self.op, self.result.shape, scale.arguments(offset)

        def kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
            out = np.empty(shape, scale.out_type)
            kernels.depthwise_bytes(self.inside(x), weights, op.stride, op.dilation, shape[1], *factors, out)
            return (out.view(scale.stored),)

        return kernel


def _groups(w: np.ndarray, low: int, high: int) -> list[int]:
    """Borders of groups of input channels whose partial sums all fit f32.

    Args:
        w: int64 [OC, K, IC] without its zero point.
        low, high: of the input without its zero point.

    Returns:
        [0, ..., IC], or [] when a single channel is too much.
    """
    up, down = np.clip(w, 0, None).sum(1), np.clip(-w, 0, None).sum(1)  # [OC, IC]
    up, down = high * up - low * down, high * down - low * up  # largest sum of positive and of negative products
    if max(up.max(initial=0), down.max(initial=0)) > EXACT_F32:
        return []
    borders, ic = [0], w.shape[2]
    up, down = np.cumsum(up, axis=1), np.cumsum(down, axis=1)
    while borders[-1] < ic:
        start = borders[-1]
        past_up, past_down = (up[:, start - 1], down[:, start - 1]) if start else (0, 0)
        fits = np.maximum((up.T - past_up).max(1), (down.T - past_down).max(1)) <= EXACT_F32
        borders.append(int(np.searchsorted(~fits, True)))
    return borders


class _Float(Convolution):
    """Any convolution of integers through the float one that `_torch` gives; an int16 as two bytes, x = 256 * high + low."""

    def prepare(self, w: np.ndarray) -> tuple[torch.dtype, list[tuple[int, int, torch.Tensor]]]:
        arrange = _torch(self.op)[1]
        dtype = self.node.inputs[0].dtype
        exact = w.astype(np.int64) - self.op.weight_zp
        low, high = (-128, 255) if dtype is DType.INT16 else (dtype.min - self.op.input_zp, dtype.max - self.op.input_zp)
        borders = _groups(exact.reshape(w.shape[0], -1, w.shape[-1]), low, high)
        if (dtype is DType.INT16 and w.size // w.shape[0] > LONGEST_LOW) or not exact_products.is_f32_exact():
            borders = []
        wide = torch.float32 if borders else torch.float64
        whole = torch.from_numpy(exact).to(wide).movedim(-1, 1)
        return wide, [(a, b, arrange(whole[:, a:b])) for a, b in pairwise(borders or [0, w.shape[-1]])]

    def blocks(self, x: np.ndarray, weights: Any, begin: int, end: int, size: int, use: Use) -> None:
        values = as_torch(x)
        with threads.of_torch():
            if x.dtype == np.int16 and weights[0] is torch.float32:
                block: Block = (self._sums(values >> 8, torch.int32, *weights), self._sums(values & 255, torch.int32, *weights))
            else:
                block = (self._sums(values, self.accumulator, *weights),)
        use(0, block)

    def _sums(self, x: torch.Tensor, dtype: torch.dtype, wide: torch.dtype, parts: list[tuple[int, int, torch.Tensor]]) -> torch.Tensor:
        """Accumulators [rows, OC]: as `wide` where that holds them, else as `dtype`."""
        convolve, _, pad = _torch(self.op)
        values = x.to(wide)
        if self.op.input_zp:
            values = values - self.op.input_zp
        values = _padded(values.movedim(-1, 1), pad)
        sums = (convolve(values[:, a:b], w) for a, b, w in parts)
        total = next(sums)
        if len(parts) > 1 or dtype is not self.accumulator or wide is torch.float64:
            total = total.to(dtype)
        for part in sums:
            total += part.to(dtype)
        return _finished(total, self.op).reshape(-1, self.result.shape[-1])


def _torch(op: ops.Op) -> tuple[Callable[..., torch.Tensor], Callable[[torch.Tensor], torch.Tensor], Pad]:
    """torch's convolution (x [N,IC,*], weight) -> [N,OC,*] without bias, what brings a weight [OC,IC,*] into its order, and
    the padding that has to be done before it."""
    if isinstance(op, ops.TransposeConv2d):
        return lambda x, w: F.conv_transpose2d(x, w, None, op.stride), lambda w: w.transpose(0, 1).contiguous(), ()
    flat = isinstance(op, ops.Conv2d)
    function = F.conv2d if flat else F.conv3d
    even = op.pad[::2] == op.pad[1::2]  # torch pads evenly at no cost
    inside, outside = (op.pad[::2], ()) if even else (0, op.pad)
    layout = torch.channels_last if flat else torch.channels_last_3d
    return lambda x, w: function(x, w, None, op.stride, inside, op.dilation), lambda w: w.contiguous(memory_format=layout), outside


def _padded(x: torch.Tensor, pad: Pad) -> torch.Tensor:
    """x [N,C,*spatial] with zeros around it; `pad` is (before, after) for each spatial dimension."""
    if not any(pad):
        return x
    return F.pad(x, [p for i in reversed(range(len(pad) // 2)) for p in pad[2 * i : 2 * i + 2]])


def _finished(total: torch.Tensor, op: ops.Op) -> torch.Tensor:
    """[N,*spatial,OC] of [N,OC,*spatial]; TRANSPOSE_CONV2D's out_pad adds zeros around the full result, or crops it."""
    if isinstance(op, ops.TransposeConv2d) and any(op.pad):
        total = F.pad(total, (op.pad[2], op.pad[3], op.pad[0], op.pad[1]))
    return total.movedim(1, -1).contiguous()


@handles(ops.Conv2d, ops.Conv3d, ops.TransposeConv2d)
def conv(node: Node) -> Kernel:
    if node.inputs[0].dtype.is_integer:
        return _Int8(node) if _Int8.takes(node) else _Float(node)
    if node.op.accumulator(node.inputs[0].dtype) is DType.FP16:
        return short_floats.convolution(node)
    convolve, arrange, pad = _torch(node.op)
    return _of_floats(node, convolve, lambda w: arrange(w.movedim(-1, 1)), pad)


@handles(ops.DepthwiseConv2d)
def depthwise(node: Node) -> Kernel:
    if node.inputs[0].dtype.is_integer:
        return _Depthwise(node)
    if node.op.accumulator(node.inputs[0].dtype) is DType.FP16:
        return short_floats.depthwise(node)
    op, channels = node.op, node.inputs[0].shape[-1]

    def arrange(w: torch.Tensor) -> torch.Tensor:  # [KH,KW,C,M] -> [C*M,1,KH,KW]
        return w.permute(2, 3, 0, 1).reshape(-1, 1, *w.shape[:2]).contiguous(memory_format=torch.channels_last)

    return _of_floats(node, lambda x, w: F.conv2d(x, w, None, op.stride, 0, op.dilation, channels), arrange, op.pad)


def _of_floats(node: Node, convolve: Callable[..., torch.Tensor], arrange: Callable[[torch.Tensor], torch.Tensor], pad: Pad) -> Kernel:
    """Kernel of a convolution of floats, accumulated in f32, of which the bias is added to the rounded sum, as specified."""
    weight, result = node.inputs[1], node.output
    fixed = arrange(as_float(weight.data)) if weight.data is not None else None

    def kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        values = _padded(as_float(x).movedim(-1, 1), pad)
        total = _finished(convolve(values, arrange(as_float(w)) if fixed is None else fixed), node.op)
        if result.dtype is not DType.FP32:
            total = as_float(from_torch(total, result.dtype))
        return from_torch(total.add_(as_float(b)), result.dtype)

    return kernel
