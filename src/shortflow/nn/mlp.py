"""A residual network for points of shape (d,): toys, oracles and tests.

    h ← Linear(x),    h ← h + B SiLU(A SiLU(h) + C SiLU(c))  (depth times),    output = Linear(SiLU(h))

c is the conditioning vector of `shortflow.nn.conditioning`. Smooth everywhere, so derivatives along times and points
are as well behaved as the function; the last layer, and that of the velocity head, starts at zero.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shortflow.dropout import Dropout
from shortflow.errors import ShortflowError
from shortflow.nn.conditioning import ConditionedNetwork
from shortflow.products import Linear

__all__ = ["MLP", "faults"]


def faults(*, width: int, depth: int, dropout: float) -> list[str]:
    """Everything that is wrong with the settings of an MLP, one sentence each; empty if nothing is."""
    counts = {"width": width, "depth": depth}
    found = [f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1]
    if not 0 <= dropout < 1:
        found.append(f"dropout must be in [0, 1), got {dropout}")
    return found


class ResidualBlock(nn.Module):
    """h + B SiLU(A SiLU(h) + C SiLU(c)), with dropout before B."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(width, width)
        self.condition = Linear(width, width)
        self.fc2 = Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, h: Float[Tensor, "b d"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return h + self.fc2(self.dropout(F.silu(self.fc1(F.silu(h)) + self.condition(F.silu(c)))))


class MLP(ConditionedNetwork):
    """Residual network for points of shape (d,); keeps the contract of `shortflow.nn`.

    Args:
        shape: (d,).
        width, depth: units of a layer, number of residual blocks.
        num_classes, null_class, second_time, log_variance, guidance, velocity_head, condition: see
            `ConditionedNetwork`; a condition is a vector.
        dropout: probability of dropping a hidden unit.

    Raises:
        ShortflowError: if the shape has more than one axis or a setting is impossible.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 4,
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        dropout: float = 0.0,
        condition: tuple[int, ...] | None = None,
    ) -> None:
        found = faults(width=width, depth=depth, dropout=dropout)
        if len(shape) != 1 or min(shape) < 1:
            found.append(f"an MLP takes points of shape (d,), got {tuple(shape)}; use a SiT for images")
        if found:
            raise ShortflowError("; ".join(found))
        super().__init__(
            shape=shape,
            width=width,
            num_classes=num_classes,
            null_class=null_class,
            second_time=second_time,
            log_variance=log_variance,
            guidance=guidance,
            velocity_head=velocity_head,
            condition=condition,
        )
        self.first = Linear(shape[0], width)
        self.blocks = nn.ModuleList(ResidualBlock(width, dropout) for _ in range(depth))
        self.last = _zeroed(Linear(width, shape[0]))
        self.velocity_last = _zeroed(Linear(width, shape[0])) if velocity_head else None

    def trunk(self, x: Float[Tensor, "b p"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        h = self.first(x)
        for block in self.blocks:
            h = self.run(block, h, c)
        return F.silu(h)

    def output(self, h: Float[Tensor, "b d"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        return self.last(h)

    def velocity(self, h: Float[Tensor, "b d"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        assert self.velocity_last is not None
        return self.velocity_last(h)


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
