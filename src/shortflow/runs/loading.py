"""The data that a run file names."""

from collections.abc import Callable
from dataclasses import replace

from shortflow.config import DataConfig
from shortflow.data import Dataset, load
from shortflow.data.encoded import Encoded
from shortflow.data.encoders import load_autoencoder
from shortflow.errors import ConfigError
from shortflow.typing import Report

__all__ = ["load_data", "training_data"]


def load_data(
    config: DataConfig, split: str = "train", *, resolution: int | None = None, report: Report | None = None
) -> Dataset:
    """The data as they are, images or points or stored latents.

    Args:
        resolution: in place of that of the run file.
        report: called with (images that are decoded, images in all) where that takes time.

    Raises:
        DataError: if there are none, or some cannot be read.
    """
    return load(
        config.source,
        split,
        resolution=config.resolution if resolution is None else resolution,
        crop=config.crop,
        image=config.image,
        label=config.label,
        corrupt=config.corrupt,
        report=report,
    )


def training_data(
    config: DataConfig,
    split: str = "train",
    *,
    report: Report | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """What a run is trained on: where an autoencoder is given for images, their latents, made while they are used.

    Args:
        split: "test" for the held-out data of the same kind.
        say: told before an autoencoder is fetched from the hub.

    Raises:
        DataError: as `load_data`, or if the autoencoder is not there, or does not encode such images.
        ConfigError: if an autoencoder is given for points.
    """
    found = load_data(config, split, report=report)
    if config.encoder is None or found.kind == "latents":
        return found
    if found.kind == "points":
        raise ConfigError(f"data.encoder makes latents of images, and {found.name} is points; leave it out")
    autoencoder = load_autoencoder(config.encoder, say=say)
    samples = Encoded(images=found.samples, autoencoder=autoencoder)  # type: ignore[arg-type]
    return replace(found, samples=samples, latent=autoencoder.spec(found.shape[1]))
