"""The plug-in velocity: the marginal velocity of a batch, from two matrix products of its images.

With images x^i, the point of row k is x_t^k = α x^k + σ ε^k, and

    γ_ki = softmax_i(−‖x_t^k − α x^i‖²/(2σ²)),    v̂^k = Σ_i γ_ki v(x_t^k | x^i) = v_c^k + (W/σ) Σ_i γ_ki (x^k − x^i),

W = α σ' − α' σ. The distances are one product of points and images, the sum another one of weights and images; nothing
of size rows × images × dimension is ever made. Both run in float32 at least, without the shortened mantissas (TF32,
bfloat16) that the rest of the training may use: the distances are differences of large numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shortflow.dropout import mixed_64
from shortflow.paths import Path
from shortflow.typing import Condition, expand

__all__ = ["Pool", "identities", "plug_in_velocity", "plug_in_weights", "pooled"]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The images that a mixture is over, where these are more than the batch.

    Attributes:
        x: all images, of which the batch is a part.
        label: their classes, or `identities` of other conditions.
        first: the place of the batch's first image among them.
    """

    x: Float[Tensor, "n ..."]
    label: Int[Tensor, "n"] | None
    first: int


def identities(label: Condition) -> Int[Tensor, "b"]:
    """A number for each row that is the same where conditions are equal: the class, or a sum of 64 bits over the
    numbers of a vector or a sequence, in float32. Different ones share it with a probability of 2⁻⁶⁴."""
    if not label.is_floating_point():
        return label
    numbers = label.flatten(1).float().nan_to_num(nan=torch.finfo(torch.float32).max) + 0.0  # −0 is 0
    place = mixed_64(torch.arange(1, numbers.shape[1] + 1, device=label.device))
    return mixed_64(mixed_64(numbers.contiguous().view(torch.int32).long() + place)).sum(1)


def pooled(x: Float[Tensor, "b ..."], label: Int[Tensor, "b"] | None) -> Pool | None:
    """The images and classes of all processes, None where there is one.

    All processes must ask, as often, and with batches of one size: a process that does not stops the others.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    label = None if label is None else _gathered(label)
    return Pool(x=_gathered(x), label=label, first=dist.get_rank() * len(x))


def _gathered(value: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "n ..."]:
    """The rows of all processes, in the order of their ranks."""
    everyone = value.new_empty(dist.get_world_size() * len(value), *value.shape[1:])
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name from torch 2.13 on
    gather(everyone, value.detach().contiguous())
    return everyone


def _settings(convolutions: bool = False) -> Sequence[tuple[Any, str, Any]]:
    """(object, attribute, value that shortens nothing) of every setting by which products of float32 run in less now.

    Settings that shorten nothing are left out, so that nothing is written where nothing has to change.
    """
    graphics: Any = torch.backends.cuda.matmul
    if not hasattr(graphics, "fp32_precision"):  # torch before 2.9
        older = (graphics, torch.backends.cudnn) if convolutions else (graphics,)
        return [(each, "allow_tf32", False) for each in older if each.allow_tf32]
    processor: Any = torch.backends.mkldnn
    cudnn: Any = torch.backends.cudnn
    newer = (graphics, processor.matmul, *((cudnn.conv, processor.conv) if convolutions else ()))
    # The older setting cannot be read where one of these was made.
    return [(each, "fp32_precision", "ieee") for each in newer if each.fp32_precision not in ("ieee", "none")]


@contextmanager
def full_products(convolutions: bool = False) -> Iterator[None]:
    """Matrix products of float32 in float32, on every device; the settings before are restored.

    Args:
        convolutions: these, too; cuDNN shortens them unless told otherwise.
    """
    if torch.compiler.is_compiling():  # a graph cannot change them, see `_exact`
        yield
        return
    changed = [(where, name, getattr(where, name), full) for where, name, full in _settings(convolutions)]
    for where, name, _, full in changed:
        setattr(where, name, full)
    try:
        yield
    finally:
        for where, name, before, _ in changed:
            _restore(where, name, before)


def _restore(where: Any, name: str, before: Any) -> None:
    """The setting as it was; one that was inherited is inherited again, and follows when that is changed."""
    if isinstance(before, str):
        setattr(where, name, "none")
        if getattr(where, name) == before:
            return
    setattr(where, name, before)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The precision of the products: float32 at least, and more inside a graph whose float32 is a shortened one."""
    short = torch.compiler.is_compiling() and _shortened()
    return torch.promote_types(dtype, torch.float64 if short else torch.float32)


@torch.compiler.assume_constant_result
def _shortened() -> bool:
    """Whether products of float32 may run in less; a compiler asks once for each graph."""
    return len(_settings()) > 0


@dataclass(frozen=True)
class _Mixture:
    """The centred images (n, d), the rows' own ones (k, d), their noise, times, and places among the images."""

    images: Tensor
    centre: Tensor
    noise: Tensor
    time: Tensor
    own: Bool[Tensor, "k n"]

    @staticmethod
    def of(x: Tensor, eps: Tensor, t: Tensor, rows: Tensor | None, pool: Tensor | None, first: int) -> "_Mixture":
        dtype = _exact(x.dtype)
        images = (x if pool is None else pool).to(dtype).flatten(1)
        images = images - images.mean(0)
        place = torch.arange(len(x), device=x.device) if rows is None else rows
        time = t if rows is None else t[rows]
        noise = eps.flatten(1) if rows is None else eps.flatten(1)[rows]
        centre = images if rows is None and pool is None else images[place + first]
        own = (place + first)[:, None] == torch.arange(len(images), device=x.device)
        return _Mixture(images, centre, noise.to(dtype), time.to(dtype), own)

    def weights(self, path: Path, allowed: Tensor | None) -> Tensor:
        """γ. The exponent is −(α² ‖x^k − x^i‖² + 2ασ ⟨x^k − x^i, ε^k⟩)/(2σ²), a form whose diagonal is exactly zero, so
        that γ_kk → 1 without rounding error as σ → 0."""
        alpha, sigma = path.alpha(self.time)[:, None], path.sigma(self.time)[:, None]
        squares = (self.images * self.images).sum(1)
        mine = (self.centre * self.centre).sum(1, keepdim=True)
        across = (self.centre * self.noise).sum(1, keepdim=True)
        with full_products():
            product = (alpha * self.centre + sigma * self.noise) @ self.images.T
        gap = alpha**2 * (mine + squares) + 2 * alpha * (sigma * across - product)
        exponent = -gap / (2 * sigma**2).clamp(min=torch.finfo(gap.dtype).tiny)
        exponent = exponent.nan_to_num(nan=0.0, posinf=torch.finfo(gap.dtype).max).masked_fill(self.own, 0.0)
        if allowed is not None:
            exponent = exponent.masked_fill(~(allowed | self.own), -torch.inf)
        return torch.softmax(exponent, 1)


def plug_in_weights(
    path: Path,
    x: Float[Tensor, "b ..."],
    eps: Float[Tensor, "b ..."],
    t: Float[Tensor, "b"],
    allowed: Bool[Tensor, "k n"] | None = None,
    rows: Int[Tensor, "k"] | None = None,
    pool: Float[Tensor, "n ..."] | None = None,
    first: int = 0,
) -> Float[Tensor, "k n"]:
    """γ_ki, the posterior that row k's point came from image i; the arguments are those of `plug_in_velocity`."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _Mixture.of(x, eps, t, rows, pool, first).weights(path, allowed)


def plug_in_velocity(
    path: Path,
    x: Float[Tensor, "b ..."],
    eps: Float[Tensor, "b ..."],
    t: Float[Tensor, "b"],
    allowed: Bool[Tensor, "k n"] | None = None,
    rows: Int[Tensor, "k"] | None = None,
    pool: Float[Tensor, "n ..."] | None = None,
    first: int = 0,
) -> Float[Tensor, "k ..."]:
    """v̂, the marginal velocity of the images at each row's own point; the own image drops out of the sum.

    Args:
        allowed: which images i may have produced row k's point (None: all); its own image always may.
        rows: the rows k to compute (None: all b).
        pool, first: the images, and the place of the batch's first one among them (None: the batch itself).
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        mixture = _Mixture.of(x, eps, t, rows, pool, first)
        gamma = mixture.weights(path, allowed).masked_fill(mixture.own, 0.0)
        with full_products():
            pull = gamma.sum(1, keepdim=True) * mixture.centre - gamma @ mixture.images
        pull = pull.reshape(len(gamma), *x.shape[1:])
        if rows is not None:
            x, eps, t = x[rows], eps[rows], t[rows]
        sigma = path.sigma(t)
        ratio = torch.where(sigma > 0, path.wronskian(t) / sigma.clamp(min=torch.finfo(pull.dtype).tiny), 0.0)
        return path.velocity(x, eps, t) + (expand(ratio.to(pull.dtype), pull) * pull).to(x.dtype)
