"""Before and after, side by side: enlarged details of each model's output, and below them what each gets wrong."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tosaic.emit.files import atomic_write
from tosaic.report.facts import Picture, Row

PAPER, INK, SOFT = (18, 20, 24), (236, 239, 243), (150, 160, 172)
GAP, MARGIN, LABEL = 10, 18, 50
# the part of each photograph that shows most: (top, left), as fractions of the picture
DETAILS = {"astronaut": (0.02, 0.27), "chelsea": (0.2, 0.22)}
DETAIL = 0.375  # of the picture's side
CELL, SMALL_CELL = 288, 192  # pixels of a side, about
ERROR_GAIN, LOSS_GAIN = 6, 32
OVERVIEW = "before_after.png"


def draw(
    folder: Path, outputs: Mapping[str, Mapping[str, Tensor]], truth: Mapping[str, Tensor], rows: Sequence[Row], baseline: str
) -> tuple[Picture, ...]:
    """Write the pictures of a run: a sheet for each photograph, a small one of all, and what each file computed, whole.

    Args:
        outputs: model -> photograph -> float32 [1,3,H,W].
        truth: the photographs in full size.
        rows: scores; those with an artifact are shown against `baseline` too.
    """
    scores = {row.model: row.scores for row in rows}
    compiled = [row.model for row in rows if row.artifact is not None]
    shown = ["bilinear", baseline, *compiled]
    pictures, overview = [], []
    for name, photograph in truth.items():
        rounded = {model: (outputs[model][name].clamp(0, 1) * 255).round() / 255 for model in shown}
        for model in compiled:
            atomic_write(folder / f"{name}_{model.replace(' ', '_').lower()}.png", png(to_image(rounded[model][0])))
        scale, small = (max(1, round(side / (DETAIL * photograph.shape[2]))) for side in (CELL, SMALL_CELL))
        first = Cell("photograph", "what the network should give")
        titles = [first, *(Cell(model, f"{scores[model][name]:.2f} dB") for model in shown)]
        images = [photograph, *(rounded[model] for model in shown)]
        errors = [None, *(error(rounded[model], photograph, ERROR_GAIN) for model in shown)]
        losses = [None, None, None, *(error(rounded[model], rounded[baseline], LOSS_GAIN) for model in compiled)]
        texts = (
            "",
            f"error against\nthe photograph,\namplified {ERROR_GAIN} times",
            f"difference from\n{baseline}, amplified\n{LOSS_GAIN} times",
        )
        parts = [[None if x is None else detail(x, name, scale) for x in row] for row in (images, errors, losses)]
        atomic_write(folder / f"{name}.png", sheet([(titles, parts[0]), ([], parts[1]), ([], parts[2])], texts))
        overview.append((titles[:5], [detail(x, name, small) for x in images[:5]]))
        caption = (
            f"A detail of the held-out photograph, each pixel enlarged {scale} times; the scores are of the whole picture. Bilinear is "
            f"what enters the convolutions. The outputs of {', '.join(compiled)} are those of the .vgf files."
        )
        pictures.append(Picture(f"{name.capitalize()}, before and after", f"{name}.png", caption))
    atomic_write(folder / OVERVIEW, sheet(overview, [""] * len(overview)))
    return tuple(pictures)


@dataclass(frozen=True)
class Cell:
    """What stands below a picture: a title, and a line in small print."""

    title: str
    note: str = ""


def detail(image: Tensor, name: str, scale: int) -> Tensor:
    """The telling part of a photograph or of an output, [1,3,H,W] -> [3,h,w], enlarged without smoothing."""
    side = int(image.shape[2] * DETAIL)
    top, left = (int(image.shape[2] * fraction) for fraction in DETAILS.get(name, (0.3, 0.3)))
    part = image[:, :, top : top + side, left : left + side].clamp(0, 1)
    return F.interpolate(part, scale_factor=scale, mode="nearest")[0]


def error(found: Tensor, truth: Tensor, gain: float) -> Tensor:
    """|found - truth| of pixels in [0, 1], `gain` times brighter, for black where the two are equal."""
    return ((found.clamp(0, 1) - truth.clamp(0, 1)).abs() * gain).clamp(0, 1)


def sheet(rows: Sequence[tuple[Sequence[Cell], Sequence[Tensor | None]]], texts: Sequence[str]) -> bytes:
    """A PNG of rows of pictures, float32 [3,H,W] of one size.

    Args:
        rows: what stands below each picture (or nothing at all), and the pictures; None leaves a place empty.
        texts: for each row, what to write into its first place when that is empty.
    """
    height, width = next(picture for _, row in rows for picture in row if picture is not None).shape[1:]
    columns = max(len(row) for _, row in rows)
    total = sum(height + (LABEL if labels else 0) + GAP for labels, _ in rows) - GAP
    canvas = Image.new("RGB", (2 * MARGIN + columns * (width + GAP) - GAP, 2 * MARGIN + total), PAPER)
    draw, top = ImageDraw.Draw(canvas), MARGIN
    for (labels, row), text in zip(rows, texts, strict=True):
        draw.multiline_text((MARGIN, top + 4), text, SOFT, ImageFont.load_default(20), spacing=8)
        places = [MARGIN + x * (width + GAP) for x in range(columns)]
        for left, picture in zip(places, row, strict=False):
            if picture is not None:
                canvas.paste(to_image(picture), (left, top))
        top += height + GAP
        for left, label in zip(places, labels, strict=False):
            draw.text((left, top - GAP + 5), label.title, INK, ImageFont.load_default(18))
            draw.text((left, top - GAP + 28), label.note, SOFT, ImageFont.load_default(14))
        top += LABEL if labels else 0
    return png(canvas)


def to_image(pixels: Tensor) -> Image.Image:
    """float32 [3,H,W] in [0, 1] -> an RGB image."""
    stored = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(stored.numpy())


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
