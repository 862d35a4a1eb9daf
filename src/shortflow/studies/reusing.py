"""Cells whose run another study has made already, with the same seed and data: copied, and not trained again."""

import filecmp
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from shortflow.config import RunConfig, difference, load_run
from shortflow.errors import ConfigError, ShortflowError
from shortflow.files import UNFINISHED, sync_folder
from shortflow.studies.planning import StudyPlan, configured, read_plan
from shortflow.studies.variants import Planned

__all__ = ["OTHERS", "check_sources", "same_run", "take"]

OTHERS = ("teacher", "weak", "init_from")  # settings of a run that are paths, which may move with a study
_SCORES = ("evaluation.json", "at-*.json", "pictures")
_CELL = ("failed.json", "kills.json", "claim", "log.txt", ".lock", f"{UNFINISHED}*")
_LAST = "run.yaml"  # without it a directory holds no run


def check_sources(sources: Iterable[Path]) -> None:
    """Raise `ConfigError` where a directory holds no study, or one that cannot be read."""
    for source in sources:
        if not (source / "study.yaml").is_file():
            raise ConfigError(f"--reuse {source} holds no study (no study.yaml); give the directory of one, its --out")
        read_plan(source)


def same_run(plan: StudyPlan, variant: Planned, seed: int, out: Path, sources: Sequence[Path]) -> Path | None:
    """The directory of a cell in `sources` that was trained to the end as this one would be, or None.

    All settings are the same, and so are the weights of the models that it follows or starts from; the averages at
    the shares of the budget that are to be scored are there. Which study or variant it was does not matter.
    """
    if not sources:
        return None
    with suppress(ShortflowError):  # a model that it needs is not there yet
        run, _ = configured(plan, variant, seed, out)
        names = ["model.safetensors", *(f"model-step-{step:08d}.safetensors" for step in plan.snapshots(variant))]
        for place in _cells(sources, seed):
            if all((place / name).is_file() for name in names) and _same(run, place):
                return place
    return None


def _cells(sources: Sequence[Path], seed: int) -> Iterator[Path]:
    """The runs of this seed that have been scored, or needed no scores: those whose record is there."""
    for source in sources:
        yield from sorted(each.parent for each in source.glob(f"cells/*/seed-{seed}/evaluation.json"))


def _same(run: RunConfig, place: Path) -> bool:
    with suppress(ShortflowError, OSError):
        there = load_run(place / _LAST)
        if any(path not in OTHERS for path, _, _ in difference(there, run)):
            return False
        return all(_same_model(getattr(run, name), getattr(there, name)) for name in OTHERS)
    return False


def _same_model(ours: str | None, theirs: str | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    a, b = (path if path.is_file() else path / "model.safetensors" for path in map(Path, (ours, theirs)))
    return a == b or filecmp.cmp(a, b, shallow=False)


def take(place: Path, directory: Path) -> None:
    """Copy the run in `place` to `directory`, which holds none, without its scores. Killed on the way it holds none.

    Raises:
        ConfigError: if it cannot be copied.
    """
    part = directory.with_name(f"{UNFINISHED}{directory.name}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(place, part, ignore=shutil.ignore_patterns(*_SCORES, *_CELL))
        for entry in sorted(part.iterdir(), key=lambda entry: entry.name == _LAST):
            there = directory / entry.name
            shutil.rmtree(there) if there.is_dir() else there.unlink(missing_ok=True)
            entry.replace(there)
        part.rmdir()
        sync_folder(directory)
    except (OSError, shutil.Error) as error:
        raise ConfigError(f"{place} cannot be copied to {directory}: {error}") from error
