"""One row of a step for `slow_reference`: its numbers, what its networks are told, and the velocity of every kind."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slow_maps import Model, name, schedule, wide


@dataclass(frozen=True)
class Row:
    """Row k of a step: its numbers, the network that learns and the one that targets are computed with."""

    k: int
    draw: Any
    student: Model
    target: Model

    def of(self, values: Tensor | None) -> Any:
        return None if values is None else values[self.k : self.k + 1].detach()

    @property
    def x_t(self) -> Tensor:
        return self.of(self.draw.x_t)

    @property
    def times(self) -> tuple[Tensor, Tensor, Tensor]:
        t, s, r = self.draw.times
        return self.of(t), self.of(s), self.of(r)

    @property
    def hidden(self) -> bool:
        return bool(self.draw.dropped[self.k])

    @property
    def label(self) -> Any:
        return self.of(self.draw.label)

    @property
    def seen(self) -> Any:
        """The class that the networks are told."""
        return self.null(self.draw.null_label) if self.hidden and self.draw.null_label is not None else self.label

    @property
    def guidance(self) -> Any:
        return self.of(self.draw.guidance)

    def told_at(self, t: Tensor, scale: float | None = None) -> Any:
        """The guidance with which the network is asked for u_{t,t}: (ω̃, 0, 1), ω̃ = 1 outside the row's window."""
        if self.guidance is None:
            return None
        omega, low, high = self.guidance[0].tolist()
        omega = scale if scale is not None else omega if low <= float(t) <= high else 1.0
        return torch.tensor([[omega, 0.0, 1.0]], dtype=t.dtype)

    def null(self, index: int | None) -> Any:
        return None if self.label is None else torch.full_like(self.label, index)

    def told(self, frozen: Model) -> Any:
        if not frozen.network.num_classes or self.label is None:
            return None
        return self.null(frozen.network.null_label) if self.hidden else self.label

    def velocity(self, part: Any, x: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """The velocity `part` stands for at (x, t), by default the row's point."""
        own_point = x is None
        x, t, by = self.x_t if x is None else x, self.times[0] if t is None else t, self.target
        match name(part):
            case "Conditional":
                assert own_point
                value = self.conditional(by.path)
            case "PlugIn":
                value = self.plug_in(part, by.path)
            case "Mixture":
                base = part.plug_in if float(self.draw.coin[self.k]) < part.probability else None
                value = self.plug_in(base, by.path) if base else self.conditional(by.path)
            case "Own":
                value = by.velocity(x, t, self.seen, self.told_at(t), part.head)
            case "Reference":
                value = self.reference(part, x, t)
            case "Guided":
                value = self.velocity(part.base)
                if part.window[0] <= float(t) <= part.window[1]:
                    value = self.mixed(value, part.omega, part.kappa)
            case "FadingGuidance":
                q = (1 - float(t)) / (1 - part.edge)
                fade = 1.0 if q >= 1 else 1 - math.exp(-part.rate * q / (1 - q))
                value = self.velocity(part.base)
                value = self.mixed(value, part.mix * (1 + fade * (part.scale - 1)), 1 - part.mix)
            case "GuidanceAsInput":
                value = self.velocity(part.base)
                if self.label is not None and not self.hidden:
                    told, free = self.told_at(t), self.told_at(t, 1.0)
                    guided = by.velocity(x, t, self.label, told, part.head)
                    free = by.velocity(x, t, self.null(by.network.null_label), free, part.head)
                    value = value + (1 - 1 / float(told[0, 0])) * (guided - free)
            case _:
                raise NotImplementedError(name(part))
        return value.detach()

    def conditional(self, path: Any) -> Tensor:
        """α' x + σ' ε."""
        _, _, d_alpha, d_sigma = (wide(each, self.x_t) for each in schedule(path, self.times[0]))
        return d_alpha * self.of(self.draw.x) + d_sigma * self.of(self.draw.eps)

    def mixed(self, v: Tensor, omega: float, kappa: float) -> Tensor:
        """ω v + κ u_{t,t}(c) + (1 − ω − κ) u_{t,t}(∅) where the class is known and seen."""
        if self.label is None or self.hidden:
            return v
        rest, t, x, by = 1 - omega - kappa, self.times[0], self.x_t, self.target
        value = omega * v + (kappa * by.velocity(x, t, self.label) if kappa else 0)
        if abs(rest) < 1e-12:
            return value
        return value + rest * by.velocity(x, t, self.null(by.network.null_label))

    def reference(self, part: Any, x: Tensor, t: Tensor) -> Tensor:
        frozen = Model.of(self.draw.references.teacher)
        label = self.told(frozen)
        v = frozen.velocity(x, t, label)
        inside = part.window[0] <= float(t) <= part.window[1]
        if part.guidance != 1 and label is not None and not self.hidden and inside:
            free = frozen.velocity(x, t, self.null(frozen.network.null_label))
            v = free + part.guidance * (v - free)
        if part.autoguidance != 1:
            weak = Model.of(self.draw.references.weak)
            poor = weak.velocity(x, t, self.told(weak))
            v = poor + part.autoguidance * (v - poor)
        return v

    def plug_in(self, part: Any, path: Any) -> Tensor:
        """Σ_i γ_i v(x_t | x^i), γ_i ∝ exp(−‖x_t − α x^i‖²/(2σ²)), over the images that may have made the point."""
        x, labels = self.x_t, self.draw.label
        alpha, sigma, d_alpha, d_sigma = (float(each) for each in schedule(path, self.times[0]))
        exponents, velocities = [], []
        for i, image in enumerate(self.draw.x):
            masked = part.mask == "label" and labels is not None
            if masked and not (self.hidden or i == self.k or bool(labels[i] == labels[self.k])):
                continue
            rest = x - alpha * image
            exponents.append(-float(rest.square().sum()) / (2 * sigma**2))
            velocities.append(d_alpha * image + d_sigma * rest / sigma)
        top = max(exponents)
        weights = [math.exp(each - top) for each in exponents]
        return sum((w * v for w, v in zip(weights, velocities, strict=True)), torch.zeros_like(x)) / sum(weights)
