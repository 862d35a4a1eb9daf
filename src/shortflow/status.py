"""How a run is: read from its directory alone, without torch, while it is written to or long after.

What is not there yet, is damaged or half written is left out; nothing is changed, and nobody is kept from going on.
"""

import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from shortflow.errors import CheckpointError, ConfigError
from shortflow.lock import held_by
from shortflow.yamlfile import read_yaml

__all__ = ["Breakdown", "RunStatus", "SavedState", "breakdown", "evaluation_files", "read_status", "runs_below"]

BROKEN = 3.0
"""Times its least, above which the velocity error says that a run may have broken down. Of the runs in docs/studies one
is there, whose samples are lost; consistency training alone comes above twice its least without harm."""

_TAIL = 2**20  # bytes of the record that are read: some thousand lines
_LINES = 10  # the newest of them, over which the speed is taken
_LARGEST = 2**26  # bytes of a state.json, as loading has it
_CLOCK = ("step", "images", "images_per_second")  # in a line of the record, and no figures
_SCORES = (
    "distance",
    "spatial_distance",
    "inception_score",
    "conditional_accuracy",
    "coverage",
    "recall",
    "precision",
    "fd",
    "fd_percent",
    "energy_distance",
    "sliced_w2",
    "n",
)

# What a run directory holds, by the first part of a path in it; trackers have folders of their own names.
_KINDS = {"state": "states", "samples": "previews", "pictures": "previews", "pairs": "pairs", "stats.jsonl": "logs"}
_TRACKERS = ("tensorboard", "wandb", "swanlab", "dvclive", ".aim")


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """A velocity error that has grown and stayed: samples are lost, while the loss may be small (as that of students of
    themselves is).

    Attributes:
        times: its mean over the last tenth of the record, over the least such mean.
        step: from which on it is more than `BROKEN` times that.
    """

    times: float
    step: int

    def __str__(self) -> str:
        return f"velocity error {self.times:.1f} times its least, since step {self.step:,}"


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A training state on disk.

    Attributes:
        step: after which it was saved.
        age: seconds since then.
    """

    step: int
    age: float


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run as its directory shows it.

    Attributes:
        directory: of the run.
        phase: "running" (a process holds the directory), "finished" (all steps are saved), else "stopped".
        recipe, data: what is trained, on what.
        step, steps: done (the last that the record or a state knows of), and in all.
        images, total: the same in images.
        speed: images a second over the newest lines of the record; None before there is one.
        left: seconds at that speed to the end.
        figures: of the last line: loss, errors, gradient norm, learning rate, skipped steps, and what else it has.
        since: seconds since the record was written to.
        newest: the newest training state.
        best: (quantity, its value, step) of the best state, if the run keeps it.
        holder: {"pid", "host", "since"} of the process that holds the directory, as far as known; None if none does.
        disk: bytes by kind: states, models, previews, logs, pairs, other.
        free: bytes that are free there.
        preview: the last one.
        scores: of every evaluation*.json by row, such as "1 step", or of evaluation-FEATURES@REFERENCE.json "1 step,
            FEATURES@REFERENCE"; a distance has what it may be called (FID-5k) under "name".
        remarks: what is odd: damaged lines, damaged states, a run that seems to have broken down.
    """

    directory: Path
    phase: Literal["running", "stopped", "finished"]
    recipe: str
    data: str
    step: int
    steps: int
    images: int
    total: int
    speed: float | None
    left: float | None
    figures: Mapping[str, float]
    since: float | None
    newest: SavedState | None
    best: tuple[str, float, int] | None
    holder: Mapping[str, Any] | None
    disk: Mapping[str, int]
    free: int
    preview: Path | None
    scores: Mapping[str, Mapping[str, float | str]]
    remarks: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the run that is done."""
        return self.images / self.total

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        own = {**vars(self), "directory": str(self.directory), "share": self.share}
        own["preview"] = None if self.preview is None else str(self.preview)
        own["newest"] = None if self.newest is None else vars(self.newest)
        names = ("quantity", "value", "step")
        own["best"] = None if self.best is None else dict(zip(names, self.best, strict=True))
        return own


def read_status(directory: Path) -> RunStatus:
    """How the run in `directory` is.

    Raises:
        CheckpointError: if it holds no run.
        ConfigError: if its run file cannot be read.
    """
    recipe, data, total, batch = _settings(directory)
    record, remarks = _record(directory / "stats.jsonl")
    lines = record[-_LINES - 1 :]
    if broken := _breakdown(record):
        remarks.append(f"the run may have broken down ({broken}): look at its samples, or try a smaller learning rate")
    states, odd = _states(directory / "state")
    holder = held_by(directory)
    last = lines[-1] if lines else {}
    newest = states[-1] if states else None
    steps = -(-total // batch)
    step = max(int(last.get("step", 0)), newest.step if newest else 0)
    saved = step if newest is None and (directory / "model.safetensors").is_file() else newest.step if newest else 0
    speed = _speed(lines)
    images = min(step, steps) * batch
    disk = _disk(directory)
    return RunStatus(
        directory=directory,
        phase="running" if holder is not None else "finished" if saved >= steps else "stopped",
        recipe=recipe,
        data=data,
        step=step,
        steps=steps,
        images=images,
        total=steps * batch,
        speed=speed,
        left=None if speed is None else (steps * batch - images) / speed,
        figures={name: value for name, value in last.items() if name not in _CLOCK and _is_number(value)},
        since=_age(directory / "stats.jsonl") if lines else None,
        newest=newest,
        best=_best(directory / "state", newest),
        holder=holder,
        disk=disk,
        free=shutil.disk_usage(directory).free,
        preview=_preview(directory / "samples"),
        scores=_scores(directory),
        remarks=(*remarks, *odd),
    )


def runs_below(directory: Path) -> list[Path]:
    """The folders of `directory` that hold a run, by name."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if (path / "run.yaml").is_file())


# ----------------------------------------------------------------------------------------------------------- the record


def _settings(directory: Path) -> tuple[str, str, int, int]:
    """(recipe, data, images in all, batch) of the run file."""
    file = directory / "run.yaml"
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; give the directory of a run, such as {directory.parent}")
    if not file.is_file():
        raise CheckpointError(
            f"{directory} holds no run (no run.yaml), nor do the folders in it; start one with: "
            f"shortflow train RECIPE --out {directory}"
        )
    plain = read_yaml(file)
    try:
        recipe, train = plain["recipe"], plain["train"]
        name = recipe if isinstance(recipe, str) else str(recipe["name"])
        images, batch = int(train["images"]), int(train["batch"])
        source = str(plain["data"]["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} is not the run file of a run ({type(error).__name__}: {error})") from error
    if images < 1 or batch < 1:
        raise ConfigError(f"{file} is not the run file of a run (train.images {images}, train.batch {batch})")
    return name, source, images, batch


def breakdown(directory: Path) -> Breakdown | None:
    """What says that the run in `directory` has broken down; None if nothing does."""
    return _breakdown(_record(directory / "stats.jsonl")[0])


def _breakdown(lines: list[dict[str, Any]]) -> Breakdown | None:
    found = [(line["step"], line["velocity_error"]) for line in lines if _is_number(line.get("velocity_error"))]
    tenth = len(found) // 10
    if tenth < 2:
        return None  # too few to tell an error that has grown from one that is noisy
    means = [statistics.fmean(error for _, error in found[i : i + tenth]) for i in range(len(found) - tenth + 1)]
    limit = BROKEN * min(means)
    if not 0 < limit < means[-1]:
        return None
    sound = max(i for i, mean in enumerate(means) if mean <= limit)
    return Breakdown(times=BROKEN * means[-1] / limit, step=found[sound + tenth][0])


def _record(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The newest whole lines of the record, some thousands, oldest first, and a remark on those that make no sense.

    What stands behind the last newline is being written.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            rows = file.read(_TAIL).split(b"\n")[:-1]
    except OSError:
        return [], []
    if size > _TAIL:
        rows = rows[1:]  # the end of a line
    found, damaged = [], 0
    for row in rows:
        line = _json(row)
        if isinstance(line, dict) and all(
            type(line.get(name)) is int and line[name] > 0 for name in ("step", "images")
        ):
            found.append(line)
        else:
            damaged += 1
    lines = "1 line" if damaged == 1 else f"{damaged} lines"
    return found, [f"{lines} of {path.name} cannot be read"] if damaged else []


def _speed(lines: list[dict[str, Any]]) -> float | None:
    """Images a second over the lines, each of which has the speed since the one before."""
    images = seconds = 0.0
    if len(lines) == 1:
        lines = [{"images": 0}, *lines]
    for before, line in pairwise(lines):  # the first of many has the time that compiling took
        speed, count = line.get("images_per_second"), line["images"] - before["images"]
        if speed is not None and _is_number(speed) and speed > 0 and count > 0:
            images, seconds = images + count, seconds + count / speed
    return images / seconds if seconds else None


# --------------------------------------------------------------------------------------------------- states and models


def _states(directory: Path) -> tuple[list[SavedState], list[str]]:
    """The states, oldest first, and a remark on those that were set aside as damaged."""
    found, damaged = [], []
    for path in _entries(directory):
        if re.fullmatch(r"[0-9]{8,18}", path.name):
            age = _age(path / "state.json") or _age(path)
            if age is not None:
                found.append(SavedState(step=int(path.name), age=age))
        elif ".damaged" in path.name:
            damaged.append(path.name)
    return sorted(found, key=lambda state: state.step), [f"damaged states: {', '.join(sorted(damaged))}"] * bool(
        damaged
    )


def _best(directory: Path, newest: SavedState | None) -> tuple[str, float, int] | None:
    """What the newest state says of the best one."""
    if newest is None:
        return None
    path = directory / f"{newest.step:08d}" / "state.json"
    with suppress(OSError, KeyError, TypeError, ValueError):
        if path.stat().st_size <= _LARGEST:
            best = _json(path.read_bytes())["best"]
            return str(best["name"]), float(best["figure"]), int(best["step"])
    return None


def _disk(directory: Path) -> dict[str, int]:
    """Bytes by kind."""
    found: dict[str, int] = dict.fromkeys(("states", "models", "previews", "logs"), 0)
    for path in _entries(directory):
        kind = _KINDS.get(path.name, "logs" if path.name in _TRACKERS else "other")
        if path.suffix == ".safetensors":
            kind = "models"
        size = sum(_size(file) for file in _files(path))
        if size:
            found[kind] = found.get(kind, 0) + size
    return found


def _preview(directory: Path) -> Path | None:
    steps = {
        int(found[1]): path for path in _entries(directory) if (found := re.fullmatch(r"step-(\d+)\.png", path.name))
    }
    return steps[max(steps)] if steps else None


def evaluation_files(directory: Path) -> list[Path]:
    """The records of scores in a run directory: evaluation.json first, then those of other features by name."""
    found = [path for path in _entries(directory) if re.fullmatch(r"evaluation(-.+)?\.json", path.name)]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.stem)


def _scores(directory: Path) -> dict[str, dict[str, float | str]]:
    """The figures of every row of the records of scores."""
    scores: dict[str, dict[str, float | str]] = {}
    for path in evaluation_files(directory):
        features = path.stem.removeprefix("evaluation").replace("-", ", ", 1)
        with suppress(OSError, KeyError, TypeError, AttributeError):
            if path.stat().st_size <= _LARGEST:
                rows = _json(path.read_bytes())["rows"]
                scores |= {f"{name}{features}": _figures(row) for name, row in rows.items()}
    return scores


def _figures(row: Mapping[str, Any]) -> dict[str, float | str]:
    found: dict[str, float | str] = {score: row[score] for score in _SCORES if _is_number(row.get(score))}
    return found | ({"name": row["name"]} if isinstance(row.get("name"), str) else {})


# -------------------------------------------------------------------------------------------------------- small things


def _json(text: bytes) -> Any:
    """What a text says, None where it is no JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _age(path: Path) -> float | None:
    """Seconds since a file was written; None where there is none."""
    with suppress(OSError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return None


def _size(path: Path) -> int:
    """Bytes of a file, which may have been removed since it was found."""
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _entries(directory: Path) -> list[Path]:
    with suppress(OSError):
        return list(directory.iterdir())
    return []


def _files(path: Path) -> Iterator[Path]:
    """The files at or below a path; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        for entry in _entries(path):
            yield from _files(entry)
    else:
        yield path
