"""The Fréchet distance of two feature sets, read as Gaussians with their mean and covariance.

FD(a, b) = |μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2 tr (Σ_a^½ Σ_b Σ_a^½)^½,

the squared Wasserstein-2 distance of N(μ_a, Σ_a) and N(μ_b, Σ_b). This module owns the moments: always float64
and centred, because a float32 sum of outer products loses the covariance when the mean is large. The name FID is
kept for Inception-v3 features of 50,000 samples; every other choice is an FD and is compared at equal counts only,
because FD(N) ≈ FD(∞) + b/N.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shortflow.errors import MetricError

__all__ = ["Gaussian", "Moments", "frechet_distance"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Mean and covariance of a feature set whose images are not at hand, as statistics files have them.

    Attributes:
        mean: μ, of shape (d,), float64.
        cov: Σ, of shape (d, d), float64.
    """

    mean: Float64[Tensor, "d"]
    cov: Float64[Tensor, "d d"]

    @property
    def trace(self) -> float:
        """tr Σ."""
        return float(torch.diagonal(self.cov).sum())


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and scatter of a feature set: a value that is merged, never changed.

    Attributes:
        count: number n of features seen.
        mean: μ, of shape (d,), float64 on the CPU.
        scatter: Σ_i (x_i − μ)(x_i − μ)ᵀ, of shape (d, d); the covariance is scatter/(n − 1).
    """

    count: int
    mean: Float64[Tensor, "d"]
    scatter: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Moments":
        """The moments of the rows of `features`; raises `MetricError` if there are none or one is not finite."""
        if features.shape[0] == 0:
            raise MetricError("moments need at least one feature vector, got none")
        # Moved first, converted second: some accelerators have no float64.
        rows = features.detach().cpu().to(torch.float64)
        if not bool(torch.isfinite(rows).all()):
            bad = int((~torch.isfinite(rows).all(dim=1)).sum())
            raise MetricError(f"{bad} of {len(rows)} feature vectors are not finite; check the samples for NaN")
        mean = rows.mean(dim=0)
        centred = rows - mean
        return cls(count=len(rows), mean=mean, scatter=centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together, exactly (Chan, Golub & LeVeque 1979): the order does not matter.

        μ = μ_a + δ n_b/n,  S = S_a + S_b + δδᵀ n_a n_b/n,  with δ = μ_b − μ_a and n = n_a + n_b.
        """
        _same_dimension(self, other)
        n = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count=n,
            mean=self.mean + delta * (other.count / n),
            scatter=self.scatter + other.scatter + torch.outer(delta, delta) * (self.count * other.count / n),
        )

    def update(self, features: Float[Tensor, "n d"]) -> "Moments":
        """The moments after the rows of `features` are added; `self` stays as it is."""
        return self.merge(Moments.of(features))

    @property
    def cov(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance; raises `MetricError` for fewer than two features."""
        if self.count < 2:
            raise MetricError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def trace(self) -> float:
        """tr Σ, the total variance: the scale against which a Fréchet distance is read."""
        return float(torch.diagonal(self.cov).sum())

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The three numbers as tensors named `{prefix}count`, `{prefix}mean`, `{prefix}scatter`."""
        count = torch.tensor(self.count, dtype=torch.int64)
        return {f"{prefix}count": count, f"{prefix}mean": self.mean, f"{prefix}scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> "Moments":
        """The inverse of `tensors`; raises `MetricError` that names a missing key."""
        missing = [key for key in (f"{prefix}count", f"{prefix}mean", f"{prefix}scatter") if key not in tensors]
        if missing:
            raise MetricError(f"stored moments lack {', '.join(missing)}; present: {', '.join(sorted(tensors))}")
        return cls(
            count=int(tensors[f"{prefix}count"]),
            mean=tensors[f"{prefix}mean"].to(torch.float64),
            scatter=tensors[f"{prefix}scatter"].to(torch.float64),
        )

    def save(self, path: str | Path) -> None:
        """Write the moments to `path` (safetensors, float64)."""
        save_file({key: value.contiguous() for key, value in self.tensors().items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> "Moments":
        """Read what `save` wrote; raises `MetricError` that names the file if it cannot be read."""
        try:
            tensors = load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise MetricError(f"cannot read moments from {path}: {error}; write them with Moments.save") from error
        return cls.from_tensors(tensors)


def _same_dimension(a: Moments | Gaussian, b: Moments | Gaussian) -> None:
    if a.mean.shape != b.mean.shape:
        raise MetricError(
            f"moments of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions do not go together; "
            "both sides must come from the same feature extractor"
        )


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """FD(a, b) ≥ 0, in squared feature units. Symmetric up to rounding.

    Two symmetric eigenproblems in float64, so no complex numbers appear and singular covariances (fewer samples
    than dimensions, dead units) are as good as any. Source: Dowson & Landau (1982), equation 16.

    Raises:
        MetricError: if the dimensions differ or a side has fewer than two features.
    """
    _same_dimension(a, b)
    cov_a, cov_b = a.cov, b.cov
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * _positive_part(values).sqrt()) @ vectors.T
    inner = root @ cov_b @ root
    cross = _positive_part(torch.linalg.eigvalsh((inner + inner.T) / 2)).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + torch.diagonal(cov_a).sum() + torch.diagonal(cov_b).sum() - 2 * cross
    return max(0.0, float(distance))


def _positive_part(values: Float64[Tensor, "d"]) -> Float64[Tensor, "d"]:
    # An exact zero comes back as ±1e-17 of the largest eigenvalue, whose root would add 1e-8 a dimension.
    floor = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, values, torch.zeros_like(values))
