"""Which images of a source can be read to their end, found before the first of them is used.

A header is whole where the rest of a file is missing, so all images are decoded, in a thread for each core. Where that
takes more than 2 s, what was found is kept in `cache_folder()`, like decoded images (`shortflow.data.decoded`), for
every later start and for the other processes of this one; where a file changes, all are looked at anew.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import PIL

from shortflow.data import decoded
from shortflow.data.decoded import each, forget_older, kept_at
from shortflow.data.formats import Source
from shortflow.files import alone, write_atomic
from shortflow.typing import Report

__all__ = ["Looked", "look_at"]

Sized = tuple[int, int, int]  # number, width, height


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What was found.

    Attributes:
        failures: why images cannot be read, by number.
        sizes: of the first image, and of the first that has another: number, width and height as they are seen.
    """

    failures: dict[int, str]
    sizes: list[Sized]


def look_at(source: Source, report: Report | None = None) -> Looked:
    """Decode all images of a source, as they are, unless that was done.

    Args:
        report: called with (images decoded, images in all) on the way.
    """
    asked = f"{source.where} {source.split} {PIL.__version__} {sorted(source.unreadable())}"
    kept = kept_at("whole", asked, source.identity(), ".json")
    found = _kept(kept)
    if found is not None:
        return found
    with alone(kept.with_suffix(".lock"), waiting=lambda: report and report(0, len(source))):
        found = _kept(kept) or _decoded(source, kept, report)
    return found


def _decoded(source: Source, kept: Path, report: Report | None) -> Looked:
    failures, sizes, began = {}, [], time.monotonic()
    for k, (width, height) in each(source, _size_of(replace(source, resolution=None)), failures, report):
        if not sizes or (len(sizes) == 1 and sizes[0][1:] != (width, height)):
            sizes.append((k, width, height))
    if time.monotonic() - began > decoded.PATIENCE:
        with suppress(OSError):  # no space, or no permission: it is done again next time
            write_atomic(kept, json.dumps({"failures": sorted(failures.items()), "sizes": sizes}, ensure_ascii=False))
            forget_older(kept)
    return Looked(failures=failures, sizes=sizes)


def _size_of(source: Source) -> Callable[[int], tuple[int, int]]:
    """Width and height by number, after decoding; the pixels are let go."""

    def size(k: int) -> tuple[int, int]:
        height, width = source.read(k).shape[:2]
        return width, height

    return size


def _kept(path: Path) -> Looked | None:
    """What was found before, if it is there and whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        failures = {int(k): str(reason) for k, reason in found["failures"]}
        return Looked(failures=failures, sizes=[(int(k), int(w), int(h)) for k, w, h in found["sizes"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is not there, or damaged
