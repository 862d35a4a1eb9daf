"""Data by name: `digits` in the package, `mnist`, `fashion-mnist` and `cifar10` from disk or hub, the toys, or a path.

A path is that of images in any form (`shortflow.data.formats`), or of a store of latents (`shortflow.data.latents`).
Named data are looked for under the folder that the environment variable SHORTFLOW_DATA names (or `root`), and then, if
the package `datasets` is installed, on the Hugging Face hub. Nothing is written but caches.
"""

import difflib
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from shortflow.data import cifar10, idx, images, latents, toys
from shortflow.data.dataset import Dataset
from shortflow.data.decoded import Corrupt, decoded
from shortflow.data.formats import WITHOUT, found_at, open_path
from shortflow.data.images import Crop
from shortflow.errors import DataError
from shortflow.typing import Report

__all__ = ["load", "names", "unknown"]

Arrays = tuple[UInt8[np.ndarray, "n c h w"], Integer[np.ndarray, "n"]]

_DIGITS = tuple("0123456789")
_FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@dataclass(frozen=True, kw_only=True)
class _Published:
    """A data set that has to be fetched: how a folder holds it, and where the hub does."""

    classes: tuple[str, ...]
    read: Callable[[Path, str, Report | None], Arrays | None]
    wanted: Callable[[Path, str], list[Path]]
    hub: str
    column: str


def load(
    source: str,
    split: str = "train",
    *,
    resolution: int | None = None,
    crop: Crop | None = None,
    image: str | None = None,
    label: str | None = None,
    corrupt: Corrupt = "refuse",
    root: Path | None = None,
    report: Report | None = None,
) -> Dataset:
    """The data set `source`: one of `names()`, or the path of images or latents.

    See `shortflow.data.formats` and `shortflow.data.latents`.

    Args:
        source: a name, a path, a pattern or hf:NAME; a name wins over a folder of the same name (write `./mnist` for
            the folder).
        split: "train", "test" or "all" (train, then test); folders may have others.
        resolution: side of the images in pixels; None: as stored.
        crop: how images become squares of that side, see `shortflow.data.images.square`, and how those of a store of
            latents did; None: "centre", and any.
        image, label: fields or columns of shards and tables; None: found by their type. The label "none" leaves labels
            out, of all data.
        corrupt: refuse images that cannot be read, naming them, or skip them (`Dataset.skipped`).
        root: where named data lie; None: the folder in the environment variable SHORTFLOW_DATA.
        report: called with (images that are decoded, images in all) on the way, where that takes time.

    Raises:
        DataError: if there is no such data; says where was looked and what to do.
    """
    if source not in names():
        found = _load_path(source, split, resolution, crop, image, label, corrupt, report)
        return replace(found, labels=None, classes=()) if label == WITHOUT else found
    if image is not None or label not in (None, WITHOUT):
        raise DataError(f"{source} has no columns to choose from; leave out data.image and data.label")
    if split not in ("train", "test", "all"):
        raise DataError(f"{source}: no split {split!r}; there are 'train', 'test' and 'all'")
    images.check_square(resolution, crop or "centre")
    if source in toys.names():
        if resolution is not None:
            raise DataError(f"{source}: points have no resolution, got {resolution}; leave it out")
        points = toys.toy(source, split)
        return replace(points, labels=None, classes=()) if label == WITHOUT else points
    if source == "digits":
        classes, (samples, labels) = _DIGITS, _digits(split)
    else:
        classes, parts = _PUBLISHED[source].classes, ("train", "test") if split == "all" else (split,)
        found = [_fetch(source, part, root, report) for part in parts]
        samples, labels = (
            np.concatenate(arrays) if len(found) > 1 else arrays[0] for arrays in zip(*found, strict=True)
        )
    return Dataset(
        name=source,
        samples=samples if resolution is None else images.resize(samples, resolution, crop or "centre"),
        labels=None if label == WITHOUT else labels.astype(np.int64),
        classes=() if label == WITHOUT else classes,
        split=split,
    )


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return ("digits", *_PUBLISHED, *toys.names())


def unknown(source: str) -> DataError:
    """What is said of a source that is neither a name nor there."""
    close = difflib.get_close_matches(source.lower(), names(), n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return DataError(
        f"{source!r} is neither a known name nor a folder or file (looked for {Path(source).expanduser().absolute()}); "
        f"{meant}Names are {', '.join(names())}; data sets of the Hugging Face hub are hf:NAME"
    )


def _load_path(
    source: str,
    split: str,
    resolution: int | None,
    crop: Crop | None,
    image: str | None,
    label: str | None,
    corrupt: Corrupt,
    report: Report | None,
) -> Dataset:
    if not found_at(source):
        raise unknown(source)
    folder = Path(source).expanduser()
    if folder.is_dir() and latents.holds_latents(folder):
        if image is not None or label not in (None, WITHOUT):
            raise DataError(f"{source}: latents have no columns to choose from; leave out data.image and data.label")
        return latents.load_latents(folder, split, resolution, crop)
    found = open_path(source, split, resolution=resolution, crop=crop or "centre", image=image, label=label)
    return decoded(found, corrupt=corrupt, report=report)


def _digits(split: str) -> Arrays:
    """1797 images (n, 1, 8, 8); 500 of them, the same share of every class, are "test"."""
    with (
        resources.files("shortflow.data").joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        samples, labels, test = arrays["images"], arrays["labels"], arrays["test"]
    if split == "all":
        order = np.concatenate([np.flatnonzero(~test), np.flatnonzero(test)])
    else:
        order = np.flatnonzero(test if split == "test" else ~test)
    return samples[order][:, None], labels[order]


def _idx_paths(folder: Path, split: str) -> list[list[Path]]:
    """Of images and of labels, the names that a file may have, the published one first."""
    stem = {"train": "train", "test": "t10k"}[split]
    return [
        [folder / f"{stem}-{what}{dot}{kind}-ubyte{end}" for dot in "-." for end in (".gz", "")]
        for what, kind in (("images", "idx3"), ("labels", "idx1"))
    ]


def _read_idx(folder: Path, split: str, report: Report | None = None) -> Arrays | None:
    choices = _idx_paths(folder, split)
    found = [next((path for path in paths if path.is_file()), None) for paths in choices]
    x, y = found
    if x is None and y is None:
        return None
    if x is None or y is None:
        missing = choices[0 if x is None else 1][0]
        raise DataError(f"{missing}: not there, but {(x or y or missing).name} is; fetch the missing file")
    return idx.read_pair(x, y, 10)


def _fetch(name: str, split: str, root: Path | None, report: Report | None) -> Arrays:
    """Images and labels from the disk, or else from the hub."""
    published, looked = _PUBLISHED[name], []
    if root is None and not os.environ.get("SHORTFLOW_DATA"):
        looked.append("the environment variable SHORTFLOW_DATA is not set")
    else:
        base = root or Path(os.environ["SHORTFLOW_DATA"])
        folder = base.expanduser() / name
        found = published.read(folder, split, report)
        if found is not None:
            return found
        looked.append(f"not found: {', '.join(map(str, published.wanted(folder, split)))}")
    online = "pip install 'shortflow[data]' and be online"
    if importlib.util.find_spec("datasets") is None:
        looked.append(f"the package `datasets`, which could fetch {published.hub}, is not installed")
    else:
        try:
            return _from_hub(published, split)
        except Exception as error:  # whatever network, hub or cache raise: the remedy is the same
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            online = "make the hub reachable"
            looked.append(f"the hub did not give {published.hub} ({reason})")
    wanted = published.wanted(Path(name), split)[0].as_posix()
    raise DataError(
        f"{name} ({split}): {'; '.join(looked)}. Set SHORTFLOW_DATA to a folder that holds {wanted}, or {online}"
    )


def _from_hub(published: _Published, split: str) -> Arrays:
    rows = importlib.import_module("datasets").load_dataset(published.hub, split=split)
    samples = np.stack([np.asarray(image, dtype=np.uint8) for image in rows[published.column]])
    samples = samples[:, None] if samples.ndim == 3 else np.ascontiguousarray(samples.transpose(0, 3, 1, 2))
    return samples, np.asarray(rows["label"], dtype=np.int64)


def _wanted_idx(folder: Path, split: str) -> list[Path]:
    return [paths[0] for paths in _idx_paths(folder, split)]


def _wanted_cifar10(folder: Path, split: str) -> list[Path]:
    return list(cifar10.forms(folder, split))


_PUBLISHED = {
    "mnist": _Published(classes=_DIGITS, read=_read_idx, wanted=_wanted_idx, hub="ylecun/mnist", column="image"),
    "fashion-mnist": _Published(
        classes=_FASHION, read=_read_idx, wanted=_wanted_idx, hub="zalando-datasets/fashion_mnist", column="image"
    ),
    "cifar10": _Published(
        classes=cifar10.CLASSES, read=cifar10.read, wanted=_wanted_cifar10, hub="uoft-cs/cifar10", column="img"
    ),
}
