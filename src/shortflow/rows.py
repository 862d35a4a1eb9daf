"""Rows of a batch: which of them a pass is made for, and how its results get back to their places.

Rows are indices, or a slice where they lie side by side: then nothing is copied, nothing is counted on a device, and a
compiler knows their number. `Chosen` are the rows where a mask is true, in one of two layouts: counted, so that a pass
is made for them alone, or all rows, of which the others are thrown away afterwards. The number of the former is known
only to whoever reads it, and reading waits for the device; the latter costs passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shortflow.typing import expand

__all__ = ["Chosen", "Rows", "assembled", "chosen", "count", "indices", "put", "within"]

Rows = Int[Tensor, "_"] | slice
"""Indices of rows, or a slice with both ends and no step."""


def count(rows: Rows) -> int:
    """How many rows there are."""
    return len(rows) if isinstance(rows, Tensor) else rows.stop - rows.start


def indices(rows: Rows, device: torch.device) -> Int[Tensor, "k"]:
    """The rows as indices."""
    return rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop, device=device)


def within(rows: Rows, places: Rows) -> Rows:
    """The rows at the given places among `rows`."""
    if isinstance(rows, Tensor):
        return rows[places]
    if isinstance(places, Tensor):
        return places + rows.start if rows.start else places
    return slice(rows.start + places.start, rows.start + places.stop)


def put(base: Shaped[Tensor, "b ..."], places: Rows, values: Shaped[Tensor, "k ..."]) -> Shaped[Tensor, "b ..."]:
    """`base` with the values at the given places."""
    values = values.to(base.dtype)
    if isinstance(places, Tensor):
        return base.index_copy(0, places, values)
    if count(places) == len(base):
        return values
    return torch.slice_scatter(base, values, 0, places.start, places.stop)


def assembled(parts: Sequence[Float[Tensor, "_ ..."]], places: Sequence[Rows]) -> Float[Tensor, "b ..."]:
    """One tensor of parts that fill it, each row at its place."""
    if len(parts) == 1:
        return parts[0]
    starts = [place.start for place in places if isinstance(place, slice)]
    if len(starts) == len(parts):
        order: list[int] = []
        for i, start in enumerate(starts):  # by insertion: numbers that a compiler does not know it can only compare
            place = 0
            for j in order:
                if starts[j] < start:
                    place += 1
            order.insert(place, i)
        return torch.cat([parts[i] for i in order])
    device = parts[0].device
    return torch.cat(list(parts))[torch.cat([indices(place, device) for place in places]).argsort()]


@dataclass(frozen=True)
class Chosen:
    """The rows where a mask is true.

    Attributes:
        places: those that a pass is made for: these rows, or all.
        mask: which of them are chosen; None for all.
    """

    places: Rows
    mask: Bool[Tensor, "k"] | None = None

    def __len__(self) -> int:
        return count(self.places)

    def put(self, base: Float[Tensor, "b ..."], values: Float[Tensor, "k ..."]) -> Float[Tensor, "b ..."]:
        """`base` with the values of the chosen rows, given those at `places`."""
        if self.mask is None:
            return put(base, self.places, values)
        return torch.where(expand(self.mask, base), values.to(base.dtype), base)


def chosen(mask: Bool[Tensor, "k"], counted: bool) -> Chosen:
    """The rows where the mask is true, counted or not."""
    return Chosen(mask.nonzero()[:, 0]) if counted else Chosen(slice(0, len(mask)), mask)
