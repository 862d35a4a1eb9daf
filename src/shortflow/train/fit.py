"""A whole run in its directory: resume, train, log, preview, save, and stop without losing anything.

RUN/run.yaml            the resolved configuration (written by whoever starts the run)
RUN/stats.jsonl         the record
RUN/tensorboard/        the same for TensorBoard, if it is installed
RUN/samples/*.png       previews
RUN/state/<step>/       training states
RUN/model.safetensors   the averaged weights, self-describing
RUN/model-ema-*.safetensors  the extra averages, if the optimiser keeps some
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from shortflow.draw import References
from shortflow.errors import CheckpointError
from shortflow.flowmap import FlowMap
from shortflow.nn.checkpointing import checkpoint_blocks
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.train.compiling import compile_step
from shortflow.train.ema import Average, averages_of
from shortflow.train.engine import Engine
from shortflow.train.log import StatsLog
from shortflow.train.loop import build_optimizer, train
from shortflow.train.record import StepRecord
from shortflow.train.settings import TrainSettings
from shortflow.train.state import latest_state, load_state, save_model, save_state
from shortflow.train.step import TrainStep
from shortflow.typing import Batch

__all__ = ["Interrupted", "fit"]

STEERING = ("images", "batch", "parts", "group", "seed", "precision")  # the settings that change the weights


class Interrupted(Exception):
    """Training was asked to stop; everything up to `step` is saved in `directory`."""

    def __init__(self, directory: Path, step: int, total: int) -> None:
        super().__init__(f"stopped after step {step} of {total}; the state is saved in {directory}")
        self.directory, self.step, self.total = directory, step, total


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the context, the first SIGINT or SIGTERM only sets a flag; a second one acts as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stopped.set()
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield stopped.is_set
    finally:
        restore()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is saved and loaded together."""

    directory: Path
    settings: TrainSettings
    metadata: Mapping[str, Any]
    module: TrainStep
    averages: Mapping[str, Average]
    adamw: torch.optim.Optimizer

    @property
    def _parts(self) -> dict[str, FlowMap]:
        averages = {**self.averages, **self.module.averages}
        return {"network": self.module.flow, **{name: average.module for name, average in averages.items()}}

    @property
    def _steering(self) -> dict[str, Any]:
        recipe = self.metadata.get("run", {}).get("recipe")
        return {**{name: getattr(self.settings, name) for name in STEERING}, "recipe": recipe}

    @property
    def _references(self) -> dict[str, Any]:
        return dict(self.metadata.get("references", {}))

    def save(self, step: int, pending: list[dict[str, Any]]) -> None:
        images = step * self.settings.batch
        # The model first: where there is a state, there is its model.
        header = {**self.metadata, "images": images, "step": step}
        for name, average in self.averages.items():
            file = "model.safetensors" if name == "average" else f"model-{name}.safetensors"
            save_model(average.module, self.directory / file, header)
        info = {"images": images, "settings": self._steering, "references": self._references, "pending": pending}
        save_state(self.directory / "state", step, self._parts, self.adamw, info, self.settings.keep)

    def load(self, state: Path) -> dict[str, Any]:
        info = load_state(state, self._parts, self.adamw)
        if info.get("settings") != self._steering:
            raise CheckpointError(
                f"{state} was trained with {info.get('settings')}, which cannot go on with {self._steering}; resume "
                "with the settings it had, or start a new run in another directory"
            )
        before, now = info.get("references", {}), self._references
        for role in {**before, **now}:
            old, new = (each.get(role, {}) for each in (before, now))
            if old.get("sha256") != new.get("sha256"):
                raise CheckpointError(
                    f"the {role} of this run is not what it was: {_said(old)} when {state} was saved, "
                    f"{_said(new)} now; give the run back its {role}, or start a new run in another directory"
                )
        return info


def _said(reference: Mapping[str, Any]) -> str:
    return f"{reference['run']} (sha256 {reference['sha256'][:12]})" if reference else "none"


def fit(
    directory: Path,
    flow: FlowMap,
    objective: Objective,
    batch_of: Callable[[int], Batch],
    *,
    settings: TrainSettings,
    optimizer: Optimizer,
    metadata: Mapping[str, Any],
    references: References = References(),
    preview: Callable[[FlowMap, Path], None] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
) -> Iterator[StepRecord]:
    """Train in `directory`, yielding every step's record; the run is saved at the end and when it is interrupted.

    The call itself checks the directory and loads the state; nothing is written before the first record is asked for.
    Closing the iterator early, or a second signal, which ends the step at once, leaves what was saved last.

    Args:
        batch_of: the batch of step k, a pure function of k; with parts or processes, see `train`.
        metadata: JSON values that describe the model (run and data), written into the header of model.safetensors. The
            frozen models among them, {"references": {role: {"run": path, "sha256": of the file}}}, must be the same
            where a run goes on.
        references: the frozen models that targets follow; no part of what is saved.
        preview: draws samples of the averaged flow map to a path.
        resume: go on from the newest state, exactly as if the run had not stopped.
        engine: the processes of the run; a new one unless given.

    Raises:
        CheckpointError: if the directory holds a run already and `resume` is False, or none and it is True, or its
            state is damaged or was trained with other settings or references.
        Interrupted: from the iterator, after a SIGINT or SIGTERM, with everything saved.
    """
    found = _find(directory, resume)
    engine = engine or Engine(directory)
    module = TrainStep(flow.to(engine.device), objective, references, bf16=settings.precision == "bf16")
    averages = averages_of(flow, optimizer)
    if settings.checkpoint:
        checkpoint_blocks(module.flow.network)
    if settings.compile:  # after the copies were made
        compile_step(module)
    run = _Run(
        directory=directory,
        settings=settings,
        metadata=metadata,
        module=module,
        averages=averages,
        adamw=build_optimizer(module, optimizer),
    )
    start, pending = 0, []
    if found is not None:
        info = run.load(found)
        start, pending = info["step"], info["pending"]
    averages = tuple(run.averages.values())
    steps = train(module, settings, optimizer, batch_of, engine=engine, adamw=run.adamw, averages=averages, start=start)
    return _watch(run, steps, engine, start, pending, preview)


def _watch(
    run: _Run,
    steps: Iterator[StepRecord],
    engine: Engine,
    start: int,
    pending: list[dict[str, Any]],
    preview: Callable[[FlowMap, Path], None] | None,
) -> Iterator[StepRecord]:
    """Pass the records on, and log, save and draw on the way."""
    directory, settings = run.directory, run.settings
    log = StatsLog(directory / "stats.jsonl", settings.log_every, start, pending, engine)

    def save(step: int) -> None:
        pending = log.pending
        if engine.main:
            run.save(step, pending)
        engine.wait()  # nobody goes on before the state is there

    with _stop_signals() as stopped:
        try:
            for record in steps:
                last = record.step == settings.steps
                line = log.add(record, last)
                if line is not None:
                    engine.log(line, record.step)
                saved = last or record.step % settings.save_every == 0
                if saved:
                    save(record.step)
                every = settings.preview_every
                if engine.main and preview is not None and every and (last or record.step % every == 0):
                    preview(run.averages["average"].module, directory / "samples" / f"step-{record.step:08d}.png")
                yield record
                if any(engine.gathered(stopped())) and not last:
                    if not saved:
                        save(record.step)
                    raise Interrupted(directory, record.step, settings.steps)
        finally:
            engine.finish()


def _find(directory: Path, resume: bool) -> Path | None:
    """The state to go on from, None for a new run."""
    found = latest_state(directory / "state")
    if resume and found is None:
        raise CheckpointError(
            f"there is nothing to resume in {directory}: no training state in {directory / 'state'}; leave out --resume"
        )
    if not resume and found is not None:
        raise CheckpointError(
            f"{directory} already holds a run (up to step {int(found.name)}); use --resume or another directory"
        )
    if not resume and (directory / "model.safetensors").exists():
        raise CheckpointError(
            f"{directory} already holds a model, which training would overwrite; use another directory, or remove "
            f"{directory / 'model.safetensors'}"
        )
    return found
