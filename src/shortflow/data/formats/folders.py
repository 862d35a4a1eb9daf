"""A folder of image files. The layout is the meaning: images side by side are unconditional, one sub-folder a class is
conditional (classes in sorted order), and sub-folders named train, test, val or validation are splits, each in one of
the two layouts. Where images lie otherwise, the label says what is meant. What is an image, `members` knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shortflow.data.conditions import CONDITION_FILES, Conditions, load_conditions
from shortflow.data.formats.base import WITHOUT, Files, arranged, check_classes, numbered, setting, sum_of
from shortflow.data.formats.members import Members, members_of
from shortflow.data.images import some
from shortflow.errors import DataError

__all__ = ["open_folder"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Folder(Files):
    folder: Path
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def title(self, k: int) -> str:
        return self.paths[k].relative_to(self.folder).as_posix()

    def content(self, k: int) -> Path:
        return self.paths[k]

    def listing(self, rows: range) -> str:
        return sum_of(f"{self.title(k)} {self.paths[k].stat().st_size}" for k in rows)

    def identity(self) -> str:
        stats = (path.stat() for path in self.paths)
        lines = (f"{self.title(k)} {stat.st_size} {stat.st_mtime_ns}" for k, stat in enumerate(stats))
        return f"{self.folder.resolve()} {sum_of(lines)}"


def open_folder(folder: Path, split: str, resolution: int | None, label: str | None = None) -> Files:
    """The images of `folder` (see the module). Nothing is read but names.

    Args:
        label: see `shortflow.data.formats.base.arranged`.

    Raises:
        DataError: names the folder or up to five files at fault, and the remedy.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {what}; give the path of a folder of images")
    there = members_of(folder)
    if not there.images:
        raise DataError(f"{folder}: {there.lacking()}")
    parts = arranged(str(folder), there.images, split, label)
    labels, classes = numbered([name for _, names in parts.values() for name in names])
    check_classes(str(folder), classes)
    notes = [f"{folder}: {note}" for note in [there.note()] if note is not None]
    if classes:
        notes += _without_images(folder, there, [PurePosixPath(top) for top in parts])
    inside = {folder / top: images if not classes else [] for top, (images, _) in parts.items()}
    return _Folder(
        where=str(folder),
        name=folder.resolve().name,
        split=split,
        labels=labels,
        classes=classes,
        resolution=resolution,
        conditions=_conditions(inside, folder),
        notes=tuple(notes),
        folder=folder,
        paths=[folder / image for images, _ in parts.values() for image in images],
    )


def _without_images(folder: Path, there: Members, parts: Sequence[PurePosixPath]) -> list[str]:
    """A note of the folders that would be classes if there were an image in them.

    Raises:
        DataError: if there is not even another file in one: a copy that was not finished, or a slip.
    """
    bare = [each for each in there.bare if each.parent in parts]
    if bare:
        raise DataError(
            f"{folder / bare[0]}: a class without an image; add images or remove the folder, or leave classes out with "
            f"{setting('label', WITHOUT)}"
        )
    others = [str(each) for each in there.imageless if each.parent in parts]
    return [f"{folder}: {some(others)} {'has' if len(others) == 1 else 'have'} no image, so no class"] if others else []


def _conditions(inside: Mapping[Path, Sequence[PurePosixPath]], folder: Path) -> Conditions | None:
    """What images are told by, where files beside them say so; given the images of each part, if they have no classes.

    Raises:
        DataError: if the files and the images do not belong together, or the images lie in sub-folders.
    """
    names: list[tuple[Path, list[str]]] = []
    for part, images in inside.items():
        found = [name for name in CONDITION_FILES if (part / name).exists()]
        if found and not all(folder / image == part / image.name for image in images or [PurePosixPath("a/class")]):
            raise DataError(
                f"{part}: there are class folders and conditions; move all images to the top of it, or remove "
                f"{', '.join(found)}"
            )
        names.append((part, [image.name for image in images]))
    return load_conditions(names)
