"""What lowering works on: a tensor of real numbers, and how the graph stores it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tosaic.errors import GraphError
from tosaic.tosa.graph import Value
from tosaic.tosa.types import DType


@dataclass(frozen=True)
class Quant:
    """real = scale * (stored - zero_point).

    `scale` is a float, or one float for each index of the last stored axis (accumulators of per-channel weights).
    """

    scale: float | tuple[float, ...]
    zero_point: int
    dtype: DType

    @property
    def per_tensor(self) -> float:
        """The scale, where there is one for all channels."""
        assert not isinstance(self.scale, tuple)
        return float(self.scale)

    @property
    def per_channel(self) -> bool:
        return isinstance(self.scale, tuple)

    @property
    def scales(self) -> np.ndarray:
        """Scale as a float64 array: () or (channels,)."""
        return np.array(self.scale, dtype=np.float64)

    def times(self, factor: float) -> Quant:
        """Of the same stored values, when they stand for numbers that are `factor` times as large."""
        return replace(self, scale=tuple(s * factor for s in self.scale) if isinstance(self.scale, tuple) else self.scale * factor)

    def store(self, real: np.ndarray) -> np.ndarray:
        """Stored integers (int64) of real numbers, rounded half to even as PyTorch does, saturated."""
        stored = np.rint(np.asarray(real, dtype=np.float64) / self.scales) + self.zero_point
        return np.clip(stored, self.dtype.min, self.dtype.max).astype(np.int64)

    def real(self, stored: np.ndarray) -> np.ndarray:
        """Real numbers (float64) of stored integers."""
        return (np.asarray(stored, dtype=np.float64) - self.zero_point) * self.scales


@dataclass(frozen=True)
class Origin:
    """A value and its quantization, of which `rounded` is a RESCALE to steps of `step`."""

    rounded: Value
    step: float
    value: Value
    quant: Quant
    bits: int | None

    def quant_at(self, step: float) -> Quant:
        """Of `value`, where a factor has become part of the scale: `rounded` counts in steps of `step` there."""
        return self.quant.times(step / self.step)


@dataclass(frozen=True)
class Operand:
    """A logical tensor of the user's model.

    The logical tensor is RESHAPE(TRANSPOSE(value, perm), view), clamped to [low, high] in real terms; all four are
    pending, so that a requantization can absorb them or pass below them.

    Attributes:
        value: what is stored (None for a constant).
        array: the logical constant: real numbers, or stored integers if `quant` is set.
        quant: None for float, index and bool tensors.
        axis: channel axis of a constant that is quantized per channel.
        bits: |stored - zero_point| < 2^bits, where that is known more exactly than by the type.
        calibrated: |stored - zero_point| in calibration, of a value that calibration saw and int32 holds.
        exact: the stored integers are the result itself: nothing was rounded to this scale.
        origin: what `value` was rounded from, so that a narrower form of it need not be rounded twice.
    """

    value: Value | None = None
    array: np.ndarray | None = None
    quant: Quant | None = None
    perm: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None
    low: float = -math.inf
    high: float = math.inf
    axis: int | None = None
    bits: int | None = None
    calibrated: float | None = None
    exact: bool = False
    origin: Origin | None = None

    @property
    def tensor(self) -> Value:
        """What is stored, of an operand that is no constant."""
        assert self.value is not None
        return self.value

    @property
    def constant(self) -> np.ndarray:
        """The array of a constant."""
        assert self.array is not None
        return self.array

    @property
    def scaling(self) -> Quant:
        """Of an operand that is quantized."""
        assert self.quant is not None
        return self.quant

    @property
    def scale(self) -> float:
        """Of an operand that is quantized per tensor."""
        return self.scaling.per_tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        if self.view is not None:
            return self.view
        stored = self.constant.shape if self.value is None else self.value.shape
        return tuple(stored) if self.perm is None else tuple(stored[p] for p in self.perm)

    @property
    def is_const(self) -> bool:
        return self.array is not None

    @property
    def is_real_const(self) -> bool:
        """A constant of float numbers that were not quantized."""
        return self.array is not None and self.quant is None

    @property
    def clamped(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    def reals(self) -> np.ndarray:
        """Real numbers of a constant, float64."""
        assert self.array is not None
        if self.quant is None:
            return self.array.astype(np.float64)
        if self.axis is None:
            return self.quant.real(self.array)
        return np.moveaxis(self.quant.real(np.moveaxis(self.array, self.axis, -1)), -1, self.axis)

    def clamp(self, low: float, high: float) -> Operand:
        """With a further pending clamp."""
        return replace(self, low=min(max(self.low, low), high), high=max(min(self.high, high), low))


def multiplier_shift(real: float, bits: int = 31) -> tuple[int, int]:
    """RESCALE's multiplier and shift for a positive real factor (TOSA specification section 1.10.2).

    Args:
        bits: 31 for 32-bit multipliers (in [2^30, 2^31)), 15 for 16-bit ones.

    Raises:
        GraphError: the factor is outside what shifts 2..62 can hold.
    """
    if not (real > 0 and math.isfinite(real)):
        raise GraphError(f"rescale factor {real} is not positive and finite")
    fraction, exponent = math.frexp(real)
    multiplier, shift = round(fraction * (1 << bits)), bits - exponent
    if multiplier == 1 << bits:
        multiplier, shift = multiplier >> 1, shift - 1
    if shift > 62:
        multiplier, shift = multiplier >> min(shift - 62, bits), 62
    if shift < 2:
        raise GraphError(f"rescale factor {real} is too large for RESCALE (shift {shift} is below 2)")
    return multiplier, shift


def compose(first: tuple[int, ...] | None, then: tuple[int, ...]) -> tuple[int, ...]:
    """Permutation that equals TRANSPOSE(TRANSPOSE(x, first), then)."""
    return tuple(then) if first is None else tuple(first[p] for p in then)


def inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `perm`."""
    return tuple(int(i) for i in np.argsort(perm))
