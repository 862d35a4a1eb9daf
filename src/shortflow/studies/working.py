"""A worker: makes the cells of a study one after the other, as long as there are any that nobody else makes.

It needs OUT alone, so a worker may run on any machine that sees the directory; the locks of cells keep workers apart.
"""

import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from shortflow.errors import ShortflowError
from shortflow.lock import RunLock
from shortflow.studies.cells import Cell, claim, fail, look, make
from shortflow.studies.planning import StudyPlan, read_plan
from shortflow.studies.reusing import check_sources
from shortflow.train import Interrupted

__all__ = ["STOPPED", "tied", "work"]

STOPPED = 130  # the exit code of a worker that was asked to stop
POLL = 1.0  # seconds between two looks for work


def work(out: Path, *, sources: Sequence[Path] = (), say: Callable[[str], None] = lambda text: None) -> bool:
    """Make cells until none is left to make, by this process or any other; whether all went well.

    Runs that the studies in `sources` have made already are copied, and not trained again. What fails is noted
    (failed.json, log.txt), and the next cell begun. SIGTERM and SIGINT save the state of a cell.

    Raises:
        ConfigError: if there is no study in `out` or one of the sources.
        Interrupted: if it was asked to stop.
    """
    torch.set_num_threads(read_plan(out).threads)
    check_sources(sources)
    while True:
        plan = read_plan(out)
        cells = look(plan, out)
        held = _next(plan, cells)
        if held is None:
            if not any(cell.phase in ("missing", "running") for cell in cells):
                return all(cell.phase == "done" for cell in cells)
            time.sleep(POLL)
            continue
        cell, lock = held
        try:
            say(f"{cell.name}: {cell.directory}")
            _made(plan, cell, out, sources)
        finally:
            lock.release()


def _next(plan: StudyPlan, cells: list[Cell]) -> tuple[Cell, RunLock] | None:
    """The first cell that can be made now and is nobody's, held."""
    for cell in cells:
        if cell.phase == "missing" and cell.ready:
            lock = claim(plan, cell)
            if lock is not None:
                return cell, lock
    return None


def _made(plan: StudyPlan, cell: Cell, out: Path, sources: Sequence[Path]) -> None:
    """Make a cell, with everything that is said meanwhile in its log."""
    began = time.perf_counter()
    with _logged(cell.directory / "log.txt"):
        _say(f"{cell.name} in process {os.getpid()} on {socket.gethostname()}, {torch.get_num_threads()} threads")
        try:
            make(plan, cell, out, _say, sources)
        except Interrupted as stopped:
            _say(str(stopped))
            raise
        except Exception as error:
            traceback.print_exc()
            known = isinstance(error, ShortflowError | OSError)
            fail(cell.directory, str(error) if known else f"{type(error).__name__}: {error}")
        else:
            _say(f"done after {time.perf_counter() - began:.0f} s")


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Standard output and error go to the end of a file, also what a crash says below Python."""
    with open(path, "a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        saved = [(stream, os.dup(stream)) for stream in (1, 2)]
        try:
            for stream, _ in saved:
                os.dup2(log.fileno(), stream)
            yield
        finally:
            for stream, before in saved:
                os.dup2(before, stream)
                os.close(before)


def tied() -> None:
    """Stop, as by SIGTERM, when standard input ends: with the process that holds its other end, however that ends."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
