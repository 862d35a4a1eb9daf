"""`diagnose_data`: what a data set says about paths, targets and batches before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from shortflow.config import to_plain
from shortflow.data import Dataset, DataSpec
from shortflow.diagnose.advice import advise_on_data
from shortflow.diagnose.flows import paths, targets
from shortflow.diagnose.known import Known, known
from shortflow.diagnose.mixing import plug_in
from shortflow.diagnose.record import Diagnosis
from shortflow.diagnose.stages import Stages
from shortflow.diagnose.velocities import dimensions, variances
from shortflow.errors import ConfigError
from shortflow.paths import Path
from shortflow.recipe import Recipe
from shortflow.theory.nodes import level_of
from shortflow.typing import Progress, Report

__all__ = ["Looking", "diagnose_data"]

DRAWS = 4096  # of the recipe's times


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How closely is looked.

    Attributes:
        points: of the data, at most; None: all.
        flow_points: the same where flows are solved; None: as many as 4 million numbers are.
        rows: points (x_t, t) for a figure, at most; fewer of large data.
        flow_rows: the same where flows are solved.
        seed: of everything random.
        device: where it is computed; None: a GPU if there is one.

    Raises:
        ConfigError: if a number is not positive.
    """

    points: int | None = 50_000
    flow_points: int | None = None
    rows: int = 256
    flow_rows: int = 48
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("points", "flow_points", "rows", "flow_rows"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(f"{name} must be at least 2, got {value}")

    @property
    def place(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def known(self, dataset: Dataset, spec: DataSpec, path: Path, classes: bool) -> Known:
        """The law of the data."""
        return known(
            dataset,
            spec,
            path,
            points=self.points,
            flow_points=self.flow_points,
            classes=classes,
            seed=self.seed,
            device=self.place,
        )


def diagnose_data(
    dataset: Dataset,
    recipe: Recipe,
    *,
    batch: int = 128,
    looking: Looking = Looking(),
    report: Report | None = None,
) -> Diagnosis:
    """The diagnosis of a data set on the path of a recipe, in its units, at its times.

    `report` is told (done, in all).

    Raises:
        ConfigError: if the batch has fewer than 2 images, or more than there are.
    """
    if not 2 <= batch <= len(dataset):
        raise ConfigError(f"batch must be from 2 to the {len(dataset):,} images of {dataset.name}, got {batch}")
    recipe = recipe if dataset.labels is not None else recipe.unconditional()
    classes = dataset.labels is not None and recipe.null_class
    spec = DataSpec.fit(dataset, recipe.sigma_data)
    k = looking.known(dataset, spec, recipe.path, classes)
    generator = torch.Generator().manual_seed(looking.seed)
    d = Diagnosis(
        kind="data",
        settings={
            "data": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "law": k.words,
            "closed": k.closed,
            "shape": list(dataset.shape),
            "classes": spec.num_classes if k.label is not None else 0,
            "recipe": recipe.name,
            "path": to_plain(recipe.path),
            "times": to_plain(recipe.objective.times),
            "units": {"shift": spec.shift, "scale": spec.scale},
            "batch": batch,
            "points": looking.points,
            "flow_points": looking.flow_points,
            "rows": k.rows(looking.rows),
            "flow_rows": k.rows(looking.flow_rows, flows=True),
            "seed": looking.seed,
            "precision": str(k.x.dtype).removeprefix("torch."),
        },
    )
    _measure(d, k, _times(recipe), batch, looking, generator, Stages([3, 2, 2, 5, 4], report))
    if spec.image:
        d.notes.append("Distances and dimensions are those of pixels, as the network sees them.")
    if spec.kind == "latents":
        d.notes.append("Latents are the means of their Gaussians, of images that are not mirrored.")
    if dataset.conditions is not None:
        d.notes.append("Exact velocities are those of all samples: of what they are told by nothing is used.")
    if not k.closed:
        d.notes.append(
            "The law is the data set itself: exact velocities are those of a network that has memorised it. Above the "
            "collapse time many data points share the posterior, and that is no matter."
        )
    advise_on_data(d)
    return d


def _measure(
    d: Diagnosis,
    k: Known,
    times: torch.Tensor,
    batch: int,
    looking: Looking,
    generator: torch.Generator,
    stages: Stages,
) -> None:
    v = variances(d, k, looking.rows, generator, stages.next())
    level = level_of(k.law.path, times)
    floor = v.at(times, level, told=True)
    words = "variance of the conditional velocity over the recipe's times"
    d.scalar("floor", float(floor.mean()), words, "per dimension")
    plug_in(d, k, v, times, min(batch, len(k.x)), generator, stages.next())
    dimensions(d, k, looking.rows, generator, stages.next())
    low = 0.0 if k.closed else v.collapse
    targets(d, k, low, looking.flow_rows, generator, stages.next())
    paths(d, k, low, 2 * looking.flow_rows, generator, stages.next())
    stages.done()


def _times(recipe: Recipe) -> torch.Tensor:
    """Draws of t at the end of the run, when all ramps are over."""
    law = recipe.objective.times
    count = DRAWS - DRAWS % law.group
    found: Callable[..., Any] = law.__call__
    return found(count, Progress(images=1, total=1), torch.Generator().manual_seed(0), torch.float64).t
