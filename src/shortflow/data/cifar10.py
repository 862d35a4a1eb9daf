"""CIFAR-10 from a folder, in any of the forms it is kept in.

    {train,test}/<class>/*.png       class folders
    cifar10_{train,test}.npz         images uint8 (n, 32, 32, 3), labels (n,)
    cifar10_med.npz                  {train,test}_residual uint8 (3, n, 32, 32), {train,test}_labels (n,)

The last one is lossless and small. Its planes are G, R − G and B − G, each less its median prediction: with a the
pixel to the left, b above and c above left (zero outside), m = median(a, b, a + b − c), and the residual is the
difference from m modulo 256 (the predictor of LOCO-I; Weinberger, Seroussi & Sapiro 2000, eq. 1).
"""

import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Integer, UInt8

from shortflow.data.decoded import load_folder
from shortflow.data.images import cache_folder
from shortflow.errors import DataError
from shortflow.typing import Report

__all__ = ["CLASSES", "forms", "read", "unpack"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Images = UInt8[np.ndarray, "n 3 32 32"]
Labels = Integer[np.ndarray, "n"]

# Images decoded together: one antidiagonal of a plane of them fits into the cache of a core.
_CHUNK = 512


def forms(folder: Path, split: str) -> tuple[Path, Path, Path]:
    """The paths that `read` looks at, in this order: class folders, plain npz, packed npz."""
    return folder / split, folder / f"cifar10_{split}.npz", folder / "cifar10_med.npz"


def read(folder: Path, split: str, report: Report | None = None) -> tuple[Images, Labels] | None:
    """Images (n, 3, 32, 32) and labels (n,) of a split, or None if no form of it is in the folder.

    The packed form is decoded once and kept in `cache_folder()`, if that can be written; `report` is called with
    (images decoded, images in all) on the way.

    Raises:
        DataError: names the file that is damaged or of another kind.
    """
    pngs, plain, packed = forms(folder, split)
    if pngs.is_dir():
        found = load_folder(pngs, report=report)
        if found.classes != CLASSES or found.labels is None or found.shape != (3, 32, 32):
            raise DataError(
                f"{pngs}: expected 3×32×32 images in the class folders {', '.join(CLASSES)}, "
                f"got {found.shape} in {', '.join(found.classes) or 'no class folders'}"
            )
        return np.asarray(found.samples), found.labels
    if plain.is_file():
        return _read_plain(plain)
    if packed.is_file():
        return _read_packed(packed, split, report)
    return None


def unpack(residual: UInt8[np.ndarray, "3 n h w"], report: Report | None = None) -> UInt8[np.ndarray, "n 3 h w"]:
    """The RGB images whose planes (G, R − G, B − G) have these residuals (see the module)."""
    _, n, height, width = residual.shape
    images = np.empty((n, 3, height, width), dtype=np.uint8)
    for start in range(0, n, _CHUNK):
        rows = slice(start, start + _CHUNK)
        green = _plane(residual[0, rows], None)
        for channel, plane in ((0, residual[1, rows]), (2, residual[2, rows])):
            images[rows, channel] = _inner(_plane(plane, green) + green, height, width)
        images[rows, 1] = _inner(green, height, width)
        if report is not None:
            report(min(start + _CHUNK, n), n)
    return images


def _plane(residual: UInt8[np.ndarray, "m h w"], green: Int16[np.ndarray, "p m"] | None) -> Int16[np.ndarray, "p m"]:
    """One plane of m images, p = (h + 1)(w + 1) pixels with a border of zeros above and to the left.

    The border makes the median right at the edges too: with b = c = 0 it is a, with a = c = 0 it is b. All pixels of
    an antidiagonal depend on earlier ones only, and are w apart in the flat array, so each is one strided view.
    """
    m, height, width = residual.shape
    left = np.zeros((height + 1, width + 1, m), dtype=np.int16)
    left[1:, 1:] = residual.transpose(1, 2, 0)
    left = left.reshape(-1, m)
    plane = np.zeros_like(left)
    for diagonal in range(height + width - 1):
        top = max(0, diagonal - width + 1)
        count = min(height - 1, diagonal) - top + 1
        first = (top + 1) * (width + 1) + (diagonal - top) + 1

        def shifted(by: int, first: int = first, count: int = count) -> slice:
            return slice(first - by, first - by + (count - 1) * width + 1, width)

        a, b, c = plane[shifted(1)], plane[shifted(width + 1)], plane[shifted(width + 2)]
        value = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), a + b - c))
        value += left[shifted(0)]
        if green is not None:
            # Modulo 256 holds for the colour itself; the plane is its difference from green.
            value += green[shifted(0)]
        value &= 255
        if green is not None:
            value -= green[shifted(0)]
        plane[shifted(0)] = value
    return plane


def _inner(plane: Int16[np.ndarray, "p m"], height: int, width: int) -> Int16[np.ndarray, "m h w"]:
    return plane.reshape(height + 1, width + 1, -1)[1:, 1:].transpose(2, 0, 1)


def _arrays(path: Path, *keys: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[key] for key in keys]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot read {', '.join(keys)} ({error}); fetch or write the file again") from error


def _check(path: Path, images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> None:
    ok = images.dtype == np.uint8 and images.shape == shape and labels.ndim == 1 and labels.size > 0
    if not ok or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(
            f"{path}: expected uint8 images of shape {shape} and labels 0…9, one for each image, "
            f"got {images.dtype} {images.shape} and {labels.dtype} {labels.shape}; fetch or write the file again"
        )


def _read_plain(path: Path) -> tuple[Images, Labels]:
    images, labels = _arrays(path, "images", "labels")
    _check(path, images, labels, (labels.size, 32, 32, 3))
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def _read_packed(path: Path, split: str, report: Report | None) -> tuple[Images, Labels]:
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    kept = cache_folder() / f"cifar10-{key}" / f"cifar10_{split}.npz"
    if kept.is_file():
        try:
            return _read_plain(kept)
        except DataError:
            pass  # a damaged copy is written anew below
    residual, labels = _arrays(path, f"{split}_residual", f"{split}_labels")
    _check(path, residual, labels, (3, labels.size, 32, 32))
    images = unpack(residual, report)
    _keep(kept, images, labels)
    return images, labels


def _keep(path: Path, images: Images, labels: Labels) -> None:
    """Write the plain form whole or not at all; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            try:
                np.savez(part, images=images.transpose(0, 2, 3, 1), labels=labels)
                part.close()
                os.replace(part.name, path)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError:
        return
