"""`stats.jsonl`: one JSON object a line, each the mean over the steps since the last one. The record of a run."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from shortflow.files import write_atomic
from shortflow.train.loop import BINS, StepRecord

__all__ = ["StatsLog"]


class StatsLog:
    """Collects records and appends a line every `every` steps. Opening at `start` drops lines of later steps (resume)."""

    def __init__(self, path: Path, every: int, start: int = 0) -> None:
        self.path, self.every = path, every
        self._window: list[StepRecord] = []
        kept = [line for line in self._lines() if json.loads(line)["step"] <= start] if start else []
        write_atomic(path, "".join(line + "\n" for line in kept))

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        whole = self.path.read_text().split("\n")[:-1]  # a last line without its newline was cut off
        return [line for line in whole if line.strip()]

    def add(self, record: StepRecord, last: bool = False) -> dict[str, Any] | None:
        """Take a record; returns the line that was written, if one was due."""
        self._window.append(record)
        if record.step % self.every and not last:
            return None
        line = summary(self._window)
        self._window = []
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        return line


def summary(window: list[StepRecord]) -> dict[str, Any]:
    """Means over a window of records, with the clock and learning rate of the last."""
    last = window[-1]
    quantities: dict[str, list[float]] = defaultdict(list)
    bins: list[list[float]] = [[] for _ in range(BINS)]
    for record in window:
        for name, value in {"loss": record.loss, "grad_norm": record.grad_norm, **record.logs}.items():
            quantities[name].append(value)
        for bin_values, value in zip(bins, record.by_time, strict=True):
            if value is not None:
                bin_values.append(value)
    seconds = math.fsum(record.seconds for record in window)
    return {
        "step": last.step,
        "images": last.images,
        **{name: math.fsum(values) / len(values) for name, values in quantities.items()},
        "lr": last.lr,
        "error_by_time": [math.fsum(v) / len(v) if v else None for v in bins],
        "images_per_second": (last.images - window[0].images + last.images // last.step) / max(seconds, 1e-9),
    }
