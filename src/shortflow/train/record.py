"""What a step did, as numbers that stay on the device until somebody asks for them.

A device works through a queue that the host fills. Reading a number waits for the whole queue, after which the device
has nothing to do until the host has filled it again; so a step reads nothing, and a line of the log reads all of its
steps at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.train.typed import listed, mapped, number, or_none, whole

__all__ = ["BINS", "CELLS", "Cell", "Measured", "Numbers", "StepRecord", "merged_cells"]

BINS = 8  # of the time axis, for the loss by time
CELLS = 4  # along t and along r, for the error and the derivative

Cell = tuple[float, float, int]
"""(mean, largest, rows) of the error, or of the root mean square of du/dt, on the rows whose times lie in one cell of
(t, r)."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a step measured.

    Attributes:
        loss, grad_norm: of the step (the norm before clipping). Where one of them is not finite the step was skipped,
            and there is nothing else.
        logs: mean over the rows that have the quantity.
        by_time: mean error per bin of t (BINS equal bins of [0, 1]), None where a bin is empty.
        rows, rows_by_time: how many rows each of these is a mean over.
        errors: of the error: CELLS × CELLS cells of (t, r), row by row; None where a cell is empty. It is () in records
            of earlier versions.
        cells: the same of the derivative, where the step took one. It is () where no row has a derivative.
    """

    loss: float
    grad_norm: float
    logs: Mapping[str, float]
    by_time: tuple[float | None, ...]
    rows: Mapping[str, int]
    rows_by_time: tuple[int, ...]
    errors: tuple[Cell | None, ...] = ()
    cells: tuple[Cell | None, ...] = ()

    @property
    def skipped(self) -> bool:
        """Whether the weights stayed where they were, because the loss or its gradient was not finite."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))

    @staticmethod
    def merged(parts: "Sequence[Numbers]") -> "Numbers":
        """The numbers of one step, of which each process has seen some of the rows; loss and norm are of all."""
        rows = {name: sum(part.rows.get(name, 0) for part in parts) for part in parts for name in part.logs}
        logs = {
            name: math.fsum(part.logs[name] * part.rows[name] for part in parts if name in part.logs) / count
            for name, count in rows.items()
        }
        counts = tuple(map(sum, zip(*(part.rows_by_time for part in parts), strict=True)))
        sums = [
            math.fsum((part.by_time[i] or 0.0) * part.rows_by_time[i] for part in parts) for i in range(len(counts))
        ]
        by_time = tuple(total / count if count else None for total, count in zip(sums, counts, strict=True))
        errors = merged_cells([part.errors for part in parts if part.errors])
        cells = merged_cells([part.cells for part in parts if part.cells])
        return replace(parts[0], logs=logs, by_time=by_time, rows=rows, rows_by_time=counts, errors=errors, cells=cells)


def merged_cells(parts: Sequence[tuple[Cell | None, ...]]) -> tuple[Cell | None, ...]:
    """The cells of all rows together."""
    found: list[Cell | None] = []
    for cells in zip(*parts, strict=True):
        filled = [cell for cell in cells if cell is not None]
        count = sum(rows for _, _, rows in filled)
        mean = math.fsum(mean * rows for mean, _, rows in filled) / max(count, 1)
        found.append((mean, max(largest for _, largest, _ in filled), count) if filled else None)
    return tuple(found)


class Measured:
    """The numbers of one step, read from the device when they are first asked for.

    Args:
        step: counts from 1.
        values: loss, norm, a mean for each of the `names` (NaN where no row has the quantity), the rows that have each,
            sums and counts by time; sums, counts and largest values of the error by cell, and if there is a derivative
            among the names, of it.
    """

    def __init__(self, step: int, values: Float[Tensor, "n"], names: Sequence[str]) -> None:
        self.step, self._values, self._names = step, values, tuple(names)
        self._numbers: Numbers | None = None

    @staticmethod
    def of(
        step: int,
        loss: Float[Tensor, ""],
        norm: Float[Tensor, ""],
        logs: Mapping[str, Float[Tensor, "b"]],
        t: Float[Tensor, "b"],
        r: Float[Tensor, "b"],
    ) -> "Measured":
        """The numbers of a step from its loss, the norm of its gradient, and the rows' quantities and times."""
        error = logs["error"].detach().float()
        index = (t * BINS).long().clamp(0, BINS - 1)
        bins = torch.zeros(2, BINS, device=t.device)
        sums, counts = bins[0].index_add(0, index, error), bins[1].index_add(0, index, torch.ones_like(error))
        means = [values.detach().float().nanmean() for values in logs.values()]
        means += [(~values.detach().isnan()).sum() for values in logs.values()]
        loss, norm = loss.detach(), norm.detach()
        dtype = torch.promote_types(loss.dtype, norm.dtype)
        heads = torch.stack([value.to(dtype) for value in (loss, norm, *means)])
        sizes = [error, *([logs[TANGENT].detach().float()] if TANGENT in logs else [])]
        cells = [_by_cell(size, t, r).flatten() for size in sizes]
        return Measured(step, torch.cat([heads, *(part.to(dtype) for part in (sums, counts, *cells))]), tuple(logs))

    @property
    def known(self) -> bool:
        """Whether they have been read."""
        return self._numbers is not None

    @property
    def numbers(self) -> Numbers:
        """The numbers; the device is waited for, the first time."""
        if self._numbers is None:
            self._take(self._values.tolist())
        assert self._numbers is not None
        return self._numbers

    @staticmethod
    def read(steps: "Sequence[Measured]") -> None:
        """Read the numbers of many steps, which waits once."""
        steps = [one for one in steps if not one.known]
        values = torch.cat([one._values for one in steps]).tolist() if steps else []
        for one in steps:
            one._take(values[: len(one._values)])
            values = values[len(one._values) :]

    def _take(self, values: list[float]) -> None:
        loss, norm, *rest = values
        if not (math.isfinite(loss) and math.isfinite(norm)):
            nothing: Any = {"logs": {}, "rows": {}, "by_time": (None,) * BINS, "rows_by_time": (0,) * BINS}
            self._numbers = Numbers(loss=loss, grad_norm=norm, **nothing)
            return
        n = len(self._names)
        means, rows, rest = rest[:n], rest[n : 2 * n], rest[2 * n :]
        sums, counts, cells = rest[:BINS], rest[BINS : 2 * BINS], rest[2 * BINS :]
        known = [(name, *each) for name, *each in zip(self._names, means, rows, strict=True) if not math.isnan(each[0])]
        self._numbers = Numbers(
            loss=loss,
            grad_norm=norm,
            logs={name: mean for name, mean, _ in known},
            by_time=tuple(s / c if c else None for s, c in zip(sums, counts, strict=True)),
            rows={name: round(count) for name, _, count in known},
            rows_by_time=tuple(map(round, counts)),
            errors=_cells(cells[: 3 * CELLS**2]),
            cells=_cells(cells[3 * CELLS**2 :]),
        )


TANGENT = "tangent"  # what the root mean square of du/dt is called in the logs


def _by_cell(size: Float[Tensor, "b"], t: Float[Tensor, "b"], r: Float[Tensor, "b"]) -> Float[Tensor, "3 c"]:
    """Sums, counts and largest values by cell; rows without a value are NaN."""
    i, j = ((time * CELLS).long().clamp(0, CELLS - 1) for time in (t, r))
    cell, known = i * CELLS + j, ~size.isnan()
    size = torch.where(known, size, torch.zeros_like(size))
    zeros = torch.zeros(CELLS * CELLS, dtype=size.dtype, device=size.device)
    largest = zeros.scatter_reduce(0, cell, size, "amax")
    return torch.stack([zeros.index_add(0, cell, size), zeros.index_add(0, cell, known.to(size.dtype)), largest])


def _cells(values: Sequence[float]) -> tuple[Cell | None, ...]:
    """The cells of what `_by_cell` found; () where no row has a value."""
    n = CELLS * CELLS
    found = zip(values[:n], values[n : 2 * n], values[2 * n :], strict=True)
    cells = tuple((s / rows, largest, round(rows)) if rows else None for s, rows, largest in found)
    return cells if any(cell is not None for cell in cells) else ()


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did. `step` counts from 1; `images` is the clock after the step.

    Attributes:
        batch: images of the step.
        lr: its learning rate.
        seconds: time that the host took for it, with the device where numbers were read.
        measured: its loss, gradient norm and logs, which may still be on the device; `loss`, `grad_norm`, `logs` and
            `by_time` (see `Numbers`) wait for it.
    """

    step: int
    images: int
    batch: int
    lr: float
    seconds: float
    measured: Measured | Numbers

    @property
    def known(self) -> bool:
        """Whether the numbers are there, so that asking for them waits for nothing."""
        return isinstance(self.measured, Numbers) or self.measured.known

    @property
    def numbers(self) -> Numbers:
        return self.measured if isinstance(self.measured, Numbers) else self.measured.numbers

    @property
    def skipped(self) -> bool:
        """Whether the step left the weights where they were, see `Numbers`."""
        return self.numbers.skipped

    @property
    def loss(self) -> float:
        return self.numbers.loss

    @property
    def grad_norm(self) -> float:
        return self.numbers.grad_norm

    @property
    def logs(self) -> Mapping[str, float]:
        return self.numbers.logs

    @property
    def by_time(self) -> tuple[float | None, ...]:
        return self.numbers.by_time

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values, which know no number that is not finite."""
        own = {name: getattr(self, name) for name in ("step", "images", "batch", "lr", "seconds")}
        numbers = self.numbers
        size = {name: getattr(numbers, name) for name in ("loss", "grad_norm")}
        size = {name: value if math.isfinite(value) else None for name, value in size.items()}
        return {**own, **vars(numbers), **size, "logs": dict(self.logs), "rows": dict(numbers.rows)}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "StepRecord":
        """The record that `as_json` has written. Raises `ValueError` for anything else."""
        own = {
            "step": whole(record["step"], least=1),
            "images": whole(record["images"]),
            "batch": whole(record["batch"], least=1),
            "lr": number(record["lr"]),
            "seconds": number(record["seconds"]),
        }
        loss, norm = (or_none(number, record[name]) for name in ("loss", "grad_norm"))
        errors, cells = (record.get(name, ()) for name in ("errors", "cells"))
        numbers = Numbers(
            loss=math.nan if loss is None else loss,
            grad_norm=math.nan if norm is None else norm,
            logs=mapped(number, record["logs"]),
            by_time=tuple(listed(lambda value: or_none(number, value), record["by_time"], BINS)),
            rows=mapped(whole, record["rows"]),
            rows_by_time=tuple(listed(whole, record["rows_by_time"], BINS)),
            errors=_listed_cells(errors),
            cells=_listed_cells(cells),
        )
        if not numbers.rows.keys() >= numbers.logs.keys():
            raise ValueError(f"it has not the rows of {', '.join(numbers.logs.keys() - numbers.rows.keys())}")
        return StepRecord(**own, measured=numbers)


def _listed_cells(values: Any) -> tuple[Cell | None, ...]:
    return tuple(listed(lambda value: or_none(_cell, value), values, CELLS * CELLS if values else 0))


def _cell(value: Any) -> Cell:
    """A cell of JSON values."""
    mean, largest, _ = listed(number, value, 3)
    return mean, largest, whole(value[2])
