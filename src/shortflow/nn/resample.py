"""Halving and doubling the sides of images by a separable filter f of even length 2p + 2, zeros beyond the border:

    down:  y_i = Σ_k f_k x_{2i + k − p},          up:  y_m = 2 Σ_i f_{m + p − 2i} x_i          (Σ f = 1)

along each side. Up is 4 times the transpose of down over both sides; (1, 1) averages, and repeats pixels, (1, 3, 3, 1)
is the smoother filter of StyleGAN2 and NCSN++. Sums of slices instead of convolutions: they need no buffer, and the
compiler joins them.

Source: Karras et al. 2020 (arXiv 1912.04958), appendix B.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Resample", "downsample", "filter_faults", "upsample"]

Resample: TypeAlias = Callable[[Tensor], Tensor]


def filter_faults(taps: tuple[float, ...]) -> list[str]:
    """What is wrong with the weights of a filter, one sentence; empty if nothing is."""
    if len(taps) < 2 or len(taps) % 2 or tuple(taps) != tuple(taps)[::-1] or not 0 < sum(taps) < math.inf:
        return [
            "resample_filter must be an even number of weights that read the same backwards, with a positive sum, "
            f"such as [1, 1] or [1, 3, 3, 1], got {list(taps)}"
        ]
    return []


def downsample(x: Float[Tensor, "b c h w"], taps: tuple[float, ...]) -> Float[Tensor, "b c h/2 w/2"]:
    """The images at half the sides."""
    return _halve(_halve(x, taps, -1), taps, -2)


def upsample(x: Float[Tensor, "b c h w"], taps: tuple[float, ...]) -> Float[Tensor, "b c 2*h 2*w"]:
    """The images at twice the sides."""
    return _double(_double(x, taps, -1), taps, -2)


def _halve(x: Tensor, taps: tuple[float, ...], axis: int) -> Tensor:
    count = x.shape[axis] // 2
    return _combined(x, [(tap, k) for k, tap in enumerate(taps)], len(taps) // 2 - 1, 2, count, axis) / sum(taps)


def _double(x: Tensor, taps: tuple[float, ...], axis: int) -> Tensor:
    p, phases = len(taps) // 2 - 1, []
    beyond = (p + 1) // 2
    for phase in (0, 1):
        # m = 2j + phase takes x_i with the weight f_k, k = m + p − 2i, so i = j + (phase + p − k)/2.
        terms = [(taps[k], beyond + (phase + p - k) // 2) for k in range((phase + p) % 2, len(taps), 2)]
        phases.append(_combined(x, terms, beyond, 1, x.shape[axis], axis) * (2 / sum(taps)))
    return torch.stack(phases, axis).flatten(axis - 1, axis)


def _combined(x: Tensor, terms: list[tuple[float, int]], beyond: int, step: int, count: int, axis: int) -> Tensor:
    """Σ weight · (x_start, x_{start + step}, …), `count` of them, with `beyond` zeros put before and after x."""
    if beyond:
        x = F.pad(x, (beyond, beyond) if axis == -1 else (0, 0, beyond, beyond))
    total = None
    for weight, start in terms:
        along = slice(start, start + step * (count - 1) + 1, step)
        part = weight * (x[..., along] if axis == -1 else x[..., along, :])
        total = part if total is None else total + part
    assert total is not None
    return total
