"""`diagnose_data`: its figures are those of closed forms where there are any, and the record is what it says it is."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shortflow.config import recipe_named
from shortflow.data import Dataset, DataSpec
from shortflow.data.toys import GAUSSIAN_COVARIANCE, toy
from shortflow.diagnose import Diagnosis, Looking, diagnose_data, report_table
from shortflow.diagnose.flows import targets
from shortflow.diagnose.known import known
from shortflow.diagnose.ofdata import _times
from shortflow.errors import ConfigError, DataError
from shortflow.paths import Linear
from shortflow.theory import FiniteData
from shortflow.theory.estimates import Estimate

FEW, FEWER = Looking(rows=64, flow_rows=16), Looking(rows=64, flow_rows=3)


def clusters(n: int = 240, classes: int = 3, d: int = 4) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    points = 0.3 * rng.standard_normal((n, d)) + 2 * (labels[:, None] == np.arange(d))
    names = tuple(map(str, range(classes)))
    return Dataset(name="clusters", samples=points.astype(np.float32), labels=labels, classes=names)


def check_record(record: dict[str, Any]) -> None:
    """The schema of `shortflow.diagnose.record`."""
    assert record["format"] == 1
    assert set(record) == {"format", "kind", "settings", "curves", "maps", "scalars", "advice", "notes"}
    for curve in record["curves"].values():
        assert set(curve) == {"x", "y", "error", "x_label", "label", "unit"}
        assert len(curve["x"]) == len(curve["y"])
        assert curve["error"] is None or len(curve["error"]) == len(curve["y"])
    for each in record["maps"].values():
        assert set(each) == {"t", "r", "values", "label", "unit"}
        assert len(each["values"]) == len(each["t"])
        for t, row in zip(each["t"], each["values"], strict=True):
            assert len(row) == len(each["r"])
            assert all(value is None for value, r in zip(row, each["r"], strict=True) if r >= t)
    for each in record["scalars"].values():
        assert set(each) == {"value", "error", "label", "unit"}
    assert all(set(each) == {"text", "evidence"} for each in record["advice"])
    json.dumps(record, allow_nan=False)


@pytest.fixture(scope="module")
def of_gaussian() -> Diagnosis:
    data = toy("gaussian", "train", 4000)
    return diagnose_data(data, recipe_named("meanflow"), batch=64, looking=Looking(rows=256, flow_rows=128))


@pytest.fixture(scope="module")
def of_clusters() -> Diagnosis:
    return diagnose_data(clusters(), recipe_named("esc"), batch=32, looking=FEW)


def near(d: Diagnosis, name: str, want: float, errors: float = 5) -> None:
    found = d.number(name)
    assert abs(found.value - want) < errors * found.error, (name, found, want)


def test_variances_of_a_gaussian_are_its_closed_form(of_gaussian: Diagnosis) -> None:
    """W² c²/S² a dimension, over both widths."""
    widths = np.linalg.eigvalsh(np.array(GAUSSIAN_COVARIANCE))
    curve = of_gaussian.curves["velocity_variance/told"]
    for t, y in zip(curve["x"], curve["y"], strict=True):
        assert y == pytest.approx(float(np.mean(widths / ((1 - t) ** 2 * widths + t**2))), rel=1e-6)
    assert of_gaussian.scalars["collapse_time"]["value"] == 0


def test_energies_of_a_gaussian_are_their_closed_forms(of_gaussian: Diagnosis) -> None:
    """Linear: c² + τ² − cτπ/2, of which cτ(2 − π/2) is bend; both over the two widths."""
    c = np.sqrt(np.linalg.eigvalsh(np.array(GAUSSIAN_COVARIANCE)))
    near(of_gaussian, "energy/linear", float(np.mean(c**2 + 1 - c * math.pi / 2)))
    near(of_gaussian, "bend/linear", float(np.mean(c * (2 - math.pi / 2))))
    near(of_gaussian, "dimension/two_neighbours", 2, errors=4)
    assert of_gaussian.number("dimension/posterior").value == pytest.approx(2, rel=0.01)


def test_one_ddim_step_of_a_gaussian_has_its_closed_form(of_gaussian: Diagnosis) -> None:
    """From pure noise one step leads to the mean, on the linear and on the cosine path: the error is E x_0² = c²."""
    for name in ("linear", "cosine"):
        curve = of_gaussian.curves[f"few_steps/{name}"]
        assert abs(curve["y"][0] - 1.0) < 5 * curve["error"][0]
        assert curve["y"][3] < 0.2 * curve["y"][0]


def test_targets_of_a_gaussian(of_gaussian: Diagnosis) -> None:
    """The floor in every cell: Σ c² S_r²/S_t⁴ over the two widths, within the error of 128 rows; and the orders."""
    widths = np.linalg.eigvalsh(np.array(GAUSSIAN_COVARIANCE))
    found = of_gaussian.maps["continuous_variance"]
    for t, row in zip(found["t"], found["values"], strict=True):
        for r, value in zip(found["r"], row, strict=True):
            if value is not None:
                s_t, s_r = ((1 - time) ** 2 * widths + time**2 for time in (t, r))
                assert value == pytest.approx(float(np.mean(widths * s_r / s_t**2)), rel=0.5)
    assert of_gaussian.number("order/variance").value == pytest.approx(2, abs=0.5)


@pytest.mark.parametrize(("name", "share"), [("", 1 / 2), ("/eighth", 1 / 8)])
def test_discrete_targets_of_a_gaussian(name: str, share: float, generator: torch.Generator) -> None:
    """With φ = atan2(t, (1 − t) c): variance δ² c² S_r²/(S_s² S_t²), squared bias S_r² (1 − cos(φ_t − φ_s))², in every
    cell (t, s, r), over the two widths; a bias that cannot be told from 0 is left out."""
    c = np.sqrt(np.linalg.eigvalsh(np.array(GAUSSIAN_COVARIANCE)))
    data, d = toy("gaussian", "train", 4000), Diagnosis(kind="data", settings={})
    k = known(data, DataSpec.fit(data), Linear())
    targets(d, k, 0.0, 4000, generator, lambda done, total: None)

    def size(t: float) -> Any:
        return np.hypot((1 - t) * c, t)

    def angle(t: float) -> Any:
        return np.arctan2(t, (1 - t) * c)

    variances, biases = (d.maps[f"discrete_{each}{name}"] for each in ("variance", "bias"))
    seen = []
    for i, t in enumerate(variances["t"]):
        for j, r in enumerate(variances["r"]):
            if r >= t:
                continue
            step = share * (t - r)
            variance = float(np.mean((c * size(r) / size(t - step) / size(t)) ** 2))
            assert variances["values"][i][j] == pytest.approx(variance, rel=0.1)
            bias = float(np.mean((size(r) * (1 - np.cos(angle(t) - angle(t - step)))) ** 2)) / step**2
            found = biases["values"][i][j]
            if found is not None:
                assert abs(found - bias) < 0.03 * variance + 0.1 * (bias * variance) ** 0.5
                seen.append(bias / variance)
    assert sum(ratio > 0.02 * (2 * share) ** 2 for ratio in seen) >= (8 if share == 1 / 2 else 2), seen


def test_a_whole_data_set_as_a_batch_removes_all_variance(of_clusters: Diagnosis) -> None:
    curve = of_clusters.curves["removed_by_images/free"]
    share = dict(zip(curve["x"], curve["y"], strict=True))
    assert share[16] < share[128]
    full = diagnose_data(clusters(), recipe_named("esc"), batch=240, looking=FEWER)
    assert full.number("removed/free").value == pytest.approx(1, abs=5 * full.number("removed/free").error)
    assert max(full.curves["left"]["y"]) < 1e-6


def test_the_effective_number_of_images_is_that_of_the_posterior() -> None:
    """Of the whole set as a batch the weights are the posterior's: E 1/Σγ² over the recipe's times and points."""
    data, recipe = clusters(), recipe_named("esc")
    d = diagnose_data(data, recipe, batch=240, looking=FEWER)
    curve = d.curves["sample_size_by_images/free"]
    assert curve["x"] == [16, 32, 64, 128, 240]
    assert curve["y"] == sorted(curve["y"])
    k = known(data, DataSpec.fit(data, recipe.sigma_data), recipe.path)
    assert isinstance(k.law, FiniteData)
    t = _times(recipe)
    gamma = k.law.responsibilities(k.noisy(t, torch.Generator().manual_seed(5))[0], t)
    want = float((1 / gamma.square().sum(1)).mean())
    assert abs(curve["y"][-1] - want) < 5 * curve["error"][-1]
    assert curve["error"][-1] < 0.2 * want


def test_classes_are_told_apart(of_clusters: Diagnosis) -> None:
    assert {name for name in of_clusters.scalars if name.startswith("removed/")} == {
        "removed/free",
        "removed/masked",
        "removed/class",
    }
    told, free = (of_clusters.curves[f"velocity_variance/{name}"]["y"] for name in ("told", "free"))
    assert all(a <= b * (1 + 1e-9) for a, b in zip(told, free, strict=True))
    assert told[-1] < 0.5 * free[-1]
    gap = of_clusters.curves["class_gap"]["y"][-1]
    assert gap == pytest.approx(free[-1] - told[-1], rel=0.3)  # the law of total variance at pure noise
    alone = diagnose_data(clusters(), recipe_named("esc").unconditional(), batch=32, looking=FEWER)
    assert [name for name in alone.scalars if name.startswith("removed/")] == ["removed/all"]


def test_the_record_is_what_it_says(of_clusters: Diagnosis, of_gaussian: Diagnosis, tmp_path: Path) -> None:
    for d in (of_clusters, of_gaussian):
        check_record(d.to_dict())
        d.write(tmp_path / "x.json")
        assert json.loads((tmp_path / "x.json").read_text()) == d.to_dict()
        assert d.advice
        lines = report_table(d.to_dict())
        assert max(map(len, lines)) < 160
        assert report_table(d.to_dict(), ("first_step",))[-1] != lines[-1]
    assert of_clusters.settings["law"] == "the 240 points of clusters themselves"
    assert any("largest posterior weight" in each["evidence"] for each in of_clusters.advice)


def test_a_seed_makes_a_diagnosis() -> None:
    data, recipe = clusters(60), recipe_named("meanflow")
    found = [
        diagnose_data(data, recipe, batch=16, looking=Looking(rows=16, flow_rows=3, seed=seed)).to_dict()
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert found[0]["scalars"] != found[2]["scalars"]


def test_progress_grows_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    small = Looking(rows=16, flow_rows=4)
    data = clusters(n=60)
    diagnose_data(data, recipe_named("ect"), batch=8, looking=small, report=lambda *each: told.append(each))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("batch", [1, 241])
def test_an_impossible_batch_is_refused(batch: int) -> None:
    with pytest.raises(ConfigError, match="from 2 to the 240 images"):
        diagnose_data(clusters(), recipe_named("esc"), batch=batch)


@pytest.mark.parametrize("recipe", ["esc", "ect"])
@pytest.mark.parametrize(
    ("samples", "labels", "batch"),
    [
        (np.eye(3)[:2], None, 2),  # two points
        (np.random.default_rng(0).standard_normal((12, 1)), None, 8),  # one coordinate
        (np.random.default_rng(0).standard_normal((12, 3)), np.arange(12), 8),  # a point a class
        (np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) // 39, 16),  # one with a class of its own
        (1e4 * np.random.default_rng(0).standard_normal((60, 3)), None, 16),  # far more spread than the noise
        (1e-4 * np.random.default_rng(0).standard_normal((60, 3)), None, 16),
        (np.repeat(np.random.default_rng(0).standard_normal((5, 3)), 8, 0), None, 8),  # copies
    ],
)
def test_odd_data_have_a_diagnosis(samples: Any, labels: Any, batch: int, recipe: str) -> None:
    """What cannot be measured is left out and said; the record is whole."""
    classes = () if labels is None else tuple(map(str, range(labels.max() + 1)))
    data = Dataset(name="odd", samples=samples.astype(np.float32), labels=labels, classes=classes)
    d = diagnose_data(data, recipe_named(recipe), batch=batch, looking=Looking(rows=8, flow_rows=2))
    check_record(d.to_dict())
    assert d.advice
    for name in ("few_steps/variance-exploding", "energy/variance-exploding"):
        said = any(note.startswith("variance-exploding: one data point explains") for note in d.notes)
        assert said != (name in d.curves or name in d.scalars)


@pytest.mark.parametrize(
    ("samples", "says"),
    [(np.ones((20, 3)), "all 20 samples are the same"), (np.full((20, 3), np.nan), "sample 0 is not finite")],
)
def test_data_without_a_law_are_refused(samples: Any, says: str) -> None:
    data = Dataset(name="odd", samples=samples.astype(np.float32))
    with pytest.raises(DataError, match=says):
        diagnose_data(data, recipe_named("esc"), batch=8)


def test_looking_needs_numbers() -> None:
    with pytest.raises(ConfigError, match="rows must be at least 2"):
        Looking(rows=1)


def test_numbers_that_are_none_are_null() -> None:
    d = Diagnosis(kind="data", settings={})
    d.curve("a", [1.0, 2.0], [Estimate(math.nan, 1.0), 3.0], "a")
    d.map("b", [0.5], [0.1, 0.5], {(0, 0): math.inf}, "b")
    d.scalar("c", Estimate(1.0, math.nan), "c")
    assert d.curves["a"]["y"] == [None, 3.0]
    assert d.curves["a"]["error"] == [1.0, None]
    assert d.maps["b"]["values"] == [[None, None]]
    assert d.scalars["c"]["error"] is None
    assert math.isnan(d.number("nothing").value)
    assert report_table(d.to_dict())[0] == "c  1"
    assert torch.isfinite(torch.tensor(d.number("c").value))
