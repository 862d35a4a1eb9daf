"""A run before it starts: resolved from a recipe or a file, checked against its data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shortflow.config import DataConfig, RunConfig, concerning, load_run, override, recipe_named
from shortflow.data import Conditions, Dataset, DataSpec
from shortflow.data.encoded import Encoded
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import CheckpointError, ConfigError, IncompatibleParts, ShortflowError
from shortflow.hub import check, outline
from shortflow.pairs import Pairs
from shortflow.presets import preset, settled
from shortflow.recipes import RECIPES
from shortflow.references import check_given, check_references
from shortflow.runs.advice import data_remarks
from shortflow.runs.loading import training_data
from shortflow.train.trackers import missing_curves
from shortflow.typing import Report
from shortflow.velocity import PlugIn

__all__ = ["check_batch", "configure", "notes", "open_run"]


def configure(
    recipe: str,
    data: str | None = None,
    *,
    resolution: int | None = None,
    settings: Sequence[str] = (),
    teacher: str | None = None,
    weak: str | None = None,
    init_from: str | None = None,
    models: bool = True,
    report: Report | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[RunConfig, Dataset]:
    """The resolved run of a recipe (by name, or a run file ending in .yaml) on data, and the training data.

    `data` and `resolution` replace those of a run file; by default a recipe gets the built-in digits. So do `teacher`,
    `weak` and `init_from`, each a run directory or a model file. A recipe by name that starts from a model has that
    model's network. Without `models` none of them need be there yet: they are not opened, and a recipe that starts from
    one has the network of the preset. `report` is called with (images that are decoded, images in all) where that takes
    time, `say` before an autoencoder that the settings name is fetched.

    Raises:
        ConfigError, DataError: naming everything that is wrong, before any training.
        CheckpointError: if one of the other models is not there or damaged.
    """
    others = {"teacher": teacher, "weak": weak, "init_from": init_from}
    others = {role: path for role, path in others.items() if path is not None}
    if recipe.endswith((".yaml", ".yml")):
        run = load_run(Path(recipe))
        given = {} if data is None else {"source": data}
        given |= {} if resolution is None else {"resolution": resolution}
        run = override(replace(run, data=replace(run.data, **given), **others), settings)
        dataset = training_data(run.data, report=report, say=say)
    else:
        chosen = recipe_named(recipe)
        bare = RunConfig(recipe=chosen, data=DataConfig(source=data or "digits", resolution=resolution))
        source = override(bare, concerning(bare, settings, "data")).data  # the preset is that of these data
        dataset = training_data(source, report=report, say=say)
        base = replace(preset(chosen, source, dataset), **others)
        run = settled(base, settings)
        if models and run.init_from is not None:
            run = settled(replace(base, network=outline(run.init_from).run.network), settings)
    if not dataset.conditional:
        run = replace(run, recipe=run.recipe.unconditional())
    if run.pairs is None and "pairs" in run.recipe.objective.needs:
        run = replace(run, pairs=Pairs())
    check_batch(run)
    _check_data(run, dataset)
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    try:
        check(run, spec)
    except ShortflowError as error:
        raise ConfigError(f"network: {error} (data: {dataset.name}, shape {dataset.shape})") from error
    if models:
        check_references(run, spec)
    else:
        check_given(run)
    return run, dataset


def check_batch(run: RunConfig, parts: int | None = None) -> None:
    """Raise `ConfigError` if a part of a batch cannot be split into the groups that the objective compares, or is too
    small to have rows of both kinds.

    Args:
        parts: of a batch; None: as many as the run has.
    """
    batch, group, parts = run.train.batch, run.recipe.objective.times.group, parts or run.train.parts
    if batch % (group * parts):
        group *= parts
        below, above = batch - batch % group, batch - batch % group + group
        words = "groups" if parts == 1 else f"{parts} parts of groups"
        close = str(above) if below == 0 else f"{below} or {above}"
        raise ConfigError(
            f"train.batch = {batch} cannot be split into {words} of {group // parts}, which {run.recipe.name} "
            f"compares; set train.batch to {close}"
        )
    law, rows = run.recipe.objective.times, batch // parts
    jumping = law.jumping(rows) if law.gap == "mixed" else None
    if jumping in (0, rows):
        raise ConfigError(
            f"of {rows} rows (train.batch over its parts and processes) {jumping} would have r < t in every step, and "
            f"{run.recipe.name} learns from both kinds of rows; set train.batch to a larger number"
        )


def _check_data(run: RunConfig, dataset: Dataset) -> None:
    if dataset.conditions is not None:
        try:
            for plug_in in _plug_ins(run.recipe.objective.target):
                plug_in.check_conditions()
        except IncompatibleParts as error:
            raise ConfigError(f"{run.recipe.name} on {dataset.name}: {error}") from error
    if run.data.flip and dataset.kind == "points":
        raise ConfigError(f"data.flip mirrors images, and {dataset.name} is points; leave it out")
    if run.data.flip and "pairs" in run.recipe.objective.needs:
        raise ConfigError(
            f"data.flip mirrors images of the data, and {run.recipe.name} learns from the pairs of a teacher; leave it "
            "out here, and train the teacher with it"
        )
    if run.data.latent is not None:
        _check_latents(run.data, run.data.latent, dataset)


def _check_latents(data: DataConfig, wanted: LatentSpec, dataset: Dataset) -> None:
    """Raise `ConfigError` unless the data are latents of the autoencoder and the images that the run is for."""
    found, anyway = dataset.latent, "or train on these all the same with --set data.latent=null"
    make = (
        f"shortflow encode IMAGES --encoder {wanted.encoder} --resolution {wanted.pixels[-1]} {wanted.options} --out "
        "LATENTS makes them, and --data LATENTS names them"
    )
    if found is None:
        raise ConfigError(
            f"this run is for latents {wanted.in_words()} (data.latent), and {dataset.name} is {dataset.kind}. {make}; "
            f"{anyway}"
        )
    if wanted.agrees(found.encoder, found.sha256) is False:
        raise ConfigError(
            f"this run is for latents {wanted.in_words()} (data.latent), and {data.source} holds latents "
            f"{found.in_words()}: another autoencoder. {make}; {anyway}"
        )
    if found.pixels != wanted.pixels:
        raise ConfigError(
            f"this run is for latents of images {wanted.pixels} (data.latent), and {data.source} holds latents of "
            f"images {found.pixels}. {make}; {anyway}"
        )


def _plug_ins(part: Any) -> Iterator[PlugIn]:
    """The plug-in velocities in a part, wherever they are inside it."""
    if isinstance(part, PlugIn):
        yield part
    elif is_dataclass(part):
        for field in fields(part):
            yield from _plug_ins(getattr(part, field.name))
    elif isinstance(part, tuple):
        for each in part:
            yield from _plug_ins(each)


def notes(run: RunConfig, dataset: Dataset) -> list[str]:
    """Remarks on a run that its user should know of before it starts."""
    remarks = list(run.recipe.notes())
    if not dataset.conditional:
        remarks.insert(
            0, f"{dataset.name} has no classes: guidance, label dropout and class-consistent batches are off"
        )
    if dataset.conditions is not None:
        remarks += _of_conditions(run, dataset, dataset.conditions)
    remarks += _of_latents(run, dataset)
    remarks += _departures(run, dataset)
    remarks += data_remarks(run, dataset)
    curves = missing_curves(run.train.trackers)
    return remarks if curves is None else [*remarks, curves]


def _of_conditions(run: RunConfig, dataset: Dataset, conditions: Conditions) -> list[str]:
    """Remarks on data that are told by vectors or sequences."""
    remarks = []
    if run.recipe.batches == "class-consistent":
        remarks.append(f"{dataset.name} has conditions that are no classes: batches are shuffled")
    if any(True for _ in _plug_ins(run.recipe.objective.target)):
        remarks.append("the plug-in velocity is a mean over the images of a batch whose conditions are equal")
    rows = np.linspace(0, len(conditions) - 1, min(len(conditions), 1024)).astype(np.int64)
    size = float(np.sqrt(np.nanmean(np.square(conditions.take(rows).astype(np.float64)))))
    if not 0.1 <= size <= 10:
        remarks.append(
            f"the numbers of the conditions have a root mean square of {size:.3g}; networks learn best from about 1, "
            "so scale them, here and where samples are drawn"
        )
    return remarks


def _of_latents(run: RunConfig, dataset: Dataset) -> list[str]:
    """Remarks on latents that are not, or may not be, those that the run is for."""
    wanted, found = run.data.latent, dataset.latent
    if wanted is None or found is None:
        return []
    remarks = []
    if wanted.agrees(found.encoder, found.sha256) is None:
        remarks.append(
            f"not verified: whether {found.encoder}, which made these latents, is {wanted.encoder}, which this run is "
            "for; neither sum nor name tells"
        )
    apart = wanted.units_apart(found, ("this run", dataset.name))
    if apart:
        how = f"shortflow encode {run.data.source} {wanted.options} changes it, and encodes no image again"
        if isinstance(dataset.samples, Encoded):
            how = f"make a store (shortflow encode --out LATENTS), with {wanted.options}"
        remarks.append(f"{'; '.join(apart)}. Figures that are told of it are at its own; {how}")
    return remarks


def _departures(run: RunConfig, dataset: Dataset) -> list[str]:
    """A remark where batch or budget are not those of the published run; on data other than latents, where they are not
    those that the recipe has on such data."""
    published, name = run.recipe.published, run.recipe.name
    if dataset.kind == "latents" and published is not None:
        batch, steps = published.batch, published.steps
        wants = {"batch": batch, "images": None if batch is None or steps is None else batch * steps}
        trained = f" of {published.network}" if published.network else ""
        said = f"{name} was published with {{}}; figures that are told of it are those of that run{trained}"
    elif dataset.kind != "latents" and name in RECIPES:
        usual = preset(recipe_named(name), run.data, dataset).train
        wants = {"batch": usual.batch, "images": usual.images}
        said = f"{name} has {{}} on data like this; figures that are told of it are those"
    else:
        return []
    has = {each: getattr(run.train, each) for each in wants}
    apart = [
        f"{want:,} for train.{each} ({has[each]:,} here)"
        for each, want in wants.items()
        if want not in (None, has[each])
    ]
    return [said.format(" and ".join(apart))] if apart else []


def open_run(
    directory: Path, report: Report | None = None, say: Callable[[str], None] = lambda text: None
) -> tuple[RunConfig, Dataset]:
    """The run of a directory, as it was started, and its training data; `report` and `say` are those of `configure`.

    Raises:
        CheckpointError: if the directory holds no run.
        ConfigError, DataError: if its run file or its data are not what they were.
    """
    file = directory / "run.yaml"
    if not file.is_file():
        raise CheckpointError(
            f"{directory} holds no run (no run.yaml); start one with: shortflow train RECIPE --out {directory}"
        )
    run = load_run(file)
    return run, training_data(run.data, report=report, say=say)
