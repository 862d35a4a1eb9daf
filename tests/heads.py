"""A small network that is told its guidance and has a velocity head, in float64, and draws for it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from shortflow.draw import Draw
from shortflow.dropout import Dropout
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.paths import Linear, Path
from shortflow.typing import expand
from steps import NULL, draw_at, randomize


class Headed(nn.Module):
    """F and F̂ are two linear heads on one hidden layer; it remembers (label, guidance) of its calls."""

    num_classes, null_label = NULL, NULL

    def __init__(self, d: int = 3, width: int = 16, dropout: float = 0.0, told: bool = True) -> None:
        super().__init__()
        self.told, self.asked = told, []
        self.hidden = nn.Linear(d + 2 + (3 if told else 0), width)
        self.classes = nn.Embedding(NULL + 1, width)
        self.dropout = Dropout(dropout)
        self.output, self.velocity = nn.Linear(width, d), nn.Linear(width, d)

    def both(
        self,
        x: Tensor,
        time: Tensor,
        second: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        second = torch.zeros_like(time) if second is None else second
        columns = [x, time[:, None], second[:, None]]
        if self.told:
            assert guidance is not None
            columns.append(torch.cat([1 - 1 / guidance[:, :1], guidance[:, 1:]], 1))
        label = torch.full(time.shape, NULL) if label is None else label
        self.asked.append((label, guidance))
        h = self.dropout(torch.tanh(self.hidden(torch.cat(columns, 1)) + self.classes(label)))
        return self.output(h) + expand(time, x), self.velocity(h)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        second: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        return self.both(x, time, second, label, guidance)[0]


def headed(seed: int = 1, dropout: float = 0.0, told: bool = True, path: Path = Linear()) -> FlowMap:
    network = Headed(dropout=dropout, told=told)
    randomize(network, seed)
    return FlowMap(network, path, AverageVelocity(), told=told)


def told_draw(path: Path = Linear()) -> Draw:
    """Six rows: inside and outside the window, without a class, with r = t and at both ends of the window."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.5, 0.9, 0.5, 0.95, 0.25, 0.75], dtype=torch.float64)
    r = torch.where(torch.arange(6) == 3, t, 0.3 * t)
    scale = torch.tensor([2.0, 3.0, 1.0, 4.0, 5.0, 8.0], dtype=torch.float64)
    low, high = torch.full_like(t, 0.25), torch.full_like(t, 0.75)
    low[2:4], high[2:4] = 0, 1  # as PowerGuidance has them without a class and with r = t
    draw = draw_at(
        path,
        x,
        eps,
        t,
        r,
        label=torch.tensor([0, 1, 2, 3, 0, 1]),
        dropped=torch.arange(6) == 2,
        null_label=NULL,
    )
    return replace(draw, guidance=torch.stack([scale, low, high], 1))


EFFECTIVE = torch.tensor([2.0, 1.0, 1.0, 4.0, 5.0, 8.0], dtype=torch.float64)
"""ω̃ of these rows."""
