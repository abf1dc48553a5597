"""A small classifier of 28x28 grey images, as the command line takes it: a model, calibration data, a training function.

    tosaic export examples/classifier.py:model --calibration examples/classifier.py:calibration -o classifier.vgf
    tosaic qat    examples/classifier.py:model --train examples/classifier.py:train -o classifier-qat.vgf

The images are digits drawn in a font, moved about and noisy, so that everything is here. For a network of your own,
`model` would load its weights: `net.load_state_dict(torch.load("weights.pt", weights_only=True))`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn


class Classifier(nn.Module):
    """Two convolutions with batch norm, and a linear layer: [N,1,28,28] in [0,1] -> logits [N,10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self._layer(1, 8), nn.MaxPool2d(2), self._layer(8, 16), nn.MaxPool2d(2))
        self.head = nn.Linear(16 * 7 * 7, 10)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image).flatten(1))


def digits(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [count,1,28,28] in [0,1], and the digits on them."""
    random, font = np.random.default_rng(seed), ImageFont.load_default(size=20)
    labels = random.integers(0, 10, count)
    images = np.empty((count, 1, 28, 28), np.float32)
    for i, label in enumerate(labels):
        picture = Image.new("L", (28, 28))
        ImageDraw.Draw(picture).text(tuple(random.integers(6, 11, 2)), str(label), fill=int(random.integers(120, 256)), font=font)
        images[i, 0] = np.clip(np.asarray(picture, np.float32) / 255 + random.normal(0, 0.1, (28, 28)), 0, 1)
    return torch.from_numpy(images), torch.from_numpy(labels)


def fit(net: nn.Module, rate: float, count: int, seed: int) -> None:
    """Train on `count` new images."""
    images, labels = digits(count, seed)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for x, y in zip(images.split(32), labels.split(32), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def model() -> tuple[nn.Module, torch.Tensor]:
    """The classifier, trained for a few seconds, and an example of its input."""
    torch.manual_seed(0)
    net = Classifier()
    fit(net, 5e-3, count=2048, seed=1)
    return net.eval(), torch.zeros(1, 1, 28, 28)


def calibration() -> Iterator[torch.Tensor]:
    """32 images that training has not seen."""
    yield from digits(32, seed=100)[0].split(1)


def train(net: nn.Module) -> None:
    """Fine-tune under quantization: an ordinary loop at a low rate."""
    fit(net, 3e-4, count=512, seed=2)


def accuracy(net: nn.Module) -> float:
    """Share of right answers on 200 new images, for whatever takes a batch of one and returns logits."""
    images, labels = digits(200, seed=200)
    with torch.no_grad():
        found = [int(torch.as_tensor(np.asarray(net(x))).argmax()) for x in images.split(1)]
    return sum(a == b for a, b in zip(found, labels.tolist(), strict=True)) / len(found)
