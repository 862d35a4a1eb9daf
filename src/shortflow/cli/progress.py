"""Long operations on the screen: a bar on a terminal, and in a plain log a line now and then, with the time left."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shortflow.cli.common import duration, rank, say

__all__ = ["Progress", "progress"]

Progress = Callable[..., None]
"""(done, in all, texts that say more, the most important first) → shown, if it is time."""

clock = time.monotonic

PATIENCE = 10.0  # seconds that an operation takes before a log has a line of it
RARELY = 600.0  # seconds after which there is one in any case
WIDE = 110  # columns from which a bar says everything


@contextmanager
def progress(what: str, *, title: str = "", patience: float = PATIENCE, stays: bool = False) -> Iterator[Progress]:
    """Show how far an operation is, from the first call of the function until all is done, or the context ends.

    Args:
        what: is counted, for the lines of a log: "step", "samples".
        title: stands before a bar; by default `what`.
        patience: seconds from one line of a log to the next at least. Lines are due at the tenths, and every ten
            minutes.
        stays: whether a bar stays on the screen when all is done.
    """
    if rank() > 0:
        yield lambda done, total, said=(): None
        return
    from rich.console import Console

    console = Console()
    shown = _Bar(console, title or what, stays) if console.is_terminal else _Lines(what, patience)
    try:
        yield shown.update
    finally:
        shown.close()


class _Lines:
    """Lines of a log."""

    def __init__(self, what: str, patience: float) -> None:
        self.what, self.patience = what, patience
        self.line = clock()  # the time of the last one
        self.done = 0
        self.first: tuple[float, int] | None = None  # time of the first call, and what was done by then

    def update(self, done: int, total: int, said: Sequence[str] = ()) -> None:
        now = clock()
        self.first = self.first or (now, done)
        tenth = 10 * done // total > 10 * self.done // total
        self.done = done
        if not ((tenth and now - self.line >= self.patience) or now - self.line >= RARELY):
            return
        self.line = now
        whole = f"{total:,}"
        parts = [f"{self.what} {done:{len(whole)},}/{whole}", *said]
        since, before = self.first
        if done > before:
            parts.append(f"left {duration((total - done) * (now - since) / (done - before))}")
        say("  ".join(part for part in parts if part))

    def close(self) -> None:
        """Lines stay."""


class _Bar:
    """A bar of rich, on the screen from the first update to the last one."""

    def __init__(self, console: Any, title: str, stays: bool) -> None:
        self.console, self.title, self.stays = console, title, stays
        self.bar: Any = None
        self.task: Any = None

    def update(self, done: int, total: int, said: Sequence[str] = ()) -> None:
        if self.bar is None:
            self.bar = self._started(total)
        kept = said if self.console.width >= WIDE else said[:2]
        self.bar.update(self.task, completed=done, said="  ".join(part for part in kept if part))
        if done >= total:
            self.close()

    def _started(self, total: int) -> Any:
        from rich import progress as rich

        left = (rich.TextColumn("left"), rich.TimeRemainingColumn())
        said = rich.TextColumn("{task.fields[said]}")
        columns: tuple[rich.ProgressColumn, ...] = (rich.MofNCompleteColumn(), said, *left)
        if self.console.width >= WIDE:
            columns = (rich.BarColumn(), *columns[:2], rich.TimeElapsedColumn(), *left)
        bar = rich.Progress(rich.TextColumn(self.title), *columns, console=self.console, transient=not self.stays)
        self.task = bar.add_task("", total=total, said="")
        bar.start()
        return bar

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
