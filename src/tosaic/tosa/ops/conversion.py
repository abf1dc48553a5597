"""Type conversion (specification section 2.12)."""

from __future__ import annotations

from dataclasses import dataclass

from tosaic.tosa.ops.base import BF16, F16, FLOATS, FP8, I8, I16, I32, I48, INTS, MOVEMENT, B, Op, Rounding, zero_point
from tosaic.tosa.types import DType, TensorType


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
                zero_point(self, name, zp, dtype)
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
