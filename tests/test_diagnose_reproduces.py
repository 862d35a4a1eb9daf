"""`diagnose` finds what is known of data and networks: reach, orders, dimensions, a bound that holds on every toy."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from shortflow.config import recipe_named
from shortflow.data import Dataset
from shortflow.data.toys import GAUSSIAN_COVARIANCE, names, toy
from shortflow.diagnose import Diagnosis, Looking, diagnose_data, diagnose_run
from test_diagnose_run import FEW, exact, model_of


def at(d: Diagnosis, name: str, place: float) -> tuple[float, float]:
    """(value, error) of a curve at a place."""
    curve = d.curves[name]
    k = int(np.argmin(np.abs(np.array(curve["x"]) - place)))
    assert curve["x"][k] == pytest.approx(place)
    return curve["y"][k], curve["error"][k]


def test_the_reach_of_the_plug_in_velocity_in_4096_dimensions() -> None:
    """Normal data of deviation .8, batch 64: 1, 3.6 and 26 images share the weight at t = .9, .95 and .98, so that
    nothing changes up to .9 and every row from .98 on (methods, section 6.3)."""
    x = 0.8 * np.random.default_rng(0).standard_normal((96, 4096), dtype=np.float32)
    data = Dataset(name="latents", samples=x)
    looking = Looking(rows=32, flow_rows=2, flow_points=8)
    d = diagnose_data(data, recipe_named("meanflow").unconditional(), batch=64, looking=looking)
    for time, size in ((0.9, 1.0), (0.95, 3.6), (0.98, 26.0)):
        found, error = at(d, "sample_size/all", time)
        # The known figures are of one batch, this one is the mean of eight.
        assert abs(found - size) < 4 * error * 8**0.5 + 1e-3
        assert error < 0.1 * size
    assert at(d, "active/all", 0.9)[0] < 0.01
    assert at(d, "active/all", 0.98)[0] == 1
    # The recipe draws t from a logit-normal law: a few in a thousand are where anything changes.
    assert d.number("active/all").value < 0.03
    assert d.number("reach_time").value == pytest.approx(0.96, abs=0.005)
    assert d.number("reach_share").value < 0.01
    assert d.advice[0]["text"].startswith("The plug-in velocity changes")  # "next to nothing", or "little"


def test_the_dimension_of_a_circle_is_one() -> None:
    """In three dimensions, at an angle: by the posterior (1 + O(η²)) and by neighbours, out of 3."""
    angle = 2 * math.pi * np.random.default_rng(0).random(4000)
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0][:2]
    points = np.stack([np.cos(angle), np.sin(angle)], 1) @ turn
    data = Dataset(name="circle", samples=points.astype(np.float32))
    looking = Looking(rows=64, flow_rows=2, flow_points=32)
    d = diagnose_data(data, recipe_named("meanflow").unconditional(), batch=32, looking=looking)
    for level, excess in ((0.02 / 0.98, 0.03), (0.05 / 0.95, 0.03), (0.1 / 0.9, 0.05)):
        found, error = at(d, "dimension", level)
        assert abs(found - 1) < excess + 4 * error
        assert error < 0.1
    for name in ("two_neighbours", "neighbours"):
        estimate = d.number(f"dimension/{name}")
        assert abs(estimate.value - 1) < 5 * estimate.error
    assert d.number("dimension/ambient").value == 3
    said = next(each["text"] for each in d.advice if "dimensions" in each["text"])
    found = re.fullmatch(r"The data have about ([\d.]+) to ([\d.]+) dimensions out of 3\.", said)
    assert found is not None, said
    assert all(0.9 < float(each) < 1.1 for each in found.groups())


def test_the_slopes_of_discrete_targets() -> None:
    """Variance as δ² and squared bias as δ⁴; both rise a little more slowly where steps are long."""
    data = toy("gaussian", "train", 4000)
    looking = Looking(rows=16, flow_rows=512)
    d = diagnose_data(data, recipe_named("meanflow"), batch=16, looking=looking)
    assert d.number("order/variance").value == pytest.approx(2, abs=0.25)
    assert d.number("order/bias").value == pytest.approx(4, abs=0.5)
    c = np.sqrt(np.linalg.eigvalsh(np.array(GAUSSIAN_COVARIANCE)))
    places = re.search(r"at t = ([\d.]+), r = ([\d.]+)", d.curves["first_step/variance"]["label"])
    assert places is not None
    t, r = map(float, places.groups())
    for name, want in (
        ("variance", lambda s: (s[0] * c * size(r, c) / size(s[1], c) / size(t, c)) ** 2),
        ("bias", lambda s: (size(r, c) * (1 - np.cos(angle_of(t, c) - angle_of(s[1], c)))) ** 2),
    ):
        curve = d.curves[f"first_step/{name}"]
        for step, value, error in zip(curve["x"], curve["y"], curve["error"], strict=True):
            exactly = float(np.mean(want((step, t - step))))
            assert abs(value - exactly) < 5 * error + 0.02 * exactly, (name, step)


def size(t: float, c: np.ndarray) -> np.ndarray:
    """S_t of a Gaussian of width c on the linear path."""
    return np.hypot((1 - t) * c, t)


def angle_of(t: float, c: np.ndarray) -> np.ndarray:
    return np.arctan2(t, (1 - t) * c)


def test_an_exact_map_stretches_as_its_widths_say() -> None:
    """The largest singular value of ∇X_{t,0} is the largest c/S_t of the two widths; that of ∇u is |1 − c/S_t|/t."""
    from shortflow.theory import exact_flow

    data = toy("gaussian", "train", 2000)
    d = diagnose_run(model_of(exact_flow(exact(data)), data), data, looking=FEW)
    c = np.sqrt(np.linalg.eigvalsh(np.array(GAUSSIAN_COVARIANCE)))
    for name, rule in (
        ("stretch", lambda t: c / size(t, c)),
        ("lipschitz", lambda t: np.abs(1 - c / size(t, c)) / t),
    ):
        curve = d.curves[name]
        for t, value in zip(curve["x"], curve["y"], strict=True):
            want = float(np.max(rule(t)))
            assert value <= want * (1 + 1e-6)  # power iteration comes from below
            assert value == pytest.approx(want, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["meanflow", "shortcut", "ect", "flow-matching", "imm"])
@pytest.mark.parametrize("name", names())
def test_the_bound_holds_on_every_toy_that_is_trained_on(name: str, recipe: str, tmp_path: Path) -> None:
    """Against the exact law of the toy, or the points themselves where none is known; nowhere a violation."""
    import shortflow as sf

    settings = ("train.images=60000", "train.batch=256", "train.preview_every=0", "train.trackers=[]")
    run, data = sf.configure(recipe, name, settings=settings)
    for _ in sf.training(run, data, tmp_path / "run"):
        pass
    model = sf.load(tmp_path / "run")
    for seed in range(3):
        d = diagnose_run(model, data, toy(name, "test"), looking=Looking(rows=32, flow_rows=4, seed=seed))
        assert math.isfinite(d.number("bound").value)
        assert d.scalars["holds"]["value"] == 1, (d.scalars["bound"], d.scalars["distance"])
        assert d.number("distance").value > 0.01
        assert d.number("w2/ends").value <= d.number("distance").value * (1 + 1e-6)
