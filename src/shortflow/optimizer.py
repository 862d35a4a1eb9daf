"""Settings of the optimiser, as a value."""

from dataclasses import dataclass

from shortflow.errors import ShortflowError

__all__ = ["Optimizer"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW as published for the method.

    Args:
        lr, betas, weight_decay: of AdamW.
        clip: bound on the norm of the gradient; None: no clipping.
        warmup, cooldown: shares of the run over which the learning rate rises from 0 and falls to 0, linearly.
        ema: decay of the average of the weights that is sampled and saved. Early on the decay of step k is
            (1 + k)/(10 + k), until that exceeds `ema`, so that a short run does not average over its random start.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    warmup: float = 0.0
    cooldown: float = 0.0
    ema: float = 0.9999

    def __post_init__(self) -> None:
        for name, good in {
            "lr": self.lr > 0,
            "betas": all(0 <= beta < 1 for beta in self.betas),
            "weight_decay": self.weight_decay >= 0,
            "clip": self.clip is None or self.clip > 0,
            "warmup": 0 <= self.warmup < 1,
            "cooldown": 0 <= self.cooldown <= 1,
            "ema": 0 <= self.ema < 1,
        }.items():
            if not good:
                raise ShortflowError(f"optimizer.{name} = {getattr(self, name)} is impossible")
