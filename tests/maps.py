"""Every parameterisation on every path it is defined on, every conditioning, and a network of any weights."""

import pytest
import torch
from torch import Tensor, nn

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import (
    AngleOnly,
    AverageVelocity,
    Denoiser,
    DiffusionIndex,
    EDMSkip,
    LogSigma,
    LogStep,
    NoisePrediction,
    Parameterization,
    SimpleEDM,
    StartAndEnd,
    StartAndGap,
    StartOnly,
    Transfer,
    TrigFlow,
    TrigJump,
)
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding


def called(part: object) -> str:
    """The name of a test's case: the part, without the addresses of functions inside."""
    return "polynomial" if isinstance(part, CustomPath) else repr(part)


def polynomial() -> CustomPath:
    """α = 1 − t², σ = t(2 − t)."""
    return CustomPath(
        alpha_fn=lambda t: 1 - t**2,
        sigma_fn=lambda t: t * (2 - t),
        d_alpha_fn=lambda t: -2 * t,
        d_sigma_fn=lambda t: 2 - 2 * t,
    )


PATHS: list[Path] = [
    Linear(),
    Linear(noise_scale=0.5),
    Cosine(),
    Cosine(noise_scale=0.5),
    VarianceExploding(),
    polynomial(),
]
PARAMETERIZATIONS = [
    AverageVelocity(),
    AverageVelocity(normalize=True),
    AverageVelocity(scale=1.75),
    Transfer(),
    Denoiser(),
    Denoiser(normalize=True),
    NoisePrediction(),
    TrigJump(),
    TrigFlow(),
    SimpleEDM(),
    EDMSkip(),
]
CONDITIONINGS = [
    StartOnly(),
    AngleOnly(),
    StartAndGap(),
    StartAndGap(scale=1000.0),
    StartAndEnd(),
    LogStep(),
    LogSigma(),
    DiffusionIndex(),
]
SIGMA_DATA = 0.5


def defined(parameterization: Parameterization, path: Path) -> bool:
    try:
        parameterization.check(path, SIGMA_DATA)
    except IncompatibleParts:
        return False
    return True


COMBINATIONS = [(p, path) for p in PARAMETERIZATIONS for path in PATHS if defined(p, path)]
every_combination = pytest.mark.parametrize(("parameterization", "path"), COMBINATIONS, ids=called)


class Affine(nn.Module):
    """F = A x + (time + 2·second) c: any weights, any inputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(3 * torch.randn(2, 2, generator=g, dtype=torch.float64))
        self.bias = nn.Parameter(3 * torch.randn(2, generator=g, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
        clock = time if second is None else time + 2 * second
        return x @ self.weight + torch.tanh(clock)[:, None] * self.bias


def points(b: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, output = torch.randn(2, b, 2, generator=g, dtype=torch.float64)
    return x, output
