"""Samples on disk, written batch by batch: any number of them takes the memory of one batch.

    FOLDER/000000-CLASS.png, …, FOLDER/.samples.json    one image a file, and what they were made with
    NAME.npy, NAME.json, NAME-labels.npy                one array (n, c, h, w) or (n, d), the same, the classes

Sample k is a function of the settings and of k, so a writing that was interrupted goes on where it stopped when it is
asked for again, and ends with the same bits; what was made with other settings is never mixed in. An array has its name
when it is whole: until then its rows are in .NAME.npy.part, of which NAME.json says how many count.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shortflow.arrays import npy_header
from shortflow.config import to_plain
from shortflow.data import DataSpec
from shortflow.errors import ConfigError, ShortflowError
from shortflow.files import write_atomic
from shortflow.hub import Model, fingerprint
from shortflow.pictures import save_png
from shortflow.runs.decoding import verification
from shortflow.runs.sampling import class_labels, draw
from shortflow.sample import default_sampler, grid_times
from shortflow.typing import Report

__all__ = ["BATCH", "save_array", "save_folder"]

BATCH = 256  # samples a pass; the last bits depend on it
_RECORD = ".samples.json"
_END = b"IEND\xaeB`\x82"  # of every whole PNG file


def save_folder(model: Model, n: int, folder: Path, *, report: Report | None = None, **settings: Any) -> int:
    """Write n images as PNG files, named by number and class, and return how many were there already.

    A larger n than the last time adds to them.

    Args:
        report: called with (images that are there, n) after every batch.
        settings: those of `draw`.

    Raises:
        ConfigError: if the model makes points, or the folder holds anything else, or images made otherwise.
        ShortflowError: if there is no space, or the disk fails; says how to go on.
    """
    spec, made = model.spec, _made(model, settings)
    if not spec.image and settings.get("autoencoder") is None:
        raise ConfigError(
            f"single files hold an image each, but this model makes {spec.kind}; write an array, NAME.npy"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder for the images")
    record, found = folder / _RECORD, folder.is_dir() and any(folder.iterdir())
    if found and not record.is_file():
        raise ConfigError(f"{folder} is not empty, and not made by such a command; give another folder, or a new one")
    if found:
        _check_same(folder, _read(record), made)
    labels = class_labels(spec, n, settings.get("classes"))
    paths = [folder / _name(k, labels, spec) for k in range(n)]
    missing = next((k for k, path in enumerate(paths) if not _whole(path)), n)
    if missing == n:
        return n
    batches = draw(model.flow, spec, n, **settings, batch_size=BATCH, first=missing - missing % BATCH)
    done = missing
    with _disk(folder, n, lambda: done), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        if not found:
            write_atomic(record, json.dumps(made, indent=1) + "\n")
        for part in batches:
            places = paths[part.first : part.first + len(part.pixels)]
            list(pool.map(lambda image, path: save_png(image, path, durable=False), part.pixels, places))
            done = part.first + len(places)
            if report is not None:
                report(done, n)
    return missing


def save_array(model: Model, n: int, path: Path, *, report: Report | None = None, **settings: Any) -> int:
    """Write n samples as one array, uint8 (n, c, h, w) or float32 (n, …), and return how many were there already.

    Args:
        report: called with (samples that are there, n) after every batch.
        settings: those of `draw`.

    Raises:
        ConfigError: if there is such a file already, or a part of one that was made otherwise.
        ShortflowError: if there is no space, or the disk fails; says how to go on.
    """
    spec, made = model.spec, {**_made(model, settings), "n": n}
    record, part_file = path.with_suffix(".json"), path.with_name(f".{path.name}.part")
    decoded = spec.latent is not None and settings.get("autoencoder") is not None
    dtype = np.dtype(np.uint8 if spec.image or decoded else np.float32)
    shape = spec.latent.pixels if spec.latent is not None and decoded else spec.shape
    header, row = npy_header(dtype, (n, *shape)), dtype.itemsize * int(np.prod(shape))
    done = 0
    if record.is_file():
        before = _read(record)
        done = before.pop("done", 0)
        _check_same(record, before, made)
        done = n if path.is_file() else _usable(part_file, done, len(header), row)
    elif path.exists() or record.exists():
        raise ConfigError(f"{path} is there already; give another name, or remove it")
    if done == n and path.is_file():
        return n
    there, labels = done, class_labels(spec, n, settings.get("classes"))
    batches = draw(model.flow, spec, n, **settings, batch_size=BATCH, first=done)
    with _disk(path, n, lambda: done):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part_file, "r+b" if done else "wb") as file:
            file.truncate(len(header) + done * row if done else 0)
            file.write(header)
            file.seek(0, os.SEEK_END)
            for part in batches:
                file.write(np.ascontiguousarray(part.pixels, dtype).data)
                file.flush()
                os.fsync(file.fileno())
                done = part.first + len(part.pixels)
                write_atomic(record, json.dumps({**made, "done": done}, indent=1) + "\n")
                if report is not None:
                    report(done, n)
        if labels is not None:
            with open(path.with_name(f"{path.stem}-labels.npy"), "wb") as file:
                np.save(file, labels)
        os.replace(part_file, path)
    return there


def _made(model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the samples are a function of, in full: what is left out is written as what it stands for."""
    times = settings.get("times") or grid_times(model.flow, settings.get("steps", 1))
    classes, window, autoencoder = (settings.get(name) for name in ("classes", "window", "autoencoder"))
    decoder = {} if autoencoder is None else {"autoencoder": autoencoder.sha256}
    latent = model.spec.latent
    if latent is not None and autoencoder is not None and verification(autoencoder, latent) == "not verified":
        decoder["autoencoder_is"] = "not verified"
    told = settings.get("condition")
    rows = None if told is None else np.ascontiguousarray(told.cpu().numpy())
    conditions = {} if rows is None else {"condition": f"{rows.shape} {hashlib.sha256(rows.data).hexdigest()}"}
    return {
        **decoder,
        **conditions,
        "model": fingerprint(model.path),
        "times": list(times),
        "sampler": to_plain(settings.get("sampler") or default_sampler(model.flow)),
        "classes": None if classes is None else list(classes),
        "seed": settings.get("seed", 0),
        "guidance": settings.get("guidance", 1.0),
        "window": None if window is None else list(window),
        "precision": "bf16" if settings.get("bf16") else "fp32",
        "compiled": getattr(model.flow.network, "_compiled_call_impl", None) is not None,
        "batch": BATCH,
    }


def _read(record: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{record} cannot be read ({error}); remove it with the samples, or give another name"
        ) from error


def _check_same(where: Path, before: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    changed = [f"{name} {before.get(name)}, not {made[name]}" for name in made if before.get(name) != made[name]]
    if changed:
        raise ConfigError(
            f"{where} belongs to samples that were made with {'; '.join(changed)}; give another name, or remove them"
        )


def _name(k: int, labels: np.ndarray | None, spec: DataSpec) -> str:
    """The file of image k. Class names may come from anywhere and are no paths."""
    name = "" if labels is None else "-" + re.sub(r"[^\w+-]+", "_", spec.classes[labels[k]])[:80]
    return f"{k:06d}{name}.png"


def _whole(path: Path) -> bool:
    """Whether the PNG file is there with its end: a loss of power may have cut it."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def _usable(part: Path, done: int, header: int, row: int) -> int:
    """How many rows to go on from: whole batches only, so that every pass is the one that it would have been."""
    rows = max(0, part.stat().st_size - header) // row if part.is_file() else 0
    return min(done, rows) // BATCH * BATCH


@contextmanager
def _disk(where: Path, n: int, done: Callable[[], int]) -> Iterator[None]:
    """Say what was written when the disk is full, or fails."""
    try:
        yield
    except OSError as error:
        raise ShortflowError(
            f"{where}: {error.strerror or error} after {done():,} of {n:,} samples; make space, and give the same "
            "command again: it goes on where it stopped"
        ) from error
