"""Dropout masks that are a function of (seed, layer, row), so that every pass of a step can share them.

Prediction, target and derivative of one training step must see the same mask, also when a pass runs on a
part of the rows only. Networks use `Dropout`; whoever runs a pass opens `shared_dropout` around it:

    with shared_dropout(seed, batch, rows):     # rows=None: all of them
        network(x[rows], ...)

The n-th `Dropout` layer called inside the context takes the n-th mask of the seed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

__all__ = ["Dropout", "no_dropout", "shared_dropout"]


class _Masks:
    """The masks of one pass: counts the layers as they are called."""

    def __init__(self, seed: int, batch: int, rows: Tensor | None) -> None:
        self.seed, self.batch, self.rows, self.layer = seed, batch, rows, 0

    def next(self, shape: torch.Size, keep: float, device: torch.device) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed((self.seed * 1_000_003 + self.layer) % 2**63)
        self.layer += 1
        mask = (torch.rand((self.batch, *shape[1:]), generator=generator) < keep).to(device)
        return mask if self.rows is None else mask[self.rows]


_current: ContextVar[_Masks | None] = ContextVar("dropout_masks", default=None)
_off: ContextVar[bool] = ContextVar("dropout_off", default=False)


@contextmanager
def shared_dropout(seed: int, batch: int, rows: Int[Tensor, "k"] | None = None) -> Iterator[None]:
    """Within the context, dropout masks are those of rows `rows` of a batch of `batch` rows under `seed`."""
    token = _current.set(_Masks(seed, batch, rows))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def no_dropout() -> Iterator[None]:
    """Within the context, dropout layers are the identity (guidance passes of a training step)."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


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
        if not self.training or self.p == 0 or _off.get():
            return x
        masks = _current.get()
        if masks is None:
            return nn.functional.dropout(x, self.p)
        return x * masks.next(x.shape, 1 - self.p, x.device) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
