"""What is kept of images that stream by: sums that merge, and the features of a few.

The n samples of a set are cut into chunks by n alone (`chunks`). A `Tally` of each chunk is made by whoever has the
time for it, and they are merged in their order, so the result is the same for any number of processes, and whether or
not the work was interrupted between two chunks.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shortflow.errors import MetricError
from shortflow.evaluate.extractor import Activations, Extractor
from shortflow.evaluate.frechet import Moments
from shortflow.evaluate.score import ADM_SIZE, SPLITS, SplitScores

__all__ = ["Plan", "Tally", "chunks"]

_ROWS = 256  # images that are held, and enter the moments together
_UNIT = 4 * _ROWS  # of the length of a chunk
_MOST = 32  # chunks of a set: each leaves two matrices of a few thousand columns on the disk


def chunks(n: int) -> list[tuple[int, int]]:
    """(first, last) of each chunk of n samples: multiples of 1024 samples, at most 32 of them."""
    length = _UNIT * max(1, -(-n // (_UNIT * _MOST)))
    return [(first, min(first + length, n)) for first in range(0, n, length)]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is taken of a set of images.

    Attributes:
        n: how many images there are.
        keep: of how many the features are kept, for KID and neighbours: the first in a fixed random order.
        order: the seed of that order, which the splits of the Inception score are in too.
        spatial: whether spatial features are taken (sFID), where the extractor has them.
        ordered: whether the Inception score is of parts of 5,000 images in the order they come in, as ADM has it, in
            place of ten parts in the random order.

    Raises:
        MetricError: if there are fewer than two images, which have no covariance.
    """

    n: int
    keep: int = 10_000
    order: int = 0
    spatial: bool = True
    ordered: bool = False

    def __post_init__(self) -> None:
        if self.n < 2 or self.keep < 0:
            raise MetricError(
                f"statistics need at least 2 images and keep=0 or more, got {self.n} images, keep={self.keep}"
            )

    def places(self) -> Int64[Tensor, "n"]:
        """The place of each sample in the random order; those below `keep` are kept."""
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.order))
        places = torch.empty_like(order)
        places[order] = torch.arange(self.n)
        return places


@dataclass(frozen=True, kw_only=True, eq=False)
class Tally:
    """The sums of samples first to last − 1.

    Attributes:
        first, last: which they are.
        shape: (c, h, w) of the images.
        features, spatial: moments; spatial ones are None where there are none.
        scores: sums of the Inception score; None: without logits.
        rows, places: the kept features (k, d) and their places in the random order.
        digests: SHA-256 of the pixels of each chunk, (chunks, 32) bytes.
    """

    first: int
    last: int
    shape: tuple[int, int, int]
    features: Moments
    spatial: Moments | None
    scores: SplitScores | None
    rows: Float[Tensor, "k d"]
    places: Int64[Tensor, "k"]
    digests: Tensor

    @classmethod
    def of(cls, batches: Iterable[np.ndarray], extractor: Extractor, plan: Plan, first: int, last: int) -> "Tally":
        """The tally of samples first to last − 1, which `batches` holds in order as uint8 (m, c, h, w).

        Raises:
            MetricError: if there are other than last − first images, of several shapes, or of one that does not fit.
        """
        places = plan.places()
        shape: tuple[int, ...] | None = None
        digest, done, total = hashlib.sha256(), first, None
        for images in _rows(batches):
            if shape is None:
                shape = images.shape[1:]
                digest.update(repr(shape).encode())
            if images.shape[1:] != shape:
                raise MetricError(f"images of several shapes, {shape} and {images.shape[1:]}; give one resolution")
            if done + len(images) > last:
                raise MetricError(f"expected {last - first} images from number {first} on, got more")
            digest.update(np.ascontiguousarray(images).tobytes())
            here = _Part.of(extractor.run(images), plan, places, done)
            total = here if total is None else total.merge(here)
            done += len(images)
        if total is None or shape is None or done != last:
            raise MetricError(f"expected {last - first} images from number {first} on, got {done - first}")
        return cls(
            first=first,
            last=last,
            shape=(shape[0], shape[1], shape[2]),
            features=total.features,
            spatial=total.spatial,
            scores=total.scores,
            rows=torch.cat(total.rows),
            places=torch.cat(total.places),
            digests=torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)[None],
        )

    def merge(self, other: "Tally") -> "Tally":
        """Both together; `other` must begin where this one ends.

        Raises:
            MetricError: if it does not, or its images have another shape.
        """
        if other.first != self.last or other.shape != self.shape:
            raise MetricError(
                f"samples {self.first}…{self.last - 1} of shape {self.shape} and {other.first}…{other.last - 1} of "
                f"shape {other.shape} do not go together"
            )
        return Tally(
            first=self.first,
            last=other.last,
            shape=self.shape,
            features=self.features.merge(other.features),
            spatial=None if self.spatial is None or other.spatial is None else self.spatial.merge(other.spatial),
            scores=None if self.scores is None or other.scores is None else self.scores.merge(other.scores),
            rows=torch.cat([self.rows, other.rows]),
            places=torch.cat([self.places, other.places]),
            digests=torch.cat([self.digests, other.digests]),
        )

    @property
    def kept(self) -> Float[Tensor, "k d"]:
        """The kept features in their random order."""
        return self.rows[self.places.argsort()]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the shape and the pixels of all images, in their order."""
        return hashlib.sha256(self.digests.numpy().tobytes()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for a file."""
        values = {
            "samples": torch.tensor([self.first, self.last, *self.shape]),
            "rows": self.rows,
            "places": self.places,
            "digests": self.digests,
            **self.features.tensors("features."),
        }
        values |= {} if self.spatial is None else self.spatial.tensors("spatial.")
        return values | ({} if self.scores is None else self.scores.tensors("scores."))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Tally":
        """The inverse of `tensors`.

        Raises:
            KeyError, MetricError: if something lacks.
        """
        first, last, c, h, w = tensors["samples"].tolist()
        return cls(
            first=first,
            last=last,
            shape=(c, h, w),
            features=Moments.from_tensors(tensors, "features."),
            spatial=Moments.from_tensors(tensors, "spatial.") if "spatial.mean" in tensors else None,
            scores=SplitScores.from_tensors(tensors, "scores.") if "scores.mass" in tensors else None,
            rows=tensors["rows"],
            places=tensors["places"],
            digests=tensors["digests"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """The sums of up to 256 samples."""

    features: Moments
    spatial: Moments | None
    scores: SplitScores | None
    rows: list[Tensor]
    places: list[Tensor]

    @classmethod
    def of(cls, found: Activations, plan: Plan, places: Tensor, first: int) -> "_Part":
        here = places[first : first + len(found.features)]
        kept = here < plan.keep
        spatial = found.spatial if plan.spatial else None
        scores = None
        if found.logits is not None and plan.ordered:
            scores = SplitScores.of(found.logits, torch.arange(first, first + len(here)), plan.n, size=ADM_SIZE)
        elif found.logits is not None and plan.n >= SPLITS:
            scores = SplitScores.of(found.logits, here, plan.n)
        return cls(
            features=Moments.of(found.features),
            spatial=None if spatial is None else Moments.of(spatial),
            scores=scores,
            rows=[found.features[kept]],
            places=[here[kept]],
        )

    def merge(self, other: "_Part") -> "_Part":
        return _Part(
            features=self.features.merge(other.features),
            spatial=None if self.spatial is None or other.spatial is None else self.spatial.merge(other.spatial),
            scores=None if self.scores is None or other.scores is None else self.scores.merge(other.scores),
            rows=self.rows + other.rows,
            places=self.places + other.places,
        )


def _rows(batches: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """The images in batches of 256, however they come, so that sums do not depend on how they came."""
    waiting: list[np.ndarray] = []
    count = 0
    for batch in batches:
        while len(batch):
            taken, batch = batch[: _ROWS - count], batch[_ROWS - count :]
            if waiting and taken.shape[1:] != waiting[0].shape[1:]:
                raise MetricError(
                    f"images of several shapes, {waiting[0].shape[1:]} and {taken.shape[1:]}; give one resolution"
                )
            waiting.append(taken)
            count += len(taken)
            if count == _ROWS:
                yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
                waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
