"""Kernel distance: against explicit loops, and its unbiasedness."""

import pytest
import torch

from shortflow.errors import MetricError
from shortflow.evaluate import kernel_distance


def draw(n, d=6, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def loops(a, b):
    """The unbiased estimator, one pair at a time."""
    a, b = a.double(), b.double()
    n, m = len(a), len(b)

    def k(x, y):
        return float((x @ y / len(x) + 1) ** 3)

    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def test_against_explicit_loops():
    a, b = draw(13), draw(17, seed=1, shift=0.4)
    assert kernel_distance(a, b) == pytest.approx(loops(a, b), rel=1e-10)


def test_blocks_are_consecutive_and_averaged():
    a, b = draw(25), draw(33, seed=1)
    expected = (loops(a[:10], b[:10]) + loops(a[10:20], b[10:20])) / 2
    assert kernel_distance(a, b, block=10) == pytest.approx(expected, rel=1e-10)
    # One side smaller than a block: it is used whole, against as much of the other as a block holds.
    assert kernel_distance(a[:7], b, block=10) == pytest.approx(loops(a[:7], b[:10]), rel=1e-10)


def test_zero_in_expectation_for_one_law():
    values = torch.tensor([kernel_distance(draw(60, seed=2 * i), draw(60, seed=2 * i + 1)) for i in range(300)])
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean())) < 3 * error
    # The band is a real test only because the biased estimator (diagonal included) would lie far outside.
    assert 3 * error < 0.05
    assert (values < 0).any()


def test_point_masses_closed_form():
    # All rows equal x or y: k(x, x) + k(y, y) − 2 k(x, y).
    x, y = torch.tensor([[2.0, 0.0]]).repeat(4, 1), torch.tensor([[0.0, 2.0]]).repeat(5, 1)
    assert kernel_distance(x, y) == pytest.approx(27 + 27 - 2)


def test_errors_name_the_cause():
    with pytest.raises(MetricError, match="got 1 and 5"):
        kernel_distance(draw(1), draw(5))
    with pytest.raises(MetricError, match="6 and 3 dimensions"):
        kernel_distance(draw(5), draw(5, d=3))
    with pytest.raises(MetricError, match="block must be at least 2"):
        kernel_distance(draw(5), draw(5), block=1)
    with pytest.raises(MetricError, match="finite"):
        kernel_distance(draw(5), draw(5) / 0)
