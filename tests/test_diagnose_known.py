"""Exact laws of the toys, in the units of the network, and the part of a finite set that is looked at."""

import numpy as np
import pytest
import torch

from oracles import f64
from shortflow.data import Dataset, DataSpec
from shortflow.data.toys import components, toy
from shortflow.diagnose.known import known
from shortflow.evaluate.points import sliced_wasserstein
from shortflow.paths import Cosine, Linear
from shortflow.theory import FiniteData

TOYS = ("gaussian", "mixture", "moons", "rings", "swissroll")


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_a_sample_of_its_law(name: str, sigma: float | None) -> None:
    """Moments of 20,000 points within five standard errors, slices as near as two samples are."""
    data = toy(name, "train")
    spec = DataSpec.fit(data, sigma)
    k = known(data, spec, Linear())
    assert k.closed
    x = k.x
    drawn = k.law.sample(20_000, torch.Generator().manual_seed(0), torch.float64)
    for power in (1, 2, 3):
        a, b = x**power, drawn**power
        error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * error).all())
    some = x[torch.randperm(20_000)[:5000]]
    assert sliced_wasserstein(some, drawn[:5000]) < 2.5 * sliced_wasserstein(drawn[5000:10_000], drawn[:5000])


@pytest.mark.parametrize("name", ["moons", "rings", "swissroll"])
def test_the_quadrature_of_a_curve_is_fine_enough(name: str) -> None:
    """Nodes are closer than two widths of the noise, where equal Gaussians add up to a smooth density."""
    found = components(name)
    assert found is not None
    assert found.weights.sum() == pytest.approx(1)
    gap = np.linalg.norm(np.diff(found.means, axis=0), axis=1)
    assert np.quantile(gap, 0.99) < 2 * found.std


@pytest.mark.parametrize("name", ["mixture", "moons"])
def test_classes_of_a_toy_are_those_of_its_law(name: str) -> None:
    data = toy(name, "train")
    k = known(data, DataSpec.fit(data), Cosine())
    assert k.label is not None
    assert k.law.num_classes == data.num_classes
    t, label = torch.full((1,), 1e-3, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    x = k.x[k.label == 0][:1]
    assert k.law.log_density(x, t, label) > k.law.log_density(x, t, label + 1) + 5
    assert known(data, DataSpec.fit(data), Cosine(), classes=False).law.num_classes == 0


def test_other_data_are_their_own_law() -> None:
    samples = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
    labels = np.random.default_rng(1).permutation(np.arange(60) % 3)
    data = Dataset(name="folder", samples=samples, labels=labels, classes=("a", "b", "c"))
    spec = DataSpec.fit(data)
    k = known(data, spec, Linear(), flow_points=20, seed=3)
    assert isinstance(k.law, FiniteData)
    assert not k.closed
    assert len(k.law.points) == 60
    assert isinstance(k.flows, FiniteData)
    assert len(k.flows.points) == 20
    assert k.words == "the 60 points of folder themselves; of 20 of them where flows are solved"
    order = np.argsort(labels, kind="stable")
    torch.testing.assert_close(k.x, spec.encode(samples[order]).double())
    assert k.label is not None
    assert torch.equal(k.label, torch.from_numpy(labels[order]))
    part = known(data, spec, Linear(), points=30, seed=3)
    assert len(part.x) == 30
    assert part.words == "a random 30 of the 60 points of folder, themselves"
    x, label = k.draw(50, torch.Generator().manual_seed(0))
    for point, c in zip(x, label, strict=True):  # type: ignore[arg-type]
        assert bool(((k.x[k.label == c] - point).abs().amax((1, 2, 3)) == 0).any())


def test_large_data_are_asked_about_few_rows() -> None:
    data = toy("checkerboard", "train")
    k = known(data, DataSpec.fit(data), Linear())
    assert not k.closed
    assert k.rows(256) == 256
    assert 32 <= k.rows(2000) < 2000
    moved = k.on(Cosine())
    assert moved.law.path == moved.flows.path == Cosine()


def test_times_are_of_equal_noise_on_every_path() -> None:
    data = toy("mixture", "train", 100)
    for path in (Linear(), Cosine(), Cosine(noise_scale=0.5)):
        k = known(data, DataSpec.fit(data), path)
        t = k.times(f64(0.2, 0.5))
        torch.testing.assert_close(path.sigma(t) / (path.alpha(t) + path.sigma(t)), f64(0.2, 0.5))
