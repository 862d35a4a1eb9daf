"""`stats.jsonl`: one JSON object a line, each the mean over the steps since the last one. The record of a run."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shortflow.errors import CheckpointError
from shortflow.files import write_atomic
from shortflow.train.engine import Engine
from shortflow.train.record import BINS, Numbers, StepRecord

__all__ = ["StatsLog"]


class StatsLog:
    """Collects records and appends a line after every `every` steps, counted from the beginning of the run.

    Args:
        path: the file. Lines of steps after `start` are dropped, with `start` = 0 all.
        start: steps done before.
        pending: what `pending` was at that time, so that a resumed run writes the lines of an uninterrupted one.
        engine: the processes of the run, all of which keep a log; None for this one alone. The first one writes, the
            means over the rows of all.

    Raises:
        CheckpointError: if the file holds something else.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        start: int = 0,
        pending: Sequence[Mapping[str, Any]] = (),
        engine: Engine | None = None,
    ) -> None:
        self.path, self.every, self.engine = path, every, engine
        self._window = [StepRecord.from_json(record) for record in pending]
        if engine is None or engine.main:
            kept = _lines_until(path, start) if start > 0 else []
            write_atomic(path, "".join(line + "\n" for line in kept))

    @property
    def pending(self) -> list[dict[str, Any]]:
        """The records since the last line, as JSON values; all processes must ask."""
        return [record.as_json() for record in self._whole()]

    def _whole(self) -> list[StepRecord]:
        """The records since the last line, of all processes together."""
        if self.engine is None or self.engine.world == 1:
            return self._window
        found = self.engine.gathered([record.as_json() for record in self._window])
        steps = ([StepRecord.from_json(each) for each in one] for one in zip(*found, strict=True))
        return [replace(one[0], measured=Numbers.merged([each.numbers for each in one])) for one in steps]

    def add(self, record: StepRecord, last: bool = False) -> dict[str, Any] | None:
        """Take a record; returns the line that was written, if one was due, in the process that writes."""
        self._window.append(record)
        if record.step % self.every and not last:
            return None
        line = summary(self._whole())
        self._window = []
        if self.engine is not None and not self.engine.main:
            return None
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of steps up to `step`."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # a last line without its newline was cut off
    try:
        return [line for line in whole if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not the record of a run ({type(error).__name__}: {error}); move the file away to go on"
        ) from error


def summary(window: Sequence[StepRecord]) -> dict[str, Any]:
    """Means over a window of records, with the clock and learning rate of the last."""
    last = window[-1]
    quantities: dict[str, list[float]] = defaultdict(list)
    bins: list[list[float]] = [[] for _ in range(BINS)]
    for record in window:
        for name, value in {"loss": record.loss, "grad_norm": record.grad_norm, **record.logs}.items():
            quantities[name].append(value)
        for values, value in zip(bins, record.by_time, strict=True):
            if value is not None:
                values.append(value)
    seconds = math.fsum(record.seconds for record in window)
    return {
        "step": last.step,
        "images": last.images,
        **{name: _mean(values) for name, values in quantities.items()},
        "lr": last.lr,
        "error_by_time": [_mean(values) if values else None for values in bins],
        "images_per_second": sum(record.batch for record in window) / max(seconds, 1e-9),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
