"""WebDataset shards: tar files in which the files of a sample follow each other and share the name up to the first dot.

    cats/0001.jpg   cats/0001.cls   cats/0001.json     sample "cats/0001" with the fields jpg, cls and json

The image is the one field that is a picture; the label is `cls` (a number, or a name), or `label` in `json`. Numbers
are named by the lines of classnames.txt or classes.txt beside the shards, or in the folder above, if there is one.
Where no sample has a label the folders inside the archive are the classes, as in a zip file.

Only headers and labels are read when a source is opened, and images where they lie. Nothing is unpacked or executed.
"""

import io
import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from shortflow.data.formats.base import (
    BY_FOLDER,
    LARGEST_IMAGE,
    WITHOUT,
    Files,
    Labels,
    arranged,
    by_number,
    in_split,
    numbered,
    setting,
    sum_of,
)
from shortflow.data.images import EXTENSIONS, some
from shortflow.errors import DataError

__all__ = ["open_shards"]

_NAMES = ("classnames.txt", "classes.txt")
_LARGEST_TEXT = 2**20  # bytes of a label


class _Place(NamedTuple):
    """The bytes of a file in a shard."""

    offset: int
    size: int


@dataclass(kw_only=True)
class _Sample:
    key: str
    images: dict[str, _Place] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shards(Files):
    paths: Sequence[Path]
    titles: Sequence[str]
    places: Int64[np.ndarray, "n 3"]

    def __len__(self) -> int:
        return len(self.places)

    def title(self, k: int) -> str:
        return f"{self.paths[self.places[k, 0]].name}: {self.titles[k]}"

    def content(self, k: int) -> io.BytesIO:
        shard, offset, size = map(int, self.places[k])
        if size > LARGEST_IMAGE:
            raise ValueError(f"{size:,} bytes are no image")
        with open(self.paths[shard], "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def listing(self, rows: range) -> str:
        return sum_of(f"{self.title(k)} {self.places[k, 2]}" for k in rows)

    def identity(self) -> str:
        stats = ((path.resolve(), path.stat()) for path in self.paths)
        return sum_of(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)


def open_shards(
    where: str,
    paths: Sequence[Path],
    split: str,
    resolution: int | None,
    *,
    image: str | None = None,
    label: str | None = None,
) -> Files:
    """The images of tar files (see the module).

    Args:
        image: the field that is the image, such as jpg or target.png.
        label: the field that is the label, or the entry of `json`.

    Raises:
        DataError: names the shard or the sample at fault, and the remedy.
    """
    chosen = in_split(where, paths, split)
    found = _Index(where=where, image=image, label=label)
    for number, path in enumerate(chosen):
        for sample in _samples(path, label):
            found.add(sample, number)
    if not found.titles:
        seen = f"images are {', '.join(sorted(found.seen))}" if found.seen else f"images end in {_endings()}"
        raise DataError(f"{where}: no {'image' if image is None else f'field {image!r}'} in its samples; {seen}")
    order, (labels, classes) = range(len(found.titles)), found.labels(chosen[0].parent)
    if labels is None and label in (None, BY_FOLDER) and len(set(found.titles)) == len(found.titles):
        depths = {len(PurePosixPath(title).parts) for title in found.titles}
        if label == BY_FOLDER or (len(depths) == 1 and depths != {1}):
            place = {PurePosixPath(title): k for k, title in enumerate(found.titles)}
            parts = arranged(where, list(place), "all", label, wrapped=True).values()
            names = {image: name for images, classes in parts for image, name in zip(images, classes, strict=True)}
            chosen_images = sorted(names, key=str)
            order = [place[image] for image in chosen_images]
            labels, classes = numbered([names[image] for image in chosen_images])
    return _Shards(
        where=where,
        name=_name(chosen),
        split=split,
        labels=labels,
        classes=classes,
        resolution=resolution,
        paths=chosen,
        titles=[found.titles[k] for k in order],
        places=np.array(found.places, dtype=np.int64).reshape(-1, 3)[order],
    )


@dataclass(kw_only=True)
class _Index:
    """What is kept of the samples: of each the title, (shard, offset, size) of its image, and its label."""

    where: str
    image: str | None
    label: str | None
    titles: list[str] = field(default_factory=list)
    places: array = field(default_factory=lambda: array("q"))
    found: list[int | str | None] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)

    def add(self, sample: _Sample, shard: int) -> None:
        self.seen |= sample.images.keys()
        self.fields |= sample.texts.keys()
        if self.image is None and len(sample.images) > 1:
            raise DataError(
                f"{self.where}: {sample.key} has several images, {', '.join(sample.images)}; choose with "
                f"{setting('image', 'NAME')}"
            )
        name = self.image or next(iter(sample.images), "")
        if name in sample.images:
            self.titles.append(f"{sample.key}.{name}")
            self.places.extend((shard, *sample.images[name]))
            self.found.append(None if self.label == WITHOUT else _label(self.where, sample, self.label))

    def labels(self, folder: Path) -> tuple[Labels | None, tuple[str, ...]]:
        """The classes of all samples, or of none; `folder` may have their names."""
        lacking = [title for title, value in zip(self.titles, self.found, strict=True) if value is None]
        if len(lacking) == len(self.titles):
            if self.label not in (None, WITHOUT, BY_FOLDER):
                fields = ", ".join(sorted(self.fields)) or "there are none"
                raise DataError(
                    f"{self.where}: no sample has the label {self.label!r}; fields beside the images: {fields}"
                )
            return None, ()
        if lacking:
            raise DataError(
                f"{self.where}: {len(lacking)} of {len(self.titles)} samples have no label: {some(lacking)}; write the "
                f"shards again with labels for all, or leave them all out with {setting('label', WITHOUT)}"
            )
        if not all(isinstance(value, int) for value in self.found):
            return numbered([str(value) for value in self.found])
        return by_number(self.where, self.found, _class_names(folder))  # type: ignore[arg-type]


def _endings() -> str:
    return ", ".join(sorted(EXTENSIONS))


def _name(paths: Sequence[Path]) -> str:
    """The file without its ending, or the folder that several are in."""
    return paths[0].stem if len(paths) == 1 else paths[0].resolve().parent.name


# -------------------------------------------------------------------------------------------------------------- reading


def _samples(path: Path, label: str | None) -> Iterator[_Sample]:
    """The samples of a shard in its order."""
    current: _Sample | None = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, name = _key(member.name)
                if not name or not (member.isreg() or member.islnk() or member.issym()):
                    continue
                if current is None or current.key != key:
                    if current is not None:
                        yield current
                    current = _Sample(key=key)
                _add(current, name, member, archive, label)
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: no tar file, or only a part of one ({error}); fetch it again, and unpack .tar.gz and .tgz files "
            "to .tar first"
        ) from error
    if current is not None:
        yield current


def _key(name: str) -> tuple[str, str]:
    """(key of the sample, field) of a file: its name up to the first dot, and the rest; no field if it is hidden."""
    path = PurePosixPath(name)
    parts = path.parts[1:] if path.parts[:1] == (".",) else path.parts
    if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return name, ""
    stem, _, rest = parts[-1].partition(".")
    return "/".join((*parts[:-1], stem)), rest.lower()


def _add(sample: _Sample, name: str, member: tarfile.TarInfo, archive: tarfile.TarFile, label: str | None) -> None:
    ending = f".{name.rpartition('.')[2]}"
    if ending not in EXTENSIONS and name not in ("cls", "json", label):
        return
    if not member.isreg() or member.issparse():
        raise ValueError(f"{member.name} is a link; write the shards again with whole files")
    if name in sample.images or name in sample.texts:
        raise ValueError(f"{sample.key} has {name} twice")
    if ending in EXTENSIONS:
        sample.images[name] = _Place(member.offset_data, member.size)
        return
    if member.size > _LARGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size:,} bytes, which is no label")
    file = archive.extractfile(member)
    assert file is not None
    try:
        sample.texts[name] = file.read().decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name} is no text") from error


# --------------------------------------------------------------------------------------------------------------- labels


def _label(where: str, sample: _Sample, label: str | None) -> int | str | None:
    """The label of a sample: a number, a name, or None if there is none."""
    name = label or "cls"
    if name in sample.texts and name != "json":
        text = sample.texts[name]
        return int(text) if re.fullmatch(r"-?\d{1,18}", text) else text or None
    if "json" not in sample.texts:
        return None
    try:
        entries: Any = json.loads(sample.texts["json"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {sample.key}.json is no JSON ({error}); write the shards again") from error
    value = entries.get(label or "label") if isinstance(entries, dict) else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise DataError(
            f"{where}: {sample.key}.json has the label {value!r:.50}, which is neither a number nor a name; choose "
            f"another entry with {setting('label', 'NAME')}, or none"
        )
    return value


def _class_names(folder: Path) -> tuple[str, ...]:
    files = [path / name for path in (folder, folder.resolve().parent) for name in _NAMES]
    found = next((path for path in files if path.is_file()), None)
    if found is None:
        return ()
    lines = tuple(line.strip() for line in found.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(set(lines)) != len(lines):
        raise DataError(f"{found} names a class twice; give each class a name of its own")
    return lines
