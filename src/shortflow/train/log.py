"""`stats.jsonl`: one JSON object a line, each the mean over the steps since the last one. The record of a run.

Beside means a line has, where it applies:

    skipped                     how many of the steps were skipped, because loss or gradient was not finite; the means
                                are those of the others, and null if there are none
    error_by_cell               mean error by cell of (t, r): entry [i][j], j ≤ i, is that of the rows with t in the
                                i-th quarter of [0, 1] and r in the j-th; null where there was none
    tangent_mean, tangent_max   root mean square of du/dt, by the same cells
    spikes                      the cells whose largest du/dt is SPIKE times what it was in the lines before
"""

import json
import math
import statistics
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shortflow.files import set_aside, write_atomic
from shortflow.train.engine import Engine
from shortflow.train.record import BINS, CELLS, Cell, Numbers, StepRecord, merged_cells

__all__ = ["SPIKE", "StatsLog"]

SPIKE = 10.0  # times the median of
LINES = range(5, 21)  # so many lines before


class StatsLog:
    """Collects records and appends a line after every `every` steps, counted from the beginning of the run.

    Args:
        path: the file. Lines of steps after `start` are dropped, with `start` = 0 all.
        start: steps done before.
        pending: what `pending` was at that time, so that a resumed run writes the lines of an uninterrupted one.
        engine: the processes of the run, all of which keep a log; None for this one alone. The first one writes, the
            means over the rows of all.

    A crash of the machine may leave anything behind what a state has waited for. Lines that cannot be read are said in
    a warning and left out; where they were of steps that are not taken again, the file is kept aside.
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
        self._earlier = [StepRecord.from_json(record) for record in pending]  # of all processes
        self._window: list[StepRecord] = []
        if engine is None or engine.main:
            last = (self._earlier[0].step if self._earlier else start + 1) - 1  # that has a line
            kept = _lines_until(path, start, last) if start > 0 else []
            write_atomic(path, "".join(line + "\n" for line in kept))
            self._before: deque[Any] = deque((json.loads(line) for line in kept[-LINES[-1] :]), maxlen=LINES[-1])

    @property
    def pending(self) -> list[dict[str, Any]]:
        """The records since the last line, as JSON values; all processes must ask."""
        return [record.as_json() for record in self._whole()]

    def _whole(self) -> list[StepRecord]:
        """The records since the last line, of all processes together."""
        if self.engine is None or self.engine.world == 1:
            return self._earlier + self._window
        found = self.engine.gathered([record.as_json() for record in self._window])
        steps = ([StepRecord.from_json(each) for each in one] for one in zip(*found, strict=True))
        whole = [replace(one[0], measured=Numbers.merged([each.numbers for each in one])) for one in steps]
        return self._earlier + whole

    def add(self, record: StepRecord, last: bool = False) -> dict[str, Any] | None:
        """Take a record; returns the line that was written, if one was due, in the process that writes."""
        self._window.append(record)
        if record.step % self.every and not last:
            return None
        line = summary(self._whole())
        self._earlier, self._window = [], []
        if self.engine is not None and not self.engine.main:
            return None
        if found := spikes(line, self._before):
            line["spikes"] = found
        self._before.append(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def _lines_until(path: Path, step: int, last: int) -> list[str]:
    """The lines of steps up to `step`, the last of which is that of step `last`."""
    if not path.exists():
        return []
    kept, damaged, reached = [], [], (0, 0)  # line and step
    for place, row in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what has no newline was cut off
        found = _step_of(row)
        if found is None:
            damaged.append(place)
        elif found <= step:
            kept.append(row.decode("utf-8"))
            reached = place, found
    lost = reached[1] < last or any(place < reached[0] for place in damaged)
    if not damaged and not lost:
        return kept
    fault = f"it ends before the line of step {last}"
    if damaged:
        lines = "line" if len(damaged) == 1 else f"{len(damaged)} lines from line"
        fault = f"{lines} {damaged[0]}{' on' if len(damaged) > 1 else ''} cannot be read"
    if not lost:
        warnings.warn(
            f"{path}: {fault}, as a crash of the machine leaves it. The steps after {step} are taken again, and write "
            "their lines again; nothing is lost",
            stacklevel=4,
        )
    else:
        aside = set_aside(path)
        warnings.warn(
            f"{path}: {fault}, and these steps are not taken again. The file is kept aside as {aside.name}, and the "
            f"record goes on with the {len(kept)} lines that can be read",
            stacklevel=4,
        )
    return kept


def _step_of(row: bytes) -> int | None:
    """The step of a line; None where it is none of a record."""
    try:
        line = json.loads(row.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return step if type(step) is int and step > 0 else None


def summary(window: Sequence[StepRecord]) -> dict[str, Any]:
    """Means over a window of records, with the clock and learning rate of the last."""
    last, good = window[-1], [record for record in window if not record.skipped]
    quantities: dict[str, list[float]] = defaultdict(list)
    bins: list[list[float]] = [[] for _ in range(BINS)]
    for record in good:
        for name, value in {"loss": record.loss, "grad_norm": record.grad_norm, **record.logs}.items():
            quantities[name].append(value)
        for values, value in zip(bins, record.by_time, strict=True):
            if value is not None:
                values.append(value)
    seconds = math.fsum(record.seconds for record in window)
    means = {name: _mean(values) for name, values in quantities.items()}
    return {
        "step": last.step,
        "images": last.images,
        **(means or {"loss": None, "grad_norm": None}),
        "lr": last.lr,
        "error_by_time": [_mean(values) if values else None for values in bins],
        **_by_cell(good),
        **({"skipped": len(window) - len(good)} if len(good) < len(window) else {}),
        "images_per_second": sum(record.batch for record in window) / max(seconds, 1e-9),
    }


def _mean(values: Sequence[float]) -> float:
    # The exact sum does not know ∞ − ∞.
    return (math.fsum(values) if all(map(math.isfinite, values)) else sum(values)) / len(values)


def _by_cell(window: Sequence[StepRecord]) -> dict[str, Any]:
    """Mean error by cell; and mean and largest derivative, where there is one."""
    found: dict[str, Any] = {}
    if errors := _rows([record.numbers.errors for record in window]):
        found["error_by_cell"] = [[cell and cell[0] for cell in row] for row in errors]
    if cells := _rows([record.numbers.cells for record in window]):
        found["tangent_mean"] = [[cell and cell[0] for cell in row] for row in cells]
        found["tangent_max"] = [[cell and cell[1] for cell in row] for row in cells]
    return found


def _rows(parts: Sequence[tuple[Cell | None, ...]]) -> list[tuple[Cell | None, ...]]:
    """The cells of all steps together, those with r ≤ t, a row for each t; [] where no step has any."""
    cells = merged_cells([part for part in parts if part])
    return [cells[CELLS * i : CELLS * i + i + 1] for i in range(CELLS)] if cells else []


def spikes(line: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells in which the largest derivative is SPIKE times the median of the lines before.

    Each as {"t": [from, to], "r": [from, to], "tangent": the value, "usual": the median}.
    """
    found = []
    for i, row in enumerate(line.get("tangent_max", [])):
        for j, value in enumerate(row):
            past = [each for line in before if (each := _entry(line, i, j)) is not None]
            if value is None or len(past) < LINES[0] or not value > SPIKE * (usual := statistics.median(past)):
                continue
            t, r = ([k / CELLS, (k + 1) / CELLS] for k in (i, j))
            found.append({"t": t, "r": r, "tangent": value, "usual": usual})
    return found


def _entry(line: Mapping[str, Any], i: int, j: int) -> float | None:
    """The largest derivative of a cell in a line that was read from a file, which may be damaged."""
    try:
        value = line["tangent_max"][i][j]
    except (KeyError, IndexError, TypeError):
        return None
    return value if isinstance(value, int | float) else None
