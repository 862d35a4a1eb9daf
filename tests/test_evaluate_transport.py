"""The cheapest pairing against SciPy's, and W₂ where it is known."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from shortflow.errors import MetricError
from shortflow.evaluate.points import sliced_wasserstein
from shortflow.evaluate.transport import cheapest_pairing, wasserstein


@pytest.mark.parametrize("n", [1, 2, 7, 60])
@pytest.mark.parametrize("kind", ["random", "whole numbers", "distances", "negative"])
def test_the_pairing_is_the_cheapest(n: int, kind: str) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        costs = rng.random((n, n))
        if kind == "whole numbers":  # with many ties
            costs = rng.integers(0, 4, (n, n)).astype(float)
        elif kind == "distances":
            points = rng.standard_normal((2, n, 2))
            costs = np.square(points[0][:, None] - points[1][None]).sum(-1)
        elif kind == "negative":
            costs = costs - 0.7
        pairs = cheapest_pairing(costs)
        assert sorted(pairs.tolist()) == list(range(n))
        rows, columns = linear_sum_assignment(costs)
        assert costs[np.arange(n), pairs].sum() == pytest.approx(costs[rows, columns].sum(), abs=1e-9)


def test_a_shift_is_its_length_and_a_line_is_sorted() -> None:
    a = torch.randn(200, 3, dtype=torch.float64)
    shift = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64)
    assert wasserstein(a, a[torch.randperm(200)] + shift) == pytest.approx(1.3)
    x, y = torch.randn(300, 1), 2 + 3 * torch.randn(300, 1)
    assert wasserstein(x, y) == pytest.approx(float((x.sort(0)[0] - y.sort(0)[0]).square().mean().sqrt()), rel=1e-5)


def test_slices_are_nearer_than_the_whole() -> None:
    a, b = torch.randn(200, 4), torch.randn(200, 4) * torch.tensor([1, 2, 0.5, 1]) + 0.3
    assert sliced_wasserstein(a, b) < wasserstein(a, b)


def test_what_has_no_distance_is_refused() -> None:
    with pytest.raises(MetricError, match=r"got \(3, 2\) and \(4, 2\)"):
        wasserstein(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(MetricError, match="not finite"):
        wasserstein(torch.zeros(3, 2), torch.full((3, 2), torch.nan))
