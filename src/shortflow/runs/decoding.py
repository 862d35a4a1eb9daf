"""The autoencoder that the latents of a model are decoded with: the one that they were made with, or none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortflow.data import DataSpec
from shortflow.data.encoders import Autoencoder, load_autoencoder
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import ConfigError, DataError
from shortflow.files import atomic_path

__all__ = ["Decoding", "check_decoder", "decoding", "save_latents", "verification"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How samples become images.

    Attributes:
        autoencoder: what decodes them; None: they are images or points already, or latents that nothing here decodes.
        note: why latents are not decoded; None where they are, or need not be.
        unverified: that nothing shows whether the autoencoder is that of the latents; None where its sum or its name
            does.
    """

    autoencoder: Autoencoder | None = None
    note: str | None = None
    unverified: str | None = None

    @property
    def decoded(self) -> bool:
        return self.note is None


def decoding(
    spec: DataSpec,
    source: str | None = None,
    encoder: str | None = None,
    *,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Decoding:
    """The autoencoder of a model of latents. It is known by its sum, wherever it lies, or else by its name.

    Args:
        source: where the run file says that it is (data.encoder).
        encoder: where the user says that it is; only this is fetched from a hub.

    Raises:
        ConfigError: if `encoder` or `source` is another autoencoder, or the model makes no latents.
        DataError: if there is none at `encoder`.
    """
    if spec.latent is None:
        if encoder is not None:
            raise ConfigError(f"this model makes {spec.kind}, which no autoencoder decodes; leave out {encoder}")
        return Decoding()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if encoder is not None:
        found = load_autoencoder(encoder, device, say=say)
        check_decoder(found, spec)
        return _with(found, spec.latent)
    reasons = []
    places = dict.fromkeys(each for each in (source, spec.latent.encoder) if each is not None)
    for place in places:
        try:
            found = load_autoencoder(place, device, download=False)
        except DataError as error:
            reasons.append(str(error))
            continue
        other = _another(found, spec.latent, spec.shape)
        if other is None:
            return _with(found, spec.latent)
        if place == source:
            raise ConfigError(f"data.encoder: {other}; give the folder of that one (--encoder), or null")
        reasons.append(other)
    return Decoding(
        note=f"latents are not decoded: {'; '.join(reasons)}. Give the folder of the autoencoder "
        f"{spec.latent.encoder}, with --encoder or as data.encoder"
    )


def verification(autoencoder: Autoencoder, latent: LatentSpec) -> str:
    """What shows that the autoencoder is that of the latents, for the record: "sha256", "name" or "not verified"."""
    if latent.sha256 is not None:
        return "sha256"
    return "name" if latent.agrees(autoencoder.name, autoencoder.sha256) else "not verified"


def _with(found: Autoencoder, latent: LatentSpec) -> Decoding:
    told = verification(found, latent) != "not verified"
    remark = (
        f"not verified: whether {found.name} is {latent.encoder}, which these latents belong to. Nobody has recorded "
        "the sum of theirs, and the name does not tell; another autoencoder of this shape makes images that are "
        "slightly wrong"
    )
    return Decoding(autoencoder=found, unverified=None if told else remark)


def check_decoder(autoencoder: Autoencoder, spec: DataSpec) -> None:
    """Raise `ConfigError` unless it is the autoencoder that the latents of a model were made with."""
    if spec.latent is None:
        raise ConfigError(f"this model makes {spec.kind}, which no autoencoder decodes; leave out {autoencoder.name}")
    other = _another(autoencoder, spec.latent, spec.shape)
    if other is not None:
        raise ConfigError(f"{other}; give the folder of the one that the latents were made with")


def _another(found: Autoencoder, latent: LatentSpec, shape: tuple[int, ...]) -> str | None:
    """What makes it another autoencoder than that of the latents, in words."""
    if latent.agrees(found.name, found.sha256) is False:
        sums = [f" (sha256 {each[:12]}…)" if latent.sha256 else "" for each in (found.sha256, latent.sha256 or "")]
        return (
            f"{found.name} is another autoencoder{sums[0]} than {latent.encoder}{sums[1]}, which the model was trained "
            "with"
        )
    pixels = (found.channels[0], *(side * found.factor for side in shape[1:]))
    if found.channels[1] != shape[0] or pixels != latent.pixels:
        return (
            f"{found.name} decodes latents of {found.channels[1]} channels to {found.factor} times their side, and the "
            f"model makes latents {shape} of images {latent.pixels}"
        )
    return None


def save_latents(path: Path, z: np.ndarray, labels: np.ndarray | None, spec: DataSpec) -> None:
    """Write latents as an .npz file: `latents` (n, c, h, w) as the decoder takes them, `labels`, and what they are, as
    texts and numbers that need no unpickling."""
    assert spec.latent is not None
    arrays: dict[str, Any] = {
        "latents": z,
        "encoder": np.array(spec.latent.encoder),
        "encoder_sha256": np.array(spec.latent.sha256 or ""),
        "scale": np.array(spec.latent.scale),
        "shift": np.array(spec.latent.shift),
    }
    if labels is not None:
        arrays["labels"] = labels
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
