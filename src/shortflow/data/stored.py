"""Images as they lie somewhere, read a range at a time: whatever their number, they take the memory of a batch.

| given | what it is |
| --- | --- |
| NAME.npz | a uint8 array of images, `arr_0` (ADM's samples) or the only one: (n, h, w, c), (n, c, h, w) or (n, h, w) |
| NAME.npy | such an array, memory-mapped |
| a name | a data set of `shortflow.data.load` |
| anything else that runs are trained on | folders, .zip, shards, tables, hf:NAME (`shortflow.data.formats`) |

The images are those that a run would be trained on: of the train split, unless another is asked for, in words or as
NAME:test. Files of pictures become RGB; arrays keep their channels. Nothing is resized unless a resolution is given;
then images become squares by the crop that is asked for. What is wrong with files is said before the first of them is
used: all of them are decoded once to know (`shortflow.data.whole`).
"""

import os
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from shortflow.arrays import Stacked, open_array
from shortflow.data.builtin import load, names
from shortflow.data.dataset import Dataset
from shortflow.data.decoded import Corrupt, check_failures, each, listed
from shortflow.data.encoded import Encoded
from shortflow.data.formats import HUB, SPLITS, WITHOUT, Source, found_at, open_path
from shortflow.data.images import Crop, check_square, resize, some, why
from shortflow.data.whole import look_at
from shortflow.errors import DataError
from shortflow.typing import Report

__all__ = ["Stored", "of_dataset", "open_images", "parted"]

Images = UInt8[np.ndarray, "n c h w"]
_AT_ONCE = 64  # images that are decoded together
_REMEDY = "replace or remove these files, or leave them out with --corrupt skip"


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Images that are not in memory.

    Attributes:
        source: where they are.
        count: how many.
        shape: (c, h, w) of each.
        formats: how many there are of each file format, or {"array": n}.
        identity: a text that changes when the images do, as far as names, sizes and times can tell.
        resolution: what they are brought to; None: as they are.
        crop: how they became squares of it; None: they did not, or nobody knows.
        skipped: what could not be read, and was left out: what it is called, and why.
        notes: what their user should know of how they were opened, in sentences.
        read: (first, last) → those images, in batches.
    """

    source: str
    count: int
    shape: tuple[int, int, int]
    formats: dict[str, int]
    identity: str
    resolution: int | None
    read: Callable[[int, int], Iterator[Images]]
    crop: Crop | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def parted(given: str) -> tuple[str, str | None]:
    """(images, split) of what is given as IMAGES:SPLIT; (IMAGES, None) where no split is named."""
    name, _, split = given.rpartition(":")
    if given.partition(":")[0] in names():
        return given.partition(":")[0], given.partition(":")[2] or None
    if split not in (*SPLITS, "all") or given.startswith(HUB) or found_at(given):
        return given, None
    return name, split


def open_images(
    given: str | Path,
    *,
    split: str | None = None,
    resolution: int | None = None,
    crop: Crop = "centre",
    corrupt: Corrupt = "refuse",
    report: Report | None = None,
) -> Stored:
    """The images at a path, or of a named data set (see the module).

    Args:
        resolution, crop: the side that images are brought to, and how; None: they stay as they are.
        split: of those that have splits; None: what is given as IMAGES:SPLIT, or else "train".
        corrupt: refuse images that cannot be read, naming them, or leave them out (`Stored.skipped`).
        report: called with (files that are looked at, in all).

    Raises:
        DataError: if there are none, the file is of another kind, or images cannot be read or have several sizes; says
            which, and what to give instead.
    """
    check_square(resolution, crop)
    found = _opened(given, split, resolution, crop, corrupt, report)
    return found if resolution is None else replace(found, resolution=resolution, crop=crop)


def _opened(
    given: str | Path, split: str | None, resolution: int | None, crop: Crop, corrupt: Corrupt, report: Report | None
) -> Stored:
    source, named = parted(str(given))
    if None not in (split, named) and split != named:
        raise DataError(f"{given} is of the split {named}, not {split}; leave out one of them")
    chosen = split or named or "train"
    if source in names():
        return of_dataset(load(source, chosen, resolution=resolution, crop=crop))
    if not found_at(source):
        raise DataError(
            f"{given}: there is no such folder or file, and no data set of that name ({', '.join(names())})"
        )
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in (".npz", ".npy"):
        if chosen not in ("train", "all"):
            raise DataError(f"{path}: no split {chosen!r}, because a file of arrays has none; leave it out")
        if path.suffix.lower() == ".npz":
            return _npz(path, resolution, crop)
        return _array(str(path), open_array(path), _stamp(path), resolution, crop)
    return _files(open_path(source, chosen, resolution=resolution, crop=crop, label=WITHOUT), corrupt, report)


# ------------------------------------------------------------------------------------------------------ files of images


def _files(source: Source, corrupt: Corrupt, report: Report | None) -> Stored:
    """The images of a source, which are looked at first."""
    failures = _checked(source, corrupt, report)
    rows = [k for k in range(len(source)) if k not in failures]

    def one(k: int) -> tuple[str, np.ndarray | Exception]:
        try:
            return source.title(k), _rgb(source.read(k))
        except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
            return source.title(k), error

    side = source.resolution or 0
    shape = (3, side, side)
    if not side:
        name, first = one(rows[0])
        if isinstance(first, Exception):
            raise DataError(f"{source.where}: images cannot be read: {name} ({why(first)}); {_REMEDY}")
        shape = (3, first.shape[1], first.shape[2])

    def read(start: int, stop: int) -> Iterator[Images]:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for at in range(start, stop, _AT_ONCE):
                found = list(pool.map(one, rows[at : min(at + _AT_ONCE, stop)]))
                failed = [f"{name} ({why(image)})" for name, image in found if isinstance(image, Exception)]
                if failed:
                    raise DataError(f"{source.where}: images cannot be read: {some(failed)}; {_REMEDY}")
                images = [(name, image) for name, image in found if isinstance(image, np.ndarray)]
                for name, image in images:
                    if image.shape != shape:
                        raise _several(source, name, image.shape[:0:-1], shape[:0:-1])
                yield np.stack([image for _, image in images])

    skipped = tuple((title, reason) for _, title, reason in listed(source, failures))
    return Stored(
        source=source.where if source.split in ("train", "all") else f"{source.where}:{source.split}",
        count=len(rows),
        shape=shape,
        formats=dict(Counter(_format(source.title(k)) for k in rows)),
        identity=f"{source.identity()} {skipped}" if skipped else source.identity(),
        resolution=source.resolution,
        read=read,
        skipped=skipped,
        notes=source.notes,
    )


def _checked(source: Source, corrupt: Corrupt, report: Report | None) -> dict[int, str]:
    """Why images cannot be read, by number, where these are left out.

    Without a resolution all images must have one size. Headers say it at once, but for a rotation.

    Raises:
        DataError: if images cannot be read, and are not left out; or the sizes differ.
    """
    if source.resolution is None:
        first: tuple[int, int] | None = None
        for k, size in each(source, source.size, {}):
            first = first or size
            if sorted(size) != sorted(first):
                raise _several(source, source.title(k), size, first)
    found = look_at(source, report)
    check_failures(source, found.failures, corrupt, "--corrupt skip")
    if source.resolution is None and len(found.sizes) > 1:
        usual, other = found.sizes
        raise _several(source, source.title(other[0]), other[1:], usual[1:])
    return found.failures


def _several(source: Source, name: str, size: Sequence[int], other: Sequence[int]) -> DataError:
    return DataError(
        f"{source.where}: {name} has {size[0]}×{size[1]} pixels, others have {other[0]}×{other[1]}; give a resolution "
        "to crop and scale to (--resolution)"
    )


def _rgb(image: np.ndarray) -> np.ndarray:
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(planes, (3, *planes.shape[1:])))


def _format(name: str) -> str:
    ending = Path(name).suffix.lower().removeprefix(".") or "table"
    return {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending)


# --------------------------------------------------------------------------------------------------------------- arrays


def of_dataset(dataset: Dataset) -> Stored:
    """The images of a data set, in its order.

    Raises:
        DataError: if it is one of points or latents.
    """
    if not dataset.is_image or isinstance(dataset.samples, Encoded):
        raise DataError(f"{dataset.name}: these are {dataset.kind}, not images; give images")
    name = f"{dataset.name}:{dataset.split}"
    found = _array(name, dataset.samples, f"{name} {dataset.fingerprint()}")
    skipped = tuple((title, reason) for _, title, reason in dataset.skipped)
    return replace(found, skipped=skipped, notes=dataset.notes)


def _array(
    source: str, array: np.ndarray | Stacked, identity: str, resolution: int | None = None, crop: Crop = "centre"
) -> Stored:
    """Images of a whole (maybe memory-mapped) array."""
    shape, turned = _layout(source, array.dtype, array.shape)

    def read(start: int, stop: int) -> Iterator[Images]:
        for at in range(start, stop, _AT_ONCE):
            yield _arranged(np.array(array[at : min(at + _AT_ONCE, stop)]), turned, resolution, crop)

    return _of_array(source, array.shape[0], shape, identity, resolution, read)


def _of_array(
    source: str, count: int, shape: tuple[int, int, int], identity: str, resolution: int | None, read: Any
) -> Stored:
    if count == 0:
        raise DataError(f"{source}: no images, the array is empty")
    side = shape[1:] if resolution is None else (resolution, resolution)
    return Stored(
        source=source,
        count=count,
        shape=(shape[0], *side),
        formats={"array": count},
        identity=identity,
        resolution=resolution,
        read=read,
    )


def _layout(source: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[tuple[int, int, int], bool]:
    """(c, h, w), and whether the channels come last."""
    if dtype != np.uint8:
        raise DataError(
            f"{source}: images are uint8, got {dtype}; scale to 0…255, round, clamp and convert them first, as for a "
            "PNG file: how that is done moves every distance"
        )
    if len(shape) == 3:
        return (1, shape[1], shape[2]), False
    if len(shape) == 4 and shape[3] in (1, 3):
        return (shape[3], shape[1], shape[2]), True
    if len(shape) == 4 and shape[1] in (1, 3):
        return (shape[1], shape[2], shape[3]), False
    raise DataError(f"{source}: expected images (n, h, w, c) or (n, c, h, w) with 1 or 3 channels, got shape {shape}")


def _arranged(images: np.ndarray, turned: bool, resolution: int | None, crop: Crop) -> Images:
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2) if turned else images
    images = np.ascontiguousarray(images)
    return images if resolution is None else resize(images, resolution, crop)


def _npz(path: Path, resolution: int | None, crop: Crop) -> Stored:
    """Images of an array in an archive, compressed or not, that is read from its beginning to its end, once."""
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for name in (entry for entry in archive.namelist() if entry.endswith(".npy")):
                with archive.open(name) as file:
                    headers[name.removesuffix(".npy")] = _header(file)
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise DataError(f"{path}: is no readable .npz file ({error}); write or fetch it again") from error
    key = _key(path, headers)
    found, fortran, dtype = headers[key]
    if fortran:
        raise DataError(f"{path}: {key} is in Fortran order; save it in C order (np.ascontiguousarray)")
    shape, turned = _layout(f"{path}: {key}", dtype, found)
    size = int(np.prod(found[1:], dtype=np.int64))
    member = _Member(path, key)

    def read(start: int, stop: int) -> Iterator[Images]:
        for at in range(start, stop, _AT_ONCE):
            n = min(_AT_ONCE, stop - at)
            try:
                content = member.read(at * size, n * size)
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
                raise DataError(f"{path}: {key} cannot be read ({error}); write or fetch it again") from error
            if len(content) != n * size:
                raise DataError(f"{path}: {key} ends before image {at + n}; write or fetch it again")
            yield _arranged(np.frombuffer(content, np.uint8).reshape(n, *found[1:]), turned, resolution, crop)

    return _of_array(str(path), found[0], shape, _stamp(path), resolution, read)


class _Member:
    """An array inside an archive. It stays open: to go on where the last reading ended costs nothing."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.file: BufferedIOBase | None = None
        self.start = 0  # of the pixels
        self.lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self.lock:
            if self.file is None:
                self.file = cast(BufferedIOBase, zipfile.ZipFile(self.path).open(f"{self.key}.npy"))  # noqa: SIM115
                _header(self.file)
                self.start = self.file.tell()
            self.file.seek(self.start + offset)
            return self.file.read(size)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return reader(file)


def _key(path: Path, headers: dict[str, tuple[tuple[int, ...], bool, np.dtype[Any]]]) -> str:
    images = [name for name, (shape, _, dtype) in headers.items() if dtype == np.uint8 and len(shape) in (3, 4)]
    if "arr_0" in headers:
        return "arr_0"
    if len(images) == 1:
        return images[0]
    kinds = ", ".join(f"{name} {dtype} {shape}" for name, (shape, _, dtype) in headers.items()) or "nothing"
    if not images:
        raise DataError(f"{path}: holds no uint8 images (n, h, w, c), but {kinds}")
    raise DataError(f"{path}: holds several arrays of images ({', '.join(images)}); keep one, or call it arr_0")


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
