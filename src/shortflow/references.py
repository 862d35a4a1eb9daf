"""The other models of a run: the teacher and the weak model its targets follow, and the one its weights start from.

They are checked against the run before time is spent, loaded, and put on the path and into the units of the student.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortflow import hub
from shortflow.config import RunConfig
from shortflow.data import Dataset, DataSpec
from shortflow.data.latents import holds_latents
from shortflow.draw import References
from shortflow.errors import CheckpointError, ConfigError, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.hub import Model
from shortflow.pairs import PairMaker, Pairs, check_pairs, pair_conditions, pair_labels
from shortflow.reframe import reframe
from shortflow.transplant import check_start, start_from
from shortflow.typing import condition_words

__all__ = [
    "Loaded",
    "carried",
    "check_given",
    "check_references",
    "describe",
    "load_references",
    "pair_maker",
    "start",
    "units",
]

ROLES = ("teacher", "weak")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The references of a run.

    Attributes:
        models: role → the model as it was trained.
        references: the same for the objective, on the path and in the units of the student.
        identity: role → {"run": path, "sha256": of the file}.
    """

    models: dict[str, Model]
    references: References
    identity: dict[str, dict[str, str]]


# ------------------------------------------------------------------------------------------------------------- checks


def check_references(run: RunConfig, spec: DataSpec, *, started: bool = False) -> None:
    """Raise `ConfigError` or `CheckpointError` unless the other models are there and fit the run.

    Reads the files' headers; nothing is computed. A run that has `started` has its weights, and needs those it started
    from no more.
    """
    check_given(run)
    for role in ROLES:
        path = getattr(run, role)
        if path is not None:
            _check_frozen(role, path, _opened(role, path, hub.outline), run, spec)
    if run.init_from is not None and not started:
        _check_source(run.init_from, _opened("init_from", run.init_from, hub.outline), run, spec)


def check_given(run: RunConfig) -> None:
    """Raise `ConfigError` unless the run names the other models that it needs, and no others."""
    needs = run.recipe.objective.needs
    name, data = run.recipe.name, run.data.source
    steps = run.recipe.objective.steps
    kind = "flow-matching" if steps is None or steps.below is None else "ect"  # the one that has jumps to the data
    example = f"shortflow train {kind} --data {data} --out out/teacher"
    if run.teacher is None and needs & {"teacher", "pairs"}:
        why = "follows a teacher" if "teacher" in needs else "learns from pairs that a teacher makes"
        raise ConfigError(
            f"{name} {why}, and none was given; train one with: {example}\n"
            f"and then: shortflow train {name} --data {data} --teacher out/teacher"
        )
    if run.init_from is None and "init" in needs:
        raise ConfigError(
            f"{name} starts from the weights of another model, and none was given; train one with: {example}\n"
            f"and then: shortflow train {name} --data {data} --init-from out/teacher"
        )
    if run.weak is None and "weak" in needs:
        raise ConfigError(
            f"{name} is guided by a weaker model, and none was given; train one shortly, or a smaller one, as in: "
            f"{example.replace('teacher', 'weak')} --set network.size=tiny\nand then add: --weak out/weak"
        )
    if run.teacher is not None and not needs & {"teacher", "pairs"}:
        raise ConfigError(
            f"{name} follows no teacher, so {run.teacher} would do nothing; leave out --teacher, use a recipe that "
            "distils, or learn from its pairs with --set objective.pairs=true. To start from its weights: --init-from"
        )
    if run.weak is not None and "weak" not in needs:
        raise ConfigError(
            f"{name} is not guided by a weaker model, so {run.weak} would do nothing; leave out --weak, or set the "
            "autoguidance of the teacher's velocity (Reference) to another scale than 1"
        )
    if run.pairs is not None and "pairs" not in needs:
        raise ConfigError(
            f"{name} does not learn from pairs, so pairs would do nothing; add --set objective.pairs=true, or leave "
            "out the settings of pairs"
        )


def _check_frozen(role: str, path: str, model: Model, run: RunConfig, spec: DataSpec) -> None:
    there, objective = model.spec, run.recipe.objective
    remedy = f"train one on {spec.name}: shortflow train flow-matching --data {run.data.source} --out out/{role}"
    if (there.name, there.shape, there.image) != (spec.name, spec.shape, spec.image):
        raise ConfigError(
            f"{role} {path} was trained on {there.name} (shape {there.shape}), this run is on {spec.name} (shape "
            f"{spec.shape}); {remedy}"
        )
    _check_latents(role, path, there, run, spec)
    # A weaker model may be one without classes: the difference to it is guidance towards the class.
    if not _same_classes(model, spec) and not (role == "weak" and not there.conditional):
        raise ConfigError(f"{role} {path} knows {_named(there)}, the data of this run have {_named(spec)}; {remedy}")
    follows = {name for velocity in objective.target.velocities() for name in velocity.follows}
    if role in follows and model.flow.ends == "zero":
        raise ConfigError(
            f"{role} {path} was trained for jumps to the data only and knows no velocity, which {run.recipe.name} "
            "follows; take a flow-matching model, or a flow map for all jumps"
        )
    steps = objective.steps
    if role == "teacher" and steps is not None and steps.below is not None and model.flow.ends == "diagonal":
        raise ConfigError(
            f"teacher {path} was trained at r = t only, and {run.recipe.name} asks its teacher for jumps to the data; "
            f"take a consistency model: shortflow train ect --data {run.data.source} --out out/teacher"
        )
    if role == "teacher":
        _check_guided(path, model.flow, run)
        if run.pairs is not None:
            try:
                check_pairs(model.flow, run.pairs)
            except ShortflowError as error:
                raise ConfigError(f"teacher {path}: {error}") from error


def _check_guided(path: str, teacher: FlowMap, run: RunConfig) -> None:
    """Guidance belongs into one place."""
    asked = [run.recipe.objective.guided]
    if run.pairs is not None and run.pairs.guidance != 1:
        asked.append(f"guidance of the pairs (scale {run.pairs.guidance:g})")
    found = [each for each in (teacher.guided, *asked) if each is not None]
    if len(found) > 1:
        raise ConfigError(
            f"guidance would act twice: {' and '.join(found)} (teacher {path}); keep one of them. "
            "Take a teacher without guidance, or set the scales of the recipe and of the pairs to 1"
        )


def _check_source(path: str, model: Model, run: RunConfig, spec: DataSpec) -> None:
    there = model.spec
    if there.shape != spec.shape or not _same_classes(model, spec) or there.image != spec.image:
        raise ConfigError(
            f"init_from {path} was trained on {there.name} (shape {there.shape}, {_named(there)}), this run is "
            f"on {spec.name} (shape {spec.shape}, {_named(spec)}); start from a model of data like these"
        )
    _check_latents("init_from", path, there, run, spec)
    if (there.shift, there.scale) != (spec.shift, spec.scale):
        raise ConfigError(
            f"init_from {path} sees its data as (x − {there.shift:g})·{there.scale:g}, this run as "
            f"(x − {spec.shift:g})·{spec.scale:g}; use the old scaling (--set recipe.sigma_data="
            f"{_yaml(model.run.recipe.sigma_data)}), or distil the model (--teacher), which translates between units"
        )
    try:
        check_start(hub.check(run, spec), model.flow)
    except ShortflowError as error:
        raise ConfigError(f"init_from {path}: {error}") from error


def _same_classes(model: Model, spec: DataSpec) -> bool:
    """Whether the classes are the same; those of imported weights have no names, only a number and the usual order."""
    known = model.imported is None
    if model.spec.condition != spec.condition:
        return False
    return model.spec.classes == spec.classes if known else model.spec.num_classes == spec.num_classes


def _check_latents(role: str, path: str, there: DataSpec, run: RunConfig, spec: DataSpec) -> None:
    """Raise `ConfigError` if a model was trained on latents of another autoencoder, or in other natural units."""
    if there.latent is None and spec.latent is None:
        return
    if there.latent is None or spec.latent is None:
        raise ConfigError(
            f"{role} {path} makes {there.kind}, and this run is on {spec.kind}; take a model of {spec.kind}"
        )
    apart = there.latent.differences(spec.latent, (f"{role} {path}", spec.name))
    if apart:
        source = Path(run.data.source).expanduser()
        remedy = f"shortflow encode {run.data.source} {there.latent.options}, which writes no latent anew"
        if run.data.encoder is not None and not (source.is_dir() and holds_latents(source)):
            # They are made while the run goes on, in the units of the autoencoder's config.
            remedy = (
                f"shortflow encode {run.data.source} --encoder {run.data.encoder} --out LATENTS "
                f"{there.latent.options}, and train on "
                "these"
            )
        raise ConfigError(
            f"{'; '.join(apart)}. Model and latents must agree: give the latents the units of the model ({remedy}), or "
            "encode the images with its autoencoder"
        )


def _named(spec: DataSpec) -> str:
    classes = spec.classes
    if spec.condition is not None:
        return condition_words(spec.condition)
    if not classes:
        return "no classes"
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"


def _yaml(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def _opened(role: str, path: str, opener: Callable[[str], Model]) -> Model:
    try:
        return opener(path)
    except CheckpointError as error:
        raise CheckpointError(f"{role}: {error}") from error


# -------------------------------------------------------------------------------------------------------------- loading


def load_references(run: RunConfig, spec: DataSpec) -> Loaded:
    """The frozen models of the run.

    Raises:
        CheckpointError: if one is not there or damaged.
    """
    models, frames, identity = {}, {}, {}
    for role in ROLES:
        path = getattr(run, role)
        if path is not None:
            models[role] = _opened(role, path, hub.load)
            scale, shift = units(models[role].spec, spec)
            frames[role] = reframe(models[role].flow, run.recipe.path, scale=scale, shift=shift)
            identity[role] = {"run": path, "sha256": hub.fingerprint(path)}
    return Loaded(models=models, references=References(**frames), identity=identity)


def units(there: DataSpec, here: DataSpec) -> tuple[float, float]:
    """(k, m) with x_there = k · x_here + m for the same data point in the network units of both.

    Network units are (x − shift)·scale.
    """
    return there.scale / here.scale, (here.shift - there.shift) * there.scale


def carried(run: RunConfig, loaded: Loaded) -> str | None:
    """The guidance that a student has from its teacher, in words; None if it has none or is guided by itself."""
    if "teacher" not in loaded.models:
        return None
    if run.pairs is not None and run.pairs.guidance != 1:
        return f"guidance of its pairs (scale {run.pairs.guidance:g})"
    guided = loaded.models["teacher"].flow.guided
    return None if guided is None else f"{guided} of its teacher"


def pair_maker(run: RunConfig, spec: DataSpec, dataset: Dataset, loaded: Loaded, directory: Path) -> PairMaker | None:
    """What makes the pairs of the run in `directory`; None for runs without pairs."""
    if "pairs" not in run.recipe.objective.needs:
        return None
    settings, teacher = run.pairs or Pairs(), loaded.models["teacher"]
    scale, shift = units(teacher.spec, spec)
    return PairMaker(
        directory=directory,
        teacher=teacher.flow,
        identity=loaded.identity["teacher"]["sha256"],
        shape=spec.shape,
        settings=settings,
        seed=run.train.seed,
        labels=pair_labels(dataset.labels, settings.count, run.train.seed),
        conditions=pair_conditions(dataset.conditions, settings.count, run.train.seed),
        scale=scale,
        shift=shift,
    )


def start(flow: FlowMap, run: RunConfig) -> None:
    """Give `flow` the weights that the run starts from, if any.

    Raises:
        CheckpointError: if they are not there.
        ConfigError: if they do not fit.
    """
    if run.init_from is None:
        return
    try:
        start_from(flow, _opened("init_from", run.init_from, lambda path: hub.load(path, "cpu")).flow)
    except CheckpointError:
        raise
    except ShortflowError as error:
        raise ConfigError(f"init_from {run.init_from}: {error}") from error


def describe(run: RunConfig, spec: DataSpec, loaded: Loaded) -> dict[str, Any]:
    """The header of the run's model."""
    return hub.describe(run, spec, references=loaded.identity, guided=carried(run, loaded))
