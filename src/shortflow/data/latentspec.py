"""What latents are: which autoencoder they belong to, and how they are scaled for a network.

    natural units = (z − shift_c)·scale_c  for channel c of a latent z, as the autoencoder's encoder gives it.

The one specification that data, checkpoints and samples share. Two of them either agree or are refused by name: a
network trained at a scale of 0.18125 and sampled at 0.18215 makes images that are slightly wrong, and nothing shows it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from shortflow.errors import DataError

__all__ = ["KNOWN", "LatentSpec", "in_short"]

KNOWN = ("sd-vae-ft-ema", "sd-vae-ft-mse")
"""The autoencoders of published one-step results on ImageNet. They differ in their weights alone: nothing but a sum or
a name tells one from the other."""

_TOLERANCE = 1e-9  # relative: decimals that were written and read again


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The autoencoder of latents and their natural units (see the module).

    Attributes:
        encoder: what the autoencoder was called when they were made: a name, or the path of a folder.
        sha256: of its weights and config (see `shortflow.data.encoders`); None where nobody has recorded it.
        pixels: shape of the images that they decode to, (c, h, w).
        shift, scale: one number for each channel of the latents.

    Raises:
        DataError: if a number is not finite, a scale not positive, or the counts differ.
    """

    encoder: str
    sha256: str | None
    pixels: tuple[int, int, int]
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.encoder.strip() or len(self.pixels) != 3 or min(self.pixels) < 1:
            raise DataError(f"latents need the name of an autoencoder and images (c, h, w), got {self}")
        if len(self.shift) != len(self.scale) or not self.scale:
            raise DataError(
                f"latents need a shift and a scale for each channel, got {len(self.shift)} and {len(self.scale)}"
            )
        if not (all(map(math.isfinite, self.shift + self.scale)) and min(self.scale) > 0):
            raise DataError(
                f"latents need finite shifts and positive finite scales, got shift {in_short(self.shift)} and scale "
                f"{in_short(self.scale)}"
            )

    @property
    def channels(self) -> int:
        return len(self.scale)

    def natural(self, z: Float[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n c h w"]:
        """Latents as the encoder gives them in natural units, in a new array."""
        x = np.array(z, dtype=np.float32)
        x -= _column(self.shift)
        x *= _column(self.scale)
        return x

    def latents(self, x: Float32[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n c h w"]:
        """Natural units as the latents that the decoder takes: the inverse of `natural`."""
        return x / _column(self.scale) + _column(self.shift)

    def moments(self, mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
        """Mean and standard deviation over all elements in natural units, of latents with these ones by channel."""
        centres = [(m - s) * k for m, s, k in zip(mean, self.shift, self.scale, strict=True)]
        squares = [(d * k) ** 2 + c**2 for d, k, c in zip(std, self.scale, centres, strict=True)]
        mean_of_all = sum(centres) / self.channels
        return mean_of_all, math.sqrt(max(0.0, sum(squares) / self.channels - mean_of_all**2))

    def in_words(self) -> str:
        """What they are latents of, and what is done to them: "of NAME, minus …, times …"."""
        minus = f"minus {in_short(self.shift)}, " if any(self.shift) else ""
        return f"of {self.encoder}, {minus}times {in_short(self.scale)}"

    @property
    def options(self) -> str:
        """The options of `shortflow encode` that give latents these units, to the last digit."""
        return f"--scale {_given(self.scale)} --shift {_given(self.shift)}"

    def agrees(self, encoder: str, sha256: str | None) -> bool | None:
        """Whether an autoencoder of this name and sum is that of these latents; None: nothing tells.

        Sums decide where both are recorded. Else names do, those of `KNOWN` wherever they stand in a path; of other
        names only equal ones tell anything, because a folder may be called as one likes.
        """
        if self.sha256 is not None and sha256 is not None:
            return self.sha256 == sha256
        mine, theirs = _known(self.encoder), _known(encoder)
        if mine is not None and theirs is not None:
            return mine == theirs
        return True if _last(self.encoder) == _last(encoder) else None

    def differences(self, other: "LatentSpec", names: tuple[str, str]) -> list[str]:
        """What keeps the two from being the same latents, in words; `names` say whose this one and the other one are.

        An autoencoder without a recorded sum is compared by its name, and another name is taken for another one.
        """
        mine, theirs = names
        found = []
        if not self.agrees(other.encoder, other.sha256):
            sums = None not in (self.sha256, other.sha256)
            a, b = (f" (sha256 {spec.sha256[:12]}…)" if sums and spec.sha256 else "" for spec in (self, other))
            found.append(f"the autoencoder of {mine} is {self.encoder}{a}, that of {theirs} is {other.encoder}{b}")
        found += self.units_apart(other, names)
        if self.pixels != other.pixels:
            found.append(f"the images of {mine} are {self.pixels}, those of {theirs} {other.pixels}")
        return found

    def units_apart(self, other: "LatentSpec", names: tuple[str, str]) -> list[str]:
        """Where scale or shift differ, in words, as in `differences`."""
        mine, theirs = names
        found = []
        for what in ("scale", "shift"):
            here, there = getattr(self, what), getattr(other, what)
            same = len(here) == len(there) and all(
                math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for a, b in zip(here, there, strict=True)
            )
            if not same:
                exact = in_short(here) == in_short(there)
                a, b = in_short(here, exact), in_short(there, exact)
                found.append(f"the {what} of {mine} is {a}, that of {theirs} is {b}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return {
            "encoder": self.encoder,
            "sha256": self.sha256,
            "pixels": list(self.pixels),
            "shift": list(self.shift),
            "scale": list(self.scale),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LatentSpec":
        """The spec that `to_dict` wrote.

        Raises:
            DataError: if keys are missing or unknown, or a value is of another kind.
        """
        known = {"encoder", "sha256", "pixels", "shift", "scale"}
        if not isinstance(values, Mapping) or set(values) != known:
            raise DataError(f"the description of latents must have {sorted(known)}, got {values!r:.200}")
        try:
            c, h, w = (int(side) for side in values["pixels"])
            return cls(
                encoder=str(values["encoder"]),
                sha256=None if values["sha256"] is None else str(values["sha256"]),
                pixels=(c, h, w),
                shift=tuple(float(value) for value in values["shift"]),
                scale=tuple(float(value) for value in values["scale"]),
            )
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the description of latents makes no sense ({error}): {values!r:.200}") from error


def in_short(values: Sequence[float], exact: bool = False) -> str:
    """The values as text, one number where all are equal; with six digits, or all that they have."""
    texts = [repr(value) if exact else f"{value:.6g}" for value in values]
    return texts[0] if values and all(value == values[0] for value in values) else f"[{', '.join(texts)}]"


def _given(values: Sequence[float]) -> str:
    return ",".join(map(repr, values if len(set(values)) > 1 else values[:1]))


def _column(values: Sequence[float]) -> Float32[np.ndarray, "c 1 1"]:
    return np.array(values, dtype=np.float32)[:, None, None]


def _last(name: str) -> str:
    """The last part of a name or a path: stabilityai/sd-vae-ft-ema and ./vaes/sd-vae-ft-ema are taken for the same."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()


def _known(name: str) -> str | None:
    """The one of `KNOWN` that a name or a path names, if it names one alone."""
    found = [known for known in KNOWN if known in name.lower()]
    return found[0] if len(found) == 1 else None
