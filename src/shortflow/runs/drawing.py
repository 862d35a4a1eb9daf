"""How the samples that are scored are drawn: everything but their number and their numbers of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shortflow.config import to_plain
from shortflow.data.encoders import Autoencoder
from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap
from shortflow.hub import Model
from shortflow.runs.decoding import verification
from shortflow.runs.sampling import Window, guided
from shortflow.sample import Sampler, default_grid, default_sampler, grid_times

__all__ = ["Drawing"]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        guidance, window: those of `guided`.
        sampler, grid: None: those that are usual for the model.
        middle: the middle time of two steps, instead of the grid's.
        bf16: that of `draw`.
        autoencoder: decodes latents (see `shortflow.runs.decoding`).
        condition: what samples are told by in place of classes, in turn; no part of the record.
    """

    seed: int = 0
    guidance: float = 1.0
    window: Window = None
    sampler: Sampler | None = None
    grid: str | None = None
    middle: float | None = None
    bf16: bool = False
    autoencoder: Autoencoder | None = None
    condition: Tensor | None = None

    def grids(self, flow: FlowMap, steps: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """The grid of each number of steps: two steps have the middle time where there is one.

        Raises:
            SamplerError: if the network cannot be sampled on one of them, or not with this guidance.
        """
        if self.middle is not None and 2 not in steps:
            raise SamplerError(
                f"the middle time {self.middle:g} is that of 2 steps, which are not among {list(steps)}; add 2, or "
                "leave out the middle"
            )
        rule, acted = self._rule(flow), guided(flow, self.guidance, self.window)
        two = {} if self.middle is None else {2: grid_times(acted, 2, middle=self.middle)}
        found = {count: two.get(count) or grid_times(acted, count, self.grid) for count in steps}
        for times in found.values():
            rule.check(acted, times)
        return found

    def settings(self, flow: FlowMap, times: Sequence[float]) -> dict[str, Any]:
        """Those of `draw`, on a grid."""
        return {
            "times": times,
            "sampler": self._rule(flow),
            "seed": self.seed,
            "guidance": self.guidance,
            "window": self.window,
            "bf16": self.bf16,
            "autoencoder": self.autoencoder,
            **({} if self.condition is None else {"condition": self.condition}),
        }

    def record(self, model: Model) -> dict[str, Any]:
        """The settings as plain values, in full: what is left out is written as what it stands for."""
        found = {
            "model": str(model.path),
            "images_seen": model.images,
            "seed": self.seed,
            "guidance": self.guidance,
            "window": None if self.window is None else list(self.window),
            "sampler": to_plain(self._rule(model.flow)),
            "grid": self.grid or default_grid(model.flow),
            "middle": self.middle,
            "precision": "bf16" if self.bf16 else "fp32",
        }
        latent, decoder = model.spec.latent, self.autoencoder
        if latent is not None and decoder is not None:  # samples are divided by the scale before they are decoded
            found["autoencoder"] = {"name": decoder.name, "sha256": decoder.sha256}
            if (by := verification(decoder, latent)) != "sha256":
                found["autoencoder"]["verified"] = by
            found["latents"] = {"scale": list(latent.scale), "shift": list(latent.shift)}
        return found

    def _rule(self, flow: FlowMap) -> Sampler:
        return self.sampler or default_sampler(flow)
