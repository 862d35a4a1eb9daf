"""One cell of a study: a variant with a seed, in a run directory of its own, trained and scored.

OUT/cells/NAME/seed-K/                  a run like any other, and beside it
OUT/cells/NAME/seed-K/evaluation.json   its scores; a cell that has those the study asks for is done
OUT/cells/NAME/seed-K/failed.json       why it failed, until the next command tries again
OUT/cells/NAME/seed-K/log.txt           what its process said
OUT/cells/NAME/seed-K/claim/.lock       held by the process that makes it
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shortflow import hub, runs
from shortflow.config import RunConfig, difference, load_run
from shortflow.errors import CheckpointError, ConfigError, SamplerError
from shortflow.evaluate import write_record
from shortflow.hub import Model
from shortflow.lock import RunLock, held_by
from shortflow.runs.drawing import Drawing
from shortflow.runs.sampling import steps_named
from shortflow.status import read_status
from shortflow.studies.planning import StudyPlan, cell_directory, configured
from shortflow.studies.reusing import OTHERS, same_run, take
from shortflow.studies.variants import Planned

__all__ = ["Cell", "Phase", "claim", "fail", "forget_failures", "look", "make", "record_of"]

Phase = Literal["done", "running", "missing", "failed"]
KILLS = 3  # times that a process may die over a cell
LARGEST = 2**26  # bytes of a record


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How a cell is.

    Attributes:
        variant, seed: which one.
        directory: of its run.
        phase: running: a process holds it; missing: nobody has made it yet, or not to the end.
        step, steps: of its training, as far as the record says.
        error: why it failed, or what it waits for in vain.
        ready: whether the models that it needs are there.
    """

    variant: str
    seed: int
    directory: Path
    phase: Phase
    step: int
    steps: int
    error: str | None = None
    ready: bool = True

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"


def asked_of(plan: StudyPlan, variant: Planned, seed: int) -> dict[str, Any]:
    """What is to be scored, and with which noise: a record that was made for something else is made again."""
    study = plan.study
    if variant.support:
        return {"steps": []}
    return {
        "steps": list(study.steps),
        "at": {str(share): variant.step_at(share) for share in study.at},
        "at_steps": study.primary_steps,
        "n": plan.n,
        "noise": seed,
        "features": study.features,
        "reference": study.reference,
    }


# --------------------------------------------------------------------------------------------------------------- status


def look(plan: StudyPlan, out: Path) -> list[Cell]:
    """How all cells are, in the order in which they can be made. Reads the directory, and touches nothing."""
    found: dict[tuple[str, int], Cell] = {}
    for variant, seed in plan.cells:
        directory = cell_directory(out, variant.name, seed)
        needs = [found[name, seed] for name in plan.needs(variant)]
        phase, error = _phase(plan, variant, seed, directory)
        failed = [each.variant for each in needs if each.phase == "failed"]
        if failed and phase == "missing":
            phase, error = "failed", f"it needs {' and '.join(failed)} of the same seed, which failed"
        ready = all(each.phase == "done" for each in needs)
        step = variant.steps if phase == "done" else _step(directory)
        found[variant.name, seed] = Cell(
            variant=variant.name,
            seed=seed,
            directory=directory,
            phase=phase,
            step=step,
            steps=variant.steps,
            error=error,
            ready=ready,
        )
    return list(found.values())


def _phase(plan: StudyPlan, variant: Planned, seed: int, directory: Path) -> tuple[Phase, str | None]:
    record = record_of(directory)
    if record is not None and record.get("asked") == asked_of(plan, variant, seed):
        return "done", None
    if held_by(directory / "claim") is not None:
        return "running", None
    failure = _json(directory / "failed.json")
    return ("missing", None) if failure is None else ("failed", str(failure.get("error")))


def _step(directory: Path) -> int:
    with suppress(CheckpointError, ConfigError, OSError):
        return read_status(directory).step
    return 0


def record_of(directory: Path) -> dict[str, Any] | None:
    """The scores of a cell, whatever they were made for; None where there are none."""
    return _json(directory / "evaluation.json")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        stamp = path.stat()
    except OSError:
        return None
    return _read(path, stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)


@functools.lru_cache(maxsize=4096)
def _read(path: Path, *stamp: int) -> dict[str, Any] | None:
    """The content of a JSON file, read once for every time that it is written."""
    with suppress(OSError, ValueError, RecursionError):
        if stamp[1] <= LARGEST:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
    return None


# --------------------------------------------------------------------------------------------------------------- claims


def claim(plan: StudyPlan, cell: Cell) -> RunLock | None:
    """Hold a cell that is to be made against all other processes; None if one of them was faster.

    A claim that a killed process has left behind is counted; after several the cell has failed.
    """
    place = cell.directory / "claim"
    left = (place / ".lock").is_file()
    try:
        lock = RunLock(place)
    except CheckpointError:
        return None
    record = record_of(cell.directory)
    done = record is not None and record.get("asked") == asked_of(plan, plan.named(cell.variant), cell.seed)
    count = _killed(cell.directory) if left and not done else 0
    if count >= KILLS:
        fail(cell.directory, f"its process was killed {count} times; too little memory, or a crash? The log may say")
    if done or (cell.directory / "failed.json").is_file():
        lock.release()
        return None
    return lock


def _killed(directory: Path) -> int:
    """One more process has died over this cell; how many have by now."""
    count = int((_json(directory / "kills.json") or {}).get("count", 0)) + 1
    write_record(directory / "kills.json", {"count": count})
    return count


def fail(directory: Path, error: str) -> None:
    """Note that a cell has failed, and why."""
    write_record(directory / "failed.json", {"error": error, "log": str(directory / "log.txt")})


def forget_failures(plan: StudyPlan, out: Path) -> None:
    """Let what has failed be tried again, where nobody is at it."""
    for variant, seed in plan.cells:
        directory = cell_directory(out, variant.name, seed)
        if held_by(directory / "claim") is None:
            for name in ("failed.json", "kills.json"):
                (directory / name).unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------- making


def make(
    plan: StudyPlan,
    cell: Cell,
    out: Path,
    say: Callable[[str], None] = lambda text: None,
    sources: Sequence[Path] = (),
) -> None:
    """Train and score a cell, from wherever it was left. A run that a study in `sources` has made already is copied.

    Raises:
        ShortflowError: whatever training and scoring raise; or `ConfigError` where the directory holds another run.
        Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    variant, directory = plan.named(cell.variant), cell.directory
    run, dataset = configured(plan, variant, cell.seed, out)
    _check_run(directory, run)
    asked = asked_of(plan, variant, cell.seed)
    snapshots = plan.snapshots(variant)
    if not (directory / "run.yaml").is_file():
        place = same_run(plan, variant, cell.seed, out, sources)
        if place is not None:
            say(f"copying the same run from {place}")
            take(place, directory)
    tenth = max(1, run.train.steps // 10)
    for record in runs.training(run, dataset, directory, resume="auto", snapshots=snapshots):
        if record.step % tenth == 0 or record.step == run.train.steps:
            say(f"step {record.step} of {run.train.steps}, loss {record.loss:.4f}")
    spent: dict[str, Any] = {"training_seconds": _seconds(directory), "steps": run.train.steps}
    spent |= {"batch": run.train.batch, "images": run.train.images}
    scores = {} if variant.support else _scores(plan, variant, cell, say)
    own = {"variant": variant.name, "seed": cell.seed, "asked": asked}
    write_record(directory / "evaluation.json", {**scores, **own, **spent})


def _check_run(directory: Path, run: RunConfig) -> None:
    """Raise `ConfigError` if the directory holds a run with other settings."""
    file = directory / "run.yaml"
    if not file.is_file():
        return
    changed = [
        f"{path} was {has}, is {wants}" for path, has, wants in difference(load_run(file), run) if path not in OTHERS
    ]
    if changed:
        raise ConfigError(
            f"{directory} holds a run with other settings ({'; '.join(changed)}); remove it, or give the study another "
            "--out"
        )


def _seconds(directory: Path) -> float:
    """Seconds of training, over all processes that took part: every line of the log has the speed since the one before.

    The lines of steps that a killed process had to repeat count once.
    """
    seconds, before = 0.0, 0
    for line in (directory / "stats.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        seconds += (row["images"] - before) / row["images_per_second"]
        before = row["images"]
    return seconds


def _scores(plan: StudyPlan, variant: Planned, cell: Cell, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of the trained model, and the rows of its snapshots, all with the noise of the cell's seed."""
    study, directory, seed = plan.study, cell.directory, cell.seed
    model = hub.load(directory)
    steps, impossible = _possible(model, study.steps)
    if not steps:
        raise SamplerError(f"{variant.name} can be sampled in none of {list(study.steps)} steps: {impossible}")
    record = _scored(plan, model, steps, seed, directory / "evaluation.json", say)
    curve = []
    if study.primary_steps in steps and len(study.at) > 1:
        for share in study.at:
            step = variant.step_at(share)
            path = directory / ("model.safetensors" if share == 1 else f"model-step-{step:08d}.safetensors")
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is not there: a cell keeps its weights at shares of the budget (at) only if they are "
                    "asked for before it is trained; remove the cell, or leave the share out"
                )
            place = directory / f"at-{step:08d}.json"
            rows = record["rows"]
            if share < 1:
                rows = _scored(plan, hub.load(path), [study.primary_steps], seed, place, say)["rows"]
            row = rows[steps_named(study.primary_steps)]
            curve.append({"share": share, "step": step, "images": step * variant.batch, "row": row})
    return {**record, "impossible": impossible, "curve": curve}


def _possible(model: Model, steps: tuple[int, ...]) -> tuple[list[int], dict[str, str]]:
    """The numbers of steps that the model can be sampled in, and why not in the others."""
    possible, impossible = [], {}
    for count in steps:
        try:
            Drawing().grids(model.flow, [count])
            possible.append(count)
        except SamplerError as error:
            impossible[steps_named(count)] = str(error)
    return possible, impossible


def _scored(
    plan: StudyPlan, model: Model, steps: list[int], seed: int, place: Path, say: Callable[[str], None]
) -> Mapping[str, Any]:
    say(f"scoring {model.path.name} in {', '.join(map(str, steps))} steps")
    study = plan.study
    if study.features == "auto":
        return runs.score(model, steps, n=plan.n, seed=seed)
    extractor = runs.extractor_named(
        study.features, source=study.data, device=str(next(model.flow.parameters()).device)
    )
    images = runs.drawn_images(model, steps, plan.n, seed=seed)
    reference = study.reference or runs.training_images(model)
    record = runs.compare(images, reference, extractor, out=place)
    assert record is not None  # one process
    return record
