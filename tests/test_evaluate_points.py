"""Point-cloud distances: scipy on a line, Gaussian closed forms, shifts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shortflow.errors import MetricError
from shortflow.evaluate import compare_points, energy_distance, points, sliced_wasserstein


def draw(n, d=2, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_energy_distance_equals_scipy_on_a_line(n, m, seed):
    a, b = draw(n, d=1, seed=seed), draw(m, d=1, seed=seed + 500, shift=0.7)
    assert energy_distance(a, b) == pytest.approx(stats.energy_distance(a[:, 0], b[:, 0]), abs=1e-9)


def test_energy_distance_of_gaussians():
    # |X − Y| of N(δ, 2I) in the plane is Rician; E|X − X'| = √π. The band is 4 standard errors of the means.
    delta, n = 3.0, 4000
    value = energy_distance(draw(n), draw(n, seed=1) + torch.tensor([delta, 0.0]).double()) ** 2
    expected = 2 * stats.rice(delta / math.sqrt(2), scale=math.sqrt(2)).mean() - 2 * math.sqrt(math.pi)
    assert value == pytest.approx(expected, abs=4 * 2 * math.sqrt(2 / n))


def test_energy_distance_of_two_points():
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert energy_distance(a, b) == pytest.approx(math.sqrt(10))
    assert energy_distance(a, a) == 0


def test_energy_distance_in_blocks(monkeypatch):
    a, b = draw(40), draw(31, seed=1)
    whole = energy_distance(a, b)
    monkeypatch.setattr(points, "_BLOCK", 50)
    assert energy_distance(a, b) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("projections", [2, 3, 128])
def test_sliced_wasserstein_of_a_shift(projections):
    a, delta = draw(50), torch.tensor([1.0, -2.0]).double()
    assert sliced_wasserstein(a, a + delta, projections=projections) == pytest.approx(math.sqrt(5 / 2), rel=1e-12)


def test_sliced_wasserstein_of_a_scaling():
    # Centred on the origin, W₂²(θᵀX, 2θᵀX) = mean (θᵀx)², so SW₂² = E|x|²/2 in the plane.
    a = draw(50)
    assert sliced_wasserstein(a, 2 * a) == pytest.approx(math.sqrt(float(a.square().sum(1).mean()) / 2), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_unequal_counts_are_integrated_exactly(n, m, seed):
    # Repeating a ∙m and b ∙n gives equal counts and the same two laws.
    a, b = draw(n, d=1, seed=seed), draw(m, d=1, seed=seed + 500)
    repeated = a.repeat_interleave(m, 0).sort(0).values - b.repeat_interleave(n, 0).sort(0).values
    assert sliced_wasserstein(a, b) == pytest.approx(float(repeated.square().mean()) ** 0.5, rel=1e-9)


def test_directions_are_fixed_and_of_unit_length():
    directions = points._directions(5, 64)
    assert torch.equal(directions, points._directions(5, 64))
    assert torch.allclose(directions.norm(dim=0), torch.ones(64).double())
    # In d dimensions a shift has SW₂² ≈ |δ|²/d.
    a = draw(10, d=5)
    assert sliced_wasserstein(a, a + 1, projections=2000) == pytest.approx(1.0, rel=0.05)


def test_compare_points_prefers_the_right_law():
    truth, sample, wrong = draw(400).float(), draw(300, seed=1).float(), draw(300, seed=1).float() * 1.5
    good, bad = compare_points(sample, truth), compare_points(wrong.numpy(), truth)
    assert (good["n"], good["n_reference"]) == (300, 400)
    assert good["energy_distance"] < bad["energy_distance"] / 2
    assert good["sliced_w2"] < bad["sliced_w2"] / 2
    assert good["sliced_w2"] == sliced_wasserstein(sample, truth)


def test_errors_name_the_cause():
    with pytest.raises(MetricError, match="got 0 and 3"):
        energy_distance(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(MetricError, match="2 and 3 dimensions"):
        sliced_wasserstein(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(MetricError, match="second point cloud"):
        energy_distance(torch.zeros(4, 2), torch.full((4, 2), math.nan))
    with pytest.raises(MetricError, match="projections"):
        sliced_wasserstein(torch.zeros(4, 2), torch.zeros(4, 2), projections=0)
    with pytest.raises(MetricError, match="samples: give floating-point points"):
        compare_points(np.zeros((3, 2), dtype=np.int64), np.zeros((3, 2)))
