"""What each sampler does between two times: limits, laws, orders of convergence, and what it refuses."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oracles import f64, gaussian, log_slope, mixture
from sampling import SIGMA_MAX, SIGMA_MIN, collect, exact, exploding, mlp, silent, standard_deviation, start, wrong
from shortflow.errors import SamplerError, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap, LogStep, StartAndGap, StartOnly
from shortflow.guidance import GuidedFlowMap
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.recipes import RECIPES
from shortflow.sample import (
    GRIDS,
    SAMPLERS,
    Euler,
    Gamma,
    Heun,
    PushForward,
    ReNoise,
    Restart,
    Sampler,
    grid_times,
    noise,
    sample,
    time_at,
)
from shortflow.sample.grids import noise_ratio
from shortflow.theory import ExactNetwork, Gaussian

RULES = [PushForward(), ReNoise(), Gamma(gamma=0.6), Restart(repeats=2), Euler(), Heun()]


class Curve(Path):
    """α = 1 − t², σ = 0.7 t: a path without closed forms, on which noise levels are found by bisection."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**2

    def sigma(self, t: Tensor) -> Tensor:
        return 0.7 * t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -2 * t

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.7)

    def __repr__(self) -> str:
        return "Curve()"


PATHS = [Linear(), Linear(noise_scale=0.5), Cosine(noise_scale=0.5), Curve()]
inner = st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(lambda times: sorted(times, reverse=True))


class Recorder(nn.Module):
    """A network that records the times it is asked for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.asked: list[tuple[float, float]] = []

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
        gap = 0.0 if second is None else float(second[0])
        self.asked.append((float(time[0]), float(time[0]) - gap))
        return self.network(x, time, second, label)


def asked(rule: Sampler, times: Sequence[float], ends: Any = "any") -> list[tuple[float, float]]:
    """The (t, r) of the network calls of a sampler."""
    recorder = Recorder(ExactNetwork(gaussian(Linear())))
    flow = FlowMap(recorder, Linear(), AverageVelocity(), StartAndGap(), ends=ends)
    rule.check(flow, times)
    rule.run(flow, start(1, rule.draws(len(times) - 1)), times, None)
    return recorder.asked


# --------------------------------------------------------------------------------------------------------------- gamma


def flows(path: Path) -> FlowMap:
    """A two-time flow map of a random network, in single precision."""
    span = (SIGMA_MIN / SIGMA_MAX, 1.0) if isinstance(path, VarianceExploding) else (0.0, 1.0)
    return FlowMap(mlp().network, path, AverageVelocity(), StartAndGap(), span=span)


@pytest.mark.parametrize("path", [*PATHS, VarianceExploding()], ids=repr)
@given(inside=inner)
@settings(max_examples=10, deadline=None)
def test_gamma_of_zero_and_one_are_push_forward_and_re_noise_to_the_bit(path: Path, inside: list[float]) -> None:
    flow = flows(path)
    times = (1.0, *inside, flow.span[0])
    for gamma, rule in ((0.0, PushForward()), (1.0, ReNoise())):
        draws = rule.draws(len(times) - 1)
        assert Gamma(gamma=gamma).draws(len(times) - 1) == draws
        eps, label = noise(0, 0, 3, (2,), draws), torch.tensor([0, 1, 2])
        with torch.no_grad():
            got = Gamma(gamma=gamma).run(flow, eps, times, label)
            assert torch.equal(got, rule.run(flow, eps, times, label))


def test_gamma_is_continuous_at_its_limits() -> None:
    flow, times = flows(VarianceExploding()), (1.0, 0.3, 0.1, 0.01, SIGMA_MIN / SIGMA_MAX)
    eps, label = noise(0, 0, 3, (2,), 4), torch.tensor([0, 1, 2])
    flow, eps = flow.double(), eps.double()
    for near, rule in ((1e-9, PushForward()), (1 - 1e-14, ReNoise())):
        with torch.no_grad():
            got, want = (each.run(flow, eps, times, label) for each in (Gamma(gamma=near), rule))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@given(gamma=st.floats(0, 1), inside=inner)
@settings(max_examples=10, deadline=None)
def test_gamma_keeps_the_law_of_the_exact_map(path: Path, gamma: float, inside: list[float]) -> None:
    rule, times = Gamma(gamma=gamma), (1.0, *inside, 0.0)
    centred = exact(Gaussian(path=path, mean=0.0, std=0.4))
    assert standard_deviation(centred, rule, times) == pytest.approx(0.4, abs=1e-9)
    # No noise at all is the mean of all noises.
    eps = torch.zeros(rule.draws(len(times) - 1), 1, 1, dtype=torch.float64)
    mean = rule.run(exact(Gaussian(path=path, mean=0.3, std=0.4)), eps, times, None)
    assert float(mean) == pytest.approx(0.3, abs=1e-9)


@pytest.mark.parametrize("rule", [Gamma(gamma=0.3), Gamma(gamma=0.9), ReNoise(), Restart()], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 5, 18])
def test_the_law_is_kept_down_to_a_clean_end_that_holds_noise(rule: Sampler, steps: int) -> None:
    """From 80 ε, which lacks the deviation of the data: 2e-5 of it."""
    law = Gaussian(path=VarianceExploding(), mean=0.0, std=0.5)
    flow = exact(law, span=(SIGMA_MIN / SIGMA_MAX, 1.0))
    want = math.hypot(0.5, SIGMA_MIN)
    got = standard_deviation(flow, rule, grid_times(flow, steps))
    assert 1 - SIGMA_MAX / math.hypot(SIGMA_MAX, 0.5) >= 1 - got / want > -1e-12


@pytest.mark.parametrize("rule", [Gamma(gamma=0.6), Restart()], ids=repr)
def test_the_law_of_a_mixture_is_kept(rule: Sampler) -> None:
    """The first four moments of two steps, by Gauss–Hermite quadrature over both noises."""
    law = mixture(Linear(), 24)
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    a, b = np.meshgrid(node, node, indexing="ij")
    eps = torch.from_numpy(np.stack([a.ravel(), b.ravel()]))[:, :, None]
    x = rule.run(exact(law), eps, (1.0, 0.55, 0.0), None)[:, 0].numpy()
    mass = np.outer(weight, weight).ravel() / (2 * math.pi)
    raw = {1: 0.26, 2: 0.3 * 1.04 + 0.7 * 0.89, 3: -0.3 * 1.12 + 0.7 * 1.112, 4: 0.3 * 1.2448 + 0.7 * 1.5571}
    for power, want in raw.items():
        assert float(mass @ x**power) == pytest.approx(want, abs=0.01)


@given(gamma=st.floats(0.01, 0.99), t=st.floats(0.01, 0.9))
@settings(max_examples=10, deadline=None)
def test_on_noise_levels_gamma_is_that_of_ctm(gamma: float, t: float) -> None:
    """Jump to √(1−γ²) t, then add γ t ε: the published form, for α = 1, σ = 80 t and an end without noise."""
    law = Gaussian(path=VarianceExploding(), mean=0.3, std=0.5)
    eps = start(3, 2)
    low = math.sqrt(1 - gamma**2) * t
    x = law.flow_map(80 * eps[0], f64(1, 1, 1), f64(low, low, low)) + gamma * 80 * t * eps[1]
    x = law.flow_map(x, f64(t, t, t), f64(0, 0, 0))
    got = Gamma(gamma=gamma).run(exact(law), eps, (1.0, t, 0.0), None)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@given(gamma=st.floats(0, 1), t=st.floats(0.01, 0.99))
@settings(max_examples=10, deadline=None)
def test_gamma_squared_is_the_share_of_new_noise(path: Path, gamma: float, t: float) -> None:
    low = Gamma(gamma=gamma).below(path, t, 0.0)
    assert 0 <= low <= t
    kept = (noise_ratio(path, low) / noise_ratio(path, t)) ** 2
    assert kept == pytest.approx(1 - gamma**2, abs=1e-9)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
def test_impossible_gammas_are_refused(gamma: float) -> None:
    with pytest.raises(ShortflowError, match=f"0 ≤ gamma ≤ 1, got {gamma}"):
        Gamma(gamma=gamma)


# ------------------------------------------------------------------------------------------------------------- restart


@given(inside=inner)
@settings(max_examples=10, deadline=None)
def test_no_restarts_are_a_push_forward_to_the_bit(inside: list[float]) -> None:
    flow, times = mlp(), (1.0, *inside, 0.0)
    eps, label = noise(0, 0, 3, (2,)), torch.tensor([0, 1, 2])
    with torch.no_grad():
        got, want = (rule.run(flow, eps, times, label) for rule in (Restart(repeats=0), PushForward()))
    assert torch.equal(got, want)
    assert Restart(repeats=0).draws(len(times) - 1) == 1


def test_a_restart_goes_back_up_one_level_and_down_again() -> None:
    law = gaussian(Linear())
    eps, (t, s) = start(3, 5), (0.6, 0.2)

    def jump(x: Tensor, a: float, b: float) -> Tensor:
        return law.flow_map(x, f64(a, a, a), f64(b, b, b))

    def up(x: Tensor, low: float, high: float, noises: Tensor) -> Tensor:
        keep = (1 - high) / (1 - low)
        return keep * x + math.sqrt(high**2 - keep**2 * low**2) * noises

    x = jump(eps[0], 1.0, t)
    x = jump(x, t, s)
    x = jump(up(x, s, t, eps[1]), t, s)
    x = jump(up(x, s, t, eps[2]), t, s)
    x = jump(x, s, 0.0)
    x = jump(up(x, 0.0, s, eps[3]), s, 0.0)
    x = jump(up(x, 0.0, s, eps[4]), s, 0.0)
    got = Restart(repeats=2).run(exact(law), eps, (1.0, t, s, 0.0), None)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@given(repeats=st.integers(0, 3), inside=inner)
@settings(max_examples=10, deadline=None)
def test_restarts_keep_the_law_of_the_exact_map(path: Path, repeats: int, inside: list[float]) -> None:
    flow = exact(Gaussian(path=path, mean=0.0, std=0.4))
    got = standard_deviation(flow, Restart(repeats=repeats), (1.0, *inside, 0.0))
    assert got == pytest.approx(0.4, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_the_cost_of_restarts(steps: int, repeats: int) -> None:
    times = grid_times(silent(), steps)
    calls = asked(Restart(repeats=repeats), times)
    assert len(calls) == 1 + (steps - 1) * (1 + repeats)
    intervals = list(pairwise(times))
    want = [intervals[0], *(interval for interval in intervals[1:] for _ in range(1 + repeats))]
    assert np.array(calls) == pytest.approx(np.array(want))


def test_restarts_contract_the_error_that_was_made_above() -> None:
    """A map that is wrong above t = 1/2 only; below it is exact, so what remains is the error that is passed on."""
    flow = wrong(lambda t, r: torch.where(t > 0.5, torch.full_like(t, 0.8), torch.ones_like(t)))
    times = grid_times(flow, 4)
    error = [0.5 - standard_deviation(flow, Restart(repeats=k), times) for k in range(4)]
    assert error[0] == pytest.approx(0.5 * (1 - 0.8**2), rel=1e-12)  # two wrong jumps
    assert all(after < before for before, after in pairwise(error))


def test_negative_restarts_are_refused() -> None:
    with pytest.raises(ShortflowError, match="repeats ≥ 0, got -1"):
        Restart(repeats=-1)


# ------------------------------------------------------------------------------------------------------ Euler and Heun

SOLVERS = [(Euler(), 1.0), (Heun(), 2.0)]


@pytest.mark.parametrize(("rule", "order"), SOLVERS)
@pytest.mark.parametrize(
    ("path", "ends", "conditioning", "output"),
    [
        (Linear(), "diagonal", StartOnly(), "velocity"),
        (Linear(), "any", StartAndGap(), "average_velocity"),
        (Linear(), "dyadic", LogStep(steps=128), "velocity"),
        (Cosine(), "diagonal", StartAndGap(), "average_velocity"),
        (Curve(), "any", StartAndGap(), "average_velocity"),
    ],
)
def test_the_order_of_a_solver(
    rule: Sampler, order: float, path: Path, ends: Any, conditioning: Any, output: Any
) -> None:
    law = gaussian(path)
    flow = FlowMap(ExactNetwork(law, output), path, AverageVelocity(), conditioning, ends=ends)
    eps, steps, errors = start(), [32, 64, 128], []
    want = law.flow_map(path.sigma(f64(1)) * eps[0], f64(1, 1, 1), f64(0, 0, 0))
    for n in steps:
        times = grid_times(flow, n)
        rule.check(flow, times)
        errors.append(float((rule.run(flow, eps, times, None) - want).abs().max()))
    assert log_slope([1 / n for n in steps], errors) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize(("rule", "order"), SOLVERS)
def test_the_order_of_a_solver_on_a_mixture(rule: Sampler, order: float) -> None:
    law = mixture(Linear(), 60)
    flow = FlowMap(ExactNetwork(law, "velocity"), law.path, AverageVelocity(), StartOnly(), ends="diagonal")
    eps, steps, errors = start(4), [32, 64, 128], []
    want = law.flow_map(eps[0], f64(1, 1, 1, 1), f64(0, 0, 0, 0))
    for n in steps:
        errors.append(float((rule.run(flow, eps, grid_times(flow, n), None) - want).abs().max()))
    assert log_slope([1 / n for n in steps], errors) == pytest.approx(order, abs=0.05)


def test_heun_on_noise_levels_is_of_second_order_where_they_end_above_zero() -> None:
    """On the Karras grid, and with the correction in the last step too: σ_min > 0."""
    law = Gaussian(path=VarianceExploding(), mean=0.3, std=0.5)
    flow = FlowMap(
        ExactNetwork(law, "velocity"), law.path, AverageVelocity(), StartOnly(), ends="diagonal", span=(2.5e-5, 1.0)
    )
    eps, steps, errors = start(), [32, 64, 128], []
    want = law.flow_map(SIGMA_MAX * eps[0], f64(1, 1, 1), f64(2.5e-5, 2.5e-5, 2.5e-5))
    for n in steps:
        errors.append(float((Heun().run(flow, eps, grid_times(flow, n), None) - want).abs().max()))
    assert log_slope([1 / n for n in steps], errors) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("path", [Linear(), Linear(noise_scale=0.5), VarianceExploding()], ids=repr)
@given(inside=inner)
@settings(max_examples=10, deadline=None)
def test_euler_is_the_push_forward_of_flow_matching_on_straight_paths(path: Path, inside: list[float]) -> None:
    flow = FlowMap(mlp().network, path, AverageVelocity(), StartAndGap(), ends="diagonal")
    eps, label, times = noise(0, 0, 3, (2,)), torch.tensor([0, 1, 2]), (1.0, *inside, 0.0)
    with torch.no_grad():
        got, want = (rule.run(flow, eps, times, label) for rule in (Euler(), PushForward()))
    assert torch.equal(got, want)


def test_on_a_curved_path_the_push_forward_of_flow_matching_is_ddim() -> None:
    """cos(π(r−t)/2) x + (2/π) sin(π(r−t)/2) v, where Euler takes x + (r − t) v."""
    law, (t, r) = gaussian(Cosine()), (1.0, 0.25)
    flow = FlowMap(ExactNetwork(law, "velocity"), law.path, AverageVelocity(), StartOnly(), ends="diagonal")
    x = start()[0]
    v, angle = law.velocity(x, f64(t, t, t)), (r - t) * math.pi / 2
    ddim = PushForward().run(flow, start(), (t, r), None)
    torch.testing.assert_close(ddim, math.cos(angle) * x + math.sin(angle) * 2 / math.pi * v, rtol=0, atol=1e-12)
    torch.testing.assert_close(Euler().run(flow, start(), (t, r), None), x + (r - t) * v, rtol=0, atol=1e-12)


def test_the_times_that_heun_asks_for() -> None:
    times = (1.0, 0.5, 0.25, 0.0)
    want = [1.0, 0.5, 0.5, 0.25, 0.25]  # 2N − 1, none at the data
    assert asked(Heun(), times) == [(t, t) for t in want]
    assert asked(Heun(), (1.0, 0.5), "diagonal") == [(1.0, 1.0), (0.5, 0.5)]
    assert asked(Euler(), times) == [(t, t) for t in times[:-1]]


def test_a_heun_step_is_the_mean_of_two_slopes() -> None:
    law, (t, r) = gaussian(Linear()), (1.0, 0.4)
    x = start()[0]
    v = law.velocity(x, f64(t, t, t))
    after = law.velocity(x + (r - t) * v, f64(r, r, r))
    got = Heun().run(exact(law), start(), (t, r), None)
    torch.testing.assert_close(got, x + (r - t) * (v + after) / 2, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------- every sampler alike


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(("n", "batch_size"), [(1, 256), (7, 7), (7, 3), (11, 4)])
def test_image_k_is_the_same_for_any_number_and_batch_size(rule: Sampler, n: int, batch_size: int) -> None:
    flow = mlp()
    want = collect(flow, 11, (2,), steps=4, sampler=rule, seed=3, batch_size=1)
    got = collect(flow, n, (2,), steps=4, sampler=rule, seed=3, batch_size=batch_size)
    torch.testing.assert_close(got, want[:n], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_noises_are_used_up_and_none_twice(rule: Sampler) -> None:
    """Each noise moves the samples, and a noise more than `draws` says is never looked at."""
    flow, times = mlp(), (1.0, 0.7, 0.4, 0.2, 0.0)
    draws = rule.draws(4)
    label, eps = torch.zeros(1, dtype=torch.long), noise(0, 0, 1, (2,), draws + 1)
    with torch.no_grad():
        x = rule.run(flow, eps, times, label)
        for i in range(draws + 1):
            other = eps.clone()
            other[i] += 1
            assert torch.equal(rule.run(flow, other, times, label), x) == (i == draws)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_guidance_of_scale_one_is_none(rule: Sampler) -> None:
    flow = mlp()
    guided = GuidedFlowMap(flow, 1.0, (0.0, 1.0))  # what `guide` would leave out
    x = collect(flow, 5, (2,), steps=3, sampler=rule)
    torch.testing.assert_close(collect(guided, 5, (2,), steps=3, sampler=rule), x, rtol=0, atol=1e-5)


def test_guided_rows_have_their_own_times() -> None:
    """The published IMM code doubles the states of a guided batch but not their times (I2): rows need their own."""
    flow = GuidedFlowMap(mlp(), 2.5, (0.3, 0.9))
    x, label = noise(0, 0, 4, (2,))[0], torch.tensor([0, 1, 2, 0])
    t, r = torch.tensor([1.0, 0.8, 0.5, 0.2]), torch.tensor([0.5, 0.0, 0.5, 0.1])
    with torch.no_grad():
        mixed, slope = flow(x, t, r, label), flow.velocity(x, t, label)
        for i in range(4):
            one = slice(i, i + 1)
            torch.testing.assert_close(mixed[one], flow(x[one], t[one], r[one], label[one]), rtol=0, atol=1e-5)
            torch.testing.assert_close(slope[one], flow.velocity(x[one], t[one], label[one]), rtol=0, atol=1e-5)


def test_every_sampler_has_a_name() -> None:
    assert {type(rule) for rule in RULES} == set(SAMPLERS.values())
    assert all(isinstance(make(), Sampler) for make in SAMPLERS.values())


# ------------------------------------------------------------------------------------------------------------- refusals

PUSH = r"jumps in between\. Use the re-noise sampler"
DATA = r"no jump to the data; use the push-forward sampler"
SLOPE = r"knows no velocity; use the re-noise sampler"
STEPS = r"length 1, 1/2, 1/4, …, 1/8, not from 1 to 0\.6\d*; use 1, 2, 4, 8, … steps"
GUARD = {
    "diagonal": (None, DATA, r"at r = t only .*Use the push-forward sampler", None, None, None),
    "zero": (PUSH, None, r"jumps to the data .*Use the re-noise sampler", PUSH, SLOPE, SLOPE),
    "any": (None, None, None, None, None, None),
    "dyadic": (
        STEPS,
        r"to the data from 1, 1/2, 1/4, …, 1/8 only; use such times, or the push-forward sampler",
        r"1/2, 1/4, … only.*Use the push-forward sampler",
        STEPS,
        r"velocity at multiples of 1/8, not at 0\.666667; use 1, 2, 4, 8, …, 8 steps",
        r"velocity at multiples of 1/8, not at 0\.666667; use 1, 2, 4, 8, …, 8 steps",
    ),
}


@pytest.mark.parametrize("ends", list(GUARD))
@pytest.mark.parametrize("index", range(len(RULES)))
def test_three_steps_are_refused_by_what_was_not_trained_for_them(ends: str, index: int) -> None:
    """E19: a sampler that pushes forward through a network for r = 0 gives wrong images and no error."""
    rule, reason = RULES[index], GUARD[ends][index]
    flow = silent(ends, conditioning=LogStep(steps=8) if ends == "dyadic" else None)
    if reason is None:
        rule.check(flow, grid_times(flow, 3))
    else:
        with pytest.raises(SamplerError, match=reason):
            sample(flow, 2, (1,), steps=3, sampler=rule)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_names_the_samplers_that_fit_it(name: str) -> None:
    """E19 for the published methods: consistency models are re-noised, all others pushed forward."""
    recipe = RECIPES[name]()
    flow = recipe.flow_map(nn.Identity())
    fit = []
    for called, make in SAMPLERS.items():
        try:
            make().check(flow, grid_times(flow, 4))
            fit.append(called)
        except SamplerError:
            pass
    want = {
        "diagonal": ["push-forward", "restart", "euler", "heun"],
        "zero": ["re-noise"],
        "any": list(SAMPLERS),
        "dyadic": ["push-forward", "restart", "euler", "heun"],
    }
    assert fit == want[flow.ends]


@pytest.mark.parametrize("rule", [PushForward(), Restart()])
def test_no_jump_is_shorter_than_the_finest_that_was_trained(rule: Sampler) -> None:
    flow = silent("dyadic", conditioning=LogStep(steps=8))
    rule.check(flow, grid_times(flow, 8))
    with pytest.raises(SamplerError, match=r"1/2, 1/4, …, 1/8, not from 1 to 0.9375"):
        rule.check(flow, grid_times(flow, 16))


@pytest.mark.parametrize("rule", [Euler(), Heun()])
def test_a_dyadic_network_that_does_not_know_its_finest_step_has_no_velocity(rule: Sampler) -> None:
    with pytest.raises(SamplerError, match="is not told which is the finest"):
        rule.check(silent("dyadic"), (1.0, 0.5, 0.0))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_limits_of_gamma_take_the_networks_of_their_limits(gamma: float) -> None:
    rule = Gamma(gamma=gamma)
    rule.check(silent("diagonal" if gamma == 0 else "zero"), (1.0, 0.5, 0.0))
    with pytest.raises(SamplerError, match=PUSH if gamma == 0 else DATA):
        rule.check(silent("zero" if gamma == 0 else "diagonal"), (1.0, 0.5, 0.0))


def test_gamma_ends_at_the_data() -> None:
    with pytest.raises(SamplerError, match=r"ends at 0.2. Put 0 at its end"):
        Gamma(gamma=0.5).check(silent(), (1.0, 0.2))


# ----------------------------------------------------------------------------------------------------- truncated models


def truncated(flow: FlowMap, lowest: float) -> FlowMap:
    """A model that was trained for jumps that start at `lowest` or above."""
    flow.lowest = lowest  # type: ignore[assignment]
    return flow


@pytest.mark.parametrize("rule", [*RULES, Gamma(gamma=1.0)], ids=repr)
def test_a_truncated_model_is_not_asked_below_its_lowest_time(rule: Sampler) -> None:
    flow = truncated(silent(), 0.4)
    with pytest.raises(SamplerError, match=r"start at time 0\.4 or above.*one from 0\.2\. Use fewer steps, or"):
        rule.check(flow, (1.0, 0.5, 0.2, 0.0))
    rule.check(flow, (1.0, 0.4, 0.0))
    rule.check(flow, (1.0, 0.0))


@pytest.mark.parametrize("kind", [None, *GRIDS])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 128])
def test_every_grid_stays_where_a_truncated_model_knows_its_way(kind: str | None, steps: int) -> None:
    """Times are spaced down to its lowest one; the last jump goes to the data. Other models have the grids they had."""
    for flow in (silent(), exploding(silent().network)):
        whole = grid_times(flow, steps, kind)
        times = grid_times(truncated(flow, 0.0125), steps, kind)
        ReNoise().check(flow, times)
        assert (len(times), times[0], times[-1]) == (steps + 1, whole[0], whole[-1])
        assert all(time > 0.0125 for time in times[:-1])
        if kind == "uniform" or (kind is None and flow.path == Linear()):
            assert times[:-1] == pytest.approx([1 - (1 - 0.0125) * i / steps for i in range(steps)])
        assert grid_times(truncated(flow, 0.0), steps, kind) == whole


def test_heun_does_not_correct_with_a_velocity_that_was_not_trained() -> None:
    recorder = Recorder(ExactNetwork(gaussian(Linear())))
    flow = truncated(FlowMap(recorder, Linear(), AverageVelocity(), StartAndGap(), span=(0.1, 1.0)), 0.4)
    Heun().run(flow, start(1), (1.0, 0.4, 0.1), None)
    assert recorder.asked == [(1.0, 1.0), (0.4, 0.4), (0.4, 0.4)]


def test_a_level_of_a_truncated_model_is_a_middle_time() -> None:
    """TCM: trained from σ = 1 on; two steps through it are allowed, through ECT's 0.821 they are not."""
    flow = truncated(exploding(silent().network), time_at(VarianceExploding(), 1.0))
    ReNoise().check(flow, grid_times(flow, 2, middle=time_at(flow.path, 1.0)))
    with pytest.raises(SamplerError, match=r"0\.0125 or above .*from 0\.0102625"):
        ReNoise().check(flow, grid_times(flow, 2, middle=time_at(flow.path, 0.821)))
