"""Pictures of samples: grids of images with titles, and single files. Arrays in, PNG out; knows no data set and no method."""

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
MARGIN, GAP, INK, PAPER = 8, 2, (30, 30, 34), (255, 255, 255)


def _rgb(images: Images) -> UInt8[np.ndarray, "n h w 3"]:
    if images.shape[1] not in (1, 3):
        raise ShortflowError(f"a picture needs 1 or 3 channels, got {images.shape[1]} (shape {images.shape})")
    images = images.transpose(0, 2, 3, 1)
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def _enlarged(images: UInt8[np.ndarray, "n h w 3"], factor: int) -> UInt8[np.ndarray, "n h2 w2 3"]:
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def image_grid(images: Images, columns: int | None = None, size: int = 32) -> Image.Image:
    """A grid of the images in reading order; small images are enlarged by a whole factor to about `size` pixels a side.

    Args:
        columns: images a row; by default the grid is about square.
    """
    n = len(images)
    if n == 0:
        raise ShortflowError("a picture needs at least one image, got none")
    columns = columns or math.ceil(math.sqrt(n))
    pixels = _enlarged(_rgb(images), max(1, round(size / max(images.shape[2:]))))
    _, h, w, _ = pixels.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), 255, np.uint8)
    for k, image in enumerate(pixels):
        y, x = GAP + (k // columns) * (h + GAP), GAP + (k % columns) * (w + GAP)
        sheet[y : y + h, x : x + w] = image
    return Image.fromarray(sheet)


def comparison(panels: Sequence[tuple[str, Images]], columns: int, title: str = "", across: int = 3) -> Image.Image:
    """Grids side by side, each under its heading: the picture of real images beside 1-step, 2-step, … samples."""
    font, head = ImageFont.load_default(size=15), ImageFont.load_default(size=19)
    grids = [(name, image_grid(images, columns)) for name, images in panels]
    w, h = max(g.width for _, g in grids), max(g.height for _, g in grids)
    line, top = 24, 34 if title else 0
    across = min(across, len(grids))
    down = math.ceil(len(grids) / across)
    sheet = Image.new("RGB", (across * (w + 2 * MARGIN), top + down * (h + line + 2 * MARGIN)), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((MARGIN, MARGIN), title, fill=INK, font=head)
    for k, (name, grid) in enumerate(grids):
        x = (k % across) * (w + 2 * MARGIN) + MARGIN
        y = top + (k // across) * (h + line + 2 * MARGIN) + MARGIN
        pen.text((x, y), name, fill=INK, font=font)
        sheet.paste(grid, (x, y + line))
    return sheet


def scatter(points: Float[np.ndarray, "n 2"], extent: float = 3.0, size: int = 256) -> UInt8[np.ndarray, "1 h w"]:
    """Points of the plane as a grey picture (1, size, size): darker where there are more, `extent` from the centre to an edge."""
    edges = np.linspace(-extent, extent, size + 1)
    counts, _, _ = np.histogram2d(-points[:, 1], points[:, 0], bins=(edges, edges))
    level = counts / max(1e-9, np.quantile(counts[counts > 0], 0.9)) if counts.any() else counts
    return (255 * (1 - np.clip(level, 0, 1) ** 0.5)).astype(np.uint8)[None]


def save_png(picture: Image.Image | UInt8[np.ndarray, "c h w"], path: Path) -> None:
    """Write one picture, or one image (c, h, w), as PNG, atomically."""
    if isinstance(picture, np.ndarray):
        pixels = picture[0] if picture.shape[0] == 1 else picture.transpose(1, 2, 0)
        picture = Image.fromarray(pixels)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
