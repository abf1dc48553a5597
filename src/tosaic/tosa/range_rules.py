"""Intervals through arithmetic, shifts, choices and data movement (see `ranges`)."""

from __future__ import annotations

import numpy as np

from tosaic.tosa import ops
from tosaic.tosa.graph import Node, Value
from tosaic.tosa.interval import Analysis, Interval, corners, of, of_type, transfer
from tosaic.tosa.types import DType

_I32 = DType.INT32


# Arithmetic


@transfer(ops.Add)
def _add(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    return Interval(x.low + y.low, x.high + y.high)


@transfer(ops.Sub)
def _sub(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    low, high = x.low - y.high, x.high - y.low
    if _is_maximum_of(a, *node.inputs):
        low = np.maximum(low, 0)
    return Interval(low, high)


def _is_maximum_of(a: Analysis, top: Value, x: Value) -> bool:
    """Whether `top` is the maximum of `x` along an axis, or both are the same RESCALE of such two (RESCALE is monotone)."""
    if (node := a.maker(top, ops.ReduceMax)) is not None and node.inputs[0] is x:
        return True
    one, other = a.maker(top, ops.Rescale), a.maker(x, ops.Rescale)
    return one is not None and other is not None and one.op == other.op and _is_maximum_of(a, one.inputs[0], other.inputs[0])


@transfer(ops.Mul)
def _mul(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    product = corners(np.multiply, x, y)
    if node.inputs[0] is node.inputs[1]:
        product = Interval(np.maximum(product.low, 0), product.high)
    shift = node.op.shift  # type: ignore[attr-defined]
    return product if not shift else Interval(_rounded(product.low, shift), _rounded(product.high, shift))


def _rounded(value: np.ndarray, shift: int | np.ndarray) -> np.ndarray:
    """value 2^-shift, ties up; the sum with the rounding constant may need a 65th bit, the halves do not."""
    return (value >> shift) + ((value >> (np.asarray(shift) - 1)) & 1)


@transfer(ops.IntDiv)
def _intdiv(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    if ((y.low <= 0) & (y.high >= 0)).any():
        a.problem(node, f"divides by {y}")
    # the quotient is monotone in the dividend, and in the divisor on either side of zero
    low, high = (np.zeros(np.broadcast(x.low, y.low).shape, np.int64) for _ in range(2))
    first = True
    for divisor in (y.low, y.high, np.int64(-1), np.int64(1)):
        used = (y.low <= divisor) & (divisor <= y.high) & (divisor != 0)
        if not used.any():
            continue
        quotient = corners(_quotient, x, Interval(np.where(used, divisor, 1), np.where(used, divisor, 1)))
        low = np.where(used, quotient.low if first else np.minimum(low, quotient.low), low)
        high = np.where(used, quotient.high if first else np.maximum(high, quotient.high), high)
        first = False
    return Interval(low, high)


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y towards zero."""
    return np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))


@transfer(ops.Negate)
def _negate(a: Analysis, node: Node, x: Interval) -> Interval:
    op, dtype = node.op, node.output.dtype
    assert isinstance(op, ops.Negate)
    result = Interval(op.output_zp - (x.high - op.input_zp), op.output_zp - (x.low - op.input_zp))
    # narrow types saturate, their accumulator is i32
    return result if dtype is _I32 else result.within(dtype.min, dtype.max)


@transfer(ops.Abs)
def _abs(a: Analysis, node: Node, x: Interval) -> Interval:
    low = np.where((x.low <= 0) & (x.high >= 0), 0, np.minimum(np.abs(x.low), np.abs(x.high)))
    return Interval(low, np.maximum(np.abs(x.low), np.abs(x.high)))


@transfer(ops.Clamp)
def _clamp(a: Analysis, node: Node, x: Interval) -> Interval:
    return x.within(node.op.min, node.op.max)  # type: ignore[attr-defined]


@transfer(ops.Maximum)
def _maximum(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    return Interval(np.maximum(x.low, y.low), np.maximum(x.high, y.high))


@transfer(ops.Minimum)
def _minimum(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    return Interval(np.minimum(x.low, y.low), np.minimum(x.high, y.high))


@transfer(ops.Clz)
def _clz(a: Analysis, node: Node, x: Interval) -> Interval:
    fewest = np.where(x.low < 0, 0, _leading_zeros(x.high))  # a negative number has none
    return Interval(fewest, np.where(x.high < 0, 0, _leading_zeros(x.low)))


def _leading_zeros(value: np.ndarray) -> np.ndarray:
    """Of a 32-bit number; 32 for what is not positive."""
    return 32 - np.frexp(np.maximum(value, 0).astype(np.float64))[1].astype(np.int64)


# Shifts and bits

_BITS = {DType.INT8: 8, DType.INT16: 16, DType.INT32: 32}


def _check_shift(a: Analysis, node: Node, shift: Interval) -> Interval:
    most = _BITS[node.output.dtype] - 1
    low, high = shift.ends
    if low < 0 or high > most:
        a.problem(node, f"shifts by {shift}, 0..{most} are defined")
    return shift.within(0, most)


@transfer(ops.ArithmeticRightShift)
def _arithmetic_right(a: Analysis, node: Node, x: Interval, shift: Interval) -> Interval:
    shift = _check_shift(a, node, shift)
    if not node.op.round:  # type: ignore[attr-defined]
        return corners(np.right_shift, x, shift)
    return corners(lambda v, s: np.where(s > 0, _rounded(v, np.maximum(s, 1)), v), x, shift)


@transfer(ops.LogicalLeftShift)
def _left(a: Analysis, node: Node, x: Interval, shift: Interval) -> Interval:
    shift = _check_shift(a, node, shift)
    if (found := _normalized(a, node, x)) is not None:
        low, high = found
        if high < 1 << 31 or low >= 1 << 31:  # one sign for all: as signed numbers they are an interval too
            return of(low, high) if high < 1 << 31 else of(low - (1 << 32), high - (1 << 32))
    return corners(np.left_shift, x, shift)


def _normalized(a: Analysis, node: Node, x: Interval) -> tuple[int, int] | None:
    """Of x << CLZ(x), x << (CLZ(x) - k) and x << (CLZ(x) & ~1), x > 0: the unsigned interval of the result."""
    if (x.low < 1).any() or node.output.dtype is not _I32:
        return None
    value, amount = node.inputs
    less, spare = 0, 0
    if (sub := a.maker(amount, ops.Sub)) is not None and sub.inputs[1].is_const:
        (less, most), amount = a.known[sub.inputs[1]].ends, sub.inputs[0]
        if less != most or less < 0:
            return None
    if (even := a.maker(amount, ops.BitwiseAnd)) is not None:
        mask = next((v for v in even.inputs if v.is_const), None)
        if mask is None or a.known[mask].ends != (-2, -2):
            return None
        amount, spare = next(v for v in even.inputs if v is not mask), 1
    count = a.maker(amount, ops.Clz)
    if count is None or count.inputs[0] is not value:
        return None
    return (1 << (31 - spare)) >> less, ((1 << 32) - 1) >> less


@transfer(ops.LogicalRightShift)
def _logical_right(a: Analysis, node: Node, x: Interval, shift: Interval) -> Interval:
    shift, bits = _check_shift(a, node, shift), _BITS[node.output.dtype]
    left = a.maker(node.inputs[0], ops.LogicalLeftShift)
    if left is not None and (found := _normalized(a, left, a.known[left.inputs[0]])) is not None:
        unsigned = of(*found)
    else:
        mixed = (x.low < 0) & (x.high >= 0)
        wrapped = np.where(x.low < 0, 1 << bits, 0)
        unsigned = of(np.where(mixed, 0, x.low + wrapped), np.where(mixed, (1 << bits) - 1, x.high + wrapped))
    result = corners(np.right_shift, unsigned, shift)
    sign = 1 << (bits - 1)
    if (result.high < sign).all():
        return result
    return Interval(result.low - 2 * sign, result.high - 2 * sign) if (result.low >= sign).all() else of(-sign, sign - 1)


@transfer(ops.BitwiseNot)
def _not(a: Analysis, node: Node, x: Interval) -> Interval:
    return Interval(~x.high, ~x.low)


@transfer(ops.BitwiseAnd, ops.BitwiseOr, ops.BitwiseXor)
def _bitwise(a: Analysis, node: Node, x: Interval, y: Interval) -> Interval:
    positive = [e for e in (x, y) if e.ends[0] >= 0]
    if isinstance(node.op, ops.BitwiseAnd) and positive:
        return of(0, min(e.ends[1] for e in positive))
    if isinstance(node.op, ops.BitwiseAnd | ops.BitwiseOr) and max(x.ends[1], y.ends[1]) < 0:
        return of(node.output.dtype.min, -1)
    if len(positive) == 2:
        return of(0, (1 << max(x.ends[1], y.ends[1]).bit_length()) - 1)
    return of_type(node.output.dtype)


# Choices and reductions


@transfer(ops.Equal, ops.Greater, ops.GreaterEqual, ops.LogicalAnd, ops.LogicalOr, ops.LogicalXor, ops.LogicalNot)
@transfer(ops.ReduceAll, ops.ReduceAny)
def _boolean(a: Analysis, node: Node, *operands: Interval | None) -> Interval:
    return of(0, 1)


@transfer(ops.Select)
def _select(a: Analysis, node: Node, condition: Interval, x: Interval, y: Interval) -> Interval:
    return x.join(y)


@transfer(ops.ArgMax)
def _argmax(a: Analysis, node: Node, x: Interval | None) -> Interval:
    return of(0, node.inputs[0].shape[node.op.axis] - 1)  # type: ignore[attr-defined]


@transfer(ops.ReduceMax, ops.ReduceMin)
def _extreme(a: Analysis, node: Node, x: Interval) -> Interval:
    return x.whole() if node.op.axis == len(node.output.shape) - 1 else x  # type: ignore[attr-defined]


@transfer(ops.ReduceSum)
def _sum(a: Analysis, node: Node, x: Interval) -> Interval:
    axis, shape = node.op.axis, node.inputs[0].shape  # type: ignore[attr-defined]
    if axis == len(shape) - 1:
        return of(x.low.sum(), x.high.sum()) if x.low.ndim else of(x.low * shape[-1], x.high * shape[-1])
    return Interval(x.low * shape[axis], x.high * shape[axis])


# Data movement


@transfer(ops.Identity, ops.MaxPool2d)
def _same(a: Analysis, node: Node, x: Interval) -> Interval:
    return x


@transfer(ops.Reshape)
def _reshape(a: Analysis, node: Node, x: Interval) -> Interval:
    before, after = node.inputs[0].shape, node.output.shape
    return x if before and after and before[-1] == after[-1] else x.whole()


@transfer(ops.Transpose)
def _transpose(a: Analysis, node: Node, x: Interval) -> Interval:
    perms = node.op.perms  # type: ignore[attr-defined]
    return x if perms and perms[-1] == len(perms) - 1 else x.whole()


@transfer(ops.Reverse)
def _reverse(a: Analysis, node: Node, x: Interval) -> Interval:
    return x if node.op.axis != len(node.output.shape) - 1 else x.whole()  # type: ignore[attr-defined]


@transfer(ops.Tile)
def _tile(a: Analysis, node: Node, x: Interval) -> Interval:
    return x if not x.low.ndim or node.op.multiples[-1] == 1 else x.whole()  # type: ignore[attr-defined]


@transfer(ops.Slice)
def _slice(a: Analysis, node: Node, x: Interval) -> Interval:
    if not x.low.ndim:
        return x
    start = node.op.start[-1]  # type: ignore[attr-defined]
    part = slice(start, start + node.output.shape[-1])
    return Interval(x.low[part], x.high[part])


@transfer(ops.Pad)
def _pad(a: Analysis, node: Node, x: Interval) -> Interval:
    op = node.op
    assert isinstance(op, ops.Pad)
    if not any(op.padding):
        return x
    value = of(int(op.value), int(op.value))
    if not x.low.ndim or not any(op.padding[-2:]):
        return x.join(value)
    ends = [np.pad(end, op.padding[-2:], constant_values=int(op.value)) for end in (x.low, x.high)]
    return Interval(*ends) if not any(op.padding[:-2]) else Interval(*ends).join(value)


@transfer(ops.Concat)
def _concat(a: Analysis, node: Node, *parts: Interval) -> Interval:
    last = node.op.axis == len(node.output.shape) - 1  # type: ignore[attr-defined]
    if last and any(p.low.ndim for p in parts):
        sizes = [v.shape[-1] for v in node.inputs]
        lows, highs = [p.low for p in parts], [p.high for p in parts]
        return Interval(*(np.concatenate([np.broadcast_to(*pair) for pair in zip(ends, sizes, strict=True)]) for ends in (lows, highs)))
    result = parts[0]
    for part in parts[1:]:
        result = result.join(part)
    return result


@transfer(ops.Gather)
def _gather(a: Analysis, node: Node, values: Interval, indices: Interval) -> Interval:
    _check_index(a, node, indices)
    return values


@transfer(ops.Scatter)
def _scatter(a: Analysis, node: Node, values: Interval, indices: Interval, x: Interval) -> Interval:
    _check_index(a, node, indices)
    data = node.inputs[1].data
    if data is not None and any(np.unique(row).size < row.size for row in data):
        a.problem(node, "writes one position twice")
    elif data is None and node.inputs[1].shape[1] > node.inputs[0].shape[1]:
        a.problem(node, "has more indices than positions, so that it writes one twice")
    return values.join(x)


def _check_index(a: Analysis, node: Node, indices: Interval) -> None:
    low, high = indices.ends
    count = node.inputs[0].shape[1]
    if low < 0 or high >= count:
        a.problem(node, f"indices are {indices}, the tensor has 0..{count - 1}")


@transfer(ops.Cast)
def _cast(a: Analysis, node: Node, x: Interval | None) -> Interval:
    if node.output.dtype is DType.BOOL:
        return of(0, 1)
    return of_type(node.output.dtype) if x is None else x  # from float: saturates
