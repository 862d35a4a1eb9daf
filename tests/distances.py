"""How far a sample of times is from a law, and moments of a run: shared by the tests of laws and times."""

from collections.abc import Callable

import torch
from torch import Tensor

from shortflow.typing import Progress


def at(share: float) -> Progress:
    """A run of a million images after that share of it."""
    return Progress(images=round(share * 1_000_000), total=1_000_000)


def ks(sample: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """The Kolmogorov–Smirnov distance of a sample from a continuous law."""
    x = sample.sort().values
    n = len(x)
    f = cdf(x)
    rank = torch.arange(n, dtype=x.dtype)
    return float(torch.maximum((f - rank / n).abs(), (f - (rank + 1) / n).abs()).max())


def distance(a: Tensor, b: Tensor) -> float:
    """The Kolmogorov–Smirnov distance of two samples."""
    grid = torch.cat([a, b]).unique()
    cdf_a = torch.searchsorted(a.sort().values, grid, right=True) / len(a)
    cdf_b = torch.searchsorted(b.sort().values, grid, right=True) / len(b)
    return float((cdf_a - cdf_b).abs().max())
