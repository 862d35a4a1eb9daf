"""What a run saves and loads together: its training states, and its models beside them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shortflow.errors import CheckpointError, ShortflowError
from shortflow.files import sync_file
from shortflow.flowmap import FlowMap
from shortflow.train.ema import Average
from shortflow.train.record import StepRecord
from shortflow.train.settings import TrainSettings
from shortflow.train.space import bytes_of, room_for
from shortflow.train.state import load_newest, module_tensors, optimizer_tensors, save_state
from shortflow.train.step import TrainStep
from shortflow.train.weights import save_model, save_weights, step_of

__all__ = ["Best", "Left", "SavedRun", "Setback"]

STEERING = ("images", "batch", "parts", "group", "seed", "precision")  # the settings that change the weights
_CLOCK = ("step", "images", "lr", "images_per_second")  # in a line of the log, and nothing to be best in


@dataclass(frozen=True, kw_only=True)
class Best:
    """The smallest figure so far at a saved step: of which quantity of the log, and when."""

    name: str
    figure: float
    step: int

    @staticmethod
    def check(name: str | None, line: Mapping[str, Any]) -> None:
        """Raise `ShortflowError` unless `name` is a quantity of the log that has this line."""
        if "skipped" in line:  # it may have nothing else
            return
        known = [each for each, value in line.items() if isinstance(value, float) and each not in _CLOCK]
        if name is not None and name not in known:
            raise ShortflowError(
                f"train.keep_best = {name!r} is no quantity of this run's log; it has {', '.join(known)}"
            )

    @staticmethod
    def after(before: "Best | None", name: str | None, line: Mapping[str, Any], step: int) -> "Best | None":
        """The best after the state of `step`, where the log has this line."""
        figure = None if name is None else line.get(name)
        if name is None or figure is None or (before is not None and before.figure <= figure):
            return before
        return Best(name=name, figure=figure, step=step)


@dataclass(frozen=True, kw_only=True)
class Setback:
    """That a run went back from a step to the state of another, and by what its learning rate is multiplied since."""

    failed: int
    back_to: int
    slowed: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Left:
    """Where a run was left: what a state knows beside tensors.

    Attributes:
        step: how many are done.
        pending: the records that no line of the log has yet, as JSON values.
        best: the best state so far.
        skipped: the steps of the last ones that were skipped.
        setback: of this run, if there was one.
    """

    step: int = 0
    pending: Sequence[Mapping[str, Any]] = ()
    best: Best | None = None
    skipped: Sequence[int] = ()
    setback: Setback | None = None


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run as it is saved and loaded.

    Args:
        metadata: of the run, for the headers of its models.
        averages: that the optimiser keeps, "average" among them, which is the model.
        sharded: whether each process holds a part of the weights.
    """

    directory: Path
    settings: TrainSettings
    metadata: Mapping[str, Any]
    module: TrainStep
    averages: Mapping[str, Average]
    adamw: torch.optim.Optimizer
    sharded: bool = False

    @property
    def _parts(self) -> dict[str, FlowMap]:
        averages = {**self.averages, **self.module.averages}
        return {"network": self.module.flow, **{name: average.module for name, average in averages.items()}}

    @property
    def asked(self) -> dict[str, FlowMap]:
        """The networks that a step asks: the one that is trained, and the teacher where it is an average of it."""
        teacher = self.module.teacher
        return {"network": self.module.flow, **({} if teacher is None else {"teacher": teacher.module})}

    @property
    def _steering(self) -> dict[str, Any]:
        run = self.metadata.get("run", {})
        data = {name: value for name, value in run.get("data", {}).items() if name != "source"}  # which may be moved
        steering = {name: getattr(self.settings, name) for name in STEERING}
        return {**steering, "recipe": run.get("recipe"), "network": run.get("network"), "data": data}

    @property
    def _references(self) -> dict[str, Any]:
        return dict(self.metadata.get("references", {}))

    @property
    def states(self) -> Path:
        return self.directory / "state"

    def save(self, left: Left, *, write: bool = True) -> None:
        """Save the state, then the models. Where weights are sharded all processes must ask, of which one writes.

        Raises:
            CheckpointError: if there is no space; what was saved before stays whole.
        """
        parts: dict[str, Any] = dict(self._parts)
        moments: Any = self.adamw
        if self.sharded:
            parts["network"], moments = module_tensors(self.module.flow), optimizer_tensors(self.adamw)
        if not write:
            return
        sync_file(self.directory / "stats.jsonl")  # where there is a state, there is the log until then
        step, best = left.step, left.best
        info = {
            "images": step * self.settings.batch,
            "settings": self._steering,
            "references": self._references,
            "pending": left.pending,
            "best": None if best is None else vars(best),
            "skipped": left.skipped,
            "setback": None if left.setback is None else vars(left.setback),
        }
        kept = None if best is None else best.step
        save_state(self.states, step, parts, moments, info, self.settings.keep, kept)
        self._save_models(step)
        self._save_best(best)

    def _save_models(self, step: int) -> None:
        for name, average in self.averages.items():
            path = self.directory / ("model.safetensors" if name == "average" else f"model-{name}.safetensors")
            with self._room(path, bytes_of(average.module), step):
                save_model(average.module, path, self._header(step))

    def save_snapshot(self, step: int) -> None:
        """Keep the averaged weights as they are after `step`."""
        average, path = self.averages["average"], self.directory / f"model-step-{step:08d}.safetensors"
        with self._room(path, bytes_of(average.module), step):
            save_model(average.module, path, self._header(step))

    def _save_best(self, best: Best | None) -> None:
        """Write the model of the best state, from that state, unless it is there."""
        path = self.directory / "model-best.safetensors"
        if best is None or step_of(path) == best.step:
            return
        tensors = load_file(str(self._state(best.step) / "average.safetensors"))
        with self._room(path, bytes_of(tensors), best.step):
            save_weights(tensors, path, self._header(best.step))

    def _header(self, step: int) -> dict[str, Any]:
        return {**self.metadata, "images": step * self.settings.batch, "step": step}

    def _state(self, step: int) -> Path:
        return self.states / f"{step:08d}"

    def _room(self, path: Path, needed: int, step: int) -> AbstractContextManager[None]:
        state = self._state(step)
        before = (
            f"The training state of step {step} is whole ({state})" if state.is_dir() else "Earlier states are whole"
        )
        return room_for(path.name, self.directory, needed, before)

    def load(self) -> Left:
        """Load the newest whole state.

        The models are written if the run was killed between its state and them.

        Raises:
            CheckpointError: if no state is whole, or it was trained with other settings or references.
        """
        state, info = load_newest(self.states, self._parts, self.adamw)
        self.check(state, info)
        step = info["step"]
        try:
            pending = [StepRecord.from_json(record).as_json() for record in info["pending"]]
            best = None if info["best"] is None else Best(**info["best"])
            setback = Setback(**info["setback"]) if info.get("setback") else None
            skipped = list(map(int, info.get("skipped", ())))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{state} cannot be gone on from: its record makes no sense ({type(error).__name__}: {error})"
            ) from error
        if best is not None and (best.name != self.settings.keep_best or not self._state(best.step).is_dir()):
            best = None
        if step_of(self.directory / "model.safetensors") < step:
            self._save_models(step)
        self._save_best(best)
        return Left(step=step, pending=pending, best=best, skipped=skipped, setback=setback)

    def check(self, state: Path, info: Mapping[str, Any]) -> None:
        """Raise `CheckpointError` unless the run can go on from a state with this information."""
        now = json.loads(json.dumps(self._steering))
        if info.get("settings") != now:
            raise CheckpointError(
                f"{state} was trained with {info.get('settings')}, which cannot go on with {now}; resume "
                "with the settings it had, or start a new run in another directory"
            )
        self._check_references(state, info)

    def _check_references(self, state: Path, info: Mapping[str, Any]) -> None:
        before, now = info.get("references", {}), self._references
        for role in {**before, **now}:
            old, new = (each.get(role, {}) for each in (before, now))
            if old.get("sha256") != new.get("sha256"):
                raise CheckpointError(
                    f"the {role} of this run is not what it was: {_said(old)} when {state} was saved, "
                    f"{_said(new)} now; give the run back its {role}, or start a new run in another directory"
                )


def _said(reference: Mapping[str, Any]) -> str:
    return f"{reference['run']} (sha256 {reference['sha256'][:12]})" if reference else "none"
