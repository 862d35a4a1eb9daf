"""Images from noise: the noise of an image, its class or other condition, and the batches they are sampled in."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap
from shortflow.prefetch import prefetched
from shortflow.sample.grids import grid_times
from shortflow.sample.rules import Noise, Sampler, State, default_sampler
from shortflow.streams import seed_of
from shortflow.typing import Condition, condition_words

__all__ = ["Samples", "interpolate", "noise", "sample"]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A batch of samples in the network's units: indices first, first + 1, …, their states and conditions."""

    first: int
    x: Float[Tensor, "b ..."]
    label: Condition | None


BLOCK = 4096  # numbers that are drawn together: a generator of its own would cost a small image more than its noise


def noise(seed: int, first: int, count: int, shape: Sequence[int], draws: int = 1) -> Noise:
    """Standard normal noise (draws, count, *shape), drawn on the CPU; [i, k] is a function of (seed, first + k, i).

    Small images are drawn in blocks of a power of two, as many as have 4,096 numbers or fewer, and always in whole
    blocks: which images are asked for changes none of them.
    """
    block = 1 << max(0, (BLOCK // max(1, math.prod(shape))).bit_length() - 1)
    eps, generator = torch.empty(draws, count, *shape), torch.Generator()
    drawn = torch.empty(block, *shape)
    for start in range(first - first % block, first + count, block):
        low, high = max(start, first), min(start + block, first + count)
        for i, draw in enumerate(eps):
            generator.manual_seed(seed_of(seed, start, i, "sample"))
            draw[low - first : high - first] = drawn.normal_(generator=generator)[low - start : high - start]
    return eps


@contextmanager
def _evaluating(flow: FlowMap) -> Iterator[None]:
    """Within the context the network is in evaluation mode and in inference mode; then all is as it was."""
    training = [module for module in flow.modules() if module.training]
    if training:
        flow.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _run(
    flow: FlowMap, rule: Sampler, eps: Noise, times: Sequence[float], label: Condition | None, bf16: bool = False
) -> State:
    """What the sampler makes of the noise: states in the precision of the noise, whatever the networks compute in."""
    with _evaluating(flow), torch.autocast(eps.device.type, torch.bfloat16, enabled=bf16):
        x = rule.run(flow, eps, times, label)
    return x.clone()  # out of inference mode, so that it can be used like any other tensor


def _placed(eps: Noise, flow: FlowMap) -> Noise:
    """The noise on the device of the network, in double precision if the network is."""
    like = next(flow.parameters(), torch.empty(0))
    return eps.to(like.device, torch.promote_types(eps.dtype, like.dtype))


def _device(flow: FlowMap) -> torch.device:
    return next(flow.parameters(), torch.empty(0)).device


def _labels(flow: FlowMap, n: int, label: Shaped[Tensor, "..."] | None) -> Shaped[Tensor, "m ..."] | None:
    """The class of each of n images, checked; by default 0, 1, 2, … in turn. Other conditions may be fewer."""
    if flow.condition_shape is not None:
        return _conditions(flow, flow.condition_shape, label)
    classes = flow.num_classes
    if classes == 0:
        if label is not None:
            raise SamplerError("this model is unconditional; it takes no class")
        return None
    if label is None:
        return torch.arange(n) % classes
    if label.is_floating_point():
        raise SamplerError(
            f"this model is told one of {classes} classes, not vectors or sequences; got {label.dtype} of shape "
            f"{tuple(label.shape)}"
        )
    if tuple(label.shape) != (n,):
        raise SamplerError(f"there must be one class for each of the {n} images, got {label.numel()}")
    top = classes - 1 if flow.null_label is None else flow.null_label
    if int(label.min()) < 0 or int(label.max()) > top:
        null = f", or {top} for no class" if top == classes else ""
        raise SamplerError(
            f"classes must be from 0 to {classes - 1}{null}; got {int(label.min())} to {int(label.max())}"
        )
    return label


def _conditions(flow: FlowMap, shape: tuple[int, ...], label: Shaped[Tensor, "..."] | None) -> Shaped[Tensor, "m ..."]:
    """Conditions that are vectors or sequences, checked."""
    words = f"this model is told {condition_words(shape)} for each image"
    if label is None:
        raise SamplerError(f"{words}; give them, as float32 (m, {', '.join(map(str, shape))}), which are used in turn")
    fits = label.ndim == 1 + len(shape) and label.shape[-1] == shape[-1] and len(label) > 0
    if not label.is_floating_point() or not fits or not (len(shape) == 1 or 1 <= label.shape[1] <= shape[0]):
        raise SamplerError(f"{words}, got {label.dtype} of shape {tuple(label.shape)}")
    there = label.flatten(1).isfinite().any(1)
    if flow.null_label is None and not bool(there.all()):
        raise SamplerError(
            f"{words} and was trained without label dropout, so it knows no image without one; row "
            f"{int((~there).nonzero()[0])} holds none"
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
    label: Shaped[Tensor, "m ..."] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    first: int = 0,
    bf16: bool = False,
) -> Iterator[Samples]:
    """n samples of the given shape, in batches, as an iterator. The flow map's training mode is left as it was.

    Args:
        steps: number of jumps on the default grid, or `times`: the grid itself, decreasing.
        sampler: by default the one the network was trained for.
        label: class of each image; by default 0, 1, 2, … in turn for a network that is told classes. For one that is
            told vectors or sequences, any number of them, which are used in turn; NaN for none.
        seed: images are a function of (seed, index).
        first: leave out the images before this one.
        bf16: run the network under autocast; times and states stay as they are.

    Raises:
        SamplerError: at once, before any network call, if sampler, grid, classes and network do not fit.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise SamplerError(f"{name} must be at least 1, got {value}")
    if first < 0:
        raise SamplerError(f"the first image must be 0 or later, got {first}")
    grid = tuple(times) if times is not None else grid_times(flow, steps)
    rule = sampler or default_sampler(flow)
    rule.check(flow, grid)
    labels = _labels(flow, n, label)

    def prepared(at: int) -> Noise:
        return noise(seed, at, min(batch_size, n - at), shape, rule.draws(len(grid) - 1))

    def batches() -> Iterator[Samples]:
        starts, accelerated = range(first, n, batch_size), _device(flow).type != "cpu"
        # Where the CPU is free the noise of the next batches is drawn while the network is busy with this one. Beside
        # a network on the CPU a thread costs more than the noise.
        with closing(prefetched(prepared, starts) if accelerated else (prepared(at) for at in starts)) as drawn:
            for at, eps in zip(starts, drawn, strict=True):
                eps = _placed(eps, flow)
                turn = torch.arange(at, at + eps.shape[1]) % (1 if labels is None else len(labels))
                label = None if labels is None else labels[turn].to(eps.device)
                yield Samples(first=at, x=_run(flow, rule, eps, grid, label, bf16), label=label)

    return batches()


def interpolate(
    flow: FlowMap,
    shape: Sequence[int],
    *,
    seeds: tuple[int, int] = (0, 1),
    points: int = 8,
    steps: int = 1,
    label: int | Float[Tensor, "..."] | None = None,
) -> State:
    """Samples (points, *shape) from noises along the great circle between those of image 0 of two seeds.

    Between unit vectors a and b at the angle φ it is (sin((1 − w)φ) a + sin(wφ) b)/sin φ; lengths are interpolated
    linearly. Straight lines would pass through noise that is too short, which the network has never seen; this is the
    interpolation of the shortcut paper. The first and last point are the plain samples.

    Args:
        label: class of all points; by default 0. Or the vector or sequence that they are all told.

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
    told = label.expand(points, *label.shape) if isinstance(label, Tensor) else label
    labels = _labels(flow, points, torch.full((points,), told) if isinstance(told, int) else told)
    start, end = (noise(seed, 0, 1, shape, rule.draws(steps)).squeeze(1) for seed in seeds)
    eps = _placed(_great_circle(start, end, torch.linspace(0, 1, points)), flow)
    return _run(flow, rule, eps, grid, None if labels is None else labels.to(eps.device))


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
