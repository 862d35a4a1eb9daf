"""A source: images that lie somewhere, in a fixed order, read one by one as they are asked for."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from shortflow.data.conditions import Conditions
from shortflow.data.formats.members import unreadable
from shortflow.data.images import Crop, image_size, read_image, some
from shortflow.errors import DataError

__all__ = [
    "BY_FOLDER",
    "LARGEST_IMAGE",
    "SPLITS",
    "WITHOUT",
    "Files",
    "Labels",
    "Skipped",
    "Source",
    "arranged",
    "by_number",
    "check_classes",
    "in_split",
    "numbered",
    "setting",
    "sum_of",
]

SPLITS = ("train", "test", "val", "validation")
LARGEST_IMAGE = 2**28  # bytes of a file inside an archive or a table
_LARGEST_LABEL = 2**20

WITHOUT = "none"
"""The label that stands for none at all."""

BY_FOLDER = "folder"
"""The label of files that is their first sub-folder, however deep they lie below it."""

Labels = Int64[np.ndarray, "n"]
Skipped = tuple[int, str, str]
"""An image that cannot be read: its number in the source, what it is called, and why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source(ABC):
    """Images in a fixed order, a function of the source alone.

    Attributes:
        where: the source, as messages call it.
        name: the data set, as runs call it.
        split: which of its splits they are.
        labels: int64 (n,), or None.
        classes: names of the classes; empty: unconditional.
        resolution: the side of the squares that `read` gives; None: images as they are.
        conditions: what images are told by in place of classes; None: nothing.
        notes: what its user should know of how it was opened, in sentences.
        crop: how images become squares, see `shortflow.data.images.square`.
    """

    where: str
    name: str
    split: str
    labels: Labels | None
    classes: tuple[str, ...]
    resolution: int | None
    conditions: Conditions | None = None
    notes: tuple[str, ...] = ()
    crop: Crop = "centre"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def title(self, k: int) -> str:
        """What image k is called in messages."""

    @abstractmethod
    def read(self, k: int) -> UInt8[np.ndarray, "..."]:
        """Image k, (h, w) if grey, else (h, w, 3). Raises almost anything where it is damaged. Safe for threads."""

    @abstractmethod
    def size(self, k: int) -> tuple[int, int]:
        """Width and height of image k as it is stored, found without decoding it; raises as `read`."""

    def unreadable(self) -> dict[int, str]:
        """The images of which it is known beforehand that they cannot be read, and why."""
        return {}

    @abstractmethod
    def listing(self, rows: range) -> str:
        """A sum (SHA-256, hex) that changes with the images at `rows`, found without decoding them. Copies have the
        same one."""

    @abstractmethod
    def identity(self) -> str:
        """A text that changes when the source is written to, as far as names, sizes and times can tell."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Files(Source):
    """A source of image files, wherever their bytes are."""

    @abstractmethod
    def content(self, k: int) -> Path | BytesIO:
        """The file of image k."""

    def read(self, k: int) -> UInt8[np.ndarray, "..."]:
        return read_image(self._readable(k), self.resolution, self.crop)

    def size(self, k: int) -> tuple[int, int]:
        return image_size(self._readable(k))

    def _readable(self, k: int) -> Path | BytesIO:
        reason = unreadable(self.title(k))
        if reason is not None:
            raise ValueError(reason)  # of raw data Pillow would read the thumbnail
        return self.content(k)

    def unreadable(self) -> dict[int, str]:
        reasons = ((k, unreadable(self.title(k))) for k in range(len(self)))
        return {k: reason for k, reason in reasons if reason is not None}


def check_classes(where: str, classes: Sequence[str]) -> None:
    """Raise `DataError` if two classes differ in capital letters only: one of them is a slip, or will be on a disk that
    makes no difference."""
    known: dict[str, str] = {}
    for name in classes:
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"{where}: the classes {other} and {name} differ in capital letters only; put their images into one "
                "folder, or rename one"
            )


def numbered(names: Sequence[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """The class of each image as a number, and the classes in sorted order; (None, ()) where there are no names."""
    classes = tuple(sorted(set(names)))
    index = {name: k for k, name in enumerate(classes)}
    return (np.array([index[name] for name in names], dtype=np.int64) if classes else None), classes


def by_number(
    where: str, values: Sequence[int] | Integer[np.ndarray, "n"], names: Sequence[str] = ()
) -> tuple[Labels, tuple[str, ...]]:
    """Labels that are numbers from 0, and the names of their classes: `names`, or else the numbers.

    Raises:
        DataError: if there are other numbers, or too few names.
    """
    low, high = int(np.min(values)), int(np.max(values))
    if low < 0 or high >= _LARGEST_LABEL:
        raise DataError(
            f"{where}: labels are numbers from 0, one for each class, got {low}…{high}; number the classes, or leave "
            f"the labels out with {setting('label', WITHOUT)}"
        )
    if names and high >= len(names):
        raise DataError(f"{where}: label {high}, but names of {len(names)} classes only; name them all")
    return np.array(values, dtype=np.int64), tuple(names) or tuple(map(str, range(high + 1)))


def setting(name: str, value: str) -> str:
    """How a setting of the data is given to the commands."""
    return f"--set data.{name}={value} (encode: --{name} {value})"


def sum_of(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def in_split(where: str, files: Sequence[Path], split: str) -> list[Path]:
    """Those of the files of shards or tables that belong to `split`.

    A file belongs to the split that is a word of its name, such as photos-train-0003.tar, or the name of its folder.
    Files that name no split are "train" and "all" at the same time.

    Raises:
        DataError: if there is no such split, or some files name one and others do not.
    """
    named = {path: _named_split(path) for path in files}
    known = sorted({name for name in named.values() if name is not None})
    if not known:
        if split not in ("train", "all"):
            raise DataError(f"{where}: no split {split!r}, because no file has one in its name; ask for 'train'")
        return list(files)
    unnamed = [path.name for path, name in named.items() if name is None]
    if unnamed:
        raise DataError(
            f"{where}: some files name a split ({', '.join(known)}), and others do not: {some(unnamed)}; give a "
            "pattern of those that belong together"
        )
    if split != "all" and split not in known:
        raise DataError(f"{where}: no split {split!r}; there are {', '.join(known)} and all")
    return [path for path, name in named.items() if split in ("all", name)]


def _named_split(path: Path) -> str | None:
    words = "".join(letter if letter.isalpha() else " " for letter in path.stem.lower()).split()
    return next((word for word in (*words, path.parent.name.lower()) if word in SPLITS), None)


def arranged(
    where: str, images: Sequence[PurePosixPath], split: str, label: str | None = None, *, wrapped: bool = False
) -> dict[str, tuple[list[PurePosixPath], list[str]]]:
    """The images of `split` in their order, and the class of each (none if they have no classes), for every part of it:
    its folder, or "" where there are no such folders.

    Args:
        images: their paths, in order.
        label: `WITHOUT`: all of them, wherever they lie, without classes; `BY_FOLDER`: the first sub-folder is the
            class, however deep they lie; None: as they lie, side by side or in one folder for each class.
        wrapped: whether a folder around everything is looked through.

    Raises:
        DataError: if they lie in none of the layouts, or there is no such split.
    """
    parts: Mapping[PurePosixPath, tuple[str, ...]] = {image: image.parts for image in images}
    while wrapped and parts and min(map(len, parts.values())) > 2 and len({each[0] for each in parts.values()}) == 1:
        parts = {image: each[1:] for image, each in parts.items()}
    tops = {each[0] for each in parts.values()}
    if parts and tops <= set(SPLITS) and min(map(len, parts.values())) > 1:
        if split != "all" and split not in tops:
            raise DataError(f"{where}: no split {split!r}; there are {', '.join(sorted(tops))} and all")
        chosen = sorted(tops) if split == "all" else [split]
        groups = {top: {image: each[1:] for image, each in parts.items() if each[0] == top} for top in chosen}
    elif split not in ("train", "all"):
        raise DataError(
            f"{where}: no split {split!r}, because it is not divided; move the images to folders train and {split} in "
            "it, or ask for 'train'"
        )
    else:
        groups = {"": parts}
    found = {top: (list(group), _classes_of(where, group, label)) for top, group in groups.items()}
    if len({frozenset(names) for _, names in found.values()}) > 1:
        raise DataError(f"{where}: {', '.join(found)} do not have the same classes; load one of them")
    return found


def _classes_of(where: str, parts: Mapping[PurePosixPath, tuple[str, ...]], label: str | None) -> list[str]:
    """The class of each image, or nothing if they have none, given their paths below the folder of their split."""
    if label == WITHOUT or not parts:
        return []
    top, deep = [image for image, each in parts.items() if len(each) == 1], max(map(len, parts.values()))
    folders = list(dict.fromkeys(each[0] for each in parts.values() if len(each) > 1))
    unconditional = f"take all of them, without classes, with {setting('label', WITHOUT)}"
    if not folders:
        if label == BY_FOLDER:
            raise DataError(
                f"{where}: data.label={label} takes sub-folders as classes, and there are none; leave it out"
            )
        return []
    if top:
        raise DataError(
            f"{where}: {_images(len(top))} at the top ({top[0].name}, …) and {_images(len(parts) - len(top))} in "
            f"sub-folders ({some(folders)}); {unconditional}, or, for classes, move those at the top into their folders"
        )
    if deep > 2 and label != BY_FOLDER:
        deepest = next(image for image, each in parts.items() if len(each) == deep)
        raise DataError(
            f"{where}: images lie in folders of folders ({deepest}), so it is not certain what their classes are; "
            f"{unconditional}, or let the first sub-folder be the class ({some(folders)}) with "
            f"{setting('label', BY_FOLDER)}"
        )
    return [each[0] for each in parts.values()]


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"
