"""A folder of image files. The layout is the meaning: images side by side are unconditional, one sub-folder a class is
conditional (classes in sorted order), and sub-folders named train, test, val or validation are splits, each in one of
the two layouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shortflow.data.conditions import CONDITION_FILES, Conditions, load_conditions
from shortflow.data.formats.base import SPLITS, Files, check_classes, numbered, sum_of
from shortflow.data.images import EXTENSIONS, some
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


def open_folder(folder: Path, split: str, resolution: int | None) -> Files:
    """The images of `folder` (see the module). Nothing is read but names.

    Raises:
        DataError: names the folder or up to five files at fault, and the remedy.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {what}; give the path of a folder of images")
    parts = _split_folders(folder, split)
    scans = [_scan(part) for part in parts]
    if len({classes for _, _, classes in scans}) > 1:
        raise DataError(f"{folder}: {', '.join(p.name for p in parts)} do not have the same classes; load one of them")
    labels, classes = numbered([name for _, names, _ in scans for name in names])
    check_classes(str(folder), classes)
    inside = {part: files if not classes else [] for part, (files, _, classes) in zip(parts, scans, strict=True)}
    return _Folder(
        where=str(folder),
        name=folder.resolve().name,
        split=split,
        labels=labels,
        classes=classes,
        resolution=resolution,
        conditions=_conditions(inside),
        folder=folder,
        paths=[path for files, _, _ in scans for path in files],
    )


def _conditions(inside: Mapping[Path, Sequence[Path]]) -> Conditions | None:
    """What images are told by, where files beside them say so; given those that lie at the top of each folder.

    Raises:
        DataError: if the files and the images do not belong together, or the images lie in class folders.
    """
    for part, files in inside.items():
        found = [name for name in CONDITION_FILES if (part / name).exists()]
        if found and not files:
            raise DataError(
                f"{part}: there are class folders and conditions; move all images to the top of it, or remove "
                f"{', '.join(found)}"
            )
    return load_conditions([(part, [path.name for path in files]) for part, files in inside.items()])


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini", "__macosx", *CONDITION_FILES)


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Visible files and sub-folders of a folder, each sorted by name."""
    entries = sorted((p for p in folder.iterdir() if not _hidden(p)), key=lambda p: p.name)
    return [p for p in entries if not p.is_dir()], [p for p in entries if p.is_dir()]


def _split_folders(folder: Path, split: str) -> list[Path]:
    """The folders to read for `split`: those of the splits, or the folder itself if it has none."""
    files, folders = _entries(folder)
    if folders and not files and all(p.name in SPLITS for p in folders):
        if split == "all":
            return folders
        if split not in {p.name for p in folders}:
            raise DataError(f"{folder}: no split {split!r}; there are {', '.join(p.name for p in folders)} and all")
        return [folder / split]
    if split not in ("train", "all"):
        raise DataError(
            f"{folder}: no split {split!r}, because the folder is not divided; "
            f"move the images to {folder / 'train'} and {folder / split}, or ask for 'train'"
        )
    return [folder]


def _scan(folder: Path) -> tuple[list[Path], list[str], tuple[str, ...]]:
    """(files, class of each file, classes) of a flat folder (no classes) or of a folder of class folders."""
    files, folders = _entries(folder)
    _check_extensions(folder, files)
    if not folders:
        if not files:
            raise DataError(f"{folder}: no image in it; images are {', '.join(sorted(EXTENSIONS))}")
        return files, [], ()
    if files:
        raise DataError(
            f"{folder}: {len(files)} images ({files[0].name}, …) lie beside {len(folders)} sub-folders "
            f"({folders[0].name}, …); keep all images at the top (unconditional) or all in sub-folders (classes)"
        )
    paths: list[Path] = []
    names: list[str] = []
    for sub in folders:
        inside, deeper = _entries(sub)
        if deeper:
            raise DataError(f"{deeper[0]}: a folder inside a class folder; put the images directly into {sub}")
        _check_extensions(sub, inside)
        if not inside:
            raise DataError(f"{sub}: a class without an image; add images or remove the folder")
        paths += inside
        names += [sub.name] * len(inside)
    return paths, names, tuple(sub.name for sub in folders)


def _check_extensions(folder: Path, files: list[Path]) -> None:
    strange = [p for p in files if p.suffix.lower() not in EXTENSIONS]
    if strange:
        raise DataError(
            f"{folder}: {len(strange)} files are not images: {some([p.name for p in strange])}; "
            f"move them away, or convert them to one of {', '.join(sorted(EXTENSIONS))}"
        )
