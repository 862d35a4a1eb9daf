"""The small fixed classifiers whose penultimate layer is the feature space of the image metrics.

uint8 image (c, h, w) → x/127.5 − 1 → three 3×3 convolution–batch norm–ReLU blocks of width (w, 2w, 4w)
→ linear 64, ReLU (the features) → linear (the logits).

One file a data set, `weights/{name}.safetensors`: the network, the moments of its training images' features, and in
the header a JSON record of shape, recipe, training split and held-out accuracy. Metric values depend on the weights,
so the files are part of the package, are never trained anew on a user's machine, and every record carries the
file's sha256. The classifiers are trained without augmentation on purpose: one that has seen noise or blur no longer
sees the residual noise and blur of generated images. Made by `scripts/train_classifiers.py`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from shortflow.errors import MetricError
from shortflow.evaluate.frechet import Moments

__all__ = [
    "Classifier",
    "LoadedClassifier",
    "classifier_names",
    "load_classifier",
    "read_classifier",
    "save_classifier",
]

WEIGHTS = Path(__file__).parent / "weights"
_BATCH = 500
_MOMENTS = "moments."
_NETWORK = "network."


class Classifier(nn.Module):
    """A convolutional classifier of uint8 images that also hands out its penultimate features.

    Args:
        shape: (c, h, w) of one image.
        width: channels w of the first block; the others have 2w and 4w.
        strides: stride of each block; small images keep their size in the first one.
        classes: number of logits.
        features: size of the penultimate layer.
        dropout: probability in front of the penultimate layer, in training only.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        width: int = 24,
        strides: tuple[int, ...] = (2, 2, 2),
        classes: int = 10,
        features: int = 64,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        channels, height, across = shape
        blocks: list[nn.Module] = []
        for depth, stride in enumerate(strides):
            out = width * 2**depth
            blocks += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels, height, across = out, -(-height // stride), -(-across // stride)
        self.blocks = nn.Sequential(*blocks)
        self.penultimate = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * height * across, features), nn.ReLU()
        )
        self.head = nn.Linear(features, classes)

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n classes"]]:
        """(features, logits) of a batch."""
        features = self.penultimate(self.blocks(images.float() / 127.5 - 1))
        return features, self.head(features)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedClassifier:
    """A classifier as it lies in a file: the network in evaluation mode, its record and its training moments.

    Attributes:
        name: the data set it was trained on.
        network: the frozen network.
        metadata: shape, recipe, split, held-out accuracy and torch version.
        moments: mean and covariance of the features of its training images.
        sha256: hexadecimal digest of the whole file.
    """

    name: str
    network: Classifier
    metadata: Mapping[str, Any]
    moments: Moments
    sha256: str

    # The arguments below are typed loosely on purpose: they come from other libraries and get a `MetricError`.
    def check(self, images: Any, what: str = "images") -> UInt8[Tensor, "n c h w"]:
        """`images` as a tensor; raises `MetricError` unless it is a uint8 array (n, c, h, w) of this classifier."""
        c, h, w = self.network.shape
        if isinstance(images, np.ndarray) and images.dtype == np.uint8:
            images = torch.from_numpy(np.ascontiguousarray(images))
        wanted = f"the {self.name} classifier needs a uint8 array of shape (n, {c}, {h}, {w})"
        if not isinstance(images, Tensor | np.ndarray):
            raise MetricError(f"{what}: {wanted}, got {type(images).__name__}")
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            raise MetricError(f"{what}: {wanted}, got {images.dtype}; scale to 0…255, round and convert to uint8 first")
        if images.ndim != 4 or tuple(images.shape[1:]) != (c, h, w):
            raise MetricError(f"{what}: {wanted}, got shape {tuple(images.shape)}")
        return images

    @torch.no_grad()
    def run(self, images: Tensor | np.ndarray) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n classes"]]:
        """(features, logits) of uint8 images (n, c, h, w), on the CPU, from one pass in batches of a fixed size."""
        images = self.check(images)
        device = self.network.head.weight.device
        parts = [self.network(batch.to(device)) for batch in images.split(_BATCH)] if len(images) else []
        if not parts:
            raise MetricError("images: there is nothing to classify, the array is empty")
        return torch.cat([f.cpu() for f, _ in parts]), torch.cat([z.cpu() for _, z in parts])

    def features(self, images: Tensor | np.ndarray) -> Float[Tensor, "n f"]:
        """The penultimate features of uint8 images, of shape (n, 64)."""
        return self.run(images)[0]

    def logits(self, images: Tensor | np.ndarray) -> Float[Tensor, "n classes"]:
        """The logits of uint8 images, of shape (n, classes)."""
        return self.run(images)[1]


def classifier_names() -> tuple[str, ...]:
    """The data sets that a classifier is shipped for."""
    return tuple(sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))


@cache
def load_classifier(name: str, device: str = "cpu") -> LoadedClassifier:
    """The shipped classifier of data set `name`; read once a process and device.

    Raises:
        MetricError: if there is none; the message names those there are.
    """
    if name not in classifier_names():
        raise MetricError(
            f"no classifier is shipped for {name!r}; there are {', '.join(classifier_names())}. "
            "Train one with scripts/train_classifiers.py and open it with read_classifier(path)"
        )
    return read_classifier(WEIGHTS / f"{name}.safetensors", device=device)


def read_classifier(path: str | Path, *, device: str = "cpu") -> LoadedClassifier:
    """The classifier in file `path`, as `save_classifier` wrote it.

    Raises:
        MetricError: if the file is missing, damaged or something else.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"]["classifier"])
        network = Classifier(
            shape=tuple(metadata["shape"]),
            width=metadata["width"],
            strides=tuple(metadata["strides"]),
            classes=metadata["classes"],
            features=metadata["features"],
        )
        network.load_state_dict(_without(_NETWORK, tensors))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise MetricError(f"{path} is not a readable classifier file: {error}") from error
    return LoadedClassifier(
        name=metadata["name"],
        network=network.eval().requires_grad_(False).to(device),
        metadata=metadata,
        moments=Moments.from_tensors(tensors, _MOMENTS),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def save_classifier(path: str | Path, network: Classifier, moments: Moments, metadata: Mapping[str, Any]) -> None:
    """Write network, moments and record to `path`. The bytes are a function of the arguments.

    `metadata` holds at least `name`, `shape`, `width`, `strides`, `classes` and `features`.
    """
    tensors = {f"{_NETWORK}{key}": value.contiguous() for key, value in network.state_dict().items()}
    tensors |= {key: value.contiguous() for key, value in moments.tensors(_MOMENTS).items()}
    record = {"classifier": json.dumps(metadata, sort_keys=True, ensure_ascii=False)}
    Path(path).write_bytes(save(tensors, metadata=record))


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
