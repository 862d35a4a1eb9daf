"""NAME.zip: the layouts of folders inside a zip file; one folder around everything is looked through. What is an image,
`members` knows. Nothing is unpacked to the disk."""

import io
import threading
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from shortflow.data.formats.base import LARGEST_IMAGE, Files, arranged, check_classes, numbered, sum_of
from shortflow.data.formats.members import members_among
from shortflow.errors import DataError

__all__ = ["open_zip"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Zipped(Files):
    path: Path
    archive: zipfile.ZipFile
    entries: Sequence[zipfile.ZipInfo]
    _lock: Any = field(init=False, repr=False, default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.entries)

    def title(self, k: int) -> str:
        return self.entries[k].filename

    def content(self, k: int) -> io.BytesIO:
        entry = self.entries[k]
        if entry.file_size > LARGEST_IMAGE:
            raise ValueError(f"{entry.file_size:,} bytes are no image")
        with self._lock:  # one file handle for all threads
            return io.BytesIO(self.archive.read(entry))

    def listing(self, rows: range) -> str:
        return sum_of(f"{self.title(k)} {self.entries[k].file_size} {self.entries[k].CRC:08x}" for k in rows)

    def identity(self) -> str:
        return f"{self.path.resolve()} {self.listing(range(len(self)))}"


def open_zip(path: Path, split: str, resolution: int | None, label: str | None = None) -> Files:
    """The images of a zip file (see the module).

    Args:
        label: see `shortflow.data.formats.base.arranged`.

    Raises:
        DataError: if it is none, or its images lie in none of the layouts.
    """
    try:
        archive = zipfile.ZipFile(path)
        entries = {PurePosixPath(e.filename): e for e in archive.infolist() if not e.is_dir()}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no zip file, or only a part of one ({error}); fetch it again") from error
    there = members_among(entry.filename for entry in entries.values())
    if not there.images:
        raise DataError(f"{path}: {there.lacking()}")
    parts = arranged(str(path), there.images, split, label, wrapped=True)
    pairs = sorted(((str(image), name) for images, names in parts.values() for image, name in _paired(images, names)))
    labels, classes = numbered([name for _, name in pairs if name])
    check_classes(str(path), classes)
    note = there.note()
    return _Zipped(
        where=str(path),
        name=path.stem,
        split=split,
        labels=labels,
        classes=classes,
        resolution=resolution,
        notes=() if note is None else (f"{path}: {note}",),
        path=path,
        archive=archive,
        entries=[entries[PurePosixPath(image)] for image, _ in pairs],
    )


def _paired(images: Sequence[PurePosixPath], names: Sequence[str]) -> Iterable[tuple[PurePosixPath, str]]:
    return zip(images, names or [""] * len(images), strict=True)
