"""Small networks with fixed weights; `test_text_goldens.py` prints them, `test_programs_of_others.py` quantizes some."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reproducible(module: nn.Module) -> nn.Module:
    """Weights from sines, so that they do not hang on a random generator's implementation."""
    for seed, parameter in enumerate(module.parameters()):
        position = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
        parameter.data = (torch.sin(position * 1.7 + seed) / parameter[0].numel() ** 0.5).float()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.copy_(torch.sin(torch.arange(child.num_features)))
            child.running_var.copy_(1.5 + torch.cos(torch.arange(child.num_features)))
    return module.eval()


def picture(channels: int, height: int, width: int, phase: float = 0.0) -> Tensor:
    """Smooth values in -1 .. 1, [1, channels, height, width]."""
    position = torch.arange(channels * height * width, dtype=torch.float64).reshape(1, channels, height, width)
    return torch.sin(position * 0.37 + phase).float()


class Classifier(nn.Module):
    """Convolution, folded batch norm, pool, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu6(self.norm(self.conv(x))).mean((2, 3)))


class Residual(nn.Module):
    """A depthwise block with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(F.relu(self.depth(F.relu(self.expand(x)))))


class Upscaler(nn.Module):
    """Convolutions and a pixel shuffle, with the interpolated input added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        detail = F.pixel_shuffle(self.last(F.leaky_relu(self.first(x), 0.1)), 2)
        return F.interpolate(x, scale_factor=2, mode="bilinear") + detail


class UNet(nn.Module):
    """Down, up, concatenate."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Conv2d(2, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        return torch.sigmoid(self.out(torch.cat([skip, self.up(F.max_pool2d(skip, 2))], 1)))
