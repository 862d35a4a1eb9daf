"""Statistics of any number of images: chunk by chunk, by one process or several, and again where it was interrupted.

The images of a set are cut into chunks by their number alone. Each process of a launcher (`torchrun`) makes the tallies
of its share, and the first merges all of them in order, so every figure is the same to the last bit for any number of
processes. With a folder for them, finished chunks lie on the disk until all is done: under a name made of every choice
that they depend on, so that what is found there is what would be computed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shortflow.data.stored import Stored
from shortflow.errors import CheckpointError, MetricError, ShortflowError
from shortflow.evaluate import Extractor, Plan, Tally
from shortflow.evaluate.tally import chunks
from shortflow.files import atomic_path, write_atomic
from shortflow.lock import RunLock, held_by
from shortflow.train.engine import PATIENCE
from shortflow.typing import Report

__all__ = ["Part", "World", "chunks_beside", "done_with", "gather", "processes"]

T = TypeVar("T")
Part = tuple[Stored, Extractor, Plan]
"""What `gather` is given: images, what is taken of them, and by which plan."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes that a launcher has started: how many, and which of them this one is."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def in_turn(self, f: Callable[[], T]) -> T:
        """f() in the first process, and then in all others: what it has fetched is there when they look."""
        if self.rank > 0:
            self.wait()
        result = f()
        if self.rank == 0:
            self.wait()
        return result


@contextmanager
def processes() -> Iterator[World]:
    """The processes of the launcher, connected until the context ends; one, without a launcher."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    if size == 1:
        yield World(device=device)
        return
    begun = torch.distributed.is_initialized()
    if not begun:
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if not begun:
            torch.distributed.destroy_process_group()


def gather(
    images: Stored,
    extractor: Extractor,
    plan: Plan,
    *,
    beside: Path | None = None,
    world: World | None = None,
    report: Report | None = None,
) -> Tally | None:
    """The tally of all images; None in processes other than the first.

    Args:
        beside: a file that the result will be written to. Chunks are kept beside it, in a hidden folder, until
            `done_with` removes it. None: nothing is kept, which is for one process only.
        world: the processes that share the work.
        report: called with (images seen, in all), as far as this process knows.

    Raises:
        MetricError: if images and plan do not belong together, or the processes do not see the same folder.
        ShortflowError: if there is no space for the chunks.
    """
    world = world or World()
    if images.count != plan.n:
        raise MetricError(f"{images.source}: a plan for {plan.n} images does not go with {images.count}")
    if beside is None and world.size > 1:
        raise MetricError("several processes meet in a folder; say where the result goes")
    parts = chunks(plan.n)
    seen = _Seen(plan.n, world.size, report)
    if beside is None:
        total = None
        for first, last in parts:
            tally = Tally.of(seen.of(images.read(first, last)), extractor, plan, first, last)
            total = tally if total is None else total.merge(tally)
        return total
    folder = _folder(beside, images, extractor, plan)
    with _disk(folder):
        for first, last in parts[world.rank :: world.size]:
            if _found(folder, first, last) is not None:
                seen.add(last - first)
                continue
            tally = Tally.of(seen.of(images.read(first, last)), extractor, plan, first, last)
            if world.rank == 0 and first == parts[0][0]:  # nothing is written for images that cannot be read
                choices = json.dumps(_choices(images, extractor, plan), indent=1)
                write_atomic(folder / "choices.json", f"{choices}\n")
            with atomic_path(_file(folder, first)) as temporary:
                save_file({name: value.contiguous() for name, value in tally.tensors().items()}, temporary)
    world.wait()
    return _merged(folder, parts) if world.rank == 0 else None


@contextmanager
def chunks_beside(beside: Path | None, parts: Sequence[Part], world: World | None = None) -> Iterator[None]:
    """While the parts of one result are gathered: nobody else removes their chunks, and those of other choices, which
    an interrupted command has left beside this result, are removed.

    Args:
        beside: as for `gather`.
    """
    if beside is None or (world is not None and world.rank > 0):
        yield
        return
    mine = dict.fromkeys(_folder(beside, *part) for part in parts)
    with ExitStack() as held:
        for folder in mine:
            with _disk(folder), suppress(CheckpointError):  # the same command elsewhere: both write the same
                held.callback(RunLock(folder).release)
        for folder in beside.parent.glob(f".{escape(beside.name)}-*"):
            ours = re.fullmatch(r"[0-9a-f]{16}", folder.name.removeprefix(f".{beside.name}-"))
            if ours and folder not in mine and folder.is_dir() and held_by(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
        yield


def done_with(beside: Path, images: Stored, extractor: Extractor, plan: Plan) -> None:
    """Remove the chunks that `gather` has kept."""
    shutil.rmtree(_folder(beside, images, extractor, plan), ignore_errors=True)


def _merged(folder: Path, parts: list[tuple[int, int]]) -> Tally:
    total = None
    for first, last in parts:
        tally = _found(folder, first, last)
        if tally is None:
            raise MetricError(
                f"{folder}: samples {first}…{last - 1} are not there; all processes must see the same folder, so give "
                "a result (--out) on a disk that they share"
            )
        total = tally if total is None else total.merge(tally)
    assert total is not None
    return total


def _choices(images: Stored, extractor: Extractor, plan: Plan) -> dict[str, Any]:
    """Everything that a chunk is a function of."""
    return {
        "format": 1,
        "source": images.source,
        "identity": images.identity,
        "shape": list(images.shape),
        "resolution": images.resolution,
        "crop": images.crop,
        "extractor": extractor.record(),
        "device": extractor.device.split(":")[0],
        "n": plan.n,
        "keep": plan.keep,
        "order": plan.order,
        "spatial": plan.spatial,
        "ordered": plan.ordered,
        "torch": torch.__version__,
    }


def _folder(beside: Path, images: Stored, extractor: Extractor, plan: Plan) -> Path:
    choices: Mapping[str, Any] = _choices(images, extractor, plan)
    key = hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:16]
    return beside.parent / f".{beside.name}-{key}"


def _file(folder: Path, first: int) -> Path:
    return folder / f"{first:09d}.safetensors"


def _found(folder: Path, first: int, last: int) -> Tally | None:
    """A chunk that was finished before; None if it is not there, or damaged."""
    try:
        tally = Tally.from_tensors(load_file(_file(folder, first)))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return tally if (tally.first, tally.last) == (first, last) else None


class _Seen:
    """Counts the images that a process has seen."""

    def __init__(self, n: int, share: int, report: Report | None) -> None:
        self.n, self.share, self.report = n, share, report
        self.count = 0

    def add(self, count: int) -> None:
        self.count += count
        if self.report is not None:
            self.report(min(self.n, self.count * self.share), self.n)

    def of(self, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            yield batch
            self.add(len(batch))


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ShortflowError(
            f"{folder}: {error.strerror or error}; make space, and give the same command again: finished chunks "
            "are kept"
        ) from error
