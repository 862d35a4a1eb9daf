"""Live pairs: on rows that jump the data are what the network makes of the noise of the row."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exactmaps import exact, gauss
from heads import headed
from oracles import column, f64, log_slope
from shortflow.coupling import LivePairs
from shortflow.draw import Draw
from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap, Parameterization, Transfer, TrigFlow
from shortflow.objective import Objective
from shortflow.paths import Cosine, Linear, Path
from shortflow.targets import Along
from shortflow.times import Sorted
from shortflow.typing import expand
from steps import NULL, close, draw_at, gradient

PATHS: list[tuple[Path, Parameterization, float]] = [
    (Linear(), AverageVelocity(), 1.0),
    (Linear(noise_scale=0.5), AverageVelocity(normalize=True), 0.5),
    (Cosine(), Transfer(), 1.0),
    (Cosine(noise_scale=0.5), TrigFlow(), 0.5),
]


def draw_of(path: Path, label: Tensor | None = None, dropped: Tensor | None = None, d: int = 1) -> Draw:
    """Rows 0 and 2 jump, row 1 does not."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(3, d, generator=generator, dtype=torch.float64) for _ in range(2))
    null = None if label is None else NULL
    return draw_at(path, x, eps, f64(0.7, 0.6, 0.4), f64(0.2, 0.6, 0.0), label=label, dropped=dropped, null_label=null)


@pytest.mark.parametrize(("path", "form", "sigma_data"), PATHS)
@pytest.mark.parametrize("steps", [1, 4])
def test_pairs_of_an_exact_network_are_its_ddim_map(
    path: Path, form: Parameterization, sigma_data: float, steps: int
) -> None:
    """For a Gaussian each step is affine, x ← x̂-form of the step: α_r x̂(x) + σ_r ε̂(x), from x = σ_1 ε."""
    law = gauss(path)
    draw = draw_of(path)
    got = LivePairs(steps=steps)(exact(law, form, sigma_data), draw)
    x = expand(path.sigma(torch.ones(3).double()), draw.eps) * draw.eps
    for i in range(steps):
        now, then = (torch.full((3,), 1 - k / steps, dtype=torch.float64) for k in (i, i + 1))
        x = path.interpolate(*law.posterior(x, now), then)
    rows = torch.tensor([0, 2])
    close(got.x[rows], x[rows], 1e-12)
    close(got.x_t[rows], path.interpolate(x, draw.eps, draw.times.t)[rows], 1e-12)
    for name in ("x", "x_t"):
        assert torch.equal(getattr(got, name)[1], getattr(draw, name)[1])
    for name in ("eps", "times", "dropped", "coin"):
        assert getattr(got, name) is getattr(draw, name)


def test_one_step_makes_the_mean_and_many_the_flow() -> None:
    """Linear path: one Euler step from pure noise lands on E[x_0]; many end at X_{1,0}, at first order."""
    law, draw = gauss(Linear()), draw_of(Linear())
    flow, one = exact(law, AverageVelocity()), torch.ones(3).double()
    close(LivePairs(steps=1)(flow, draw).x[[0, 2]], column(0.3, 0.3), 1e-12)
    want, sizes, errors = law.flow_map(draw.eps, one, 0 * one), [1 / 32, 1 / 64, 1 / 128, 1 / 256], []
    for size in sizes:
        made = LivePairs(steps=round(1 / size))(flow, draw).x
        errors.append((made - want)[[0, 2]].norm().item())
    assert log_slope(sizes, errors) == pytest.approx(1, abs=0.05)


class Table(nn.Module):
    num_classes = null_label = 4

    def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor) -> Tensor:
        return column(2.0, 5.0, 6.0, 7.0, 1.0)[label].expand_as(x)


def test_pairs_are_guided_on_rows_with_a_class() -> None:
    """ε − u with u = u_∅ + w (u_c − u_∅); u_∅ on rows without a class."""
    flow = FlowMap(Table(), Linear(), AverageVelocity())
    draw = draw_of(Linear(), torch.tensor([1, 0, 0]), torch.tensor([False, False, True]))
    for scale, velocity in ((1.0, 5.0), (3.0, 1 + 3 * 4), (0.0, 1.0)):
        got = LivePairs(guidance=scale)(flow, draw)
        close(got.x[0], draw.eps[0] - velocity, 1e-12)
        close(got.x[2], draw.eps[2] - 1.0, 1e-12)


def test_pairs_are_made_without_dropout_and_without_gradient() -> None:
    flow, draw = headed(told=False, dropout=0.5).train(), draw_of(Linear(), torch.tensor([1, 0, 0]), d=3)
    got = LivePairs()(flow, draw)
    assert not got.x.requires_grad
    close(got.x, LivePairs()(flow.eval(), draw).x, 1e-13)


def test_a_batch_without_jumps_is_left_alone() -> None:
    draw = draw_of(Linear())
    still = draw.with_times(draw.times._replace(r=draw.times.t))
    assert LivePairs()(FlowMap(nn.Identity(), Linear(), AverageVelocity()), still) is still


def test_live_reflow_by_hand() -> None:
    """‖u_{t,r} − (ε − x̂)‖² on rows that jump, at the point of their own path; flow matching on the others."""
    flow, draw = headed(told=False), draw_of(Linear(), torch.tensor([1, 0, 2]), d=3)
    objective = Objective(times=Sorted(), target=Along(), coupling=LivePairs(steps=2))
    terms = objective.evaluate(flow, flow, draw)
    (t, _, r), label = draw.times, draw.condition
    with torch.no_grad():
        one = torch.ones(3).double()
        half = draw.eps - 0.5 * flow.velocity(draw.eps, one, label)
        made = half - 0.5 * flow.velocity(half, 0.5 * one, label)
    x = torch.where((r < t)[:, None], made, draw.x)
    x_t = (1 - t)[:, None] * x + t[:, None] * draw.eps
    want = (flow.predict(x_t, t, r, label) - (draw.eps - x)).square().mean(1)
    close(terms.loss.detach(), want.detach(), 1e-12)
    close(gradient(terms.loss.mean(), flow.network), gradient(want.mean(), flow.network), 1e-12)


def test_settings_and_words() -> None:
    with pytest.raises(ShortflowError, match="steps must be at least 1, got 0"):
        LivePairs(steps=0)
    objective = Objective(times=Sorted(), target=Along(), coupling=LivePairs(guidance=2.0))
    assert objective.guided == "training guidance (scale 2 of the pairs)"
    assert objective.unconditional().coupling == LivePairs()
    assert replace(objective, coupling=LivePairs()).guided is None
