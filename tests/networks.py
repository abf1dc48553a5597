"""Small networks that the tests compile whole."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Upscaler(nn.Module):
    """Bilinear x2, then conv-ReLU-conv-ReLU-conv."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        convs = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*convs, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        return x + self.body(x)


class Residual(nn.Module):
    """conv(bias=False)-BN-ReLU-conv(bias=False)-BN, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.b, self.nb = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))


class Classifier(nn.Module):
    """Everything that upstream's QAT stumbles over: bias-free conv + BN, conv + BN before an average pool, residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.neck, self.norm = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(16 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(self.norm(self.neck(self.blocks(self.stem(x)))), 4)
        return self.head(self.drop(x.flatten(1)))


class MobileBlock(nn.Module):
    """Depthwise convolution, squeeze and excite, hard swish, and a softmax head."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depth(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * gate).mean((2, 3))).softmax(-1)


class UNet(nn.Module):
    """Down, up by a transposed convolution, skip by concatenation, leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.leaky_relu(self.down(x), 0.1)
        deep = F.leaky_relu(self.deep(F.max_pool2d(skip, 2)), 0.1)
        return torch.sigmoid(self.out(torch.cat([self.up(deep), skip], 1)))


class Audio(nn.Module):
    """1-d convolutions with dilation and groups, PReLU, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Conv1d(2, 8, 5, padding=2), nn.PReLU(8)
        self.b, self.c = nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=4), nn.Conv1d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.c(self.act(self.b(self.act(self.a(x))))))


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Upscaler: (1, 3, 12, 10),
    Classifier: (2, 3, 16, 16),
    MobileBlock: (1, 3, 8, 8),
    UNet: (1, 1, 8, 12),
    Audio: (1, 2, 20),
}


def make(kind: type[nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights and batch-norm statistics, in evaluation mode, and an input."""
    torch.manual_seed(sum(map(ord, kind.__name__)))
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval(), torch.randn(SHAPES[kind])


def samples(kind: type[nn.Module], count: int = 8) -> list[tuple[torch.Tensor]]:
    return [(torch.randn(SHAPES[kind]),) for _ in range(count)]


def sqnr(exact: np.ndarray | torch.Tensor, found: np.ndarray | torch.Tensor) -> float:
    """Signal to quantization noise, in dB."""
    exact, found = (np.asarray(x, dtype=np.float64) for x in (exact, found))
    return float(10 * np.log10((exact**2).sum() / max(((exact - found) ** 2).sum(), 1e-300)))
