"""What stands for dx_t/dt in the first step of a target.

- conditional: v_c = α' x + σ' ε, unbiased for the marginal velocity, with the variance of (x, ε) given x_t;
- plug-in: the marginal velocity of the mini-batch, v̂ = E[v_c | x_t, batch] (Rao–Blackwell: unbiased, less variance);
- a mixture of two, row by row;
- the network's own velocity u_{t,t}, which needs rows at r = t that see the data;
- that of a frozen teacher (distillation), guided by its unconditional velocity or by a weaker model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import no_dropout, shared_dropout
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.paths import Path
from shortflow.plugin import identities, plug_in_velocity, plug_in_weights, pooled
from shortflow.rows import Chosen, Rows, indices, within

__all__ = [
    "Conditional",
    "FieldVelocity",
    "Mixture",
    "Own",
    "PlugIn",
    "Reference",
    "Velocity",
    "check_window",
    "plug_in_velocity",
    "plug_in_weights",
]

State = Float[Tensor, "b ..."]


def check_window(name: str, window: tuple[float, float]) -> None:
    """Raise `IncompatibleParts` for a guidance window that contains no time."""
    low, high = window
    if not 0 <= low < high <= 1:
        raise IncompatibleParts(
            f"{name}: the guidance window {list(window)} is empty or outside [0, 1]; give [low, high] with low < high"
        )


class Velocity(ABC):
    """A velocity at (x_t, t) for the rows of a draw, without gradient."""

    @property
    def grounded(self) -> bool:
        """Whether data or a frozen teacher enter: a network that follows only itself learns nothing."""
        return True

    @property
    def own(self) -> bool:
        """Whether the teacher's own velocity may be a part of it: a prediction with r = t knows that already."""
        return True

    @property
    def follows(self) -> frozenset[str]:
        """The frozen models it needs, of "teacher" and "weak"."""
        return frozenset()

    @abstractmethod
    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        """v of every row, shape (b, ...)."""

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> Float[Tensor, "k ..."]:
        """v of the chosen rows; overridden where fewer rows cost less."""
        return self(teacher, draw)[rows]

    def with_direction(
        self, direction: "Velocity", teacher: FlowMap, draw: Draw, rows: Rows, jump: Rows
    ) -> tuple[Float[Tensor, "k ..."], Float[Tensor, "j ..."]]:
        """(v of the chosen rows, `direction` of rows[jump]); overridden where one pass gives both."""
        return self.on(teacher, draw, rows), direction.on(teacher, draw, within(rows, jump))


class FieldVelocity(Velocity):
    """A velocity that is known at every point, not only at those of the draw."""

    @abstractmethod
    def field(
        self,
        teacher: FlowMap,
        draw: Draw,
        rows: Rows,
        x: Float[Tensor, "k ..."],
        t: Float[Tensor, "k"],
    ) -> Float[Tensor, "k ..."]:
        """The velocity at (x, t), with the classes of the chosen rows of the draw."""

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return self.on(teacher, draw, draw.everything)

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> Float[Tensor, "k ..."]:
        return self.field(teacher, draw, rows, draw.x_t[rows], draw.times.t[rows])


@dataclass(frozen=True, kw_only=True)
class Conditional(Velocity):
    """v_c = α'_t x + σ'_t ε."""

    @property
    def own(self) -> bool:
        return False

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return teacher.path.velocity(draw.x, draw.eps, draw.times.t)


@dataclass(frozen=True, kw_only=True)
class PlugIn(Velocity):
    """The velocity of the mini-batch, v̂ = E[v_c | x_t, batch] (ESC, arXiv 2512.11831, plug-in velocity).

    mask "label": only images that share the row's class count, and every image counts for a row whose class is hidden:
    unbiased for the conditional and for the unconditional velocity. "none": all images always (the published code),
    which biases a conditional network towards the unconditional velocity unless the batch holds a single class.

    Of vectors and sequences in place of classes, images share a condition where it is equal in every number. Where all
    of them differ, each is the only image of its condition, and the velocity is v_c but on rows that are told none;
    "none" is refused, because no batch holds a single condition.

    images: whose images the velocity is made of: those of this process's batch, or of "all" processes, whose batches
    are joined for it (with one process the same). All processes must then ask as often: with targets that ask only
    where some rows jump, draw an exact number of these.
    """

    mask: Literal["label", "none"] = "label"
    images: Literal["process", "all"] = "process"

    def __post_init__(self) -> None:
        if self.images not in ("process", "all"):
            raise ShortflowError(f"PlugIn: images must be 'process' or 'all', got {self.images!r}")
        if self.mask not in ("label", "none"):
            raise ShortflowError(f"PlugIn: mask must be 'label' or 'none', got {self.mask!r}")

    @property
    def own(self) -> bool:
        return False

    def check_conditions(self) -> None:
        """Raise `IncompatibleParts` for a mask that has no meaning where conditions are vectors or sequences."""
        if self.mask == "none":
            raise IncompatibleParts(
                "PlugIn: with mask = 'none' images of other conditions count, which biases a network that is told "
                "vectors or sequences towards none of them; set the mask to 'label'"
            )

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return self.at(teacher.path, draw, None)

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> Float[Tensor, "k ..."]:
        return self.at(teacher.path, draw, rows)

    def at(self, path: Path, draw: Draw, rows: Rows | None) -> Float[Tensor, "k ..."]:
        """The plug-in velocity of the chosen rows only."""
        if draw.label is not None and draw.label.is_floating_point():
            self.check_conditions()
        own = None if draw.label is None or self.mask == "none" else identities(draw.label)
        pool = pooled(draw.x, own) if self.images == "all" else None
        label, allowed = own if pool is None else pool.label, None
        if own is not None:
            asked = draw.everything if rows is None else rows
            allowed = (own[asked][:, None] == label) | draw.dropped[asked][:, None]
        index = (
            None
            if rows is None or (isinstance(rows, slice) and rows == draw.everything)
            else indices(rows, draw.x.device)
        )
        images, first = (None, 0) if pool is None else (pool.x, pool.first)
        return plug_in_velocity(path, draw.x, draw.eps, draw.times.t, allowed, index, images, first)


@dataclass(frozen=True, kw_only=True)
class Mixture(Velocity):
    """Row by row, the plug-in velocity with `probability`, the conditional velocity otherwise."""

    plug_in: PlugIn = PlugIn()
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ShortflowError(f"Mixture: probability must be in [0, 1], got {self.probability}")

    @property
    def own(self) -> bool:
        return False

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return self.on(teacher, draw, draw.everything)

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> Float[Tensor, "k ..."]:
        v = Conditional().on(teacher, draw, rows)
        some = draw.chosen(draw.coin[rows] < self.probability)
        if len(some) == 0 and self.plug_in.images == "process":
            return v
        return some.put(v, self.plug_in.at(teacher.path, draw, within(rows, some.places)))


@dataclass(frozen=True, kw_only=True)
class Own(FieldVelocity):
    """The network's own velocity u_{t,t}, of the weights that targets are computed with (flow-map self-distillation).

    It has no variance given x_t, but is only as right as what the rows at r = t have taught it.

    Args:
        head: ask the network's velocity head instead (improved MeanFlow).
    Source: Boffi et al. (arXiv 2505.18825); iMF (arXiv 2512.02012) for the head.
    """

    head: bool = False

    @property
    def grounded(self) -> bool:
        return False

    def field(
        self, teacher: FlowMap, draw: Draw, rows: Rows, x: Float[Tensor, "k ..."], t: Float[Tensor, "k"]
    ) -> Float[Tensor, "k ..."]:
        label, guidance = draw.inputs(rows)[0], draw.velocity_guidance(rows, t)
        with torch.no_grad(), shared_dropout(draw.dropout_seed, len(draw.x), rows):
            if not self.head:
                return teacher.velocity(x, t, label, guidance)
            return teacher.velocity_of(x, teacher.predict_head(x, t, label, guidance), t)


@dataclass(frozen=True, kw_only=True)
class Reference(FieldVelocity):
    """The velocity of the frozen teacher (`--teacher RUN`), for distillation.

    With `guidance` w ≠ 1 it is v_∅ + w (v_c − v_∅) for t inside the closed `window`, on rows whose class is not hidden;
    with `autoguidance` λ ≠ 1 it is v_weak + λ (v − v_weak) with a weaker model of the same data (`--weak RUN`).

    Source of autoguidance: Karras et al. 2024 (arXiv 2406.02507), in AYF (arXiv 2506.14603).
    """

    guidance: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    autoguidance: float = 1.0

    def __post_init__(self) -> None:
        check_window("Reference", self.window)

    @property
    def own(self) -> bool:
        return False

    @property
    def follows(self) -> frozenset[str]:
        return frozenset({"teacher", "weak"}) if self.autoguidance != 1 else frozenset({"teacher"})

    def field(
        self, teacher: FlowMap, draw: Draw, rows: Rows, x: Float[Tensor, "k ..."], t: Float[Tensor, "k"]
    ) -> Float[Tensor, "k ..."]:
        frozen = draw.teacher
        label = draw.told(frozen)
        label = None if label is None else label[rows]
        with torch.no_grad(), no_dropout():
            v = frozen.velocity(x, t, label)
            if self.guidance != 1 and label is not None:
                some = draw.chosen((t >= self.window[0]) & (t <= self.window[1]) & ~draw.dropped[rows])
                v = self._guided(frozen, v, x, t, label, some)
            if self.autoguidance != 1:
                weak = draw.weak
                told = draw.told(weak)
                poor = weak.velocity(x, t, None if told is None else told[rows])
                v = poor + self.autoguidance * (v - poor)
        return v.to(x.dtype)

    def _guided(
        self,
        frozen: FlowMap,
        v: Float[Tensor, "k ..."],
        x: Float[Tensor, "k ..."],
        t: Float[Tensor, "k"],
        label: Shaped[Tensor, "k ..."],
        some: Chosen,
    ) -> Float[Tensor, "k ..."]:
        """v with guidance on some of the rows."""
        null = frozen.null_label
        if null is None:
            raise IncompatibleParts(
                f"Reference guides its teacher with scale {self.guidance:g}, but the teacher has no null class; train "
                "it with label_dropout > 0, or set guidance to 1"
            )
        if len(some) == 0:
            return v
        free = frozen.velocity(x[some.places], t[some.places], torch.full_like(label[some.places], null))
        return some.put(v, free + self.guidance * (v[some.places] - free))
