"""The quality of a model by number of steps, next to real data."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shortflow import evaluate
from shortflow.errors import MetricError
from shortflow.evaluate.record import verdict
from shortflow.hub import Model
from shortflow.runs.drawing import Drawing
from shortflow.runs.loading import load_data
from shortflow.runs.sampling import Pixels, class_labels, draw, steps_named
from shortflow.runs.streaming import BATCH, save_array
from shortflow.typing import Report

__all__ = ["score", "score_table", "verdict"]


def score(
    model: Model,
    steps: Sequence[int] = (1, 2, 4, 8, 128),
    *,
    n: int = 1000,
    keep: Path | None = None,
    report: Report | None = None,
    **drawing: Any,
) -> dict[str, Any]:
    """The quality of a model by number of steps, next to held-out real data: the content of evaluation.json.

    Images are scored as they are drawn, and never held together; with `keep` they are written to that folder first, an
    array for each number of steps, so that a scoring that was interrupted goes on with what is there (`save_array`).

    Images of digits, MNIST, Fashion-MNIST and CIFAR-10 are scored in the features of the shipped classifier, points by
    energy distance and sliced Wasserstein distance.

    Args:
        report: called with (steps of samples that are done, in all).
        drawing: the fields of `Drawing`: seed, guidance, window, sampler, grid, middle, bf16.

    Raises:
        MetricError: if there is no classifier for the data, or n is too small for its scores.
        SamplerError: if the model cannot be sampled in one of the numbers of steps.
    """
    source, spec, how = model.run.data.source, model.spec, Drawing(**drawing)
    _check_scoring(model, steps, n)
    grids = how.grids(model.flow, steps)
    train, held_out = (load_data(model.run.data, split) for split in ("train", "test"))
    if held_out.conditions is not None:
        how = replace(how, condition=held_out.told(np.arange(min(n, len(held_out)))))
    rows: dict[str, Any] = {}
    record = {**how.record(model), "data": source}
    if spec.num_classes:
        record["classes"] = f"in turn: sample k is of class k mod {spec.num_classes}"
    samples = _Samples(model, n, grids, how, keep, report)
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
    drawing: Drawing
    keep: Path | None
    report: Report | None

    def of(self, count: int) -> Iterator[Pixels]:
        """Those in `count` steps, batch by batch: from the disk if they are kept, else as they are drawn."""
        settings = self.drawing.settings(self.model.flow, self.grids[count])
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


def _check_scoring(model: Model, steps: Sequence[int], n: int) -> None:
    """Raise before time is spent if the model cannot be scored so."""
    source, spec = model.run.data.source, model.spec
    if not steps:
        raise MetricError("give at least one number of steps to score, such as 1,2,4")
    if spec.kind == "latents":
        raise MetricError(
            f"{source}: this model makes latents, and images are scored in the features of a classifier; compare what "
            "they are decoded to with a reference (shortflow evaluate RUN --reference STATS|IMAGES --encoder FOLDER)"
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
