"""Samples from a flow map: a grid of times and a rule for what happens between two of them. One step is simply N = 1.

- `PushForward`: x ← X_{t_i, t_{i+1}}(x). For networks trained for many ends, and as Euler steps for flow matching.
- `ReNoise`: x̂ ← X_{t_i, 0}(x), then new noise up to t_{i+1}. For networks trained only to jump to the data.

A sampler refuses a network that was not trained for the jumps it would make. Every image has its own noise, a function
of (seed, index): image k is the same for any number of images, of steps and of images a batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap
from shortflow.paths import VarianceExploding
from shortflow.streams import Streams
from shortflow.typing import expand

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
Noise = Float[Tensor, "n b ..."]
Label = Int[Tensor, "b"] | None

CLOSE = 1e-9  # two times that differ by less are the same


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A batch of samples in the network's units: indices first, first + 1, …, their states and classes."""

    first: int
    x: Float[Tensor, "b ..."]
    label: Int[Tensor, "b"] | None


# --------------------------------------------------------------------------------------------------------------- grids


def grid_times(flow: FlowMap, steps: int, kind: str | None = None) -> tuple[float, ...]:
    """steps + 1 decreasing times over the span of the flow map.

    Args:
        kind: "uniform" in t, or "karras", uniform in σ^{1/7} (arXiv 2206.00364, equation 5, for σ proportional to t);
            by default the one that is usual for the path.

    Raises:
        SamplerError: if steps < 1, or the kind is unknown.
    """
    if steps < 1:
        raise SamplerError(f"steps must be at least 1, got {steps}")
    low, high = flow.span
    kind = kind or ("karras" if isinstance(flow.path, VarianceExploding) else "uniform")
    if kind not in ("uniform", "karras"):
        raise SamplerError(f"there is no grid called {kind!r}; there are 'uniform' and 'karras', or give the times")
    power = 1 if kind == "uniform" else 7
    a, b = high ** (1 / power), low ** (1 / power)
    # The ends are written out, because rounding would miss them.
    return (high, *((a + (b - a) * i / steps) ** power for i in range(1, steps)), low)


def _check_grid(flow: FlowMap, times: Sequence[float]) -> None:
    low, high = flow.span
    # `not (b < a)` refuses NaN too.
    if len(times) < 2 or any(not b < a for a, b in pairwise(times)):
        raise SamplerError(f"the times of a grid must decrease and be at least two, got {list(times)}")
    if times[0] > high + CLOSE or times[-1] < low - CLOSE:
        raise SamplerError(
            f"this model knows times from {high:g} down to {low:g}, the grid goes from {times[0]:g} to {times[-1]:g}"
        )
    if times[0] < high - CLOSE:
        raise SamplerError(
            f"samples start as pure noise, which is what this model knows at time {high:g}; "
            f"the grid starts at {times[0]:g}. Put {high:g} in front of it"
        )


def _check_data_end(flow: FlowMap, times: Sequence[float]) -> None:
    if times[-1] > flow.span[0] + CLOSE:
        raise SamplerError(
            f"the jumps of this sampler and model end at the data, which are at time {flow.span[0]:g}; "
            f"the grid ends at {times[-1]:g}. Put {flow.span[0]:g} at its end"
        )


def _at(x: State, time: float) -> Float[Tensor, "b"]:
    """`time` for every row of x, in single precision at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((len(x),), time, dtype=dtype, device=x.device)


def _start(flow: FlowMap, eps: State, time: float) -> State:
    """The noise end σ_t ε."""
    return expand(flow.path.sigma(_at(eps, time)), eps) * eps


# ------------------------------------------------------------------------------------------------------------ samplers


class Sampler(ABC):
    """A rule for going down a grid of times."""

    @abstractmethod
    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        """Raise `SamplerError` if the network was not trained for the jumps that would be made."""

    @abstractmethod
    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        """The samples from standard normal noise: eps[0] is the start, eps[i] what is added before jump i."""

    def draws(self, steps: int) -> int:
        """How many noises an image of `steps` jumps takes."""
        return 1


@dataclass(frozen=True, kw_only=True)
class PushForward(Sampler):
    """x ← X_{t_i, t_{i+1}}(x).

    A network trained at r = t only is asked for its velocity there, and the jump is the path's: x ← ā x + b̄ u_{t,t}(x)
    with `Path.transfer` (on the linear path Euler's step), of first order in the step.
    """

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        _check_grid(flow, times)
        if flow.ends == "zero":
            if len(times) > 2:
                raise SamplerError(
                    "this model was trained only for jumps to the data (r = 0); a push-forward over "
                    f"{len(times) - 1} steps would ask it for jumps in between. Use the re-noise sampler"
                )
            _check_data_end(flow, times)
        if flow.ends == "dyadic":
            for a, b in pairwise(times):
                if not _dyadic(a, b):
                    raise SamplerError(
                        f"this model was trained for jumps of length 1, 1/2, 1/4, …, not from {a:g} to {b:g}; "
                        "use 1, 2, 4, 8, … steps on the uniform grid"
                    )

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        x = _start(flow, eps[0], times[0])
        for a, b in pairwise(times):
            t, r = _at(x, a), _at(x, b)
            if flow.ends == "diagonal":
                keep, move = flow.path.transfer(t, r)
                x = expand(keep, x) * x + expand(move, x) * flow.velocity(x, t, label)
            else:
                x = flow(x, t, r, label)
        return x


def _dyadic(a: float, b: float) -> bool:
    """Whether the jump from a to b has a length 2⁻ʲ and starts at a multiple of it."""
    level, multiple = -math.log2(a - b), a / (a - b)
    return abs(level - round(level)) < 1e-3 and abs(multiple - round(multiple)) < 1e-3


@dataclass(frozen=True, kw_only=True)
class ReNoise(Sampler):
    """x̂ ← X_{t_i, end}(x), then x ← the path's point at t_{i+1} from x̂ and new noise (multistep consistency sampling).

    The end may hold noise already, σ_end > 0: with k = α_t/α_end the point is k x̂ + √(σ_t² − k² σ_end²) ε, on the
    variance-exploding path x̂ + √(σ² − σ_min²) ε. Source: Song et al. 2023 (arXiv 2303.01469), algorithm 1.
    """

    def draws(self, steps: int) -> int:
        return steps

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        _check_grid(flow, times)
        if flow.ends == "diagonal":
            raise SamplerError(
                "this model was trained at r = t only (flow matching) and has no jump to the data; "
                "use the push-forward sampler"
            )
        if flow.ends == "dyadic" and not all(_dyadic(time, times[-1]) for time in times[:-1]):
            raise SamplerError(
                "this model was trained for jumps to the data from 1, 1/2, 1/4, … only; "
                "use such times, or the push-forward sampler"
            )
        _check_data_end(flow, times)

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        path, last = flow.path, len(times) - 2
        x = _start(flow, eps[0], times[0])
        end = _at(x, times[-1])
        for i, time in enumerate(times[:-1]):
            x = flow(x, _at(x, time), end, label)
            if i < last:
                up = _at(x, times[i + 1])
                keep = path.alpha(up) / path.alpha(end)
                add = (path.sigma(up) ** 2 - (keep * path.sigma(end)) ** 2).clamp(min=0).sqrt()
                x = expand(keep, x) * x + expand(add, x) * eps[i + 1]
        return x


def default_sampler(flow: FlowMap) -> Sampler:
    """The sampler that a network was trained for: re-noise for those that only know the data end, else push-forward."""
    return ReNoise() if flow.ends == "zero" else PushForward()


# ------------------------------------------------------------------------------------------------------------- samples


def noise(seed: int, first: int, count: int, shape: Sequence[int], draws: int = 1) -> Noise:
    """Standard normal noise (draws, count, *shape), drawn on the CPU; [i, k] is a function of (seed, first + k, i)."""
    size = tuple(shape)

    def image(index: int) -> Float[Tensor, "n ..."]:
        generator = Streams(seed=seed, images=index).generator("sample")
        # One call a draw: the numbers of a single large call would depend on its size.
        return torch.stack([torch.randn(size, generator=generator) for _ in range(draws)])

    return torch.stack([image(first + k) for k in range(count)], 1)


@contextmanager
def _evaluating(flow: FlowMap) -> Iterator[None]:
    """Within the context the network is in evaluation mode and no gradient is recorded; then all is as it was."""
    training = [module for module in flow.modules() if module.training]
    flow.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _placed(eps: Noise, flow: FlowMap) -> Noise:
    """The noise on the device of the network, in double precision if the network is."""
    like = next(flow.parameters(), torch.empty(0))
    return eps.to(like.device, torch.promote_types(eps.dtype, like.dtype))


def _labels(flow: FlowMap, n: int, label: Int[Tensor, "..."] | None) -> Int[Tensor, "n"] | None:
    """The class of each of n images, checked; by default 0, 1, 2, … in turn."""
    classes = flow.num_classes
    if classes == 0:
        if label is not None:
            raise SamplerError("this model is unconditional; it takes no class")
        return None
    if label is None:
        return torch.arange(n) % classes
    if tuple(label.shape) != (n,):
        raise SamplerError(f"there must be one class for each of the {n} images, got {label.numel()}")
    top = classes - 1 if flow.null_label is None else flow.null_label
    if int(label.min()) < 0 or int(label.max()) > top:
        null = f", or {top} for no class" if top == classes else ""
        raise SamplerError(
            f"classes must be from 0 to {classes - 1}{null}; got {int(label.min())} to {int(label.max())}"
        )
    return label


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
    """n samples of the given shape, in batches, as an iterator. The flow map's training mode is left as it was.

    Args:
        steps: number of jumps on the default grid, or `times`: the grid itself, decreasing.
        sampler: by default the one the network was trained for.
        label: class of each image; by default 0, 1, 2, … in turn for a conditional network.
        seed: images are a function of (seed, index).

    Raises:
        SamplerError: at once, before any network call, if sampler, grid, classes and network do not fit.
    """
    if n < 1 or batch_size < 1:
        raise SamplerError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    grid = tuple(times) if times is not None else grid_times(flow, steps)
    rule = sampler or default_sampler(flow)
    rule.check(flow, grid)
    labels = _labels(flow, n, label)

    def batch(first: int) -> Samples:
        count = min(batch_size, n - first)
        eps = _placed(noise(seed, first, count, shape, rule.draws(len(grid) - 1)), flow)
        label = None if labels is None else labels[first : first + count].to(eps.device)
        with _evaluating(flow):
            return Samples(first=first, x=rule.run(flow, eps, grid, label), label=label)

    return map(batch, range(0, n, batch_size))


def interpolate(
    flow: FlowMap,
    shape: Sequence[int],
    *,
    seeds: tuple[int, int] = (0, 1),
    points: int = 8,
    steps: int = 1,
    label: int | None = None,
) -> State:
    """Samples (points, *shape) from noises along the great circle between those of image 0 of two seeds.

    Between unit vectors a and b at the angle φ it is (sin((1 − w)φ) a + sin(wφ) b)/sin φ; lengths are interpolated
    linearly. Straight lines would pass through noise that is too short, which the network has never seen; this is the
    interpolation of the shortcut paper. The first and last point are the plain samples.

    Args:
        label: class of all points; by default 0.

    Raises:
        SamplerError: before any network call, if there are fewer than 2 points, or as for `sample`.
    """
    if points < 2:
        raise SamplerError(f"an interpolation needs at least 2 points, got {points}")
    grid = grid_times(flow, steps)
    rule = default_sampler(flow)
    rule.check(flow, grid)
    if label is None and flow.num_classes > 0:
        label = 0
    labels = _labels(flow, points, None if label is None else torch.full((points,), label))
    start, end = (noise(seed, 0, 1, shape, rule.draws(steps)).squeeze(1) for seed in seeds)
    eps = _placed(_great_circle(start, end, torch.linspace(0, 1, points)), flow)
    with _evaluating(flow):
        return rule.run(flow, eps, grid, None if labels is None else labels.to(eps.device))


def _great_circle(a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."], weight: Float[Tensor, "p"]) -> Noise:
    """The points at `weight` of the arcs from a[i] to b[i], (n, p, ...)."""
    x, y = (end.flatten(1).double()[:, None] for end in (a, b))
    w = weight.double()[:, None]
    x_length, y_length = (end.norm(dim=-1, keepdim=True) for end in (x, y))
    angle = torch.arccos(((x * y).sum(-1, keepdim=True) / (x_length * y_length)).clamp(-1, 1))
    # Parallel noises (one seed twice, or a single coordinate) have no great circle: a straight line there.
    parallel = torch.sin(angle) < 1e-6
    angle = torch.where(parallel, torch.ones_like(angle), angle)
    direction = (torch.sin((1 - w) * angle) * x / x_length + torch.sin(w * angle) * y / y_length) / torch.sin(angle)
    arc = torch.lerp(x_length, y_length, w) * direction
    eps = torch.where(parallel, torch.lerp(x, y, w), arc)
    return eps.reshape(len(a), len(weight), *a.shape[1:]).to(a.dtype)
