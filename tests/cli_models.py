"""Models, data and training functions that the tests of the command line name as `cli_models.py:function`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


class Image(nn.Module):
    """An image from an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.conv(image))


class Two(nn.Module):
    """Two inputs, two outputs, one of them an index."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        total = left + right
        return {"total": total, "best": total.argmax(1)}


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(x) + torch.lgamma(x).sum((2, 3))


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x


def net() -> nn.Module:
    return Net()


def net_and_inputs() -> tuple[nn.Module, torch.Tensor]:
    return Net(), EXAMPLE


def image() -> tuple[nn.Module, torch.Tensor]:
    return Image(), EXAMPLE


def two() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    return Two(), (torch.zeros(1, 6), torch.zeros(1, 6))


def unsupported() -> tuple[nn.Module, torch.Tensor]:
    return Unsupported(), EXAMPLE


def branching() -> tuple[nn.Module, torch.Tensor]:
    return Branching(), EXAMPLE


def nan_weights() -> tuple[nn.Module, torch.Tensor]:
    model = Net()
    model.conv.weight.data[0, 0, 0, 0] = torch.nan
    return model, EXAMPLE


def raising() -> nn.Module:
    raise KeyError("conv.weight")


def no_model() -> int:
    return 3


def wrong_forward() -> tuple[nn.Module, torch.Tensor]:
    return Net(), torch.zeros(1, 2, 8, 8)


def samples() -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        yield torch.rand(1, 3, 8, 8, generator=generator)


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.rand(1, 6), torch.rand(1, 6)) for _ in range(4)]


def empty() -> list[Any]:
    return []


def wrong_shape() -> list[torch.Tensor]:
    return [torch.rand(1, 3, 8, 9)]


def wrong_dtype() -> list[np.ndarray]:
    return [np.zeros((1, 3, 8, 8), np.uint8)]


def with_nan() -> list[torch.Tensor]:
    return [torch.rand(1, 3, 8, 8), torch.full((1, 3, 8, 8), torch.nan)]


def raising_samples() -> Iterator[torch.Tensor]:
    yield torch.rand(1, 3, 8, 8)
    raise OSError("disk is gone")


def train(model: nn.Module) -> None:
    assert model.training
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for x in samples():
        optimizer.zero_grad()
        model(x.expand(2, -1, -1, -1)).square().mean().backward()
        optimizer.step()


def train_with_session(model: nn.Module, session: Any) -> None:
    train(model)
    session.freeze_observers()


def train_to_nan(model: nn.Module) -> None:
    train(model)
    next(model.parameters()).data.fill_(torch.nan)


def train_wrongly(model: nn.Module) -> None:
    model(torch.rand(1, 4, 8, 8))


def train_not(model: nn.Module) -> None:
    pass
