"""What the demo trains on, calibrates with and scores: photographs that scikit-image's wheel carries, or CIFAR-10 for training.

The held-out photographs are the same in both cases, and no pixel of them is in training or calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tosaic.errors import InputError

SIZE = 256  # pixels of a side of the pictures that are scored; the network's input has half
LICENCES = {
    "astronaut": "public domain (NASA)",
    "brick": "CC0 (CC0Textures)",
    "camera": "CC0 (Lav Varshney)",
    "chelsea": "CC0 (Stefan van der Walt)",
    "coffee": "CC0 (Rachel Michetti)",
    "grass": "CC0 (CC0Textures)",
    "gravel": "CC0 (CC0Textures)",
    "rocket": "public domain (SpaceX)",
}
HELD_OUT = ("astronaut", "chelsea")
TRAINING = tuple(name for name in LICENCES if name not in HELD_OUT)


@dataclass(frozen=True)
class Dataset:
    """Images to train on.

    Attributes:
        name: "photographs" or "cifar10".
        described: one sentence for the report.
        images: uint8 [3,H,W] each, or [N,3,H,W].
    """

    name: str
    described: str
    images: Sequence[Tensor] | Tensor


def training_data(choice: str, say: Callable[[str], None]) -> Dataset:
    """The training images.

    Args:
        choice: "photographs"; "cifar10"; or "auto", which takes CIFAR-10 if its archive is there or can be downloaded.
        say: is told what was taken and why.

    Raises:
        InputError: an unknown choice, or one that is not to be had.
    """
    if choice not in ("auto", "cifar10", "photographs"):
        raise InputError(f"unknown data '{choice}'", remedy="known are auto, cifar10, photographs")
    if choice != "photographs":
        from tosaic.demo.cifar import cifar10

        try:
            dataset = Dataset("cifar10", "the 50,000 training images of CIFAR-10 (32x32)", cifar10())
        except InputError as error:
            if choice == "cifar10":
                raise
            say(f"{error.what}; training on scikit-image's photographs instead")
        else:
            say(f"training on {dataset.described}")
            return dataset
    named = ", ".join(TRAINING)
    # half-size copies show the network the same scenes with finer detail
    images = [half for name in TRAINING for full in [photograph(name)] for half in (full, _to_bytes(downscale(_to_float(full))))]
    return Dataset("photographs", f"{len(TRAINING)} photographs of scikit-image ({named}), whole and at half size", images)


def held_out(side: int = SIZE) -> dict[str, Tensor]:
    """The photographs to score, name -> float32 [1,3,side,side] in [0, 1]: the central square, scaled down."""
    return {name: _to_float(_to_bytes(_square(_to_float(photograph(name)), side))) for name in HELD_OUT}


def photograph(name: str) -> Tensor:
    """A photograph of scikit-image's wheel: uint8 [3,H,W]. The package is not imported, and never asks the network.

    Raises:
        InputError: scikit-image is not installed, or does not ship that photograph.
    """
    from PIL import Image

    spec = find_spec("skimage")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for root in roots for path in sorted(Path(root, "data").glob(f"{name}.[pj][np]g"))]
    if not found:
        why = "does not ship it" if spec else "is not installed"
        raise InputError(f"photograph '{name}' comes with scikit-image, which {why}", remedy="pip install 'tosaic[demo]'")
    with Image.open(found[0]) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def downscale(high: Tensor) -> Tensor:
    """The network's input for a picture: float32 [N,3,H,W] -> [N,3,H/2,W/2], bicubic with antialiasing, in 8-bit steps."""
    low = F.interpolate(high, scale_factor=0.5, mode="bicubic", antialias=True)
    return (low.clamp(0, 1) * 255).round() / 255


class Patches:
    """Random crops, rotated and mirrored; the same seed gives the same sequence."""

    def __init__(self, images: Sequence[Tensor] | Tensor, seed: int) -> None:
        self._images = images
        self._random = torch.Generator().manual_seed(seed)

    def pair(self, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Inputs [count,3,size/2,size/2] and targets [count,3,size,size], float32 in [0, 1].

        Images smaller than `size` are put together to a mosaic.
        """
        high = _to_float(torch.stack([self._crop(size) for _ in range(count)]))
        return downscale(high), high

    def _crop(self, size: int) -> Tensor:
        image = self._images[self._draw(len(self._images))]
        side = min(size, *image.shape[1:])
        if side < size:
            tiles = -(-size // side)
            rows = [torch.cat([self._crop(side) for _ in range(tiles)], 2) for _ in range(tiles)]
            return torch.cat(rows, 1)[:, :size, :size]
        top, left = (self._draw(length - size + 1) for length in image.shape[1:])
        crop = torch.rot90(image[:, top : top + size, left : left + size], self._draw(4), (1, 2))
        return crop.flip(2) if self._draw(2) else crop

    def _draw(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._random))


def _square(image: Tensor, size: int) -> Tensor:
    side = min(image.shape[2:])
    top, left = (image.shape[2] - side) // 2, (image.shape[3] - side) // 2
    return F.interpolate(image[..., top : top + side, left : left + side], (size, size), mode="bicubic", antialias=True)


def _to_float(image: Tensor) -> Tensor:
    return (image if image.dim() == 4 else image[None]).float() / 255


def _to_bytes(image: Tensor) -> Tensor:
    return (image[0].clamp(0, 1) * 255).round().to(torch.uint8)
