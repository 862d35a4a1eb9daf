"""Images that are read one by one as they are asked for: what `shortflow encode` goes through, however many there are.

    a folder          as in `shortflow.data.images`: flat, or class folders, or splits of these
    NAME.zip          the same layouts inside a zip file; one folder around everything is looked through, and texts
                      are left alone
    NAME.npz          uint8 images (n, h, w, c), (n, c, h, w) or (n, h, w), called images, samples, arr_0 or x; labels
                      (n,), if there are any, called labels, y or arr_1
    a name            a named set, see `shortflow.data.builtin`

Every image is brought to a square of one side (`center_crop`), grey or RGB. Which images there are, and in which order,
is a function of the source alone.
"""

import hashlib
import io
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from shortflow.data import builtin
from shortflow.data.images import EXTENSIONS, center_crop, check_classes, listed, read_image
from shortflow.errors import DataError

__all__ = ["Source", "open_source"]

_LARGEST_IMAGE = 2**28  # bytes of a file inside a zip
_IMAGES, _LABELS = ("images", "samples", "arr_0", "x"), ("labels", "y", "arr_1")
_SPLITS = ("train", "test", "val", "validation")
_TEXTS = (".csv", ".html", ".json", ".md", ".tsv", ".txt", ".xml")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source(ABC):
    """Images in a fixed order.

    Attributes:
        name: where they came from.
        split: which of its splits they are.
        labels: int64 (n,), or None.
        classes: names of the classes; empty: unconditional.
        resolution: the side of the squares.
    """

    name: str
    split: str
    labels: Int[np.ndarray, "n"] | None
    classes: tuple[str, ...]
    resolution: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def title(self, k: int) -> str:
        """What image k is called in messages."""

    @abstractmethod
    def read(self, k: int) -> UInt8[np.ndarray, "..."]:
        """Image k, (h, w) if grey and (h, w, 3) if not. Raises almost anything where it is damaged."""

    @abstractmethod
    def listing(self, rows: range) -> str:
        """A sum (SHA-256, hex) that changes with the images at `rows`, found without decoding them."""


def open_source(source: str, split: str = "train", resolution: int | None = None, root: Path | None = None) -> Source:
    """The images of a folder, a .zip or .npz file, or a named set (see the module).

    Args:
        split: of folders, zip files and named sets; an .npz file is taken as a whole.
        resolution: side of the squares in pixels. None: as they are, which arrays have a side for, and files not.

    Raises:
        DataError: if there are no such images.
    """
    if resolution is not None and resolution < 1:
        raise DataError(f"resolution must be at least 1 pixel, got {resolution}")
    path = Path(source).expanduser()
    if source in builtin.names():
        dataset = builtin.load(source, split, root=root)
        if not dataset.is_image:
            raise DataError(f"{source}: points have no latents; give images")
        return _arrays(source, split, dataset.samples, dataset.labels, dataset.classes, resolution)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _arrays(path.stem, split, *_npz(path), resolution)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise DataError(f"{path} is neither a folder nor a .zip or .npz file of images")
    if not path.exists():
        raise DataError(
            f"{source!r}: there is no such folder, .zip or .npz file (looked for {path.absolute()}); names are "
            f"{', '.join(builtin.names())}"
        )
    if resolution is None:
        raise DataError(f"{path}: photographs have sides of their own; give the resolution to crop and scale to")
    return _zipped(path, split, resolution) if path.is_file() else _files(path, split, resolution)


def _numbers(names: Sequence[str], classes: tuple[str, ...]) -> Int[np.ndarray, "n"] | None:
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64) if classes else None


def _sum(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, kw_only=True, eq=False)
class _Files(Source):
    folder: Path
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def title(self, k: int) -> str:
        return self.paths[k].relative_to(self.folder).as_posix()

    def read(self, k: int) -> UInt8[np.ndarray, "..."]:
        return read_image(self.paths[k], self.resolution)

    def listing(self, rows: range) -> str:
        return _sum([f"{self.title(k)} {self.paths[k].stat().st_size}" for k in rows])


def _files(folder: Path, split: str, resolution: int) -> Source:
    paths, names, classes = listed(folder, split)
    return _Files(
        name=folder.resolve().name,
        split=split,
        labels=_numbers(names, classes),
        classes=classes,
        resolution=resolution,
        folder=folder,
        paths=paths,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Zipped(Source):
    archive: zipfile.ZipFile
    entries: Sequence[zipfile.ZipInfo]
    _lock: Any = field(init=False, repr=False, default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.entries)

    def title(self, k: int) -> str:
        return self.entries[k].filename

    def read(self, k: int) -> UInt8[np.ndarray, "..."]:
        entry = self.entries[k]
        if entry.file_size > _LARGEST_IMAGE:
            raise ValueError(f"{entry.file_size:,} bytes are no image")
        with self._lock:  # one file handle for all threads
            content = self.archive.read(entry)
        return read_image(io.BytesIO(content), self.resolution)

    def listing(self, rows: range) -> str:
        return _sum([f"{self.title(k)} {self.entries[k].file_size} {self.entries[k].CRC:08x}" for k in rows])


def _zipped(path: Path, split: str, resolution: int) -> Source:
    try:
        archive = zipfile.ZipFile(path)
        entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _hidden(entry.filename)]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no zip file, or only a part of one ({error}); fetch it again") from error
    parts = {entry.filename: PurePosixPath(entry.filename).parts for entry in entries}
    while parts and min(map(len, parts.values())) > 2 and len({each[0] for each in parts.values()}) == 1:
        parts = {name: each[1:] for name, each in parts.items()}
    folders = {each[0] for each in parts.values() if len(each) > 1}
    if folders and folders <= set(_SPLITS) and min(map(len, parts.values())) > 1:
        if split != "all" and split not in folders:
            raise DataError(f"{path}: no split {split!r}; there are {', '.join(sorted(folders))} and all")
        parts = {name: each[1:] for name, each in parts.items() if split in ("all", each[0])}
    elif split not in ("train", "all"):
        raise DataError(f"{path}: no split {split!r}, because the file is not divided; ask for 'train'")
    strange = [name for name in parts if PurePosixPath(name).suffix.lower() not in EXTENSIONS]
    depths = {len(each) for each in parts.values()}
    if not parts or strange or len(depths) > 1 or max(depths) > 2:
        what = (
            f"{len(strange)} files that are no images ({strange[0]}, …)"
            if strange
            else "no images, or folders of folders"
        )
        raise DataError(
            f"{path}: {what}; put all images at the top (unconditional), or all into one folder for each class"
        )
    chosen = sorted((entry for entry in entries if entry.filename in parts), key=lambda entry: entry.filename)
    names = [parts[entry.filename][0] for entry in chosen] if depths == {2} else []
    classes = tuple(sorted(set(names)))
    check_classes(str(path), classes)
    return _Zipped(
        name=path.stem,
        split=split,
        labels=_numbers(names, classes),
        classes=classes,
        resolution=resolution,
        archive=archive,
        entries=chosen,
    )


def _hidden(name: str) -> bool:
    """Files that systems leave in folders, and the texts that published archives have beside their images."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower() in _TEXTS or any(
        part.startswith(".") or part.lower() in ("thumbs.db", "desktop.ini", "__macosx") for part in parts
    )


# --------------------------------------------------------------------------------------------------------------- arrays


@dataclass(frozen=True, kw_only=True, eq=False)
class _Arrays(Source):
    samples: UInt8[np.ndarray, "n c h w"]

    def __len__(self) -> int:
        return len(self.samples)

    def title(self, k: int) -> str:
        return f"image {k}"

    def read(self, k: int) -> UInt8[np.ndarray, "..."]:
        image = self.samples[k]
        layers = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        if layers.shape[:2] == (self.resolution, self.resolution):
            return layers
        return np.asarray(center_crop(Image.fromarray(np.ascontiguousarray(layers)), self.resolution))

    def listing(self, rows: range) -> str:
        part = np.ascontiguousarray(self.samples[rows.start : rows.stop])
        return hashlib.sha256(str(part.shape).encode() + part.tobytes()).hexdigest()


def _arrays(
    name: str,
    split: str,
    samples: Any,
    labels: Int[np.ndarray, "n"] | None,
    classes: tuple[str, ...],
    resolution: int | None,
) -> Source:
    _, _, h, w = samples.shape
    if resolution is None and h != w:
        raise DataError(f"{name}: {w}×{h} is not a square; give a resolution to crop and scale to")
    return _Arrays(name=name, split=split, labels=labels, classes=classes, resolution=resolution or h, samples=samples)


def _npz(path: Path) -> tuple[UInt8[np.ndarray, "n c h w"], Int[np.ndarray, "n"] | None, tuple[str, ...]]:
    """Images and labels of an .npz file; labels are numbers, and name the classes."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = next((key for key in _IMAGES if key in arrays.files), None)
            if name is None:
                raise DataError(
                    f"{path}: no array is called {', '.join(_IMAGES)}; there are {', '.join(arrays.files) or 'none'}"
                )
            images = arrays[name]
            key = next((key for key in _LABELS if key in arrays.files), None)
            labels = None if key is None else arrays[key]
    except DataError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); write or fetch the file again") from error
    given = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.size == 0:
        raise DataError(
            f"{path}: {name} must be uint8 images, got {images.dtype} of shape {given}; scale them to 0…255, round and "
            "convert them"
        )
    if labels is None:
        return images, None, ()
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(
            f"{path}: labels must be whole numbers from 0, one for each of the {len(images)} images, got "
            f"{labels.dtype} of shape {labels.shape}"
            + (f" from {labels.min()} to {labels.max()}" if labels.size else "")
        )
    return images, labels.astype(np.int64), tuple(map(str, range(int(labels.max()) + 1)))
