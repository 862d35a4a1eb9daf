"""Laws in the plane: points (n, 2) in closed form, centred and scaled to unit standard deviation.

Mean and scale are those of the law, not of the sample: the standard deviation √(tr Cov / 2) is 1 by the constants
below, so train and test points come from the same law. A data set is a function of (name, split, n).
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from shortflow.data.dataset import Dataset
from shortflow.errors import DataError

__all__ = ["GAUSSIAN_COVARIANCE", "MIXTURE_RADIUS", "MIXTURE_STD", "SIZES", "Components", "components", "names", "toy"]

Points = Float64[np.ndarray, "n 2"]
Labels = Int64[np.ndarray, "n"]
Law = Callable[[int, np.random.Generator], tuple[Points, Labels | None]]

SIZES = {"train": 20_000, "test": 10_000}
"""Number of points of each split."""

GAUSSIAN_COVARIANCE = ((1.5, 0.6), (0.6, 0.5))
"""Covariance of `gaussian`, whose mean is zero."""

MIXTURE_STD = 0.1
MIXTURE_RADIUS = math.sqrt(2 * (1 - MIXTURE_STD**2))
"""`mixture` is ⅛ Σ_k N(radius·(cos 2πk/8, sin 2πk/8), std² I), k = 0…7 the class; variance radius²/2 + std² = 1."""

# Standard deviations before scaling. Moons: x has the mean ½ and the variance ¾, y ¼ and ½(½ + ¾ − 2/π) − 1/16.
_MOONS_NOISE, _MOONS_STD = 0.1, math.sqrt((0.75 + 0.5625 - 1 / math.pi) / 2 + 0.1**2)
_RINGS_NOISE, _RINGS_STD = 0.08, math.sqrt((1 + 4 + 9) / 6 + 0.08**2)
# The angle is uniform on [3π/2, 9π/2]: E x = 2, E y = 2/(3π), E r² = 9.75π².
_ROLL_NOISE, _ROLL_MEAN = 0.3, (2.0, 2 / (3 * math.pi))
_ROLL_STD = math.sqrt((9.75 * math.pi**2 - 4 - 4 / (9 * math.pi**2)) / 2 + 0.3**2)


def _gaussian(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    return rng.standard_normal((n, 2)) @ np.linalg.cholesky(np.array(GAUSSIAN_COVARIANCE)).T, None


def _mixture(n: int, rng: np.random.Generator) -> tuple[Points, Labels]:
    component = rng.integers(8, size=n)
    centre = MIXTURE_RADIUS * _circle(2 * math.pi * component / 8)
    return centre + MIXTURE_STD * rng.standard_normal((n, 2)), component


def _moons(n: int, rng: np.random.Generator) -> tuple[Points, Labels]:
    moon = rng.integers(2, size=n)
    arc = _circle(math.pi * rng.random(n))
    points = np.where(moon[:, None] == 0, arc, (1.0, 0.5) - arc) + _MOONS_NOISE * rng.standard_normal((n, 2))
    return (points - (0.5, 0.25)) / _MOONS_STD, moon


def _checkerboard(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    # Eight of the sixteen unit squares of [−2, 2]²; each coordinate alone is uniform, with variance 4/3.
    column, row = rng.integers(4, size=n), rng.integers(2, size=n)
    corner = np.stack([column, 2 * row + column % 2], axis=1) - 2
    return (corner + rng.random((n, 2))) / math.sqrt(4 / 3), None


def _rings(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    radius = rng.integers(1, 4, size=n)
    points = radius[:, None] * _circle(2 * math.pi * rng.random(n)) + _RINGS_NOISE * rng.standard_normal((n, 2))
    return points / _RINGS_STD, None


def _swissroll(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    angle = 1.5 * math.pi * (1 + 2 * rng.random(n))
    points = angle[:, None] * _circle(angle) + _ROLL_NOISE * rng.standard_normal((n, 2))
    return (points - _ROLL_MEAN) / _ROLL_STD, None


def _pinwheel(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    arm = rng.integers(5, size=n)
    along = 1 + 0.3 * rng.standard_normal(n)
    across = 0.1 * rng.standard_normal(n)
    # Turning each point about the origin bends the arms and leaves E|p|² = 1 + 0.3² + 0.1² alone.
    turn = 2 * math.pi * arm / 5 + 0.25 * np.exp(along)
    x, y = along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)
    return np.stack([x, y], axis=1) / math.sqrt((1 + 0.3**2 + 0.1**2) / 2), None


def _circle(angle: Float64[np.ndarray, "n"]) -> Points:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


_LAWS: dict[str, tuple[Law, tuple[str, ...]]] = {
    "gaussian": (_gaussian, ()),
    "mixture": (_mixture, tuple(f"component {k}" for k in range(8))),
    "moons": (_moons, ("upper", "lower")),
    "checkerboard": (_checkerboard, ()),
    "rings": (_rings, ()),
    "swissroll": (_swissroll, ()),
    "pinwheel": (_pinwheel, ()),
}


@dataclass(frozen=True, kw_only=True)
class Components:
    """A toy as a mixture of round Gaussians with one standard deviation.

    Attributes:
        means: shape (k, 2).
        weights: shape (k,), their sum is 1.
        std: of each coordinate.
        labels: class of each component; None: no classes.
    """

    means: Points
    weights: Float64[np.ndarray, "k"]
    std: float
    labels: Int64[np.ndarray, "k"] | None


def components(name: str) -> Components | None:
    """The toy as a mixture, where it is one: `mixture`, and curves with normal noise, `moons`, `rings`, `swissroll`.

    A curve is replaced by the nodes of a quadrature (Gauss–Legendre, of closed ones equal steps), closer to each other
    than the noise is wide: the density is exact to more digits than float32 has. None for the other toys.
    """
    if name == "mixture":
        means = MIXTURE_RADIUS * _circle(2 * math.pi * np.arange(8) / 8)
        return Components(means=means, weights=np.full(8, 1 / 8), std=MIXTURE_STD, labels=np.arange(8))
    if name == "moons":
        place, weight = _legendre(64)
        arc = _circle(math.pi * place)
        means = (np.concatenate([arc, (1.0, 0.5) - arc]) - (0.5, 0.25)) / _MOONS_STD
        weights, std = np.concatenate([weight, weight]) / 2, _MOONS_NOISE / _MOONS_STD
        return Components(means=means, weights=weights, std=std, labels=np.repeat([0, 1], 64))
    if name == "rings":
        arc = _circle(2 * math.pi * np.arange(256) / 256)
        means = np.concatenate([radius * arc for radius in (1, 2, 3)]) / _RINGS_STD
        return Components(means=means, weights=np.full(768, 1 / 768), std=_RINGS_NOISE / _RINGS_STD, labels=None)
    if name == "swissroll":
        place, weights = _legendre(1024)
        angle = 1.5 * math.pi * (1 + 2 * place)
        means = (angle[:, None] * _circle(angle) - _ROLL_MEAN) / _ROLL_STD
        return Components(means=means, weights=weights, std=_ROLL_NOISE / _ROLL_STD, labels=None)
    return None


def _legendre(n: int) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """Nodes and weights of a mean over [0, 1]."""
    place, weight = np.polynomial.legendre.leggauss(n)
    return (place + 1) / 2, weight / 2


def names() -> tuple[str, ...]:
    """Names of the toys."""
    return tuple(_LAWS)


def toy(name: str, split: str = "train", n: int | None = None) -> Dataset:
    """`n` points (n, 2) of the toy `name`; by default 20,000 ("train") or 10,000 ("test"); "all" is both in this order.

    Raises:
        DataError: if the name or the split is unknown, or n < 1.
    """
    if name not in _LAWS:
        raise DataError(f"no toy is called {name!r}; there are {', '.join(_LAWS)}")
    law, classes = _LAWS[name]
    if split == "all":
        if n is not None:
            raise DataError(f"{name}: the number of points can be chosen for 'train' or 'test', not for 'all'")
        parts = [_draw(law, name, part, size) for part, size in SIZES.items()]
    elif split in SIZES:
        n = SIZES[split] if n is None else n
        if n < 1:
            raise DataError(f"{name}: at least one point is needed, got n={n}")
        parts = [_draw(law, name, split, n)]
    else:
        raise DataError(f"{name}: no split {split!r}; there are 'train', 'test' and 'all'")
    samples = np.concatenate([points for points, _ in parts]).astype(np.float32)
    labels = [labels for _, labels in parts if labels is not None]
    return Dataset(
        name=name, samples=samples, labels=np.concatenate(labels) if labels else None, classes=classes, split=split
    )


def _draw(law: Law, name: str, split: str, n: int) -> tuple[Points, Labels | None]:
    return law(n, np.random.Generator(np.random.Philox(zlib.crc32(f"{name}/{split}".encode()))))
