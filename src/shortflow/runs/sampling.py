"""Samples of trained models as arrays and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from shortflow.config import nearest
from shortflow.data import Conditions, DataSpec
from shortflow.data.encoders import Autoencoder
from shortflow.errors import ConfigError, DataError, SamplerError
from shortflow.flowmap import FlowMap
from shortflow.guidance import guide
from shortflow.hub import Model
from shortflow.pictures import comparison, image_grid, save_png, scatter
from shortflow.runs.loading import load_data
from shortflow.sample import (
    GRIDS,
    SAMPLERS,
    Gamma,
    Sampler,
    Samples,
    interpolate,
    sample,
)
from shortflow.typing import Condition, Report, condition_words

__all__ = [
    "Drawn",
    "Pixels",
    "bf16_difference",
    "class_labels",
    "comparison_picture",
    "draw",
    "generate",
    "grid_named",
    "guided",
    "held_out_conditions",
    "interpolation",
    "picture",
    "sampler_named",
    "steps_named",
]

Window = tuple[float, float] | None
Pixels = UInt8[np.ndarray, "n c h w"] | Float[np.ndarray, "n ..."]


def picture(pixels: Pixels, columns: int | None = None) -> Any:
    """A picture of samples: a grid of images, or a scatter plot of points."""
    return image_grid(pixels, columns) if pixels.dtype == np.uint8 else image_grid(scatter(pixels[:, :2])[None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Decoded samples first, first + 1, … and their classes (None: there are none)."""

    first: int
    pixels: Pixels
    labels: np.ndarray | None


def class_labels(spec: DataSpec, n: int, classes: Sequence[int] | None = None) -> np.ndarray | None:
    """The class of each of n samples: `classes` in turn, all of them by default; None: unconditional."""
    if classes is not None and len(classes) == 0:
        raise SamplerError("the list of classes is empty; leave it out for all classes in turn")
    if classes is None and not spec.num_classes:
        return None
    turn = np.arange(spec.num_classes) if classes is None else np.asarray(classes)
    return turn[np.arange(n) % len(turn)]


def draw(
    flow: FlowMap,
    spec: DataSpec,
    n: int,
    *,
    steps: int = 1,
    times: Sequence[float] | None = None,
    sampler: Sampler | None = None,
    classes: Sequence[int] | None = None,
    condition: Condition | None = None,
    seed: int = 0,
    batch_size: int = 256,
    first: int = 0,
    guidance: float = 1.0,
    window: Window = None,
    bf16: bool = False,
    autoencoder: Autoencoder | None = None,
) -> Iterator[Drawn]:
    """Decoded samples `first` to n − 1, in batches that are drawn as they are asked for.

    `classes` are as for `class_labels`; a model that is told vectors or sequences needs the rows of `condition`, which
    are used in turn (NaN: none, and the tokens that pad a shorter sequence); `guidance` and `window` are those of
    `guided`; `bf16` runs the network under autocast. Latents are decoded to images by `autoencoder` (see
    `shortflow.runs.decoding`), and are left as they are without. What cannot be sampled is refused at once.
    """
    if classes is not None and condition is not None:
        raise SamplerError("a model is told classes or other conditions; give one of the two")
    label = condition if classes is None else torch.from_numpy(class_labels(spec, n, classes))
    batches = sample(
        guided(flow, guidance, window),
        n,
        spec.shape,
        steps=steps,
        times=times,
        sampler=sampler,
        label=label,
        seed=seed,
        batch_size=batch_size,
        first=first,
        bf16=bf16,
    )
    return (_decoded(batch, spec, autoencoder) for batch in batches)


def _decoded(batch: Samples, spec: DataSpec, autoencoder: Autoencoder | None) -> Drawn:
    labels = None if batch.label is None or batch.label.is_floating_point() else batch.label.cpu().numpy()
    return Drawn(first=batch.first, pixels=_pixels(spec.decode(batch.x), autoencoder), labels=labels)


def _pixels(samples: Pixels, autoencoder: Autoencoder | None) -> Pixels:
    return samples if autoencoder is None else autoencoder.decode(samples)


def held_out_conditions(model: Model) -> tuple[Conditions | None, str]:
    """(what the held-out samples of a model's data are told by, "test"); of the training data, "train", where the data
    are not divided; None where they are classes or there are none.

    Raises:
        DataError: if the data are not there.
    """
    if model.spec.condition is None:
        return None, ""
    data = model.run.data
    try:
        split, found = "test", load_data(data, "test").conditions
    except DataError:
        split, found = "train", load_data(data).conditions
    if found is None or found.shape != model.spec.condition:
        has = "have none" if found is None else f"have {condition_words(found.shape)}"
        raise DataError(
            f"{data.source} ({split}): the model is told {condition_words(model.spec.condition)} for each image, and "
            f"the data {has}; give it back its data"
        )
    return found, split


def generate(
    flow: FlowMap, spec: DataSpec, n: int, *, report: Report | None = None, **settings: Any
) -> tuple[Pixels, np.ndarray | None]:
    """n decoded samples (uint8 images or points) and their classes (None: there are none), all of them in memory.

    `settings` are those of `draw`; `report` is called with (samples drawn, n) after every batch.
    """
    drawn: list[Drawn] = []
    for part in draw(flow, spec, n, **settings):
        drawn.append(part)
        if report is not None:
            report(part.first + len(part.pixels), n)
    labels = [part.labels for part in drawn if part.labels is not None]
    return np.concatenate([part.pixels for part in drawn]), np.concatenate(labels) if labels else None


def bf16_difference(flow: FlowMap, spec: DataSpec, n: int = 64, **settings: Any) -> float:
    """How far n samples drawn with bf16 are from those in fp32, relative to the latter's deviation from their mean.

    √(Σ (x_bf16 − x)² / Σ (x − x̄)²) over all values of the stored samples. `settings` are those of `draw`.
    """
    fast, exact = (
        generate(flow, spec, n, **{**settings, "bf16": bf16})[0].astype(np.float64) for bf16 in (True, False)
    )
    return float(np.sqrt(np.square(fast - exact).sum() / max(np.square(exact - exact.mean()).sum(), 1e-30)))


def comparison_picture(model: Model, steps: Sequence[int], path: Path, rows: int = 6, seed: int = 0) -> None:
    """Real data beside samples by number of steps, the same noise in every panel; of images, one class a column."""
    source, spec = model.run.data.source, model.spec
    if spec.kind == "latents":
        raise SamplerError(f"{model.path} makes latents, which are compared by no picture of this kind; draw samples")
    held_out = load_data(model.run.data, "test")
    columns = min(10, spec.num_classes or 10) if spec.image else 1
    classes = range(columns) if spec.image and spec.num_classes else None
    n = rows * columns if spec.image else 4096
    if held_out.labels is None or classes is None:
        n = min(n, len(held_out)) if held_out.conditions is not None else n
        real = held_out.samples[:n]
    else:
        by_class = [np.flatnonzero(held_out.labels == c) for c in classes]
        rows = min(rows, *map(len, by_class))
        n = rows * columns
        real = held_out.samples[np.stack([members[:rows] for members in by_class], 1).ravel()]
    panels = [("real (held out)", real)]
    for count in steps:
        told = None if held_out.conditions is None else held_out.told(np.arange(n))
        pixels, _ = generate(model.flow, spec, n, steps=count, seed=seed, classes=classes, condition=told)
        panels.append((steps_named(count), pixels))
    if not spec.image:
        panels = [(name, scatter(points[:, :2])[None]) for name, points in panels]
    title = f"{model.run.recipe.name} on {source}: {model.images:,} images seen"
    save_png(comparison(panels, columns, title), path)


def interpolation(
    model: Model,
    *,
    rows: int,
    points: int = 8,
    steps: int = 1,
    classes: Sequence[int] | None = None,
    condition: Condition | None = None,
    seed: int = 0,
    guidance: float = 1.0,
    window: Window = None,
    autoencoder: Autoencoder | None = None,
) -> tuple[Pixels, int]:
    """Rows of decoded samples between two noises, one class or condition a row; and the number of columns."""
    flow, pixels = guided(model.flow, guidance, window), []
    for row in range(rows):
        label = None if condition is None else condition[row % len(condition)]
        if model.spec.num_classes:
            label = classes[row % len(classes)] if classes else row % model.spec.num_classes
        seeds = (seed + 2 * row, seed + 2 * row + 1)
        x = interpolate(flow, model.spec.shape, seeds=seeds, points=points, steps=steps, label=label)
        pixels.append(_pixels(model.spec.decode(x), autoencoder))
    return np.concatenate(pixels), points


def guided(flow: FlowMap, guidance: float, window: Window = None) -> FlowMap:
    """`guide`, where a window is told to the network beside the scale: an input that it was trained with (iMF).

    For other networks `guide` compares the window with the start of each jump, so that a single one, from t = 1, is
    guided wholly or not at all: such a window is refused.

    Raises:
        SamplerError: as `guide`, and for a window that the network cannot be told, has never seen in training (they lie
            around t = ½, see `PowerGuidance`), or that says when a scale of 1, no guidance, acts.
    """
    if window is None:
        return guide(flow, guidance)
    if flow.told is None:
        raise SamplerError(
            f"the window {list(window)} is for networks that are told their guidance, as those of imf are, and this "
            "one is not; leave out the window"
        )
    if guidance == 1:
        raise SamplerError(
            f"the window {list(window)} says when guidance acts, but a scale of 1 is none; give a guidance above 1, or "
            "leave out the window"
        )
    told = guide(flow, guidance, window)
    if not window[0] <= 0.5 <= window[1]:
        raise SamplerError(
            f"this network is told its guidance and knows windows around 0.5 only, got {list(window)}; give "
            "[low, high] with low ≤ 0.5 ≤ high, such as [0.4, 0.65]"
        )
    return told


def sampler_named(name: str, gamma: float | None = None) -> Sampler | None:
    """The sampler of that name in `shortflow.sample.SAMPLERS`; None for "auto" (what the network was trained for).

    Raises:
        ConfigError: if there is none, or `gamma` is given to another than "gamma".
    """
    if name not in ("auto", *SAMPLERS):
        raise ConfigError(f"there is no sampler called {name!r}, {nearest(name, ('auto', *SAMPLERS))}")
    if gamma is not None:
        if name != "gamma":
            raise ConfigError(
                f"gamma = {gamma:g} is a setting of the sampler gamma, not of {name}; choose that sampler"
            )
        return Gamma(gamma=gamma)
    return None if name == "auto" else SAMPLERS[name]()


def grid_named(name: str) -> str | None:
    """The grid of that name in `shortflow.sample.GRIDS`; None for "auto" (what is usual for the path)."""
    if name not in ("auto", *GRIDS):
        raise ConfigError(f"there is no grid called {name!r}, {nearest(name, ('auto', *GRIDS))}")
    return None if name == "auto" else name


def steps_named(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"
