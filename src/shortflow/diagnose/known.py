"""The law of a data set: in closed form where the data were drawn from one, else the finite set itself.

`gaussian`, `mixture`, `moons`, `rings` and `swissroll` have exact laws of which the data are a sample. All other data
are their own law, the one that a network trained on them for ever would learn: exact, and memorised at little noise.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.data import Dataset, DataSpec
from shortflow.data.toys import GAUSSIAN_COVARIANCE, components
from shortflow.errors import DataError
from shortflow.paths import Path
from shortflow.theory import FiniteData, Gaussian, GaussianMixture, Law, Rotated
from shortflow.theory.nodes import times_of

__all__ = ["Known", "known"]

DOUBLE = 2**24  # numbers up to which a data set is held in double precision
FLOWS = 2**22  # numbers of the part of a data set whose flows are solved
WORK = 2**31  # products of rows, points and dimensions that one evaluation at points may take
FLOW_WORK = 2**26  # and one of the many evaluations of a flow


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A law and data that follow it, in network units.

    Attributes:
        law: of which velocities and variances are taken at points.
        flows: whose flow map is solved: the same, or of a part of the data.
        x, label: the data, and their classes (None: unconditional).
        closed: whether the law has a density; else it is the data set.
        words: what it is.
    """

    law: Law
    flows: Law
    x: Float[Tensor, "n ..."]
    label: Int[Tensor, "n"] | None
    closed: bool
    words: str

    @property
    def dimension(self) -> int:
        return math.prod(self.law.shape)

    def on(self, path: Path) -> "Known":
        """The same data on another path."""
        return Known(
            law=self.law.on(path),
            flows=self.flows.on(path),
            x=self.x,
            label=self.label,
            closed=self.closed,
            words=self.words,
        )

    def rows(self, wanted: int, flows: bool = False) -> int:
        """How many rows one evaluation takes: as many as wanted, fewer of large data, 32 at least."""
        law, work = (self.flows, FLOW_WORK) if flows else (self.law, WORK)
        if not isinstance(law, FiniteData):
            return wanted
        size = len(law.points)
        return max(32, min(wanted, work // (size * self.dimension), 2**24 // size))

    def draw(
        self, n: int, generator: torch.Generator, flows: bool = False
    ) -> tuple[Float[Tensor, "n ..."], Int[Tensor, "n"] | None]:
        """n data points and their classes; of the data whose flows are solved."""
        law = self.flows if flows else self.law
        x, label = self.x, self.label
        if isinstance(law, FiniteData):
            x, label = law.points, law.labels if label is not None else None
        places = torch.randint(len(x), (n,), generator=generator).to(x.device)
        return x[places], None if label is None else label[places]

    def noisy(
        self, t: Float[Tensor, "n"], generator: torch.Generator, flows: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Int[Tensor, "n"] | None]:
        """(x_t, x, ε, class) of a row for each of the times."""
        x, label = self.draw(len(t), generator, flows)
        eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return self.law.path.interpolate(x, eps, t), x, eps, label

    def times(self, shares: Tensor) -> Tensor:
        """The times of the path at which σ/(α + σ) has these values: equal amounts of noise on every path."""
        return times_of(self.law.path, shares / (1 - shares)).to(self.x)


def known(
    dataset: Dataset,
    spec: DataSpec,
    path: Path,
    *,
    points: int | None = 50_000,
    flow_points: int | None = None,
    classes: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> Known:
    """The law of a data set on a path.

    Args:
        points: of a finite set, how many are looked at at most, a random part; None: all.
        flow_points: the same where flows are solved; None: as many as 4 million numbers are.
        classes: keep the classes.

    Raises:
        DataError: if a sample is not finite, or all are the same.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    n, size = len(dataset), math.prod(dataset.shape)
    law = _closed(dataset.name, spec, path, classes and dataset.labels is not None)
    kept = n if points is None or points >= n else points
    rows = np.arange(n) if kept == n else np.sort(rng.permutation(n)[:kept])
    if dataset.labels is not None:  # in the order of the classes, whose points are then views of one array
        rows = rows[np.argsort(dataset.labels[rows], kind="stable")]
    x = spec.encode(dataset.take(rows)).to(device)
    _check(dataset.name, x, rows)
    x = x.double() if kept * size <= DOUBLE or law is not None else x
    label = None
    if classes and dataset.labels is not None:
        label = torch.from_numpy(dataset.labels[rows]).to(device)
    if law is not None:
        words = f"the law that {dataset.name} is drawn from, exactly"
        return Known(law=law, flows=law, x=x, label=label, closed=True, words=words)
    if label is not None and len(label.unique()) != spec.num_classes:
        label = None  # a part without a point of some class has no law for it
    finite = FiniteData(path=path, points=x, labels=label, steps=4)
    part = min(kept, flow_points or max(1, FLOWS // size))
    flows = finite
    if part < kept:
        chosen = torch.from_numpy(np.sort(rng.permutation(kept)[:part])).to(device)
        shown = None if label is None or len(label[chosen].unique()) != spec.num_classes else label[chosen]
        flows = FiniteData(path=path, points=x[chosen], labels=shown, steps=4)
    words = f"the {kept:,} points of {dataset.name} themselves"
    if kept < n:
        words = f"a random {kept:,} of the {n:,} points of {dataset.name}, themselves"
    if part < kept:
        words += f"; of {part:,} of them where flows are solved"
    return Known(law=finite, flows=flows, x=x, label=label, closed=False, words=words)


def _check(name: str, x: Float[Tensor, "n ..."], rows: np.ndarray) -> None:
    """Raise `DataError` for data that no law can be made of."""
    bad = (~x.flatten(1).isfinite().all(1)).nonzero()[:, 0]
    if len(bad):
        raise DataError(f"{name}: sample {int(rows[int(bad[0])])} is not finite; mend it, or leave it out")
    if bool((x == x[:1]).all()):
        raise DataError(f"{name}: all {len(x):,} samples are the same; there is nothing to say of one point")


def _closed(name: str, spec: DataSpec, path: Path, classes: bool) -> Law | None:
    """The law of a toy in network units, if it has one in closed form."""
    if spec.kind != "points":
        return None
    shift, scale = spec.shift, spec.scale
    if name == "gaussian":
        values, vectors = torch.linalg.eigh(torch.tensor(GAUSSIAN_COVARIANCE, dtype=torch.float64))
        middle = torch.full((2,), -shift, dtype=torch.float64)
        base = Gaussian(path=path, mean=scale * (middle @ vectors), std=scale * values.sqrt(), sample_shape=(2,))
        return Rotated(path=path, base=base, rotation=vectors)
    found = components(name)
    if found is None:
        return None
    labels = None if found.labels is None or not classes else torch.from_numpy(found.labels)
    return GaussianMixture(
        path=path,
        weights=torch.from_numpy(found.weights),
        means=(torch.from_numpy(found.means) - shift) * scale,
        stds=torch.full((len(found.weights),), found.std * scale, dtype=torch.float64),
        labels=labels,
        steps=4,
    )
