"""The tools of the lowering functions: storing, requantizing, laying out and typing operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np

from tosaic.errors import UnsupportedError
from tosaic.lower.operand import Operand, Origin, Quant, compose, inverse, multiplier_shift
from tosaic.tosa import ops
from tosaic.tosa.graph import Bound, Builder, Location, Value
from tosaic.tosa.ranges import Ranges
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)
LARGEST = float(np.finfo(np.float32).max)
# bits of |stored - zero_point|; int32 values are scaled to 24 significant bits, sign included, and have head-room up to 2^30
_MAGNITUDE_BITS = {DType.INT8: 8, DType.INT16: 15, DType.INT32: 23, DType.INT48: 47}
CALIBRATED = 2.0**23  # what the calibrated maximum of an int32 value is stored as
_STORED_BITS = 29  # of one that is stored coarser than that
_USED_BITS = 26  # of a calibrated int32 value that a product or a long sum reads: beyond 8 times its range it saturates
_LARGE_FACTOR = 2.0**6  # a calibrated int32 value stays within RESCALE's reach up to here
_LARGE_FACTOR_OF_16 = 2.0**13  # any int8 or int16 value stays within it up to here
_LARGEST_FACTOR = 2.0**28  # of RESCALE


def largest(dtype: DType) -> float:
    """The largest finite number of a float type."""
    return float(ml_dtypes.finfo(dtype.numpy).max)


def finite(numbers: np.ndarray, dtype: DType) -> np.ndarray:
    """Numbers that are finite in a type of a smaller range too: float32's least, as attention masks have it, is float16's least."""
    if dtype not in (DType.FP16, DType.BF16) or numbers.dtype == dtype.numpy:
        return numbers
    return np.where(np.isinf(numbers), numbers, np.clip(numbers.astype(np.float64), -largest(dtype), largest(dtype)))


def excess(bits: int) -> int:
    """By how many bits a result of `bits` magnitude bits is shifted right, so that 30 are kept."""
    return max(0, bits - 30)


class Context:
    """State of one lowering.

    Attributes:
        want: the quantization that the operator's readers ask for, or None (accumulate, or stay float).
        digits: the step of an input that a linear layer is to read in two int8 digits, or None.
        location: of the operator that is being lowered.
        floating: the float type that it computes in, where it does.
    """

    def __init__(self, builder: Builder, spec: Spec) -> None:
        self.builder, self.spec = builder, spec
        self.want: Quant | None = None
        self.digits: float | None = None
        self.location = Location()
        self.floating = DType.FP32
        self._ranges: Ranges | None = None

    def emit(self, op: ops.Op, *inputs: Value) -> Value:
        if isinstance(op, ops.Concat) and inputs[0].dtype is DType.INT16 and not self.spec.holds("int16"):
            # CONCAT of int16 is the extension's, of int32 it is not
            joined = self.emit(op, *(self.rescale(x, Quant(1.0, 0, DType.INT16), Quant(1.0, 0, DType.INT32)) for x in inputs))
            return self.rescale(joined, Quant(1.0, 0, DType.INT32), Quant(1.0, 0, DType.INT16))
        return self.builder.emit(op, *inputs)

    def refuse(self, why: str) -> UnsupportedError:
        """An error about the operator that is being lowered."""
        return UnsupportedError(why, where=str(self.location))

    def bounded(self, value: Value, low: int, high: int, why: str) -> Value:
        """`value`, declared to hold low <= stored <= high, which the range analysis then believes (`tosa.ranges`).

        Args:
            why: how that is known beyond what the operators say: a calibrated range, or a correlation between operands.
        """
        if not value.is_const:
            known = value.bound or Bound(low, high)
            value.bound = Bound(max(low, known.low), min(high, known.high), why)
            if self._ranges is not None:
                self._ranges.narrow(value)
        return value

    def interval(self, value: Value) -> tuple[int, int]:
        """What an integer value holds for any input, by the operators that made it."""
        self._ranges = self._ranges or Ranges(self.builder.graph)
        return self._ranges.of(value).ends

    def whole_bits(self, value: Value) -> int | None:
        """b < 30 with |stored| < 2^b for any input."""
        low, high = self.interval(value)
        bits = max(-low, high).bit_length()
        return bits if bits < 30 else None

    # Constants

    def i32(self, numbers: float | np.ndarray, rank: int = 0) -> Value:
        """An int32 constant; a scalar becomes [1, ..., 1] of `rank`."""
        array = np.asarray(numbers)
        return self.builder.const(array.reshape((1,) * rank) if array.ndim == 0 else array, DType.INT32)

    def real(self, numbers: float | np.ndarray, like: Value) -> Value:
        """A constant of the float type of `like`, finite where it is finite; a scalar becomes [1, ..., 1] of its rank."""
        array = finite(np.asarray(numbers), like.dtype)
        return self.builder.const(array.reshape((1,) * len(like.shape)) if array.ndim == 0 else array, like.dtype)

    def clamp(self, value: Value, low: float, high: float) -> Value:
        """CLAMP of floats, whose limits must be finite numbers of their type."""
        most = largest(value.dtype)
        return self.emit(ops.Clamp(min(max(low, -most), most), max(min(high, most), -most)), value)

    def i8(self, numbers: np.ndarray) -> Value:
        return self.builder.const(numbers, DType.INT8)

    # Layout

    def store(self, x: Operand) -> Operand:
        """`x` with a value (constants become CONST)."""
        if x.value is not None:
            return x
        assert x.array is not None
        plain = {"b": DType.BOOL, "i": DType.INT32}.get(x.array.dtype.kind, self.floating)
        if x.quant is not None and x.quant.dtype is DType.INT4:  # nothing but a weight may be
            x = replace(x, quant=replace(x.quant, dtype=DType.INT8))
        dtype = x.quant.dtype if x.quant else plain
        return replace(x, value=self.builder.const(finite(np.asarray(x.array), dtype), dtype), array=None)

    def permuted(self, x: Operand, perm: Sequence[int]) -> Value:
        """TRANSPOSE(logical x, perm) as a value; nothing is emitted where it cancels with what is pending."""
        x = self.store(x)
        assert x.value is not None
        if x.view is not None:
            x = replace(x, value=self.logical(x), perm=None, view=None)
        whole = compose(x.perm, tuple(perm))
        if whole == tuple(range(len(whole))):
            return x.tensor
        return self.emit(ops.Transpose(whole), x.tensor)

    def logical(self, x: Operand) -> Value:
        """The value in logical layout (pending clamps are not looked at)."""
        x = self.store(x)
        value = x.value
        assert value is not None
        if x.perm is not None and x.perm != tuple(range(len(x.perm))):
            value = self.emit(ops.Transpose(x.perm), value)
        return self.reshape(value, x.shape)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        return value if value.shape == tuple(shape) else self.emit(ops.Reshape(tuple(shape)), value)

    def plain(self, x: Operand) -> Operand:
        """`x` in logical layout, one scale for the whole tensor, nothing pending."""
        x = self.resolve_clamp(self.uniform(x))
        return Operand(self.logical(x), quant=x.quant, bits=x.bits, exact=x.exact)

    def with_rank(self, x: Operand, rank: int) -> Operand:
        """`x` with leading dimensions of 1 added, as broadcasting does."""
        if len(x.shape) == rank:
            return x
        if x.is_const:
            return replace(x, array=x.constant.reshape((1,) * (rank - len(x.shape)) + x.shape))
        x = self.plain(x)
        return replace(x, value=self.reshape(x.tensor, (1,) * (rank - len(x.shape)) + x.shape))

    def same_layout(self, *operands: Operand) -> tuple[list[Operand], tuple[int, ...] | None]:
        """Operands of one rank with their pending permutations made equal, and that permutation."""
        perms = [x.perm for x in operands if not x.is_const and x.view is None and x.perm is not None]
        perm = perms[0] if perms else None
        if perm is None:
            return [replace(x, value=self.logical(x), perm=None, view=None) if not x.is_const else x for x in operands], None
        out = []
        for x in operands:
            if x.is_const:
                out.append(replace(x, array=np.transpose(x.constant, inverse(perm))))
            else:
                out.append(replace(x, value=self.permuted(x, inverse(perm)), perm=None, view=None))
        return out, perm

    # Quantization

    def is_narrow(self, x: Operand) -> bool:
        """Stored as int8 or int16 with one scale: what MACs, TABLE and pools take."""
        return x.quant is not None and not x.quant.per_channel and x.quant.dtype in (DType.INT8, DType.INT16)

    def rescale(self, value: Value, source: Quant, target: Quant) -> Value:
        """RESCALE between two quantizations (specification section 2.12.2); nothing where they are equal.

        Single rounding, also where the specification string has doubleround: that extension's is never nearer, and up to 3/4 of a
        step off (`test_spec_law.py` shows it).
        """
        if source == target:
            return value
        factors = np.atleast_1d(source.scales / target.scales)
        bits = 15 if source.dtype is DType.INT48 else 31
        pairs = [multiplier_shift(float(f), bits) for f in factors]
        if len(set(pairs)) == 1:
            pairs = pairs[:1]
        op = ops.Rescale(
            target.dtype,
            tuple(m for m, _ in pairs),
            tuple(s for _, s in pairs),
            input_zp=source.zero_point,
            output_zp=target.zero_point,
            per_channel=len(pairs) > 1,
        )
        return self.emit(op, value)

    def requantize(self, x: Operand, target: Quant) -> Operand:
        """`x` at another quantization; pending clamps fold into the saturation of the target or become one CLAMP."""
        if x.quant is None:
            return self.quantize_float(x, target)
        if x.is_const:
            return Operand(array=target.store(np.clip(x.reals(), x.low, x.high)), quant=target)
        if target.dtype in (DType.INT8, DType.INT16):
            x = self.unrounded(x)
        assert x.quant is not None
        if _is_near(x.quant, target):
            return self.resolve_clamp(replace(x, quant=target, origin=None))
        x = self._within_rescale(replace(x, origin=None), target)
        assert x.value is not None and x.quant is not None
        if x.quant == target:
            return self.resolve_clamp(x)
        return self.resolve_clamp(_restored(x, self.rescale(x.value, x.quant, target), target, None))

    def unrounded(self, x: Operand) -> Operand:
        """What a stored int32 value was rounded from, where that is known; else `x`."""
        if x.origin is None or x.value is not x.origin.rounded or x.quant is None:
            return x
        return replace(x, value=x.origin.value, quant=x.origin.quant_at(float(x.quant.scales)), bits=x.origin.bits, origin=None)

    def _within_rescale(self, x: Operand, target: Quant) -> Operand:
        """`x` limited to what RESCALE to `target` may read, |value| < 2^(shift-1), where it is known to pass it.

        What is cut off saturates in the target. 48-bit values, which have no MINIMUM, become int32 first.
        """
        assert x.quant is not None and x.value is not None
        factors = np.atleast_1d(x.quant.scales / target.scales)
        if x.bits is None and x.quant.dtype is DType.INT32 and factors.max() > 1:
            ends = self.interval(x.value)
            if factors.max() > _LARGE_FACTOR or max(-ends[0], ends[1]) >= 2 ** (multiplier_shift(float(factors.max()))[1] - 1):
                x = replace(x, bits=30)
        assert x.quant is not None and x.value is not None
        if x.quant.dtype in (DType.INT8, DType.INT16) and factors.max() > _LARGE_FACTOR_OF_16 and x.quant != target:
            own = Quant(x.scale, 0, DType.INT32)
            x = _restored(x, self.rescale(x.value, x.quant, own), own, _MAGNITUDE_BITS[x.quant.dtype] + 1)
        assert x.quant is not None and x.value is not None
        if x.bits is None or x.quant == target or x.quant.dtype in (DType.INT8, DType.INT16):
            return x
        if factors.max() > _LARGEST_FACTOR and x.quant.dtype is DType.INT32:
            return self._signs(x, target)
        if x.quant.dtype is DType.INT48:
            if math.log2(float(factors.max())) + x.bits <= 31:
                return x
            coarse = Quant(float(x.quant.scales.max()) * 2.0 ** (x.bits - 29), 0, DType.INT32)
            narrowed = _restored(x, self.rescale(x.value, x.quant, coarse), coarse, 29)
            return self._within_rescale(narrowed, target)
        limits = np.array([2 ** (multiplier_shift(float(f))[1] - 1) - 1 for f in factors])
        if x.bits < int(limits.min() + 1).bit_length():
            return x
        limits = np.minimum(limits, DType.INT32.max)
        rank = len(x.value.shape)
        shape = (1,) * (rank - 1) + limits.shape if x.quant.per_channel else (1,) * rank
        value = self.emit(ops.Maximum(), x.value, self.i32(-limits.reshape(shape)))
        return replace(x, value=self.emit(ops.Minimum(), value, self.i32(limits.reshape(shape))))

    def _signs(self, x: Operand, target: Quant) -> Operand:
        """`x`, of which every integer but zero is beyond `target`, as -2^28, 0 and 2^28 at its scale: an attention mask."""
        assert x.value is not None
        rank = len(x.value.shape)
        value = self.emit(ops.Minimum(), self.emit(ops.Maximum(), x.value, self.i32(-1, rank)), self.i32(1, rank))
        value = self.emit(ops.Mul(), value, self.i32(1 << 28, rank))
        return _restored(x, value, Quant(float(target.scales), 0, DType.INT32), 30)

    def store_as(self, x: Operand, target: Quant, magnitude: float | None = None) -> Operand:
        """`x` as a quantize operator asks for it, but coarser by a power of two where it could reach 2^29.

        An int32 value has 7 bits above its calibrated range; an accumulator can pass that for inputs unlike the
        calibration data, and RESCALE demands |value| < 2^(shift-1) of every input (specification section 1.10.2).
        Each bit that is given up is the last of 24.

        Args:
            magnitude: what calibration saw of it, where that is less than an int32 target says.
        """
        stored = self._store_as(x, target)
        if stored.value is None or stored.value.dtype is not DType.INT32:
            return stored
        value, step = stored.value, float(stored.scaling.scales)
        self.bounded(value, -(2**30), 2**30, "its calibrated range and 7 bits of head-room")
        stored = replace(stored, calibrated=(magnitude or float(target.scales) * CALIBRATED) / step)
        if x.value is None or x.quant is None or value is x.value or stored.clamped or x.clamped:
            return stored
        return replace(stored, origin=Origin(value, step, x.value, x.quant, x.bits))

    def _store_as(self, x: Operand, target: Quant) -> Operand:
        if target.dtype is not DType.INT32 or x.quant is None or x.bits is None or x.is_const:
            return self.requantize(x, target)
        if x.exact and not x.quant.per_channel and x.quant.dtype is DType.INT32 and x.bits <= 29:
            return self.resolve_clamp(x)  # an integer that nothing was rounded to: no other scale is better
        exponent = math.log2(float((x.quant.scales / target.scales).max()))
        if _is_near(x.quant, target.times(2.0 ** round(exponent))):
            exponent = round(exponent)  # its integers will be kept
        over = max(0, math.ceil(exponent + x.bits - _STORED_BITS))
        if x.quant.dtype is DType.INT48:  # 16-bit multipliers hold factors below 2^13
            over = max(over, math.ceil(exponent) - 12)
        if over == 0:
            return self.requantize(x, target)
        return replace(self.requantize(x, replace(target, scale=float(target.scales) * 2.0**over)), bits=_STORED_BITS)

    def resolve_clamp(self, x: Operand) -> Operand:
        """Apply a pending clamp to what is stored."""
        if not x.clamped:
            return x
        if x.quant is None:
            assert x.value is not None
            return replace(x, value=self.clamp(x.value, x.low, x.high), low=-math.inf, high=math.inf)
        if x.quant.dtype is DType.INT48:
            x = self.uniform(x)
        q, value = x.quant, x.value
        assert q is not None and value is not None
        if q.dtype is DType.INT16 and not self.spec.holds("int16"):  # CLAMP on int16 is the extension's; MAXIMUM on int32 is not
            wide = replace(q, dtype=DType.INT32)
            done = self.resolve_clamp(replace(x, value=self.rescale(value, q, wide), quant=wide))
            return replace(done, value=self.rescale(done.tensor, wide, q), quant=q)
        low, high = (q.store(np.full_like(q.scales, bound)) for bound in (x.low, x.high))
        if q.dtype is DType.INT32:
            rank = len(value.shape)
            shape = (1,) * rank if not q.per_channel else (1,) * (rank - 1) + low.shape
            if x.low > -math.inf:
                value = self.emit(ops.Maximum(), value, self.i32(low.reshape(shape)))
            if x.high < math.inf:
                value = self.emit(ops.Minimum(), value, self.i32(high.reshape(shape)))
        elif int(low) > q.dtype.min or int(high) < q.dtype.max:
            value = self.emit(ops.Clamp(int(low), int(high)), value)
        # a limit beyond the values' own range moves them there
        bits = x.bits
        if bits is not None:
            bits = max(bits, *(max(int(np.max(v)), 0).bit_length() for v in (low - q.zero_point, q.zero_point - high)))
        return replace(x, value=value, low=-math.inf, high=math.inf, bits=bits)

    def uniform(self, x: Operand) -> Operand:
        """A per-channel or 48-bit accumulator as int32 with one scale."""
        if x.quant is None or x.is_const or (not x.quant.per_channel and x.quant.dtype is not DType.INT48):
            return x
        if self.want is not None and self.want.dtype is DType.INT32:
            return self.requantize(x, self.want)
        # as many bits as an int32 value has by calibration; without a known bound, what no network's sums pass
        bits = x.bits if x.bits is not None else 31 if x.quant.dtype is DType.INT48 else 23
        target = Quant(float(x.quant.scales.max()) * 2.0 ** (bits - 23), 0, DType.INT32)
        assert x.value is not None
        return _restored(x, self.rescale(x.value, x.quant, target), target, 23)

    def to_i32(self, x: Operand, scale: float | None = None) -> Operand:
        """`x` as int32 with zero point 0, at `scale` (default: its own); clamps stay pending only if exact."""
        x = self.resolve_clamp(self.uniform(x))
        assert x.quant is not None
        target = Quant(x.scale if scale is None else scale, 0, DType.INT32)
        calibrated = x.quant.dtype is DType.INT32 and x.bits is None
        bits = self.magnitude_bits(x) if scale is None and not calibrated else None
        if x.is_const:
            return Operand(array=target.store(x.reals()), quant=target)
        assert x.value is not None
        exact = x.exact and x.quant.scale == target.scale
        return replace(_restored(x, self.rescale(x.value, x.quant, target), target, bits), exact=exact)

    def magnitude_bits(self, x: Operand) -> int:
        """b with |stored - zero_point| <= 2^b (of a calibrated int32 value: in use, without its head-room)."""
        assert x.quant is not None
        if x.bits is not None:
            return x.bits
        return _MAGNITUDE_BITS[x.quant.dtype]

    def used_bits(self, x: Operand) -> int:
        """b such that 2^b is 8 times the calibrated range of an int32 value, as it is stored."""
        return _USED_BITS if x.calibrated is None else max(1, math.ceil(math.log2(max(x.calibrated, 1.0)))) + 3

    def limited(self, x: Operand, known: bool = False) -> Operand:
        """`x` with known bits: a calibrated int32 value is limited to 8 times its calibrated range; one of a wider bound, if `known`."""
        assert x.quant is not None
        if x.quant.dtype is not DType.INT32 or x.exact or x.is_const:
            return x
        bits = self.used_bits(x)
        if x.bits is not None and not (known and x.calibrated is not None and x.bits > bits):
            return x
        return replace(self.between(self.resolve_clamp(x), bits), origin=None)

    def saturated(self, x: Operand) -> Operand:
        """A calibrated int32 value that comes from outside, limited to the head-room of what is stored here.

        Without its bound, that it may hold any number, the range analysis would leave its overflows to the caller.
        """
        assert x.value is not None
        self.bounded(x.value, DType.INT32.min, DType.INT32.max, "whatever the caller feeds")
        return replace(self.between(x, _STORED_BITS), calibrated=CALIBRATED)

    def between(self, x: Operand, bits: int) -> Operand:
        """`x` saturated to |stored| < 2^bits."""
        assert x.value is not None
        rank, limit = len(x.value.shape), 2**bits - 1
        value = self.emit(ops.Minimum(), self.emit(ops.Maximum(), x.value, self.i32(-limit, rank)), self.i32(limit, rank))
        return replace(x, value=value, bits=bits)

    # Float

    def dequantize(self, x: Operand) -> Operand:
        """`x` in float32: (stored - zero_point) * scale, each step in float32 as PyTorch does.

        48-bit accumulators keep the upper 30 bits that they may have: rows far below the largest are float numbers too.
        """
        if x.quant is None:
            return x
        if x.is_const:
            return Operand(array=np.clip(x.reals(), x.low, x.high).astype(np.float32))
        assert x.value is not None
        if x.quant.dtype is DType.INT48:
            upper = replace(x.quant.times(2.0 ** excess(31 if x.bits is None else x.bits)), dtype=DType.INT32)
            x = replace(x, value=self.rescale(x.value, x.quant, upper), quant=upper)
        assert x.value is not None and x.quant is not None
        rank = len(x.value.shape)
        value = self.emit(ops.Cast(DType.FP32), x.value)
        if x.quant.zero_point:
            value = self.emit(ops.Sub(), value, self.real(float(x.quant.zero_point), value))
        scales = x.quant.scales
        shape = (1,) * rank if scales.ndim == 0 else (1,) * (rank - 1) + scales.shape
        value = self.emit(ops.Mul(), value, self.real(scales.reshape(shape), value))
        return self.resolve_clamp(replace(x, value=value, quant=None, bits=None))

    def quantize_float(self, x: Operand, target: Quant) -> Operand:
        """Float to integer with PyTorch's rounding: clamp(round(x * (1 / scale)) + zero_point)."""
        if x.is_const:
            return Operand(array=target.store(x.reals()), quant=target)
        x = self.resolve_clamp(x)
        assert x.value is not None and not target.per_channel
        reciprocal = np.float32(1.0) / np.float32(target.scales)
        value = self.emit(ops.Mul(), x.value, self.real(float(reciprocal), x.value))
        zp, dtype = target.zero_point, target.dtype
        if zp:
            # clamping before the rounding is exact, as the bounds are integers; it keeps RESCALE's input in range
            value = self.emit(ops.Clamp(float(dtype.min - zp), float(dtype.max - zp)), value)
            value = self.bounded(self.emit(ops.Cast(DType.INT32), value), dtype.min - zp, dtype.max - zp, "clamped as a float")
            value = self.rescale(value, Quant(1.0, 0, DType.INT32), Quant(1.0, zp, dtype))
        else:
            value = self.bounded(self.emit(ops.Cast(dtype), value), dtype.min, dtype.max, "whatever the float is")
        return replace(x, value=value, quant=target, bits=None)

    def floats(self, *operands: Operand) -> list[Operand]:
        """Operands in float, stored and in logical layout."""
        return [
            Operand(self.logical(self.store(self.dequantize(x)))) if not x.is_real_const else self.store(_as_float(x)) for x in operands
        ]


def _is_near(source: Quant, target: Quant) -> bool:
    """Whether int32 values of two scales are the same: over their calibrated range the scales differ by less than a step.

    Scales are found in float32, so that those of x and of x / 8 seldom have a ratio of just 8.
    """
    if source.per_channel or target.per_channel or not source.dtype is target.dtype is DType.INT32:
        return False
    return abs(float(source.scales) / float(target.scales) - 1) * CALIBRATED < 1


def _restored(x: Operand, value: Value, quant: Quant, bits: int | None) -> Operand:
    """`x` stored as `value` at another quantization."""
    return replace(x, value=value, quant=quant, bits=bits, exact=False, calibrated=None)


def _as_float(x: Operand) -> Operand:
    return Operand(array=x.constant.astype(np.float32))
