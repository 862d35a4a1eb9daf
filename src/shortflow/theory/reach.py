"""What the plug-in velocity of a batch can do: the variance that it removes, and from which noise level on.

With the weights γ of `shortflow.plugin`, velocities v_i = v(x_t | x^i) and v̂ = Σ γ_i v_i, for images that are drawn
alike,

    E‖v_c − v‖² = E‖v̂ − v‖² + E Σ_i γ_i ‖v_i − v̂‖²    (Rao–Blackwell),

so the last term, which needs no oracle, is the variance that is removed. It is next to nothing while the own weight
γ_kk is 1: other images take part where their distance is bridged by the noise, η_t = σ_t/α_t ≳ ‖x^k − x^i‖/√(2 log B).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortflow.errors import require
from shortflow.paths import Path
from shortflow.plugin import plug_in_weights

__all__ = ["PlugInReach", "plug_in_level", "plug_in_reach"]

ACTIVE = 0.99
"""A row is active where its own weight is below: other images change its target by a percent or more."""


@dataclass(frozen=True, kw_only=True)
class PlugInReach:
    """Of each row: the weight γ_kk of its own image, the effective sample size 1/Σγ², and Σ_i γ_i ‖v_i − v̂‖²."""

    own: Float[Tensor, "k"]
    size: Float[Tensor, "k"]
    removed: Float[Tensor, "k"]

    @property
    def active(self) -> Bool[Tensor, "k"]:
        return self.own < ACTIVE


def plug_in_reach(
    path: Path,
    x: Float[Tensor, "b ..."],
    eps: Float[Tensor, "b ..."],
    t: Float[Tensor, "b"],
    allowed: Bool[Tensor, "k n"] | None = None,
    rows: Int[Tensor, "k"] | None = None,
    pool: Float[Tensor, "n ..."] | None = None,
    first: int = 0,
) -> PlugInReach:
    """The arguments are those of `plug_in_velocity`; `pool` is a batch of many processes, or a memory of images that
    holds the row's own one: without that the estimate would be biased."""
    gamma = plug_in_weights(path, x, eps, t, allowed, rows, pool, first)
    place = torch.arange(len(x), device=x.device) if rows is None else rows
    images = (x if pool is None else pool).to(gamma.dtype).flatten(1)
    # Moments about the own image, which then takes no part: what is left where γ_kk → 1 is not a difference of ones.
    mine = x[place].to(gamma.dtype).flatten(1)
    own = gamma.gather(1, (place + first)[:, None])[:, 0]
    others = gamma.scatter(1, (place + first)[:, None], 0.0)
    squares = mine.square().sum(1, keepdim=True) + images.square().sum(1) - 2 * mine @ images.T
    shift = others @ images - others.sum(1, keepdim=True) * mine
    spread = (others * squares.clamp(min=0)).sum(1) - shift.square().sum(1)
    time = t[place]
    factor = (path.wronskian(time) / path.sigma(time)).square()
    return PlugInReach(own=own, size=1 / gamma.square().sum(1), removed=factor * spread.clamp(min=0))


def plug_in_level(distance: float, batch: int) -> float:
    """The noise level η = σ/α from which on images at this distance take part: distance/√(2 log B).

    `distance` is Euclidean, to the nearest other image of the batch.
    """
    require(batch > 1, f"a batch of {batch} has no other image; the plug-in velocity is then the conditional one")
    return distance / math.sqrt(2 * math.log(batch))
