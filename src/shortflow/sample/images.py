"""Images from noise: the noise of an image, its class, and the batches they are sampled in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap
from shortflow.sample.grids import grid_times
from shortflow.sample.rules import Noise, Sampler, State, default_sampler
from shortflow.streams import Streams

__all__ = ["Samples", "interpolate", "noise", "sample"]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A batch of samples in the network's units: indices first, first + 1, …, their states and classes."""

    first: int
    x: Float[Tensor, "b ..."]
    label: Int[Tensor, "b"] | None


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
