"""`diagnose_run`: an exact model has no errors, known errors are found, the bound holds for every kind of network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from commands import Shortflow
from oracles import f64
from shortflow.config import RunConfig, recipe_named
from shortflow.data import Dataset, DataSpec
from shortflow.data.toys import toy
from shortflow.diagnose import Diagnosis, Looking, diagnose_run, report_table
from shortflow.diagnose.advice import advise_on_run
from shortflow.diagnose.agreeing import velocities
from shortflow.diagnose.known import known
from shortflow.diagnose.maps import as_map, bound_of, dyadic_times, starting_points
from shortflow.diagnose.subject import Subject
from shortflow.errors import ConfigError
from shortflow.flowmap import AverageVelocity, FlowMap, StartOnly
from shortflow.hub import Model
from shortflow.paths import Linear
from shortflow.recipes import RECIPES
from shortflow.recipes.shortcut import shortcut
from shortflow.theory import ExactNetwork, FiniteData, Law, exact_flow
from test_diagnose_data import check_record

FEW = Looking(rows=32, flow_rows=6)


def model_of(flow: FlowMap, data: Dataset, name: str = "meanflow") -> Model:
    run = RunConfig(recipe=recipe_named(name))
    spec = DataSpec.fit(data)
    return Model(flow=flow, spec=spec, run=run, images=1000, step=10, path=Path("out/model.safetensors"))


def exact(data: Dataset, classes: bool = True) -> Law:
    return known(data, DataSpec.fit(data), Linear(), classes=classes).law.on(steps=2)


class Wrong(ExactNetwork):
    """Exact jumps and velocities, plus a constant."""

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return super().forward(x, time, second, label) + 0.5


class Guided(ExactNetwork):
    """Velocities that are guided with a scale of 3."""

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        free = super().forward(x, time, second, torch.full((len(x),), self.num_classes))
        return free + 3 * (super().forward(x, time, second, label) - free)


def test_an_exact_model_has_no_errors() -> None:
    data = toy("gaussian", "train", 2000)
    d = diagnose_run(model_of(exact_flow(exact(data)), data), data, toy("gaussian", "test", 2000), looking=FEW)
    for name in ("bound", "distance", "mean/semigroup", "mean/eulerian", "mean/lagrangian", "mean/boundary"):
        assert abs(d.number(name).value) < 1e-6, name
    assert d.scalars["holds"]["value"] == 1
    assert max(d.curves["self_distance"]["y"]) < 1e-12
    learned, law = (d.curves[f"dimension/{name}"] for name in ("learned", "exact"))
    assert learned["y"][0] == pytest.approx(law["y"][0], rel=0.1)
    assert d.number("w2/held_out").value < 2.5 * d.number("w2/real").value
    assert d.number("w2/ends").value < 1e-6
    check_record(d.to_dict())
    assert report_table(d.to_dict())


def test_a_constant_error_is_found_wherever_it_is() -> None:
    """u + b is off by b everywhere: bound = distance = |b|, boundary = b² a dimension, and jumps that agree."""
    data = toy("gaussian", "train", 2000)
    flow = FlowMap(Wrong(exact(data)), Linear(), AverageVelocity())
    d = diagnose_run(model_of(flow, data), data, looking=FEW)
    size = 0.5 * 2**0.5
    assert d.number("bound").value == pytest.approx(size, rel=1e-3)
    assert d.number("distance").value == pytest.approx(size, rel=1e-3)
    assert d.number("mean/boundary").value == pytest.approx(0.25, rel=1e-3)
    assert d.number("mean/eulerian").value == pytest.approx(0.25, rel=1e-3)
    assert "no held-out data" in " ".join(d.notes)
    assert sum(d.settings["error_shares"].values()) == pytest.approx(1)


def test_guidance_in_the_weights_is_found() -> None:
    data = toy("mixture", "train", 500)
    flow = FlowMap(Guided(exact(data)), Linear(), AverageVelocity())
    model = model_of(flow, data)
    d = Diagnosis(kind="run", settings={})
    velocities(d, Subject(model, data, FEW), lambda done, total: None)
    assert d.number("guidance").value == pytest.approx(3, abs=1e-6)
    shown = [each for each in d.curves["guidance"]["y"] if each is not None]
    assert shown == pytest.approx([3] * len(shown), abs=1e-3)
    advise_on_run(d)
    assert "carry guidance of about 3" in d.advice[-1]["text"]


class Copying(nn.Module):
    """One training point, whatever the noise."""

    num_classes, null_label = 0, None

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = nn.Parameter(points)

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        nearest = (x.detach()[:, None] - self.points).square().sum(2).argmin(1)
        return (x - self.points[nearest] + 1e-4 * x) / time[:, None].clamp(min=1e-3)


def test_a_model_that_copies_is_found_out() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((2, 300, 6)).astype(np.float32)
    data, held_out = (Dataset(name="points", samples=each) for each in points)
    flow = FlowMap(Copying(torch.from_numpy(points[0])), Linear(), AverageVelocity())
    d = diagnose_run(model_of(flow, data), data, held_out, looking=FEW)
    assert d.number("copies/samples").value == 1
    assert d.number("copies/held_out").value < 0.1
    assert d.number("nearer_to_training").value == 1
    assert any("has memorised" in each["text"] for each in d.advice)


def test_copies_of_a_network_for_velocities_are_found_in_many_steps() -> None:
    """The exact velocity of the training set, which one step turns into the mean of the data."""
    points = np.random.default_rng(0).standard_normal((2, 300, 6)).astype(np.float32)
    data, held_out = (Dataset(name="points", samples=each) for each in points)
    law = FiniteData(path=Linear(), points=torch.from_numpy(points[0]).double())
    flow = FlowMap(ExactNetwork(law, "velocity"), law.path, AverageVelocity(), StartOnly(), ends="diagonal")
    d = diagnose_run(model_of(flow, data, "flow-matching"), data, held_out, looking=FEW)
    assert d.settings["sample_steps"] == 32
    assert d.number("copies/samples").value == 1
    assert any("has memorised" in each["text"] for each in d.advice)


def test_steps_that_a_network_does_not_know_are_no_part_of_the_self_distance() -> None:
    """A shortcut model that knows 8 steps at most is asked for 1, 2 and 4 beside these."""
    recipe = shortcut(levels=3).unconditional()
    data = Dataset(name="clusters", samples=tiny.POINTS)
    d = diagnose_run(model_of(tiny.flow_map(recipe), data, "shortcut"), data, looking=FEW)
    assert d.curves["self_distance"]["x"] == [1, 2, 4]
    assert d.settings["most_steps"] == 8
    assert "to 8 from the same noise" in d.curves["self_distance"]["label"]


def test_other_data_are_refused() -> None:
    data = toy("gaussian", "train", 100)
    other = Dataset(name="points", samples=np.zeros((5, 3), dtype=np.float32))
    with pytest.raises(ConfigError, match=r"shape \(2,\), the data have \(3,\)"):
        diagnose_run(model_of(exact_flow(exact(data)), data), other)


# --------------------------------------------------------------------------------------------------- every kind of map


def small(name: str, seed: int = 0) -> tuple[FlowMap, Law]:
    """A recipe's flow map with random weights, and two dozen points as the data."""
    recipe = recipe_named(name).unconditional()
    flow = tiny.flow_map(recipe, seed=seed).double().eval().requires_grad_(False)
    points = recipe.sigma_data or 1.0
    law = FiniteData(path=recipe.path, points=points * torch.from_numpy(tiny.POINTS[:24]).double(), steps=4)
    return flow, law


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_bound_holds_for_every_recipe(name: str) -> None:
    flow, law = small(name)
    x = starting_points(law, flow, 24, torch.Generator().manual_seed(0))
    found, kind = bound_of(flow, law, x, nodes=24)
    assert kind == ("discrete" if flow.ends == "dyadic" else "continuous")
    assert found.holds, (found.distance, found.value, found.rest)
    assert found.distance.value > 0


@pytest.mark.parametrize("name", ["flow-matching", "shortcut", "ect", "imm", "tcm", "edm"])
def test_a_model_of_every_kind_can_be_diagnosed(name: str) -> None:
    recipe = recipe_named(name).unconditional()
    data = Dataset(name="clusters", samples=tiny.POINTS)
    flow = tiny.flow_map(recipe)
    spec = DataSpec.fit(data, recipe.sigma_data)
    model = replace(model_of(flow, data, name), spec=spec)
    d = diagnose_run(model, data, Dataset(name="clusters", samples=tiny.POINTS[::2] + 0.1), looking=FEW)
    check_record(d.to_dict())
    assert d.scalars["holds"]["value"] == 1
    assert d.advice


def test_maps_of_networks_for_one_time_are_straight() -> None:
    flow, _ = small("flow-matching")
    x, t, r = torch.randn(3, 2, dtype=torch.float64), f64(0.9, 0.5, 0.3), f64(0.1, 0.5, 0.0)
    straight = as_map(flow)
    torch.testing.assert_close(straight(x, t, r), x + (r - t)[:, None] * flow.velocity(x, t))
    assert as_map(straight) is straight
    dyadic, _ = small("shortcut")
    assert dyadic_times(dyadic) == [*(2.0**-k for k in range(8)), 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if not recipe_named(name).objective.needs])
def test_the_bound_holds_for_every_recipe_that_is_trained_on_a_toy(name: str, tmp_path: Path) -> None:
    """Some hundred steps on the eight Gaussians, against their exact law."""
    import shortflow as sf

    settings = ("train.images=60000", "train.batch=256", "train.preview_every=0", "train.trackers=[]")
    run, data = sf.configure(name, "mixture", settings=settings)
    for _ in sf.training(run, data, tmp_path / "run"):
        pass
    d = diagnose_run(sf.load(tmp_path / "run"), data, toy("mixture", "test"), looking=FEW)
    assert d.scalars["holds"]["value"] == 1, (d.scalars["bound"], d.scalars["distance"])
    assert d.number("distance").value > 0.01


# -------------------------------------------------------------------------------------------------------- the command


def test_data_are_diagnosed_by_a_command(shortflow: Shortflow, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    said = shortflow("diagnose", "--data", "digits", "--points", 200, "--rows", 24, "--batch", 32, "--recipe", "ect")
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "diagnosis-digits.json").read_text())
    check_record(record)
    assert record["kind"] == "data"
    assert record["settings"]["recipe"] == "ect"
    assert record["advice"][0]["text"] in said.out
    assert "those of pixels" in said.out
    assert said.out.rstrip().endswith("→ diagnosis-digits.json")


def test_a_run_is_diagnosed_by_a_command(shortflow: Shortflow, tmp_path: Path) -> None:
    quick = ("--set", "train.images=512", "--set", "train.batch=128", "--set", "train.trackers=[]")
    said = shortflow("train", "meanflow", "--data", "moons", "--out", tmp_path / "run", *quick)
    assert said.code == 0, said.err
    said = shortflow("diagnose", tmp_path / "run", "--rows", 24, "--all")
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "run/diagnosis.json").read_text())
    check_record(record)
    assert record["settings"]["law"] == "the law that moons is drawn from, exactly"
    assert record["scalars"]["holds"]["value"] == 1
    assert "semigroup" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to diagnose"),
        (("--data", "digits", "--rows", "1"), "rows must be at least 2"),
        (("--data", "digits", "--batch", "5000"), "from 2 to the 1,297 images"),
        (("--data", "digit"), "did you mean 'digits'"),
        (("nowhere",), "there is no model at nowhere"),
        (("--data", "digits", "--recipe", "esk"), "no recipe called 'esk'"),
    ],
)
def test_impossible_diagnoses_are_refused(arguments: tuple[str, ...], message: str, shortflow: Shortflow) -> None:
    said = shortflow("diagnose", *arguments)
    assert said.code == 2
    assert message in said.err
