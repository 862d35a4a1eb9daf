"""Exact flow maps in every parameterisation, and hand-made draws of points on them. Everything is float64."""

import torch
from torch import Tensor, nn

from oracles import column, f64
from shortflow.draw import Draw
from shortflow.flowmap import AverageVelocity, EDMSkip, FlowMap, Parameterization, Transfer, TrigFlow
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import Gaussian, Law
from shortflow.typing import expand
from steps import draw_at

X = column(1.1, 0.25, -0.6, -1.3)
T = f64(0.7, 0.9, 0.5, 1.0)
R = f64(0.2, 0.05, 0.3, 0.1)
ROWS = torch.arange(4)

FORMS: list[tuple[Path, Parameterization, float]] = [
    (Linear(), AverageVelocity(), 1.0),
    (Linear(noise_scale=0.5), AverageVelocity(normalize=True), 0.5),
    (Cosine(), AverageVelocity(), 1.0),
    (Cosine(), Transfer(), 1.0),
    (Cosine(noise_scale=0.5), TrigFlow(), 0.5),
    (VarianceExploding(sigma_max=3.0), EDMSkip(), 0.5),
]
"""(path, parameterisation, σ_data)."""


def form_name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Path | Parameterization) else str(value)


class ExactOutput(nn.Module):
    """The output F with which a parameterisation makes the exact jumps of a law; EDM's form needs r < t."""

    def __init__(self, law: Law, form: Parameterization, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.law, self.form, self.sigma_data = law, form, sigma_data

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        path, size = self.law.path, self.sigma_data
        scale = self.form.input_scale(path, size, time)
        x = x if scale is None else x / expand(scale, x)
        r = time if second is None else time - second
        if isinstance(self.form, EDMSkip):
            a, b = self.form.coefficients(path, size, time, r)
            return (self.law.flow_map(x, time, r) - expand(a, x) * x) / expand(b, x)
        straight = isinstance(self.form, AverageVelocity)
        u = (self.law.average_velocity if straight else self.law.transfer_velocity)(x, time, r)
        return u / expand(self.form.rates(path, size, time)[1], x)


def exact(law: Law, form: Parameterization, sigma_data: float = 1.0) -> FlowMap:
    return FlowMap(ExactOutput(law, form, sigma_data), law.path, form, sigma_data=sigma_data)


def gauss(path: Path) -> Gaussian:
    return Gaussian(path=path, mean=0.3, std=0.5)


def points(path: Path, s: Tensor | None = None, t: Tensor = T, r: Tensor = R, x_t: Tensor = X) -> Draw:
    """The points above with jumps from t to r; (x, ε) are some pairs that x_t has nothing to do with."""
    eps = torch.linspace(-0.5, 0.7, len(t), dtype=torch.float64)[:, None]
    x = torch.full_like(x_t, 0.3)
    return draw_at(path, x, eps, t, r, s, x_t=x_t)
