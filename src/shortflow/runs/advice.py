"""What a run's user should know about its data before it starts: what was left out, how often each image will be seen,
what it costs to encode them on the way, and whether the network's tokens can carry their patches."""

import math
from dataclasses import replace

from shortflow.config import RunConfig
from shortflow.data import Dataset
from shortflow.data.encoded import Encoded
from shortflow.data.images import some
from shortflow.errors import ShortflowError
from shortflow.nn.configs import NetworkConfig, SiTConfig, UNetConfig
from shortflow.parameterizations import Denoiser

__all__ = ["OFTEN", "SMALL", "data_remarks"]

SMALL = 10_000
"""Fewer images than this are few."""

OFTEN = 200
"""Times that an image can be seen, of few images, before it is advised to do something about it.

The time after which a network begins to copy its training images grows in proportion to their number (Bonnaire et al.
2025, arXiv 2505.17638; Favero et al. 2025, arXiv 2505.16959), so that what counts is how often each is seen, up to a
number of images at which it ends. Where both lie depends on data and network; these are rules of thumb.
"""

_LEAST_STEPS = 1000  # of a shorter run that is still one
_NARROWEST = 64


def data_remarks(run: RunConfig, dataset: Dataset) -> list[str]:
    """The remarks, each a sentence or two."""
    found = [*dataset.notes, _skipped(dataset), _few(run, dataset), _encoding(run, dataset), _narrow(run, dataset)]
    return [each for each in found if each is not None]


def _skipped(dataset: Dataset) -> str | None:
    count = len(dataset.skipped)
    if not count:
        return None
    titles = some([f"{title} ({why})" for _, title, why in dataset.skipped])
    return (
        f"{count:,} of {count + len(dataset):,} images cannot be read and are left out: {titles}; the run directory "
        "has a list of all of them, left-out.txt"
    )


# ----------------------------------------------------------------------------------------------------------- few images


def _few(run: RunConfig, dataset: Dataset) -> str | None:
    """What to expect of few images, and the settings that help, where they can be changed."""
    n, images = len(dataset), run.train.images
    if dataset.kind == "points" or "pairs" in run.recipe.objective.needs or n >= SMALL or images <= OFTEN * n:
        return None
    helps = [*_shorter(run, n), *_mirrors(run), *_dropout(run.network), *_smaller(run), *_decay(run)]
    return (
        f"{dataset.name} has {n:,} images, and this run sees each {images // n:,} times: below {SMALL:,} images and "
        f"above {OFTEN} times networks begin to repeat what they have seen. More images help most; then "
        f"{', '.join(f'--set {setting}' for setting in helps)}"
    )


def _shorter(run: RunConfig, n: int) -> list[str]:
    images = max(OFTEN * n, _LEAST_STEPS * run.train.batch)
    return [f"train.images={images}"] if images < run.train.images else []


def _mirrors(run: RunConfig) -> list[str]:
    return [] if run.data.flip else ["data.flip=true (unless left and right differ)"]


def _dropout(network: NetworkConfig) -> list[str]:
    """Networks of one's own may have none."""
    return ["network.dropout=0.1"] if getattr(network, "dropout", None) == 0 else []


def _smaller(run: RunConfig) -> list[str]:
    """The network at half its width, if there is one and it is not narrow already."""
    network, name = run.network, "width"
    if isinstance(network, UNetConfig):
        half, name = network.dimensions.channels // 2, "channels"
    elif isinstance(network, SiTConfig):
        half = network.dimensions.width // 2
    else:
        return []
    try:
        replace(network, **{name: half})
    except ShortflowError:
        return []
    return [f"network.{name}={half}"] if half >= _NARROWEST and run.init_from is None else []


def _decay(run: RunConfig) -> list[str]:
    return ["recipe.optimizer.weight_decay=0.01"] if run.recipe.optimizer.weight_decay == 0 else []


# ------------------------------------------------------------------------------------------------------------- encoding


def _encoding(run: RunConfig, dataset: Dataset) -> str | None:
    """What it costs to encode images on the way, measured, beside what a store costs."""
    if not isinstance(dataset.samples, Encoded):
        return None
    seconds, device = dataset.samples.seconds(), dataset.samples.autoencoder.device.type
    here, once = run.train.images * seconds, 2 * len(dataset) * seconds
    told = (
        f"images are encoded while training: {run.train.images:,} of them at {1000 * seconds:,.3g} ms each ({device}) "
        f"take {_time(here)} in all"
    )
    if here <= once:
        return f"{told}, no more than a store of latents would"
    side = "" if run.data.resolution is None else f" --resolution {run.data.resolution}"
    return (
        f"{told}. A store of latents, of each image and its mirror, takes {_time(once)} once: shortflow encode "
        f"{run.data.source} --encoder {run.data.encoder}{side} --out LATENTS, and train on --data LATENTS"
    )


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.3g} s"


# --------------------------------------------------------------------------------------------------------------- tokens


def _narrow(run: RunConfig, dataset: Dataset) -> str | None:
    """Tokens of fewer numbers than their patches: what leaves the last block has at most `width` dimensions, and a
    velocity, or a prediction of noise, has as many as the patch, because white noise has."""
    network = run.network
    if not isinstance(network, SiTConfig) or dataset.kind == "points":
        return None
    if isinstance(run.recipe.parameterization, Denoiser):
        return None  # images fill few of the dimensions
    channels, height, side = dataset.shape
    width, numbers = network.dimensions.width, channels * network.patch**2
    if width >= numbers:
        return None
    fits = [p for p in range(1, network.patch) if not (height % p or side % p) and channels * p**2 <= width]
    helps = [f"--set network.patch={max(fits)}"] if fits else []
    unit = math.lcm(64, network.dimensions.heads)
    helps.append(f"--set network.width={-(-numbers // unit) * unit}")
    patch = f"{network.patch}×{network.patch} in {channels} channel{'s' * (channels != 1)}"
    return (
        f"a patch of {patch} has {numbers} numbers, and so has its noise, which the network is to return; tokens of "
        f"width {width} cannot carry it: {' or '.join(helps)}"
    )
