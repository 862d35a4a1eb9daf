"""What the data of a run are, as its states remember it: enough to tell other data from the same in another place.

Names, places and times of files are no part of it, so data may be moved, copied or packed otherwise. It costs a second
at most: beyond WHOLE bytes SAMPLED rows stand for all, spread evenly over them.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int, Shaped
from PIL import features

from shortflow.data.dataset import Dataset
from shortflow.data.encoded import Encoded

__all__ = ["DataIdentity"]

WHOLE = 2**28  # bytes that are read whole
SAMPLED = 1024  # rows
_AT_ONCE = 2**24  # bytes


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """How many samples there are, and sums over what they hold.

    Attributes:
        count: of samples.
        looked_at: how many rows the sum over the samples is of.
        samples: SHA-256 (hex) of their stored values, in order; of latents that are made while they are used, of the
            images.
        labels: of the classes of all; None: there are none.
        conditions: of what else they are told by, of as many rows as take WHOLE bytes or of SAMPLED; None: nothing.
        decoder: versions of what decodes images, which other pixels may be due to; None: no images.
    """

    count: int
    looked_at: int
    samples: str
    labels: str | None = None
    conditions: str | None = None
    decoder: str | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> "DataIdentity":
        """That of the data, which are read up to WHOLE bytes or SAMPLED rows."""
        samples = dataset.samples.images if isinstance(dataset.samples, Encoded) else dataset.samples
        rows = _rows(len(dataset), math.prod(samples.shape[1:]) * samples.dtype.itemsize)
        told = None
        if (conditions := dataset.conditions) is not None:
            size = 4 * math.prod(conditions.shape)
            told = _sum(conditions.take, _rows(len(dataset), size), size)
        return cls(
            count=len(dataset),
            looked_at=len(rows),
            samples=_sum(lambda k: samples[k], rows, math.prod(samples.shape[1:]) * samples.dtype.itemsize),
            labels=None if dataset.labels is None else hashlib.sha256(dataset.labels.astype("<i8").data).hexdigest(),
            conditions=told,
            decoder=_decoder() if samples.dtype == np.uint8 else None,
        )

    def as_json(self) -> dict[str, Any]:
        """The identity as JSON values."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Any) -> "DataIdentity":
        """What `as_json` has written. Raises `ValueError` for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise ValueError(f"the identity of data has {', '.join(sorted(names))}, got {values!r:.80}")
        for name, value in values.items():
            wanted = (int,) if name in ("count", "looked_at") else (str,)
            empty = value is None and name in ("labels", "conditions", "decoder")
            if type(value) not in wanted and not empty:
                raise ValueError(f"{name} of the identity of data is {value!r:.80}")
        return cls(**values)

    def differences(self, now: "DataIdentity") -> list[str]:
        """In what data of another identity differ from these, in words; empty: they are the same."""
        if self.count != now.count:
            return [f"{self.count:,} samples then, {now.count:,} now"]
        found = [f"other {name}" for name in ("labels", "conditions") if getattr(self, name) != getattr(now, name)]
        if (self.samples, self.looked_at) != (now.samples, now.looked_at):
            found.append(f"other {'pixels' if now.decoder else 'numbers'} in the {self.count:,} samples")
        return found

    def decoded_otherwise(self, now: "DataIdentity") -> bool:
        """Whether all that differs is the pixels, and another decoder may be why: JPEG leaves it the last bit."""
        told = (self.count, self.looked_at, self.labels, self.conditions)
        same = told == (now.count, now.looked_at, now.labels, now.conditions)
        return same and None not in (self.decoder, now.decoder) and self.decoder != now.decoder


def _rows(n: int, size: int) -> Int[np.ndarray, "k"]:
    """The rows that stand for n of so many bytes each."""
    return np.arange(n) if n * size <= WHOLE else np.unique(np.linspace(0, n - 1, SAMPLED).astype(np.int64))


def _sum(
    take: Callable[[Int[np.ndarray, "k"]], Shaped[np.ndarray, "k ..."]], rows: Int[np.ndarray, "k"], size: int
) -> str:
    digest, each = hashlib.sha256(), max(1, _AT_ONCE // size)
    for first in range(0, len(rows), each):
        part = take(rows[first : first + each])
        if first == 0:
            digest.update(f"{part.dtype.newbyteorder('<').str}{part.shape[1:]}".encode())
        digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _decoder() -> str:
    return f"Pillow {PIL.__version__}, JPEG {features.version('jpg')}"
