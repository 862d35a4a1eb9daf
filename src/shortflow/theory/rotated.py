"""A law in rotated coordinates: the noise is isotropic, so the whole flow turns with the data.

    x_0 = R z_0 with R orthogonal  ⇒  v_t(x) = R v'_t(Rᵀx),    X_{t,r}(x) = R X'_{t,r}(Rᵀx),    tr Cov[v_c | x] = tr'.

So a Gaussian with any covariance R diag(c²) Rᵀ has its closed forms, too.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.paths import Path
from shortflow.theory.law import Law

__all__ = ["Rotated"]

Time = Float[Tensor, "b"]
Vector = Float[Tensor, "b d"]
Label = Int[Tensor, "b"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotated(Law):
    """The law of R z for z from another law of vectors.

    Attributes:
        base: the law of z, on the same path.
        rotation: R, orthogonal, shape (d, d).

    Raises:
        ShortflowError: if R is not orthogonal or does not fit the law, or the paths differ.
    """

    base: Law
    rotation: Float[Tensor, "d d"]

    def __post_init__(self) -> None:
        d = len(self.rotation)
        if self.base.shape != (d,):
            raise ShortflowError(f"a rotation of {d} coordinates does not fit samples of shape {self.base.shape}")
        if not torch.allclose(self.rotation @ self.rotation.T, torch.eye(d).to(self.rotation), atol=1e-5):
            raise ShortflowError("rotation must be orthogonal, R Rᵀ = 1; scale the law itself, not its coordinates")
        if self.base.path != self.path:
            raise ShortflowError(f"the law of z is on {self.base.path}, not on {self.path}; use one path")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def num_classes(self) -> int:
        return self.base.num_classes

    def on(self, path: Path | None = None, steps: int | None = None) -> "Rotated":
        return replace(self, base=self.base.on(path, steps), path=path or self.path, steps=steps or self.steps)

    def _turned(self, x: Vector) -> Vector:
        """Rᵀx."""
        return x @ self.rotation.to(x)

    def _back(self, z: Vector) -> Vector:
        """R z."""
        return z @ self.rotation.to(z).T

    def posterior(self, x: Vector, t: Time, label: Label | None = None) -> tuple[Vector, Vector]:
        data, noise = self.base.posterior(self._turned(x), t, label)
        return self._back(data), self._back(noise)

    def average_posterior(self, x: Vector, t: Time, r: Time, label: Label | None = None) -> tuple[Vector, Vector]:
        data, noise = self.base.average_posterior(self._turned(x), t, r, label)
        return self._back(data), self._back(noise)

    def velocity_variance(self, x: Vector, t: Time, label: Label | None = None) -> Time:
        return self.base.velocity_variance(self._turned(x), t, label)

    def sample_posterior(
        self, x: Vector, t: Time, label: Label | None = None, generator: torch.Generator | None = None
    ) -> Vector:
        return self._back(self.base.sample_posterior(self._turned(x), t, label, generator))

    def log_density(self, x: Vector, t: Time, label: Label | None = None) -> Time:
        return self.base.log_density(self._turned(x), t, label)

    def sample(
        self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n d"]:
        return self._back(self.base.sample(n, generator, dtype))
