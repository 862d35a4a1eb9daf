"""Colours of 16 bits a channel. Pillow keeps the high byte of each; here both are read, so that levels are scaled by
u/257 as those of grey images are, and not cut to u >> 8.

A file is decoded twice: once as it is, and once as if its bytes were in the other order, which gives the low ones.
"""

import sys
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

__all__ = ["deep_image", "is_deep"]

_OTHER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # the order of bytes that N is not
_WHITE = 65535
_PLANAR, _BITS = 284, 258  # tags of TIFF
_SIZE = b"\xff\x4f\xff\x51"  # with which the codestream of JPEG 2000 begins: its size, and the bits of its channels
_HEAD = 2**20  # bytes of a file in which it does


def is_deep(image: Image.Image) -> bool:
    """Whether the opened, not yet loaded image has 16 bits in each of several channels.

    Raises:
        ValueError: if Pillow spoils them without a way around it: it cuts those in separate planes, and of JPEG 2000 in
            colour makes (u + 128) >> 8 in 8 bits, in which white is 0.
    """
    depth = _jpeg2000_depth(image)
    if depth > 8:
        raise ValueError(
            f"{depth}-bit colours of JPEG 2000 are not read, because their white would become black; save the file as "
            "PNG or TIFF"
        )
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, 8)
    if tags.get(_PLANAR) == 2 and isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8:
        raise ValueError(
            f"{max(bits)}-bit channels in separate planes are not read; save the file with them side by side"
        )
    return isinstance(image, ImageFile) and bool(image.tile) and ";16" in _rawmode(image)[1:] and image.mode[0] != "I"


def _jpeg2000_depth(image: Image.Image) -> int:
    """The bits of the deepest channel of a JPEG 2000 file in colour; 0 of other files."""
    file: Any = getattr(image, "fp", None)
    if image.format != "JPEG2000" or image.mode[0] == "I" or file is None:
        return 0
    place = file.tell()
    file.seek(0)
    _, _, size = file.read(_HEAD).partition(_SIZE)
    file.seek(place)
    channels = int.from_bytes(size[36:38], "big")
    return max(((bits & 127) + 1 for bits in size[38 : 38 + 3 * channels : 3]), default=0)


def deep_image(image: Image.Image, again: Image.Image) -> Image.Image:
    """The 8-bit image, opaque (on white where transparent), of mode L, RGB or CMYK, turned as EXIF will say.

    Args:
        image, again: the same file, opened twice, for which `is_deep`.
    """
    layout, _, order = _rawmode(image).partition(";16")
    if layout == "LA":  # two channels of two bytes, as if they were four of one
        pairs = _bytes(image, "RGBA")
        levels = np.stack([pairs[..., 0] * 256 + pairs[..., 1], pairs[..., 2] * 256 + pairs[..., 3]], axis=-1)
    else:
        known = layout.upper()  # RGBa is multiplied by its alpha already, which has to stay so for now
        low = _bytes(again, f"{known};16{_OTHER[order]}")
        levels = _bytes(image, f"{known};16{order}") * 256 + low
    clear = image.info.get("transparency")
    if layout in ("LA", "RGBA"):
        levels = _on_white(levels[..., :-1], levels[..., -1:])
    elif layout == "RGBa":
        levels = np.minimum(levels[..., :-1] + (_WHITE - levels[..., -1:]), _WHITE)
    elif isinstance(clear, tuple) and len(clear) == levels.shape[-1]:
        levels = np.where((levels == np.array(clear)).all(axis=-1, keepdims=True), _WHITE, levels)
    pixels = np.floor_divide(levels + 128, 257).astype(np.uint8)  # u/257, rounded: an odd number has no ties
    found = Image.fromarray(pixels[..., 0] if layout == "LA" else pixels, "CMYK" if layout == "CMYK" else None)
    found.getexif().update(image.getexif())
    return found


def _rawmode(image: Any) -> str:
    """How the bytes lie in the file, in Pillow's words, such as RGB;16B."""
    arguments = image.tile[0][3]
    return arguments if isinstance(arguments, str) else str((*(arguments or ()), "")[0])


def _bytes(image: Any, rawmode: str) -> Any:
    """The image decoded as if its bytes lay like that, as numbers that sums of them fit into."""
    image.tile = [_with(tile, rawmode) for tile in image.tile]
    image.load()
    return np.asarray(image).astype(np.int32)


def _with(tile: Any, rawmode: str) -> Any:
    arguments = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    return (*tile[:3], arguments) if type(tile) is tuple else type(tile)(*tile[:3], arguments)  # Pillow 11 names them


def _on_white(colours: Any, alpha: Any) -> Any:
    mixed = (colours.astype(np.float64) * alpha + float(_WHITE) * (_WHITE - alpha)) / _WHITE
    return np.rint(mixed).astype(np.int32)
