"""Image files as model inputs, and back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tosaic.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MODES = {1: "L", 3: "RGB"}


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, by name.

    Raises:
        InputError: there are none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no images", remedy=f"known are {', '.join(SUFFIXES)}; sub-folders are not searched")
    return found


def read_image(path: Path, shape: tuple[int, ...], mean: list[float] | None, std: list[float] | None) -> np.ndarray:
    """A picture as float32 [C,H,W]: scaled to cover H x W, centre-cropped, pixels in [0, 1], then (pixel - mean) / std.

    Args:
        shape: of the model's input, [N,C,H,W] with C of 1 (grey) or 3 (RGB).

    Raises:
        InputError: no image file, or an input that no image fits.
    """
    check_shape(shape)
    _, channels, height, width = shape
    try:
        with Image.open(path) as image:
            picture = ImageOps.exif_transpose(image).convert(_MODES[channels])
            fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from None
    pixels = np.asarray(fitted, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / 255
    return np.ascontiguousarray((pixels - _by_channel("image-mean", mean, channels, 0)) / _by_channel("image-std", std, channels, 1))


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse an input that no image fits.

    Raises:
        InputError: it is not [N,C,H,W] with 1 or 3 channels.
    """
    if len(shape) != 4 or shape[1] not in _MODES:
        raise InputError(
            f"images do not fit an input of shape {list(shape)}, expected [N,1,H,W] or [N,3,H,W]", remedy="use .npy or file.py:fn"
        )


def _by_channel(option: str, values: list[float] | None, channels: int, default: float) -> np.ndarray:
    numbers = values or [default]
    if len(numbers) not in (1, channels):
        raise InputError(f"--{option} has {len(numbers)} numbers for {channels} channels", remedy="give one, or one for each channel")
    return np.asarray(numbers, np.float32).reshape(-1, 1, 1)


def png(array: np.ndarray) -> bytes:
    """A PNG of real values in [0, 1], shape [1,1,H,W] or [1,3,H,W].

    Raises:
        InputError: another shape or type.
    """
    if array.ndim != 4 or array.shape[0] != 1 or array.shape[1] not in _MODES or array.dtype.kind != "f":
        raise InputError(
            f"a .png holds real values of shape [1,1,H,W] or [1,3,H,W], found {array.dtype}{list(array.shape)}", remedy="use .npy"
        )
    pixels = np.rint(np.clip(np.nan_to_num(array[0]), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()
