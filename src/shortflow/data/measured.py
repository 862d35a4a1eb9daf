"""Mean and deviation of latents, channel by channel, from their moments."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

__all__ = ["Measured", "Moments"]

Moments = Float[np.ndarray, "n 2 k c h w"]

_AT_ONCE = 2**22  # numbers that are converted together


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Count, mean and sum of squared deviations of latents, for each channel, in float64.

    The latents are z = mean + std·ε, so that the variance over images and ε is that of the means plus the mean of std².
    """

    count: int
    mean: Float64[np.ndarray, "c"]
    squares: Float64[np.ndarray, "c"]

    @classmethod
    def of(cls, moments: Moments) -> "Measured":
        """Of the numbers as they are stored."""
        _, _, kinds, channels, *_ = moments.shape
        rows = max(1, _AT_ONCE // math.prod(moments.shape[1:]))
        total = cls(count=0, mean=np.zeros(channels), squares=np.zeros(channels))
        for first in range(0, len(moments), rows):
            part = moments[first : first + rows].astype(np.float64)
            by_channel = part[:, :, 0].swapaxes(0, 2).reshape(channels, -1)
            mean = by_channel.mean(axis=1)
            squares = np.square(by_channel - mean[:, None]).sum(axis=1)
            if kinds == 2:
                squares = squares + np.square(part[:, :, 1]).sum(axis=(0, 1, 3, 4))
            total = total.merged(cls(count=by_channel.shape[1], mean=mean, squares=squares))
        return total

    def merged(self, other: "Measured") -> "Measured":
        """Of both sets together (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        apart, share = other.mean - self.mean, other.count / count
        squares = self.squares + other.squares + apart**2 * self.count * share
        return Measured(count=count, mean=self.mean + apart * share, squares=squares)

    @property
    def std(self) -> Float64[np.ndarray, "c"]:
        return np.sqrt(self.squares / max(1, self.count))
