"""Image files as pixels: upright (EXIF), on white where transparent, in 8 bits, grey or RGB, and as squares."""

import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from shortflow.data.deep import deep_image, is_deep
from shortflow.errors import DataError

__all__ = [
    "CROPS",
    "EXTENSIONS",
    "NEEDS_HEIF",
    "Crop",
    "Pixels",
    "cache_folder",
    "check_square",
    "image_size",
    "read_image",
    "reads_heif",
    "resize",
    "some",
    "square",
    "stacked",
    "why",
]

Pixels = UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]
Crop = Literal["centre", "resize", "pad"]

CROPS: dict[Crop, str] = {
    "centre": "ADM: halved by boxes, bicubic, centre",
    "resize": "halved by boxes, bicubic, stretched",
    "pad": "halved by boxes, bicubic, whole on white",
}
"""How an image becomes a square (see `square`), in the words that stores of latents have it in."""

EXTENSIONS = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
        *(".pnm", ".jp2"),
    }
)
LARGEST = 2**29
"""Pixels of an image: half a gigapixel, 2 GiB while it is decoded."""

NEEDS_HEIF = "HEIF needs a plugin: pip install pillow-heif; or convert it to JPEG"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LARGE = 2**26  # pixels of an image that is decoded while no other as large is
_one_large = threading.Lock()
_SHOWN = 5


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/shortflow`, by default `~/.cache/shortflow`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortflow"


def check_square(resolution: int | None, crop: str = "centre") -> None:
    """Raise `DataError` unless images can be brought to that side in that way; None: they stay as they are."""
    if crop not in CROPS:
        raise DataError(f"there is no crop {crop!r}; there are {', '.join(CROPS)}")
    if resolution is None and crop != "centre":
        raise DataError(f"crop {crop} says how images become squares; give their side as well (--resolution)")
    if resolution is not None and resolution < 1:
        raise DataError(f"resolution must be at least 1 pixel, got {resolution}")


def square(image: Image.Image, resolution: int, crop: Crop = "centre") -> Image.Image:
    """`image` as a square of `resolution` pixels.

        centre   the short side scaled to the resolution, and the middle of the long one: the preprocessing of Dhariwal
                 & Nichol (2021), which published ImageNet results share
        resize   both sides scaled to the resolution: all of the image, stretched
        pad      the long side scaled to the resolution: all of the image in the middle, on white as what is transparent

    It is halved by box filter while the side that counts (of `resize` the short one) is at least twice the resolution,
    then scaled bicubically. An image that is square already is the same in all ways.
    """
    counts = max if crop == "pad" else min
    while counts(image.size) >= 2 * resolution:
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)
    scale = resolution / counts(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if crop == "resize":
        size = (resolution, resolution)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if crop == "pad":
        whole = Image.new(image.mode, (resolution, resolution), "white")
        whole.paste(image, ((resolution - image.width) // 2, (resolution - image.height) // 2))
        return whole
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def resize(
    samples: UInt8[np.ndarray, "n c h w"], resolution: int, crop: Crop = "centre"
) -> UInt8[np.ndarray, "n c r r"]:
    """`square` of every image of an array with one or three channels.

    Raises:
        DataError: if the resolution is below one pixel.
    """
    check_square(resolution, crop)
    if samples.shape[2:] == (resolution, resolution):
        return samples
    layers = samples[:, 0] if samples.shape[1] == 1 else samples.transpose(0, 2, 3, 1)
    return stacked([np.asarray(square(Image.fromarray(layer), resolution, crop)) for layer in layers])


def read_image(file: Path | BufferedIOBase, resolution: int | None = None, crop: Crop = "centre") -> Pixels:
    """The image in a file, upright, opaque and in 8 bits: grey (h, w) or RGB (h, w, 3), as `square` where a resolution
    is given.

    Raises almost anything where it is damaged.
    """
    with _unlimited, _opened(file) as opened:
        _check_size(opened)
        with _one_large if opened.width * opened.height > _LARGE else nullcontext():
            if is_deep(opened):
                with _opened(file) as again:
                    opened = deep_image(opened, again)
            opened.load()
            image = _flatten(opened)
            return np.asarray(image if resolution is None else square(image, resolution, crop))


def image_size(file: Path | BufferedIOBase) -> tuple[int, int]:
    """Width and height of the image in a file as it is stored, found without decoding it; raises as `read_image`."""
    with _unlimited, _opened(file) as opened:
        _check_size(opened)
        return opened.size


@contextmanager
def _opened(file: Path | BufferedIOBase) -> Iterator[Image.Image]:
    reads_heif()
    try:
        image = Image.open(cast(IO[bytes], file))
    except UnidentifiedImageError as error:
        if _is_heif(file):  # telephones and exports call some of them .jpg
            raise ValueError(NEEDS_HEIF) from error
        raise
    with image:
        yield image


def _is_heif(file: Path | BufferedIOBase) -> bool:
    """Whether a file begins as HEIF does, whatever it is called."""
    with open(file, "rb") if isinstance(file, Path) else nullcontext(file) as opened:
        opened.seek(0)
        head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


@cache
def reads_heif() -> bool:
    """Whether the plugin for what telephones write, pillow-heif, is installed; then Pillow knows of it from now on."""
    plugin = _plugin()
    if plugin is not None:
        plugin.register_heif_opener()
    return plugin is not None


def _plugin() -> Any:
    return None if importlib.util.find_spec("pillow_heif") is None else importlib.import_module("pillow_heif")


def _check_size(image: Image.Image) -> None:
    pixels = image.width * image.height
    if pixels > LARGEST:
        raise ValueError(
            f"{image.width}×{image.height} are {pixels / 1e6:,.0f} megapixels, more than the {LARGEST / 1e6:,.0f} that "
            "are decoded; scale it down first"
        )


class _Unlimited:
    """Pillow warns of 90 megapixels and refuses 179, to guard servers against strangers. Photographs have more, and
    `_check_size` has a limit of its own. Pillow's is one of the process, so it is lifted while any thread reads an
    image, and put back by the last of them."""

    def __init__(self) -> None:
        self._lock, self._readers, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._readers += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


_unlimited = _Unlimited()


def _flatten(image: Image.Image) -> Image.Image:
    """An upright, opaque 8-bit image of mode L (grey) or RGB; it may be the one that is given."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no known white; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    grey = image.mode in ("1", "L", "LA")
    palette = image.mode in ("P", "PA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":  # of itself it would make a copy
        image = image.convert("RGB")
    if palette:
        # A grey picture is often stored with a palette; what counts is what is seen.
        pixels = np.asarray(image)
        grey = bool((pixels == pixels[..., :1]).all())
    # Equal channels become exactly that level: the weights of Pillow's luma add up to one.
    return image.convert("L") if grey else image


def _from_16_bit(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"32-bit pixels {levels.min()}…{levels.max()} have no known white; convert to 8 or 16 bits")
    levels[levels == image.info.get("transparency", -1)] = 65535
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def stacked(images: Sequence[Pixels]) -> UInt8[np.ndarray, "n c h w"]:
    """Grey (h, w) and RGB (h, w, 3) images in one array; grey ones are repeated if any is RGB."""
    channels = 3 if any(image.ndim == 3 for image in images) else 1
    out = np.empty((len(images), channels, *images[0].shape[:2]), dtype=np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return out


def why(error: Exception) -> str:
    """Why an image cannot be read, in a line."""
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def some(items: Sequence[str]) -> str:
    """The first of the items, and how many more there are."""
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
