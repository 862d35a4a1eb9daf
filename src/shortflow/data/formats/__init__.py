"""Every form in which images lie on a disk or a hub, as one: a `Source`.

    a folder                 of image files: flat, one sub-folder a class, or train/ and test/ of these; or any depth
    NAME.zip                 the same layouts inside a zip file
    NAME.npz, NAME.npy       an array of images, and labels
    NAME.tar                 WebDataset shards: also a folder of them, or a pattern such as shards/{000..009}.tar
    NAME.parquet             tables of images: also a folder of them, or a pattern
    a saved data set         a folder that `datasets.Dataset.save_to_disk` has written
    a folder and metadata    images beside metadata.csv, metadata.jsonl or metadata.parquet
    hf:NAME, hf:NAME:CONFIG  a data set of the Hugging Face hub

Which images there are, and in which order, is a function of the source alone. Nothing is unpickled or executed.
"""

import glob
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shortflow.data.formats.archives import open_zip
from shortflow.data.formats.arrays import Arrays, open_arrays
from shortflow.data.formats.base import BY_FOLDER, SPLITS, WITHOUT, Skipped, Source, setting
from shortflow.data.formats.folders import open_folder
from shortflow.data.formats.members import images_at
from shortflow.data.formats.shards import open_shards
from shortflow.data.formats.tables import (
    HUB,
    METADATA,
    is_saved,
    open_hub,
    open_metadata,
    open_parquet,
    open_saved,
)
from shortflow.data.images import Crop, check_square, some
from shortflow.errors import DataError

__all__ = [
    "HUB",
    "SPLITS",
    "WITHOUT",
    "Arrays",
    "Skipped",
    "Source",
    "expanded",
    "found_at",
    "is_set",
    "is_source",
    "open_folder",
    "open_path",
    "setting",
]

_SETS = (".tar", ".parquet")  # files of many images, of which several make one set
_LONGEST = 1_000_000  # files that a pattern stands for


def is_source(given: str) -> bool:
    """Whether this can only be images: of the hub, a pattern, or a file of images."""
    path = Path(given).expanduser()
    ending = path.suffix.lower()
    return given.startswith(HUB) or (ending in (".zip", ".npz", ".npy", *_SETS) and not path.is_dir())


def is_set(given: str) -> bool:
    """Whether there are shards or tables, or they lie elsewhere, as `open_path` will say."""
    path = Path(given).expanduser()
    if path.is_dir():
        return is_saved(path) or bool(_sets_in(path)) or _listed(path)
    return given.startswith(HUB) or _remote(given) or (path.suffix.lower() in _SETS and found_at(given))


def found_at(given: str) -> bool:
    """Whether there is something at the path or the pattern, or it lies elsewhere, as `open_path` will say."""
    return given.startswith(HUB) or _remote(given) or Path(given).expanduser().exists() or bool(expanded(given))


def _remote(given: str) -> bool:
    """Whether it is an address, or a command, as WebDataset's own reader takes them."""
    return "://" in given or given.startswith("pipe:")


def open_path(
    given: str,
    split: str = "train",
    *,
    resolution: int | None = None,
    crop: Crop = "centre",
    image: str | None = None,
    label: str | None = None,
) -> Source:
    """The images at a path, of a pattern, or of the hub (see the module).

    Args:
        split: which of its splits.
        resolution: side of the squares in pixels. None: as they are.
        crop: how images become squares, see `shortflow.data.images.square`.
        image, label: of shards and tables, the field or column with the image, and that with the label; None: found.
            The label "none" leaves labels out, of every source; of folders and zip files it takes all images, however
            deep they lie. The label "folder" takes first sub-folders as classes, however deep images lie in them.

    Raises:
        DataError: names what is wrong, and the remedy.
    """
    check_square(resolution, crop)
    source = replace(_opened(given, split, resolution, image, label), crop=crop)
    return replace(source, labels=None, classes=()) if label == WITHOUT else source


def _opened(given: str, split: str, resolution: int | None, image: str | None, label: str | None) -> Source:
    path, columns = Path(given).expanduser(), {"image": image, "label": label}
    if given.startswith(HUB):
        return open_hub(given, split, resolution, **columns)
    if _remote(given):
        raise DataError(
            f"{given!r}: only what lies on a disk is read, or a data set of the hub (hf:NAME); fetch it first"
        )
    if not path.exists():
        files = expanded(given)
        if not files:
            raise DataError(f"{given!r}: there is no such file or folder (looked for {path.absolute()})")
        return _of_files(given, files, split, resolution, columns)
    if path.is_file() and path.suffix.lower() in _SETS:
        return _of_files(given, [path], split, resolution, columns)
    if path.is_dir():
        if is_saved(path):
            return open_saved(path, split, resolution, **columns)
        files = _sets_in(path)
        if files:
            return _of_files(given, files, split, resolution, columns)
        if _listed(path):
            return open_metadata(path, split, resolution, **columns)
    foldered = path.is_dir() or path.suffix.lower() == ".zip"
    known = (None, WITHOUT, BY_FOLDER) if foldered and image is None else (None, WITHOUT)
    named = [f"data.{name}={value}" for name, value in columns.items() if value not in known]
    if named:
        raise DataError(
            f"{given}: {' and '.join(named)} names a field of shards or tables, which this is not; leave it out"
        )
    if path.is_dir():
        return open_folder(path, split, resolution, label)
    if path.suffix.lower() == ".zip":
        return open_zip(path, split, resolution, label)
    if path.suffix.lower() in (".npz", ".npy"):
        return open_arrays(path, split, resolution)
    packed = path.name.lower().endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"))
    raise DataError(
        f"{path} is neither a folder nor a .zip, .npz, .npy, .tar or .parquet file of images; "
        + ("unpack it to .tar first" if packed else "give the folder that the images lie in")
    )


def _of_files(
    given: str, files: Sequence[Path], split: str, resolution: int | None, columns: dict[str, str | None]
) -> Source:
    """The images of shards or of tables."""
    endings = {path.suffix.lower() for path in files}
    if len(endings) > 1 or not endings <= set(_SETS):
        raise DataError(
            f"{given}: a pattern stands for .tar files or for .parquet files, got {some([path.name for path in files])}"
        )
    opened = open_shards if endings == {".tar"} else open_parquet
    return opened(given, files, split, resolution, **columns)


def _sets_in(folder: Path) -> list[Path]:
    """The shards or tables of a folder: in it, or in its sub-folders data/, train/, test/ and so on.

    Raises:
        DataError: if there are both.
    """
    places = [folder, *(folder / name for name in ("data", *SPLITS))]
    files = [path for place in places if place.is_dir() for path in sorted(place.iterdir()) if path.is_file()]
    found = [
        path
        for path in files
        if path.suffix.lower() in _SETS and not path.name.startswith(".") and path.name not in METADATA
    ]
    if len({path.suffix.lower() for path in found}) > 1:
        raise DataError(
            f"{folder}: holds .tar and .parquet files; give a pattern of one kind, such as '{folder}/*.tar'"
        )
    beside = images_at(folder) if found else 0
    if beside > len(found):
        raise DataError(
            f"{folder}: {beside:,} images lie beside {some([path.name for path in found])}; move one or the other "
            f"away, or give a pattern of the files to train on, such as '{folder}/*{found[0].suffix}'"
        )
    return found


def _listed(folder: Path) -> bool:
    """Whether a table beside the images of a folder, or of its splits, says what they are."""
    return any((place / name).is_file() for place in (folder, *(folder / s for s in SPLITS)) for name in METADATA)


def expanded(pattern: str) -> list[Path]:
    """The files that a pattern stands for: {000..009} and {a,b} are written out, then *, ? and [...] matched.

    Raises:
        DataError: if a file that was written out is not there.
    """
    found: list[Path] = []
    names = _braces(pattern)
    if len(names) == 1 and not glob.has_magic(pattern):
        return []
    for name in names:
        path = Path(name).expanduser()
        if not glob.has_magic(name):
            if not path.is_file():
                raise DataError(f"{pattern}: {path} is not there; fetch it, or give the files that there are")
            found.append(path)
        else:
            found += sorted(Path(each) for each in glob.glob(str(path)))
    return list(dict.fromkeys(found))


def _braces(pattern: str) -> list[str]:
    """The texts of a pattern: {a,b} is a and b, and {08..11} is 08, 09, 10 and 11."""
    choices: list[list[str]] = []
    for part in re.split(r"(\{[^{}]*\})", pattern):
        inside = part[1:-1] if part.startswith("{") and part.endswith("}") else None
        numbers = re.fullmatch(r"(\d{1,12})\.\.(\d{1,12})", inside or "")
        if numbers is not None:
            first, last = numbers.groups()
            if not 0 <= int(last) - int(first) < _LONGEST:
                raise DataError(f"{pattern}: {part} counts no files; give the first and the last number")
            choices.append([str(k).zfill(len(first)) for k in range(int(first), int(last) + 1)])
        else:
            choices.append(inside.split(",") if inside is not None and "," in inside else [part])
    return ["".join(parts) for parts in itertools.product(*choices)]
