"""What a store of latents is made of: images through an autoencoder, or latents that others have cached."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

from shortflow.data.conditions import Conditions
from shortflow.data.decoded import lost_classes, squared
from shortflow.data.encoders import Autoencoder
from shortflow.data.images import CROPS, why
from shortflow.data.latents import Skipped
from shortflow.data.lmdblatents import LmdbLatents
from shortflow.data.sources import Source
from shortflow.errors import DataError

__all__ = ["Feed", "Images", "Made", "Stored"]

Made = tuple[Float[np.ndarray, "..."], Int64[np.ndarray, "..."] | None, bytes]  # (n, 2, k, c, h, w) and (n,)
Loaded = tuple[Any, list[int], list[Skipped]]


class Feed(ABC):
    """Moments of latents by number.

    Attributes:
        name, split: of the source.
        where: the images, as they were given; None: nobody knows of any.
        labelled: whether there are labels.
        classes: their names; None: the labels are their names.
        made: what the moments depend on beside the autoencoder.
        side: of the latents.
        conditions: what the images are told by in place of labels; None: nothing.
    """

    name: str
    split: str
    labelled: bool
    classes: tuple[str, ...] | None
    made: Mapping[str, Any]
    side: int
    conditions: Conditions | None = None
    where: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def listing(self, rows: range) -> str:
        """A sum that changes with the items at `rows`, found without working on them."""

    @abstractmethod
    def load(self, rows: range) -> Loaded:
        """(what `moments` takes, the rows that are in it, those that cannot be read); called by another thread."""

    @abstractmethod
    def moments(self, loaded: Any) -> Made:
        """(moments, labels, what they were made of) of what was loaded of at least one row."""

    def lost(self, rows: Sequence[int]) -> list[str]:
        """The classes that have nothing left without `rows`, as far as they are known beforehand."""
        return []

    @abstractmethod
    def shown(self, rows: Sequence[int]) -> UInt8[np.ndarray, "n c h w"] | None:
        """The images at rows that can be read; None where there are none."""


class Images(Feed):
    """The images of a source, encoded.

    Raises:
        DataError: if the autoencoder cannot encode images of this side.
    """

    def __init__(self, source: Source, autoencoder: Autoencoder) -> None:
        source = squared(source)
        assert source.resolution is not None
        autoencoder.check(source.resolution)
        self.source, self.autoencoder = source, autoencoder
        self.name, self.split, self.classes, self.where = source.name, source.split, source.classes, source.where
        self.labelled, self.conditions = source.labels is not None, source.conditions
        self.side = source.resolution // autoencoder.factor
        self.made = {"resolution": source.resolution, "crop": CROPS[source.crop]}
        self._pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def __len__(self) -> int:
        return len(self.source)

    def listing(self, rows: range) -> str:
        return self.source.listing(rows)

    def load(self, rows: range) -> Loaded:
        images, kept, failed = [], [], []
        for k, found in zip(rows, self._pool.map(self._attempt, rows), strict=True):
            if isinstance(found, str):
                failed.append((k, self.source.title(k), found))
            else:
                images.append(found)
                kept.append(k)
        return (images, kept), kept, failed

    def _attempt(self, k: int) -> UInt8[np.ndarray, "c h w"] | str:
        """Image k with the channels of the autoencoder, or why it cannot be read."""
        try:
            image = self.source.read(k)
        except Exception as error:  # decoders raise almost anything on a damaged file
            return why(error)
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        channels = self.autoencoder.channels[0]
        if len(planes) not in (1, channels):
            return f"it has {len(planes)} channels, the autoencoder {channels}"
        return np.ascontiguousarray(np.broadcast_to(planes, (channels, *planes.shape[1:])))

    def moments(self, loaded: Any) -> Made:
        images, kept = np.stack(loaded[0]), loaded[1]
        sides = (images, np.ascontiguousarray(images[..., ::-1]))
        found = [np.stack([part.cpu().numpy() for part in self.autoencoder.encode(side)], axis=1) for side in sides]
        labels = None if self.source.labels is None else self.source.labels[kept]
        return np.stack(found, axis=1), labels, images.tobytes()

    def lost(self, rows: Sequence[int]) -> list[str]:
        return lost_classes(self.source, rows)

    def shown(self, rows: Sequence[int]) -> UInt8[np.ndarray, "n c h w"]:
        found = [self._attempt(k) for k in rows]
        return np.stack([image for image in found if not isinstance(image, str)])


class Stored(Feed):
    """Latents of an LMDB, see `shortflow.data.lmdblatents`.

    Raises:
        DataError: if they are not those of the autoencoder.
    """

    labelled, classes, split = True, None, "train"

    def __init__(self, latents: LmdbLatents, autoencoder: Autoencoder) -> None:
        self.latents, self.name = latents, latents.path.resolve().stem
        first, _ = latents.read(0)
        _, _, c, h, w = self._shape = first.shape
        if c != autoencoder.channels[1] or h != w or not autoencoder.gaussian:
            raise DataError(
                f"{latents.path}: latents of {c} channels, {h}×{w}, with a spread are not those of {autoencoder.name} "
                f"({autoencoder.channels[1]} channels); give the autoencoder that they were made with"
            )
        self.side = h
        self.made = {"resolution": h * autoencoder.factor, "crop": "unknown (an LMDB of latents)"}

    def __len__(self) -> int:
        return self.latents.count

    def listing(self, rows: range) -> str:
        ends = (self.latents.get(str(k).encode()) or b"" for k in (rows[0], rows[-1]))
        return hashlib.sha256(b"".join(ends)).hexdigest()

    def load(self, rows: range) -> Loaded:
        found, kept, failed = [], [], []
        for k in rows:
            try:
                moments, label = self.latents.read(k)
                if moments.shape != self._shape:
                    raise DataError(f"its shape {moments.shape[2:]} is another one")
            except DataError as error:
                failed.append((k, f"entry {k}", str(error)))
            else:
                found.append((moments, label))
                kept.append(k)
        return found, kept, failed

    def moments(self, loaded: Any) -> Made:
        moments = np.stack([each for each, _ in loaded])
        return moments, np.array([label for _, label in loaded], dtype=np.int64), moments.tobytes()

    def shown(self, rows: Sequence[int]) -> None:
        return None
