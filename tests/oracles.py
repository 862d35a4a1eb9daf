"""Exact laws and derivatives that several test files compare against. Everything here is float64.

`gaussian`, `mixture` and `finite` build the three one-dimensional laws whose golden numbers the tests quote.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from shortflow.paths import Path
from shortflow.theory import FiniteData, Gaussian, GaussianMixture, Law


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def column(*values: float) -> Tensor:
    """One-dimensional samples, shape (b, 1)."""
    return f64(*values)[:, None]


def gaussian(path: Path) -> Gaussian:
    return Gaussian(path=path, mean=0.3, std=0.5)


def mixture(path: Path, steps: int = 200) -> GaussianMixture:
    return GaussianMixture(path=path, weights=f64(0.3, 0.7), means=column(-1.0, 0.8), stds=f64(0.2, 0.5), steps=steps)


def finite(path: Path, steps: int = 200) -> FiniteData:
    return FiniteData(path=path, points=column(-1.0, 0.2, 1.5), steps=steps)


def derivative(f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    """The directional derivative of f at `at` along `along`."""
    return torch.func.jvp(f, at, along)[1]


def along_flow(law: Law, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """D_t f(x, t) = (∂_t + v_t(x)·∇) f."""
    return derivative(f, (x, t), (law.velocity(x, t), torch.ones_like(t)))


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f/∂x of each row of a row-wise f, shape (b, d, d) for x of shape (b, d)."""
    columns = []
    for j in range(x.shape[1]):
        basis = torch.zeros_like(x)
        basis[:, j] = 1
        columns.append(derivative(f, (x,), (basis,)))
    return torch.stack(columns, -1)


def divergence(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """tr ∂f/∂x of each row, shape (b,)."""
    return jacobian(f, x).diagonal(dim1=1, dim2=2).sum(-1)


def log_slope(sizes: list[float], errors: list[float]) -> float:
    """The slope of log error against log size, by least squares."""
    a, b = f64(*sizes).log(), f64(*errors).log()
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a * a).sum())
