"""Pictures of samples: grids of images, grids side by side under headings, scatter plots. Arrays in, PNG out.

Knows no data set and no method.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from shortflow.errors import ShortflowError
from shortflow.files import atomic_path

__all__ = ["comparison", "image_grid", "save_png", "scatter"]

Images = UInt8[np.ndarray, "n c h w"]

# Pixels: around a panel, between images, from the top of a heading or of the title to what is below it.
MARGIN, GAP, HEADING, TITLE = 10, 4, 24, 34
INK, PAPER = (30, 30, 34), (255, 255, 255)


def _rgb(images: Images) -> UInt8[np.ndarray, "n h w 3"]:
    if images.shape[1] not in (1, 3):
        raise ShortflowError(f"a picture needs 1 or 3 channels, got {images.shape[1]} (shape {images.shape})")
    images = images.transpose(0, 2, 3, 1)
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def image_grid(images: Images, columns: int | None = None, size: int = 40) -> Image.Image:
    """A grid of the images in reading order; small images are enlarged by a whole factor to about `size` pixels a side.

    Args:
        columns: images a row; by default the grid is about square.

    Raises:
        ShortflowError: if there is no image, no column, or a number of channels other than 1 and 3.
    """
    n = len(images)
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    if n == 0 or columns < 1:
        raise ShortflowError(f"a picture needs at least one image and one column, got {n} images, {columns} columns")
    factor = max(1, round(size / max(images.shape[2:])))
    pixels = _rgb(images).repeat(factor, axis=1).repeat(factor, axis=2)
    _, h, w, _ = pixels.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), PAPER, np.uint8)
    for k, image in enumerate(pixels):
        y, x = GAP + (k // columns) * (h + GAP), GAP + (k % columns) * (w + GAP)
        sheet[y : y + h, x : x + w] = image
    return Image.fromarray(sheet)


def comparison(panels: Sequence[tuple[str, Images]], columns: int, title: str = "", across: int = 3) -> Image.Image:
    """Grids side by side, each under its heading: the picture of real images beside 1-step, 2-step, … samples.

    Args:
        columns: images a row of each grid.
        across: grids a row.

    Raises:
        ShortflowError: if there is no panel, or a grid cannot be drawn (see `image_grid`).
    """
    if not panels or across < 1:
        raise ShortflowError(f"a comparison needs at least one panel a row, got {len(panels)} panels, {across} a row")
    font, head = ImageFont.load_default(size=15), ImageFont.load_default(size=19)
    grids = [(name, image_grid(images, columns)) for name, images in panels]
    across, top = min(across, len(grids)), TITLE if title else 0
    w = max(max(grid.width, math.ceil(font.getlength(name))) for name, grid in grids) + 2 * MARGIN
    h = max(grid.height for _, grid in grids) + HEADING + 2 * MARGIN
    width = max(across * w, math.ceil(head.getlength(title)) + 2 * MARGIN)
    sheet = Image.new("RGB", (width, top + math.ceil(len(grids) / across) * h), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((MARGIN, MARGIN), title, fill=INK, font=head)
    for k, (name, grid) in enumerate(grids):
        x, y = (k % across) * w + MARGIN, top + (k // across) * h + MARGIN
        pen.text((x, y), name, fill=INK, font=font)
        sheet.paste(grid, (x, y + HEADING))
    return sheet


def scatter(points: Float[np.ndarray, "n 2"], extent: float = 3.0, size: int = 256) -> UInt8[np.ndarray, "1 h w"]:
    """Points of the plane as a grey picture (1, size, size), darker where there are more.

    The first coordinate goes to the right, the second up; from the centre to an edge it is `extent`. What lies outside
    is not drawn.
    """
    edges = np.linspace(-extent, extent, size + 1)
    counts, _, _ = np.histogram2d(-points[:, 1], points[:, 0], bins=(edges, edges))
    level = counts / np.quantile(counts[counts > 0], 0.9) if counts.any() else counts
    return (255 * (1 - np.clip(level, 0, 1) ** 0.5)).astype(np.uint8)[None]


def save_png(picture: Image.Image | UInt8[np.ndarray, "c h w"], path: Path, durable: bool = True) -> None:
    """Write one picture, or one image (c, h, w) with 1 or 3 channels, as PNG, atomically (see `atomic_path`)."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[0] if picture.shape[0] == 1 else _rgb(picture[None])[0])
    with atomic_path(path, durable) as temporary:
        picture.save(temporary, format="PNG")
