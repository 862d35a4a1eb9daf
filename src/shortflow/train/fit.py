"""A whole run in its directory: resume, train, log, preview, save, and stop without losing anything.

RUN/run.yaml            the resolved configuration (written by whoever starts the run)
RUN/stats.jsonl         the record
RUN/samples/*.png       previews
RUN/state/<step>/       training states
RUN/model.safetensors   the averaged weights, self-describing
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from shortflow.errors import CheckpointError
from shortflow.flowmap import FlowMap
from shortflow.objective import Objective, Optimizer
from shortflow.train.ema import Average
from shortflow.train.engine import Engine
from shortflow.train.log import StatsLog
from shortflow.train.loop import StepRecord, build_optimizer, train
from shortflow.train.settings import TrainSettings
from shortflow.train.state import latest_state, load_state, save_model, save_state
from shortflow.train.step import TrainStep
from shortflow.typing import Batch

__all__ = ["Interrupted", "fit"]


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
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        stopped.set()
        for n, handler in before.items():
            signal.signal(n, handler)

    for number in before:
        signal.signal(number, request)
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    directory: Path,
    flow: FlowMap,
    objective: Objective,
    batch_of: Callable[[int], Batch],
    *,
    settings: TrainSettings,
    optimizer: Optimizer,
    metadata: Mapping[str, Any],
    preview: Callable[[FlowMap, Path], None] | None = None,
    resume: bool = False,
) -> Iterator[StepRecord]:
    """Train in `directory`, yielding every step's record; the run is saved at the end and when it is interrupted.

    Args:
        batch_of: the batch of step k, a pure function of k.
        metadata: JSON values that describe the model (run and data), written into the header of model.safetensors.
        preview: draws samples of the averaged flow map to a path.
        resume: go on from the newest state, exactly as if the run had not stopped.

    Raises:
        CheckpointError: if there is a state already and `resume` is False, or none and `resume` is True.
        Interrupted: after a SIGINT or SIGTERM, with everything saved.
    """
    states = directory / "state"
    found = latest_state(states)
    if found is None and resume:
        raise CheckpointError(
            f"there is nothing to resume in {directory}: no training state in {states}; leave out --resume"
        )
    if found is not None and not resume:
        raise CheckpointError(
            f"{directory} already holds a run (up to step {int(found.name)}); use --resume or another directory"
        )
    engine = Engine(directory)
    module = TrainStep(flow.to(engine.device), objective, bf16=settings.precision == "bf16")
    average = Average(flow, optimizer.ema, warm=True)
    adam = build_optimizer(module, optimizer)
    parts = {"network": flow, "average": average.module}
    if module.teacher is not None:
        parts["teacher"] = module.teacher.module
    start = 0 if found is None else int(load_state(found, parts, adam)["step"])
    total = settings.steps
    log = StatsLog(directory / "stats.jsonl", settings.log_every, start)

    def save(step: int) -> None:
        save_state(states, step, parts, adam, {"images": step * settings.batch, "total": total}, settings.keep)
        save_model(
            average.module, directory / "model.safetensors", {**metadata, "images": step * settings.batch, "step": step}
        )

    saved = start
    with _stop_signals() as stopped:
        records = train(
            module, settings, optimizer, batch_of, engine=engine, optimizer=adam, averages=(average,), start=start
        )
        for record in records:
            last = record.step == total
            line = log.add(record, last or stopped())
            if line is not None:
                engine.log({k: v for k, v in line.items() if isinstance(v, int | float)}, record.step)
            if last or stopped() or record.step % settings.save_every == 0:
                save(record.step)
                saved = record.step
            if preview is not None and settings.preview_every and (last or record.step % settings.preview_every == 0):
                preview(average.module, directory / "samples" / f"step-{record.step:08d}.png")
            yield record
            if stopped() and not last:
                if saved != record.step:
                    save(record.step)
                engine.finish()
                raise Interrupted(directory, record.step, total)
    engine.finish()
