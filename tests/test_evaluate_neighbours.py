"""Precision, recall, density, coverage: against a plain numpy re-statement of the definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shortflow.errors import MetricError
from shortflow.evaluate import neighbour_radii, neighbour_scores, neighbours


def draw(n, d=4, seed=0, shift=0.0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype) + shift


def brute_force(fake, real, k):
    """The definitions, one ball and one point at a time."""
    fake, real = fake.numpy(), real.numpy()
    norm = np.linalg.norm
    real_radius = [sorted(norm(real - x, axis=1))[k] for x in real]
    fake_radius = [sorted(norm(fake - y, axis=1))[k] for y in fake]
    in_real = np.array([[norm(x - y) <= r for y in fake] for x, r in zip(real, real_radius, strict=True)])
    in_fake = np.array([[norm(x - y) <= r for x in real] for y, r in zip(fake, fake_radius, strict=True)])
    return {
        "precision": in_real.any(0).mean(),
        "recall": in_fake.any(0).mean(),
        "density": in_real.sum() / (k * len(fake)),
        "coverage": in_real.any(1).mean(),
    }


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(1, 6), st.floats(0, 2), st.integers(0, 99))
def test_against_brute_force(m, n, k, shift, seed):
    fake, real = draw(m, seed=seed, shift=shift), draw(n, seed=seed + 1000)
    scores = neighbour_scores(fake, real, k=k)
    for name, value in brute_force(fake, real, k).items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-12), name


def test_identical_sets():
    x = draw(60, dtype=torch.float32)
    scores = neighbour_scores(x, x.clone())
    assert (scores.precision, scores.recall, scores.coverage) == (1.0, 1.0, 1.0)
    # Every ball holds its centre and k others.
    assert scores.density == pytest.approx(6 / 5)


def test_far_apart_sets_share_nothing():
    scores = neighbour_scores(draw(30, shift=1e3), draw(30, seed=1))
    assert (scores.precision, scores.recall, scores.density, scores.coverage) == (0.0, 0.0, 0.0, 0.0)


def test_coverage_of_one_law_is_one_minus_two_to_the_minus_k():
    # The k nearest of a reference point's 2n neighbours must all be real for its ball to be empty.
    covered = [neighbour_scores(draw(800, seed=i), draw(800, seed=i + 50), k=3).coverage for i in range(4)]
    assert np.mean(covered) == pytest.approx(1 - 2**-3, abs=0.02)


def test_copies_of_few_points_have_no_recall():
    real = draw(200, d=64, seed=2, shift=5.0, dtype=torch.float32)
    collapsed = draw(10, d=64, seed=3, shift=5.0, dtype=torch.float32).repeat(20, 1)
    assert float(neighbour_radii(collapsed).max()) == 0.0
    scores = neighbour_scores(collapsed, real)
    assert scores.recall == 0.0
    assert scores.coverage < 0.6


def test_blocks_do_not_change_the_result(monkeypatch):
    fake, real = draw(70, seed=4, dtype=torch.float32), draw(90, seed=5, dtype=torch.float32)
    whole = neighbour_scores(fake, real)
    monkeypatch.setattr(neighbours, "_BLOCK", 333)
    assert neighbour_scores(fake, real) == whole
    assert neighbour_scores(fake, real, reference_radii=neighbour_radii(real)) == whole


def test_radii_on_a_line():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_radii(x, 1).tolist() == [1.0, 1.0, 2.0, 4.0]
    assert neighbour_radii(x, 2).tolist() == [3.0, 2.0, 3.0, 6.0]


def test_errors_name_the_cause():
    with pytest.raises(MetricError, match=r"generated set has 5 points.*at least 6"):
        neighbour_scores(draw(5), draw(30))
    with pytest.raises(MetricError, match="reference set has 5 points"):
        neighbour_scores(draw(30), draw(5))
    with pytest.raises(MetricError, match="k must be at least 1, got 0"):
        neighbour_scores(draw(30), draw(30), k=0)
    with pytest.raises(MetricError, match="4 and 3 dimensions"):
        neighbour_scores(draw(30), draw(30, d=3))
    with pytest.raises(MetricError, match="generated features are not finite"):
        neighbour_scores(draw(30) / 0, draw(30))
