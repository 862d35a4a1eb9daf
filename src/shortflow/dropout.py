"""Dropout masks that are a function of (seed, layer, row), so that every pass of a step can share them.

Prediction, target and derivative of one training step must see the same mask, also when a pass runs on a
part of the rows only. Networks use `Dropout`; whoever runs a pass opens `shared_dropout` around it:

    with shared_dropout(seed, batch, rows):     # rows=None: all of them
        network(x[rows], ...)

The n-th `Dropout` layer called inside the context takes the n-th mask of the seed.
"""

import copy
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

__all__ = ["Dropout", "drops", "mixed_64", "no_dropout", "same_dropout", "shared_dropout"]


class _Masks:
    """The masks of one pass: counts the layers as they are called."""

    def __init__(self, seed: int | Tensor, batch: int, rows: Tensor | slice | None) -> None:
        self.counter, self.batch, self.rows = torch.as_tensor(seed), batch, rows

    def next(self, shape: torch.Size, keep: float, device: torch.device) -> Tensor:
        self.counter = self.counter + _GOLDEN
        low, high = _words(mixed_64(self.counter))
        rows = self.rows if isinstance(self.rows, Tensor) else torch.arange(self.batch, device=device)
        rows = rows[self.rows] if isinstance(self.rows, slice) else rows
        low, high = low.to(device, non_blocking=True), high.to(device, non_blocking=True)
        # A word for each row and one for each place within it; both are permutations, so none is met twice.
        row = _mixed_32(_mixed_32(rows.to(device, torch.int32) ^ low) ^ high)
        place = _mixed_32(torch.arange(math.prod(shape[1:]), device=device, dtype=torch.int32))
        kept = _mixed_32(place ^ row[:, None]) < round(keep * 2**32) - 2**31
        return kept.reshape(row.shape[0], *shape[1:])


# Integers as counters and a mixing function in place of a generator with a state: the numbers are the same on every
# device and on any subset of the rows, are made where they are used, and can be compiled. Products wrap around.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def mixed_64(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The output function of SplitMix64 (Steele et al. 2014), a permutation of the 64-bit integers."""
    x = (x ^ _shifted(x, 30, 64)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shifted(x, 27, 64)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shifted(x, 31, 64)


def _mixed_32(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A permutation of the 32-bit integers in which every input bit flips every output bit half of the time.

    The constants of "lowbias32" (Wellons 2018). In place, because the tensors are as large as the layers.
    """
    x ^= _shifted(x, 16, 32)
    x *= 0x7FEB352D
    x ^= _shifted(x, 15, 32)
    x *= 0x846CA68B - 2**32
    x ^= _shifted(x, 16, 32)
    return x


def _shifted(x: Tensor, by: int, bits: int) -> Tensor:
    """x shifted right with zeros, which `>>` fills with the sign."""
    return (x >> by).bitwise_and_(2 ** (bits - by) - 1)


def _words(x: Int[Tensor, ""]) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits."""
    return x.to(torch.int32), (x >> 32).to(torch.int32)


class _State(threading.local):
    """What the contexts below have set, in this thread. Context variables would do, but cannot be compiled."""

    def __init__(self) -> None:  # runs in every thread
        self.masks: _Masks | None = None
        self.off = False


_state = _State()


@contextmanager
def shared_dropout(
    seed: int | Int[Tensor, ""], batch: int, rows: Int[Tensor, "k"] | slice | None = None
) -> Iterator[None]:
    """Within the context, dropout masks are those of rows `rows` of a batch of `batch` rows under `seed`.

    In a compiled step the seed should be a tensor (int64): a number would be compiled into it.
    """
    before, _state.masks = _state.masks, _Masks(seed, batch, rows)
    try:
        yield
    finally:
        _state.masks = before


@contextmanager
def no_dropout() -> Iterator[None]:
    """Within the context, dropout layers are the identity (guidance passes of a training step)."""
    before, _state.off = _state.off, True
    try:
        yield
    finally:
        _state.off = before


def same_dropout() -> Callable[[], AbstractContextManager[None]]:
    """Contexts in which masks go on from here, for passes that are run again later (activation checkpointing).

    They may be opened at any time, as often as needed, and in any thread.
    """
    masks, off = copy.copy(_state.masks), _state.off

    @contextmanager
    def again() -> Iterator[None]:
        before = _state.masks, _state.off
        _state.masks, _state.off = copy.copy(masks), off
        try:
            yield
        finally:
            _state.masks, _state.off = before

    return again


def drops(module: nn.Module) -> bool:
    """Whether a pass of the module, here and now, would drop anything."""
    layers = (layer for layer in module.modules() if isinstance(layer, Dropout | nn.Dropout))
    return not _state.off and any(layer.training and layer.p > 0 for layer in layers)


class Dropout(nn.Module):
    """Drops entries with probability `p` in training mode and scales the rest by 1/(1−p).

    Raises:
        ValueError: if p is not in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must be in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or _state.off:
            return x
        masks = _state.masks
        if masks is None:
            return nn.functional.dropout(x, self.p)
        return x * masks.next(x.shape, 1 - self.p, x.device) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
