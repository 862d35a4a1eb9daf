"""NAME.zip: the layouts of folders inside a zip file; one folder around everything is looked through, and texts are
left alone. Nothing is unpacked to the disk."""

import io
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from shortflow.data.formats.base import LARGEST_IMAGE, Files, arranged, check_classes, numbered, sum_of
from shortflow.data.images import EXTENSIONS
from shortflow.errors import DataError

__all__ = ["hidden", "open_zip"]

_TEXTS = (".csv", ".html", ".json", ".md", ".tsv", ".txt", ".xml")


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


def open_zip(path: Path, split: str, resolution: int | None) -> Files:
    """The images of a zip file (see the module).

    Raises:
        DataError: if it is none, or holds something else.
    """
    try:
        archive = zipfile.ZipFile(path)
        entries = {e.filename: e for e in archive.infolist() if not e.is_dir() and not hidden(e.filename)}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no zip file, or only a part of one ({error}); fetch it again") from error
    strange = [name for name in entries if PurePosixPath(name).suffix.lower() not in EXTENSIONS]
    if strange:
        raise DataError(
            f"{path}: {len(strange)} files that are no images ({strange[0]}, …); put all images at the top "
            "(unconditional), or all into one folder for each class"
        )
    chosen, names = arranged(str(path), list(entries), split)
    labels, classes = numbered(names)
    check_classes(str(path), classes)
    return _Zipped(
        where=str(path),
        name=path.stem,
        split=split,
        labels=labels,
        classes=classes,
        resolution=resolution,
        path=path,
        archive=archive,
        entries=[entries[name] for name in chosen],
    )


def hidden(name: str) -> bool:
    """Files that systems leave in folders, and the texts that published archives have beside their images."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower() in _TEXTS or any(
        part.startswith(".") or part.lower() in ("thumbs.db", "desktop.ini", "__macosx") for part in parts
    )
