"""A recipe: an objective with the path, the parameterisation and whatever else makes up a published method.

Combinations of parts that make no sense are refused at construction (`IncompatibleParts`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from shortflow.compatibility import dyadic_steps, parts_of, two_steps
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import (
    AverageVelocity,
    Conditioning,
    Denoiser,
    FlowMap,
    JumpFlag,
    LogStep,
    Parameterization,
    StartAndGap,
)
from shortflow.losses import Adaptive, ByTime
from shortflow.nn.conditioning import ConditionedNetwork
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear, Path, VarianceExploding, check_path
from shortflow.targets import Along, Secant, Split, Tangent, Target, Terminal
from shortflow.times.base import Ends
from shortflow.velocity import Own

__all__ = ["Published", "Recipe"]


def noise_levels(part: Any) -> Iterator[tuple[str, float]]:
    """(name, σ_max) of every part of a law of times that counts time in noise levels over σ_max."""
    for f in fields(part):
        value = getattr(part, f.name)
        if f.name == "sigma_max":
            yield type(part).__name__, value
        elif is_dataclass(value):
            yield from noise_levels(value)


def _moves(part: Target) -> bool:
    """Whether the target moves the output by a rate of the state."""
    return isinstance(part, Terminal) and not part.through


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a method was trained with, apart from the objective: for the record, not for the run.

    Args:
        batch, steps: images a step, optimiser steps; None where they are not established.
        dropout: of the network; None where it is not established.
        network: what it was, and on which data, as far as that is established.
    """

    batch: int | None = None
    steps: int | None = None
    dropout: float | None = None
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
        if self.sigma_data is not None and not (self.sigma_data > 0 and math.isfinite(self.sigma_data)):
            raise IncompatibleParts(
                f"sigma_data must be a positive finite number, got {self.sigma_data}; use null for data as they are"
            )
        check_path(self.path)
        self.parameterization.check(self.path, self.sigma_data or 1.0)
        self._check_parts()

    def _check_parts(self) -> None:
        objective, told = self.objective, self.conditioning
        law, target = objective.times, objective.target
        name = type(law).__name__
        for part, sigma_max in noise_levels(law):
            if not isinstance(self.path, VarianceExploding) or self.path.sigma_max != sigma_max:
                raise IncompatibleParts(
                    f"{part} draws noise levels up to {sigma_max}, the path is {self.path}; "
                    f"use VarianceExploding(sigma_max={sigma_max})"
                )
        dyadic = dyadic_steps(law)
        if (told.steps if isinstance(told, LogStep) else None) != dyadic:
            raise IncompatibleParts(
                f"{name} with {told}: jumps of dyadic length and LogStep conditioning go together; use Dyadic times "
                f"with LogStep(steps={dyadic or 128})"
            )
        if isinstance(told, JumpFlag) and not isinstance(target, Along):
            raise IncompatibleParts(
                f"JumpFlag tells the network no more of r than that it is below t, but {type(target).__name__} depends "
                "on r; use StartAndGap, or the target Along"
            )
        if isinstance(told, JumpFlag) and not (self.ends == "zero" or self._straight):
            raise IncompatibleParts(
                f"JumpFlag with {type(self.parameterization).__name__} on {type(self.path).__name__}: the output of a "
                "straight jump would depend on its end r, which the network is not told; use Transfer(), whose output "
                "is the velocity on every path, or StartAndGap"
            )
        self._check_units()
        self._check_ends()
        self._check_weights()
        if not told.tells_end and (law.ends == "any" or law.gap == "mixed"):
            raise IncompatibleParts(
                f"{name} draws many ends r, but {type(told).__name__} tells the network t only; use StartAndGap"
            )

    def _check_units(self) -> None:
        """Raise `IncompatibleParts` where rows with r < t and rows with r = t would be compared in different units."""
        target, name = self.objective.target, type(self.objective.times).__name__
        by_rate = [part for part in parts_of(target) if type(part) in (Tangent, Secant) or _moves(part)]
        if by_rate and self.objective.times.gap == "mixed" and not self._in_velocity_units:
            raise IncompatibleParts(
                f"{type(by_rate[0]).__name__} with {name} and {self.parameterization}: rows with r < t and rows with "
                "r = t would be in different units; use AverageVelocity() or Transfer()"
                + (", or ToData times" if isinstance(target, Tangent) else "")
            )

    def _check_ends(self) -> None:
        """Raise `IncompatibleParts` where a velocity is asked at t = 0 that the parameterisation has not."""
        target, law = self.objective.target, self.objective.times
        inner, steps = target.bootstrap if isinstance(target, Split) else target, two_steps(target)
        asked = isinstance(inner, Terminal) and isinstance(inner.velocity, Own)
        asked |= steps is not None and steps.solver == "heun" and isinstance(steps.first, Own)
        if asked and isinstance(self.parameterization, Denoiser) and law.span[0] == 0:
            raise IncompatibleParts(
                f"{type(target).__name__} asks for the network's velocity at the ends of steps, down to t = 0, where "
                "that of Denoiser divides by zero; use Transfer() or SimpleEDM()"
            )

    def _check_weights(self) -> None:
        """Raise `IncompatibleParts` where a weight of the times has no value on this path."""
        law, ends = self.objective.times, torch.linspace(0, 1, 101, dtype=torch.float64)
        for part in self.objective.weightings:
            if not isinstance(part, ByTime):
                continue
            if part.needs_step and not bool((self.path.sigma(ends).diff() > 0).all()):
                raise IncompatibleParts(
                    f"ByTime(rule={part.rule!r}) divides by σ_t − σ_s, but σ does not grow throughout on {self.path}; "
                    "use rule='inverse-gap', or a path of growing σ"
                )
            if part.rule == "imm" and part.power < 1 and law.span[1] == 1 and float(self.path.alpha(ends)[-1]) < 1e-6:
                raise IncompatibleParts(
                    f"ByTime(rule='imm', power={part.power:g}) is infinite at t = 1, where α = 0; use a power of 1 or "
                    "more, or times that end before, as GroupedJumps"
                )

    @property
    def ends(self) -> Ends:
        """The jumps that the network may be asked for; coupled pairs have straight flows, which one flag tells."""
        return self.objective.ends if isinstance(self.conditioning, JumpFlag) else self.objective.times.ends

    @property
    def _straight(self) -> bool:
        """Whether the output that carries a point along a straight pair (x, ε) is the same for every end r."""
        t = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.9, 0.9], dtype=torch.float64)
        r = torch.tensor([0.0, 0.2, 0.4, 0.0, 0.3, 0.7], dtype=torch.float64)
        a, b = self.parameterization.coefficients(self.path, self.sigma_data or 1.0, t, r)
        a_path, b_path = self.path.transfer(t, r)
        # F = (ā − a)/b x + b̄/b v
        return all(
            torch.allclose(c.reshape(2, 3), c.reshape(2, 3)[:, :1], 1e-9, 1e-9) for c in ((a_path - a) / b, b_path / b)
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
        """The network as the flow map that this recipe trains.

        Raises:
            IncompatibleParts: if the network takes other inputs, or lacks a head that the objective trains.
        """
        self._check_network(network)
        return FlowMap(
            network,
            self.path,
            self.parameterization,
            self.conditioning,
            sigma_data=self.sigma_data or 1.0,
            ends=self.ends,
            span=self.objective.times.span,
            guided=self.objective.guided,
            told=self.objective.guidance is not None,
            lowest=self.objective.lowest,
        )

    def _check_network(self, network: nn.Module) -> None:
        if not isinstance(network, ConditionedNetwork):  # others are free to keep the contract in their own way
            return
        objective = self.objective
        wrong = {
            "second_time": (network.second_time, self.conditioning.second),
            "guidance": (network.guidance, objective.guidance is not None),
            "velocity_head": (network.velocity_head, network.velocity_head or objective.velocity_head),
            "log_variance": (network.logvar_linear is not None, network.logvar_linear is not None or self.log_variance),
        }
        for what, (has, needs) in wrong.items():
            if has != needs:
                raise IncompatibleParts(
                    f"{self.name} with {type(network).__name__}: the network was built with {what}={has}, which does "
                    f"not fit the recipe; build it with {what}={needs}"
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
