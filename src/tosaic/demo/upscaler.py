"""The small upscaler of Arm's Learning Path on quantizing with ExecuTorch, and a training loop for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tosaic.demo.data import Patches

CHANNELS = 32
SETTLED = 0.6  # of quantization-aware training: from here on activation scales are fixed, and only weights move


class Upscaler(nn.Module):
    """RGB at twice the size: float32 [N,3,H,W] -> [N,3,2H,2W]; bilinear resize, conv, ReLU, conv, ReLU, conv."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 3, 3, padding=1),
        )
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                _pass_through(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.resize(x))


def _pass_through(layer: nn.Conv2d) -> None:
    """Start as the identity on the first three channels, so that training begins at bilinear quality instead of at noise."""
    with torch.no_grad():
        layer.weight[:3] = 0
        for channel in range(3):
            layer.weight[channel, channel, 1, 1] = 1
        if layer.bias is not None:
            layer.bias.zero_()


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; an optimizer step takes `batch` crops of `size` pixels."""

    steps: int
    rate: float
    batch: int = 16
    size: int = 48


def train(
    model: nn.Module, patches: Patches, schedule: Schedule, progress: Callable[[int], None], settle: Callable[[], None] | None = None
) -> float:
    """Adam on the mean squared error, which PSNR measures; the rate rises over the first tenth, then falls to zero along a cosine.

    Args:
        progress: called with the number of steps done.
        settle: called once, after `SETTLED` of the steps.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    optimizer = torch.optim.Adam(model.parameters(), schedule.rate)
    warm = max(1, schedule.steps // 10)
    losses = []
    for step in range(schedule.steps):
        if settle is not None and step == int(SETTLED * schedule.steps):
            settle()
        fraction = (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (schedule.steps - warm))
        optimizer.param_groups[0]["lr"] = schedule.rate * fraction
        low, high = patches.pair(schedule.batch, schedule.size)
        loss = F.mse_loss(model(low), high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        progress(step + 1)
    return float(torch.stack(losses[-max(1, schedule.steps // 10) :]).mean())


def psnr(found: Tensor, truth: Tensor) -> float:
    """Peak signal to noise ratio in dB over all pixels and channels, for values in [0, 1]; what lies outside is clamped."""
    error = F.mse_loss(found.clamp(0, 1).double(), truth.double())
    return float(-10 * torch.log10(error))
