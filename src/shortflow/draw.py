"""Every random number of one training step, with the frozen models that its targets may follow."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap
from shortflow.typing import Progress, Times

__all__ = ["Draw", "References", "Seen"]


@dataclass(frozen=True, kw_only=True)
class References:
    """Frozen models beside the network that is trained: none of them moves.

    Attributes:
        teacher: the model that is distilled (`--teacher`), on the path of the network that is trained.
        weak: a weaker model of the same data, for autoguidance (`--weak`).
    """

    teacher: FlowMap | None = None
    weak: FlowMap | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Where the network that targets are computed with has been asked already, by a pass that the step makes anyway.

    Attributes:
        place: the position of each row's outputs in the tensors below, −1 for none.
        output: the outputs at (x_t, t, r = t) of some rows, told what `Draw.inputs` says, without dropout.
        head: those of the velocity head, where it was asked, too.
    """

    place: Int[Tensor, "b"]
    output: Float[Tensor, "k ..."]
    head: Float[Tensor, "k ..."] | None = None


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Every random number of one training step, so that the loss is a pure function of (weights, draw).

    Attributes:
        x, eps, x_t: data, noise and the point x_t = α_t x + σ_t ε, all of shape (b, ...).
        times: (t, s, r) of each row.
        label: the class of each row before label dropout, or None.
        dropped: rows whose class is hidden from the network in every pass of the step.
        null_label: index of the "no class" row of the label table; None if there is none.
        coin: uniform numbers in [0, 1); a `Mixture` takes the plug-in velocity where coin < probability.
        guidance: (ω, low, high) of each row for networks that are told their guidance: the scale, and the window of t
            in which it acts; None for all others.
        dropout_seed: seed of all dropout masks of the step (see `shortflow.dropout`).
        progress: position in the run, for schedules.
        references: frozen models that targets may follow.
        seen: outputs at r = t that are known already; None for none.
    """

    x: Float[Tensor, "b ..."]
    eps: Float[Tensor, "b ..."]
    x_t: Float[Tensor, "b ..."]
    times: Times
    label: Int[Tensor, "b"] | None
    dropped: Bool[Tensor, "b"]
    coin: Float[Tensor, "b"]
    guidance: Float[Tensor, "b 3"] | None = None
    null_label: int | None = None
    dropout_seed: int = 0
    progress: Progress = Progress()
    references: References = field(default_factory=References)
    seen: Seen | None = None

    @property
    def condition(self) -> Int[Tensor, "b"] | None:
        """The class the network is told: `label`, with the null class on dropped rows."""
        if self.label is None or self.null_label is None:
            return self.label
        return torch.where(self.dropped, torch.full_like(self.label, self.null_label), self.label)

    def inputs(self, rows: Int[Tensor, "k"]) -> tuple[Int[Tensor, "k"] | None, Float[Tensor, "k 3"] | None]:
        """(class, guidance) that the network is told on the chosen rows."""
        label, guidance = self.condition, self.guidance
        return None if label is None else label[rows], None if guidance is None else guidance[rows]

    def velocity_guidance(self, rows: Int[Tensor, "k"], t: Float[Tensor, "k"]) -> Float[Tensor, "k 3"] | None:
        """The guidance with which the network is asked for its velocity u_{t,t} at time t: (ω̃, 0, 1).

        ω̃ = ω where t is inside the closed window of the row, and 1 (none) elsewhere; the window itself is told to be
        [0, 1], as it is on all rows with r = t that the velocity is trained on.
        """
        if self.guidance is None:
            return None
        omega, low, high = self.guidance[rows].unbind(1)
        acts = (t >= low) & (t <= high)
        zero, one = torch.zeros_like(omega), torch.ones_like(omega)
        return torch.stack([torch.where(acts, omega, one), zero, one], 1)

    @property
    def teacher(self) -> FlowMap:
        """The frozen model that is distilled.

        Raises:
            IncompatibleParts: if there is none.
        """
        if self.references.teacher is None:
            raise IncompatibleParts("this objective follows a teacher, and none was given; pass --teacher RUN")
        return self.references.teacher

    @property
    def weak(self) -> FlowMap:
        """The weaker model of autoguidance.

        Raises:
            IncompatibleParts: if there is none.
        """
        if self.references.weak is None:
            raise IncompatibleParts("this objective guides by a weaker model, and none was given; pass --weak RUN")
        return self.references.weak

    def told(self, frozen: FlowMap) -> Int[Tensor, "b"] | None:
        """The class that a frozen model is told: `label`, with its own null class on dropped rows where it has one."""
        if self.label is None or frozen.num_classes == 0:
            return None
        if frozen.null_label is None:
            return self.label
        return torch.where(self.dropped, torch.full_like(self.label, frozen.null_label), self.label)

    def seeing(
        self, rows: Int[Tensor, "k"], output: Float[Tensor, "k ..."], head: Float[Tensor, "k ..."] | None = None
    ) -> "Draw":
        """The draw with outputs of the chosen rows that are known already, see `Seen`."""
        place = torch.full((len(self.x),), -1, dtype=torch.long, device=self.x.device)
        place = place.index_copy(0, rows, torch.arange(len(rows), device=place.device))
        return replace(self, seen=Seen(place=place, output=output, head=head))

    def with_times(self, times: Times) -> "Draw":
        return replace(self, times=times)
