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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import no_dropout, shared_dropout
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.paths import Path
from shortflow.typing import expand

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
Rows = Int[Tensor, "k"]


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
        self, direction: "Velocity", teacher: FlowMap, draw: Draw, rows: Rows, jump: Int[Tensor, "j"]
    ) -> tuple[Float[Tensor, "k ..."], Float[Tensor, "j ..."]]:
        """(v of the chosen rows, `direction` of rows[jump]); overridden where one pass gives both."""
        return self.on(teacher, draw, rows), direction.on(teacher, draw, rows[jump])


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
        return self.on(teacher, draw, torch.arange(len(draw.x), device=draw.x.device))

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> Float[Tensor, "k ..."]:
        return self.field(teacher, draw, rows, draw.x_t[rows], draw.times.t[rows])


@dataclass(frozen=True, kw_only=True)
class Conditional(Velocity):
    """v_c = α'_t x + σ'_t ε."""

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return teacher.path.velocity(draw.x, draw.eps, draw.times.t)


def plug_in_weights(
    path: Path,
    x: Float[Tensor, "b ..."],
    eps: Float[Tensor, "b ..."],
    t: Float[Tensor, "b"],
    allowed: Bool[Tensor, "k b"] | None = None,
    rows: Int[Tensor, "k"] | None = None,
) -> Float[Tensor, "k b"]:
    """γ_ki = softmax_i(−‖x_t^k − α x^i‖²/(2σ²)): the posterior that row k's point came from image i of the batch.

    One matrix product, in at least fp32. The exponent is −(α² ‖x^k − x^i‖² + 2ασ ⟨x^k − x^i, ε^k⟩)/(2σ²), a form whose
    diagonal is exactly zero, so that γ_kk → 1 without rounding error as σ → 0.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    flat = x.to(dtype).flatten(1)
    flat = flat - flat.mean(0)
    index = torch.arange(len(flat), device=x.device) if rows is None else rows
    centre, noise, time = flat[index], eps.to(dtype).flatten(1)[index], t.to(dtype)[index]
    alpha, sigma = path.alpha(time)[:, None], path.sigma(time)[:, None]
    point = alpha * centre + sigma * noise
    squares = (flat * flat).sum(1)
    gap = alpha**2 * (squares[index][:, None] + squares) + 2 * alpha * (
        sigma * (centre * noise).sum(1, keepdim=True) - point @ flat.T
    )
    exponent = -gap / (2 * sigma**2).clamp(min=torch.finfo(dtype).tiny)
    own = index[:, None] == torch.arange(len(flat), device=x.device)
    exponent = exponent.nan_to_num(nan=0.0, posinf=torch.finfo(dtype).max).masked_fill(own, 0.0)
    if allowed is not None:
        exponent = exponent.masked_fill(~(allowed | own), -torch.inf)
    return torch.softmax(exponent, 1)


def plug_in_velocity(
    path: Path,
    x: Float[Tensor, "b ..."],
    eps: Float[Tensor, "b ..."],
    t: Float[Tensor, "b"],
    allowed: Bool[Tensor, "k b"] | None = None,
    rows: Int[Tensor, "k"] | None = None,
) -> Float[Tensor, "k ..."]:
    """The marginal velocity of the batch at each row's own point, v̂ = Σ_i γ_i v(x_t | x^i), by two matrix products.

    v̂^k = v_c^k + (W/σ) Σ_i γ_ki (x^k − x^i), where the own image drops out of the sum.

    Args:
        allowed: which images i may have produced row k's point (None: all); its own image always may.
        rows: the rows k to compute (None: all b).
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        index = torch.arange(len(x), device=x.device) if rows is None else rows
        gamma = plug_in_weights(path, x, eps, t, allowed, rows)
        gamma = gamma.masked_fill(index[:, None] == torch.arange(len(x), device=x.device), 0.0)
        flat = x.to(dtype).flatten(1)
        flat = flat - flat.mean(0)
        pull = (gamma.sum(1, keepdim=True) * flat[index] - gamma @ flat).reshape(len(index), *x.shape[1:])
        time = t[index]
        sigma = path.sigma(time)
        ratio = torch.where(sigma > 0, path.wronskian(time) / sigma.clamp(min=torch.finfo(dtype).tiny), 0.0)
        return path.velocity(x[index], eps[index], time) + (expand(ratio.to(dtype), pull) * pull).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class PlugIn(Velocity):
    """The velocity of the mini-batch, v̂ = E[v_c | x_t, batch] (ESC, arXiv 2512.11831, plug-in velocity).

    mask "label": only images that share the row's class count, and every image counts for a row whose class is hidden:
    unbiased for the conditional and for the unconditional velocity. "none": all images always (the published code),
    which biases a conditional network towards the unconditional velocity unless the batch holds a single class.
    """

    mask: Literal["label", "none"] = "label"

    def __post_init__(self) -> None:
        if self.mask not in ("label", "none"):
            raise ShortflowError(f"PlugIn: mask must be 'label' or 'none', got {self.mask!r}")

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return self.at(teacher.path, draw, None)

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> Float[Tensor, "k ..."]:
        return self.at(teacher.path, draw, rows)

    def at(self, path: Path, draw: Draw, rows: Int[Tensor, "k"] | None) -> Float[Tensor, "k ..."]:
        """The plug-in velocity of the chosen rows only."""
        allowed = None
        if self.mask == "label" and draw.label is not None:
            index = torch.arange(len(draw.x), device=draw.x.device) if rows is None else rows
            allowed = (draw.label[index][:, None] == draw.label) | draw.dropped[index][:, None]
        return plug_in_velocity(path, draw.x, draw.eps, draw.times.t, allowed, rows)


@dataclass(frozen=True, kw_only=True)
class Mixture(Velocity):
    """Row by row, the plug-in velocity with `probability`, the conditional velocity otherwise."""

    plug_in: PlugIn = PlugIn()
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ShortflowError(f"Mixture: probability must be in [0, 1], got {self.probability}")

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return self.on(teacher, draw, torch.arange(len(draw.x), device=draw.x.device))

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> Float[Tensor, "k ..."]:
        v = Conditional().on(teacher, draw, rows)
        some = (draw.coin[rows] < self.probability).nonzero()[:, 0]
        if len(some) == 0:
            return v
        return v.index_copy(0, some, self.plug_in.at(teacher.path, draw, rows[some]))


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
                v = self._guided(frozen, v, x, t, draw.dropped[rows])
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
        dropped: Bool[Tensor, "k"],
    ) -> Float[Tensor, "k ..."]:
        """v with guidance on the rows where it acts."""
        null = frozen.null_label
        if null is None:
            raise IncompatibleParts(
                f"Reference guides its teacher with scale {self.guidance:g}, but the teacher has no null class; train "
                "it with label_dropout > 0, or set guidance to 1"
            )
        some = ((t >= self.window[0]) & (t <= self.window[1]) & ~dropped).nonzero()[:, 0]
        if len(some) == 0:
            return v
        label = torch.full((len(some),), null, dtype=torch.long, device=x.device)
        free = frozen.velocity(x[some], t[some], label)
        return v.index_copy(0, some, free + self.guidance * (v[some] - free))
