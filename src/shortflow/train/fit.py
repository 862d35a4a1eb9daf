"""A whole run in its directory: resume, train, log, preview, save, and stop without losing anything.

RUN/run.yaml            the resolved configuration (written by whoever starts the run)
RUN/stats.jsonl         the record
RUN/tensorboard/        the same for TensorBoard, and so on for other trackers (train.trackers)
RUN/samples/*.png       previews
RUN/state/<step>/       training states
RUN/failures/<step>/    what a step failed on, see `shortflow.train.failures`
RUN/.lock               while the run is going on
RUN/model.safetensors   the averaged weights, self-describing
RUN/model-ema-*.safetensors  the extra averages, if the optimiser keeps some
RUN/model-step-*.safetensors the averaged weights after certain steps, if they were asked for
RUN/model-best.safetensors   the averaged weights where a quantity of the log was smallest (train.keep_best)
"""

import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from shortflow.data.identity import DataIdentity
from shortflow.draw import References
from shortflow.errors import CheckpointError, ShortflowError
from shortflow.files import remove_unfinished
from shortflow.flowmap import FlowMap
from shortflow.lock import RunLock
from shortflow.nn.checkpointing import checkpoint_blocks
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.train.compiling import compile_step
from shortflow.train.ema import averages_of
from shortflow.train.engine import Engine
from shortflow.train.failures import NotFinite, Skips, save_failure
from shortflow.train.launcher import unheeded
from shortflow.train.log import StatsLog
from shortflow.train.loop import build_optimizer, train
from shortflow.train.record import StepRecord
from shortflow.train.saved import Best, Left, SavedRun, Setback
from shortflow.train.settings import TrainSettings
from shortflow.train.state import latest_state
from shortflow.train.step import TrainStep
from shortflow.train.trackers import Trackers, check_trackers
from shortflow.typing import Batch

__all__ = ["Interrupted", "check_states", "fit"]


class Interrupted(Exception):
    """Training was asked to stop; everything up to `step` is saved in `directory`."""

    def __init__(self, directory: Path, step: int, total: int) -> None:
        super().__init__(f"stopped after step {step} of {total}; the state is saved in {directory}")
        self.directory, self.step, self.total = directory, step, total


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the context, the first SIGINT or SIGTERM only sets a flag. A second SIGINT acts as usual; more SIGTERMs do
    nothing: a job system sends one to every process, and a launcher that has got one passes it on."""
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
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, request)
    try:
        yield stopped.is_set
    finally:
        restore()


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
    resume: bool | Literal["auto"] = False,
    lock: RunLock | None = None,
    engine: Engine | None = None,
    snapshots: Collection[int] = (),
    data: DataIdentity | None = None,
) -> Iterator[StepRecord]:
    """Train in `directory`, yielding every step's record; the run is saved at the end and when it is interrupted.

    The call itself checks the directory, locks it and loads the state; of a new run nothing else is written before the
    first record is asked for. Closing the iterator early, or a second SIGINT, which ends the step at once, leaves what
    was saved last.

    Args:
        batch_of: the batch of step k, a pure function of k; with parts or processes, see `train`.
        metadata: JSON values that describe the model (run and data), written into the header of model.safetensors. The
            frozen models among them, {"references": {role: {"run": path, "sha256": of the file}}}, must be the same
            where a run goes on.
        references: the frozen models that targets follow; no part of what is saved.
        preview: draws samples of the averaged flow map to a path.
        resume: go on from the newest state that is whole, exactly as if the run had not stopped; "auto": where there is
            a state, and begin where there is none.
        lock: of the directory, if the caller has it already; it is released here.
        engine: the processes of the run; a new one unless given.
        snapshots: steps after which the averaged weights are kept.
        data: what `batch_of` draws from, which must be the same where a run goes on; None: that is not looked at.

    Raises:
        ConfigError: if a tracker is not known, or not installed.
        CheckpointError: if the directory is in use, holds a run already and `resume` is False, or none and it is True,
            or no state of it is whole, or it was trained with other settings, data or references, or the disk is full.
        Interrupted: from the iterator, after a SIGINT or SIGTERM, with everything saved.
        NotFinite: from the iterator, where more than `settings.skips` of the last 100 steps were not finite, and the
            run has gone back to a state with a smaller learning rate before, or has none to go back to.
    """
    check_trackers(settings.trackers)
    engine = engine or Engine()
    if engine.main:
        for note in unheeded(settings):
            warnings.warn(note, stacklevel=2)
    lock = lock or RunLock(directory, wanted=engine.main)
    try:
        found = check_states(directory, resume)
        if settings.compile and engine.sharded:
            raise ShortflowError("a step with sharded weights cannot be compiled; set train.compile to false")
        module = TrainStep(flow.to(engine.device), objective, references, bf16=settings.precision == "bf16")
        averages = averages_of(flow, optimizer)
        if settings.checkpoint:
            checkpoint_blocks(module.flow.network)
        if settings.compile:  # after the copies were made
            compile_step(module)
        engine.shard(module)  # before the optimiser takes hold of the weights
        run = SavedRun(
            directory=directory,
            settings=settings,
            metadata=metadata,
            module=module,
            averages=averages,
            adamw=build_optimizer(module, optimizer),
            sharded=engine.sharded,
            parts=engine.parts(settings.parts, settings.batch)[1],
            data=data,
        )
        left = engine.in_turn(lambda: run.load(say=engine.main)) if found else Left()

        def steps(left: Left, skips: Skips) -> Iterator[StepRecord]:
            slowed = 1.0 if left.setback is None else left.setback.slowed
            return train(
                module,
                settings,
                optimizer,
                batch_of,
                engine=engine,
                adamw=run.adamw,
                averages=tuple(averages.values()),
                start=left.step,
                slowed=slowed,
                skips=skips,
            )

        return _Watch(run, engine, steps, preview, lock, snapshots).records(left)
    except BaseException:
        lock.release()
        raise


class _Watch:
    """What looks at the records of a run, and logs, saves and draws on the way; it goes back where steps fail."""

    def __init__(
        self,
        run: SavedRun,
        engine: Engine,
        steps: Callable[[Left, Skips], Iterator[StepRecord]],
        preview: Callable[[FlowMap, Path], None] | None,
        lock: RunLock,
        snapshots: Collection[int],
    ) -> None:
        self.run, self.engine, self.steps, self.preview, self.lock = run, engine, steps, preview, lock
        self.snapshots = frozenset(snapshots)
        named = run.settings.trackers if engine.main else ()
        self.trackers = Trackers(named, run.directory, run.metadata.get("run", {}))

    def records(self, left: Left) -> Iterator[StepRecord]:
        """Pass the records on, from where the run was left."""
        directory = self.run.directory
        with _stop_signals() as stopped:
            try:
                if self.engine.main:
                    for folder in (directory, directory / "samples", directory / "failures"):
                        remove_unfinished(folder)
                while True:
                    try:
                        yield from self._records(left, stopped)
                        return
                    except NotFinite as failure:
                        left = self._back(failure, left)
            finally:
                self.trackers.finish()
                self.lock.release()

    def _records(self, left: Left, stopped: Callable[[], bool]) -> Iterator[StepRecord]:
        """The records up to the end, or a failure."""
        directory, settings, best = self.run.directory, self.run.settings, left.best
        with self.run.told_when_full("stats.jsonl"):
            log = StatsLog(directory / "stats.jsonl", settings.log_every, left.step, left.pending, self.engine)
        skips = Skips(allowed=settings.skips, steps=list(left.skipped))

        def save(step: int) -> None:
            pending = log.pending  # which reads the steps that are still on the device
            now = Left(step=step, pending=pending, best=best, skipped=skips.with_those(pending), setback=left.setback)
            if self.engine.main or self.engine.sharded:
                self.run.save(now, write=self.engine.main)
            self.engine.wait()  # nobody goes on before the state is there

        with closing(self.steps(left, skips)) as steps:  # type: ignore[type-var]
            for record in steps:
                last = record.step == settings.steps
                with self.run.told_when_full("the next line of stats.jsonl"):
                    line = log.add(record, last)
                if line is not None:
                    Best.check(settings.keep_best, line)
                    self.trackers.log(line, record.step)
                if record.step in self.snapshots and self.engine.main:
                    self.run.save_snapshot(record.step)  # before the state: a run that goes on from it has this, too
                saved = last or record.step % settings.save_every == 0
                if saved:
                    if line is not None and record.step % settings.log_every == 0:  # not of a shorter window
                        best = Best.after(best, settings.keep_best, line, record.step)
                    save(record.step)
                self._draw(record.step, last)
                yield record
                if self.engine.any(stopped()) and not last:
                    if not saved:
                        save(record.step)
                    raise Interrupted(directory, record.step, settings.steps)

    def _back(self, failure: NotFinite, left: Left) -> Left:
        """Go back to the newest state with a smaller learning rate, once; what the run failed on is kept.

        Raises:
            NotFinite: where it has gone back before, or there is no state.
        """
        run, engine = self.run, self.engine
        folder = run.directory / "failures" / f"{failure.step:08d}"
        try:
            save_failure(folder, failure, run.module, run.asked, main=engine.main)
            kept = f"{failure}. What the step failed on is kept in {folder}"
        except OSError as error:  # a full disk must not hide what has happened
            kept = f"{failure}. What the step failed on could not be kept in {folder} ({error})"
        before = left.setback
        if before is not None:
            failure.args = (
                f"{kept}. The run went back from step {before.failed} to step {before.back_to} already, and goes on "
                f"from there with {before.slowed:g} of its learning rate since; it ends here",
            )
            raise failure
        if latest_state(run.states) is None:
            failure.args = (f"{kept}. There is no state to go back to yet (train.save_every)",)
            raise failure
        run.adamw.zero_grad(set_to_none=True)
        found = engine.in_turn(lambda: run.load(say=False))  # what there is to say was said at the start
        setback = Setback(failed=failure.step, back_to=found.step)
        if engine.main:
            warnings.warn(
                f"{kept}. The run goes back to step {found.step}, once, with {setback.slowed:g} of its learning rate",
                stacklevel=2,
            )
        return replace(found, skipped=(), setback=setback)

    def _draw(self, step: int, last: bool) -> None:
        every = self.run.settings.preview_every
        if self.engine.main and self.preview is not None and every and (last or step % every == 0):
            path = self.run.directory / "samples" / f"step-{step:08d}.png"
            with self.run.told_when_full(f"the preview {path.name}"):
                self.preview(self.run.averages["average"].module, path)
            if path.is_file():  # latents that nothing decodes are no picture
                self.trackers.picture(path, step)


def check_states(directory: Path, resume: bool | Literal["auto"]) -> bool:
    """Whether there is a state to go on from.

    Raises:
        CheckpointError: if that is not what `resume` says, or there is a model that training would overwrite.
    """
    found = latest_state(directory / "state")
    if resume is True and found is None:
        raise CheckpointError(
            f"there is nothing to resume in {directory}: no training state in {directory / 'state'}; leave out "
            "--resume, or give --resume auto"
        )
    if not resume and found is not None:
        raise CheckpointError(
            f"{directory} already holds a run (up to step {int(found.name)}); use --resume or another directory"
        )
    if found is None and (directory / "model.safetensors").exists():
        raise CheckpointError(
            f"{directory} already holds a model, which training would overwrite; use another directory, or remove "
            f"{directory / 'model.safetensors'}"
        )
    return found is not None
