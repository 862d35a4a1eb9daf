import math
import threading
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oracles import column, f64, finite, gaussian, log_slope, mixture
from sampling import (
    SIGMA_MAX,
    SIGMA_MIN,
    collect,
    exact,
    exploding,
    mlp,
    silent,
    standard_deviation,
    start,
    wrong,
)
from shortflow.errors import SamplerError
from shortflow.flowmap import AverageVelocity, FlowMap, StartAndGap, StartOnly, Transfer
from shortflow.guidance import guide
from shortflow.paths import Cosine, Linear, Path
from shortflow.sample import (
    PushForward,
    ReNoise,
    Sampler,
    default_sampler,
    grid_times,
    interpolate,
    noise,
    sample,
)
from shortflow.theory import ExactNetwork, FiniteData, Gaussian

PATHS = [Linear(), Linear(noise_scale=0.5), Cosine()]


# --------------------------------------------------------------------------------------------------- the exact flow map


@pytest.mark.parametrize("path", PATHS, ids=repr)
@given(inner=st.lists(st.floats(0.001, 0.999), max_size=6, unique=True))
@settings(max_examples=20, deadline=None)
def test_push_forward_of_the_exact_map_does_not_depend_on_the_grid(path: Path, inner: list[float]) -> None:
    flow, eps = exact(gaussian(path)), start()
    one = PushForward().run(flow, eps, (1.0, 0.0), None)
    grid = (1.0, *sorted(inner, reverse=True), 0.0)
    torch.testing.assert_close(PushForward().run(flow, eps, grid, None), one, rtol=0, atol=1e-10)


def test_push_forward_of_the_exact_map_of_a_mixture() -> None:
    flow, eps = exact(mixture(Linear(), 60)), start(8)
    many = PushForward().run(flow, eps, grid_times(flow, 3), None)
    torch.testing.assert_close(many, PushForward().run(flow, eps, (1.0, 0.0), None), rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("rule", [PushForward(), ReNoise()])
def test_samples_of_the_exact_map_have_the_deviation_of_the_data(path: Path, steps: int, rule: Sampler) -> None:
    flow = exact(Gaussian(path=path, mean=0.0, std=0.5))
    got = standard_deviation(flow, rule, grid_times(flow, steps))
    assert got == pytest.approx(0.5, abs=1e-7 if path == Cosine() else 1e-12)  # cos(π/2) is 6e-17, not 0


def test_samples_of_the_exact_map_have_the_mean_and_deviation_of_the_data() -> None:
    n = 4000
    flow = exact(gaussian(Linear()), ends="zero")
    x = torch.cat([batch.x for batch in sample(flow, n, (1,), steps=3)])
    assert abs(float(x.mean()) - 0.3) < 5 * 0.5 / n**0.5
    assert abs(float(x.std()) - 0.5) < 5 * 0.5 / (2 * n) ** 0.5


# ------------------------------------------------------------------------------------------------- maps that are wrong

GROWTH = {
    0.02: (0.49, 0.48806, 0.48189, 0.4719, 0.45609, 0.43182, 0.39594),
    0.05: (0.475, 0.47035, 0.45561, 0.4324, 0.39751, 0.3481, 0.28376),
    -0.05: (0.525, 0.53035, 0.54738, 0.57694, 0.62959, 0.72806, 0.92944),
}


@pytest.mark.parametrize("error", list(GROWTH))
def test_an_error_of_the_jump_grows_with_the_steps_of_re_noise(error: float) -> None:
    """A jump multiplies the deviation by (1 − e) c/S_t; the point it starts from has (1 − t)² s² + t², not S_t²."""
    flow = wrong(lambda t, r: torch.full_like(t, 1 - error))
    for k, golden in enumerate(GROWTH[error]):
        grid, variance = grid_times(flow, 2**k), 0.0
        for t in grid[:-1]:
            factor = (1 - error) * 0.5 / math.hypot((1 - t) * 0.5, t)
            variance = factor**2 * ((1 - t) ** 2 * variance + t**2)
        got = standard_deviation(flow, ReNoise(), grid)
        assert got == pytest.approx(variance**0.5, rel=1e-12)
        assert got == pytest.approx(golden, abs=6e-6)


@pytest.mark.parametrize("error", [0.02, -0.05])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_same_error_of_every_jump_is_a_power_in_push_forward(error: float, steps: int) -> None:
    flow = wrong(lambda t, r: torch.full_like(t, 1 - error))
    got = standard_deviation(flow, PushForward(), grid_times(flow, steps))
    assert got == pytest.approx(0.5 * (1 - error) ** steps, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 64])
def test_an_error_in_proportion_to_the_jump_stays_bounded_in_push_forward(steps: int) -> None:
    flow = wrong(lambda t, r: torch.exp(-0.05 * (t - r)))
    got = standard_deviation(flow, PushForward(), grid_times(flow, steps))
    assert got == pytest.approx(0.5 * math.exp(-0.05), rel=1e-12)


# ------------------------------------------------------------------------------------------------------ flow matching


@pytest.mark.parametrize(
    ("path", "parameterization"), [(Linear(), AverageVelocity()), (Cosine(), Transfer()), (Cosine(), AverageVelocity())]
)
@pytest.mark.parametrize("conditioning", [StartOnly(), StartAndGap()], ids=repr)
def test_flow_matching_converges_with_order_one(path: Path, parameterization: Any, conditioning: Any) -> None:
    """Also where the network could be asked for a jump: trained at r = t, it is only asked there."""
    law = gaussian(path)
    flow = FlowMap(ExactNetwork(law), path, parameterization, conditioning, ends="diagonal")
    eps, errors, steps = start(), [], [32, 64, 128]
    want = law.flow_map(eps[0], f64(1, 1, 1), f64(0, 0, 0))
    for n in steps:
        errors.append(float((PushForward().run(flow, eps, grid_times(flow, n), None) - want).abs().max()))
    assert log_slope([1 / n for n in steps], errors) == pytest.approx(1.0, abs=0.05)


def test_one_step_of_flow_matching_lands_on_the_mean() -> None:
    law = gaussian(Linear())
    flow = FlowMap(ExactNetwork(law, "velocity"), law.path, AverageVelocity(), StartOnly(), ends="diagonal")
    x = PushForward().run(flow, start(), (1.0, 0.0), None)
    torch.testing.assert_close(x, column(0.3, 0.3, 0.3), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------- variance-exploding path


class Zero(nn.Module):
    """Always jumps to c_skip x."""

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
        return torch.zeros_like(x)


def test_noise_is_added_from_sigma_min_on() -> None:
    """With f = c_skip x the sample is c_skip(σ_2) (c_skip(σ_1) 80 ε_1 + √(σ_2² − σ_min²) ε_2)."""
    flow = exploding(Zero())
    eps = torch.eye(2, dtype=torch.float64)[:, :, None]
    second = 0.005
    x = ReNoise().run(flow, eps, (1.0, second / SIGMA_MAX, SIGMA_MIN / SIGMA_MAX), None)[:, 0]
    skip = [0.25 / ((sigma - SIGMA_MIN) ** 2 + 0.25) for sigma in (SIGMA_MAX, second)]
    want = f64(skip[0] * skip[1] * SIGMA_MAX, skip[1] * math.sqrt(second**2 - SIGMA_MIN**2))
    torch.testing.assert_close(x, want, rtol=1e-12, atol=0)


def test_the_grid_of_noise_levels_is_that_of_karras() -> None:
    flow = exploding(Zero())
    grid = grid_times(flow, 17)
    sigma = [SIGMA_MAX * time for time in grid]
    golden = {0: 80.0, 1: 57.586, 8: 3.2568, 9: 1.9233, 16: 0.007528, 17: 0.002}
    assert {i: float(f"{sigma[i]:.5g}") for i in golden} == golden
    assert (grid[0], grid[-1]) == (flow.span[1], flow.span[0])


@given(steps=st.integers(1, 40), low=st.sampled_from([0.0, 1e-4, 0.006]), high=st.sampled_from([0.994, 1.0]))
@settings(deadline=None)
def test_uniform_grids_end_exactly_at_the_span(steps: int, low: float, high: float) -> None:
    flow = exact(gaussian(Linear()), span=(low, high))
    grid = grid_times(flow, steps)
    assert (grid[0], grid[-1], len(grid)) == (high, low, steps + 1)
    assert [a - b for a, b in pairwise(grid)] == pytest.approx([(high - low) / steps] * steps, rel=1e-9)


def test_karras_grids_can_be_asked_for_on_any_path() -> None:
    flow = exact(gaussian(Linear()))
    assert grid_times(flow, 2, "karras") == pytest.approx((1.0, 0.5**7, 0.0))


# -------------------------------------------------------------------------------------------- images, batches, classes


@given(
    n=st.integers(1, 12),
    first=st.integers(0, 12),
    draws=st.integers(1, 4),
    shape=st.sampled_from([(2,), (1, 4, 5), (8, 8, 8), (3, 32, 32), (2, 64, 64)]),  # blocks of 2048, 128, 8, 1 and 1
)
@settings(max_examples=30, deadline=None)
def test_the_noise_of_an_image_depends_on_its_index_only(
    n: int, first: int, draws: int, shape: tuple[int, ...]
) -> None:
    got, all_of_them = noise(5, first, n, shape, draws), noise(5, 0, 24, shape, 4)
    assert got.shape == (draws, n, *shape)
    assert torch.equal(got, all_of_them[:draws, first : first + n])
    assert not torch.equal(got, noise(6, first, n, shape, draws))


def test_noise_on_both_sides_of_a_blocks_end_is_that_of_its_images() -> None:
    all_of_them = noise(5, 0, 5000, (2,), 2)
    for first, n in ((2047, 1), (2047, 2), (2048, 1), (100, 4500), (4095, 900)):
        assert torch.equal(noise(5, first, n, (2,), 2), all_of_them[:, first : first + n])
    assert len(all_of_them.unique()) > 0.99 * all_of_them.numel()  # no block repeats another


def test_noise_is_standard_normal_and_independent() -> None:
    n = 4000
    eps = noise(0, 0, n, (2,), 2).permute(1, 0, 2).flatten(1)
    assert eps.mean(0).abs().max() < 5 / n**0.5
    assert (torch.cov(eps.T) - torch.eye(4)).abs().max() < 5 * (2 / n) ** 0.5


@pytest.mark.parametrize("ends", ["any", "zero"])
@pytest.mark.parametrize(("n", "batch_size"), [(1, 256), (7, 7), (7, 3), (11, 4), (11, 256)])
def test_image_k_is_the_same_for_any_number_and_batch_size(ends: str, n: int, batch_size: int) -> None:
    flow = mlp(ends)
    want = list(sample(flow, 11, (2,), steps=4, seed=3, batch_size=1))
    got = list(sample(flow, n, (2,), steps=4, seed=3, batch_size=batch_size))
    assert [batch.first for batch in got] == list(range(0, n, batch_size))
    x, label = torch.cat([batch.x for batch in got]), torch.cat([batch.label for batch in got])
    torch.testing.assert_close(x, torch.cat([batch.x for batch in want])[:n], rtol=0, atol=1e-5)
    assert label.tolist() == [k % 3 for k in range(n)]


def test_every_number_of_steps_starts_from_the_same_noise() -> None:
    flow = exact(Gaussian(path=Linear(), mean=0.0, std=1.0), ends="zero")
    one, two = (collect(flow, 5, (1,), times=(1.0, *inner, 0.0)) for inner in ((), (1e-6,)))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_classes_can_be_chosen() -> None:
    flow = mlp()
    label = torch.tensor([2, 2, 0, 3])  # 3: no class
    got = torch.cat([batch.label for batch in sample(flow, 4, (2,), label=label, batch_size=3)])
    assert got.tolist() == [2, 2, 0, 3]
    x = collect(flow, 4, (2,), label=label, batch_size=3)
    for k, c in enumerate(label.tolist()):
        alone = collect(flow, 4, (2,), label=torch.full((4,), c))
        torch.testing.assert_close(x[k], alone[k], rtol=0, atol=1e-6)
    assert collect(flow, 4, (2,))[1].ne(x[1]).any()


def test_samples_of_a_class_come_from_its_data() -> None:
    labels = torch.tensor([0, 1, 0])
    law = FiniteData(path=Linear(), points=column(-1.0, 0.2, 1.5).float(), labels=labels, steps=50)
    got = collect(exact(law), 12, (1,), steps=2)[:, 0]
    assert got[1::2].tolist() == pytest.approx([0.2] * 6, abs=1e-3)
    assert all(min(abs(x + 1.0), abs(x - 1.5)) < 1e-3 for x in got[::2].tolist())


def test_unconditional_samples_have_no_class() -> None:
    assert [batch.label for batch in sample(exact(finite(Linear(), 5)), 3, (1,), batch_size=2)] == [None, None]


def test_a_double_precision_network_gets_double_precision_noise() -> None:
    x, double = collect(mlp(), 3, (2,)), collect(mlp().double(), 3, (2,))
    assert double.dtype == torch.float64
    torch.testing.assert_close(x.double(), double, rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- guidance


def test_a_guided_flow_map_is_sampled_like_any_other() -> None:
    flow = mlp()
    label = torch.tensor([0, 1, 2])
    x = noise(0, 0, 3, (2,))[0]
    for a, b in ((1.0, 0.5), (0.5, 0.0)):
        t, r = torch.full((3,), a), torch.full((3,), b)
        with torch.no_grad():
            own, null = (flow.predict(x, t, r, c) for c in (label, torch.full((3,), 3)))
        x = x + (b - a) * (null + 2.5 * (own - null))
    torch.testing.assert_close(collect(guide(flow, 2.5), 3, (2,), steps=2), x, rtol=1e-5, atol=1e-5)


def test_guidance_of_scale_one_changes_nothing() -> None:
    flow = mlp()
    assert torch.equal(collect(guide(flow, 1.0), 3, (2,), steps=2), collect(flow, 3, (2,), steps=2))


# ------------------------------------------------------------------------------------------------------ what is left


@pytest.mark.parametrize("guided", [False, True])
def test_training_mode_and_gradients_are_as_before(guided: bool) -> None:
    flow = mlp(dropout=0.5)
    flow.network.blocks.eval()
    before = {name: module.training for name, module in flow.named_modules()}
    assert set(before.values()) == {True, False}
    modes = []
    hook = flow.network.last.register_forward_hook(lambda module, *_: modes.append(module.training))
    batches = sample(guide(flow, 2.0) if guided else flow, 4, (2,), batch_size=2)
    for batch in batches:
        assert {name: module.training for name, module in flow.named_modules()} == before
        assert torch.is_grad_enabled()
        assert not batch.x.requires_grad
    interpolate(flow, (2,))
    hook.remove()
    assert modes == [False, False, False]
    assert {name: module.training for name, module in flow.named_modules()} == before


def test_training_mode_is_restored_after_an_error() -> None:
    flow = mlp()
    with pytest.raises(ValueError):  # the network was built for points of another shape
        list(sample(flow, 4, (5,)))
    assert all(module.training for module in flow.modules())
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------------ interpolation


@pytest.mark.parametrize("ends", ["any", "zero"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("label", [None, 2])
def test_an_interpolation_goes_from_one_plain_sample_to_another(ends: str, steps: int, label: int | None) -> None:
    flow = mlp(ends)
    x = interpolate(flow, (2,), seeds=(4, 9), points=5, steps=steps, label=label)
    given = torch.tensor([0 if label is None else label])
    want = [collect(flow, 1, (2,), steps=steps, seed=seed, label=given) for seed in (4, 9)]
    torch.testing.assert_close(x[[0, -1]], torch.cat(want), rtol=0, atol=1e-5)


def test_an_interpolation_follows_a_great_circle() -> None:
    """On data N(0, I) the map is the identity, so the samples are the noises."""
    flow = exact(Gaussian(path=Linear(), mean=0.0, std=1.0, sample_shape=(3, 4)))
    a, b = (noise(seed, 0, 1, (3, 4))[0, 0].flatten() for seed in (0, 1))
    x = interpolate(flow, (3, 4), points=7).flatten(1)
    length = x.norm(dim=1)
    torch.testing.assert_close(length, torch.linspace(float(a.norm()), float(b.norm()), 7), rtol=1e-5, atol=0)
    unit = x / length[:, None]
    angle = math.acos(float(a @ b / (a.norm() * b.norm())))
    step = torch.arccos((unit[1:] * unit[:-1]).sum(1))
    torch.testing.assert_close(step, torch.full((6,), angle / 6), rtol=1e-4, atol=0)


def test_an_interpolation_without_a_great_circle_is_straight() -> None:
    flow = exact(Gaussian(path=Linear(), mean=0.0, std=1.0))
    a, b = (float(noise(seed, 0, 1, (1,))) for seed in (0, 1))
    torch.testing.assert_close(interpolate(flow, (1,), points=5)[:, 0], torch.linspace(a, b, 5), rtol=1e-5, atol=1e-6)
    same = interpolate(flow, (4,), seeds=(3, 3), points=3)
    torch.testing.assert_close(same, noise(3, 0, 1, (4,))[0].expand(3, 4), rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flow", "options", "reason"),
    [
        (silent("zero"), {"steps": 2, "sampler": PushForward()}, r"only for jumps to the data \(r = 0\).*re-noise"),
        (silent("zero"), {"times": (1.0, 0.2), "sampler": PushForward()}, r"ends at 0.2. Put 0 at its end"),
        (silent("zero"), {"times": (1.0, 0.5, 0.2)}, r"ends at 0.2. Put 0 at its end"),
        (silent("diagonal"), {"sampler": ReNoise()}, "flow matching.*no jump to the data.*push-forward"),
        (silent("dyadic"), {"steps": 3}, r"length 1, 1/2, 1/4, …, not from 1 to 0.666667"),
        (silent("dyadic"), {"times": (1.0, 0.75, 0.25, 0.0)}, "not from 0.75 to 0.25"),
        (silent("dyadic"), {"steps": 4, "sampler": ReNoise()}, "jumps to the data from 1, 1/2, 1/4"),
        (silent(), {"steps": 0}, "steps must be at least 1, got 0"),
        (silent(), {"times": (1.0, 0.2, 0.5, 0.0)}, r"must decrease.*\[1.0, 0.2, 0.5, 0.0\]"),
        (silent(), {"times": (1.0, 0.5, 0.5, 0.0)}, "must decrease"),
        (silent(), {"times": (1.0, math.nan, 0.0)}, "must decrease"),
        (silent(), {"times": (1.0,)}, "at least two"),
        (silent(), {"times": (1.0, -0.1)}, "from 1 down to 0, the grid goes from 1 to -0.1"),
        (silent(span=(0.0, 0.994)), {"times": (1.0, 0.0)}, "from 0.994 down to 0, the grid goes from 1 to 0"),
        (silent(), {"times": (0.9, 0.0)}, "pure noise.*at time 1; the grid starts at 0.9"),
        (silent(), {"label": torch.tensor([0, 0])}, "unconditional"),
        (silent(num_classes=3), {"label": torch.tensor([0, 3])}, "from 0 to 2; got 0 to 3"),
        (silent(num_classes=3), {"label": torch.tensor([-1, 0])}, "from 0 to 2; got -1 to 0"),
        (mlp(), {"label": torch.tensor([0, 4])}, "from 0 to 2, or 3 for no class; got 0 to 4"),
        (silent(), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(flow: FlowMap, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(SamplerError, match=reason):
        sample(flow, 2, (1,), **options)


@pytest.mark.parametrize("label", [torch.tensor([0]), torch.tensor([0, 1, 2]), torch.zeros(0, dtype=torch.long)])
def test_there_must_be_one_class_an_image(label: Tensor) -> None:
    # The shape checker of the tests knows n from nowhere else, so this one reaches the library.
    with pytest.raises(SamplerError, match=f"each of the 2 images, got {len(label)}"):
        sample(silent(num_classes=3), 2, (1,), label=label)


def test_an_unknown_grid_is_refused() -> None:
    with pytest.raises(SamplerError, match=r"no grid called 'cosine'.*'uniform', 'karras' and 'edm'"):
        grid_times(silent(), 4, "cosine")


@pytest.mark.parametrize(
    ("flow", "options", "reason"),
    [
        (silent(), {"points": 1}, "at least 2 points, got 1"),
        (silent("dyadic"), {"steps": 3}, "1/4"),
        (silent(), {"label": 1}, "unconditional"),
        (silent(num_classes=3), {"label": 5}, "from 0 to 2; got 5 to 5"),
    ],
)
def test_an_interpolation_that_does_not_fit_is_refused(flow: FlowMap, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(SamplerError, match=reason):
        interpolate(flow, (1,), **options)


@pytest.mark.parametrize(
    ("ends", "options"),
    [
        ("zero", {"steps": 1, "sampler": PushForward()}),
        ("zero", {"steps": 5}),
        ("dyadic", {"steps": 8}),
        ("dyadic", {"times": (1.0, 0.5, 0.25, 0.0)}),
        ("dyadic", {"times": (1.0, 0.5, 0.0), "sampler": ReNoise()}),
        ("any", {"times": (1.0, 0.9, 0.2)}),
        ("any", {"steps": 3, "sampler": ReNoise()}),
        ("diagonal", {"times": (1.0, 0.3, 0.0)}),
    ],
)
def test_what_fits_is_sampled(ends: str, options: dict[str, Any]) -> None:
    """The exact map gives N(0, 1) on data N(0, 1), where every jump is a multiple of the identity."""
    law = Gaussian(path=Linear(), mean=0.0, std=1.0)
    flow = exact(law, ends=ends)
    assert list(sample(flow, 2, (1,), **options))
    if ends != "diagonal":
        times = options.get("times") or grid_times(flow, options["steps"])
        s = math.hypot(1 - times[-1], times[-1])
        rule = options.get("sampler") or default_sampler(flow)
        assert standard_deviation(flow, rule, times) == pytest.approx(s, rel=1e-12)


def test_the_default_sampler_is_the_one_that_was_trained_for() -> None:
    names = {ends: type(default_sampler(silent(ends))).__name__ for ends in ("diagonal", "zero", "any", "dyadic")}
    assert names == {"diagonal": "PushForward", "zero": "ReNoise", "any": "PushForward", "dyadic": "PushForward"}


def test_samples_are_ordinary_tensors() -> None:
    """Drawn in inference mode, and still of use to autograd."""
    x = collect(mlp(), 3, (2,))
    assert not x.is_inference()
    assert not x.requires_grad
    weight = torch.ones(2, requires_grad=True)
    (x * weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0))


def test_samples_from_the_middle_are_those_of_all() -> None:
    want = collect(mlp(), 11, (2,), steps=2)
    got = list(sample(mlp(), 11, (2,), steps=2, first=4, batch_size=3))
    assert [batch.first for batch in got] == [4, 7, 10]
    torch.testing.assert_close(torch.cat([batch.x for batch in got]), want[4:], rtol=0, atol=1e-5)
    assert torch.cat([batch.label for batch in got]).tolist() == [k % 3 for k in range(4, 11)]
    with pytest.raises(SamplerError, match="the first image must be 0 or later, got -1"):
        sample(mlp(), 3, (2,), first=-1)


def test_on_the_cpu_no_thread_draws_noise() -> None:
    before = threading.active_count()
    batches = sample(mlp(), 30, (2,), batch_size=3)
    next(batches)
    assert threading.active_count() == before


def test_no_thread_outlives_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network is on an accelerator, a thread draws the noise of the next batches."""
    monkeypatch.setattr("shortflow.sample.images._device", lambda flow: torch.device("cuda"))

    def threads() -> int:
        return sum(thread.name.startswith("shortflow") for thread in threading.enumerate())

    batches = sample(mlp(), 30, (2,), batch_size=3)
    assert threads() == 0
    next(batches)
    assert threads() == 1
    del batches
    assert threads() == 0
    with pytest.raises(ValueError):  # the network was built for points of another shape
        list(sample(mlp(), 30, (5,), batch_size=3))
    assert threads() == 0
