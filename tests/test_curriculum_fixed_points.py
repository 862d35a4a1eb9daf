"""Where a finite first step along the conditional velocity leads: the fixed points of α-Flow and SoFlow.

For Gaussian data and jumps to the data with s = (1 − α) t the solution is linear, u_{t,0}(x) = A(t) x, and follows from
the target itself, from small t upwards: A(t) = target(t; A((1 − α) t)), with A(0) = −1 the velocity at the data.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from shortflow.draw import Draw
from shortflow.flowmap import AverageVelocity, FlowMap, StartAndGap
from shortflow.paths import Linear
from shortflow.targets import Secant, Target, TwoStep
from shortflow.theory import Gaussian
from steps import Marginal, draw_at

C = 0.5


class Slope(nn.Module):
    """u = A(t) x with A looked up by t, on a grid that contains all times asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[float, float] = {}

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return self.table[round(float(time[0]), 12)] * x


def gain(target: Target, alpha: float) -> float:
    """Standard deviation of generated over that of real data, for jumps from noise to data."""
    network = Slope()
    path = Linear()
    flow = FlowMap(network, path, AverageVelocity(), StartAndGap())
    steps = 1 if alpha == 1 else math.ceil(math.log(1e-7) / math.log(1 - alpha))
    times = [(1 - alpha) ** k for k in range(steps, -1, -1)]
    network.table[round(times[0], 12)] = -1.0
    one = torch.ones(1, 1, dtype=torch.float64)
    for s, t in pairwise(times):
        at = [torch.tensor([time], dtype=torch.float64) for time in (t, 0.0, s)]
        network.table[round(t, 12)] = _solved(target, flow, draw_at(path, one, one, *at, x_t=one), network, t)
    return (1 - network.table[1.0]) / C


def _solved(target: Target, flow: FlowMap, draw: Draw, network: Slope, t: float) -> float:
    """The output that is its own target: targets that start from the prediction are affine in it."""
    key, values = round(t, 12), []
    if isinstance(target, TwoStep):  # which does not start from the prediction
        return float(target(flow, draw).in_space("output", flow, draw))
    for guess in (0.0, 1.0):
        network.table[key] = guess
        values.append(float(target(flow, draw).in_space("output", flow, draw)))
    return values[0] / (1 - (values[1] - values[0]))


@pytest.mark.parametrize(
    ("alpha", "want"),
    [
        (1.0, 0.0),
        (0.5, 0.7296),
        (0.1, 0.9540),
        pytest.param(0.02, 0.9910, marks=pytest.mark.slow),
        pytest.param(0.005, 0.9978, marks=pytest.mark.slow),
    ],
)
def test_a_finite_share_of_the_jump_shrinks_the_spread(alpha: float, want: float) -> None:
    """The bias of α-Flow at a fixed α is about 0.45 α; only its last phase, α = 0, removes it."""
    law = Gaussian(path=Linear(), mean=0.0, std=C)
    first = Marginal(law=law)
    # The regression onto the conditional velocity has the marginal one as its mean, because all is linear in it.
    assert gain(TwoStep(first=first, solver="euler"), alpha) == pytest.approx(want, abs=6e-5)


@pytest.mark.parametrize("alpha", [0.5, 0.1])
def test_the_difference_quotient_has_the_same_fixed_point(alpha: float) -> None:
    law = Gaussian(path=Linear(), mean=0.0, std=C)
    steps = TwoStep(first=Marginal(law=law), solver="euler")
    assert gain(Secant(steps=steps), alpha) == pytest.approx(gain(steps, alpha), abs=1e-9)
