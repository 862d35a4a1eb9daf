"""Images in arrays.

    NAME.npy    uint8 (n, h, w, c), (n, c, h, w) or (n, h, w)
    NAME.npz    such an array, called images, samples, arr_0 or x; labels (n,), if there are any, are numbers from 0,
                called labels, y or arr_1

Both are mapped into memory (an .npz where it is not compressed), so that they may be larger than memory.
"""

import hashlib
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from shortflow.arrays import open_array
from shortflow.data.formats.base import Labels, Source, by_number
from shortflow.data.images import square
from shortflow.errors import DataError

__all__ = ["Arrays", "open_arrays"]

_IMAGES, _LABELS = ("images", "samples", "arr_0", "x"), ("labels", "y", "arr_1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays(Source):
    """Images of an array.

    Attributes:
        samples: as (n, c, h, w), maybe a view of another layout.
        stamp: what `identity` gives.
    """

    samples: UInt8[np.ndarray, "n c h w"]
    stamp: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    def title(self, k: int) -> str:
        return f"image {k}"

    def read(self, k: int) -> UInt8[np.ndarray, "..."]:
        image = self.samples[k]
        layers = np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        if self.resolution is None or layers.shape[:2] == (self.resolution, self.resolution):
            return layers
        return np.asarray(square(Image.fromarray(layers), self.resolution, self.crop))

    def size(self, k: int) -> tuple[int, int]:
        return self.samples.shape[3], self.samples.shape[2]

    def listing(self, rows: range) -> str:
        part = np.ascontiguousarray(self.samples[rows.start : rows.stop])
        return hashlib.sha256(str(part.shape).encode() + part.tobytes()).hexdigest()

    def identity(self) -> str:
        return self.stamp

    @property
    def whole(self) -> bool:
        """Whether the array is what a data set of these images would hold."""
        return (
            self.samples.flags.c_contiguous
            and self.resolution in (None, *{*self.samples.shape[2:]})
            and (self.samples.shape[2] == self.samples.shape[3])
        )


def open_arrays(path: Path, split: str, resolution: int | None) -> Arrays:
    """The images of an .npy or .npz file (see the module), which is its split "train" and "all".

    Raises:
        DataError: names what is wrong with the file.
    """
    if split not in ("train", "all"):
        raise DataError(f"{path}: no split {split!r}, because a file of arrays has none; ask for 'train'")
    images, labels, classes = (
        (_images(path, "the array", open_array(path)), None, ()) if path.suffix.lower() == ".npy" else _npz(path)
    )
    stat = path.stat()
    return Arrays(
        where=str(path),
        name=path.stem,
        split=split,
        labels=labels,
        classes=classes,
        resolution=resolution,
        samples=images,
        stamp=f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}",
    )


def _npz(path: Path) -> tuple[UInt8[np.ndarray, "n c h w"], Labels | None, tuple[str, ...]]:
    """Images and labels of an .npz file; labels are numbers, and name the classes."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = next((key for key in _IMAGES if key in arrays.files), None)
            if name is None:
                raise DataError(
                    f"{path}: no array is called {', '.join(_IMAGES)}; there are {', '.join(arrays.files) or 'none'}"
                )
            images = _mapped(path, name)
            images = arrays[name] if images is None else images
            key = next((key for key in _LABELS if key in arrays.files), None)
            labels = None if key is None else arrays[key]
    except DataError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); write or fetch the file again") from error
    images = _images(path, name, images)
    if labels is None:
        return images, None, ()
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels must be whole numbers from 0, one for each of the {len(images)} images, got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return images, *by_number(str(path), labels)


def _images(path: Path, name: str, images: np.ndarray) -> UInt8[np.ndarray, "n c h w"]:
    given = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.size == 0:
        raise DataError(
            f"{path}: {name} must be uint8 images (n, h, w, c), (n, c, h, w) or (n, h, w) of 1 or 3 channels, got "
            f"{images.dtype} of shape {given}; scale them to 0…255, round and convert them"
        )
    return images


def _mapped(path: Path, key: str) -> Any:
    """An array of an .npz file where it lies, if it is neither compressed nor in Fortran order; else None."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{key}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reader(file)
            header = file.tell()
    if fortran or dtype.hasobject or not 0 < dtype.itemsize * math.prod(shape) == entry.file_size - header:
        return None
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        local = file.read(30)  # the local header: its last four bytes are the lengths of name and extra field
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])) + header
    return np.memmap(path, dtype, "r", start, shape)
