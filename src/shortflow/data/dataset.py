"""Data, in memory or memory-mapped, and the one map between what is stored and what the network sees.

    network units = (x − shift)·scale,    x = u/127.5 − 1 for a pixel u ∈ {0, …, 255},
                                          x = (z − shift_c)·scale_c for channel c of a latent z (`LatentSpec`),
                                          x = the point itself otherwise.

`Dataset` owns the stored values (uint8 images, float32 points, or the moments of latents) and their classes, or other
conditions (`shortflow.data.conditions`). `DataSpec` owns the map and its inverse; it is written into a checkpoint, so
that samples can be decoded without the data.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped, UInt8
from torch import Tensor

from shortflow.arrays import Stacked
from shortflow.data.conditions import Conditions
from shortflow.data.encoded import Encoded
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import DataError
from shortflow.typing import Condition, condition_words

__all__ = ["DataSpec", "Dataset", "Kind"]

Kind = Literal["images", "points", "latents"]

_AT_ONCE = 2**22  # numbers that are converted together where a whole set is looked at


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Samples with their classes. The samples may be larger than memory: a memory-mapped array is never read whole.

    Attributes:
        name: where the data came from (a built-in name or the name of a folder).
        samples: uint8 images (n, c, h, w); float32 points (n, d); or the moments of latents' Gaussians, float16 or
            float32 (n, 2, k, c, h, w): of each image and its mirror, the mean and (k = 2) the standard deviation. See
            `shortflow.arrays` for files, `shortflow.data.latents` for stores of latents, and `shortflow.data.encoded`
            for those that are made while they are used.
        labels: int64 (n,), the class of each sample as an index into `classes`; None: unconditional.
        classes: names of the classes; empty: unconditional.
        split: "train", "test", "all" or the name of a folder's own split.
        latent: what the latents are; None for images and points.
        measured: mean and standard deviation of the latents, a number for each channel of z; of latents only, and None
            where they are made while they are used, and measured when that is asked for.
        skipped: what could not be read, and was left out: of each image its number, what it is called, and why.
        conditions: a vector or a sequence for each sample, in place of labels; None: there are none.
        notes: what its user should know of how it was opened, in sentences.

    Raises:
        DataError: if there is no sample, or samples, labels, classes and conditions do not belong together.
    """

    name: str
    # Wide on purpose: what a user gets wrong here is told by `__post_init__`, in words.
    samples: Shaped[np.ndarray, "..."] | Stacked | Encoded
    labels: Shaped[np.ndarray, "..."] | None = None
    classes: tuple[str, ...] = ()
    split: str = "train"
    latent: LatentSpec | None = None
    measured: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    skipped: tuple[tuple[int, str, str], ...] = ()
    conditions: Conditions | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.latent is None:
            self._check_samples()
        else:
            self._check_latents(self.latent)
        if self.samples.size == 0:
            raise DataError(f"{self.name}: no samples, got an array of shape {self.samples.shape}")
        if self.conditions is not None and len(self.conditions) != len(self.samples):
            raise DataError(
                f"{self.name}: {len(self.conditions)} conditions for {len(self.samples)} samples; give each one"
            )
        if self.conditions is not None and (self.labels is not None or self.classes):
            raise DataError(f"{self.name}: samples have classes or other conditions, not both; leave one of them out")
        if (self.labels is None) != (not self.classes):
            raise DataError(f"{self.name}: labels and classes go together; give both, or neither (unconditional)")
        if self.labels is None:
            return
        if self.labels.dtype != np.int64 or self.labels.shape != self.samples.shape[:1]:
            raise DataError(
                f"{self.name}: labels must be int64, one for each of the {len(self.samples)} samples, "
                f"got {self.labels.dtype} of shape {self.labels.shape}"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DataError(
                f"{self.name}: labels must be in 0…{len(self.classes) - 1} ({len(self.classes)} classes), "
                f"got {self.labels.min()}…{self.labels.max()}"
            )

    def _check_samples(self) -> None:
        kind = (self.samples.dtype, self.samples.ndim)
        if kind not in ((np.dtype(np.uint8), 4), (np.dtype(np.float32), 2)) or self.measured is not None:
            raise DataError(
                f"{self.name}: samples must be uint8 images (n, c, h, w) or float32 points (n, d), "
                f"got {self.samples.dtype} of shape {self.samples.shape}"
            )

    def _check_latents(self, latent: LatentSpec) -> None:
        shape, dtype = self.samples.shape, self.samples.dtype
        if len(shape) != 6 or shape[1] != 2 or shape[2] not in (1, 2) or dtype not in (np.float16, np.float32):
            raise DataError(
                f"{self.name}: latents must be moments (n, 2, 1 or 2, c, h, w) in float16 or float32, got {dtype} of "
                f"shape {shape}"
            )
        made = isinstance(self.samples, Encoded)
        if (self.measured is None) != made or {latent.channels, *map(len, self.measured or ())} != {shape[3]}:
            raise DataError(
                f"{self.name}: latents of {shape[3]} channels need as many scales, shifts, means and deviations"
            )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "latents" if self.latent is not None else "images" if self.is_image else "points"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (c, h, w) or (d,)."""
        return self.samples.shape[1 if self.latent is None else 3 :]

    @property
    def num_classes(self) -> int:
        """The number of classes; 0: unconditional."""
        return len(self.classes)

    @property
    def conditional(self) -> bool:
        """Whether samples have classes or other conditions."""
        return self.labels is not None or self.conditions is not None

    @property
    def is_image(self) -> bool:
        return self.samples.dtype == np.uint8

    def told(self, rows: Int[np.ndarray, "k"]) -> Condition | None:
        """The classes or other conditions of the samples at `rows`; None: unconditional."""
        if self.conditions is not None:
            return torch.from_numpy(self.conditions.take(rows))
        return None if self.labels is None else torch.from_numpy(self.labels[rows])

    def take(
        self,
        rows: Int[np.ndarray, "k"],
        turned: Bool[np.ndarray, "k"] | None = None,
        normal: Callable[[int], Float32[np.ndarray, "k d"]] | None = None,
    ) -> UInt8[np.ndarray, "k c h w"] | Float32[np.ndarray, "k ..."]:
        """The samples at `rows` in the form that `DataSpec.encode` takes, in a new array.

        Args:
            turned: which of them are mirrored, left to right; of latents, the latent of the mirrored image is taken.
            normal: d ↦ standard normal numbers (k, d); latents are mean + std·ε with them, and the mean without.
        """
        if self.latent is None:
            picked = np.take(np.asarray(self.samples), rows, axis=0)
            if turned is not None:
                picked[turned] = picked[turned, ..., ::-1]
            return picked
        side = np.zeros(len(rows), dtype=np.int64) if turned is None else turned.astype(np.int64)
        moments = self.samples[rows, side].astype(np.float32)
        z = moments[:, 0]
        if moments.shape[1] == 2 and normal is not None:
            z = z + moments[:, 1] * normal(math.prod(self.shape)).reshape(z.shape)
        return np.ascontiguousarray(z)

    def subset(self, rows: Int[np.ndarray, "k"] | Bool[np.ndarray, "n"] | slice) -> "Dataset":
        """The samples at `rows` (indices, a mask or a slice), with the same classes, also those left without one."""
        told = {
            "labels": None if self.labels is None else self.labels[rows],
            "conditions": None if self.conditions is None else self.conditions.subset(rows),
        }
        if isinstance(self.samples, Encoded):
            return replace(self, samples=replace(self.samples, images=self.samples.images[rows]), **told)
        return replace(self, samples=self.samples[rows], **told)

    def fingerprint(self) -> str:
        """The SHA-256 (hex) of samples, labels and conditions, types and shapes; not of the names. Order counts.

        Of latents that are made while they are used, that of the images.
        """
        digest = hashlib.sha256()
        for array in (self.samples.images if isinstance(self.samples, Encoded) else self.samples, self.labels):
            if array is not None:
                digest.update(f"{array.dtype.newbyteorder('<').str}{array.shape}".encode())
                for part in array.parts if isinstance(array, Stacked) else (array,):
                    digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)
        if self.conditions is not None:
            digest.update(f"conditions{(len(self), *self.conditions.shape)}".encode())
            rows = max(1, _AT_ONCE // math.prod(self.conditions.shape))
            for first in range(0, len(self), rows):
                digest.update(self.conditions.take(np.arange(first, min(first + rows, len(self)))).data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a network is trained on: the shape, the classes, and the map to network units (see the module).

    Attributes:
        name: name of the data set.
        shape: shape of one sample, (c, h, w) or (d,).
        classes: names of the classes; empty: unconditional.
        shift, scale: network units are (x − shift)·scale, with x ∈ [−1, 1] for images and in natural units for latents.
        image: whether stored samples are uint8 images.
        latent: the autoencoder of latents and their natural units; None for images and points.
        condition: shape of what samples are told by in place of a class, (d,) of a vector, (n, d) of a sequence of
            up to n tokens; None: classes, or unconditional.

    Raises:
        DataError: if the scale is not positive and finite, or the shift not finite, or the parts contradict each other.
    """

    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    shift: float = 0.0
    scale: float = 1.0
    image: bool = True
    latent: LatentSpec | None = None
    condition: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.condition is not None and (
            self.classes or len(self.condition) not in (1, 2) or min(self.condition) < 1
        ):
            raise DataError(
                f"{self.name}: a condition is a vector (d,) or a sequence (n, d) in place of classes, got "
                f"{self.condition} and {len(self.classes)} classes"
            )
        if not (self.scale > 0 and math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise DataError(
                f"{self.name}: scale must be positive and finite and shift finite, "
                f"got scale {self.scale} and shift {self.shift}"
            )
        if self.latent is not None and (self.image or len(self.shape) != 3 or self.shape[0] != self.latent.channels):
            raise DataError(
                f"{self.name}: latents are no uint8 images, and of shape ({self.latent.channels}, h, w), got image = "
                f"{self.image} and shape {self.shape}"
            )

    @classmethod
    def fit(cls, dataset: Dataset, sigma_data: float | None = None) -> "DataSpec":
        """The spec of `dataset` in the units that training wants.

        With `sigma_data` None the natural scale stays: images in [−1, 1], latents as their `LatentSpec` has them,
        points as they are. A number asks for zero mean and that standard deviation (population), both taken over all
        elements at once.

        Raises:
            DataError: if sigma_data is not positive, or the data are constant or not finite.
        """
        shift, scale = 0.0, 1.0
        if sigma_data is not None:
            if not (sigma_data > 0 and math.isfinite(sigma_data)):
                raise DataError(f"sigma_data must be a positive finite number or None, got {sigma_data}")
            shift, std = _moments(dataset)
            if not (std > 0 and math.isfinite(std)):
                raise DataError(
                    f"{dataset.name}: the values have standard deviation {std:g} and cannot be scaled to "
                    f"{sigma_data:g}; look at the data, or leave the natural scale (sigma_data=None)"
                )
            scale = sigma_data / std
        return cls(
            name=dataset.name,
            shape=dataset.shape,
            classes=dataset.classes,
            shift=shift,
            scale=scale,
            image=dataset.is_image,
            latent=dataset.latent,
            condition=None if dataset.conditions is None else dataset.conditions.shape,
        )

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "latents" if self.latent is not None else "images" if self.image else "points"

    @property
    def num_classes(self) -> int:
        """The number of classes; 0: unconditional."""
        return len(self.classes)

    @property
    def conditional(self) -> bool:
        """Whether there are classes or other conditions."""
        return bool(self.classes) or self.condition is not None

    @property
    def told(self) -> str:
        """What a network is told of each sample, in words."""
        if self.condition is not None:
            return condition_words(self.condition)
        return f"one of {self.num_classes} classes" if self.classes else "nothing (unconditional)"

    def blank(self, n: int) -> Condition | None:
        """Some condition of n samples, where any will do; None: unconditional."""
        if self.condition is not None:
            return torch.zeros(n, *self.condition)
        return torch.zeros(n, dtype=torch.long) if self.classes else None

    def encode(self, samples: UInt8[np.ndarray, "n c h w"] | Float32[np.ndarray, "n ..."]) -> Float32[Tensor, "n ..."]:
        """Stored samples in network units, float32. Of latents, the samples are those that `Dataset.take` gives.

        Raises:
            DataError: if the samples are not of the spec's type and shape.
        """
        dtype = np.dtype(np.uint8 if self.image else np.float32)
        if samples.dtype != dtype or samples.shape[1:] != self.shape:
            raise DataError(
                f"{self.name}: expected {dtype} samples of shape {self.shape}, "
                f"got {samples.dtype} of shape {samples.shape[1:]}"
            )
        # NumPy in place: the bits of torch, without its threads, which belong to the training step.
        x = np.array(samples, dtype=np.float32) if self.latent is None else self.latent.natural(samples)
        if self.image:
            x /= np.float32(127.5)
            x -= np.float32(1)
        x -= np.float32(self.shift)
        x *= np.float32(self.scale)
        return torch.from_numpy(x)

    def decode(self, x: Float[Tensor, "n ..."]) -> UInt8[np.ndarray, "n c h w"] | Float32[np.ndarray, "n ..."]:
        """Network units to stored samples: the inverse of `encode`, exact for images; latents are the decoder's.

        Images are rounded to the nearest level and clamped to 0…255; NaN becomes 0, so that a picture of a run that
        has diverged is the same on every machine.

        Raises:
            DataError: if x is not of the spec's shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise DataError(f"{self.name}: expected samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        x = x.detach().to(device="cpu", dtype=torch.float32) / self.scale + self.shift
        if self.latent is not None:
            return self.latent.latents(x.numpy())
        if not self.image:
            return x.numpy()
        return ((x + 1) * 127.5).nan_to_num(nan=0.0).round().clamp(0, 255).to(torch.uint8).numpy()

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        values: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "shift": self.shift,
            "scale": self.scale,
            "image": self.image,
        }
        values |= {} if self.latent is None else {"latent": self.latent.to_dict()}
        return values if self.condition is None else {**values, "condition": list(self.condition)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataSpec":
        """The spec that `to_dict` wrote.

        Raises:
            DataError: if keys are missing or unknown.
        """
        known = {"name", "shape", "classes", "shift", "scale", "image"}
        optional = {"latent", "condition"}
        if set(values) - optional != known:
            missing, unknown = sorted(known - set(values)), sorted(set(values) - known - optional)
            raise DataError(f"data spec: missing keys {missing}, unknown keys {unknown}; expected {sorted(known)}")
        return cls(
            name=str(values["name"]),
            shape=tuple(int(side) for side in values["shape"]),
            classes=tuple(str(name) for name in values["classes"]),
            shift=float(values["shift"]),
            scale=float(values["scale"]),
            image=bool(values["image"]),
            latent=LatentSpec.from_dict(values["latent"]) if "latent" in values else None,
            condition=tuple(int(side) for side in values["condition"]) if "condition" in values else None,
        )


def _moments(dataset: Dataset) -> tuple[float, float]:
    """Mean and population standard deviation over all elements: of images in [−1, 1], of latents in natural units, or
    of points."""
    if dataset.latent is not None:
        measured = dataset.samples.measured if isinstance(dataset.samples, Encoded) else dataset.measured
        assert measured is not None
        return dataset.latent.moments(*measured)
    n, size = len(dataset), math.prod(dataset.shape)
    rows = max(1, _AT_ONCE // size)
    parts = [dataset.samples[first : first + rows] for first in range(0, n, rows)]  # views: nothing is read yet
    if dataset.is_image:
        # 256 counts are exact, and need no float copy of the images.
        counts = sum(np.bincount(part.reshape(-1), minlength=256) for part in parts)
        levels = np.arange(256) / 127.5 - 1
        mean = float((counts * levels).sum() / (n * size))
        return mean, math.sqrt(float((counts * (levels - mean) ** 2).sum() / (n * size)))
    mean = sum(float(part.astype(np.float64).sum()) for part in parts) / (n * size)
    squares = (np.square(part.astype(np.float64) - mean) for part in parts)
    return mean, math.sqrt(sum(float(part.sum()) for part in squares) / (n * size))
