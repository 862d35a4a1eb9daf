"""A recipe: an objective with the path, the parameterisation and whatever else makes up a published method.

Combinations of parts that make no sense are refused at construction (`IncompatibleParts`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import (
    AverageVelocity,
    Conditioning,
    FlowMap,
    JumpFlag,
    LogStep,
    Parameterization,
    StartAndGap,
)
from shortflow.losses import Adaptive
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear, Path, VarianceExploding, check_path
from shortflow.targets import Along, Tangent

__all__ = ["Published", "Recipe"]


def noise_levels(part: Any) -> Iterator[tuple[str, float]]:
    """(name, σ_max) of every part of a law of times that counts time in noise levels over σ_max."""
    for f in fields(part):
        value = getattr(part, f.name)
        if f.name == "sigma_max":
            yield type(part).__name__, value
        elif is_dataclass(value):
            yield from noise_levels(value)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a method was trained with, apart from the objective: for the record, not for the run.

    Args:
        batch, steps: images a step, optimiser steps.
        dropout: of the network.
        network: what it was, and on which data.
    """

    batch: int
    steps: int
    dropout: float = 0.0
    network: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published method as a value.

    Args:
        name, title, year, arxiv: what it is called and where it stands.
        path, parameterization, conditioning, objective: the parts.
        sigma_data: standard deviation that data are scaled to; None leaves them as they are (images in [−1, 1]).
        batches: "shuffled", or "class-consistent" (each group of rows shares one class).
        optimizer: the published optimiser settings.
        published: batch, steps and network of the published run.

    Raises:
        IncompatibleParts: if parts do not fit together.
    """

    name: str
    title: str = ""
    year: int = 0
    arxiv: str = ""
    path: Path = Linear()
    parameterization: Parameterization = AverageVelocity()
    conditioning: Conditioning = StartAndGap()
    sigma_data: float | None = None
    objective: Objective = Objective()
    batches: Literal["shuffled", "class-consistent"] = "shuffled"
    optimizer: Optimizer = Optimizer()
    published: Published | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        self.parameterization.check(self.path, self.sigma_data or 1.0)
        self._check_parts()

    def _check_parts(self) -> None:
        law, target, told = self.objective.times, self.objective.target, self.conditioning
        name = type(law).__name__
        for part, sigma_max in noise_levels(law):
            if not isinstance(self.path, VarianceExploding) or self.path.sigma_max != sigma_max:
                raise IncompatibleParts(
                    f"{part} draws noise levels up to {sigma_max}, the path is {self.path}; "
                    f"use VarianceExploding(sigma_max={sigma_max})"
                )
        steps = getattr(law, "steps", 128)
        if isinstance(told, LogStep) != (law.ends == "dyadic") or (isinstance(told, LogStep) and told.steps != steps):
            raise IncompatibleParts(
                f"{name} with {told}: jumps of dyadic length and LogStep conditioning go together; use Dyadic times "
                f"with LogStep(steps={steps if law.ends == 'dyadic' else 128})"
            )
        if isinstance(told, JumpFlag) and not isinstance(target, Along):
            raise IncompatibleParts(
                f"JumpFlag tells the network no more of r than that it is below t, but {type(target).__name__} depends "
                "on r; use StartAndGap, or the target Along"
            )
        if isinstance(target, Tangent) and law.gap == "mixed" and not self._in_velocity_units:
            raise IncompatibleParts(
                f"Tangent with {name} and {self.parameterization}: rows with r < t and rows with r = t "
                "would be in different units; use AverageVelocity() or Transfer(), or ToData times"
            )
        if not told.tells_end and (law.ends == "any" or law.gap == "mixed"):
            raise IncompatibleParts(
                f"{name} draws many ends r, but {type(told).__name__} tells the network t only; use StartAndGap"
            )

    @property
    def _in_velocity_units(self) -> bool:
        """Whether an output at r = t is the velocity itself, on this path."""
        t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        a, b = self.parameterization.rates(self.path, self.sigma_data or 1.0, t)
        return bool((a == 0).all() and (b == 1).all())

    @property
    def null_class(self) -> bool:
        """Whether the network needs a row for "no class"."""
        return self.objective.label_dropout > 0

    @property
    def log_variance(self) -> bool:
        """Whether the network needs the log-variance head."""
        return self.objective.weighting.learned

    def flow_map(self, network: nn.Module) -> FlowMap:
        """The network as the flow map that this recipe trains."""
        return FlowMap(
            network,
            self.path,
            self.parameterization,
            self.conditioning,
            sigma_data=self.sigma_data or 1.0,
            ends=self.objective.ends,
            span=self.objective.times.span,
            guided=self.objective.guided,
            told=self.objective.guidance is not None,
            lowest=self.objective.lowest,
        )

    def unconditional(self) -> "Recipe":
        """The recipe for data without classes: no guidance, no label dropout, shuffled batches."""
        return replace(self, objective=self.objective.unconditional(), batches="shuffled")

    def notes(self) -> Sequence[str]:
        """Remarks on choices that are allowed but seldom meant."""
        parts = self.objective.weightings
        remarks = []
        if self.log_variance and any(isinstance(part, Adaptive) and part.power == 1 for part in parts):
            remarks.append(
                "the adaptive weight with power 1 brings every loss to about 1, so the variational weight after it "
                "has little left to do (its optimum is near 0)"
            )
        return remarks
