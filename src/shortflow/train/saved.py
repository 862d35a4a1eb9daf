"""What a run saves and loads together: its training states, and its models beside them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shortflow.data.identity import DataIdentity
from shortflow.errors import CheckpointError, ShortflowError
from shortflow.files import sync_file
from shortflow.flowmap import FlowMap
from shortflow.train.ema import Average
from shortflow.train.record import StepRecord
from shortflow.train.settings import TrainSettings
from shortflow.train.space import bytes_of, room_for, told_when_full
from shortflow.train.state import latest_state, load_newest, module_tensors, optimizer_tensors, save_state
from shortflow.train.step import TrainStep
from shortflow.train.typed import entries, listed, mapped, number, or_none, text, whole
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

    @staticmethod
    def from_json(values: Any) -> "Best":
        """What a state says. Raises `ValueError` for anything else."""
        return Best(**entries(values, name=text, figure=number, step=whole))


@dataclass(frozen=True, kw_only=True)
class Setback:
    """That a run went back from a step to the state of another, and by what its learning rate is multiplied since."""

    failed: int
    back_to: int
    slowed: float = 0.5

    @staticmethod
    def from_json(values: Any) -> "Setback":
        """What a state says. Raises `ValueError` for anything else."""
        found = Setback(**entries(values, failed=whole, back_to=whole, slowed=number))
        if not 0 < found.slowed <= 1:
            raise ValueError(f"a learning rate is not slowed to {found.slowed} of it")
        return found


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
        parts: of a batch with random streams of their own: `settings.parts`, or as many as there are processes.
        data: what the run is trained on; None: that is not looked at.
    """

    directory: Path
    settings: TrainSettings
    metadata: Mapping[str, Any]
    module: TrainStep
    averages: Mapping[str, Average]
    adamw: torch.optim.Optimizer
    sharded: bool = False
    parts: int = 1
    data: DataIdentity | None = None

    @property
    def _modules(self) -> dict[str, FlowMap]:
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
        modules: dict[str, Any] = dict(self._modules)
        moments: Any = self.adamw
        if self.sharded:
            modules["network"], moments = module_tensors(self.module.flow), optimizer_tensors(self.adamw)
        if not write:
            return
        sync_file(self.directory / "stats.jsonl")  # where there is a state, there is the log until then
        step, best = left.step, left.best
        info = {
            "images": step * self.settings.batch,
            "settings": self._steering,
            "parts": self.parts,
            "references": self._references,
            "data": None if self.data is None else self.data.as_json(),
            "pending": left.pending,
            "best": None if best is None else vars(best),
            "skipped": left.skipped,
            "setback": None if left.setback is None else vars(left.setback),
        }
        kept = None if best is None else best.step
        save_state(self.states, step, modules, moments, info, self.settings.keep, kept)
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

    def told_when_full(self, what: str) -> AbstractContextManager[None]:
        """Write what is less than a MiB inside; a full disk is told as where a state is written."""

        def before() -> str:
            latest = latest_state(self.states)
            return f"The newest training state is whole ({latest})" if latest else "There is no training state yet"

        return told_when_full(what, self.directory, 0, before)

    def load(self, *, say: bool = True) -> Left:
        """Load the newest whole state.

        The models are written if the run was killed between its state and them.

        Args:
            say: in warnings what its user should know of going on.

        Raises:
            CheckpointError: if no state is whole, or it was trained with other settings, data or references.
        """
        state, info = load_newest(self.states, self._modules, self.adamw)
        remarks = self.check(state, info)
        for remark in remarks if say else ():
            warnings.warn(remark, stacklevel=3)
        left = _left(state, info)
        step, best = left.step, left.best
        if best is not None and (best.name != self.settings.keep_best or not self._state(best.step).is_dir()):
            best = None
        if step_of(self.directory / "model.safetensors") < step:
            self._save_models(step)
        self._save_best(best)
        return replace(left, best=best)

    def check(self, state: Path, info: Mapping[str, Any]) -> list[str]:
        """What a user should know before the run goes on from a state with this information.

        Raises:
            CheckpointError: if it cannot, because it is another run, or the information is none of a state.
        """
        _left(state, info)
        remarks = self._check_settings(state, info)
        self._check_references(state, info)
        return remarks + self._check_data(state, info)

    def _check_settings(self, state: Path, info: Mapping[str, Any]) -> list[str]:
        """What differs in the processes, which is no setting."""
        before, now = info.get("settings"), json.loads(json.dumps(self._steering))
        parts = info.get("parts")  # earlier versions have not written it
        if parts == self.parts and isinstance(before, dict):  # as many, whether by processes or by the setting
            before = {**before, "parts": now["parts"]}
        if before != now:
            raise CheckpointError(
                f"{state} was trained with {info.get('settings')}, which cannot go on with {now}; resume "
                "with the settings it had, or start a new run in another directory"
            )
        if parts in (None, self.parts):
            return []
        remedy = f"start {parts} process{'es' * (parts > 1)}"
        if parts > 1 and parts % self.parts == 0:
            remedy += f", or set train.parts to {parts} in {self.directory / 'run.yaml'}"
        return [
            f"every batch of {state} was shared by {parts} process{'es' * (parts > 1)} with random numbers of their "
            f"own, and is by {self.parts} from here on: the run goes on, with other numbers than it would have had. "
            f"To keep them, {remedy}"
        ]

    def _check_data(self, state: Path, info: Mapping[str, Any]) -> list[str]:
        """What was not compared, or need not be the same."""
        if self.data is None:
            return []
        if info.get("data") is None:
            return [
                f"{state} does not say what it was trained on (an earlier version has written it), so the data are "
                "not compared; the next state will say it"
            ]
        before = DataIdentity.from_json(info["data"])
        differences = "; ".join(before.differences(self.data))
        if differences and before.decoded_otherwise(self.data):
            return [
                f"the data are not to the bit those that {state} was trained on ({differences}), and may be the same "
                f"images: {self.data.decoder} decodes them, and {before.decoder} did. The run goes on"
            ]
        if differences:
            raise CheckpointError(
                f"the data are not those that {state} was trained on ({differences}), so going on would be another "
                "run; give the run back its data (wherever they lie: data.source in "
                f"{self.directory / 'run.yaml'}), or start a new run in another directory"
            )
        return []

    def _check_references(self, state: Path, info: Mapping[str, Any]) -> None:
        before, now = info.get("references", {}), self._references
        for role in {**before, **now}:
            old, new = (each.get(role, {}) for each in (before, now))
            if old.get("sha256") != new.get("sha256"):
                raise CheckpointError(
                    f"the {role} of this run is not what it was: {_said(old)} when {state} was saved, "
                    f"{_said(new)} now; give the run back its {role}, or start a new run in another directory"
                )


def _left(state: Path, info: Mapping[str, Any]) -> Left:
    """Where the run was left. Raises `CheckpointError` for information that is none of a state."""
    try:
        or_none(lambda value: whole(value, least=1), info.get("parts"))
        or_none(DataIdentity.from_json, info.get("data"))
        mapped(lambda value: entries(value, run=text, sha256=text), info.get("references", {}))
        return Left(
            step=whole(info["step"]),
            pending=[StepRecord.from_json(record).as_json() for record in listed(dict, info["pending"])],
            best=or_none(Best.from_json, info["best"]),
            skipped=listed(whole, info.get("skipped", ())),
            setback=or_none(Setback.from_json, info.get("setback")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{state} cannot be gone on from: its record makes no sense ({type(error).__name__}: {error}). Its sums "
            "are right, so this is what was written; start a new run in another directory"
        ) from error


def _said(reference: Mapping[str, Any]) -> str:
    return f"{reference['run']} (sha256 {reference['sha256'][:12]})" if reference else "none"
