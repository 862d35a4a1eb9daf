"""Whole runs: configure, train, sample and score, as functions. The command line is a thin shell around them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from shortflow import evaluate
from shortflow.config import DataConfig, RunConfig, dump, load_run, nearest, override, recipe_named, to_plain
from shortflow.data import ClassConsistent, Dataset, DataSpec, Shuffled
from shortflow.data import load as load_data
from shortflow.errors import CheckpointError, ConfigError, MetricError, SamplerError, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.guidance import guide
from shortflow.hub import Model, build_flow, check, outline, read_header
from shortflow.pairs import PairMaker, Pairs
from shortflow.pictures import comparison, image_grid, save_png, scatter
from shortflow.presets import preset, settled
from shortflow.references import check_references, describe, load_references, pair_maker, start
from shortflow.sample import (
    GRIDS,
    SAMPLERS,
    Gamma,
    Sampler,
    default_grid,
    default_sampler,
    grid_times,
    interpolate,
    sample,
)
from shortflow.train import StepRecord, fit
from shortflow.train.state import latest_state
from shortflow.typing import Batch

__all__ = [
    "comparison_picture",
    "configure",
    "generate",
    "grid_named",
    "interpolation",
    "notes",
    "open_run",
    "picture",
    "sampler_named",
    "score",
    "score_table",
    "training",
    "verdict",
]

Pixels = UInt8[np.ndarray, "n c h w"] | Float[np.ndarray, "n d"]


def configure(
    recipe: str,
    data: str | None = None,
    *,
    resolution: int | None = None,
    settings: Sequence[str] = (),
    teacher: str | None = None,
    weak: str | None = None,
    init_from: str | None = None,
) -> tuple[RunConfig, Dataset]:
    """The resolved run of a recipe (by name, or a run file ending in .yaml) on data, and the training data.

    `data` and `resolution` replace those of a run file; by default a recipe gets the built-in digits. So do `teacher`,
    `weak` and `init_from`, each a run directory or a model file. A recipe by name that starts from a model has that
    model's network.

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
        dataset = load_data(run.data.source, "train", resolution=run.data.resolution)
    else:
        chosen = recipe_named(recipe)
        source = DataConfig(source=data or "digits", resolution=resolution)
        dataset = load_data(source.source, "train", resolution=source.resolution)
        base = replace(preset(chosen, source, dataset), **others)
        run = settled(base, settings)
        if run.data != source:  # the settings name other data, which have other presets
            return configure(recipe, run.data.source, resolution=run.data.resolution, settings=settings, **others)
        if run.init_from is not None:
            run = settled(replace(base, network=outline(run.init_from).run.network), settings)
    if dataset.labels is None:
        run = replace(run, recipe=run.recipe.unconditional())
    if run.pairs is None and "pairs" in run.recipe.objective.needs:
        run = replace(run, pairs=Pairs())
    _check_batch(run)
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    try:
        check(run, spec)
    except ShortflowError as error:
        raise ConfigError(f"network: {error} (data: {dataset.name}, shape {dataset.shape})") from error
    check_references(run, spec)
    return run, dataset


def _check_batch(run: RunConfig) -> None:
    batch, group = run.train.batch, run.recipe.objective.times.group
    if batch % group:
        below, above = batch - batch % group, batch - batch % group + group
        close = str(above) if below == 0 else f"{below} or {above}"
        raise ConfigError(
            f"train.batch = {batch} cannot be split into groups of {group}, which {run.recipe.name} compares; "
            f"set train.batch to {close}"
        )


def notes(run: RunConfig, dataset: Dataset) -> list[str]:
    """Remarks on a run that its user should know of before it starts."""
    remarks = list(run.recipe.notes())
    if dataset.labels is None:
        remarks.insert(
            0, f"{dataset.name} has no classes: guidance, label dropout and class-consistent batches are off"
        )
    return remarks


def open_run(directory: Path) -> tuple[RunConfig, Dataset]:
    """The run of a directory, as it was started, and its training data.

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
    return run, load_data(run.data.source, "train", resolution=run.data.resolution)


def _batches(run: RunConfig, dataset: Dataset, spec: DataSpec, maker: PairMaker | None) -> Callable[[int], Batch]:
    """The batch of a step, of the data or of the pairs that a teacher has made."""
    batch, seed = run.train.batch, run.train.seed
    labels, n = (dataset.labels, len(dataset)) if maker is None else (maker.labels, maker.settings.count)
    order: Shuffled | ClassConsistent = Shuffled(n=n, batch_size=batch, seed=seed)
    if run.recipe.batches == "class-consistent" and labels is not None:
        order = ClassConsistent(
            labels=labels, batch_size=batch, seed=seed, group=run.train.group, num_classes=dataset.num_classes
        )

    def batch_of(step: int) -> Batch:
        rows = order.indices(step)
        if maker is not None:
            return maker.batch(rows)
        label = None if dataset.labels is None else torch.from_numpy(dataset.labels[rows])
        return Batch(x=spec.encode(dataset.samples[rows]), label=label)

    return batch_of


def training(
    run: RunConfig,
    dataset: Dataset,
    directory: Path,
    *,
    resume: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> Iterator[StepRecord]:
    """Train in `directory`, yielding the record of every step. Ends with RUN/model.safetensors in place.

    The call itself checks everything and writes RUN/run.yaml, so that a run can be resumed from its first moment;
    the steps are taken as the records are asked for. A run that was stopped before its first state starts again.
    Where a recipe learns from pairs, RUN/pairs/ is filled before the first step, from where it was interrupted;
    `report` is told (pairs that are there, pairs in all).

    Raises:
        ConfigError: if a teacher, a weak model or a model to start from is missing or does not fit.
        CheckpointError: if the directory holds a run and `resume` is False, or none and it is True, or the data or the
            other models are not those that the run was started with.
        Interrupted: from the iterator, after SIGINT or SIGTERM, with everything saved.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; give the directory that the run shall have")
    if resume and not (directory / "run.yaml").is_file():
        raise CheckpointError(f"there is nothing to resume in {directory}: it holds no run.yaml; leave out --resume")
    _check_batch(run)
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    started = latest_state(directory / "state") is not None
    if resume and started and (directory / "model.safetensors").is_file():
        _check_data(directory, spec)
    check_references(run, spec, started=started)
    loaded = load_references(run, spec)
    maker = pair_maker(run, spec, dataset, loaded, directory / "pairs")
    torch.manual_seed(run.train.seed)
    flow = build_flow(run, spec)
    if not started:
        start(flow, run)

    def preview(averaged: FlowMap, path: Path) -> None:
        # One Euler step of flow matching is the mean of the data, whatever was learned.
        steps = 32 if averaged.ends == "diagonal" else 1
        pixels, _ = generate(averaged, spec, 100 if spec.image else 4096, steps=steps)
        save_png(picture(pixels), path)

    records = fit(
        directory,
        flow,
        run.recipe.objective,
        _batches(run, dataset, spec, maker),
        settings=run.train,
        optimizer=run.recipe.optimizer,
        metadata=describe(run, spec, loaded),
        references=loaded.references,
        preview=preview,
        resume=resume and started,
    )
    if not resume:
        dump(run, directory / "run.yaml")
    return records if maker is None else _after(maker, report, records)


def _after(
    maker: PairMaker, report: Callable[[int, int], None] | None, records: Iterator[StepRecord]
) -> Iterator[StepRecord]:
    maker.make(report)
    yield from records


def _check_data(directory: Path, spec: DataSpec) -> None:
    """Raise `CheckpointError` if the model of a run that goes on was trained on data with another spec."""
    before, now = read_header(directory).get("data"), spec.to_dict()
    if isinstance(before, dict) and before != now:
        changed = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
        raise CheckpointError(
            f"the data of {directory} have changed since the run was started ({'; '.join(changed)}); "
            "give it back its data, or start a new run in another directory"
        )


def picture(pixels: Pixels, columns: int | None = None) -> Any:
    """A picture of samples: a grid of images, or a scatter plot of points."""
    return image_grid(pixels, columns) if pixels.dtype == np.uint8 else image_grid(scatter(pixels[:, :2])[None])


def generate(
    flow: FlowMap,
    spec: DataSpec,
    n: int,
    *,
    steps: int = 1,
    times: Sequence[float] | None = None,
    sampler: Sampler | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    guidance: float = 1.0,
) -> tuple[Pixels, np.ndarray | None]:
    """n decoded samples (uint8 images or points) and their classes (None: unconditional).

    `classes` are taken in turn, all of them by default.
    """
    if classes is not None and len(classes) == 0:
        raise SamplerError("the list of classes is empty; leave it out for all classes in turn")
    label = None if classes is None else torch.tensor([classes[k % len(classes)] for k in range(n)])
    batches = list(
        sample(
            guide(flow, guidance),
            n,
            spec.shape,
            steps=steps,
            times=times,
            sampler=sampler,
            label=label,
            seed=seed,
            batch_size=batch_size,
        )
    )
    pixels = np.concatenate([spec.decode(batch.x) for batch in batches])
    labels = [batch.label.cpu().numpy() for batch in batches if batch.label is not None]
    return pixels, np.concatenate(labels) if labels else None


def score(
    model: Model,
    steps: Sequence[int] = (1, 2, 4, 8, 128),
    *,
    n: int = 1000,
    seed: int = 0,
    guidance: float = 1.0,
    sampler: Sampler | None = None,
    grid: str | None = None,
    middle: float | None = None,
) -> dict[str, Any]:
    """The quality of a model by number of steps, next to held-out real data: the content of evaluation.json.

    `sampler` and `grid` are by default those that are usual for the model; `middle` is the middle time of two steps.

    Images of digits, MNIST, Fashion-MNIST and CIFAR-10 are scored in the features of the shipped classifier, points by
    energy distance and sliced Wasserstein distance.

    Raises:
        MetricError: if there is no classifier for the data, or n is too small for its scores.
        SamplerError: if the model cannot be sampled in one of the numbers of steps.
    """
    source, spec = model.run.data.source, model.spec
    _check_scoring(model, steps, n)
    rule, flow = sampler or default_sampler(model.flow), guide(model.flow, guidance)
    grids = _grids(flow, steps, grid, middle)
    for times in grids.values():
        rule.check(flow, times)
    train, held_out = (load_data(source, split, resolution=model.run.data.resolution) for split in ("train", "test"))
    rows: dict[str, Any] = {}
    record = {
        "model": str(model.path),
        "images_seen": model.images,
        "seed": seed,
        "guidance": guidance,
        "sampler": to_plain(rule),
        "grid": grid or default_grid(flow),
        "middle": middle,
        "data": source,
    }
    if not spec.image:
        for count, times in grids.items():
            points, _ = generate(flow, spec, n, times=times, sampler=rule, seed=seed)
            rows[_name(count)] = evaluate.compare_points(points, held_out.samples[:n])
        rows["real (train)"] = evaluate.compare_points(train.samples[:n], held_out.samples[:n])
        return {**record, "rows": rows}
    classifier = evaluate.load_classifier(source)
    reference = evaluate.Reference.of(
        train.samples, train.labels, held_out=held_out.samples, held_out_labels=held_out.labels, classifier=classifier
    )
    for count, times in grids.items():
        pixels, labels = generate(flow, spec, n, times=times, sampler=rule, seed=seed)
        rows[_name(count)] = evaluate.evaluate_images(pixels, labels, reference=reference, classifier=classifier)
    rows["real (held out)"] = evaluate.real_row(reference=reference, classifier=classifier, count=n)
    return {**record, "rows": rows}


def _grids(flow: FlowMap, steps: Sequence[int], grid: str | None, middle: float | None) -> dict[int, tuple[float, ...]]:
    """The grid of each number of steps: two steps have the middle time where one is given, all others `grid`."""
    if middle is not None and 2 not in steps:
        raise SamplerError(f"the middle time {middle:g} is that of 2 steps, which are not among {list(steps)}")
    two = {} if middle is None else {2: grid_times(flow, 2, middle=middle)}
    return {count: two.get(count) or grid_times(flow, count, grid) for count in steps}


def _check_scoring(model: Model, steps: Sequence[int], n: int) -> None:
    """Raise before time is spent if the model cannot be scored so."""
    source, spec = model.run.data.source, model.spec
    if not steps:
        raise MetricError("give at least one number of steps to score, such as 1,2,4")
    if spec.image and source not in evaluate.classifier_names():
        raise MetricError(
            f"{source}: images are scored in the features of a classifier, and one is shipped for "
            f"{', '.join(evaluate.classifier_names())} only. For other images train one "
            "(scripts/train_classifiers.py) and call shortflow.evaluate.evaluate_images with it"
        )
    if spec.image:
        wanted = evaluate.load_classifier(source).network.shape
        if spec.shape != wanted:
            raise MetricError(
                f"this model makes images of shape {spec.shape}, the classifier for {source} takes {wanted}; "
                "images are scored at the resolution of the data set only"
            )
    if n < (least := 6 if spec.image else 1):
        raise MetricError(f"n = {n} samples are too few to score, at least {least} are needed (1,000 or more are wise)")


def _name(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def score_table(record: dict[str, Any]) -> str:
    """The rows of a record as a plain text table."""
    if "energy_distance" not in next(iter(record["rows"].values())):
        known = next(iter(record["rows"].values()))["classifier"]
        return f"{evaluate.table(record['rows'])}\nfeatures: classifier {known['name']}, sha256 {known['sha256'][:12]}"
    lines = [f"{'':18s}{'energy distance':>16s}{'sliced W2':>12s}{'N':>8s}"]
    for name, row in record["rows"].items():
        lines.append(f"{name:18s}{row['energy_distance']:16.5f}{row['sliced_w2']:12.4f}{row['n']:8d}")
    return "\n".join(lines)


def verdict(record: dict[str, Any]) -> list[str]:
    """What the table says about one step against few steps, in words."""
    rows = record["rows"]
    if "1 step" not in rows or "4 steps" not in rows or rows["1 step"].get("coverage") is None:
        return []
    worse = [
        f"{name} {rows['1 step'][key]:.3f} against {rows['4 steps'][key]:.3f}"
        for name, key in (
            ("accuracy", "conditional_accuracy"),
            ("coverage", "coverage"),
            ("recall", "recall"),
            ("FD", "fd"),
        )
        if None not in (rows["1 step"][key], rows["4 steps"][key])
        and (rows["1 step"][key] - rows["4 steps"][key]) * (-1 if key == "fd" else 1) < 0
    ]
    return [f"One step is worse than four in: {'; '.join(worse)}."] if worse else ["One step is no worse than four."]


def comparison_picture(model: Model, steps: Sequence[int], path: Path, rows: int = 6, seed: int = 0) -> None:
    """Real data beside samples by number of steps, the same noise in every panel; of images, one class a column."""
    source, spec = model.run.data.source, model.spec
    held_out = load_data(source, "test", resolution=model.run.data.resolution)
    columns = min(10, spec.num_classes or 10) if spec.image else 1
    classes = range(columns) if spec.image and spec.num_classes else None
    n = rows * columns if spec.image else 4096
    if held_out.labels is None or classes is None:
        real = held_out.samples[:n]
    else:
        by_class = [np.flatnonzero(held_out.labels == c) for c in classes]
        rows = min(rows, *map(len, by_class))
        n = rows * columns
        real = held_out.samples[np.stack([members[:rows] for members in by_class], 1).ravel()]
    panels = [("real (held out)", real)]
    for count in steps:
        pixels, _ = generate(model.flow, spec, n, steps=count, seed=seed, classes=classes)
        panels.append((_name(count), pixels))
    if not spec.image:
        panels = [(name, scatter(points[:, :2])[None]) for name, points in panels]
    title = f"{model.run.recipe.name} on {source}: {model.images:,} images seen"
    save_png(comparison(panels, columns, title), path)


def interpolation(
    model: Model,
    *,
    rows: int,
    points: int = 8,
    steps: int = 1,
    classes: Sequence[int] | None = None,
    seed: int = 0,
    guidance: float = 1.0,
) -> tuple[Pixels, int]:
    """Rows of decoded samples between two noises, one class a row; and the number of columns."""
    flow, pixels = guide(model.flow, guidance), []
    for row in range(rows):
        label = None
        if model.spec.num_classes:
            label = classes[row % len(classes)] if classes else row % model.spec.num_classes
        seeds = (seed + 2 * row, seed + 2 * row + 1)
        x = interpolate(flow, model.spec.shape, seeds=seeds, points=points, steps=steps, label=label)
        pixels.append(model.spec.decode(x))
    return np.concatenate(pixels), points


def sampler_named(name: str, gamma: float | None = None) -> Sampler | None:
    """The sampler of that name in `shortflow.sample.SAMPLERS`; None for "auto" (what the network was trained for).

    Raises:
        ConfigError: if there is none, or `gamma` is given to another than "gamma".
    """
    if name not in ("auto", *SAMPLERS):
        raise ConfigError(f"there is no sampler called {name!r}, {nearest(name, ('auto', *SAMPLERS))}")
    if gamma is not None:
        if name != "gamma":
            raise ConfigError(
                f"gamma = {gamma:g} is a setting of the sampler gamma, not of {name}; choose that sampler"
            )
        return Gamma(gamma=gamma)
    return None if name == "auto" else SAMPLERS[name]()


def grid_named(name: str) -> str | None:
    """The grid of that name in `shortflow.sample.GRIDS`; None for "auto" (what is usual for the path)."""
    if name not in ("auto", *GRIDS):
        raise ConfigError(f"there is no grid called {name!r}, {nearest(name, ('auto', *GRIDS))}")
    return None if name == "auto" else name
