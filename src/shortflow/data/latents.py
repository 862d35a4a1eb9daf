"""Stores of latents on disk: the moments of the autoencoder's Gaussian for every image and its mirror, in shards.

    LATENTS/meta.json             what they are and the sums of the shards; written last, so a folder with it is whole
    LATENTS/000000.safetensors    of the first images, and so on:
        moments  (n, 2, k, c, h, w) float16 or float32: [:, 0] of the image, [:, 1] of its mirror (left to right);
                 [:, :, 0] the mean and [:, :, 1] the standard deviation; k = 1 where the autoencoder has no spread
        labels   (n,) int64, where there are classes
    LATENTS/conditions.safetensors   what the images are told by where that is no class, a row for each latent in order

Latents are stored as the encoder gives them; scale and shift are numbers in meta.json, and another choice of them
(`rescale`) writes no shard. A shard is a function of its images, the autoencoder and the settings, whoever writes it,
and its header says what these were. Shards are read where they lie, mapped into memory. Nothing is pickled.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shortflow.arrays import Stacked, open_array
from shortflow.data.conditions import CONDITIONS, Conditions, open_conditions
from shortflow.data.dataset import Dataset
from shortflow.data.formats import Skipped
from shortflow.data.images import CROPS, Crop
from shortflow.data.latentspec import LatentSpec
from shortflow.data.measured import Measured, Moments
from shortflow.errors import DataError, require
from shortflow.files import atomic_path, sha256_of, write_atomic

__all__ = [
    "META",
    "Measured",
    "Shard",
    "Skipped",
    "holds_latents",
    "is_shard",
    "load_latents",
    "open_latents",
    "read_meta",
    "read_shard",
    "rescale",
    "shard_name",
    "write_meta",
    "write_shard",
]

META = "meta.json"
FORMAT = 1
_LARGEST_META = 2**26  # bytes
_NAME = re.compile(r"\d{6}\.safetensors")

Labels = Int64[np.ndarray, "n"]


def shard_name(number: int) -> str:
    return f"{number:06d}.safetensors"


def is_shard(name: str) -> bool:
    """Whether a shard may be called so; nothing that leaves the folder may."""
    return _NAME.fullmatch(name) is not None


# --------------------------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What the header of a shard says.

    Attributes:
        made: what it was made with: autoencoder, settings, and which images of the source.
        count: rows.
        skipped: what could not be read.
        pixels: a sum over what was encoded, in order.
        measured: count, mean and squares by channel.
        sha256: of the tensors.
    """

    made: Mapping[str, Any]
    count: int
    skipped: tuple[Skipped, ...]
    pixels: str
    measured: Measured
    sha256: str


def write_shard(
    path: Path,
    moments: Moments,
    labels: Labels | None,
    *,
    made: Mapping[str, Any],
    pixels: str,
    skipped: Sequence[Skipped] = (),
) -> Shard:
    """Write a shard, whole or not at all, and return what its header says."""
    measured = Measured.of(moments)
    shard = Shard(
        made=dict(made),
        count=len(moments),
        skipped=tuple(skipped),
        pixels=pixels,
        measured=measured,
        sha256=_sum(moments, labels),
    )
    header = {
        "format": FORMAT,
        "made": shard.made,
        "count": shard.count,
        "skipped": shard.skipped,
        "pixels": pixels,
        "measured": {"count": measured.count, "mean": measured.mean.tolist(), "squares": measured.squares.tolist()},
        "sha256": shard.sha256,
    }
    tensors = {"moments": moments} if labels is None else {"moments": moments, "labels": labels}
    with atomic_path(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in tensors.items()},
            str(temporary),
            {"shortflow": json.dumps(header)},
        )
    return shard


def read_shard(path: Path, *, verify: bool = False) -> Shard:
    """What the header of a shard says.

    Args:
        verify: read the tensors, too, and compare their sum.

    Raises:
        DataError: if it is no shard, or damaged.
    """
    try:
        with safe_open(str(path), "np") as opened:
            header = json.loads((opened.metadata() or {})["shortflow"])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}; this version reads format {FORMAT}")
        measured = header["measured"]
        shard = Shard(
            made=dict(header["made"]),
            count=int(header["count"]),
            skipped=tuple((int(k), str(title), str(why)) for k, title, why in header["skipped"]),
            pixels=str(header["pixels"]),
            measured=Measured(
                count=int(measured["count"]),
                mean=np.array(measured["mean"], dtype=np.float64),
                squares=np.array(measured["squares"], dtype=np.float64),
            ),
            sha256=str(header["sha256"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is no whole shard of latents ({error}); remove it, and encode again") from error
    if verify and shard.count and shard.sha256 != _sum(*_tensors(path, labelled=bool(shard.made.get("labelled")))):
        raise DataError(f"{path} is damaged: its numbers are not those that were written; remove it, and encode again")
    return shard


def _tensors(path: Path, *, labelled: bool) -> tuple[Any, Any]:
    return open_array(path, "moments"), open_array(path, "labels") if labelled else None


def _sum(moments: Any, labels: Any) -> str:
    digest = hashlib.sha256()
    for array in (moments, labels):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- stores


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write what `read_meta` reads; from then on the folder is a store."""
    write_atomic(folder / META, json.dumps({"format": FORMAT, **meta}, indent=1, ensure_ascii=False) + "\n")


def read_meta(folder: Path) -> dict[str, Any]:
    """What meta.json says, checked as far as it can be without the shards.

    Nothing in it is a path that is opened: shards are numbers in the folder, and where the images were is a text.

    Raises:
        DataError: names what is wrong.
    """
    path = folder / META
    try:
        require((size := path.stat().st_size) <= _LARGEST_META, f"it has {size:,} bytes")
        meta = json.loads(path.read_text(encoding="utf-8"))
        require(isinstance(meta, dict), "it is no JSON object")
        require(
            meta.get("format") == FORMAT,
            f"format {meta.get('format')!r}, and this version of shortflow reads format {FORMAT}; install the version "
            "that wrote it",
        )
        return meta | _checked(meta)
    except KeyError as error:
        raise DataError(f"{path}: {error} is missing; encode the images again") from error
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} cannot be used: {error}; encode the images again") from error


def _checked(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of meta.json that are used, in the types that they have."""
    latent = LatentSpec.from_dict(meta["latent"])
    c, h, w = (int(side) for side in meta["shape"])
    require(min(c, h, w) >= 1 and c == latent.channels, f"shape {meta['shape']} for {latent.channels} scales")
    require(meta["dtype"] in ("float16", "float32"), f"dtype {meta['dtype']!r} is neither float16 nor float32")
    mean, std = (tuple(float(value) for value in meta["measured"][name]) for name in ("mean", "std"))
    require(len(mean) == len(std) == c and all(map(math.isfinite, mean + std)), "measured has other numbers")
    shards = [
        {"name": str(each["name"]), "count": int(each["count"]), "bytes": int(each["bytes"]), "sha256": each["sha256"]}
        for each in meta["shards"]
    ]
    for each in shards:
        require(is_shard(each["name"]), f"{each['name']!r} is no name of a shard (000000.safetensors)")
        require(each["count"] >= 0, f"{each['name']} has {each['count']} rows")
    names = [each["name"] for each in shards]
    require(len(set(names)) == len(names), "a shard is named twice")
    require(sum(each["count"] for each in shards) == int(meta["count"]) > 0, "the counts of the shards are others")
    return {
        "latent": latent,
        "shape": (c, h, w),
        "gaussian": bool(meta["gaussian"]),
        "measured": (mean, std),
        "shards": shards,
        "count": int(meta["count"]),
        "classes": tuple(str(name) for name in meta["classes"]),
        "condition": tuple(int(side) for side in meta["condition"]) if meta.get("condition") else None,
        "crop": next((crop for crop, words in CROPS.items() if words == meta.get("crop")), None),
        "source": {name: str(meta["source"][name]) for name in ("name", "split", "sha256")}
        | ({"where": str(meta["source"]["where"])} if "where" in meta["source"] else {}),
    }


def holds_latents(folder: Path) -> bool:
    """Whether a folder is a store of latents, finished or not, or holds stores by split."""
    if (folder / META).is_file():
        return True
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(is_shard(path.name) for path in entries):
        return True
    return bool(entries) and all((path / META).is_file() for path in entries)


def load_latents(
    folder: Path, split: str = "train", resolution: int | None = None, crop: Crop | None = None
) -> Dataset:
    """The store in `folder`, or in its sub-folder `split`.

    Args:
        resolution, crop: of the images that it was made of; None: any.

    Raises:
        DataError: if there is none for this split, it is not finished, or its images have another resolution or crop.
    """
    if not (folder / META).is_file() and (folder / split / META).is_file():
        folder = folder / split
    if not (folder / META).is_file():
        if any(is_shard(path.name) for path in folder.iterdir()):
            raise DataError(f"{folder}: these latents are not finished; give the command that began them again")
        there = sorted(path.name for path in folder.iterdir() if (path / META).is_file())
        raise DataError(f"{folder}: no latents of the split {split!r}; there are {', '.join(there)}")
    found = open_latents(folder)
    if split not in ("train", "all", found.split):
        raise DataError(
            f"{folder}: these are latents of the split {found.split!r}, not of {split!r}; encode that as well, with "
            f"--split {split} --out, into a sub-folder {split} beside {found.split}"
        )
    side = None if found.latent is None else found.latent.pixels[1]
    if resolution not in (None, side):
        raise DataError(
            f"{folder}: these are latents of images of side {side}, not {resolution}; leave out the resolution, or "
            "encode the images again"
        )
    made = read_meta(folder)["crop"]
    if crop not in (None, made) and made is not None:
        raise DataError(
            f"{folder}: these are latents of images by crop {made} ({CROPS[made]}), not {crop}; say so with --set "
            f"data.crop={made}, or encode the images again"
        )
    return found


def open_latents(folder: Path, *, verify: bool = False) -> Dataset:
    """The store in `folder` as data, mapped into memory.

    Sizes are always compared with those in meta.json; the sums of the shards, which takes reading them, with `verify`.

    Raises:
        DataError: names the file that is missing, damaged or something else.
    """
    meta = read_meta(folder)
    c, h, w = meta["shape"]
    moments, labels = [], []
    for each in meta["shards"]:
        path = folder / each["name"]
        if not path.is_file() or path.stat().st_size != each["bytes"]:
            size = path.stat().st_size if path.is_file() else 0
            raise DataError(f"{path} has {size:,} of {each['bytes']:,} bytes; give the command that made it again")
        if verify and sha256_of(path) != each["sha256"]:
            raise DataError(f"{path} is damaged (SHA-256); remove it, and give the command that made it again")
        if each["count"] == 0:
            continue
        rows, classes = _tensors(path, labelled=bool(meta["classes"]))
        want = (each["count"], 2, 1 + meta["gaussian"], c, h, w)
        if rows.shape != want or rows.dtype != np.dtype(meta["dtype"]) or (classes is not None and classes.ndim != 1):
            raise DataError(
                f"{path} holds {rows.dtype} of shape {rows.shape}, {META} says {meta['dtype']} of shape {want}; give "
                "the command that made it again"
            )
        moments.append(rows)
        labels.append(classes)
    numbers, names = _classes(np.concatenate(labels), meta["classes"]) if meta["classes"] else (None, ())
    return Dataset(
        name=meta["source"]["name"],
        conditions=_conditions(folder, meta),
        samples=Stacked(tuple(moments)),
        labels=numbers,
        classes=names,
        split=meta["source"]["split"],
        latent=meta["latent"],
        measured=meta["measured"],
    )


def _conditions(folder: Path, meta: Mapping[str, Any]) -> Conditions | None:
    """What the images of a store are told by."""
    if meta["condition"] is None:
        return None
    found = open_conditions(folder / CONDITIONS)
    if (len(found), *found.shape) != (meta["count"], *meta["condition"]):
        raise DataError(
            f"{folder / CONDITIONS} holds {(len(found), *found.shape)} numbers, {META} says "
            f"{(meta['count'], *meta['condition'])}; give the command that made it again"
        )
    return found


def _classes(labels: Labels, names: tuple[str, ...]) -> tuple[Labels, tuple[str, ...]]:
    """Without the classes that have no image: all of theirs were left out, or nobody had any."""
    if labels.min() < 0 or labels.max() >= len(names):
        return labels, names  # the data say so
    there = np.bincount(labels, minlength=len(names)) > 0
    return (np.cumsum(there) - 1)[labels], tuple(name for name, has in zip(names, there, strict=True) if has)


def rescale(folder: Path, scale: Sequence[float], shift: Sequence[float]) -> LatentSpec:
    """Give a store other natural units, a number for each channel. No shard changes.

    Raises:
        DataError: as `read_meta`, or if the numbers are not as many as the channels.
    """
    meta = read_meta(folder)
    latent: LatentSpec = meta["latent"]
    if len(scale) != latent.channels or len(shift) != latent.channels:
        raise DataError(f"{folder}: {latent.channels} channels need as many scales and shifts, got {scale} and {shift}")
    made = LatentSpec.from_dict({**latent.to_dict(), "scale": list(scale), "shift": list(shift)})
    raw = json.loads((folder / META).read_text(encoding="utf-8"))
    write_atomic(folder / META, json.dumps({**raw, "latent": made.to_dict()}, indent=1, ensure_ascii=False) + "\n")
    return made
