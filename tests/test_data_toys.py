"""Toys: the moments claimed in closed form, the geometry of each law, and determinism."""

import numpy as np
import pytest

from shortflow.data import load
from shortflow.data.toys import GAUSSIAN_COVARIANCE, MIXTURE_RADIUS, MIXTURE_STD, SIZES, names, toy
from shortflow.errors import DataError

MANY = 400_000


@pytest.mark.parametrize("name", names())
def test_mean_zero_and_unit_std(name: str) -> None:
    """The scale is the law's own, so the sample agrees to its standard error (kurtosis of all toys is below 4)."""
    points = toy(name, n=MANY).samples.astype(np.float64)
    assert points.shape == (MANY, 2)
    assert np.abs(points.mean(0)).max() < 5 * 1.3 / MANY**0.5
    variance = points.var(0).mean()
    assert variance == pytest.approx(1, abs=5 * (3 / MANY) ** 0.5)


@pytest.mark.parametrize("name", names())
def test_deterministic_and_splits_differ(name: str) -> None:
    train, test, both = (toy(name, split) for split in ("train", "test", "all"))
    assert (len(train), len(test)) == (SIZES["train"], SIZES["test"]) == (20_000, 10_000)
    assert load(name).fingerprint() == train.fingerprint() == toy(name).fingerprint()
    np.testing.assert_array_equal(both.samples, np.concatenate([train.samples, test.samples]))
    assert np.isin(test.samples[:, 0], train.samples[:, 0]).mean() < 0.05
    assert (train.samples.dtype, train.is_image, train.split, train.name) == (np.float32, False, "train", name)
    assert (train.labels is None) == (name not in ("mixture", "moons"))


def test_gaussian_covariance() -> None:
    np.testing.assert_allclose(np.cov(toy("gaussian", n=MANY).samples.T), GAUSSIAN_COVARIANCE, atol=0.02)


def test_mixture_components_are_the_stated_gaussians() -> None:
    data = toy("mixture", n=MANY)
    assert data.labels is not None
    assert data.num_classes == 8
    angle = 2 * np.pi * data.labels / 8
    residual = data.samples - MIXTURE_RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for k in range(8):
        part = residual[data.labels == k]
        assert len(part) == pytest.approx(MANY / 8, abs=5 * (MANY / 8) ** 0.5)
        np.testing.assert_allclose(part.mean(0), 0, atol=5 * MIXTURE_STD / len(part) ** 0.5)
        np.testing.assert_allclose(np.cov(part.T), MIXTURE_STD**2 * np.eye(2), atol=3e-4)


def test_moons_lie_on_their_arcs() -> None:
    data = toy("moons", n=20_000)
    scale = ((0.75 + 0.5625 - 1 / np.pi) / 2 + 0.01) ** 0.5
    raw = data.samples * scale + (0.5, 0.25)
    for moon, centre in enumerate(((0, 0), (1, 0.5))):
        radius = np.linalg.norm(raw[data.labels == moon] - centre, axis=1)
        # E‖u + 0.1 z‖ ≈ 1 + 0.1²/2 for a unit vector u.
        assert radius.mean() == pytest.approx(1.005, abs=5e-3)
        assert radius.std() == pytest.approx(0.1, abs=5e-3)


def test_checkerboard_fills_every_second_square_evenly() -> None:
    raw = toy("checkerboard", n=MANY).samples.astype(np.float64) * (4 / 3) ** 0.5
    cell = np.floor(raw + 2).astype(int).clip(0, 3)
    count = np.zeros((4, 4))
    np.add.at(count, (cell[:, 0], cell[:, 1]), 1)
    even = (np.add.outer(np.arange(4), np.arange(4)) % 2) == 0
    assert count[~even].sum() <= 5  # float32 rounding at an edge
    np.testing.assert_allclose(count[even], MANY / 8, atol=5 * (MANY / 8) ** 0.5)


def test_rings_have_three_radii() -> None:
    radius = np.linalg.norm(toy("rings", n=20_000).samples, axis=1) * ((1 + 4 + 9) / 6 + 0.0064) ** 0.5
    nearest = np.rint(radius)
    assert np.abs(np.bincount(nearest.astype(int)) / 20_000 - [0, 1 / 3, 1 / 3, 1 / 3]).max() < 0.02
    assert (radius - nearest).std() == pytest.approx(0.08, abs=3e-3)


def test_swissroll_radius_is_its_angle() -> None:
    variance = (9.75 * np.pi**2 - 4 - 4 / (9 * np.pi**2)) / 2 + 0.09
    raw = toy("swissroll", n=20_000).samples * variance**0.5 + (2, 2 / (3 * np.pi))
    turns = (np.linalg.norm(raw, axis=1) - np.arctan2(raw[:, 1], raw[:, 0])) / (2 * np.pi)
    # A normal residual of std 0.3, up to the curvature of the spiral.
    assert ((turns - np.rint(turns)) * 2 * np.pi).std() == pytest.approx(0.3, abs=0.015)


def test_pinwheel_has_five_equal_arms() -> None:
    raw = toy("pinwheel", n=MANY).samples.astype(np.float64) * 0.55**0.5
    radius = np.linalg.norm(raw, axis=1)
    straight = np.arctan2(raw[:, 1], raw[:, 0]) - 0.25 * np.exp(radius)
    far = radius > 0.8  # near the centre the arms run together
    phase = np.exp(1j * straight[far])
    assert abs((phase**5).mean()) > 0.7
    for k in range(1, 5):
        assert abs((phase**k).mean()) < 0.01


def test_errors() -> None:
    with pytest.raises(DataError, match="no toy is called 'blob'; there are gaussian, mixture"):
        toy("blob")
    with pytest.raises(DataError, match="no split 'val'"):
        toy("rings", "val")
    with pytest.raises(DataError, match="n=0"):
        toy("rings", n=0)
    with pytest.raises(DataError, match="not for 'all'"):
        toy("rings", "all", n=5)
