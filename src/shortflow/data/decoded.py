"""Any source of images as a `Dataset`: uint8 (n, c, h, w), c = 1 if all of them are grey and 3 otherwise.

What takes more than 2 s is decoded once, and kept in a file of `cache_folder()`. More than 64 MiB of pixels are written
there at once and mapped into memory, so that a source larger than memory can be used. The file belongs to the names,
sizes and times of what was decoded: where one of them changes, all are decoded anew, and the old file is removed.
Beside it stands what was left out because it is damaged. Of several processes one decodes; the others wait, and read.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

from shortflow.arrays import npy_header, open_array
from shortflow.data.dataset import Dataset
from shortflow.data.formats import Arrays, Skipped, Source, open_folder, setting
from shortflow.data.images import Pixels, cache_folder, check_square, some, stacked, why
from shortflow.errors import DataError
from shortflow.files import alone, atomic_path, write_atomic
from shortflow.typing import Report

__all__ = [
    "PATIENCE",
    "Corrupt",
    "check_failures",
    "decoded",
    "each",
    "forget_older",
    "kept_at",
    "listed",
    "load_folder",
    "lost_classes",
    "squared",
]

Corrupt = Literal["refuse", "skip"]
"""What is done about images that cannot be read: all are listed and refused, or they are left out and listed."""

T = TypeVar("T")
_Found = tuple[UInt8[np.ndarray, "n c h w"], Sequence[Skipped]]  # the images, and what was left out

_IN_MEMORY = 2**26  # bytes of pixels
PATIENCE = 2.0
"""Seconds of decoding, above which its result is kept."""
_AT_ONCE = 512  # images that are decoded before the first of them is handed on
_FORMAT = 4  # of the decoded pixels: a number that changes with the meaning of what is above


def load_folder(
    folder: Path,
    split: str = "train",
    *,
    resolution: int | None = None,
    corrupt: Corrupt = "refuse",
    report: Report | None = None,
) -> Dataset:
    """`decoded` images of a folder, see `shortflow.data.formats.folders`.

    Raises:
        DataError: names the folder or up to five files at fault, and the remedy.
    """
    check_square(resolution)
    return decoded(open_folder(folder, split, resolution), corrupt=corrupt, report=report)


def decoded(source: Source, *, corrupt: Corrupt = "refuse", report: Report | None = None) -> Dataset:
    """The images of `source`, decoded by a pool of threads into memory, or into a memory-mapped file (see the module).

    Classes that no image of the source has are left out, as they are of latents.

    Args:
        corrupt: what to do about images that cannot be read. Left out, they are told in `Dataset.skipped`.
        report: called with (images decoded, images in all) on the way.

    Raises:
        DataError: names the source, up to five images that cannot be read, or the class that has lost all of its
            images, and the remedy; or the file that there is no space for.
    """
    if isinstance(source, Arrays) and source.whole:
        samples, skipped = source.samples, ()
    else:
        samples, skipped = _pixels(source, corrupt, report)
    labels, classes = _present(source, skipped)
    conditions = source.conditions
    if conditions is not None and skipped:
        conditions = conditions.subset(np.delete(np.arange(len(source)), [k for k, _, _ in skipped]))
    return Dataset(
        name=source.name,
        samples=samples,
        labels=labels,
        classes=classes,
        split=source.split,
        skipped=tuple(skipped),
        conditions=conditions,
        notes=source.notes,
    )


def squared(source: Source, *, corrupt: Corrupt = "refuse") -> Source:
    """The source with a resolution: its own, or the side that all images share, squares of one size, read from the
    headers so that nothing is decoded in vain.

    Raises:
        DataError: names the image that is of another size, or those that cannot be read.
    """
    if source.resolution is not None:
        return source
    failures: dict[int, str] = {}
    first: tuple[int, tuple[int, int]] | None = None
    alike = isinstance(source, Arrays)  # the first image is as large as all others
    for k, (width, height) in [(0, source.size(0))] if alike else each(source, source.size, failures):
        if width != height:
            raise DataError(
                f"{_titled(source, k)}: {width}×{height} is not a square; give a resolution to crop and scale to "
                "(--resolution)"
            )
        first = first or (k, (width, height))
        if (width, height) != first[1]:
            raise DataError(
                f"{_titled(source, k)}: {width}×{height}, but {source.title(first[0])} is {first[1][0]}×{first[1][1]}; "
                "give a resolution to crop and scale to (--resolution)"
            )
    check_failures(source, failures, corrupt)
    if first is None:
        raise DataError(f"{source.where}: none of its {len(source):,} images can be read")
    return replace(source, resolution=first[1][0])


def _titled(source: Source, k: int) -> str:
    return f"{source.where}: {source.title(k)}"


# ------------------------------------------------------------------------------------------------------------- decoding


def _pixels(source: Source, corrupt: Corrupt, report: Report | None) -> _Found:
    """The images, in memory or memory-mapped, and what was left out."""
    asked = f"{source.where} {source.split} {source.resolution} {source.crop} {_FORMAT}"
    kept = kept_at("folders", asked, source.identity(), ".npy")
    found = _kept(kept, source)
    if found is None:
        check_failures(source, source.unreadable(), corrupt)
        with alone(kept.with_suffix(".lock"), waiting=partial(_waiting, source, report)) as waited:
            found = _kept(kept, source)
            if found is None and not 0 < waited < PATIENCE:
                found = _made(kept, source, corrupt, report)
        if found is None:  # it took so little that nothing was kept: no need to do it one after the other
            found = _made(kept, source, corrupt, report)
    check_failures(source, {k: reason for k, _, reason in found[1]}, corrupt)
    return found


def _waiting(source: Source, report: Report | None) -> None:
    if report is not None:
        report(0, len(source))


def _made(kept: Path, source: Source, corrupt: Corrupt, report: Report | None) -> _Found:
    """The images decoded, and kept for the next time where that is worth it."""
    source = squared(source, corrupt=corrupt)
    assert source.resolution is not None
    size, failures, began = len(source) * 3 * source.resolution**2, {}, time.monotonic()

    def images() -> Iterator[Pixels]:
        yield from (image for _, image in each(source, source.read, failures, report))
        check_failures(source, failures, corrupt)

    if size <= _IN_MEMORY:
        samples = stacked(list(images()))
        skipped = listed(source, failures)
        if time.monotonic() - began > PATIENCE:
            with suppress(OSError):  # no space, or no permission: it is in memory
                _keep(kept, map(_as_image, samples), len(samples), source.resolution, lambda: skipped)
        return samples, skipped
    try:
        _keep(kept, images(), len(source), source.resolution, lambda: listed(source, failures))
    except OSError as error:
        raise DataError(
            f"{source.where}: the decoded images, {size / 2**30:.1f} GiB, cannot be written to {kept.parent} "
            f"({error.strerror}); make space there, or set XDG_CACHE_HOME to a folder that has it"
        ) from error
    return open_array(kept), listed(source, failures)


def _keep(kept: Path, images: Iterable[Pixels], n: int, side: int, skipped: Callable[[], Sequence[Skipped]]) -> None:
    """Write what was decoded, and what was left out, and remove what older images of that place were."""
    _write(kept, images, n, side)
    if skipped():
        write_atomic(_beside(kept), json.dumps({"skipped": skipped()}, ensure_ascii=False))
    forget_older(kept)


def kept_at(folder: str, asked: str, identity: str, ending: str) -> Path:
    """Where in a folder of the cache it is kept what was asked for, of images of that identity."""
    place = hashlib.sha256(asked.encode()).hexdigest()[:16]
    key = hashlib.sha256(f"{asked}\n{identity}".encode()).hexdigest()[:16]
    return cache_folder() / folder / f"{place}-{key}{ending}"


def forget_older(kept: Path) -> None:
    """Remove what was kept of the same when its images were others."""
    place, _, _ = kept.name.partition("-")
    for old in kept.parent.glob(f"{place}-*"):
        if old.suffix != ".lock" and not old.name.startswith(f"{kept.stem}."):
            old.unlink(missing_ok=True)


def _beside(kept: Path) -> Path:
    return kept.with_suffix(".skipped.json")


def _kept(path: Path, source: Source) -> _Found | None:
    """What was decoded before, if it is there and whole."""
    if not path.is_file():
        return None
    try:
        samples, skipped = open_array(path), []
        if len(samples) != len(source):
            skipped = [(int(k), str(title), str(reason)) for k, title, reason in _read(_beside(path))]
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None  # a damaged copy is written anew
    if len(samples) + len(skipped) != len(source):
        return None
    return (samples if samples.nbytes > _IN_MEMORY else np.array(samples)), skipped


def _read(path: Path) -> list[Any]:
    return json.loads(path.read_text(encoding="utf-8"))["skipped"]


def each(
    source: Source, read: Callable[[int], T], failures: dict[int, str], report: Report | None = None
) -> Iterator[tuple[int, T]]:
    """(k, read(k)) of every image that can be read, in order; why others cannot goes to `failures`."""

    def attempt(k: int) -> list[tuple[int, T]]:
        try:
            return [(k, read(k))]
        except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
            failures[k] = why(error)
            return []

    n = len(source)
    with ThreadPoolExecutor(max_workers=min(16, _cores())) as pool:  # decoders give up the interpreter's lock
        for start in range(0, n, _AT_ONCE):
            for found in pool.map(attempt, range(start, min(start + _AT_ONCE, n))):
                yield from found
            if report is not None:
                report(min(start + _AT_ONCE, n), n)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(path: Path, images: Iterable[Pixels], n: int, side: int) -> None:
    """Write the images, n at most, as an array, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w+b") as file:
        channels, count = 1, 0

        def write_header(n: int) -> int:
            header = npy_header(np.uint8, (n, channels, side, side))  # of one length: NumPy leaves space for any n
            file.seek(0)
            return file.write(header)

        start = write_header(n)
        for image in images:
            if image.ndim == 3 and channels == 1:
                _repeat(file, start, count, side**2)
                channels = 3
            planes = image if image.ndim == 2 else image.transpose(2, 0, 1)
            file.write(np.broadcast_to(planes, (channels, side, side)).tobytes())
            count += 1
        assert write_header(count) == start


def _repeat(file: IO[bytes], start: int, count: int, size: int) -> None:
    """Repeat each of the grey images that were written three times, from the last one on, in their place."""
    for k in reversed(range(count)):
        file.seek(start + k * size)
        image = file.read(size)
        file.seek(start + 3 * k * size)
        file.write(3 * image)
    file.seek(start + 3 * count * size)


def _as_image(sample: UInt8[np.ndarray, "c h w"]) -> Pixels:
    return sample[0] if len(sample) == 1 else sample.transpose(1, 2, 0)


# -------------------------------------------------------------------------------------------------------------- damages


def listed(source: Source, failures: dict[int, str]) -> list[Skipped]:
    """What cannot be read, in the order of the source."""
    return [(k, source.title(k), failures[k]) for k in sorted(failures)]


def check_failures(
    source: Source, failures: dict[int, str], corrupt: Corrupt, how: str = setting("corrupt", "skip")
) -> None:
    """Raise `DataError` for images that cannot be read, unless they are to be left out and leave something.

    Args:
        how: they are left out, as the message says it.
    """
    if not failures:
        return
    reasons = some([f"{title} ({reason})" for _, title, reason in listed(source, failures)])
    told = f"{source.where}: {len(failures):,} of {len(source):,} images cannot be read: {reasons}"
    if corrupt == "refuse":
        raise DataError(f"{told}; replace or remove these files, or leave them out with {how}")
    if len(failures) == len(source):
        raise DataError(f"{told}; there is nothing left")
    lost = lost_classes(source, list(failures))
    if lost:
        raise DataError(f"{told}. No image is left of {some(lost)}; replace some of these, or remove the class")


def lost_classes(source: Source, rows: Sequence[int]) -> list[str]:
    """The classes that have images, and none without those at `rows`."""
    if source.labels is None:
        return []
    return [source.classes[c] for c in np.setdiff1d(source.labels, np.delete(source.labels, rows))]


def _present(source: Source, skipped: Sequence[Skipped]) -> tuple[Int64[np.ndarray, "n"] | None, tuple[str, ...]]:
    """Labels and classes of the images that are left, without the classes that no image has."""
    if source.labels is None:
        return None, ()
    labels = np.delete(source.labels, [k for k, _, _ in skipped]) if skipped else source.labels
    there = np.bincount(labels, minlength=len(source.classes)) > 0
    if there.all():
        return labels, source.classes
    names = tuple(name for name, has in zip(source.classes, there, strict=True) if has)
    return (np.cumsum(there) - 1)[labels], names
