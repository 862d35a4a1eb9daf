"""The quality of a model by number of steps, next to real data."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shortflow import evaluate
from shortflow.config import to_plain
from shortflow.data import load as load_data
from shortflow.errors import MetricError, SamplerError
from shortflow.evaluate.record import verdict
from shortflow.flowmap import FlowMap
from shortflow.hub import Model
from shortflow.runs.sampling import Pixels, Window, class_labels, draw, guided, steps_named
from shortflow.runs.streaming import BATCH, save_array
from shortflow.sample import (
    Sampler,
    default_grid,
    default_sampler,
    grid_times,
)
from shortflow.typing import Report

__all__ = ["grids_of", "score", "score_table", "verdict"]


def score(
    model: Model,
    steps: Sequence[int] = (1, 2, 4, 8, 128),
    *,
    n: int = 1000,
    seed: int = 0,
    guidance: float = 1.0,
    window: Window = None,
    sampler: Sampler | None = None,
    grid: str | None = None,
    middle: float | None = None,
    bf16: bool = False,
    keep: Path | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """The quality of a model by number of steps, next to held-out real data: the content of evaluation.json.

    `sampler` and `grid` are by default those that are usual for the model; `middle` is the middle time of two steps;
    `guidance` and `window` are those of `guided`; `bf16` is that of `draw`. Images are scored as they are drawn, and
    never held together; with `keep` they are written to that folder first, an array for each number of steps, so that
    a scoring that was interrupted goes on with what is there (`save_array`). `report` is called with (steps of samples
    that are done, in all).

    Images of digits, MNIST, Fashion-MNIST and CIFAR-10 are scored in the features of the shipped classifier, points by
    energy distance and sliced Wasserstein distance.

    Raises:
        MetricError: if there is no classifier for the data, or n is too small for its scores.
        SamplerError: if the model cannot be sampled in one of the numbers of steps.
    """
    source, spec = model.run.data.source, model.spec
    _check_scoring(model, steps, n)
    rule, flow = sampler or default_sampler(model.flow), guided(model.flow, guidance, window)
    grids = grids_of(flow, steps, grid, middle)
    for times in grids.values():
        rule.check(flow, times)
    train, held_out = (load_data(source, split, resolution=model.run.data.resolution) for split in ("train", "test"))
    rows: dict[str, Any] = {}
    record = {
        "model": str(model.path),
        "images_seen": model.images,
        "seed": seed,
        "guidance": guidance,
        "window": None if window is None else list(window),
        "sampler": to_plain(rule),
        "grid": grid or default_grid(flow),
        "middle": middle,
        "data": source,
        "precision": "bf16" if bf16 else "fp32",
    }
    drawing: dict[str, Any] = {"sampler": rule, "seed": seed, "bf16": bf16, "guidance": guidance, "window": window}
    samples = _Samples(model, n, grids, drawing, keep, report)
    if not spec.image:
        for count in grids:
            points = np.concatenate(list(samples.of(count)))
            rows[steps_named(count)] = evaluate.compare_points(points, held_out.samples[:n])
        rows["real (train)"] = evaluate.compare_points(train.samples[:n], held_out.samples[:n])
        return {**record, "rows": rows}
    classifier = evaluate.load_classifier(source)
    reference = evaluate.Reference.of(
        train.samples, train.labels, held_out=held_out.samples, held_out_labels=held_out.labels, classifier=classifier
    )
    for count in grids:
        rows[steps_named(count)] = evaluate.evaluate_images(
            samples.of(count), class_labels(spec, n), reference=reference, classifier=classifier
        )
    rows["real (held out)"] = evaluate.real_row(reference=reference, classifier=classifier, count=n)
    return {**record, "rows": rows}


@dataclass(frozen=True)
class _Samples:
    """What is scored: n samples of the model in each number of steps, which have their grid."""

    model: Model
    n: int
    grids: Mapping[int, tuple[float, ...]]
    drawing: Mapping[str, Any]
    keep: Path | None
    report: Report | None

    def of(self, count: int) -> Iterator[Pixels]:
        """Those in `count` steps, batch by batch: from the disk if they are kept, else as they are drawn."""
        settings = {**self.drawing, "times": self.grids[count]}
        if self.keep is None:
            for part in draw(self.model.flow, self.model.spec, self.n, **settings):
                self._tell(count, part.first + len(part.pixels))
                yield part.pixels
            return
        file = self.keep / f"{steps_named(count).replace(' ', '-')}.npy"
        save_array(self.model, self.n, file, report=lambda done, _: self._tell(count, done), **settings)
        self._tell(count, self.n)
        stored = np.load(file, mmap_mode="r")
        for first in range(0, self.n, BATCH):
            yield np.array(stored[first : first + BATCH])

    def _tell(self, count: int, done: int) -> None:
        if self.report is not None:
            before = sum(itertools.takewhile(lambda other: other != count, self.grids))
            self.report(self.n * before + done * count, self.n * sum(self.grids))


def grids_of(
    flow: FlowMap, steps: Sequence[int], grid: str | None, middle: float | None
) -> dict[int, tuple[float, ...]]:
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
    if spec.kind == "latents":
        raise MetricError(
            f"{source}: this model makes latents, and images are scored in the features of a classifier; draw and "
            "decode them (shortflow sample RUN --encoder FOLDER --n 50000 --out samples.npy), and score the images "
            "(shortflow evaluate samples.npy --reference STATS|IMAGES)"
        )
    if spec.image and source not in evaluate.classifier_names():
        raise MetricError(
            f"{source}: images are scored in the features of a classifier, and one is shipped for "
            f"{', '.join(evaluate.classifier_names())} only. For other images give --reference or --features (FID), or "
            "train one (scripts/train_classifiers.py) and call shortflow.evaluate.evaluate_images with it"
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


def score_table(record: dict[str, Any]) -> str:
    """The rows of a record as a plain text table."""
    if "energy_distance" not in next(iter(record["rows"].values())):
        known = next(iter(record["rows"].values()))["classifier"]
        return f"{evaluate.table(record['rows'])}\nfeatures: classifier {known['name']}, sha256 {known['sha256'][:12]}"
    lines = [f"{'':18s}{'energy distance':>16s}{'sliced W2':>12s}{'N':>8s}"]
    for name, row in record["rows"].items():
        lines.append(f"{name:18s}{row['energy_distance']:16.5f}{row['sliced_w2']:12.4f}{row['n']:8d}")
    return "\n".join(lines)
