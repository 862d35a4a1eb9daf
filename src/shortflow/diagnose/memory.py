"""Whether a model has memorised: its samples' nearest training data, beside those of held-out data.

A sample is a copy if its nearest training point is nearer than a third of the distance to the second nearest (Yoon et
al. 2023). Of as many training as held-out points, a sample that owes nothing to single training points has its nearest
among the first with probability one half.
"""

import math

import numpy as np
import torch
from torch import Tensor

from shortflow.data import Dataset, DataSpec
from shortflow.diagnose.ofdata import Looking
from shortflow.diagnose.record import Diagnosis
from shortflow.hub import Model
from shortflow.sample import sample
from shortflow.theory.dimension import neighbour_distances
from shortflow.theory.estimates import Estimate, mean_of
from shortflow.typing import Report

__all__ = ["COPY", "memory"]

COPY = 1 / 3
MANY = 32  # steps of networks that have no map for one


def memory(d: Diagnosis, model: Model, training: Dataset, held_out: Dataset, looking: Looking, report: Report) -> None:
    """Nearest training data of samples and of held-out data: distances, their ratios, copies."""
    generator = torch.Generator().manual_seed(looking.seed)
    train = _flat(training, model.spec, looking.points, generator).to(looking.place)
    n = min(looking.rows, len(held_out), len(training))
    if n < 2 or len(train) < 3:
        d.notes.append("There are too few data to say anything of memorised ones.")
        return
    others = _flat(held_out, model.spec, len(train), generator).to(train)
    # One step of a network for velocities alone is the mean of the data, in which nothing memorised could be seen.
    d.settings["sample_steps"] = steps = MANY if model.flow.ends == "diagonal" else 1
    told = held_out.told(np.arange(n)) if model.flow.condition_shape is not None else None
    drawn = sample(model.flow, n, model.spec.shape, steps=steps, label=told, seed=looking.seed)
    made = torch.cat([batch.x.cpu() for batch in drawn]).flatten(1).to(train)
    report(1, 3)
    near = {
        name: neighbour_distances(x, train, 2).double() for name, x in (("samples", made), ("held_out", others[:n]))
    }
    report(2, 3)
    for name, distance in near.items():
        words = "samples" if name == "samples" else "held-out data"
        ratio = distance[:, 0] / distance[:, 1].clamp(min=1e-12)
        d.scalar(
            f"copies/{name}",
            _share(ratio < COPY),
            f"copies of training data among {words} (nearest below ⅓ of the second)",
        )
        d.scalar(
            f"nearest/{name}",
            mean_of(distance[:, 0]),
            f"distance to the nearest training data: {words}",
            "network units",
        )
        levels = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        d.curve(
            f"nearest_ratio/{name}",
            levels.tolist(),
            torch.quantile(ratio, levels.to(ratio)).tolist(),
            f"distance to the nearest over that to the second nearest training data: {words}",
            x_label="quantile",
        )
    each = min(len(train), len(others))
    some = train[torch.randperm(len(train), generator=generator)[:each].to(train.device)]
    nearer = neighbour_distances(made, some, 1) < neighbour_distances(made, others[:each], 1)
    d.scalar(
        "nearer_to_training",
        _share(nearer[:, 0]),
        f"samples nearer to {each:,} training than to as many held-out points (½: no preference)",
    )


def _share(hit: Tensor) -> Estimate:
    """A share with its binomial error, never 0: that of a hit more or less where none, or all, are hits."""
    n, share = len(hit), float(hit.double().mean())
    return Estimate(share, max(math.sqrt(share * (1 - share) / n), 1 / n))


def _flat(dataset: Dataset, spec: DataSpec, most: int | None, generator: torch.Generator) -> Tensor:
    """At most so many random points as vectors, in network units."""
    rows = torch.randperm(len(dataset), generator=generator)[:most].numpy()
    return spec.encode(dataset.take(rows)).flatten(1)
