"""Data sets of the Hugging Face library `datasets`: the one door to it for images.

    hf:NAME, hf:NAME:CONFIG     of the hub (or its cache on this disk)
    FOLDER                      as `save_to_disk` has written it
    NAME.parquet, a folder or a pattern of such files     as the hub has them
    FOLDER with metadata.csv, .jsonl or .parquet          images beside a table of their labels ("imagefolder")

The image is the one column of images. The label is the one column of class labels, which knows the names; else a column
called label, labels, class or cls, of numbers or names; else there is none. Images are decoded here, as those of a
folder are, and not by `datasets`. Nothing is executed: data sets that need a script of their own are refused.
"""

import contextlib
import importlib
import importlib.util
import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortflow.data.formats.base import (
    LARGEST_IMAGE,
    SPLITS,
    WITHOUT,
    Files,
    Labels,
    by_number,
    in_split,
    numbered,
    setting,
    sum_of,
)
from shortflow.data.images import some
from shortflow.errors import DataError

__all__ = ["HUB", "METADATA", "is_saved", "open_hub", "open_metadata", "open_parquet", "open_saved"]

HUB = "hf:"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_LABELS = ("label", "labels", "class", "cls")
_SAVED = ("dataset_dict.json", "dataset_info.json")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table(Files):
    """Rows of a `datasets.Dataset` whose image column is not decoded."""

    rows: Any
    column: str
    stamp: str

    def __len__(self) -> int:
        return len(self.rows)

    def title(self, k: int) -> str:
        return f"row {k}"

    def content(self, k: int) -> Path | io.BytesIO:
        found = self.rows[k][self.column]
        content, path = (found, None) if isinstance(found, bytes) else (found.get("bytes"), found.get("path"))
        if content is not None:
            if len(content) > LARGEST_IMAGE:
                raise ValueError(f"{len(content):,} bytes are no image")
            return io.BytesIO(content)
        if not path or not Path(path).is_file():
            raise ValueError(f"neither bytes nor a file on this disk ({path})")
        return Path(path)

    def listing(self, rows: range) -> str:
        compute: Any = importlib.import_module("pyarrow.compute")
        column = self.rows.with_format("arrow")[rows.start : rows.stop][self.column]
        lines = []
        for chunk in column.chunks if hasattr(column, "chunks") else [column]:
            plain = not hasattr(chunk.type, "num_fields") or chunk.type.num_fields == 0
            sizes = compute.binary_length(chunk if plain else compute.struct_field(chunk, "bytes")).to_pylist()
            paths = [None] * len(sizes) if plain else compute.struct_field(chunk, "path").to_pylist()
            for size, path in zip(sizes, paths, strict=True):
                file = Path(path) if size is None and path else None
                lines.append(f"{Path(path).name if path else None} {file.stat().st_size if file else size}")
        return sum_of(lines)

    def identity(self) -> str:
        return self.stamp


# ------------------------------------------------------------------------------------------------------- where they are


def open_hub(given: str, split: str, resolution: int | None, image: str | None, label: str | None) -> Files:
    """The images of a data set of the hub: hf:NAME or hf:NAME:CONFIG.

    Raises:
        DataError: if it is not there, the hub cannot be reached, or `datasets` is not installed.
    """
    name, _, config = given.removeprefix(HUB).partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or ".." in name:
        raise DataError(
            f"{given!r} names no data set of the hub; give hf:NAME or hf:OWNER/NAME, and a configuration after another "
            "colon. Local ones are given by their path, without hf:"
        )
    if Path(name).exists():
        raise DataError(f"{given!r}: there is a file or folder {name} here; give its path without hf:, or move it away")
    datasets = _package(given)
    readers: Any = importlib.import_module("datasets.packaged_modules")
    if name in getattr(readers, "_PACKAGED_DATASETS_MODULES", ()):
        raise DataError(f"{given!r}: {name} is a reader of files, which would read the folder here; give their path")
    try:
        with _quietly(datasets):
            found = _loaded(datasets, split, name, config or None, **_without_scripts(datasets))
    except DataError:
        raise
    except Exception as error:  # whatever network, hub or cache raise: the remedy is the same
        raise DataError(
            f"{given} ({split}): the hub did not give it ({_first_line(error)}). Check the name at "
            f"https://huggingface.co/datasets/{name}; where there is no network, fetch it elsewhere (hf download "
            f"--repo-type dataset {name} --local-dir FOLDER), and give the folder with its .parquet files"
        ) from error
    return _table(given, name.rpartition("/")[2], found, split, resolution, image, label)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written the folder."""
    return any((folder / name).is_file() for name in _SAVED)


def open_saved(folder: Path, split: str, resolution: int | None, image: str | None, label: str | None) -> Files:
    """The images of a data set that `save_to_disk` has written."""
    datasets = _package(str(folder))
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged copy makes the readers raise
        raise DataError(
            f"{folder}: this data set of `datasets` cannot be read ({_first_line(error)}); save it again (save_to_disk)"
        ) from error
    if isinstance(found, dict):
        found = _chosen(datasets, str(folder), found, split)
    elif split not in ("train", "all"):
        raise DataError(f"{folder}: no split {split!r}, because the data set is not divided; ask for 'train'")
    return _table(str(folder), folder.resolve().name, found, split, resolution, image, label)


def open_parquet(
    where: str, files: Sequence[Path], split: str, resolution: int | None, image: str | None, label: str | None
) -> Files:
    """The images of parquet files."""
    chosen = in_split(where, files, split)
    datasets = _package(where)
    name = chosen[0].stem if len(files) == 1 else chosen[0].resolve().parent.name
    try:
        with _quietly(datasets):
            found = datasets.load_dataset("parquet", data_files=[str(path) for path in chosen], split="train")
    except Exception as error:
        raise DataError(
            f"{where}: these parquet files cannot be read ({_first_line(error)}); write or fetch them again"
        ) from error
    return _table(where, name, found, split, resolution, image, label)


def open_metadata(folder: Path, split: str, resolution: int | None, image: str | None, label: str | None) -> Files:
    """The images of a folder with a table beside them that says what they are."""
    datasets = _package(str(folder))
    try:
        with _quietly(datasets):
            found = _loaded(datasets, split, "imagefolder", data_dir=str(folder.resolve()))
    except DataError:
        raise
    except Exception as error:
        table = next((name for name in METADATA if (folder / name).is_file()), METADATA[0])
        raise DataError(
            f"{folder}: {table} and the images do not fit ({_first_line(error)}); it needs a column file_name"
        ) from error
    return _table(str(folder), folder.resolve().name, found, split, resolution, image, label)


def _package(what: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{what}: this needs the package `datasets`, which is not installed: pip install 'shortflow[data]'"
        )
    return importlib.import_module("datasets")


def _without_scripts(datasets: Any) -> dict[str, Any]:
    """Versions before 4 could execute a data set's own script, and ask on a terminal unless told not to."""
    return {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}


@contextlib.contextmanager
def _quietly(datasets: Any) -> Iterator[None]:
    """Without its bars and remarks."""
    shown, level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def _loaded(datasets: Any, split: str, *what: Any, **how: Any) -> Any:
    """`load_dataset` of one split, or of all of them, one after the other."""
    if split != "all":
        return datasets.load_dataset(*what, **how, split=split)
    return _chosen(datasets, str(what[0]), datasets.load_dataset(*what, **how), split)


def _chosen(datasets: Any, where: str, parts: Any, split: str) -> Any:
    if split == "all":
        return datasets.concatenate_datasets([parts[name] for name in sorted(parts, key=_rank)])
    if split not in parts:
        raise DataError(f"{where}: no split {split!r}; there are {', '.join(parts)} and all")
    return parts[split]


def _rank(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


# -------------------------------------------------------------------------------------------------------------- columns


def _table(
    where: str, name: str, found: Any, split: str, resolution: int | None, image: str | None, label: str | None
) -> Files:
    """The source of the rows of a `datasets.Dataset`."""
    if len(found) == 0:
        raise DataError(f"{where}: the split {split!r} has no rows")
    column = _image_column(where, found.features, image)
    labels, classes = _labels(where, found, label, column)
    datasets: Any = importlib.import_module("datasets")
    rows = found.select_columns([column])
    if isinstance(found.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    files = [Path(each["filename"]) for each in found.cache_files]
    stamps = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return _Table(
        where=where,
        name=name,
        split=split,
        labels=labels,
        classes=classes,
        resolution=resolution,
        rows=rows,
        column=column,
        stamp=sum_of([where, column, found._fingerprint, *stamps]),
    )


def _image_column(where: str, features: Any, image: str | None) -> str:
    kinds = {name: _kind(feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "image"] or [
        name for name, kind in kinds.items() if kind == "bytes"
    ]
    columns = ", ".join(kinds)
    if image is not None:
        if kinds.get(image) not in ("image", "bytes"):
            what = "is no column of images" if image in kinds else "is no column"
            raise DataError(f"{where}: {image!r} {what}; columns are {columns}, images {', '.join(images) or 'none'}")
        return image
    if len(images) != 1:
        if not images:
            raise DataError(f"{where}: no column of images among {columns}; give a table that has one")
        raise DataError(
            f"{where}: several columns of images ({', '.join(images)}); choose one with {setting('image', 'NAME')}"
        )
    return images[0]


def _kind(feature: Any) -> str:
    """ "image", "bytes", "classes", "number", "text", or the name of another type."""
    name = type(feature).__name__
    if name == "Image" or (isinstance(feature, dict) and {"bytes", "path"} == set(feature)):
        return "image"
    if name == "ClassLabel":
        return "classes"
    dtype = str(getattr(feature, "dtype", name))
    if dtype in ("binary", "large_binary"):
        return "bytes"
    if dtype in ("string", "large_string"):
        return "text"
    return "number" if re.fullmatch(r"u?int\d+", dtype) else dtype


def _labels(where: str, found: Any, label: str | None, image: str) -> tuple[Labels | None, tuple[str, ...]]:
    if label == WITHOUT:
        return None, ()
    kinds = {name: _kind(feature) for name, feature in found.features.items() if name != image}
    usable = [name for name, kind in kinds.items() if kind in ("classes", "number", "text")]
    if label is not None:
        if label not in usable:
            raise DataError(
                f"{where}: {label!r} is no column of labels (numbers, names or ClassLabel); there are "
                f"{', '.join(usable) or 'none'}"
            )
        column = label
    else:
        known = [name for name, kind in kinds.items() if kind == "classes"]
        if len(known) > 1:
            raise DataError(
                f"{where}: several columns of classes ({', '.join(known)}); choose one with "
                f"{setting('label', 'NAME')}, or none"
            )
        named = [name for name in _LABELS if name in usable]
        if not known and not named:
            return None, ()
        column = (known or named)[0]
    values = found.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    nothing = (None, -1) if kinds[column] == "classes" else (None,)
    lacking = [f"row {k}" for k, value in enumerate(values) if value in nothing]
    if lacking:
        raise DataError(
            f"{where}: {len(lacking)} of {len(values)} rows have no label in {column!r}: {some(lacking)}; choose "
            f"another column or split, or leave the labels out with {setting('label', WITHOUT)}"
        )
    if kinds[column] == "text":
        return numbered(values)
    return by_number(where, values, found.features[column].names if kinds[column] == "classes" else ())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
