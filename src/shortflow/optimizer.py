"""Settings of the optimiser and of the averages of its weights, as a value."""

import math
from dataclasses import dataclass
from typing import Literal

from shortflow.errors import ShortflowError

__all__ = ["Optimizer"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam or one of its relatives, as published for the method.

    Args:
        algorithm: "adamw"; "radam", which corrects the step while the second moment is uncertain (consistency models
            and IMM on CIFAR-10); or "adam".
        lr, betas, eps, weight_decay: of the algorithm. The decay shrinks the weights directly with "adamw" and is
            added to the gradient with the other two, as in torch.
        clip: bound on the norm of the gradient; None: no clipping.
        warmup, cooldown: shares of the run over which the learning rate rises from 0 and falls to 0, linearly.
        ema: decay of the average of the weights that is sampled and saved. Early on the decay of step k is
            (1 + k)/(10 + k), until that exceeds `ema`, so that a short run does not average over its random start.
        ema_length: instead of `ema`, the relative length of an average with a power-function profile: the standard
            deviation of the averaged steps over the length of the run so far (sCM on ImageNet: 0.05).
            Source: EDM2 (arXiv 2312.02696), section 3.1.
        extra_ema: decays of further averages with the same early rule, saved beside the model as
            model-ema-0.9996.safetensors and so on.
    """

    algorithm: Literal["adamw", "radam", "adam"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    warmup: float = 0.0
    cooldown: float = 0.0
    ema: float = 0.9999
    ema_length: float | None = None
    extra_ema: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        positive, share = "must be positive and finite", "must be in [0, 1)"
        several = len(set(self.extra_ema)) == len(self.extra_ema)
        for name, good, rule in (
            ("algorithm", self.algorithm in ("adamw", "radam", "adam"), "must be adamw, radam or adam"),
            ("lr", 0 < self.lr < math.inf, positive),
            ("betas", all(0 <= beta < 1 for beta in self.betas), share),
            ("eps", 0 < self.eps < math.inf, positive),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "must be at least 0 and finite"),
            ("clip", self.clip is None or self.clip > 0, "must be positive, or null for none"),
            ("warmup", 0 <= self.warmup < 1, share),
            ("cooldown", 0 <= self.cooldown <= 1, "must be in [0, 1]"),
            ("ema", 0 <= self.ema < 1, share),
            # A profile of power 0, the plain mean of the run, has the length 1/√12.
            (
                "ema_length",
                self.ema_length is None or 0 < self.ema_length <= 12**-0.5,
                "must be in (0, 0.2886] or null",
            ),
            ("extra_ema", all(0 <= decay < 1 for decay in self.extra_ema) and several, f"{share}, each once"),
        ):
            if not good:
                raise ShortflowError(f"optimizer.{name} {rule}, got {getattr(self, name)}")
