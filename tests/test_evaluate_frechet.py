"""Fréchet distance and moments: closed forms, scipy's matrix root, singular covariances, merge order."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from shortflow.errors import MetricError
from shortflow.evaluate import Moments, frechet_distance


def gaussian(mean, cov, count=1000):
    """Moments that are exactly (mean, cov)."""
    mean, cov = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(cov, dtype=torch.float64)
    return Moments(count=count, mean=mean, scatter=cov * (count - 1))


def random_cov(d, rank, seed):
    factor = torch.randn(d, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T


def test_diagonal_closed_form():
    # Commuting covariances: FD = |dmu|² + Σ (σ_a − σ_b)².
    a = gaussian([1.0, 2.0, 0.0], torch.diag(torch.tensor([4.0, 9.0, 0.0])))
    b = gaussian([0.0, 4.0, 0.0], torch.diag(torch.tensor([1.0, 25.0, 0.25])))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 4 + 0.25, abs=1e-12)


@pytest.mark.parametrize(("d", "rank_a", "rank_b"), [(5, 5, 5), (20, 30, 30), (20, 20, 7)])
def test_against_scipy_matrix_root(d, rank_a, rank_b):
    cov_a, cov_b = random_cov(d, rank_a, 1), random_cov(d, rank_b, 2)
    mean_a, mean_b = random_cov(d, 1, 3)[0], random_cov(d, 1, 4)[0]
    root = sqrtm((cov_a @ cov_b).numpy()).real
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * root.trace()
    assert frechet_distance(gaussian(mean_a, cov_a), gaussian(mean_b, cov_b)) == pytest.approx(expected, rel=1e-6)


def test_rank_one_covariances():
    # Σ_a = uuᵀ, Σ_b = vvᵀ: tr (…)^½ = |u·v|.
    u, v = torch.tensor([3.0, 0.0, 4.0]).double(), torch.tensor([1.0, 2.0, 2.0]).double()
    zero = torch.zeros(3)
    value = frechet_distance(gaussian(zero, torch.outer(u, u)), gaussian(zero, torch.outer(v, v)))
    assert value == pytest.approx(25 + 9 - 2 * 11, abs=1e-6)


def test_zero_covariance_leaves_trace_and_shift():
    a, b = gaussian([0.0, 3.0], torch.zeros(2, 2)), gaussian([4.0, 0.0], torch.eye(2))
    assert frechet_distance(a, b) == pytest.approx(25 + 2, abs=1e-12)


@pytest.mark.parametrize("rank", [3, 64])
def test_identical_sets_have_distance_zero(rank):
    moments = gaussian(torch.ones(64), random_cov(64, rank, 5))
    assert frechet_distance(moments, moments) < 1e-9


def test_symmetric():
    a = gaussian(torch.zeros(12), random_cov(12, 4, 6))
    b = gaussian(torch.ones(12), random_cov(12, 15, 7))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-8)


def test_moments_equal_torch_cov():
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(x)
    assert torch.allclose(moments.mean, x.mean(0), atol=1e-14)
    assert torch.allclose(moments.cov, torch.cov(x.T), atol=1e-13)
    assert moments.trace == pytest.approx(float(x.var(0).sum()))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(1, 9), min_size=6, max_size=6), st.integers(0, 99))
def test_merge_does_not_depend_on_order_or_split(order, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 3, generator=generator) * 5 + 100 for n in sizes]
    whole = Moments.of(torch.cat(parts))
    merged = Moments.of(parts[order[0]])
    for i in order[1:4]:
        merged = merged.update(parts[i])
    merged = merged.merge(Moments.of(parts[order[4]]).update(parts[order[5]]))
    assert merged.count == whole.count
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-12)
    assert torch.allclose(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-9)


def test_float32_features_with_a_large_mean_keep_their_covariance():
    # mean/std = 1e4: float32 sums of outer products would lose every digit of the variance.
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    features = noise + 1e4
    moments = Moments.of(features[:10])
    for batch in features[10:].split(300):
        moments = moments.update(batch)
    expected = torch.cov((features - 1e4).double().T)  # the shift is exact in float32 here
    assert torch.allclose(moments.cov, expected, rtol=1e-8, atol=1e-10)


def test_finite_sample_bias_has_the_declared_order():
    # FD(N) ≈ FD(∞) + b/N: halving N doubles the value between samples of one law.
    generator = torch.Generator().manual_seed(2)
    exact = gaussian(torch.zeros(8), torch.eye(8))

    def mean_distance(n):
        draws = [Moments.of(torch.randn(n, 8, generator=generator)) for _ in range(60)]
        return sum(frechet_distance(draw, exact) for draw in draws) / 60

    ratio = mean_distance(200) / mean_distance(800)
    assert 3.4 < ratio < 4.6


def test_save_and_load(tmp_path):
    moments = Moments.of(torch.randn(9, 4, generator=torch.Generator().manual_seed(3)))
    moments.save(tmp_path / "m.safetensors")
    loaded = Moments.load(tmp_path / "m.safetensors")
    assert loaded.count == 9
    assert torch.equal(loaded.mean, moments.mean)
    assert torch.equal(loaded.scatter, moments.scatter)


def test_errors_name_the_cause(tmp_path):
    with pytest.raises(MetricError, match="at least one"):
        Moments.of(torch.zeros(0, 3))
    with pytest.raises(MetricError, match="1 of 2 feature vectors are not finite"):
        Moments.of(torch.tensor([[1.0, 2.0], [math.nan, 1.0]]))
    with pytest.raises(MetricError, match="at least 2"):
        frechet_distance(Moments.of(torch.ones(1, 2)), gaussian([0.0, 0.0], torch.eye(2)))
    with pytest.raises(MetricError, match="2 and 3 dimensions"):
        frechet_distance(gaussian([0.0, 0.0], torch.eye(2)), gaussian([0.0, 0.0, 0.0], torch.eye(3)))
    with pytest.raises(MetricError, match=r"none\.safetensors"):
        Moments.load(tmp_path / "none.safetensors")
    with pytest.raises(MetricError, match="lack mean, scatter"):
        Moments.from_tensors({"count": torch.tensor(3)})
