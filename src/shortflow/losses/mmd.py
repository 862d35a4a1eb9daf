"""Maximum mean discrepancy of groups of samples: whether prediction and target agree in law, not row by row."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.draw import Draw
from shortflow.errors import ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.losses.metrics import Metric, Rows, Space, State, at_least_single

__all__ = ["KernelMMD", "grouped_mmd"]

Kernel = Literal["laplace", "energy", "linear"]


def grouped_mmd(
    a: Float[Tensor, "g m d"],
    b: Float[Tensor, "g m d"],
    bandwidth: Float[Tensor, "g"],
    epsilon: float,
    unbiased: bool,
    kernel: Kernel = "laplace",
) -> Float[Tensor, "g"]:
    """MMD² of each group with a kernel k(x, y), w the group's `bandwidth` and D the number of coordinates:

    "laplace"  exp(−w max(‖x − y‖, ε)/D);
    "energy"   −max(‖x − y‖, ε), which makes it the energy distance;
    "linear"   −‖x − y‖², which makes the V-statistic 2 ‖mean a − mean b‖².

    V-statistic: mean k(a, a) + mean k(b, b) − 2 mean k(a, b), diagonals included; `unbiased` leaves them out of the
    first two terms (U-statistic). With ∂U_aa the gradient of the first term of U, ∂V = ∂U − ∂U_aa/m: including the
    diagonals damps the repulsion between the particles of a group.
    """

    def k(x: Tensor, y: Tensor) -> Tensor:
        square = (x[:, :, None] - y[:, None]).square().sum(-1)
        if kernel == "linear":
            return -square
        distance = square.clamp(min=epsilon**2).sqrt()
        return -distance if kernel == "energy" else torch.exp(-bandwidth.reshape(-1, 1, 1) * distance / x.shape[-1])

    m = a.shape[1]

    def within(x: Tensor) -> Tensor:
        pairs = k(x, x)
        if not unbiased:
            return pairs.mean((1, 2))
        return (pairs.sum((1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(1)) / (m * (m - 1))

    return within(a) + within(b) - 2 * k(a, b).mean((1, 2))


@dataclass(frozen=True, kw_only=True)
class KernelMMD(Metric):
    """Maximum mean discrepancy of groups of `group` consecutive rows, in state space; each row has its group's value.

    The "laplace" kernel is exp(−w̃ max(‖x − y‖, ε)/D). Its bandwidth w̃ is 1/|b(t, r)| ("output", the published one
    where the output is scaled by b alone) or 1 ("unit", that of the form in which the output is the data).
    Source: IMM (arXiv 2503.07565), section 4.3. "energy" and "linear" are those of `grouped_mmd`; they have no
    bandwidth. A group of one compares single samples: 2 (k(x, x) − k(x, y)).
    """

    group: int = 4
    epsilon: float = 1e-4
    unbiased: bool = False
    kernel: Kernel = "laplace"
    bandwidth: Literal["output", "unit"] = "output"
    space: Space = field(default="state", init=False)

    def __post_init__(self) -> None:
        if self.group < (2 if self.unbiased else 1):
            raise ShortflowError(f"KernelMMD: group must be at least {2 if self.unbiased else 1}, got {self.group}")
        if not self.epsilon > 0:
            raise ShortflowError(f"KernelMMD: epsilon must be positive, got {self.epsilon}")
        if self.kernel not in get_args(Kernel):
            raise ShortflowError(f"KernelMMD: kernel must be one of {', '.join(get_args(Kernel))}, got {self.kernel!r}")
        if self.bandwidth not in ("output", "unit"):
            raise ShortflowError(f"KernelMMD: bandwidth must be 'output' or 'unit', got {self.bandwidth!r}")

    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        b = len(prediction)
        if b % self.group:
            raise ShortflowError(f"KernelMMD: a batch of {b} rows cannot be split into groups of {self.group}")
        shape = (b // self.group, self.group, -1)
        mine, theirs = at_least_single(prediction).reshape(shape), at_least_single(target).reshape(shape)
        first = slice(None, None, self.group)
        t, r = draw.times.t[first], draw.times.r[first]
        scale = flow.coefficients(t, r)[1].abs().clamp(min=1e-12) if self.bandwidth == "output" else torch.ones_like(t)
        value = grouped_mmd(mine, theirs, (1 / scale).to(mine.dtype), self.epsilon, self.unbiased, self.kernel)
        return value.repeat_interleave(self.group)
