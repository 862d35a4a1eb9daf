"""A study as data: what is compared, on what, for how much, and the one figure that decides.

A study is a YAML file, checked as run files are, or a command line that says the same:

    about: The plug-in velocity of ESC, from none to always.
    base: esc
    vary: {objective.target.velocity.base.probability: [0, 0.5, 1]}
    data: digits
    budget: {images: 192000}
    seeds: 3                    # or a list of seeds
    steps: [1, 2, 4, 8, 128]
    metric: fd_percent          # decides, in metric_steps steps

Settings are mappings "field.path: value", or lists of "field.path=value" as `--set` has them; "variants" are named
alternatives, each a recipe with settings of its own. `vary` is the grid of all values of all its fields, for every
variant there is.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortflow.config import from_plain, nearest, whole
from shortflow.errors import ConfigError, ShortflowError
from shortflow.studies.metrics import METRICS
from shortflow.yamlfile import parse_yaml, read_yaml

__all__ = ["BUDGETS", "Budget", "Study", "Variant", "expanded", "load_study", "ready_studies", "study_of", "unordered"]

READY = Path(__file__).with_name("ready")
BUDGETS = ("images", "seconds", "forwards", "flops")
_OWN = ("train.images", "train.seed", "images", "seed")  # the study's, not a variant's


@whole
@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of what is compared.

    Attributes:
        recipe: a recipe's name, or a run file ending in .yaml.
        name: in tables and directories; by default that of the recipe.
        settings: "field.path=value", after those of the study.
        teacher, start, weak: other models of the run: the name of another variant (its cell of the same seed), of a
            recipe (made for it), or the path of a run. By default those of `shortflow.studies.others`.
    """

    recipe: str
    name: str = ""
    settings: tuple[str, ...] = ()
    teacher: str | None = None
    start: str | None = None
    weak: str | None = None

    def __post_init__(self) -> None:
        if not self.recipe.strip():
            raise ShortflowError("recipe is empty; give the name of one (`shortflow recipes` lists them)")
        if not self.name:
            object.__setattr__(self, "name", directory_name(self.recipe.removesuffix(".yaml")))
        if self.name != directory_name(self.name):
            raise ShortflowError(
                f"name = {self.name!r}: a variant has the name of a directory; use letters, digits and . _ + , = -"
            )
        for setting in self.settings:
            key, separator, _ = setting.partition("=")
            if not separator:
                raise ShortflowError(f"settings: {setting!r}: expected field.path=value, such as train.batch=64")
            if key.strip() in _OWN:
                raise ShortflowError(f"settings: {key.strip()} is the same for all variants; set it in the study")


@whole
@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every cell may spend; one of them. Models that a variant follows or starts from have one of their own.

    Attributes:
        images: seen in training.
        seconds: of training, on the machine that plans the study: the speed of each variant is measured once, and from
            then on its budget is that many images, in every seed and wherever it is resumed.
        forwards: F times images: images times what a step of the variant costs in passes of its network.
        flops: the same in floating-point operations, for networks of several sizes.
    """

    images: int | None = None
    seconds: float | None = None
    forwards: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
        if len(given) != 1:
            raise ShortflowError(
                f"budget: give one of {', '.join(BUDGETS)}, got {', '.join(given) if given else 'none of them'}"
            )
        if self.amount <= 0:
            raise ShortflowError(f"budget.{self.kind} must be above 0, got {self.amount}")

    @property
    def kind(self) -> str:
        return next(name for name in BUDGETS if getattr(self, name) is not None)

    @property
    def amount(self) -> float | int:
        return getattr(self, self.kind)


@whole
@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, on what, for how much.

    Attributes:
        name, about: for tables: a word, and what the study asks in a sentence or two.
        variants: what is compared.
        vary: "field.path=[values]": all combinations of them, for each variant.
        data, resolution: what all are trained on.
        settings: "field.path=value" for all variants, before their own.
        budget: None: the preset's for the data, in images.
        seeds: a run for each; the same seed has the same order of data and the same noise in every variant, that of
            the samples which are scored as well.
        steps: the numbers of steps that are scored.
        at: shares of the budget at which the averaged weights are kept and scored in `metric_steps`; the last is 1.
        n: samples that are scored; None: 2,000 images, 10,000 points.
        metric, metric_steps: what decides, said beforehand; None: fd_percent (images), energy_distance (points),
            distance (other features); the first of `steps`.
        against: the variant that all others are compared with; None: all with all.
        alpha: the level of significance, for all comparisons of a metric together.
        features, reference: "auto": those of the shipped classifier, or distances of points; otherwise as for
            `shortflow evaluate`.
        threads: of each cell's process; None: cores over jobs, or OMP_NUM_THREADS where that is fewer, when the
            study is begun. The last bits of a figure depend on it, so it stays.
    """

    name: str = "study"
    about: str = ""
    variants: tuple[Variant, ...] = ()
    vary: tuple[str, ...] = ()
    data: str = "digits"
    resolution: int | None = None
    settings: tuple[str, ...] = ()
    budget: Budget | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, ...] = (1, 2, 4, 8, 128)
    at: tuple[float, ...] = (1.0,)
    n: int | None = None
    metric: str | None = None
    metric_steps: int | None = None
    against: str | None = None
    alpha: float = 0.05
    features: str = "auto"
    reference: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.variants:
            raise ShortflowError("variants: there are none; give recipes, such as esc,meanflow, or a base to vary")
        for name in ("seeds", "steps", "at"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ShortflowError(f"{name}: give each once, and one at least, got {list(values)}")
        if min(self.seeds) < 0 or min(self.steps) < 1:
            raise ShortflowError(f"seeds are 0 or more and steps 1 or more, got {list(self.seeds)}, {list(self.steps)}")
        if not all(0 < share <= 1 for share in self.at):
            raise ShortflowError(f"at: shares of the budget are above 0 and at most 1, got {list(self.at)}")
        if 1.0 not in self.at or list(self.at) != sorted(self.at):
            object.__setattr__(self, "at", tuple(sorted({*self.at, 1.0})))
        if self.metric is not None and self.metric not in METRICS:
            raise ShortflowError(f"metric: there is no {self.metric!r}, {nearest(self.metric, METRICS)}")
        if self.metric_steps is not None and self.metric_steps not in self.steps:
            raise ShortflowError(f"metric_steps = {self.metric_steps} is not among steps = {list(self.steps)}")
        if not 0 < self.alpha < 1:
            raise ShortflowError(f"alpha must be between 0 and 1, got {self.alpha}")
        for name in ("n", "threads", "resolution"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ShortflowError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for setting in self.settings:
            if setting.partition("=")[0].strip() in _OWN:
                raise ShortflowError(f"settings: {setting}: give it as the study's budget or seeds")
        names = [variant.name for variant in expanded(self)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ShortflowError(f"variants: several are called {', '.join(twice)}; give each a name of its own")
        if self.against is not None and self.against not in names:
            raise ShortflowError(f"against: there is no variant {self.against!r}, {nearest(self.against, names)}")

    @property
    def primary_steps(self) -> int:
        return self.steps[0] if self.metric_steps is None else self.metric_steps


# ------------------------------------------------------------------------------------------------------------- reading


def load_study(what: str) -> Study:
    """The study in a YAML file, or the ready one of that name. OUT/study.yaml is such a file, too.

    Raises:
        ConfigError: if there is none, or listing everything that is wrong in it.
    """
    known = ready_studies()
    path = Path(what) if what.endswith((".yaml", ".yml")) else known.get(what)
    if path is None:
        raise ConfigError(f"there is no ready study called {what!r}, {nearest(what, known)}; or give a file, NAME.yaml")
    plain = read_yaml(path)
    if "format" in plain and isinstance(plain.get("study"), Mapping):  # OUT/study.yaml: the plan of a study
        plain = plain["study"]
    try:
        return study_of({"name": path.stem, **plain})
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from error


def ready_studies() -> dict[str, Path]:
    """The studies that come with the library, by name."""
    return {path.stem: path for path in sorted(READY.glob("*.yaml"))}


def study_of(plain: Mapping[str, Any]) -> Study:
    """The study that plain values describe: what a file holds.

    Beside the fields of `Study`, `base` is a recipe to vary, `recipes` a list of such (or "all"), seeds may be a number
    of them, and settings a mapping.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    values = dict(plain)
    variants = values.get("variants", [])
    if isinstance(variants, list):
        variants = [_variant(one) for one in variants]
        variants = [
            *_recipes(values.pop("base", []), "base"),
            *_recipes(values.pop("recipes", []), "recipes"),
            *variants,
        ]
    values["variants"] = variants
    seeds = values.get("seeds")
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        values["seeds"] = list(range(seeds))
    for name in ("settings", "vary"):
        if name in values:
            values[name] = _settings(values[name])
    return from_plain(Study, values)


def _recipes(names: Any, what: str) -> list[Any]:
    """Variants of recipes as they are."""
    from shortflow.recipes import RECIPES

    if names == "all":
        names = list(RECIPES)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{what}: expected the name of a recipe, or a list of them, got {names!r}")
    return [{"recipe": name} for name in names]


def _variant(plain: Any) -> Any:
    if isinstance(plain, str):
        return {"recipe": plain}
    if isinstance(plain, Mapping) and "settings" in plain:
        return {**plain, "settings": _settings(plain["settings"])}
    return plain


def _settings(plain: Any) -> Any:
    """A mapping as "field.path=value"; anything else as it is, for the reader to judge."""
    if isinstance(plain, Mapping):
        return [f"{path}={json.dumps(value)}" for path, value in plain.items()]
    return plain


# ---------------------------------------------------------------------------------------------------------- the grid


def expanded(study: Study) -> tuple[Variant, ...]:
    """All variants: those of the study, each with every combination of what is varied.

    Raises:
        ConfigError: if `vary` does not have the form "field.path=[values]".
    """
    if not study.vary:
        return study.variants
    axes = [_axis(text) for text in study.vary]
    short = _short_names([path for path, _ in axes])
    found = []
    for variant in study.variants:
        for values in itertools.product(*(values for _, values in axes)):
            chosen = [f"{path}={json.dumps(value)}" for (path, _), value in zip(axes, values, strict=True)]
            words = [f"{name}={_word(value)}" for name, value in zip(short, values, strict=True)]
            prefix = [variant.name] if len(study.variants) > 1 else []
            name = directory_name(",".join([*prefix, *words]))
            found.append(replace(variant, name=name, settings=(*variant.settings, *chosen)))
    return tuple(found)


def _axis(text: str) -> tuple[str, list[Any]]:
    path, separator, listed = text.partition("=")
    listed = listed.strip()
    # "[0, 1]" is a list of two values; "[0, 1],[0, 0.5]" two values that are lists.
    values = parse_yaml(
        listed if re.fullmatch(r"\[(?:[^\[\]]|\[[^\]]*\])*\]", listed) else f"[{listed}]", f"vary {path}"
    )
    if not separator or not path.strip() or not isinstance(values, list) or not values:
        raise ConfigError(f"vary: {text!r}: expected field.path=value,value,…, such as train.batch=64,128")
    return path.strip(), values


def _short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""

    def end(path: str, count: int) -> str:
        return ".".join(path.split(".")[-count:])

    for count in itertools.count(1):
        names = [end(path, count) for path in paths]
        if len(set(names)) == len(names) or count > 20:
            return names
    raise AssertionError


def _word(value: Any) -> str:
    """A value in a name."""
    if isinstance(value, Mapping):
        return str(value.get("kind", "-".join(map(_word, value.values()))))
    if isinstance(value, list):
        return "-".join(map(_word, value))
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def directory_name(text: str) -> str:
    """The text with what no file system minds."""
    return re.sub(r"[^A-Za-z0-9._+,=-]+", "-", text).strip("-.") or "variant"


def combinations(study: Study) -> Iterator[tuple[Variant, int]]:
    """(variant, seed) of every cell, seed by seed, so that a study that is stopped has compared something."""
    for seed in study.seeds:
        for variant in expanded(study):
            yield variant, seed


def unordered(value: Any) -> Any:
    """Settings sorted, unless their order says something: one of them is within another, or set twice."""
    if not isinstance(value, tuple):
        return value
    fields = sorted(f"{text.partition('=')[0].strip()}." for text in value)
    return (
        value if any(inner.startswith(outer) for outer, inner in itertools.pairwise(fields)) else tuple(sorted(value))
    )
