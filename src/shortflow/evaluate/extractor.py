"""What turns images into features: a network, and every choice that its numbers depend on.

An `Extractor` is a value: Inception (`load_inception`), one of the shipped classifiers (`classifier_features`), an
exported program (`load_program`), or any function of your own. Statistics carry its record, and two sets of images are
compared only if both were seen by one and the same.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import MetricError
from shortflow.evaluate.classifier import LoadedClassifier
from shortflow.evaluate.resize import RESIZES, resized

__all__ = ["Activations", "Extractor", "classifier_features", "exact_float32"]

BATCH = 64  # images a pass: the last bits depend on it, so it is not a setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Activations:
    """What a network says about n images.

    Attributes:
        features: (n, d), of which Fréchet and kernel distances and neighbours are taken.
        logits: (n, c), for the Inception score; None: there is none.
        spatial: (n, e), features that keep where things are, for sFID; None: there is none.
    """

    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n c"] | None = None
    spatial: Float[Tensor, "n e"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Extractor:
    """Features of uint8 images: resize, (x − mean)/std with x ∈ [0, 255], network.

    Attributes:
        name: what the features are called in tables and records.
        weights: SHA-256 (hex) of the weights, by which equal extractors are known.
        dimension: d, the number of features.
        network: (n, channels, size, size) float32 on `device` → `Activations`.
        size: the side of the network's input in pixels; None: any.
        resize: how images are brought there (see `shortflow.evaluate.resize`).
        mean, std: of the normalisation, in levels of 0…255; one number, or one a channel.
        channels: 3, or 1 for networks of grey images.
        device: where the network is.
        published: whether the weights are the published ones that the name FID belongs to.
        origin: more about the weights, for the record only (a file, its hash).

    Raises:
        MetricError: if the resize is unknown, or has no size.
    """

    name: str
    weights: str
    dimension: int
    network: Callable[[Float[Tensor, "n c s s"]], Activations]
    size: int | None = None
    resize: str = "none"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: int = 3
    device: str = "cpu"
    published: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resize not in RESIZES or (self.size is None and self.resize != "none"):
            resized(torch.zeros(1, 1, 1, 1), self.resize, self.size)  # says what is wrong
        wrong = [value for value in (self.mean, self.std) if len(value) not in (1, self.channels)]
        if wrong or min(self.std) <= 0:
            raise MetricError(
                f"{self.name}: mean and std are one number or {self.channels}, std above 0; got {self.mean}, {self.std}"
            )

    def record(self) -> dict[str, Any]:
        """Every choice that the features depend on, JSON-able. Equal records: comparable features."""
        return {
            "name": self.name,
            "weights": self.weights,
            "dimension": self.dimension,
            "size": self.size,
            "resize": self.resize,
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "published": self.published,
        }

    @torch.no_grad()
    def run(self, images: Any) -> Activations:
        """The activations of uint8 images (n, c, h, w), float32 on the CPU, in batches of a fixed size.

        Grey images are repeated for a network of three channels.

        Raises:
            MetricError: if the images are no such array, or of a size or a number of channels that cannot be used.
        """
        checked = self._checked(images)
        parts = [self._pass(batch) for batch in checked.split(BATCH)]
        return Activations(
            features=torch.cat([part.features for part in parts]),
            logits=_joined([part.logits for part in parts]),
            spatial=_joined([part.spatial for part in parts]),
        )

    def _pass(self, batch: Tensor) -> Activations:
        x = batch.to(self.device).float()
        if x.shape[1] < self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        mean, std = (torch.tensor(value, device=x.device).view(1, -1, 1, 1) for value in (self.mean, self.std))
        with exact_float32():
            found = self.network((resized(x, self.resize, self.size) - mean) / std)
        if tuple(found.features.shape) != (len(batch), self.dimension):
            raise MetricError(
                f"{self.name}: expected {self.dimension} features of each of {len(batch)} images, "
                f"got an array of shape {tuple(found.features.shape)}"
            )
        return Activations(
            features=found.features.float().cpu(),
            logits=None if found.logits is None else found.logits.float().cpu(),
            spatial=None if found.spatial is None else found.spatial.float().cpu(),
        )

    def _checked(self, images: Any) -> Tensor:
        if isinstance(images, np.ndarray) and images.dtype == np.uint8:
            whole = np.ascontiguousarray(images)
            images = torch.from_numpy(whole if whole.flags.writeable else whole.copy())
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            kind = str(getattr(images, "dtype", type(images).__name__)).removeprefix("torch.")
            raise MetricError(
                f"{self.name}: needs uint8 images (n, c, h, w), at least one, got {kind} of shape "
                f"{tuple(getattr(images, 'shape', ()))}; scale to 0…255, round and convert to uint8 first"
            )
        given = images.shape[1]
        if given == 3 and self.channels == 1 and bool((images == images[:, :1]).all()):
            return images[:, :1]  # grey images that were stored in colour
        if given != self.channels and given != 1:
            wanted = "1 channel" if self.channels == 1 else f"{self.channels} channels"
            raise MetricError(
                f"{self.name}: takes images of {wanted}, got {given}; give other images, or other features"
            )
        return images


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 as it is written: no TensorFloat-32, no choice of algorithms by their speed on this machine."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def classifier_features(classifier: LoadedClassifier) -> Extractor:
    """The penultimate features of a small classifier, of images of its own size only."""
    channels, side, _ = classifier.network.shape
    network = classifier.network

    def run(x: Tensor) -> Activations:
        features, logits = network(x.to(torch.uint8))
        return Activations(features=features, logits=logits)

    return Extractor(
        name=f"classifier-{classifier.name}",
        weights=classifier.sha256,
        dimension=network.head.in_features,
        network=run,
        size=side,
        channels=channels,
        device=str(network.head.weight.device),
    )
