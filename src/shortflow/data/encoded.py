"""Latents that are made while they are used: images and an autoencoder in place of a store.

An array of moments as a store has them (`shortflow.data.latents`), of which nothing is kept: the rows that are asked
for are encoded, of the image or of its mirror. What a batch holds is therefore what it would hold with a store of
float32: a function of the image, its coin, and the noise of (seed, step, row).
"""

import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from shortflow.data.encoders import Autoencoder
from shortflow.data.images import cache_folder
from shortflow.data.measured import Measured
from shortflow.errors import DataError
from shortflow.files import write_atomic

__all__ = ["BATCH", "MEASURED", "Encoded"]

BATCH = 32  # images a pass, as many as `shortflow encode` takes
MEASURED = 1024  # images that mean and deviation are taken of
_TIMED = 4  # on a processor; a GPU has a full batch


@dataclass(kw_only=True, eq=False)
class Encoded:
    """The moments of images, float32 (n, 2, k, c, h, w): [:, 0] of the image, [:, 1] of its mirror, see the module.

    Attributes:
        images: uint8 (n, c, side, side), maybe mapped; grey ones get the channels of the autoencoder.
        autoencoder: the encoder.

    Raises:
        DataError: if the autoencoder does not encode such images.
    """

    images: UInt8[np.ndarray, "n c s s"]
    autoencoder: Autoencoder
    dtype: Any = field(init=False, default=np.dtype(np.float32))
    ndim: int = field(init=False, default=6)

    def __post_init__(self) -> None:
        _, channels, side, _ = self.images.shape
        self.autoencoder.check(side)
        if channels not in (1, self.autoencoder.channels[0]):
            raise DataError(
                f"{self.autoencoder.name} encodes images of {self.autoencoder.channels[0]} channels, got {channels}; "
                "give another autoencoder"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        made, side = self.autoencoder, self.images.shape[2] // self.autoencoder.factor
        return (len(self), 2, 1 + made.gaussian, made.channels[1], side, side)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def to(self, device: torch.device) -> None:
        """Encode there from now on."""
        self.autoencoder.module.to(device)

    def __getitem__(self, key: Any) -> Float32[np.ndarray, "k m c h w"]:
        """[rows, sides], two arrays: for each k the moments of the image rows[k], mirrored where sides[k] is 1."""
        rows, sides = key
        images = np.take(np.asarray(self.images), rows, axis=0)
        images[sides == 1] = images[sides == 1, ..., ::-1]
        return self._moments(images)

    def _moments(self, images: UInt8[np.ndarray, "k a s s"]) -> Float32[np.ndarray, "k m c h w"]:
        channels = self.autoencoder.channels[0]
        parts = []
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            part = np.array(np.broadcast_to(part, (len(part), channels, *part.shape[2:])))
            parts.append(torch.stack(self.autoencoder.encode(part), dim=1).cpu().numpy())
        return np.concatenate(parts)

    @property
    def measured(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of z, of up to 1,024 images over the whole set and their mirrors.

        Kept in `cache_folder()`, so that a run that goes on sees the same numbers.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, MEASURED).round().astype(np.int64))
        images = np.take(np.asarray(self.images), rows, axis=0)
        key = hashlib.sha256(f"{self.autoencoder.sha256} {self.images.shape}".encode() + images.tobytes()).hexdigest()
        kept = cache_folder() / "measured" / f"{key[:32]}.json"
        try:
            mean, std = (tuple(map(float, each)) for each in json.loads(kept.read_text(encoding="utf-8")))
            if len(mean) == len(std) == self.autoencoder.channels[1] and all(map(math.isfinite, mean + std)):
                return mean, std
        except (OSError, ValueError, TypeError):
            pass  # it is measured below
        nothing = np.zeros(self.autoencoder.channels[1])
        total = Measured(count=0, mean=nothing, squares=nothing)
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            both = np.stack([self._moments(part), self._moments(np.ascontiguousarray(part[..., ::-1]))], axis=1)
            total = total.merged(Measured.of(both))
        # Six digits: the last ones are those of the device.
        mean, std = (tuple(float(f"{value:.6g}") for value in each) for each in (total.mean, total.std))
        write_atomic(kept, json.dumps([mean, std]))
        return mean, std

    def seconds(self) -> float:
        """What it takes to encode an image, as part of a batch, measured."""
        count = _TIMED if self.autoencoder.device.type == "cpu" else BATCH
        images = np.take(np.asarray(self.images), np.arange(count) % len(self), axis=0)
        self._moments(images)  # the first pass sets things up
        began = time.perf_counter()
        self._moments(images)
        return (time.perf_counter() - began) / len(images)
