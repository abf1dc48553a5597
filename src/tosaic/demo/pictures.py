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
GAP, MARGIN, LABEL = 10, 18, 46
# the part of each photograph that shows most: (top, left), as fractions of the picture
DETAILS = {"astronaut": (0.02, 0.27), "chelsea": (0.2, 0.22)}
DETAIL = 0.375  # of the picture's side
CELL = 288  # pixels of a side, about
ERROR_GAIN, LOSS_GAIN = 6, 24


def draw(
    folder: Path, outputs: Mapping[str, Mapping[str, Tensor]], truth: Mapping[str, Tensor], rows: Sequence[Row], baseline: str = "FP32"
) -> tuple[Picture, ...]:
    """Write the pictures of a run.

    Args:
        outputs: model -> photograph -> float32 [1,3,H,W].
        truth: the photographs in full size.
        rows: scores; those with an artifact are shown against `baseline` too.
    """
    scores = {row.model: row.scores for row in rows}
    compiled = [row.model for row in rows if row.artifact is not None]
    shown = ["bilinear", baseline, *compiled]
    pictures = []
    for name, photograph in truth.items():
        scale = max(1, round(CELL / (DETAIL * photograph.shape[2])))
        rounded = {model: (outputs[model][name].clamp(0, 1) * 255).round() / 255 for model in shown}
        details = [Cell(detail(photograph, name, scale), "photograph", "what the network should give")]
        errors: list[Cell | None] = [None]
        losses: list[Cell | None] = [None, None, None]
        for model in shown:
            details.append(Cell(detail(rounded[model], name, scale), model, f"{scores[model][name]:.2f} dB"))
            errors.append(Cell(detail(error(rounded[model], photograph, ERROR_GAIN), name, scale), model))
        for model in compiled:
            losses.append(Cell(detail(error(rounded[model], rounded[baseline], LOSS_GAIN), name, scale), f"{model} - {baseline}"))
            atomic_write(folder / f"{name}_{model.replace(' ', '_').lower()}.png", png(to_image(rounded[model][0])))
        heads = (
            "output",
            f"error against the photograph, {ERROR_GAIN} times amplified",
            f"what quantization changed, {LOSS_GAIN} times amplified",
        )
        file = f"{name}.png"
        atomic_write(folder / file, sheet((details, errors, losses), heads))
        caption = (
            f"A detail of the held-out photograph, each pixel enlarged {scale} times; the scores are of the whole picture. Bilinear is "
            f"what enters the convolutions. The outputs of {', '.join(compiled)} are those of the .vgf files."
        )
        pictures.append(Picture(f"{name.capitalize()}, before and after", file, caption))
    return tuple(pictures)


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet: float32 [3,H,W] in [0, 1], a title, and a line below it."""

    pixels: Tensor
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


def sheet(rows: Sequence[Sequence[Cell | None]], heads: Sequence[str]) -> bytes:
    """A PNG of rows of cells, all of one size, each row under its heading; None leaves a place empty."""
    height, width = next(cell for row in rows for cell in row if cell is not None).pixels.shape[1:]
    columns = max(len(row) for row in rows)
    pitch = height + LABEL + GAP + 30
    canvas = Image.new("RGB", (2 * MARGIN + columns * (width + GAP) - GAP, 2 * MARGIN + len(rows) * pitch - GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for y, (head, row) in enumerate(zip(heads, rows, strict=True)):
        top = MARGIN + y * pitch
        draw.text((MARGIN, top), head, SOFT, ImageFont.load_default(17))
        for x, cell in enumerate(row):
            if cell is None:
                continue
            left = MARGIN + x * (width + GAP)
            canvas.paste(to_image(cell.pixels), (left, top + 30))
            draw.text((left, top + 30 + height + 4), cell.title, INK, ImageFont.load_default(18))
            draw.text((left, top + 30 + height + 26), cell.note, SOFT, ImageFont.load_default(15))
    return png(canvas)


def to_image(pixels: Tensor) -> Image.Image:
    """float32 [3,H,W] in [0, 1] -> an RGB image."""
    stored = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(stored.numpy())


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
