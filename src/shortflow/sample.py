"""Samples from a flow map: a grid of times and a rule for what happens between two of them. One step is simply N = 1.

- `PushForward`: x ← X_{t_i, t_{i+1}}(x). For networks trained for many ends (and Euler steps of flow matching).
- `ReNoise`: x̂ ← X_{t_i, 0}(x), then new noise up to t_{i+1}. For networks trained only to jump to the data.

A sampler refuses a network that was not trained for the jumps it would make. Every image has its own noise, a function of
(seed, index): image k is the same for any number of images and any batch size.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap
from shortflow.paths import VarianceExploding
from shortflow.streams import Streams

__all__ = [
    "PushForward",
    "ReNoise",
    "Sampler",
    "Samples",
    "default_sampler",
    "grid_times",
    "interpolate",
    "noise",
    "sample",
]

State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"] | None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A batch of samples in the network's units: indices first, first + 1, …, their states and classes."""

    first: int
    x: Float[Tensor, "b ..."]
    label: Int[Tensor, "b"] | None


def grid_times(flow: FlowMap, steps: int, kind: str | None = None) -> tuple[float, ...]:
    """steps + 1 decreasing times over the span of the flow map.

    kind: "uniform" in t, or "karras" (ρ = 7 in the noise level, for the variance-exploding path); None picks by path.

    Raises:
        SamplerError: if steps < 1, or the kind is unknown.
    """
    if steps < 1:
        raise SamplerError(f"steps must be at least 1, got {steps}")
    low, high = flow.span
    kind = kind or ("karras" if isinstance(flow.path, VarianceExploding) else "uniform")
    if kind == "uniform":
        return tuple(high + (low - high) * i / steps for i in range(steps + 1))
    if kind == "karras":
        a, b = high ** (1 / 7), low ** (1 / 7)
        return tuple((a + (b - a) * i / steps) ** 7 for i in range(steps + 1))
    raise SamplerError(f"there is no grid called {kind!r}; there are 'uniform' and 'karras', or give the times")


class Sampler(ABC):
    """A rule for going down a grid of times."""

    @abstractmethod
    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        """Raise `SamplerError` if the network was not trained for the jumps that would be made."""

    @abstractmethod
    def run(self, flow: FlowMap, eps: Float[Tensor, "n b ..."], times: Sequence[float], label: Label) -> State:
        """The samples from noise eps; eps[0] is the start, eps[i] the noise that is added before jump i."""

    def draws(self, steps: int) -> int:
        """How many noise tensors a run of `steps` jumps uses."""
        return 1


def _at(x: State, time: float) -> Float[Tensor, "b"]:
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return torch.full((len(x),), time, dtype=dtype, device=x.device)


def _check_grid(flow: FlowMap, times: Sequence[float]) -> None:
    low, high = flow.span
    if len(times) < 2 or any(b >= a for a, b in pairwise(times)):
        raise SamplerError(f"the times of a grid must decrease and be at least two, got {list(times)}")
    if times[0] > high + 1e-9 or times[-1] < low - 1e-9:
        raise SamplerError(
            f"this model knows times from {low:g} to {high:g}, the grid goes from {times[-1]:g} to {times[0]:g}"
        )


@dataclass(frozen=True, kw_only=True)
class PushForward(Sampler):
    """x ← X_{t_i, t_{i+1}}(x)."""

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        _check_grid(flow, times)
        if flow.ends == "zero" and len(times) > 2:
            raise SamplerError(
                "this model was trained only for jumps to the data (r = 0); a push-forward over "
                f"{len(times) - 1} steps would ask it for jumps in between. Use the re-noise sampler"
            )
        if flow.ends == "dyadic":
            for a, b in pairwise(times):
                level = math.log2(1 / (a - b))
                if abs(level - round(level)) > 1e-3 or abs(a / (a - b) - round(a / (a - b))) > 1e-3:
                    raise SamplerError(
                        f"this model was trained for jumps of length 1, 1/2, 1/4, …, not from {a:g} to {b:g}; "
                        "use 1, 2, 4, 8, … steps on the uniform grid"
                    )

    def run(self, flow: FlowMap, eps: Float[Tensor, "n b ..."], times: Sequence[float], label: Label) -> State:
        x = eps[0] * flow.path.sigma(_at(eps[0], times[0])[:1])
        for a, b in pairwise(times):
            x = flow(x, _at(x, a), _at(x, b), label)
        return x


@dataclass(frozen=True, kw_only=True)
class ReNoise(Sampler):
    """x̂ ← X_{t_i, end}(x), then x ← the path's point at t_{i+1} from x̂ and new noise (multistep consistency sampling).

    With an end at noise level σ_0 > 0 the noise added is that which takes σ_0 to σ_{t}: for the variance-exploding path
    √(σ² − σ_min²).
    """

    def draws(self, steps: int) -> int:
        return steps

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        _check_grid(flow, times)
        if flow.ends == "diagonal":
            raise SamplerError(
                "this model was trained at r = t only (flow matching) and has no jump to the data; use the push-forward sampler"
            )
        if flow.ends == "dyadic" and len(times) > 2:
            raise SamplerError(
                "this model was trained for dyadic jumps, not for jumps to the data from every time; use the push-forward sampler"
            )

    def run(self, flow: FlowMap, eps: Float[Tensor, "n b ..."], times: Sequence[float], label: Label) -> State:
        path, end = flow.path, _at(eps[0], times[-1])
        x = eps[0] * path.sigma(_at(eps[0], times[0])[:1])
        for i, time in enumerate(times[:-1]):
            x = flow(x, _at(x, time), end, label)
            if i + 1 < len(times) - 1:
                up = _at(x, times[i + 1])
                keep = (path.alpha(up) / path.alpha(end))[0]
                add = (path.sigma(up)[0] ** 2 - (keep * path.sigma(end)[0]) ** 2).clamp(min=0).sqrt()
                x = keep * x + add * eps[i + 1]
        return x


def default_sampler(flow: FlowMap) -> Sampler:
    """The sampler that a network was trained for: re-noise for those that only know the data end, else push-forward."""
    return ReNoise() if flow.ends == "zero" else PushForward()


def noise(seed: int, first: int, count: int, shape: Sequence[int], draws: int = 1) -> Float[Tensor, "n b ..."]:
    """Standard normal noise (draws, count, *shape) in which image first + k depends on (seed, first + k) only."""
    images = [
        torch.randn(draws, *shape, generator=Streams(seed=seed, images=k).generator("sample"))
        for k in range(first, first + count)
    ]
    return torch.stack(images, 1)


def sample(
    flow: FlowMap,
    n: int,
    shape: Sequence[int],
    *,
    steps: int = 1,
    times: Sequence[float] | None = None,
    sampler: Sampler | None = None,
    label: Int[Tensor, "n"] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Iterator[Samples]:
    """n samples of the given shape, in batches, as an iterator.

    Args:
        steps: number of jumps on the default grid, or `times`: the grid itself, decreasing.
        sampler: by default the one the network was trained for.
        label: class of each image; by default 0, 1, 2, … in turn for a conditional network.
        seed: images are a function of (seed, index).

    Raises:
        SamplerError: before any work, if sampler, grid, classes and network do not fit.
    """
    grid = tuple(times) if times is not None else grid_times(flow, steps)
    rule = sampler or default_sampler(flow)
    rule.check(flow, grid)
    if n < 1 or batch_size < 1:
        raise SamplerError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    labels = _labels(flow, n, label)
    return _batches(flow, n, shape, grid, rule, labels, seed, batch_size)


def _labels(flow: FlowMap, n: int, label: Int[Tensor, "n"] | None) -> Int[Tensor, "n"] | None:
    classes = flow.num_classes
    if classes == 0:
        if label is not None:
            raise SamplerError("this model is unconditional; it takes no class")
        return None
    if label is None:
        return torch.arange(n) % classes
    top = classes if flow.null_label is not None else classes - 1
    if len(label) != n or int(label.min()) < 0 or int(label.max()) > top:
        raise SamplerError(
            f"classes must be {n} numbers from 0 to {classes - 1}, got {len(label)} from {int(label.min())} to {int(label.max())}"
        )
    return label


def _batches(
    flow: FlowMap,
    n: int,
    shape: Sequence[int],
    grid: tuple[float, ...],
    rule: Sampler,
    labels: Int[Tensor, "n"] | None,
    seed: int,
    batch_size: int,
) -> Iterator[Samples]:
    device = next(flow.parameters(), torch.empty(0)).device
    was_training = flow.training
    flow.eval()
    try:
        for first in range(0, n, batch_size):
            count = min(batch_size, n - first)
            label = None if labels is None else labels[first : first + count].to(device)
            eps = noise(seed, first, count, shape, rule.draws(len(grid) - 1)).to(device)
            with torch.no_grad():
                yield Samples(first=first, x=rule.run(flow, eps, grid, label), label=label)
    finally:
        flow.train(was_training)


def interpolate(
    flow: FlowMap,
    shape: Sequence[int],
    *,
    seeds: tuple[int, int] = (0, 1),
    points: int = 8,
    steps: int = 1,
    label: int | None = None,
) -> State:
    """Samples along the great circle between two noises: ε(w) = (sin((1−w)φ) ε₀ + sin(wφ) ε₁)/sin φ, φ their angle.

    Great circles keep the length of the noise, so every point on the way is a typical one (the latent interpolation of
    the shortcut paper). Shape (points, *shape), the first and last from seeds[0] and seeds[1].
    """
    if points < 2:
        raise SamplerError(f"an interpolation needs at least 2 points, got {points}")
    grid = grid_times(flow, steps)
    rule = default_sampler(flow)
    rule.check(flow, grid)
    draws = rule.draws(steps)
    ends = [noise(seed, 0, 1, shape, draws) for seed in seeds]
    device = next(flow.parameters(), torch.empty(0)).device
    a, b = (end[0].flatten().double() for end in ends)
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    weight = torch.linspace(0, 1, points, dtype=torch.float64).reshape(-1, *([1] * len(shape)))
    start = (
        torch.sin((1 - weight) * angle) * ends[0][0].double() + torch.sin(weight * angle) * ends[1][0].double()
    ) / torch.sin(angle)
    eps = ends[0].expand(draws, points, *shape).clone()
    eps[0] = start.float()
    labels = _labels(flow, points, None if label is None else torch.full((points,), label))
    if label is None and labels is not None:
        labels = torch.zeros_like(labels)
    flow.eval()
    with torch.no_grad():
        return rule.run(flow, eps.to(device), grid, None if labels is None else labels.to(device))
