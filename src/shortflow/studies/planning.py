"""A study before its first cell: every variant as a run, its budget in images, the models it follows, what it costs.

OUT/study.yaml is the result, and all that a process needs to take part. A later command may add or leave out seeds,
variants and numbers of steps; it cannot change what the cells of a variant are.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shortflow import runs
from shortflow.config import (
    RunConfig,
    difference,
    from_plain,
    to_plain,
    to_yaml,
    whole,
)
from shortflow.config.words import described
from shortflow.cost import step_cost
from shortflow.data import Dataset, DataSpec
from shortflow.errors import CheckpointError, ConfigError
from shortflow.estimate import estimate
from shortflow.files import write_atomic
from shortflow.lock import RunLock
from shortflow.recipe import Recipe
from shortflow.studies.metrics import metrics_of
from shortflow.studies.speed import speeds_of
from shortflow.studies.study import Budget, Study, unordered
from shortflow.studies.variants import DEFAULTS, Planned, Resolved, Variants
from shortflow.typing import Report
from shortflow.yamlfile import read_yaml

__all__ = [
    "Planned",
    "StudyPlan",
    "begin",
    "cell_directory",
    "configured",
    "plan",
    "read_plan",
]

FORMAT = 1
SAMPLES = {"images": 2_000, "points": 10_000, "latents": 2_000}
_SAME = ("data", "resolution", "settings", "budget")  # of a study, or its cells would be others


@whole
@dataclass(frozen=True, kw_only=True)
class Declared:
    """What was to decide when the first cells were scored: metric, metric_steps, against and alpha of the study, and
    how many seeds it had."""

    metric: str
    metric_steps: int
    against: str | None
    alpha: float
    seeds: int


@whole
@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The content of study.yaml.

    Attributes:
        format: 1.
        study: as it was asked for.
        kind: of the data: images, points.
        threads, n, metric: those of the study, or what they are where it leaves them open.
        variants: those that others need before these.
        declared: None in plans of earlier versions, which did not keep it.
    """

    format: int = FORMAT
    study: Study
    kind: str
    threads: int
    n: int
    metric: str
    variants: tuple[Planned, ...]
    declared: Declared | None = None

    def named(self, name: str) -> Planned:
        return next(variant for variant in self.variants if variant.name == name)

    def needs(self, variant: Planned) -> list[str]:
        """The variants whose cells of the same seed must be made before."""
        names = {each.name for each in self.variants}
        given = (variant.teacher, variant.start, variant.weak)
        return [name for name in dict.fromkeys(given) if name in names]  # type: ignore[misc]

    def sampled(self, variant: Planned) -> int:
        """Passes of the network over single images that scoring a cell takes."""
        study = self.study
        return 0 if variant.support else self.n * (sum(study.steps) + (len(study.at) - 1) * study.primary_steps)

    def snapshots(self, variant: Planned) -> set[int]:
        """The steps within the training of a variant whose averaged weights are scored."""
        return set() if variant.support else {variant.step_at(share) for share in self.study.at if share < 1}

    @property
    def compared(self) -> tuple[Planned, ...]:
        """Without those that are only there because others need them."""
        return tuple(variant for variant in self.variants if not variant.support)

    @property
    def cells(self) -> list[tuple[Planned, int]]:
        """(variant, seed), seed by seed, in an order in which they can be made."""
        return [(variant, seed) for seed in self.study.seeds for variant in self.variants]


def cell_directory(out: Path, name: str, seed: int) -> Path:
    """The run directory of a cell."""
    return out / "cells" / name / f"seed-{seed}"


def configured(plan: StudyPlan, variant: Planned, seed: int, out: Path) -> tuple[RunConfig, Dataset]:
    """The run of a cell, and its data; the models that it needs must be there.

    Raises:
        ConfigError, DataError, CheckpointError: as `shortflow.runs.configure`.
    """
    study, names = plan.study, {each.name for each in plan.variants}

    def path(other: str | None) -> str | None:
        return str(cell_directory(out, other, seed)) if other is not None and other in names else other

    own = [f"train.images={variant.images}", f"train.seed={seed}"]
    return runs.configure(
        variant.recipe,
        study.data,
        resolution=study.resolution,
        settings=[*DEFAULTS, *study.settings, *variant.settings, *own],
        teacher=path(variant.teacher),
        weak=path(variant.weak),
        init_from=path(variant.start),
    )


# ------------------------------------------------------------------------------------------------------------ the plan


def plan(
    study: Study, *, threads: int | None = None, before: StudyPlan | None = None, report: Report | None = None
) -> StudyPlan:
    """Every variant as a run that could begin, with its budget and cost. Trains nothing but what measures speed.

    Args:
        threads: of a cell, where the study does not say; None: all that torch has.
        before: the plan of a study that was begun in the same directory: what its cells are does not change.
        report: told (variants that are planned, in all).

    Raises:
        ConfigError: naming the variant and everything that is wrong with it, or what differs from `before`.
        DataError: if the data are not there.
    """
    if before is not None and before.study == study:
        return before
    known = Variants(study, report)
    variants, resolved = list(known.found.values()), known.resolved
    _check_same(study, variants, before)
    _, dataset = resolved[variants[0].name]
    if dataset.kind == "latents" and study.features == "auto":
        raise ConfigError(
            f"{study.data}: these are latents, and a study scores images; train with `shortflow train`, draw with "
            "`shortflow sample --encoder`, and score with `shortflow evaluate`"
        )
    compared = [variant.name for variant in variants if not variant.support]
    base, forwards = study.against or compared[0], {}
    found = StudyPlan(
        study=study,
        kind=dataset.kind,
        threads=study.threads or (before.threads if before else threads or torch.get_num_threads()),
        n=study.n or SAMPLES[dataset.kind],
        metric=_metric(study, dataset.kind),
        variants=tuple(
            _counted(variant, *resolved[variant.name], _differences(base, variant.name, resolved), forwards)
            for variant in variants
        ),
    )
    return _budgeted(found, resolved, before)


def _metric(study: Study, kind: str) -> str:
    """What decides; raises `ConfigError` if there is no such figure of data of this kind."""
    known = metrics_of(kind, study.features)
    if study.metric is not None and study.metric not in known:
        features = "" if study.features == "auto" else f" in {study.features} features"
        raise ConfigError(f"metric: {kind}{features} have no {study.metric}; there are {', '.join(known)}")
    return study.metric or known[0]


def _check_same(study: Study, variants: Sequence[Planned], before: StudyPlan | None) -> None:
    """Raise `ConfigError` if cells of this study would be others than those that are there."""
    if before is None:
        return
    changed = [
        f"{name} was {_said(getattr(before.study, name))}, is {_said(getattr(study, name))}"
        for name in _SAME
        if unordered(getattr(before.study, name)) != unordered(getattr(study, name))
    ]
    if study.threads not in (None, before.threads):
        changed.append(f"threads was {before.threads}, is {study.threads}")
    there = {variant.name: variant for variant in before.variants}
    for variant in variants:
        old = there.get(variant.name)
        for name in ("recipe", "settings", "teacher", "start", "weak") if old is not None else ():
            if unordered(getattr(old, name)) != unordered(getattr(variant, name)):
                changed.append(
                    f"{variant.name}: {name} was {to_plain(getattr(old, name))}, is {to_plain(getattr(variant, name))}"
                )
    if changed:
        raise ConfigError(
            f"the directory holds a study with other cells ({'; '.join(changed)}); give another --out, or other names "
            "to variants that have changed"
        )


def _said(value: Any) -> Any:
    """A setting of a study as it is written."""
    if isinstance(value, Budget):
        return f"{value.kind} = {value.amount:,.12g}"
    return to_plain(value)


def _counted(
    variant: Planned, run: RunConfig, dataset: Dataset, words: tuple[str, ...], forwards: dict[str, float]
) -> Planned:
    """With its budget as the preset has it, its cost, and the arithmetic of F, which is counted once for a network."""
    recipe = run.recipe
    heads = (recipe.conditioning.second, recipe.objective.velocity_head, recipe.objective.guidance is not None)
    network, cost = f"{run.network} {heads}", _cost(recipe)
    if network not in forwards:
        forwards[network] = estimate(run, DataSpec.fit(dataset, recipe.sigma_data), cost).forward
    return replace(
        variant,
        images=run.train.images,
        batch=run.train.batch,
        cost=round(cost, 4),
        forward=forwards[network],
        difference=words,
    )


@functools.lru_cache(maxsize=256)
def _cost(recipe: Recipe) -> float:
    return step_cost(recipe)


def _differences(base: str, name: str, resolved: Resolved) -> tuple[str, ...]:
    """What sets a variant apart from the base: in words between methods, setting by setting within one."""
    if name == base:
        return ()
    a, b = resolved[base][0], resolved[name][0]
    own = ("teacher", "init_from", "weak", "recipe.title", "recipe.year", "recipe.arxiv", "recipe.name")
    changed = [
        (path.removeprefix("recipe."), left, right)
        for path, left, right in difference(a, b)
        if path not in own and not path.startswith("recipe.published")
    ]
    if a.recipe.name == b.recipe.name:
        return tuple(f"{path}: {left} → {right}" for path, left, right in changed)
    left, right = described(a.recipe), described(b.recipe)
    words = [f"{aspect}: {left[aspect]} → {right[aspect]}" for aspect in left if left[aspect] != right[aspect]]
    outside = [f"{path}: {left} → {right}" for path, left, right in changed if path.startswith(("network", "train"))]
    return (*words, *outside)


# ---------------------------------------------------------------------------------------------------------- the budget


def _budgeted(found: StudyPlan, resolved: Resolved, before: StudyPlan | None) -> StudyPlan:
    """With the images of every variant; those that are known stay."""
    known = {} if before is None else {variant.name: variant for variant in before.variants}
    budget = found.study.budget
    speeds: dict[str, float] = {}
    if budget is not None and budget.kind == "seconds" and any(each.name not in known for each in found.variants):
        speeds = speeds_of(found.variants, resolved, found.threads)

    def images(variant: Planned) -> int:
        if variant.name in known:
            return known[variant.name].images
        if budget is None:
            return variant.images
        factor = {
            "images": 1.0,
            "seconds": speeds.get(variant.name, 0.0),
            "forwards": 1 / variant.cost,
            "flops": 1 / (variant.cost * variant.forward),
        }[budget.kind]
        count = round(budget.amount * factor)
        if count < variant.batch:
            raise ConfigError(
                f"budget: {budget.kind} = {budget.amount:g} are {count} images for {variant.name}, less than a batch "
                f"of {variant.batch}; give more"
            )
        return count

    return replace(found, variants=tuple(replace(each, images=images(each)) for each in found.variants))


# ------------------------------------------------------------------------------------------------------------ the file


def begin(study: Study | None, out: Path, *, threads: int | None = None, report: Report | None = None) -> StudyPlan:
    """Begin a study in `out`, or go on with the one there as `study` has it now; None: as it was asked for last.

    Two that begin at the same time wait for each other.

    Raises:
        ConfigError: as `plan`; or if there is nothing in `out` to go on with.
    """
    file = out / "study.yaml"
    if study is None:
        if not file.is_file():
            raise ConfigError(
                f"what is to be compared? {out} holds no study to go on with; for example: shortflow compare "
                "esc,meanflow --data digits --out out/study (`shortflow compare --studies` lists the ready ones)"
            )
        return read_plan(out)
    # Of a new study what is wrong is said before there is a directory.
    found = None if out.is_dir() else plan(study, threads=threads, report=report)
    with _alone(out):
        before = read_plan(out) if file.is_file() else None
        if found is None or before is not None:
            found = plan(study, threads=threads, before=before, report=report)
        looked = before is not None and any(out.glob("cells/*/*/evaluation.json"))
        found = replace(found, declared=before.declared if before is not None and looked else _declared(found))
        write_atomic(file, to_yaml(found))
    return found


def _declared(found: StudyPlan) -> Declared:
    study = found.study
    return Declared(
        metric=found.metric,
        metric_steps=study.primary_steps,
        against=study.against,
        alpha=study.alpha,
        seeds=len(study.seeds),
    )


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else plans in the directory meanwhile."""
    while True:
        try:
            lock = RunLock(directory / "planning")
            break
        except CheckpointError:
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()


def read_plan(out: Path) -> StudyPlan:
    """The study of a directory, as it was planned.

    Raises:
        ConfigError: if it holds none, or one that cannot be read.
    """
    file = out / "study.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{out} holds no study (no study.yaml); begin one with: shortflow compare RECIPES --out {out}"
        )
    stamp = file.stat()
    return _read(file, stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)


@functools.lru_cache(maxsize=64)
def _read(file: Path, *stamp: int) -> StudyPlan:
    """The content of a plan, read once for every time that it is written."""
    try:
        found = from_plain(StudyPlan, read_yaml(file))
    except ConfigError as error:
        raise ConfigError(f"{file}:\n{error}") from error
    if found.format != FORMAT:
        raise ConfigError(f"{file} has format {found.format}, this version of shortflow reads format {FORMAT}")
    return found
