"""A mixture of Gaussians Σ_k π_k N(μ_k, diag c_k²) of vectors: the smallest law with a curved, exactly known flow.

With C_k = α² c_k² + σ² and the responsibilities γ_k ∝ π_k N(x; α μ_k, C_k), each component has its own posterior

    m_k = μ_k + α c_k² (x − α μ_k)/C_k,    e_k = σ (x − α μ_k)/C_k,    v_k = α' m_k + σ' e_k,
    x̂ = Σ γ_k m_k,    ε̂ = Σ γ_k e_k,    tr Cov[v_c | x] = Σ γ_k (Σ_d W² c_kd²/C_kd + ‖v_k − v‖²)

(the law of total variance). With classes the sums run over the components of a class. Nothing is divided by σ, so all
of it holds at t = 0. The flow map is solved by RK4.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.theory.law import Law, check_labels, visible

__all__ = ["GaussianMixture"]

Time = Float[Tensor, "b"]
Vector = Float[Tensor, "b d"]
Label = Int[Tensor, "b"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture(Law):
    """K Gaussian components in d dimensions.

    Attributes:
        weights: positive, shape (k,); they are divided by their sum.
        means: shape (k, d), in the units of the data.
        stds: positive; shape (k,) for round components, (k, d) for axis-aligned ones.
        labels: class 0..C−1 of each component, every class with at least one; None: no classes. With classes, every
            method takes a `label` of shape (b,) and answers for the components of that class; C means no class.

    Raises:
        ShortflowError: if a weight or standard deviation is not positive, or sizes or labels do not fit.
    """

    weights: Float[Tensor, "k"]
    means: Float[Tensor, "k d"]
    stds: Float[Tensor, "k"] | Float[Tensor, "k d"]
    labels: Int[Tensor, "k"] | None = None

    def __post_init__(self) -> None:
        for name, value in (("weights", self.weights), ("stds", self.stds)):
            if not bool((value > 0).all()):
                raise ShortflowError(f"{name} must be positive, got {value.tolist()}")
        if not len(self.weights) == len(self.means) == len(self.stds):
            sizes = tuple(len(value) for value in (self.weights, self.means, self.stds))
            raise ShortflowError(f"weights, means and stds must name the same components, got {sizes} of them")
        if self.labels is not None:
            check_labels(self.labels, len(self.weights), "component")

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.means.shape[1],)

    def _components(self, x: Vector, t: Time, label: Label | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(joint log-density of x and k, given the label (b, k), c² (k, d), C (b, k, d), (x − αμ)/C (b, k, d))."""
        if x.shape[1:] != self.means.shape[1:]:
            raise ShortflowError(f"means have dimension {self.means.shape[1]}, x has the shape {tuple(x.shape)}")
        weights, means, stds = (value.to(x.device, x.dtype) for value in (self.weights, self.means, self.stds))
        variance = (stds if stds.ndim == 2 else stds[:, None]).expand_as(means).square()
        alpha, sigma = self.path.alpha(t)[:, None, None], self.path.sigma(t)[:, None, None]
        total = alpha**2 * variance + sigma**2
        slope = (x[:, None] - alpha * means) / total
        log_weight = (weights / weights.sum()).log().expand(len(x), -1)
        if label is not None:
            log_weight = log_weight.masked_fill(~visible(label, self.labels, self.num_classes), -torch.inf)
            log_weight = log_weight - log_weight.logsumexp(-1, keepdim=True)
        log_joint = log_weight - 0.5 * (total * slope**2 + (2 * math.pi * total).log()).sum(-1)
        return log_joint, variance, total, slope

    def responsibilities(self, x: Vector, t: Time, label: Label | None = None) -> Float[Tensor, "b k"]:
        """γ_k = P(component k | x_t = x)."""
        return self._components(x, t, label)[0].softmax(-1)

    def posterior(self, x: Vector, t: Time, label: Label | None = None) -> tuple[Vector, Vector]:
        log_joint, variance, _, slope = self._components(x, t, label)
        gamma = log_joint.softmax(-1)[..., None]
        data = self.means.to(x.device, x.dtype) + self.path.alpha(t)[:, None, None] * variance * slope
        return (gamma * data).sum(1), self.path.sigma(t)[:, None] * (gamma * slope).sum(1)

    def score(self, x: Vector, t: Time, label: Label | None = None) -> Vector:
        """∇log p_t(x) = −Σ γ_k (x − α μ_k)/C_k, finite at every t."""
        log_joint, _, _, slope = self._components(x, t, label)
        return -(log_joint.softmax(-1)[..., None] * slope).sum(1)

    def velocity_variance(self, x: Vector, t: Time, label: Label | None = None) -> Time:
        log_joint, variance, total, slope = self._components(x, t, label)
        gamma = log_joint.softmax(-1)
        within = self.path.wronskian(t)[:, None, None] ** 2 * variance / total
        alpha, d_alpha = self.path.alpha(t)[:, None, None], self.path.d_alpha(t)[:, None, None]
        sigma, d_sigma = self.path.sigma(t)[:, None, None], self.path.d_sigma(t)[:, None, None]
        v = d_alpha * (self.means.to(x.device, x.dtype) + alpha * variance * slope) + d_sigma * sigma * slope
        between = (v - (gamma[..., None] * v).sum(1, keepdim=True)).square()
        return (gamma * (within + between).sum(-1)).sum(-1)

    def sample_posterior(
        self, x: Vector, t: Time, label: Label | None = None, generator: torch.Generator | None = None
    ) -> Vector:
        log_joint, variance, total, slope = self._components(x, t, label)
        chosen = torch.multinomial(log_joint.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(x.device)
        rows = torch.arange(len(x), device=x.device)
        variance, total, slope = variance[chosen], total[rows, chosen], slope[rows, chosen]
        mean = self.means.to(x.device, x.dtype)[chosen] + self.path.alpha(t)[:, None] * variance * slope
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return mean + self.path.sigma(t)[:, None] * torch.sqrt(variance / total) * z

    def log_density(self, x: Vector, t: Time, label: Label | None = None) -> Time:
        return self._components(x, t, label)[0].logsumexp(-1)

    def sample(
        self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n d"]:
        component = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator)
        noise = torch.randn((n, *self.shape), generator=generator, dtype=dtype)
        means, stds = self.means.to(noise), self.stds.to(noise)
        return means[component] + (stds if stds.ndim == 2 else stds[:, None])[component] * noise
