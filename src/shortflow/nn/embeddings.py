"""What enters a network besides the point: times, classes and positions, as vectors.

    time      e(τ) = [cos(ω_j τ), sin(ω_j τ)],  ω_j = 10000^{−j/J}, j < J,  then Linear, SiLU, Linear
    class     a table of rows, the last of them "no class" where asked for
    vector    Linear, SiLU, Linear; sequence: the same of each token, plus a row for its place
    guidance  the sum of the embeddings of 1 − 1/ω and of the two ends of the interval, each like a time
    position  [e(column), e(row)] with e(p) = [sin(ω_j p), cos(ω_j p)], fixed

Times enter as they are, in [0, 1] and not in thousands: with ω_0 = 1 the highest frequency is one, so that the time
derivative of the network stays of the size of the network. It is lost in half precision, hence float32 at least.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn import functional as F

from shortflow.errors import ShortflowError
from shortflow.typing import condition_words

__all__ = [
    "GuidanceEmbedding",
    "LabelEmbedding",
    "SequenceEmbedding",
    "Spectrum",
    "TimeEmbedding",
    "VectorEmbedding",
    "full_precision",
    "position_embedding",
    "precise_linear",
]

Spectrum = Literal["positional", "fourier"]

BASE = 10_000.0


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast does nothing on `device`."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def precise_linear(layer: nn.Linear, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
    """`layer(x)` in the precision of x, whatever the precision the weights are stored in."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


class TimeEmbedding(nn.Module):
    """A vector of `width` numbers for each time: Linear(SiLU(Linear([cos(ω_j τ), sin(ω_j τ)]))) with τ = scale · time.

    Computed in float32, or in float64 where the times or the weights are, also under autocast.

    Args:
        width: length of the result.
        frequencies: length of the sinusoidal vector, twice the number J of the frequencies.
        scale: multiplies the time, τ = scale · time. Time derivatives grow with it.
        spectrum: the frequencies. "positional": ω_j = 10000^{−j/J}, the largest of which is 1. "fourier":
            2π times normal numbers, as in NCSN++ (arXiv 2011.13456), where the scale is 16; here the J quantiles of
            |N(0, 1)| stand for J draws, ω_j = 2π √2 erf⁻¹((j + ½)/J), so that nothing has to be kept.

    Raises:
        ShortflowError: if `frequencies` is not a positive even number, or a time comes in half precision.
    """

    def __init__(
        self, width: int, frequencies: int = 256, scale: float = 1.0, spectrum: Spectrum = "positional"
    ) -> None:
        super().__init__()
        if frequencies < 2 or frequencies % 2:
            raise ShortflowError(f"frequencies must be a positive even number (cosines and sines), got {frequencies}")
        self.frequencies, self.scale, self.spectrum = frequencies, scale, spectrum
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return first.weight.dtype

    def sinusoids(self, time: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """[cos(ω_j τ), sin(ω_j τ)], in the precision of `time`."""
        half = self.frequencies // 2
        # Made on the spot: as a buffer it would be rounded whenever the network is cast.
        index = torch.arange(half, device=time.device, dtype=time.dtype)
        if self.spectrum == "fourier":
            omega = 2 * math.pi * math.sqrt(2) * torch.erfinv((index + 0.5) / half)
        else:
            omega = BASE ** (-index / half)
        angle = self.scale * time[:, None] * omega
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def silence(self) -> None:
        """Make every result zero until training changes that.

        The last layer is zeroed, which leaves it a gradient: that of its weights is the hidden layer's values.
        """
        last = self.mlp[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, time: Float[Tensor, "b"]) -> Float[Tensor, "b d"]:
        if time.dtype not in (torch.float32, torch.float64):
            raise ShortflowError(
                f"times must be float32 or float64, got {time.dtype}: in half precision the time derivative is lost; "
                "pass time.float()"
            )
        first, second = self.mlp[0], self.mlp[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        with full_precision(time.device):
            time = time.to(torch.promote_types(time.dtype, first.weight.dtype))
            return precise_linear(second, F.silu(precise_linear(first, self.sinusoids(time))))


class GuidanceEmbedding(nn.Module):
    """A vector of `width` numbers for each guidance (ω, low, high): E_ω(1 − 1/ω) + E_low(low) + E_high(high).

    ω ≥ 1 is the scale of guidance and [low, high] the times at which it acts; 1 − 1/ω is 0 without guidance and below 1
    for any scale (improved MeanFlow, arXiv 2512.02012). The precision is that of `TimeEmbedding`.

    Raises:
        ShortflowError: if a guidance is no row of three numbers, comes in half precision, or (where the values can be
            read for free) has a scale that is not positive.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.omega, self.low, self.high = TimeEmbedding(width), TimeEmbedding(width), TimeEmbedding(width)

    def forward(self, guidance: Float[Tensor, "b 3"]) -> Float[Tensor, "b d"]:
        if guidance.ndim != 2 or guidance.shape[1] != 3:
            raise ShortflowError(
                f"guidance must hold (scale, low, high) for each row, shape (b, 3), got {tuple(guidance.shape)}"
            )
        omega, low, high = guidance.unbind(1)
        if _readable(omega) and not bool((omega > 0).all()):
            raise ShortflowError(
                f"the scale of guidance must be positive (1 means none), got {float(omega.min())}; "
                "it is the first number of each row"
            )
        return self.omega(1 - 1 / omega) + self.low(low) + self.high(high)


class LabelEmbedding(nn.Module):
    """A vector of `width` numbers for each class; with `null`, row `num_classes` stands for "no class".

    Labels on the CPU are checked. On an accelerator the check would make the host wait at every call; there an index
    out of range ends in the device's own assertion.

    Raises:
        ShortflowError: if there is no class, or a label is out of range.
    """

    def __init__(self, num_classes: int, width: int, null: bool) -> None:
        super().__init__()
        if num_classes < 1:
            raise ShortflowError(f"a table of classes needs num_classes ≥ 1, got {num_classes}")
        self.num_classes, self.null = num_classes, null
        self.embedding_table = nn.Embedding(num_classes + int(null), width)

    # Wide on purpose, here and below: what does not fit is told in words.
    def forward(self, label: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        if label.is_floating_point() or label.ndim != 1:
            raise ShortflowError(
                f"the network is told one of {self.num_classes} classes, as an integer for each row, got "
                f"{label.dtype} of shape {tuple(label.shape)}; for vectors and sequences build it with condition="
            )
        if _readable(label):
            low, high = int(label.min()), int(label.max())
            if low < 0 or high >= self.embedding_table.num_embeddings:
                null = f' ({self.num_classes} is "no class")' if self.null else ' (the network has no "no class" row)'
                raise ShortflowError(
                    f"label {low if low < 0 else high} is out of range: valid labels are "
                    f"0 to {self.embedding_table.num_embeddings - 1}{null}"
                )
        return self.embedding_table(label)


class _ConditionEmbedding(nn.Module):
    """What the embeddings of vectors and of sequences share.

    Args:
        shape: of a row's condition, (d,) or (n, d).
        width: length of the results.
        null: have a vector of its own for what is not there.
    """

    def __init__(self, shape: tuple[int, ...], width: int, null: bool) -> None:
        super().__init__()
        self.shape = shape
        self.mlp = nn.Sequential(nn.Linear(shape[-1], width), nn.SiLU(), nn.Linear(width, width))
        # Tables of a row, so that they start like the tables of classes.
        self.null = nn.Embedding(1, width) if null else None

    def _there(self, label: Tensor) -> Bool[Tensor, "..."]:
        """Which vectors or tokens are there.

        Raises:
            ShortflowError: if the conditions have another shape, or one is not there and nothing stands for none.
        """
        vector = len(self.shape) == 1
        fits = label.ndim == 1 + len(self.shape) and label.shape[-1] == self.shape[-1]
        if not label.is_floating_point() or not fits or not (vector or 1 <= label.shape[1] <= self.shape[0]):
            raise ShortflowError(
                f"the network is told {condition_words(self.shape)} for each row, got {label.dtype} of shape "
                f"{tuple(label.shape)}"
            )
        there = ~label.isnan().any(-1)
        known = there if vector else there.any(1)
        if self.null is None and _readable(known) and not bool(known.all()):
            raise ShortflowError(
                "a condition is not there (NaN), and the network has nothing that stands for none; give every row one, "
                "or build the network with null_class=True"
            )
        return there

    def _embedded(self, label: Tensor) -> Tensor:
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return self.mlp(label.to(first.weight.dtype))


class VectorEmbedding(_ConditionEmbedding):
    """A vector of `width` numbers for each vector of d numbers: Linear(SiLU(Linear(y))), or a learned one for NaN.

    Raises:
        ShortflowError: if the vectors are of another length, or (where that can be seen for free) one is NaN and
            nothing stands for it. Where it cannot, the result is NaN.
    """

    def forward(self, label: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b width"]:
        there = self._there(label)[:, None]
        if self.null is None:
            return self._embedded(label)
        return torch.where(there, self._embedded(torch.where(there, label, 0.0)), self.null.weight)


class SequenceEmbedding(_ConditionEmbedding):
    """(tokens of `width` numbers, which of them are there) for sequences of up to n tokens of d numbers.

    Token i becomes Linear(SiLU(Linear(y_i))) + p_i with a learned vector p_i of its place. Tokens of NaNs are not
    there; where all of a row's are, a learned one stands in place of the first.

    Raises:
        ShortflowError: if there are more tokens, or of other length, or (where that can be seen for free) a row has
            none and nothing stands for it.
    """

    def __init__(self, shape: tuple[int, ...], width: int, null: bool) -> None:
        super().__init__(shape, width, null)
        self.positions = nn.Embedding(shape[0], width)

    def forward(
        self, label: Shaped[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "b tokens width"], Bool[Tensor, "b tokens"]]:
        there = self._there(label)
        tokens = self._embedded(torch.where(there[..., None], label, 0.0)) + self.positions.weight[: label.shape[1]]
        if self.null is None:
            return tokens, there
        place = ~there.any(1, keepdim=True) & (torch.arange(label.shape[1], device=label.device) == 0)
        return torch.where(place[..., None], self.null.weight, tokens), there | place


def _readable(value: Tensor) -> bool:
    """Whether the values can be looked at for free: on the CPU, not being traced, not an axis of vmap, not empty."""
    if value.device.type != "cpu" or value.numel() == 0 or torch.compiler.is_compiling():
        return False
    return not is_batchedtensor(value)


def position_embedding(rows: int, columns: int, width: int) -> Float[Tensor, "n d"]:
    """Fixed vectors of the rows · columns positions of a grid, row by row: shape (rows · columns, width).

    The first half of a vector is [sin(ω_j p), cos(ω_j p)] of the column p, the second half that of the row, with
    ω_j = 10000^{−j/J} and J = width/4 frequencies (the order of the published DiT and SiT weights).

    Raises:
        ShortflowError: if `width` is not a positive multiple of 4.
    """
    if width < 4 or width % 4:
        raise ShortflowError(f"two-dimensional positions need a width that is a positive multiple of 4, got {width}")
    count = width // 4
    omega = BASE ** (-torch.arange(count, dtype=torch.float64) / count)

    def vectors(positions: Float[Tensor, "p"]) -> Float[Tensor, "p h"]:
        angle = positions[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    column = vectors(torch.arange(columns, dtype=torch.float64)).expand(rows, columns, 2 * count)
    row = vectors(torch.arange(rows, dtype=torch.float64))[:, None].expand(rows, columns, 2 * count)
    return torch.cat([column, row], dim=2).reshape(rows * columns, width).to(torch.get_default_dtype())
