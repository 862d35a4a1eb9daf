"""A recipe: an objective with the path, the parameterisation and whatever else makes up a published method.

Combinations of parts that make no sense are refused at construction (`IncompatibleParts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import (
    AverageVelocity,
    Conditioning,
    EDMSkip,
    FlowMap,
    LogStep,
    Parameterization,
    StartAndGap,
    TrigFlow,
)
from shortflow.losses import Adaptive
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear, Path, VarianceExploding, check_path
from shortflow.targets import Tangent
from shortflow.times import (
    Dyadic,
    GridPairs,
)

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published method as a value.

    Args:
        name, title, year, arxiv: what it is called and where it stands.
        path, parameterization, conditioning, objective: the parts.
        sigma_data: standard deviation that data are scaled to; None leaves them as they are (images in [−1, 1]).
        batches: "shuffled", or "class-consistent" (each group of rows shares one class).
        optimizer: the published optimiser settings.

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

    def __post_init__(self) -> None:
        check_path(self.path)
        self.parameterization.check(self.path, self.sigma_data or 1.0)
        self._check_parts()

    def _check_parts(self) -> None:
        law, ends = self.objective.times, self.objective.times.ends
        if isinstance(law, GridPairs) and (
            not isinstance(self.path, VarianceExploding) or self.path.sigma_max != law.grid.sigma_max
        ):
            raise IncompatibleParts(
                f"GridPairs draws noise levels up to {law.grid.sigma_max}, the path is {self.path}; "
                f"use VarianceExploding(sigma_max={law.grid.sigma_max})"
            )
        if isinstance(self.conditioning, LogStep) != isinstance(law, Dyadic) or (
            isinstance(self.conditioning, LogStep) and isinstance(law, Dyadic) and self.conditioning.steps != law.steps
        ):
            steps = law.steps if isinstance(law, Dyadic) else 128
            raise IncompatibleParts(
                f"{type(law).__name__} with {self.conditioning}: jumps of dyadic length and LogStep conditioning go "
                f"together; use Dyadic times with LogStep(steps={steps})"
            )
        scaled = isinstance(self.parameterization, TrigFlow | EDMSkip) or self.parameterization == AverageVelocity(
            normalize=True
        )
        if isinstance(self.objective.target, Tangent) and law.gap == "mixed" and scaled:
            raise IncompatibleParts(
                f"Tangent with {type(law).__name__} and {self.parameterization}: rows with r < t and rows with r = t "
                "would be in different units; use AverageVelocity() or Transfer(), or ToData times"
            )
        if not self.conditioning.second and ends == "any":
            raise IncompatibleParts(
                f"{type(law).__name__} draws many ends r, but {type(self.conditioning).__name__} tells the network t "
                "only; use StartAndGap"
            )

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
            ends=self.objective.times.ends,
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
