"""Image operators (specification section 2.11)."""

from __future__ import annotations

from dataclasses import dataclass

from tosaic.tosa.ops.base import ACCUMULATOR, NARROW, Op, ResizeMode
from tosaic.tosa.spec import Level
from tosaic.tosa.types import TensorType


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
