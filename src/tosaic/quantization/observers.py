"""Observers and fake quantization.

One observer class serves PTQ and QAT, so that both mean the same by a range. Scales have no artificial floor.
"""

from __future__ import annotations

import math

import torch
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
from torchao.quantization.pt2e.observer import ObserverBase

from tosaic.errors import QuantizeError

TINY = 2.0**-126  # stands for the scale of a value that is always zero; its reciprocal is finite in float32
_ENDLESS = 1e37  # an attention mask (-inf, the least float) is no number to calibrate for: it saturates
_PERCENTILE = 0.9999
_ROUNDED = 2.0**-22  # of a bound in float32
_OCTAVES = 32  # the histogram covers magnitudes from 2^-32 to 2^32
_BINS = 2 * _OCTAVES * 128
_SAMPLE = 1 << 16  # elements of a tensor that go into the histogram


def choose_qparams(
    low: torch.Tensor, high: torch.Tensor, *, symmetric: bool, quant_min: int, quant_max: int, top: int, bound: float = math.inf
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float32) and zero point (int64) for a real range.

    Symmetric: the larger magnitude maps to `top`; where no value can pass `bound`, and head-room would reach beyond it, the bound maps to
    quant_max. Asymmetric: [low, high], widened to hold zero, maps to [quant_min, quant_max], and zero is exactly representable (Jacob
    et al. 2018, equation 1). A range of nothing but zero gets the scale of [-1, 1]: it must not cost what it meets any bits.
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    if symmetric:
        reach = torch.maximum(-low, high)
        bounded = reach <= bound * (1 + _ROUNDED)  # else something else was observed too
        scale = torch.where(bounded, (reach / top).clamp(max=bound / quant_max), reach / top)
        zero_point = torch.zeros_like(scale, dtype=torch.int64)
    else:
        scale = (high - low) / (quant_max - quant_min)
        zero_point = quant_min - torch.round(low / scale.clamp(min=TINY)).to(torch.int64)
        zero_point = zero_point.clamp(quant_min, quant_max)
    return torch.where(scale < TINY, torch.full_like(scale, 1.0 / top), scale).float(), zero_point


class Observer(ObserverBase):
    """Running range of a tensor.

    Args:
        dtype: torch type of the quantized value.
        quant_min, quant_max: range of stored values.
        qscheme: per_tensor_affine, per_tensor_symmetric or per_channel_symmetric.
        ch_axis: channel axis, per channel only.
        top: stored value of the calibrated maximum, symmetric only.
        bound: magnitude that the values cannot pass, symmetric only.
        momentum: 0 keeps the extremes of all batches, else their moving average.
        memoryless: only the last tensor counts (weights in training).
        once: only the first tensor counts (weights that do not change).
        percentile: calibrate to the 99.99th percentile of magnitudes instead of the extremes.
        fixed: (low, high), not observed.
        depth: what lies further below the largest element is not counted (it saturates).
        whole: of whole numbers: the scale is a power of two, so that int32 holds each of them exactly.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        ch_axis: int | None = None,
        is_dynamic: bool = False,
        *,
        top: int = 127,
        bound: float = math.inf,
        momentum: float = 0.0,
        memoryless: bool = False,
        once: bool = False,
        percentile: bool = False,
        fixed: tuple[float, float] | None = None,
        depth: float | None = None,
        whole: bool = False,
        label: str = "",
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = quant_min, quant_max, qscheme, ch_axis
        self.top, self.momentum, self.memoryless, self.percentile, self.label = top, momentum, memoryless, percentile, label
        self.fixed, self.once, self.depth, self.whole, self.bound = fixed, once, depth, whole, bound
        self.eps = TINY
        self.low: torch.Tensor
        self.high: torch.Tensor
        self.register_buffer("low", torch.tensor([]) if fixed is None else torch.tensor(fixed[0]))
        self.register_buffer("high", torch.tensor([]) if fixed is None else torch.tensor(fixed[1]))
        self._histogram: torch.Tensor | None = None

    @property
    def per_channel(self) -> bool:
        return self.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)

    @property
    def symmetric(self) -> bool:
        return self.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fixed is not None or x.numel() == 0:
            return x
        if self.once and self.low.numel():
            return x
        dims = [d for d in range(x.dim()) if d != self.ch_axis]
        low, high = (x.amin(dims), x.amax(dims)) if self.per_channel else torch.aminmax(x)
        if not self.per_channel and float(low) <= -_ENDLESS and float(high) < torch.inf:
            numbers = x[x > -_ENDLESS]
            least, high = torch.aminmax(numbers) if numbers.numel() else (torch.zeros_like(low), torch.zeros_like(high))
            low = least if self.depth is None else low
        if self.depth is not None:
            low = torch.maximum(low, high - self.depth)
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise QuantizeError(
                f"'{self.label}' is not finite during calibration", remedy="check the calibration data and the model for NaN and overflow"
            )
        if self.low.numel() == 0 or self.memoryless:
            self.low, self.high = low.detach().clone(), high.detach().clone()
        elif self.momentum:
            self.low += self.momentum * (low - self.low)
            self.high += self.momentum * (high - self.high)
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        if self.percentile:
            self._count(x)
        return x

    def _count(self, x: torch.Tensor) -> None:
        """Add |x| (a sample of it, if large) to a histogram over powers of two (1/128 octave a bin), so that it never needs a new range."""
        flat = x.detach().flatten()
        magnitude = flat[:: max(1, flat.numel() // _SAMPLE)].abs().float()
        magnitude = magnitude[magnitude < _ENDLESS]
        position = ((torch.log2(magnitude.clamp(min=2.0**-_OCTAVES)) + _OCTAVES) * 128).long().clamp(0, _BINS - 1)
        counts = torch.bincount(position, minlength=_BINS)
        self._histogram = counts if self._histogram is None else self._histogram + counts

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The observed real range.

        Raises:
            QuantizeError: nothing was observed.
        """
        if self.low.numel() == 0:
            raise QuantizeError(f"'{self.label}' was never calibrated", remedy="run calibration data through the prepared model")
        if self._histogram is None:
            return self.low, self.high
        share = self._histogram.cumsum(0).double() / self._histogram.sum()
        edge = 2.0 ** ((int((share < _PERCENTILE).sum()) + 1) / 128 - _OCTAVES)
        return self.low.clamp(min=-edge), self.high.clamp(max=edge)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self.range()
        limits = {"symmetric": self.symmetric, "quant_min": self.quant_min, "quant_max": self.quant_max, "top": self.top}
        scale, zero_point = choose_qparams(low, high, bound=self.bound, **limits)
        return torch.exp2(torch.ceil(torch.log2(scale))) if self.whole else scale, zero_point


class FakeQuantize(FakeQuantizeBase):
    """Quantize and dequantize in float, with a straight-through gradient; observes in train mode only.

    `torchao`'s `disable_observer` and `disable_fake_quant` apply to it.
    """

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.observer = Observer(**options)  # type: ignore[arg-type]
        for name in ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis", "is_dynamic"):
            setattr(self, name, getattr(self.observer, name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        observing = (self.training and self.observer_enabled[0] == 1) or self.observer.memoryless
        if observing or self.observer.low.numel() == 0:
            self.observer(x.detach())
        if self.fake_quant_enabled[0] != 1:
            return x
        scale, zero_point = self.calculate_qparams()
        if self.observer.per_channel:
            zero_point = zero_point.to(torch.int32)
            return torch.fake_quantize_per_channel_affine(x, scale, zero_point, self.ch_axis, self.quant_min, self.quant_max)
        return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), self.quant_min, self.quant_max)

    def calculate_qparams(self, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self.observer.calculate_qparams()
