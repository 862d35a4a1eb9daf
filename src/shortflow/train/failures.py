"""Steps whose loss or gradient is not finite: how many may be skipped, and what is kept for study if they are too many.

    RUN/failures/00000123/failure.json         which step, what was not finite, the steps skipped before it, the rows
    RUN/failures/00000123/draw-0.safetensors   every random number of the step, and the loss of every row; for each part
    RUN/failures/00000123/network.safetensors  the weights that the step was computed with; likewise teacher.safetensors

A loss is a function of (weights, draw), so this is all that it takes to see it again:

    draw = load_draws(RUN/failures/00000123, references)[0]
    objective.evaluate(flow, flow, draw).loss
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shortflow.draw import Draw, References
from shortflow.errors import ShortflowError
from shortflow.files import atomic_path, write_atomic
from shortflow.train.state import module_tensors
from shortflow.typing import Progress, Times

__all__ = ["WITHIN", "NotFinite", "Skips", "load_draws", "save_failure"]

WITHIN = 100  # steps, of which so many may be skipped
_TENSORS = ("x", "eps", "x_t", "label", "dropped", "coin", "guidance")
_NUMBERS = ("null_label", "jumps", "counted")


class NotFinite(ShortflowError):
    """More steps than may be had a loss or a gradient that is not finite.

    Attributes:
        step: the last of them, from 1.
        what, value: the quantity and what it was.
        skipped: all of them, this one included.
        draws: of the step, by part of the batch; those of this process.
    """

    def __init__(self, what: str, value: float, skipped: Sequence[int], draws: Mapping[int, Draw]) -> None:
        self.what, self.value, self.skipped, self.draws = what, value, tuple(skipped), dict(draws)
        self.step = self.skipped[-1]
        before = len(skipped) - 1
        more = f", and {before} of the {WITHIN} steps before it were skipped for the same reason" if before else ""
        super().__init__(
            f"the {what} is {value} at step {self.step}{more}; the weights have not followed it. "
            "Try a smaller learning rate, gradient clipping (optimizer.clip) or a tangent warm-up"
        )


@dataclass(kw_only=True)
class Skips:
    """The steps that were skipped of the last WITHIN, and how many may be."""

    allowed: int
    steps: list[int] = field(default_factory=list)

    def add(self, step: int) -> bool:
        """Count a skipped step; whether there are more than may be."""
        self.steps = [*(each for each in self.steps if each > step - WITHIN), step]
        return len(self.steps) > self.allowed

    def with_those(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """The steps, and those among the records (as JSON values) that nobody has counted yet."""
        return sorted({*self.steps, *(each["step"] for each in records if None in (each["loss"], each["grad_norm"]))})


def what_is_not_finite(loss: float, norm: float) -> tuple[str, float]:
    """The quantity that is not, by name, and its value."""
    return ("norm of the gradient", norm) if math.isfinite(loss) else ("loss", loss)


def save_failure(
    folder: Path, failure: NotFinite, step: nn.Module, models: Mapping[str, nn.Module], *, main: bool = True
) -> Path:
    """Write what a step has failed on into `folder`; all processes must ask, and the first one writes the weights.

    Args:
        step: the step module, which is asked once more for the loss of every row.
        models: the networks to keep, by name, in one piece each.
    """
    rows: dict[str, list[int]] = {}
    files: list[tuple[str, Mapping[str, Tensor], dict[str, str] | None]] = []
    for part, draw in failure.draws.items():
        with torch.no_grad():
            loss = step(draw)[1].loss.float()
        rows[str(part)] = (~loss.isfinite()).nonzero().flatten().tolist()
        tensors = {name: value for name in _TENSORS if (value := getattr(draw, name)) is not None}
        numbers = {name: getattr(draw, name) for name in _NUMBERS}
        numbers |= {"dropout_seed": int(draw.dropout_seed), "progress": vars(draw.progress)}
        content = {**tensors, **draw.times._asdict(), "loss": loss}
        files.append((f"draw-{part}.safetensors", content, {"draw": json.dumps(numbers)}))
    weights = {name: module_tensors(model) for name, model in models.items()}  # before anything that one may fail in
    if main:
        files += [(f"{name}.safetensors", tensors, None) for name, tensors in weights.items()]
        found = {"step": failure.step, "what": failure.what, "value": str(failure.value), "skipped": failure.skipped}
        write_atomic(folder / "failure.json", json.dumps({**found, "rows_not_finite": rows}, indent=1) + "\n")
    for name, tensors, metadata in files:
        _write(tensors, folder / name, metadata)
    return folder


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(whole, str(temporary), metadata)


def load_draws(folder: Path, references: References = References()) -> dict[int, Draw]:
    """The draws that `save_failure` wrote, by part. The frozen models that they follow are given again."""
    return {int(path.stem.removeprefix("draw-")): _draw(path, references) for path in sorted(folder.glob("draw-*"))}


def _draw(path: Path, references: References) -> Draw:
    with safe_open(str(path), "pt") as file:
        numbers: dict[str, Any] = json.loads(file.metadata()["draw"])
    tensors = load_file(str(path))
    times = Times(*(tensors[name] for name in Times._fields))
    progress = Progress(**numbers.pop("progress"))
    kept: dict[str, Any] = {name: tensors.get(name) for name in _TENSORS}
    return Draw(**kept, **numbers, times=times, progress=progress, references=references)
