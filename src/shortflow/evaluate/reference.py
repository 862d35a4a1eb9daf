"""The real side of a comparison: features of reference and held-out images, computed once and used for many rows.

The reference is what the generator learned from (the train split): its moments enter the Fréchet distance, and n of
its features the neighbour scores. The held-out images are what a perfect generator would look like: the row to read
every other row against.

Whatever uses a part of a set uses its first rows in a fixed random order, never in the order of the file: published
sets are not in random order. The first 2500 MNIST images of test against the first 2500 of train have a coverage of
.82, a random 2500 of each have .97.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortflow.errors import MetricError
from shortflow.evaluate.classifier import LoadedClassifier
from shortflow.evaluate.frechet import Moments

__all__ = ["Features", "Reference"]

# Two orders, so that a sample made from the i-th reference image does not meet just that image in a part of both.
REFERENCE_ORDER, SAMPLE_ORDER = 0, 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What the classifier says about a set of images.

    Attributes:
        values: penultimate features (n, f).
        predicted: the class with the largest logit (n,).
        labels: the class each image should show (n,), or None.
        fingerprint: sha256 of image shape, pixels and labels, in order.
    """

    values: Float[Tensor, "n f"]
    predicted: Int[Tensor, "n"]
    labels: Int[Tensor, "n"] | None
    fingerprint: str

    @classmethod
    def of(cls, images: Any, labels: Any, classifier: LoadedClassifier, what: str = "images") -> "Features":
        """Classify an array of uint8 images (n, c, h, w), or an iterable of such arrays, one batch at a time.

        Raises:
            MetricError: if an array has the wrong type or shape, there are no images, or labels do not fit.
        """
        is_array = isinstance(images, Tensor | np.ndarray)
        if not is_array and not isinstance(images, Iterable):
            raise MetricError(f"{what}: give a uint8 array or an iterable of them, got {type(images).__name__}")
        if is_array:  # before any work
            _labels(labels, len(classifier.check(images, what)), classifier, what)
        digest = hashlib.sha256(repr(classifier.network.shape).encode())
        values, predicted = [], []
        for given in [images] if is_array else images:
            batch = classifier.check(given, what)
            if len(batch) == 0:
                continue
            features, logits = classifier.run(batch)
            values.append(features)
            predicted.append(logits.argmax(dim=1))
            digest.update(batch.cpu().contiguous().numpy().tobytes())
        if not values:
            raise MetricError(f"{what}: there are no images to evaluate")
        checked = _labels(labels, sum(map(len, values)), classifier, what)
        if checked is not None:
            digest.update(b"labels" + checked.numpy().tobytes())
        return cls(
            values=torch.cat(values), predicted=torch.cat(predicted), labels=checked, fingerprint=digest.hexdigest()
        )

    def __len__(self) -> int:
        return len(self.values)

    def first(self, n: int) -> "Features":
        """The first n rows; the fingerprint stays that of the whole set."""
        labels = None if self.labels is None else self.labels[:n]
        return Features(
            values=self.values[:n], predicted=self.predicted[:n], labels=labels, fingerprint=self.fingerprint
        )

    def shuffled(self, seed: int) -> "Features":
        """The rows in a random order that is a function of (n, seed) only; the fingerprint stays."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        labels = None if self.labels is None else self.labels[order]
        return Features(
            values=self.values[order], predicted=self.predicted[order], labels=labels, fingerprint=self.fingerprint
        )

    @property
    def correct(self) -> Bool[Tensor, "n"] | None:
        """Rows whose predicted class is their label; None without labels."""
        return None if self.labels is None else self.predicted == self.labels


def _labels(labels: Any, n: int, classifier: LoadedClassifier, what: str) -> Int[Tensor, "n"] | None:
    if labels is None:
        return None
    tensor = torch.as_tensor(labels).cpu()
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise MetricError(f"{what}: labels must be integers, got {tensor.dtype}")
    if tuple(tensor.shape) != (n,):
        raise MetricError(f"{what}: {n} images need labels of shape ({n},), got {tuple(tensor.shape)}")
    tensor = tensor.to(torch.int64)
    if n and not 0 <= int(tensor.min()) <= int(tensor.max()) < classifier.network.classes:
        raise MetricError(
            f"{what}: labels must lie in 0…{classifier.network.classes - 1} for the {classifier.name} classifier, "
            f"got {int(tensor.min())}…{int(tensor.max())}"
        )
    return tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Reference and held-out images seen through one classifier.

    Attributes:
        classifier: who looked.
        train: features of the reference images in a fixed random order, or None if only stored moments are known.
        held_out: features of held-out real images in a fixed random order, or None.
        moments: moments of `train`, or those stored with the classifier.
    """

    classifier: LoadedClassifier
    train: Features | None
    held_out: Features | None
    moments: Moments

    @classmethod
    def of(
        cls,
        images: Any,
        labels: Any = None,
        *,
        held_out: Any = None,
        held_out_labels: Any = None,
        classifier: LoadedClassifier,
    ) -> "Reference":
        """Classify reference and held-out uint8 images once. Without reference images (None) the moments stored with
        the classifier serve, and only the Fréchet distance and the accuracy can be computed.

        Raises:
            MetricError: if an array has the wrong type or shape, is empty, or labels do not fit.
        """
        train = real = None
        if images is not None:
            train = Features.of(images, labels, classifier, "reference images").shuffled(REFERENCE_ORDER)
        if held_out is not None:
            real = Features.of(held_out, held_out_labels, classifier, "held-out images").shuffled(SAMPLE_ORDER)
        moments = classifier.moments if train is None else Moments.of(train.values)
        return cls(classifier=classifier, train=train, held_out=real, moments=moments)

    def record(self) -> dict[str, Any]:
        """What the numbers were computed against: count and fingerprint, JSON-able."""
        if self.train is None:
            return {"n": self.moments.count, "fingerprint": f"moments in classifier {self.classifier.sha256}"}
        return {"n": self.moments.count, "fingerprint": self.train.fingerprint}
