"""Pairs of data and noise that are coupled by a flow instead of drawn independently."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch

from shortflow.draw import Draw
from shortflow.dropout import no_dropout
from shortflow.errors import ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.guidance import guided_output
from shortflow.rows import Rows, count, put
from shortflow.typing import expand

__all__ = ["Coupling", "LivePairs"]


class Coupling(ABC):
    """(teacher, draw) → the draw with other pairs (x, ε) on some rows, without gradient."""

    @abstractmethod
    def __call__(self, teacher: FlowMap, draw: Draw) -> Draw:
        """The draw whose chosen rows hold coupled pairs, and the points x_t on their paths."""


@dataclass(frozen=True, kw_only=True)
class LivePairs(Coupling):
    """On rows with r < t the data are replaced by what the network itself makes of the row's noise (live reflow).

    The network's velocity u_{t,t} is integrated from t = 1 to 0 in `steps` Euler (DDIM) steps, guided with `guidance`.
    Source: the live reflow baseline of Frans et al. (arXiv 2410.12557).
    """

    steps: int = 8
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ShortflowError(f"LivePairs: steps must be at least 1, got {self.steps}")

    def __call__(self, teacher: FlowMap, draw: Draw) -> Draw:
        rows = draw.kinds(draw.everything)[0]
        if count(rows) == 0:
            return draw
        with torch.no_grad(), no_dropout():
            made = self._integrated(teacher, draw, rows)
            path, t = teacher.path, draw.times.t[rows]
            x = put(draw.x, rows, made)
            x_t = put(draw.x_t, rows, path.interpolate(made, draw.eps[rows], t))
        return replace(draw, x=x, x_t=x_t)

    def _integrated(self, teacher: FlowMap, draw: Draw, rows: Rows) -> torch.Tensor:
        path, (label, _) = teacher.path, draw.inputs(rows)
        t = torch.ones_like(draw.times.t[rows])
        x = expand(path.sigma(t), draw.eps) * draw.eps[rows]
        for i in range(self.steps):
            now, then = (torch.full_like(t, 1 - k / self.steps) for k in (i, i + 1))
            if label is None or self.guidance == 1:
                output = teacher.predict(x, now, now, label)
            else:
                output = guided_output(teacher, x, now, now, label, self.guidance)
            a, b = path.transfer(now, then)
            x = expand(a, x) * x + expand(b, x) * teacher.velocity_of(x, output, now)
        return x
