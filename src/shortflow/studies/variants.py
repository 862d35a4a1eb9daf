"""The variants of a study as runs, each after the models that it follows and starts from."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shortflow import runs
from shortflow.config import RunConfig, whole
from shortflow.config.parts import fields_of
from shortflow.data import Dataset
from shortflow.errors import ConfigError, ShortflowError
from shortflow.recipes import RECIPES
from shortflow.studies.others import STARTS, TEACHERS
from shortflow.studies.study import Study, Variant, directory_name, expanded
from shortflow.typing import Report

__all__ = ["DEFAULTS", "Planned", "Resolved", "Variants"]

# No cell needs previews or curves of its own; a study may set them.
DEFAULTS = ("train.preview_every=0", "train.trackers=[]")

Resolved = dict[str, tuple[RunConfig, Dataset]]
"""The run and the data of every variant, by name."""


@whole
@dataclass(frozen=True, kw_only=True)
class Planned:
    """A variant as it is trained.

    Attributes:
        name, recipe, settings: of the variant; the study's settings come before.
        teacher, start, weak: names of other variants (their cell of the same seed), or paths of runs.
        support: whether it is only there because others need it; it is trained, not scored.
        images, batch: the budget, and images a step.
        cost: of a training step in F, passes of the network without gradient on the batch.
        forward: floating-point operations of F for one image.
        difference: to the variant that others are compared with, or else the first one, in sentences.
    """

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    teacher: str | None = None
    start: str | None = None
    weak: str | None = None
    support: bool = False
    images: int = 1
    batch: int = 1
    cost: float = 0.0
    forward: float = 0.0
    difference: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return -(-self.images // self.batch)

    def step_at(self, share: float) -> int:
        """The step after which a share of the budget is spent."""
        return max(1, min(self.steps, round(share * self.steps)))


class Variants:
    """The variants of a study, each after the models that it follows and starts from, which are added where they are
    missing; and the run of each, with the names of roles in the place of these models."""

    def __init__(self, study: Study, report: Report | None = None) -> None:
        self.study, self.asked = study, expanded(study)
        self.named = {variant.name: variant for variant in self.asked}
        self.found: dict[str, Planned] = {}
        self.resolved: Resolved = {}
        for i, variant in enumerate(self.asked):
            self._add(variant)
            if report is not None:
                report(i + 1, len(self.asked))

    def _add(self, variant: Variant, waiting: tuple[str, ...] = ()) -> str:
        name, chain = variant.name, (*waiting, variant.name)
        if name in waiting:
            raise ConfigError(f"{' → '.join(chain)}: these variants wait for each other")
        if name in self.found:
            return name
        try:
            run, dataset = self._resolve(variant)
        except ShortflowError as error:
            raise ConfigError(f"variant {name}: {error}") from error
        follows = run.recipe.objective.needs & {"teacher", "pairs"}
        usual = TEACHERS.get(variant.recipe, "flow-matching") if follows else None
        planned = Planned(
            name=name,
            recipe=variant.recipe,
            settings=variant.settings,
            teacher=self._other(variant, run, variant.teacher or usual, chain),
            start=self._other(variant, run, variant.start or STARTS.get(variant.recipe), chain),
            weak=self._other(variant, run, variant.weak, chain),
            support=name not in self.named,
        )
        self.found[name], self.resolved[name] = planned, (run, dataset)
        return name

    def _resolve(self, variant: Variant) -> tuple[RunConfig, Dataset]:
        """The run; that it needs a teacher is known from its settings only, so it is tried without first."""
        given: dict[str, Any] = {"weak": "weak" if variant.weak else None}
        given["init_from"] = "start" if variant.start or variant.recipe in STARTS else None
        follows = bool(variant.teacher) or variant.recipe in TEACHERS
        settings = [*DEFAULTS, *self.study.settings, *variant.settings]

        def tried(teacher: bool) -> tuple[RunConfig, Dataset]:
            return runs.configure(
                variant.recipe,
                self.study.data,
                resolution=self.study.resolution,
                settings=settings,
                models=False,
                teacher="teacher" if teacher else None,
                **given,
            )

        try:
            return tried(follows)
        except ConfigError:
            if variant.teacher:
                raise
            with suppress(ConfigError):
                return tried(not follows)
            raise

    def _other(self, variant: Variant, run: RunConfig, name: str | None, chain: tuple[str, ...]) -> str | None:
        """Who the model called `name` is: a variant, which stands before, or the path of a run."""
        if name is None:
            return None
        if name in self.named:
            return self._add(self.named[name], chain)
        if name not in RECIPES:
            return name
        shared = {"network", "data", *fields_of(type(run.network))}
        own = tuple(text for text in variant.settings if text.split("=")[0].split(".")[0].strip() in shared)
        alike = (each for each in self.asked if each.recipe == name and sorted(each.settings) == sorted(own))
        called = directory_name(",".join([name, *(text.removeprefix("network.") for text in own)]))
        return self._add(next(alike, Variant(recipe=name, name=called, settings=own)), chain)
