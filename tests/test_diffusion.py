"""Diffusion models as flow maps: noise prediction is DDIM, and an index is where as much is left of the data."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maps import PATHS, Affine, called, points
from oracles import derivative, f64
from shortflow.conditionings import DiffusionIndex
from shortflow.errors import ShortflowError
from shortflow.flowmap import FlowMap, NoisePrediction, Transfer
from shortflow.hub.interop.kinds import KINDS
from shortflow.paths import Cosine, Linear, Path
from steps import close


def products(steps: int, first: float, last: float) -> Tensor:
    """log ᾱ of every index, factor by factor."""
    return torch.log1p(-torch.linspace(first, last, steps, dtype=torch.float64)).cumsum(0)


# ---------------------------------------------------------------------------------------------------- noise prediction


@pytest.mark.parametrize("path", PATHS, ids=called)
def test_told_the_noise_it_lands_on_the_path(path: Path) -> None:
    x, eps = points()
    t, r = f64(0.9, 0.5, 0.2, 0.7), f64(0.0, 0.3, 0.2, 0.1)
    flow = FlowMap(Affine(0), path, NoisePrediction())
    close(flow.move(path.interpolate(x, eps, t), eps, t, r), path.interpolate(x, eps, r), 1e-12)
    close(flow.velocity_of(path.interpolate(x, eps, t), eps, t), path.velocity(x, eps, t), 1e-12)


def test_its_step_is_the_published_one() -> None:
    """x_r = √ᾱ_r (x − √(1 − ᾱ_t) ε)/√ᾱ_t + √(1 − ᾱ_r) ε (DDIM, equation (12) with σ = 0)."""
    x, eps = points()
    t, r = f64(0.9, 0.5, 0.2, 0.7), f64(0.0, 0.3, 0.2, 0.1)
    kept, left = torch.cos(t * math.pi / 2)[:, None] ** 2, torch.cos(r * math.pi / 2)[:, None] ** 2
    want = left.sqrt() * (x - (1 - kept).sqrt() * eps) / kept.sqrt() + (1 - left).sqrt() * eps
    close(FlowMap(Affine(0), Cosine(), NoisePrediction()).move(x, eps, t, r), want, 1e-12)


@pytest.mark.parametrize("path", PATHS, ids=called)
def test_its_jump_is_that_of_its_velocity(path: Path) -> None:
    x, eps = points()
    t, r = f64(0.9, 0.5, 0.2, 0.7), f64(0.0, 0.3, 0.2, 0.1)
    noise, transfer = (FlowMap(Affine(0), path, form) for form in (NoisePrediction(), Transfer()))
    close(noise.move(x, eps, t, r), transfer.move(x, noise.velocity_of(x, eps, t), t, r), 1e-11)


def test_a_jump_of_length_zero_is_the_identity_also_where_no_data_are_left() -> None:
    x, output = points()
    for path in (Linear(), Cosine()):
        for time in (0.0, 0.3, 1.0):
            t = torch.full((4,), time, dtype=torch.float64)
            assert torch.equal(FlowMap(Affine(0), path, NoisePrediction()).move(x, output, t, t), x)


# --------------------------------------------------------------------------------------------------------------- index


@pytest.mark.parametrize(("steps", "first", "last"), [(1000, 1e-4, 0.02), (4000, 2.5e-5, 0.005), (50, 1e-3, 0.3)])
def test_what_is_left_after_whole_steps(steps: int, first: float, last: float) -> None:
    told = DiffusionIndex(steps=steps, first=first, last=last)
    index = torch.arange(steps, dtype=torch.float64)
    close(told.log_kept(index), products(steps, first, last), 1e-8 if steps == 50 else 1e-11)


def test_golden_numbers_of_ddpm() -> None:
    """ᾱ of the last of 1000 steps is 4.04e-5 (DDPM, section 4: L_T ≈ 1e-5 bits)."""
    assert math.exp(float(DiffusionIndex().log_kept(f64(999.0)))) == pytest.approx(4.0358e-5, rel=1e-4)
    assert math.exp(float(DiffusionIndex().log_kept(f64(0.0)))) == pytest.approx(0.9999, abs=1e-12)


@given(index=st.floats(min_value=0, max_value=999))
def test_the_index_is_found_again(index: float) -> None:
    told = DiffusionIndex()
    close(told.index(told.log_kept(f64(index))), f64(index), 1e-9)


def test_it_is_told_from_the_noise_level_on_any_path() -> None:
    told, index = DiffusionIndex(), torch.tensor([0.0, 3.5, 417.0, 998.0], dtype=torch.float64)
    ratio = torch.sqrt(torch.expm1(-told.log_kept(index)))
    close(told.inputs(Cosine(), torch.atan(ratio) * 2 / math.pi, ratio)[0], index, 1e-8)
    close(told.inputs(Linear(), ratio / (1 + ratio), ratio)[0], index, 1e-8)
    assert told.inputs(Cosine(), ratio, ratio)[1] is None


def test_single_precision_is_right_to_a_few_thousandths_of_a_step() -> None:
    told = DiffusionIndex()
    t = torch.linspace(0.01, 0.995, 200)
    got, want = told.inputs(Cosine(), t, t)[0], told.inputs(Cosine(), t.double(), t.double())[0]
    assert got.dtype == torch.float32
    assert float((got.double() - want).abs().max()) < 5e-3


def test_its_slope_is_that_of_its_values() -> None:
    told, t, one = (
        DiffusionIndex(),
        torch.linspace(0.02, 0.99, 50, dtype=torch.float64),
        torch.ones(50, dtype=torch.float64),
    )
    slope = derivative(lambda time: told.inputs(Cosine(), time, time)[0], (t,), (one,))
    ahead, behind = (told.inputs(Cosine(), t + h, t)[0] for h in (1e-6, -1e-6))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-3)


def test_beyond_the_ends_it_is_held() -> None:
    told = DiffusionIndex()
    close(told.inputs(Cosine(), f64(0.0, 1.0), f64(0.0, 0.0))[0], f64(0.0, 999.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, "steps ≥ 2, got 1"),
        ({"first": 0.0}, "0 < first < last < 1, got 0.0 and 0.02"),
        ({"last": 1e-5}, "got 0.0001 and 1e-05"),
        ({"last": 1.0}, "got 0.0001 and 1.0"),
    ],
)
def test_impossible_schedules(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        DiffusionIndex(**settings)  # pyright: ignore[reportArgumentType]


def test_the_span_of_a_uniform_law_is_its_interval() -> None:
    """A diffusion has no time without data, and is not asked there."""
    recipe = KINDS["dit"].recipe(1152)
    low, high = recipe.objective.times.span
    assert low == 0
    close(recipe.conditioning.inputs(recipe.path, f64(high), f64(high))[0], f64(999.0), 1e-8)
