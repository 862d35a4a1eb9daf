"""What training converges to, exactly: the library's own steps on linear models of Gaussian data.

For x_0 = ±c and ε = ±1 the four sign pairs have all the second moments of independent Gaussians, and second moments are
all that a linear model F = A(t, r) x sees. So these four rows a time stand for the expectation over the data, and the
fixed point of a training step is found to rounding error: by least squares, or by descent on the library's loss.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from oracles import f64
from shortflow.draw import Draw
from shortflow.flowmap import AverageVelocity, FlowMap, StartAndGap, StartOnly, Transfer
from shortflow.guidance import Guided
from shortflow.losses import Unweighted, grouped_mmd
from shortflow.nn import MLP
from shortflow.objective import Objective, Online
from shortflow.paths import Cosine, Linear, Path
from shortflow.recipes import meanflow, shortcut
from shortflow.streams import Streams
from shortflow.targets import Direct, Split, Tangent, Target, TwoStep
from shortflow.theory import ExactNetwork, Gaussian
from shortflow.times import Diagonal, Sorted, TimeSampler, Uniform
from shortflow.typing import Batch, Progress, Times, expand
from shortflow.velocity import Conditional, Velocity
from steps import draw_at


class Table(nn.Module):
    """F = A x with one number A for each point of a time grid and each value of the second time."""

    def __init__(self, steps: int, columns: int = 1) -> None:
        super().__init__()
        self.steps, self.columns = steps, columns
        self.entries = nn.Parameter(torch.zeros(steps + 1, columns, dtype=torch.float64))

    def place(self, time: Tensor, second: Tensor | None) -> Tensor:
        column = torch.zeros_like(time) if second is None else second
        return torch.round(time * self.steps).long() * self.columns + torch.round(column).long()

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return expand(self.entries.flatten()[self.place(time, second)], x) * x

    @torch.no_grad()
    def fit(self, draw: Draw, second: Tensor | None, output: Tensor) -> None:
        """The entries that minimise the squared error on these rows."""
        place, flat = self.place(draw.times.t, second), self.entries.flatten()
        above = torch.zeros_like(flat).index_add(0, place, (output * draw.x_t).sum(1))
        below = torch.zeros_like(flat).index_add(0, place, draw.x_t.square().sum(1))
        self.entries.copy_(torch.where(below > 0, above / below.clamp(min=1e-300), flat).reshape(self.entries.shape))


def four_rows(path: Path, c: float, t: Tensor, s: Tensor, r: Tensor) -> Draw:
    """(±c, ±1) at every time."""
    n = len(t)
    x, eps = f64(c, c, -c, -c).repeat(n)[:, None], f64(1, -1, 1, -1).repeat(n)[:, None]
    t, s, r = (time.repeat_interleave(4) for time in (t, s, r))
    return draw_at(path, x, eps, t, r, s)


def jumps(flow: FlowMap, steps: int) -> float:
    """Where pure noise of size σ_1 ends after `steps` equal jumps."""
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x = flow.path.sigma(grid[:1])[:, None]
    with torch.no_grad():
        for i in range(steps):
            x = flow(x, grid[i : i + 1], grid[i + 1 : i + 2])
    return x.item()


# ------------------------------------------------------------------------------------------------- shortcut models


def level_draw(levels: int, level: int, c: float) -> Draw:
    """All jumps of length 2^−level, split in the middle; r = t for the finest level, as `Dyadic` has them."""
    n = 2**level
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    d = 0.0 if level == levels else 1 / n
    return four_rows(Linear(), c, t, t - d / 2, t - d)


def shortcut_fixed_point(levels: int, c: float) -> FlowMap:
    """Least squares on the recipe's targets, from the finest level up: each level depends on the next finer one."""
    recipe = shortcut(guidance=1.0, levels=levels)
    table = Table(2**levels, levels + 1)
    flow = recipe.flow_map(table)
    for level in range(levels, -1, -1):
        draw = level_draw(levels, level, c)
        value = recipe.objective.target(flow, draw)
        table.fit(draw, torch.full_like(draw.times.t, level), value.in_space("output", flow, draw))
    return flow


@pytest.mark.parametrize(
    ("levels", "gain"), [(1, 0.4), (2, 0.6811), (3, 0.8296), (4, 0.9114), (5, 0.9547), (6, 0.9771), (7, 0.98849)]
)
def test_shortcut_models_converge_to_the_finest_euler_map(levels: int, gain: float) -> None:
    """c = .5, τ = 1: std of the samples over the true one is that of 2^levels Euler steps, for any number of jumps."""
    flow = shortcut_fixed_point(levels, 0.5)
    for steps in (2**level for level in range(levels + 1)):
        assert jumps(flow, steps) / 0.5 == pytest.approx(gain, abs=6e-5)


def test_the_finest_level_is_the_exact_velocity() -> None:
    flow = shortcut_fixed_point(7, 0.5)
    table = flow.network
    assert isinstance(table, Table)
    t = torch.arange(1, 129, dtype=torch.float64) / 128
    law = Gaussian(path=Linear(), std=0.5)
    torch.testing.assert_close(table.entries[1:, 7].detach(), law.velocity(torch.ones(128, 1).double(), t)[:, 0])


def descend(objective: Objective, flow: FlowMap, draw: Draw, steps: int, rate: float) -> None:
    """Plain gradient descent on the sum of the library's losses."""
    for _ in range(steps):
        flow.zero_grad()
        objective.evaluate(flow, flow, draw).loss.sum().backward()
        with torch.no_grad():
            for weight in flow.parameters():
                weight -= rate * weight.grad


def together(draws: list[Draw]) -> Draw:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(draw, name) for draw in draws])

    rows = {name: joined(name) for name in ("x", "eps", "x_t", "dropped", "coin")}
    times = Times(*(torch.cat([draw.times[i] for draw in draws]) for i in range(3)))
    return replace(draws[0], **rows, times=times)


@pytest.mark.parametrize(
    ("levels", "steps", "gain"), [(2, 150, 0.6811), pytest.param(7, 1500, 0.98849, marks=pytest.mark.slow)]
)
def test_shortcut_models_get_there_by_gradient_descent(levels: int, steps: int, gain: float) -> None:
    """The whole loss at once, from zero weights, with the online network as its own teacher."""
    recipe = shortcut(guidance=1.0, levels=levels)
    objective = replace(recipe.objective, teacher=Online())
    flow = recipe.flow_map(Table(2**levels, levels + 1))
    descend(objective, flow, together([level_draw(levels, level, 0.5) for level in range(levels + 1)]), steps, 0.15)
    for jump in (1, 2**levels):
        assert jumps(flow, jump) / 0.5 == pytest.approx(gain, abs=6e-5)


# --------------------------------------------------------------------------------------------- consistency training


@dataclass(frozen=True, kw_only=True)
class UniformGrid(TimeSampler):
    """t = i/n, s = (i − 1)/n, r = 0: discrete consistency training on any path."""

    n: int = 4
    uniforms: ClassVar[int] = 1
    gap: ClassVar = "positive"
    ends: ClassVar = "zero"
    continuous: ClassVar[bool] = False

    def times(self, u: Tensor, progress: Progress) -> Times:
        i = torch.floor(u[:, 0] * self.n) + 1
        return Times(i / self.n, (i - 1) / self.n, torch.zeros_like(i))

    def all(self) -> Times:
        return self.times((torch.arange(self.n, dtype=torch.float64)[:, None] + 0.5) / self.n, Progress())


def consistency(path: Path, n: int, form: AverageVelocity | Transfer) -> tuple[Objective, FlowMap]:
    objective = Objective(
        times=UniformGrid(n=n),
        target=TwoStep(first=Conditional()),
        label_dropout=0.0,
    )
    return objective, FlowMap(Table(n), path, form, StartOnly(), ends="zero")


def consistency_gain(path: Path, c: float, n: int, form: AverageVelocity | Transfer) -> float:
    """Least squares, from the cleanest time up: f_t is regressed on f_s, which is known by then."""
    objective, flow = consistency(path, n, form)
    table = flow.network
    assert isinstance(table, Table)
    for t, s, r in zip(*UniformGrid(n=n).all(), strict=True):
        draw = four_rows(path, c, t[None], s[None], r[None])
        table.fit(draw, None, objective.target(flow, draw).in_space("output", flow, draw))
    return jumps(flow, 1) / c


@pytest.mark.parametrize(("n", "gain"), [(4, 0.7110), (16, 0.9201), (64, 0.9794)])
def test_consistency_training_shrinks_the_spread_by_the_product_of_cosines(n: int, gain: float) -> None:
    """c = .7, τ = .5, linear path: Π cos Δφ with φ = atan2(σ, αc). Targets are states, so the form is immaterial."""
    path = Linear(noise_scale=0.5)
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    product = torch.atan2(path.sigma(t), 0.7 * path.alpha(t)).diff().cos().prod().item()
    assert product == pytest.approx(gain, abs=5e-5)
    for form in (AverageVelocity(), Transfer()):
        assert consistency_gain(path, 0.7, n, form) == pytest.approx(product, abs=1e-12)


def test_equal_angles_give_the_power_of_a_cosine() -> None:
    for n in (4, 16):
        path = Cosine(noise_scale=0.5)
        assert consistency_gain(path, 0.5, n, Transfer()) == pytest.approx(math.cos(math.pi / 2 / n) ** n, abs=1e-12)


def test_consistency_training_gets_there_by_gradient_descent() -> None:
    path = Linear(noise_scale=0.5)
    objective, flow = consistency(path, 4, AverageVelocity())
    descend(objective, flow, four_rows(path, 0.7, *UniformGrid(n=4).all()), 200, 0.25)
    assert jumps(flow, 1) / 0.7 == pytest.approx(0.7110, abs=5e-5)


# ---------------------------------------------------------------------------- continuous time: the exact flow map


@pytest.mark.parametrize("path", [Linear(), Cosine(), Linear(noise_scale=0.5)])
@pytest.mark.parametrize("form", [AverageVelocity(), Transfer()])
def test_the_exact_map_is_where_the_mean_gradient_of_the_tangent_loss_vanishes(
    path: Path, form: AverageVelocity | Transfer
) -> None:
    """With conditional velocities: E[(F − F_tgt) x_t] = 0 at every (t, r), though no single row is at its target."""
    law = Gaussian(path=path, std=0.5)
    network = ExactNetwork(law, "average_velocity" if isinstance(form, AverageVelocity) else "transfer")
    flow = FlowMap(network, path, form)
    t, r = f64(1.0, 0.8, 0.5, 0.3), f64(0.0, 0.3, 0.5, 0.1)
    draw = four_rows(path, 0.5, t, t, r)
    residual = flow.predict(draw.x_t, draw.times.t, draw.times.r) - Tangent()(flow, draw).value
    moment = (residual * draw.x_t).reshape(4, 4).mean(1)
    torch.testing.assert_close(moment, torch.zeros(4).double(), rtol=0, atol=1e-12)
    assert residual.abs().mean() > 0.1


def test_flow_matching_in_one_step_lands_on_the_mean() -> None:
    """Gain 0: X_{1,0} = x − v(x) = E[x_0]."""
    objective = Objective(times=Diagonal(law=Uniform()), target=Direct(), label_dropout=0.0)
    table = Table(4)
    flow = FlowMap(table, Linear(), AverageVelocity(), StartOnly())
    t = torch.linspace(0.25, 1, 4, dtype=torch.float64)
    draw = four_rows(Linear(), 0.5, t, t, t)
    table.fit(draw, None, objective.target(flow, draw).value)
    assert jumps(flow, 1) == pytest.approx(0.0, abs=1e-15)


# ----------------------------------------------------------------------------------------------------------- guidance


class Classes(nn.Module):
    """One output for each class (and for no class), the same at every point and time; and for jumps of each level."""

    def __init__(self, classes: int, columns: int = 1) -> None:
        super().__init__()
        self.num_classes, self.null_label = classes, classes
        self.values = nn.Parameter(torch.zeros(classes + 1, columns, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        assert label is not None
        columns = self.values.shape[1]
        column = torch.zeros_like(label) if second is None or columns == 1 else torch.round(second).long()
        return torch.zeros_like(x) + expand(self.values[label, column], x)


@dataclass(frozen=True, kw_only=True)
class ByClass(Velocity):
    """A velocity that is one number for each class, and their mean where the class is hidden."""

    values: tuple[float, ...] = (2.0, -1.0)

    def __call__(self, teacher: FlowMap, draw: Draw) -> Tensor:
        table = f64(*self.values, sum(self.values) / len(self.values))
        assert draw.condition is not None
        return torch.zeros_like(draw.x) + expand(table[draw.condition], draw.x)


def class_draw(t: Tensor, r: Tensor) -> Draw:
    """Classes 0 and 1, and a row of a hidden class, at each time."""
    n = len(t)
    x = torch.zeros(3 * n, 1, dtype=torch.float64)
    times = [time.repeat_interleave(3) for time in (t, r)]
    label, dropped = torch.tensor([0, 1, 0]).repeat(n), torch.tensor([False, False, True]).repeat(n)
    return draw_at(Linear(), x, x, *times, label=label, dropped=dropped, null_label=2)


def by_class(target: Target) -> Target:
    assert isinstance(target, Tangent)
    assert isinstance(target.velocity, Guided)
    return replace(target, velocity=replace(target.velocity, base=ByClass()))


@pytest.mark.parametrize(("omega", "kappa", "scale"), [(1.0, 0.5, 2.0), (0.2, 0.92, 2.5), (2.0, 0.0, 2.0)])
def test_training_guidance_converges_to_its_effective_scale_at_rate_kappa(
    omega: float, kappa: float, scale: float
) -> None:
    """u(c) → v_∅ + ω/(1 − κ) (v_c − v_∅), at r = t and for jumps; each full refit shrinks the error by the factor κ."""
    recipe = meanflow(omega=omega, kappa=kappa)
    network = Classes(2)
    flow, draw = recipe.flow_map(network), class_draw(f64(0.6, 0.9), f64(0.6, 0.2))
    target, want = by_class(recipe.objective.target), 0.5 + scale * f64(1.5, -1.5)
    network.values.data[2] = 0.5  # the unconditional velocity is learned from rows of hidden classes alone
    errors = []
    for _ in range(8 if kappa < 0.9 else 60):
        value = target(flow, draw).value[:, 0]
        torch.testing.assert_close(value[:3], value[3:], rtol=0, atol=1e-12)  # r = t and r < t agree
        network.values.data[:, 0] = value[:3]
        assert network.values.data[2, 0].item() == pytest.approx(0.5, abs=1e-12)
        errors.append((network.values.data[:2, 0] - want).norm().item())
    if kappa == 0:
        assert errors[0] < 1e-12
        return
    assert [b / a for a, b in itertools.pairwise(errors)] == pytest.approx([kappa] * (len(errors) - 1))
    assert errors[-1] < 0.05


def test_guidance_gets_there_by_gradient_descent_with_the_null_class_learned_too() -> None:
    recipe = meanflow(omega=0.2, kappa=0.92, window=(0.5, 1.0))
    objective = replace(recipe.objective, target=by_class(recipe.objective.target), weighting=Unweighted())
    network = Classes(2)
    flow = recipe.flow_map(network)
    descend(objective, flow, class_draw(f64(0.9), f64(0.9)), 600, 0.2)
    torch.testing.assert_close(network.values.data[:, 0], f64(0.5 + 2.5 * 1.5, 0.5 - 2.5 * 1.5, 0.5), rtol=0, atol=1e-6)
    descend(objective, flow, class_draw(f64(0.4), f64(0.4)), 100, 0.2)  # outside the window: the plain velocity
    torch.testing.assert_close(network.values.data[:, 0], f64(2.0, -1.0, 0.5), rtol=0, atol=1e-6)


def test_shortcut_guidance_is_stored_in_all_jumps_but_the_finest() -> None:
    """Levels 6…0 carry v_∅ + w (v_c − v_∅) with w = 1.5, level 7 the plain velocity."""
    recipe = shortcut(guidance=1.5)
    split = recipe.objective.target
    assert isinstance(split, Split)
    target = replace(split, direct=Direct(velocity=ByClass()))
    network = Classes(2, 8)
    flow = recipe.flow_map(network)
    for level in range(7, -1, -1):
        d = 0.0 if level == 7 else 2.0**-level
        draw = class_draw(f64(1.0), f64(1.0 - d))
        draw = draw.with_times(draw.times._replace(s=draw.times.t - d / 2))
        value = target(flow, draw).value[:, 0]
        network.values.data[:, level] = value
        scale = 1.0 if level == 7 else 1.5
        torch.testing.assert_close(value, f64(0.5 + scale * 1.5, 0.5 - scale * 1.5, 0.5), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- moment matching


def test_moment_matching_has_the_exact_map_as_its_fixed_point_and_not_an_euler_step() -> None:
    """X_{t,r}(x_t) and X_{s,r}(x_s) agree in law for the exact map: unbiased MMD² within 5σ of 0, unlike Euler steps.

    c = .5, t = .9, s = .5, r = 0; groups of 4 rows, all independent as in a batch.
    """
    law, n = Gaussian(path=Linear(), std=0.5), 20_000
    generator = torch.Generator().manual_seed(0)
    x, eps = (scale * torch.randn(n, 1, generator=generator, dtype=torch.float64) for scale in (0.5, 1.0))
    t, s, r = (torch.full((n,), value, dtype=torch.float64) for value in (0.9, 0.5, 0.0))
    draw = draw_at(Linear(), x, eps, t, r, s)
    scores = []
    for output in ("average_velocity", "velocity"):
        flow = FlowMap(ExactNetwork(law, output), Linear(), AverageVelocity())
        target = TwoStep(first=Conditional())(flow, draw).value
        prediction = flow(draw.x_t, t, r)
        w = torch.full((n // 4,), 1 / 0.9, dtype=torch.float64)
        # target rows are moved on by one group, so that the two sides are independent
        values = grouped_mmd(prediction.reshape(-1, 4, 1), target.reshape(-1, 4, 1).roll(1, 0), w, 1e-4, True)
        scores.append(values.mean().item() / (values.std().item() / math.sqrt(len(values))))
    assert abs(scores[0]) < 5
    assert scores[1] > 20


# ------------------------------------------------------------------------------------------------------ a real network


def trained_spread(objective: Objective, steps: int, width: int, batch: int) -> float:
    """Std of one-step samples of a small network trained by the library's steps, over the true one (c = .5)."""
    torch.manual_seed(0)
    jumps = objective.times.ends != "diagonal"  # a network that never saw a gap must not be told one
    network = MLP(shape=(1,), width=width, depth=2, second_time=jumps)
    flow = FlowMap(network, Linear(), AverageVelocity(), StartAndGap() if jumps else StartOnly())
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        x = 0.5 * torch.randn(batch, 1, generator=generator)
        draw = objective.draw(Batch(x=x), Linear(), Streams(images=step), Progress(images=step, total=steps))
        optimizer.zero_grad()
        objective.evaluate(flow, flow, draw).loss.mean().backward()
        optimizer.step()
        schedule.step()
    noise, one = torch.randn(4000, 1, generator=generator), torch.ones(4000)
    with torch.no_grad():
        return flow(noise, one, torch.zeros(4000)).std().item() / 0.5


SPREADS: dict[str, tuple[Callable[[], Objective], float]] = {
    "meanflow": (lambda: Objective(times=Sorted(ratio=0.5), target=Tangent(), label_dropout=0.0), 1.0),
    "flow matching": (lambda: Objective(label_dropout=0.0), 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREADS)
def test_a_network_trained_in_one_dimension(name: str) -> None:
    """MeanFlow reaches the spread of the data in one step; flow matching collapses to the mean."""
    build, want = SPREADS[name]
    assert trained_spread(build(), 1500, 64, 512) == pytest.approx(want, abs=0.12)
