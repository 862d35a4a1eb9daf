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

from shortflow.errors import ShortflowError

__all__ = ["BINS", "Measured", "Numbers", "StepRecord"]

BINS = 8  # of the time axis, for the loss by time


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a step measured.

    Attributes:
        loss, grad_norm: of the step (the norm before clipping).
        logs: mean over the rows that have the quantity.
        by_time: mean error per bin of t (BINS equal bins of [0, 1]), None where a bin is empty.
        rows, rows_by_time: how many rows each of these is a mean over.
    """

    loss: float
    grad_norm: float
    logs: Mapping[str, float]
    by_time: tuple[float | None, ...]
    rows: Mapping[str, int]
    rows_by_time: tuple[int, ...]

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
        return replace(parts[0], logs=logs, by_time=by_time, rows=rows, rows_by_time=counts)


class Measured:
    """The numbers of one step, read from the device when they are first asked for, and checked.

    Args:
        step: counts from 1, for the message.
        values: loss, norm, a mean for each of the `names` (NaN where no row has the quantity), the rows that have each,
            sums and counts by time.
    """

    def __init__(self, step: int, values: Float[Tensor, "n"], names: Sequence[str]) -> None:
        self._step, self._values, self._names = step, values, tuple(names)
        self._numbers: Numbers | None = None

    @staticmethod
    def of(
        step: int,
        loss: Float[Tensor, ""],
        norm: Float[Tensor, ""],
        logs: Mapping[str, Float[Tensor, "b"]],
        t: Float[Tensor, "b"],
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
        return Measured(step, torch.cat([heads, sums.to(dtype), counts.to(dtype)]), tuple(logs))

    @property
    def known(self) -> bool:
        """Whether they have been read."""
        return self._numbers is not None

    @property
    def numbers(self) -> Numbers:
        """The numbers; the device is waited for, the first time.

        Raises:
            ShortflowError: if the loss or the norm of the gradient is not finite.
        """
        if self._numbers is None:
            self._take(self._values.tolist())
        assert self._numbers is not None
        return self._numbers

    @staticmethod
    def read(steps: "Sequence[Measured]") -> None:
        """Read the numbers of many steps, which waits once.

        Raises:
            ShortflowError: for the first step whose loss or gradient is not finite.
        """
        steps = [one for one in steps if not one.known]
        values = torch.cat([one._values for one in steps]).tolist() if steps else []
        for one in steps:
            one._take(values[: len(one._values)])
            values = values[len(one._values) :]

    def _take(self, values: list[float]) -> None:
        loss, norm, *rest = values
        for what, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise ShortflowError(
                    f"the {what} is {value} at step {self._step}; the weights are those after step {self._step - 1}. "
                    "Try a smaller learning rate, gradient clipping (optimizer.clip) or a tangent warm-up"
                )
        n = len(self._names)
        means, rows, sums, counts = rest[:n], rest[n : 2 * n], rest[2 * n : -BINS], rest[-BINS:]
        known = [(name, *each) for name, *each in zip(self._names, means, rows, strict=True) if not math.isnan(each[0])]
        self._numbers = Numbers(
            loss=loss,
            grad_norm=norm,
            logs={name: mean for name, mean, _ in known},
            by_time=tuple(s / c if c else None for s, c in zip(sums, counts, strict=True)),
            rows={name: round(count) for name, _, count in known},
            rows_by_time=tuple(map(round, counts)),
        )


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did. `step` counts from 1; `images` is the clock after the step.

    Attributes:
        batch: images of the step.
        lr: its learning rate.
        seconds: time that the host took for it, with the device where numbers were read.
        measured: its loss, gradient norm and logs, which may still be on the device; `loss`, `grad_norm`, `logs` and
            `by_time` (see `Numbers`) wait for it, and raise `ShortflowError` where they are not finite.
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
        """The record as JSON values."""
        own = {name: getattr(self, name) for name in ("step", "images", "batch", "lr", "seconds")}
        return {**own, **vars(self.numbers), "logs": dict(self.logs), "rows": dict(self.numbers.rows)}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "StepRecord":
        """The record that `as_json` has written."""
        own = {name: record[name] for name in ("step", "images", "batch", "lr", "seconds")}
        numbers = Numbers(
            loss=record["loss"],
            grad_norm=record["grad_norm"],
            logs=dict(record["logs"]),
            by_time=tuple(record["by_time"]),
            rows=dict(record["rows"]),
            rows_by_time=tuple(record["rows_by_time"]),
        )
        return StepRecord(**own, measured=numbers)
