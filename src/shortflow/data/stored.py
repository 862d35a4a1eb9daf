"""Images as they lie somewhere, read a range at a time: whatever their number, they take the memory of a batch.

| given | what it is |
| --- | --- |
| a folder | every image file in it and below, in the order of their names |
| NAME.zip | the same inside an archive |
| NAME.npz | a uint8 array of images, `arr_0` (ADM's samples) or the only one: (n, h, w, c), (n, c, h, w) or (n, h, w) |
| NAME.npy | such an array, memory-mapped |
| a name | a data set of `shortflow.data.load`, its train split, or NAME:test |
| anything else that runs are trained on | shards, tables, hf:NAME (`shortflow.data.formats`), the train split |

Files of pictures become RGB; arrays keep their channels. Nothing is resized unless a resolution is given, which is
reached by `center_crop`.
"""

import hashlib
import os
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from shortflow.arrays import Stacked, open_array
from shortflow.data.builtin import load, names
from shortflow.data.dataset import Dataset
from shortflow.data.encoded import Encoded
from shortflow.data.formats import WITHOUT, Source, found_at, is_set, open_path
from shortflow.data.images import EXTENSIONS, read_image, resize
from shortflow.errors import DataError

__all__ = ["Stored", "of_dataset", "open_images"]

Images = UInt8[np.ndarray, "n c h w"]
_AT_ONCE = 64  # images that are decoded together
_SHOWN = 5


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
        read: (first, last) → those images, in batches.
    """

    source: str
    count: int
    shape: tuple[int, int, int]
    formats: dict[str, int]
    identity: str
    resolution: int | None
    read: Callable[[int, int], Iterator[Images]]


def open_images(given: str | Path, *, resolution: int | None = None) -> Stored:
    """The images at a path, or of a named data set (see the module). Only the first of them is read.

    Raises:
        DataError: if there are none, or the file is of another kind; says which, and what to give instead.
    """
    if resolution is not None and resolution < 1:
        raise DataError(f"resolution must be at least 1 pixel, got {resolution}")
    name, _, split = str(given).partition(":")
    if name in names():
        return of_dataset(load(name, split or "train", resolution=resolution))
    path = Path(given).expanduser()
    if is_set(str(given)):
        return _source(open_path(str(given), resolution=resolution, label=WITHOUT))
    if path.is_dir():
        return _folder(path, resolution)
    if not found_at(str(given)):
        raise DataError(
            f"{given}: there is no such folder or file, and no data set of that name ({', '.join(names())})"
        )
    if path.suffix.lower() == ".zip":
        return _zip(path, resolution)
    if path.suffix.lower() == ".npz":
        return _npz(path, resolution)
    if path.suffix.lower() == ".npy":
        return _array(str(path), open_array(path), _stamp(path), resolution)
    raise DataError(f"{path}: images are a folder, or a .zip, .npz, .npy, .tar or .parquet file; this is none of them")


# ------------------------------------------------------------------------------------------------------ files of images


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and Path(parts[-1]).suffix.lower() in EXTENSIONS


def _folder(folder: Path, resolution: int | None) -> Stored:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    members = sorted(filter(_is_image, found))
    stamps = ((folder / name).stat() for name in members)
    identity = _hash(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in zip(members, stamps, strict=True))
    return _files(str(folder), members, lambda k: read_image(folder / members[k], resolution), identity, resolution)


def _zip(path: Path, resolution: int | None) -> Stored:
    local = threading.local()  # an archive has one position, so each thread has its own

    def opened() -> zipfile.ZipFile:
        if not hasattr(local, "archive"):
            local.archive = zipfile.ZipFile(path)
        return local.archive

    try:
        entries = opened().infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is no readable archive ({error}); write or fetch it again") from error
    members = sorted(entry.filename for entry in entries if not entry.is_dir() and _is_image(entry.filename))

    def pixels(k: int) -> np.ndarray:
        with opened().open(members[k]) as file:
            return read_image(cast(BufferedIOBase, file), resolution)

    return _files(str(path), members, pixels, _stamp(path), resolution)


def _source(source: Source) -> Stored:
    """What runs are trained on, read as it is asked for."""
    titles = [source.title(k) for k in range(len(source))]
    return _files(source.where, titles, source.read, source.identity(), source.resolution)


def _files(
    source: str,
    members: Sequence[str],
    pixels: Callable[[int], np.ndarray],
    identity: str,
    resolution: int | None,
) -> Stored:
    if not members:
        raise DataError(f"{source}: no image in it; images are {', '.join(sorted(EXTENSIONS))}")

    def one(k: int) -> tuple[str, np.ndarray | Exception]:
        try:
            return members[k], _rgb(pixels(k))
        except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
            return members[k], error

    first = one(0)[1]
    if isinstance(first, Exception):
        raise DataError(f"{source}: {members[0]} cannot be read ({first}); replace or remove this file")
    shape = first.shape

    def read(start: int, stop: int) -> Iterator[Images]:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for at in range(start, stop, _AT_ONCE):
                found = list(pool.map(one, range(at, min(at + _AT_ONCE, stop))))
                failed = [f"{name} ({image})" for name, image in found if isinstance(image, Exception)]
                if failed:
                    raise DataError(f"{source}: images cannot be read: {_some(failed)}; replace or remove these files")
                images = [(name, image) for name, image in found if isinstance(image, np.ndarray)]
                for name, image in images:
                    if image.shape != shape:
                        raise DataError(
                            f"{source}: {name} has {image.shape[2]}×{image.shape[1]} pixels, {members[0]} has "
                            f"{shape[2]}×{shape[1]}; give a resolution to crop and scale to"
                        )
                yield np.stack([image for _, image in images])

    return Stored(
        source=source,
        count=len(members),
        shape=(shape[0], shape[1], shape[2]),
        formats=dict(Counter(_format(name) for name in members)),
        identity=identity,
        resolution=resolution,
        read=read,
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
    return _array(name, dataset.samples, f"{name} {dataset.fingerprint()}", None)


def _array(source: str, array: np.ndarray | Stacked, identity: str, resolution: int | None) -> Stored:
    """Images of a whole (maybe memory-mapped) array."""
    shape, turned = _layout(source, array.dtype, array.shape)

    def read(start: int, stop: int) -> Iterator[Images]:
        for at in range(start, stop, _AT_ONCE):
            yield _arranged(np.array(array[at : min(at + _AT_ONCE, stop)]), turned, resolution)

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


def _arranged(images: np.ndarray, turned: bool, resolution: int | None) -> Images:
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2) if turned else images
    images = np.ascontiguousarray(images)
    return images if resolution is None else resize(images, resolution)


def _npz(path: Path, resolution: int | None) -> Stored:
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
            yield _arranged(np.frombuffer(content, np.uint8).reshape(n, *found[1:]), turned, resolution)

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


def _hash(lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
