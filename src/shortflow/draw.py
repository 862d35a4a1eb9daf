"""Every random number of one training step, with the frozen models that its targets may follow."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap
from shortflow.rows import Chosen, Rows, chosen, count
from shortflow.typing import Condition, Progress, Times, expand

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
        rows: those that it has been asked for.
        output: the outputs at (x_t, t, r = t) of these rows, told what `Draw.inputs` says, without dropout.
        head: those of the velocity head, where it was asked, too.
    """

    rows: Rows
    output: Float[Tensor, "k ..."]
    head: Float[Tensor, "k ..."] | None = None


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Every random number of one training step, so that the loss is a pure function of (weights, draw).

    Attributes:
        x, eps, x_t: data, noise and the point x_t = α_t x + σ_t ε, all of shape (b, ...).
        times: (t, s, r) of each row.
        label: the class or other condition of each row before label dropout, or None.
        dropped: rows whose condition is hidden from the network in every pass of the step.
        null_label: what stands for no condition, see `FlowMap.null_label`; None if nothing does.
        coin: uniform numbers in [0, 1); a `Mixture` takes the plug-in velocity where coin < probability.
        guidance: (ω, low, high) of each row for networks that are told their guidance: the scale, and the window of t
            in which it acts; None for all others.
        dropout_seed: seed of all dropout masks of the step (see `shortflow.dropout`); a tensor in a compiled step.
        progress: position in the run, for schedules.
        references: frozen models that targets may follow.
        seen: outputs at r = t that are known already; None for none.
        jumps: how many rows jump, where that is known without looking at the times; these are the first ones. None
            where they are at any places.
        counted: a pass for some of the rows is made for them alone, which takes counting them. Else it is made for all
            rows, and no shape depends on the draw (see `shortflow.rows`).
    """

    x: Float[Tensor, "b ..."]
    eps: Float[Tensor, "b ..."]
    x_t: Float[Tensor, "b ..."]
    times: Times
    label: Condition | None
    dropped: Bool[Tensor, "b"]
    coin: Float[Tensor, "b"]
    guidance: Float[Tensor, "b 3"] | None = None
    null_label: int | float | None = None
    dropout_seed: int | Int[Tensor, ""] = 0
    progress: Progress = Progress()
    references: References = field(default_factory=References)
    seen: Seen | None = None
    jumps: int | None = None
    counted: bool = True

    @property
    def condition(self) -> Condition | None:
        """What the network is told: `label`, hidden on dropped rows."""
        return self._hidden(self.null_label)

    def _hidden(self, null: int | float | None) -> Condition | None:
        """The conditions, with `null` on dropped rows."""
        if self.label is None or null is None:
            return self.label
        return torch.where(expand(self.dropped, self.label), torch.full_like(self.label, null), self.label)

    def inputs(self, rows: Rows) -> tuple[Shaped[Tensor, "k ..."] | None, Float[Tensor, "k 3"] | None]:
        """(condition, guidance) that the network is told on the chosen rows."""
        label, guidance = self.condition, self.guidance
        return None if label is None else label[rows], None if guidance is None else guidance[rows]

    def velocity_guidance(self, rows: Rows, t: Float[Tensor, "k"]) -> Float[Tensor, "k 3"] | None:
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

    def told(self, frozen: FlowMap) -> Condition | None:
        """What a frozen model is told: `label`, hidden in its own way on dropped rows where it has one."""
        return self._hidden(frozen.null_label) if frozen.conditional else None

    def seeing(self, rows: Rows, output: Float[Tensor, "k ..."], head: Float[Tensor, "k ..."] | None = None) -> "Draw":
        """The draw with outputs of the chosen rows that are known already, see `Seen`."""
        return replace(self, seen=Seen(rows=rows, output=output, head=head))

    @property
    def everything(self) -> Rows:
        """All rows."""
        return slice(0, len(self.x))

    def kinds(self, rows: Rows) -> tuple[Rows, Rows]:
        """(the places among `rows` of those with r < t, the places of the others)."""
        n, found = count(rows), None
        if self.jumps in (0, len(self.x)):
            found = n if self.jumps else 0
        elif self.jumps is not None and isinstance(rows, slice):
            found = min(max(self.jumps - rows.start, 0), n)
        if found is not None:
            return slice(0, found), slice(found, n)
        jumps = self.times.bootstrap[rows]
        return jumps.nonzero()[:, 0], (~jumps).nonzero()[:, 0]

    def chosen(self, mask: Bool[Tensor, "k"]) -> Chosen:
        """The rows where the mask is true, in the layout of the draw."""
        return chosen(mask, self.counted)

    def with_times(self, times: Times) -> "Draw":
        """The draw at other times."""
        return replace(self, times=times, jumps=None)
