"""Compiled loops over integers: what torch has no exact or no fast operator for.

All arrays are C-contiguous and writable (`handlers.packed`), so that each combination of element types compiles once.
Compiled code is cached on disk where the package's or the user's cache directory is writable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from tosaic.execute import threads

OF_ELEMENT = 1e-3  # about how many microseconds an element takes


def _prefer_wide(context):
    """In a compiled function: LLVM, which prefers the halves of AVX-512's registers, takes them whole."""

    def code(context, builder, signature, arguments):
        # llvmlite's own `add` knows attributes of one word only
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.types.void(), code


_wide_vectors: Any = intrinsic(_prefer_wide)  # its type says the arguments of the function above, not of the call


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba.njit; without a cache on disk where no directory is writable."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return numba.njit(nogil=True)(function)


def _threaded(function: Callable[..., Any]) -> Callable[..., None]:
    """Compile a loop over begin..end and call it for all rows of its last argument, on as many threads as pay.

    Plain threads rather than numba's own: they compile in a third of the time, and survive a fork. Rows are out[n] or, of a
    [N,H,W,C], its lines.
    """
    compiled = _compiled(function)

    @wraps(function)
    def kernel(*arguments: Any) -> None:
        out = arguments[-1]
        rows = out.shape[0] * (out.shape[1] if out.ndim == 4 else 1)
        parts = threads.parts(rows, max(arguments[0].size, out.size) * OF_ELEMENT)
        if parts == 1:
            compiled(0, rows, *arguments)
        else:
            threads.in_parallel(lambda begin, end: compiled(begin, end, *arguments), rows, parts)

    return kernel


@_threaded
def rescale_tensor(begin, end, x, multiplier, shift, in_zp, out_zp, low, high, extra, out):
    """RESCALE with one multiplier (section 2.12.2). x, out: [n]; `extra`: 2^30 for double rounding with shift > 31, else 0.

    Everything fits int64: |x| < 2^32 with a 31-bit multiplier, |x| < 2^47 with a 15-bit one.
    """
    _wide_vectors()
    half = np.int64(1) << (shift - 1)
    source, target = x[begin:end], out[begin:end]  # slices begin at 0: no index can be negative, and the loop becomes SIMD
    if extra == 0:
        for i in range(source.size):
            value = ((np.int64(source[i]) - in_zp) * multiplier + half) >> shift
            target[i] = min(max(value + out_zp, low), high)
    else:
        for i in range(source.size):
            value = np.int64(source[i]) - in_zp
            value = (value * multiplier + half + (extra if value >= 0 else -extra)) >> shift
            target[i] = min(max(value + out_zp, low), high)


@_threaded
def rescale_channels(begin, end, x, offset, multiplier, shift, half, out_zp, low, high, out):
    """RESCALE per channel of 32 bits, rounded once: 32-bit factors make the product one instruction.

    x (integers, or f32 that holds integers), out: [n, C]; offset (a bias, or minus the input's zero point), multiplier:
    int32 [C]; shift, half (2^(shift-1)): int64 [C].
    """
    _wide_vectors()
    for i in range(begin, end):
        for c in range(x.shape[1]):
            value = np.int64(np.int32(x[i, c] + offset[c]))
            value = (value * np.int64(multiplier[c]) + half[c]) >> shift[c]
            out[i, c] = min(max(value + out_zp, low), high)


@_threaded
def rescale_channels_wide(begin, end, x, offset, multiplier, shift, half, extra, out_zp, low, high, out):
    """RESCALE per channel of 48 bits, or rounded twice; all of it int64."""
    _wide_vectors()
    for i in range(begin, end):
        for c in range(x.shape[1]):
            value = np.int64(x[i, c]) + offset[c]
            value = value * multiplier[c] + half[c] + (extra[c] if value >= 0 else -extra[c])
            out[i, c] = min(max((value >> shift[c]) + out_zp, low), high)


@_threaded
def rescale_channels_split(begin, end, upper, lower, offset, multiplier, shift, half, extra, out_zp, low, high, out):
    """`rescale_channels_wide` of 256 * upper + lower, both int32 [n, C]."""
    _wide_vectors()
    for i in range(begin, end):
        for c in range(upper.shape[1]):
            value = (np.int64(upper[i, c]) << 8) + np.int64(lower[i, c]) + offset[c]
            value = value * multiplier[c] + half[c] + (extra[c] if value >= 0 else -extra[c])
            out[i, c] = min(max((value >> shift[c]) + out_zp, low), high)


@_threaded
def mul(begin, end, a, b, shift, half, out):
    """MUL of i32 with a shift (section 2.4.9), rounded; half: 2^(shift-1). a, out: [n, C]; b: [n or 1, C or 1]."""
    _wide_vectors()
    for i in range(begin, end):
        x, y, target = a[i], b[i if b.shape[0] > 1 else 0], out[i]
        if y.size == 1:
            factor = np.int64(y[0])
            for c in range(x.size):
                target[c] = (x[c] * factor + half) >> shift
        else:
            for c in range(x.size):
                target[c] = (x[c] * np.int64(y[c]) + half) >> shift


@_threaded
def split16(begin, end, x, high, low):
    """int16 as two int8: x = 256 * high + low + 128. All [n]."""
    _wide_vectors()
    source, upper, lower = x[begin:end], high[begin:end], low[begin:end]
    for i in range(source.size):
        upper[i] = source[i] >> 8
        lower[i] = (source[i] & 255) - 128


@_threaded
def table8(begin, end, x, table, out):
    """TABLE of i8. x, out: [n]; table: [256]."""
    source, target = x[begin:end], out[begin:end]
    for i in range(source.size):
        target[i] = table[np.uint64(np.int64(source[i]) + 128)]


@_threaded
def lookup(begin, end, x, table, out):
    """GATHER from one row of values. x: i32 [n], all inside of the table; out: [n]."""
    source, target = x[begin:end], out[begin:end]
    for i in range(source.size):
        target[i] = table[np.uint64(source[i])]


@_threaded
def table16(begin, end, x, table, out):
    """TABLE of i16: 512 linear segments of 128 (section 1.10, table lookup). x: i16 [n]; table: i16 [513]; out: i32 [n]."""
    source, target = x[begin:end], out[begin:end]
    for i in range(source.size):
        position = np.uint32(np.int32(source[i]) + 32768)
        base = np.int32(table[position >> 7])
        slope = np.int32(table[(position >> 7) + 1]) - base
        target[i] = (base << 7) + slope * np.int32(position & 127)


@_threaded
def im2col(begin, end, x, kernel, stride, dilation, oh, ow, start, out):
    """Rows start.. of the matrix whose rows are the windows of x.

    x [N,H,W,C] with its padding; kernel, stride, dilation: (y, x); out [rows, KH*KW*C], row = (n * oh + oy) * ow + ox.
    """
    n, height, width, channels = x.shape
    lines = x.reshape(n, height, width * channels)
    kh, kw = kernel
    parts, length = (1, kw * channels) if dilation[1] == 1 else (kw, channels)  # of a line of the window
    for row in range(begin, end):
        at = start + row
        b, y, left = at // (oh * ow), (at // ow) % oh * stride[0], at % ow * stride[1] * channels
        for ky in range(kh):
            for part in range(parts):
                begin = left + part * dilation[1] * channels
                source = lines[b, y + ky * dilation[0], begin : begin + length]
                position = (ky * parts + part) * length
                target = out[row, position : position + length]
                for i in range(length):
                    target[i] = source[i]


@_threaded
def depthwise(begin, end, x, w, stride, dilation, oh, start, out):
    """DEPTHWISE_CONV2D with multiplier 1, without bias and zero points: rows start.. of [N*OH, OW, C].

    x [N,H,W,C] with its padding, w [KH,KW,C], out [rows, OW, C] of w's type; stride, dilation: (y, x).
    """
    _wide_vectors()
    channels = x.shape[3]
    kh, kw, _ = w.shape
    for row in range(begin, end):
        b, top = (start + row) // oh, (start + row) % oh * stride[0]
        for ox in range(out.shape[1]):
            acc = out[row, ox]
            acc[:] = 0
            for ky in range(kh):
                line = x[b, top + ky * dilation[0]]
                for kx in range(kw):
                    values, weights = line[ox * stride[1] + kx * dilation[1]], w[ky, kx]
                    for c in range(channels):
                        acc[c] += values[c] * weights[c]


@_threaded
def depthwise3x3(begin, end, x, w, stride, dilation, oh, start, out):
    """`depthwise` for the usual kernel: nine products at once keep the sum in a register."""
    _wide_vectors()
    for row in range(begin, end):
        b, top = (start + row) // oh, (start + row) % oh * stride[0]
        line0, line1, line2 = x[b, top], x[b, top + dilation[0]], x[b, top + 2 * dilation[0]]
        for ox in range(out.shape[1]):
            acc = out[row, ox]
            left = ox * stride[1]
            middle, right = left + dilation[1], left + 2 * dilation[1]
            x00, x01, x02 = line0[left], line0[middle], line0[right]
            x10, x11, x12 = line1[left], line1[middle], line1[right]
            x20, x21, x22 = line2[left], line2[middle], line2[right]
            for c in range(x.shape[3]):
                acc[c] = (
                    (x00[c] * w[0, 0, c] + x01[c] * w[0, 1, c] + x02[c] * w[0, 2, c])
                    + (x10[c] * w[1, 0, c] + x11[c] * w[1, 1, c] + x12[c] * w[1, 2, c])
                    + (x20[c] * w[2, 0, c] + x21[c] * w[2, 1, c] + x22[c] * w[2, 2, c])
                )


@_compiled
def _pairs3x3(x, top, stride, dilation, b, w, acc):
    """A line [OW, C] of `depthwise_bytes` with the usual kernel."""
    _wide_vectors()
    line0, line1, line2 = x[b, top], x[b, top + dilation[0]], x[b, top + 2 * dilation[0]]
    for ox in range(acc.shape[0]):
        line, left = acc[ox], ox * stride[1]
        middle, right = left + dilation[1], left + 2 * dilation[1]
        x00, x01, x02 = line0[left], line0[middle], line0[right]
        x10, x11, x12 = line1[left], line1[middle], line1[right]
        x20, x21, x22 = line2[left], line2[middle], line2[right]
        for c in range(x.shape[3]):
            pair0 = np.int16(x00[c] * w[0, 0, c] + x01[c] * w[0, 1, c])
            pair1 = np.int16(x02[c] * w[0, 2, c] + x10[c] * w[1, 0, c])
            pair2 = np.int16(x11[c] * w[1, 1, c] + x12[c] * w[1, 2, c])
            pair3 = np.int16(x20[c] * w[2, 0, c] + x21[c] * w[2, 1, c])
            line[c] = (np.int32(pair0) + np.int32(pair1)) + (np.int32(pair2) + np.int32(pair3)) + np.int16(x22[c] * w[2, 2, c])


@_compiled
def _pairs(x, top, stride, dilation, b, w, acc):
    """A line [OW, C] of `depthwise_bytes` with any kernel."""
    _wide_vectors()
    kh, kw, channels = w.shape
    for ox in range(acc.shape[0]):
        line, left = acc[ox], ox * stride[1]
        line[:] = 0
        for ky in range(kh):
            values = x[b, top + ky * dilation[0]]
            for kx in range(0, kw - 1, 2):
                x0, x1 = values[left + kx * dilation[1]], values[left + (kx + 1) * dilation[1]]
                w0, w1 = w[ky, kx], w[ky, kx + 1]
                for c in range(channels):
                    line[c] += np.int16(x0[c] * w0[c] + x1[c] * w1[c])
            if kw % 2:
                last, weights = values[left + (kw - 1) * dilation[1]], w[ky, kw - 1]
                for c in range(channels):
                    line[c] += np.int16(last[c] * weights[c])


@_threaded
def depthwise_bytes(begin, end, x, w, stride, dilation, oh, offset, multiplier, shift, half, out_zp, low, high, out):
    """`depthwise` of int8 and the RESCALE per channel behind it (`rescale_channels`), line by line.

    w: int16 [KH,KW,C] of at most 127 in magnitude, so that the sum of two products fits 16 bits: twice as many at once.
    out: [N,OH,OW,C].
    """
    _wide_vectors()
    ow, channels = out.shape[2], out.shape[3]
    acc = np.empty((ow, channels), np.int32)
    usual = w.shape[0] == 3 and w.shape[1] == 3
    for row in range(begin, end):
        b, oy = row // oh, row % oh
        if usual:
            _pairs3x3(x, oy * stride[0], stride, dilation, b, w, acc)
        else:
            _pairs(x, oy * stride[0], stride, dilation, b, w, acc)
        target = out[b, oy]
        for ox in range(ow):
            source, line = acc[ox], target[ox]
            for c in range(channels):
                value = np.int64(np.int32(source[c] + offset[c]))
                value = (value * np.int64(multiplier[c]) + half[c]) >> shift[c]
                line[c] = min(max(value + out_zp, low), high)


@_threaded
def avg_pool(begin, end, x, kernel, stride, pad, in_zp, out_zp, low, high, out):
    """AVG_POOL2D of integers (section 2.2.2). x [N,H,W,C] i8 or i16, out [N,OH,OW,C]; padding does not count."""
    _, height, width, channels = x.shape
    _, oh, ow, _ = out.shape
    for row in range(begin, end):
        b, oy = row // oh, row % oh
        y0, y1 = max(0, oy * stride[0] - pad[0]), min(height, oy * stride[0] - pad[0] + kernel[0])
        acc = np.empty(channels, np.int32)
        for ox in range(ow):
            x0, x1 = max(0, ox * stride[1] - pad[1]), min(width, ox * stride[1] - pad[1] + kernel[1])
            acc[:] = 0
            for y in range(y0, y1):
                for at in range(x0, x1):
                    for c in range(channels):
                        acc[c] += np.int32(x[b, y, at, c])
            count = np.int64((y1 - y0) * (x1 - x0))
            # reciprocal_scale: 2^(k-1) < count <= 2^k, multiplier in [2^30, 2^31)
            k = np.int64(0)
            while (np.int64(1) << k) < count:
                k += 1
            multiplier = (((np.int64(1) << 30) + 1) << k) // count
            shift = 30 + k
            for c in range(channels):
                value = (np.int64(acc[c]) - count * in_zp) * multiplier + (np.int64(1) << (shift - 1))
                out[b, oy, ox, c] = min(max((value >> shift) + out_zp, low), high)


@_threaded
def avg_pool_float(begin, end, x, kernel, stride, pad, out):
    """AVG_POOL2D of f32."""
    _, height, width, channels = x.shape
    _, oh, ow, _ = out.shape
    for row in range(begin, end):
        b, oy = row // oh, row % oh
        y0, y1 = max(0, oy * stride[0] - pad[0]), min(height, oy * stride[0] - pad[0] + kernel[0])
        for ox in range(ow):
            x0, x1 = max(0, ox * stride[1] - pad[1]), min(width, ox * stride[1] - pad[1] + kernel[1])
            acc = out[b, oy, ox]
            acc[:] = 0
            for y in range(y0, y1):
                for at in range(x0, x1):
                    for c in range(channels):
                        acc[c] += x[b, y, at, c]
            count = np.float32((y1 - y0) * (x1 - x0))
            for c in range(channels):
                acc[c] /= count


@_threaded
def max_pool(begin, end, x, kernel, stride, pad, out):
    """MAX_POOL2D (section 2.2.9); NaN propagates. x [N,H,W,C], out [N,OH,OW,C]."""
    _, height, width, channels = x.shape
    _, oh, ow, _ = out.shape
    for row in range(begin, end):
        b, oy = row // oh, row % oh
        y0, y1 = max(0, oy * stride[0] - pad[0]), min(height, oy * stride[0] - pad[0] + kernel[0])
        for ox in range(ow):
            x0, x1 = max(0, ox * stride[1] - pad[1]), min(width, ox * stride[1] - pad[1] + kernel[1])
            acc = out[b, oy, ox]
            acc[:] = x[b, y0, x0]
            for y in range(y0, y1):
                for at in range(x0, x1):
                    for c in range(channels):
                        value = x[b, y, at, c]
                        acc[c] = value if (value > acc[c] or value != value) else acc[c]


@_threaded
def resize_bilinear(begin, end, x, iy0, iy1, dy, unit_y, ix0, ix1, dx, unit_x, out):
    """RESIZE, bilinear (section 2.11.1). x [N,H,W,C], out [N,OH,OW,C]; dy, dx and the units have the type of `out`."""
    channels = x.shape[3]
    _, oh, ow, _ = out.shape
    for row in range(begin, end):
        b, oy = row // oh, row % oh
        top, bottom = x[b, iy0[oy]], x[b, iy1[oy]]
        for ox in range(ow):
            w00, w01 = (unit_y - dy[oy]) * (unit_x - dx[ox]), (unit_y - dy[oy]) * dx[ox]
            w10, w11 = dy[oy] * (unit_x - dx[ox]), dy[oy] * dx[ox]
            left, right = ix0[ox], ix1[ox]
            for c in range(channels):
                out[b, oy, ox, c] = top[left, c] * w00 + top[right, c] * w01 + bottom[left, c] * w10 + bottom[right, c] * w11
