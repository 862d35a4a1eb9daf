"""Halving and doubling of images: against convolutions, plain averages, and each other (adjoint up to 4)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from shortflow.nn.resample import downsample, filter_faults, upsample

FILTERS = [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0), (-1.0, 0.5, 4.0, 4.0, 0.5, -1.0), (1.0, 2.0, 3.0, 5.0, 5.0, 3.0, 2.0, 1.0)]
filters = pytest.mark.parametrize("taps", FILTERS, ids=lambda taps: str(len(taps)))


def images(h, w, seed=0):
    return torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(taps):
    along = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    return torch.outer(along, along).expand(3, 1, -1, -1)


@filters
def test_they_are_strided_convolutions(taps):
    x, p = images(6, 10), len(taps) // 2 - 1
    down = F.conv2d(x, kernel(taps), stride=2, padding=p, groups=3)
    torch.testing.assert_close(downsample(x, taps), down, rtol=0, atol=1e-14)
    up = F.conv_transpose2d(x, 4 * kernel(taps), stride=2, padding=p, groups=3)
    torch.testing.assert_close(upsample(x, taps), up, rtol=0, atol=1e-14)


def test_the_box_averages_and_repeats():
    x = images(6, 10)
    torch.testing.assert_close(downsample(x, (1.0, 1.0)), F.avg_pool2d(x, 2), rtol=0, atol=1e-15)
    assert torch.equal(upsample(x, (1.0, 1.0)), F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(downsample(upsample(x, (1.0, 1.0)), (1.0, 1.0)), x, rtol=0, atol=1e-15)


@given(taps=st.sampled_from(FILTERS), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_up_is_four_times_down_transposed(taps, rows, columns):
    x, y = images(2 * rows, 2 * columns), images(rows, columns, seed=1)
    left, right = (downsample(x, taps) * y).sum(), (x * upsample(y, taps)).sum() / 4
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@filters
def test_constants_stay_away_from_the_border(taps):
    x, edge = torch.ones(1, 1, 16, 16, dtype=torch.float64), len(taps)
    inner = slice(edge // 2, 8 - edge // 2)
    torch.testing.assert_close(downsample(x, taps)[..., inner, inner], torch.ones_like(x[..., inner, inner]))
    inner = slice(edge, 32 - edge)
    up = upsample(x, taps)[..., inner, inner]
    torch.testing.assert_close(up, torch.ones_like(up))


@pytest.mark.parametrize("step", [downsample, upsample])
def test_linear_maps_are_their_own_derivative(step):
    x, dx = images(4, 6), images(4, 6, seed=1)
    slope = torch.func.jvp(lambda x: step(x, FILTERS[1]), (x,), (dx,))[1]
    assert torch.equal(slope, step(dx, FILTERS[1]))


@pytest.mark.parametrize(
    "taps", [(), (1.0,), (1.0, 2.0, 1.0), (1.0, 2.0), (0.0, 0.0), (-1.0, -1.0), (float("nan"),) * 2]
)
def test_impossible_filters_are_named(taps):
    (fault,) = filter_faults(taps)
    assert "even number of weights" in fault
    assert str(list(taps)) in fault


@filters
def test_possible_filters(taps):
    assert filter_faults(taps) == []
