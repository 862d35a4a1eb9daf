"""Whole runs: configure, train, sample and score, as functions. The command line is a thin shell around them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from shortflow import evaluate
from shortflow.config import DataConfig, RunConfig, dump, load_run, nearest, override, recipe_named
from shortflow.data import ClassConsistent, Dataset, DataSpec, Shuffled
from shortflow.data import load as load_data
from shortflow.errors import CheckpointError, ConfigError
from shortflow.flowmap import FlowMap
from shortflow.guidance import guide
from shortflow.hub import Model, build_flow, describe
from shortflow.pictures import comparison, image_grid, save_png, scatter
from shortflow.presets import preset
from shortflow.sample import PushForward, ReNoise, Sampler, interpolate, sample
from shortflow.train import StepRecord, fit
from shortflow.typing import Batch

__all__ = [
    "comparison_picture",
    "configure",
    "generate",
    "interpolation",
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
    recipe: str, data: str = "digits", *, resolution: int | None = None, settings: Sequence[str] = ()
) -> tuple[RunConfig, Dataset]:
    """The resolved run of a recipe (by name, or a run file ending in .yaml) on data, and the training data.

    Raises:
        ConfigError, DataError: naming everything that is wrong, before any training.
    """
    if recipe.endswith((".yaml", ".yml")):
        run = load_run(Path(recipe))
        dataset = load_data(run.data.source, "train", resolution=run.data.resolution)
    else:
        source = DataConfig(source=data, resolution=resolution)
        chosen = recipe_named(recipe)
        dataset = load_data(data, "train", resolution=resolution)
        run = preset(chosen, source, dataset)
    run = override(run, settings)
    if dataset.labels is None and (run.recipe.objective.label_dropout > 0 or run.recipe.batches == "class-consistent"):
        run = RunConfig(recipe=run.recipe.unconditional(), network=run.network, data=run.data, train=run.train)
    group = run.recipe.objective.metric.group
    if run.train.batch % group:
        raise ConfigError(f"train.batch = {run.train.batch} is not a multiple of the metric's groups of {group}")
    return run, dataset


def open_run(directory: Path) -> tuple[RunConfig, Dataset]:
    """The run of a directory, as it was started, and its training data.

    Raises:
        CheckpointError: if the directory holds no run.
    """
    file = directory / "run.yaml"
    if not file.is_file():
        raise CheckpointError(
            f"{directory} holds no run (no run.yaml); start one with: shortflow train RECIPE --out {directory}"
        )
    run = load_run(file)
    return run, load_data(run.data.source, "train", resolution=run.data.resolution)


def _order(run: RunConfig, dataset: Dataset) -> Shuffled | ClassConsistent:
    batch, seed = run.train.batch, run.train.seed
    if run.recipe.batches == "class-consistent" and dataset.labels is not None:
        return ClassConsistent(
            labels=dataset.labels, batch_size=batch, seed=seed, group=run.train.group, num_classes=dataset.num_classes
        )
    return Shuffled(n=len(dataset), batch_size=batch, seed=seed)


def training(run: RunConfig, dataset: Dataset, directory: Path, *, resume: bool = False) -> Iterator[StepRecord]:
    """Train in `directory`, yielding the record of every step. Ends with RUN/model.safetensors in place.

    Raises:
        CheckpointError: if the directory holds a run and `resume` is False, or none and it is True.
        Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    torch.manual_seed(run.train.seed)
    flow = build_flow(run, spec)
    order = _order(run, dataset)

    def batch_of(step: int) -> Batch:
        rows = order.indices(step)
        label = None if dataset.labels is None else torch.from_numpy(dataset.labels[rows])
        return Batch(x=spec.encode(dataset.samples[rows]), label=label)

    def preview(averaged: FlowMap, path: Path) -> None:
        pixels, _ = generate(averaged, spec, 100 if spec.image else 4096)
        save_png(picture(pixels), path)

    records = fit(
        directory,
        flow,
        run.recipe.objective,
        batch_of,
        settings=run.train,
        optimizer=run.recipe.optimizer,
        metadata=describe(run, spec),
        preview=preview,
        resume=resume,
    )
    if not resume and not (directory / "state").exists():
        dump(run, directory / "run.yaml")
    yield from records


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
    """n decoded samples (uint8 images or points) and their classes (None: unconditional), classes in turn by default."""
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
    model: Model, steps: Sequence[int] = (1, 2, 4, 8, 128), *, n: int = 1000, seed: int = 0, guidance: float = 1.0
) -> dict[str, Any]:
    """The quality of a model by number of steps, next to held-out real data: the content of evaluation.json.

    Images of digits, MNIST, Fashion-MNIST and CIFAR-10 are scored in the features of the shipped classifier, points by
    energy distance and sliced Wasserstein distance.

    Raises:
        MetricError: if there is no classifier for the data.
    """
    source = model.run.data.source
    train, held_out = (load_data(source, split, resolution=model.run.data.resolution) for split in ("train", "test"))
    rows: dict[str, Any] = {}
    record = {"model": str(model.path), "images_seen": model.images, "seed": seed, "guidance": guidance, "data": source}
    if not model.spec.image:
        for count in steps:
            points, _ = generate(model.flow, model.spec, n, steps=count, seed=seed, guidance=guidance)
            rows[_name(count)] = evaluate.compare_points(points, held_out.samples[:n])
        rows["real (held out)"] = evaluate.compare_points(train.samples[:n], held_out.samples[:n])
        return {**record, "rows": rows}
    classifier = evaluate.load_classifier(source)
    reference = evaluate.Reference.of(
        train.samples, train.labels, held_out=held_out.samples, held_out_labels=held_out.labels, classifier=classifier
    )
    for count in steps:
        pixels, labels = generate(model.flow, model.spec, n, steps=count, seed=seed, guidance=guidance)
        rows[_name(count)] = evaluate.evaluate_images(pixels, labels, reference=reference, classifier=classifier)
    rows["real (held out)"] = evaluate.real_row(reference=reference, classifier=classifier, count=n)
    return {**record, "rows": rows}


def _name(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def score_table(record: dict[str, Any]) -> str:
    """The rows of a record as a plain text table."""
    if "energy_distance" not in next(iter(record["rows"].values())):
        return evaluate.table(record["rows"])
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
        for name, key in (("coverage", "coverage"), ("recall", "recall"), ("FD", "fd"))
        if (rows["1 step"][key] - rows["4 steps"][key]) * (-1 if key == "fd" else 1) < 0
    ]
    return [f"One step is worse than four in: {'; '.join(worse)}."] if worse else ["One step is no worse than four."]


def comparison_picture(model: Model, steps: Sequence[int], path: Path, rows: int = 6, seed: int = 0) -> None:
    """Real images beside samples by number of steps, one class a column, the same noise in every panel."""
    source = model.run.data.source
    held_out = load_data(source, "test", resolution=model.run.data.resolution)
    columns = model.spec.num_classes or 10
    if held_out.labels is None:
        real = held_out.samples[: rows * columns]
    else:
        by_class = [np.flatnonzero(held_out.labels == c)[:rows] for c in range(columns)]
        real = held_out.samples[np.stack(by_class, 1).ravel()]
    panels = [("real (held out)", real)]
    for count in steps:
        pixels, _ = generate(model.flow, model.spec, rows * columns, steps=count, seed=seed)
        panels.append((_name(count), pixels))
    title = f"{model.run.recipe.name} on {source}: {model.images:,} images seen"
    save_png(comparison(panels, columns, title), path)


def interpolation(
    model: Model, *, rows: int, points: int = 8, steps: int = 1, classes: Sequence[int] | None = None, seed: int = 0
) -> tuple[Pixels, int]:
    """Rows of decoded samples between two noises, one class a row; and the number of columns."""
    pixels = []
    for row in range(rows):
        label = None
        if model.spec.num_classes:
            label = classes[row % len(classes)] if classes else row % model.spec.num_classes
        seeds = (seed + 2 * row, seed + 2 * row + 1)
        x = interpolate(model.flow, model.spec.shape, seeds=seeds, points=points, steps=steps, label=label)
        pixels.append(model.spec.decode(x))
    return np.concatenate(pixels), points


def sampler_named(name: str) -> Sampler | None:
    """The sampler called "push-forward" or "re-noise"; None for "auto" (what the network was trained for)."""
    known: dict[str, Sampler | None] = {"auto": None, "push-forward": PushForward(), "re-noise": ReNoise()}
    if name not in known:
        raise ConfigError(f"there is no sampler called {name!r}, {nearest(name, list(known))}")
    return known[name]
