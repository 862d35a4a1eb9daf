"""Which files of a folder or an archive are its images: one rule, for training, encoding and evaluating.

A folder as people have it holds more than images: sidecars, videos, what systems leave behind. An image is a visible
file with the ending of one, wherever it lies below; everything else is passed over, counted and told. Images that
nothing here can decode (photographs of telephones and raw ones of cameras) are images all the same, so that none is
lost without a word: they cannot be read, and `unreadable` says why.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from PIL import features

from shortflow.data.conditions import CONDITION_FILES
from shortflow.data.images import EXTENSIONS, NEEDS_HEIF, reads_heif

__all__ = ["Members", "images_at", "members_among", "members_of", "unreadable"]

_HEIF = frozenset({".heic", ".heif", ".hif"})
_RAW = frozenset(
    {".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw", ".3fr", ".iiq"}
)
_IMAGES = EXTENSIONS | _HEIF | _RAW
_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"})
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Members:
    """What there is.

    Attributes:
        images: their paths below the folder, in the order that they are trained in.
        others: how many files there are that are no images, by their endings.
        hidden: how many files are hidden, or are a system's own.
        bare: folders in which there is no visible file, nor below.
        imageless: folders with files, but no image, nor below.
    """

    images: tuple[PurePosixPath, ...]
    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    bare: tuple[PurePosixPath, ...] = ()
    imageless: tuple[PurePosixPath, ...] = ()

    def note(self) -> str | None:
        """What was passed over, in a sentence; None where that is nothing but a few hidden files."""
        if not self.others and self.hidden <= len(self.images):
            return None
        kinds = [f"{count:,} {ending}" for ending, count in sorted(self.others.items(), key=lambda kv: (-kv[1], kv[0]))]
        if len(kinds) > _SHOWN:
            rest = sum(self.others.values()) - sum(count for _, count in self.others.most_common(_SHOWN))
            kinds = [*kinds[:_SHOWN], f"{rest:,} others"]
        if self.hidden:
            kinds.append(f"{self.hidden:,} hidden")
        total = sum(self.others.values()) + self.hidden
        files = "1 file that is no image" if total == 1 else f"{total:,} files that are no images"
        beside = f", beside {len(self.images):,} that are" if 0 < len(self.images) < total else ""
        return f"skipped {files}{beside}: {', '.join(kinds)}"

    def lacking(self) -> str:
        """What is said where there is no image."""
        note = self.note()
        return (
            "no image in it" + ("" if note is None else f" ({note})") + f"; images are {', '.join(sorted(EXTENSIONS))}"
        )


def members_of(folder: Path) -> Members:
    """What lies in a folder and below it; links are followed. The images are in the order of their names, folder by
    folder."""
    images: list[PurePosixPath] = []
    others: Counter[str] = Counter()
    empty: dict[bool, list[PurePosixPath]] = {False: [], True: []}  # without a visible file, and with some
    hidden = 0

    def walk(place: Path, below: PurePosixPath, above: frozenset[tuple[int, int]]) -> tuple[bool, bool]:
        """Whether there is a visible file, and whether there is an image."""
        nonlocal hidden
        visible, first = False, len(images)
        stat = place.stat()
        inside = above | {(stat.st_dev, stat.st_ino)}
        if inside == above:
            return True, False  # a link to where we come from
        with os.scandir(place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = below / entry.name
            if _is_hidden(entry.name):
                hidden += not entry.is_dir()
            elif entry.is_dir():
                files, has_images = walk(Path(entry.path), name, inside)
                visible |= files
                if not has_images:
                    empty[files].append(name)
            elif entry.name not in CONDITION_FILES:
                visible = True
                if _is_image(name):
                    images.append(name)
                else:
                    others[_ending(name)] += 1
        return visible, len(images) > first

    walk(folder, PurePosixPath(), frozenset())
    return Members(
        images=tuple(sorted(images, key=lambda path: path.parts)),
        others=others,
        hidden=hidden,
        bare=tuple(empty[False]),
        imageless=tuple(empty[True]),
    )


def members_among(names: Iterable[str]) -> Members:
    """What the files of an archive are. The images are in the order of their names."""
    images: list[str] = []
    others: Counter[str] = Counter()
    hidden = 0
    for name in names:
        path = PurePosixPath(name)
        if any(map(_is_hidden, path.parts)):
            hidden += 1
        elif _is_image(path):
            images.append(name)
        else:
            others[_ending(path)] += 1
    return Members(images=tuple(map(PurePosixPath, sorted(images))), others=others, hidden=hidden)


def images_at(folder: Path) -> int:
    """How many images lie in a folder, and not below it."""
    return sum(_is_image(path) and not _is_hidden(path.name) for path in folder.iterdir())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _is_image(path: PurePath) -> bool:
    return path.suffix.lower() in _IMAGES


def _ending(path: PurePosixPath) -> str:
    return path.suffix.lower() or "without an ending"


def unreadable(name: str) -> str | None:
    """Why an image with such a name cannot be read here, and what helps; None where it can."""
    ending = PurePosixPath(name).suffix.lower()
    if ending in _RAW:
        return "raw data of a camera; develop it to JPEG or TIFF"
    if ending in _HEIF and not reads_heif():
        return NEEDS_HEIF
    if ending == ".avif" and not ("avif" in features.modules and features.check("avif")):
        return "AVIF needs Pillow 11.3: pip install -U pillow; or convert it to JPEG"
    return None
