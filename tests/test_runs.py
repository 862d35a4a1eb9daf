"""Whole runs as functions: what is configured, refused before training, resumed, sampled and scored."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shortflow import evaluate, hub, runs
from shortflow.config import RunConfig, dump, load_run, override, recipe_named
from shortflow.data import Dataset, DataSpec
from shortflow.data import load as load_data
from shortflow.data.toys import GAUSSIAN_COVARIANCE
from shortflow.draw import Draw
from shortflow.errors import CheckpointError, ConfigError, DataError, IncompatibleParts, MetricError, SamplerError
from shortflow.flowmap import FlowMap
from shortflow.guidance import guide
from shortflow.nn.configs import MLPConfig, SiTConfig
from shortflow.parameterizations import Denoiser
from shortflow.recipes import RECIPES
from shortflow.runs import running, scoring
from shortflow.sample import Euler, Gamma, Heun, PushForward, ReNoise, Restart, Sampler
from teachers import Teachers, settings_of

TINY = ("network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}", "train.preview_every=0")
POINTS = ("network={kind: MLPConfig, width: 16, depth: 1}", "train.preview_every=0")


def budget(steps: int, batch: int = 32) -> tuple[str, ...]:
    return (f"train.images={steps * batch}", f"train.batch={batch}")


def finished(directory: Path, recipe: str = "esc", data: str = "digits", *settings: str) -> hub.Model:
    """A trained model, after two tiny steps."""
    small = TINY if data in ("digits",) or Path(data).is_dir() else POINTS
    run, dataset = runs.configure(recipe, data, settings=[*small, *budget(2), *settings])
    for _ in runs.training(run, dataset, directory):
        pass
    return hub.load(directory)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> hub.Model:
    return finished(tmp_path_factory.mktemp("digits"), "esc", "digits", "objective.label_dropout=0.1")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A folder of 24 images side by side: no classes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(24):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


@pytest.fixture
def classed(tmp_path: Path) -> Path:
    """A folder of 12 images in each of two classes."""
    for name in ("cats", "dogs"):
        folder = tmp_path / "animals" / name
        folder.mkdir(parents=True)
        for k in range(12):
            Image.fromarray(np.full((8, 8), 10 * k, np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "animals"


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return hub.load(directory).flow.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------------------ configure


def test_a_recipe_by_name_gets_its_preset_and_the_settings() -> None:
    run, dataset = runs.configure("esc", settings=["train.seed=7", "network.size=tiny"])
    assert (run.data.source, dataset.name, len(dataset)) == ("digits", "digits", 1297)
    assert run.train.seed == 7
    points, _ = runs.configure("esc", "mixture")
    assert isinstance(points.network, MLPConfig)


def test_flips_are_a_setting_of_the_data(tmp_path: Path) -> None:
    run, dataset = runs.configure("flow-matching", settings=[*TINY, *budget(4), "data.flip=true"])
    assert run.data.flip
    spec = DataSpec.fit(dataset)
    turned, plain = (running.batches(each, dataset, spec, None)(0).x for each in (run, override(run, ["flip=false"])))
    moved = (turned != plain).flatten(1).any(1)
    assert torch.equal(turned[moved], plain[moved].flip(3))
    assert 0 < int(moved.sum()) < 32
    dump(run, tmp_path / "run.yaml")
    assert load_run(tmp_path / "run.yaml") == run
    with pytest.raises(ConfigError, match=r"data.flip mirrors images, and mixture is points"):
        runs.configure("flow-matching", "mixture", settings=["data.flip=true"])


def test_what_a_preset_chose_beside_a_setting_follows_it() -> None:
    for setting in ("network.size=tiny", "size=tiny"):
        run, _ = runs.configure("esc", settings=[setting])
        assert isinstance(run.network, SiTConfig)
        assert run.network.dimensions == (2, 64, 4)
    run, _ = runs.configure("esc", settings=["network.size=tiny", "network.width=32"])
    assert isinstance(run.network, SiTConfig)
    assert run.network.dimensions == (2, 32, 4)
    group = runs.configure("esc")[0].train.group
    assert group is not None
    assert runs.configure("esc", settings=["batch=8"])[0].train.group == 8
    assert runs.configure("esc", settings=["batch=1024"])[0].train.group == group
    assert runs.configure("esc", settings=["train.group=null"])[0].train.group is None
    with pytest.raises(ConfigError, match=r"train.group must be between 1 and the batch of 8, got 16"):
        runs.configure("esc", settings=["batch=8", "group=16"])


def test_a_run_file_is_taken_as_it_is_and_data_and_settings_replace_its_own(tmp_path: Path) -> None:
    run, _ = runs.configure("meanflow", "mixture", settings=["train.batch=64"])
    dump(run, tmp_path / "my.yaml")
    again, dataset = runs.configure(str(tmp_path / "my.yaml"))
    assert (again, dataset.name) == (run, "mixture")
    other, dataset = runs.configure(str(tmp_path / "my.yaml"), "moons", settings=["train.batch=256"])
    assert (other.data.source, dataset.name, other.train.batch) == ("moons", "moons", 256)
    third, dataset = runs.configure(str(tmp_path / "my.yaml"), settings=["data.source=rings"])
    assert (third.data.source, dataset.name) == ("rings", "rings")
    assert third.recipe == run.recipe.unconditional()


def test_data_named_in_the_settings_are_the_data_that_are_loaded() -> None:
    run, dataset = runs.configure("esc", settings=["data.source=mixture", "train.batch=64"])
    wanted, _ = runs.configure("esc", "mixture", settings=["train.batch=64"])
    assert run == wanted
    assert dataset.name == "mixture"


@pytest.mark.parametrize("data", ["gaussian", "flat"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_on_data_without_classes(recipe: str, data: str, tmp_path: Path, flat: Path) -> None:
    source = str(flat) if data == "flat" else data
    small = TINY if data == "flat" else POINTS
    given = Teachers(tmp_path).given(recipe, source, [*small, *budget(1, 8)])
    run, dataset = runs.configure(recipe, source, settings=[*small, *budget(2, 8), *settings_of(recipe)], **given)
    # Guided as published, were there classes; without them nothing is left of it, and the run says so.
    objective = run.recipe.objective
    assert (objective.guided, objective.label_dropout, run.recipe.batches) == (None, 0.0, "shuffled")
    assert run.recipe == run.recipe.unconditional()
    assert runs.notes(run, dataset)[0] == (
        f"{dataset.name} has no classes: guidance, label dropout and class-consistent batches are off"
    )
    records = list(runs.training(run, dataset, tmp_path / "run"))
    model = hub.load(tmp_path / "run")
    assert [record.step for record in records] == [1, 2]
    assert (model.flow.num_classes, model.flow.null_label, model.flow.guided) == (0, None, None)
    assert model.spec.shape == dataset.shape
    pixels, labels = runs.generate(model.flow, model.spec, 3)
    assert labels is None
    assert pixels.shape == (3, *dataset.shape)
    with pytest.raises(SamplerError, match="unconditional"):
        runs.generate(model.flow, model.spec, 3, classes=[0])


def test_guidance_of_a_run_file_is_off_without_classes(tmp_path: Path) -> None:
    run, _ = runs.configure(
        "esc", "mixture", settings=["objective.target.velocity.kappa=0.5", "objective.label_dropout=0.1"]
    )
    assert run.recipe.objective.guided is not None
    dump(run, tmp_path / "guided.yaml")
    plain, _ = runs.configure(str(tmp_path / "guided.yaml"), "gaussian")
    assert plain.recipe.objective.guided is None


def test_classes_of_a_folder_are_trained_on(classed: Path, tmp_path: Path) -> None:
    model = finished(tmp_path / "run", "esc", str(classed))
    assert model.spec.classes == ("cats", "dogs")
    assert model.flow.null_label == 2
    assert runs.generate(model.flow, model.spec, 4)[1] is not None


@pytest.mark.parametrize(
    ("recipe", "data", "settings", "error", "message"),
    [
        ("ecs", "digits", (), ConfigError, "no recipe called 'ecs', did you mean 'esc'"),
        ("esc", "digts", (), DataError, "did you mean 'digits'"),
        ("none.yaml", None, (), ConfigError, "none.yaml cannot be read"),
        (
            "imm",
            "digits",
            ("train.batch=30",),
            ConfigError,
            "groups of 4, which imm compares; set train.batch to 28 or 32",
        ),
        ("imm", "digits", ("train.batch=3",), ConfigError, "set train.batch to 4$"),
        ("esc", "digits", ("network.patch=3",), ConfigError, "patch=3 does not divide the image of 8×8: valid patches"),
        ("esc", "digits", ("network=MLPConfig",), ConfigError, r"network: .*\(data: digits, shape \(1, 8, 8\)\)"),
        ("esc", "mixture", ("network=SiTConfig",), ConfigError, "use an MLP for points"),
        (
            "esc",
            "digits",
            ("objective.label_dropout=0", "objective.target.velocity.kappa=0.5"),
            ConfigError,
            "set label",
        ),
        ("meanflow", "digits", ("objective.target=Direct",), ConfigError, "Direct with Sorted"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(
    recipe: str, data: str | None, settings: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        runs.configure(recipe, data, settings=settings)


# ------------------------------------------------------------------------------------------------------------- training


def test_the_call_itself_writes_the_run_file_so_that_the_first_moment_can_be_resumed(tmp_path: Path) -> None:
    settings = [*TINY, *budget(3)]
    run, dataset = runs.configure("esc", settings=settings)
    records = runs.training(run, dataset, tmp_path / "cut")
    assert load_run(tmp_path / "cut" / "run.yaml") == run
    next(records)  # one step, then the machine is gone
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    again, data = runs.open_run(tmp_path / "cut")
    assert again == run
    assert [record.step for record in runs.training(again, data, tmp_path / "cut", resume=True)] == [1, 2, 3]
    list(runs.training(run, dataset, tmp_path / "whole"))
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_a_resumed_run_is_the_run_uninterrupted(tmp_path: Path) -> None:
    settings = [*TINY, *budget(4), "train.save_every=2"]
    run, dataset = runs.configure("esc", settings=settings)
    whole = list(runs.training(run, dataset, tmp_path / "whole"))
    records = runs.training(run, dataset, tmp_path / "cut")
    first = [next(records), next(records)]
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    rest = list(runs.training(*runs.open_run(tmp_path / "cut"), tmp_path / "cut", resume=True))
    assert [record.step for record in rest] == [3, 4]
    assert [record.loss for record in first + rest] == [record.loss for record in whole]
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_errors_come_with_the_call_not_with_the_first_step(digits: hub.Model, tmp_path: Path) -> None:
    directory = digits.path.parent
    run, dataset = runs.open_run(directory)
    before = (directory / "run.yaml").read_bytes()
    with pytest.raises(CheckpointError, match="already holds a run"):
        runs.training(override(run, ["train.seed=1"]), dataset, directory)
    assert (directory / "run.yaml").read_bytes() == before
    with pytest.raises(CheckpointError, match="nothing to resume"):
        runs.training(run, dataset, tmp_path / "none", resume=True)
    with pytest.raises(CheckpointError, match="is a file"):
        runs.training(run, dataset, directory / "run.yaml")
    with pytest.raises(CheckpointError, match=r"holds no run \(no run.yaml\); start one with: shortflow train"):
        runs.open_run(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_finished_model_whose_state_was_removed_is_not_overwritten(tmp_path: Path) -> None:
    finished(tmp_path)
    for path in sorted((tmp_path / "state").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run, dataset = runs.open_run(tmp_path)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="already holds a model"):
            runs.training(run, dataset, tmp_path, resume=resume)


def test_a_run_does_not_go_on_with_other_data(classed: Path, tmp_path: Path) -> None:
    finished(tmp_path / "run", "imm", str(classed))  # imm scales the data by their standard deviation
    for k in range(12):
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(classed / "cats" / f"{k}.png")
    with pytest.raises(CheckpointError, match=r"have changed since the run was started \(shift was .*; scale was"):
        runs.training(*runs.open_run(tmp_path / "run"), tmp_path / "run", resume=True)


@pytest.mark.parametrize("change", ["data.flip=true", "network.heads=4", "optimizer.lr=1e-5", "train.seed=1"])
def test_a_run_whose_file_was_changed_does_not_go_on(change: str, digits: hub.Model) -> None:
    """The weights have the same shapes, so nothing else would tell."""
    directory = digits.path.parent
    run, dataset = runs.open_run(directory)
    with pytest.raises(CheckpointError, match=r"00000002 was trained with .*, which cannot go on with "):
        runs.training(override(run, [change]), dataset, directory, resume=True)
    assert list(runs.training(run, dataset, directory, resume=True)) == []


def test_auto_begins_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    run, dataset = runs.configure("esc", settings=[*TINY, *budget(3), "train.save_every=2"])
    records = runs.training(run, dataset, tmp_path, resume="auto")
    with pytest.raises(CheckpointError, match=r"is in use: a run is going on there in process"):
        runs.training(run, dataset, tmp_path, resume="auto")
    assert [next(records).step, next(records).step] == [1, 2]
    del records
    assert [record.step for record in runs.training(run, dataset, tmp_path, resume="auto")] == [3]
    assert list(runs.training(run, dataset, tmp_path, resume="auto")) == []
    assert not (tmp_path / ".lock").exists()


def test_a_refused_run_leaves_nothing_behind_and_the_directory_free(digits: hub.Model, tmp_path: Path) -> None:
    run, dataset = runs.open_run(digits.path.parent)
    for _ in range(2):
        with pytest.raises(ConfigError, match="none"):
            runs.training(replace(run, teacher=str(tmp_path / "none")), dataset, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_every_batch_of_a_class_consistent_run_has_one_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[set[int]] = []
    run, dataset = runs.configure("esc", settings=[*TINY, *budget(3)])
    draw: Callable[..., Draw] = type(run.recipe.objective).draw

    def spy(self: Any, batch: Any, *arguments: Any, **others: Any) -> Draw:
        seen.append(set(batch.label.tolist()))
        return draw(self, batch, *arguments, **others)

    monkeypatch.setattr(type(run.recipe.objective), "draw", spy)
    list(runs.training(run, dataset, tmp_path))
    assert [len(classes) for classes in seen] == [1, 1, 1]


# ----------------------------------------------------------------------------------------------------------- generating


def test_samples_are_decoded_and_come_with_their_classes(digits: hub.Model) -> None:
    pixels, labels = runs.generate(digits.flow, digits.spec, 12, seed=1)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (12, 1, 8, 8))
    assert labels is not None
    assert labels.tolist() == [*range(10), 0, 1]
    some, chosen = runs.generate(digits.flow, digits.spec, 5, classes=[7, 3])
    assert chosen is not None
    assert chosen.tolist() == [7, 3, 7, 3, 7]
    # Sample k is a function of (seed, k): neither the number nor the batches matter.
    few, _ = runs.generate(digits.flow, digits.spec, 5, seed=1, batch_size=2)
    assert np.array_equal(few, pixels[:5])
    assert not np.array_equal(some, pixels[:5])
    with pytest.raises(SamplerError, match="list of classes is empty"):
        runs.generate(digits.flow, digits.spec, 5, classes=[])


def test_interpolations_go_from_one_sample_to_another(digits: hub.Model) -> None:
    pixels, columns = runs.interpolation(digits, rows=2, points=5, classes=[4])
    assert (len(pixels), columns) == (10, 5)
    for row, seed in ((0, 0), (1, 2)):
        first, _ = runs.generate(digits.flow, digits.spec, 1, classes=[4], seed=seed)
        last, _ = runs.generate(digits.flow, digits.spec, 1, classes=[4], seed=seed + 1)
        assert abs(pixels[5 * row].astype(int) - first[0]).max() <= 1
        assert abs(pixels[5 * row + 4].astype(int) - last[0]).max() <= 1


def test_interpolations_are_guided_as_samples_are(digits: hub.Model) -> None:
    with torch.no_grad():
        for weight in digits.flow.parameters():
            weight.add_(0.2 * torch.randn_like(weight))  # untrained gates are zero and see no class
    guided, _ = runs.interpolation(digits, rows=1, points=2, classes=[4], guidance=3.0)
    plain, _ = runs.interpolation(digits, rows=1, points=2, classes=[4])
    wanted, _ = runs.generate(guide(digits.flow, 3.0), digits.spec, 1, classes=[4])
    assert abs(guided[0].astype(int) - wanted[0]).max() <= 1
    assert not np.array_equal(guided, plain)


def test_samplers_have_names() -> None:
    assert runs.sampler_named("auto") is None
    assert (runs.sampler_named("push-forward"), runs.sampler_named("re-noise")) == (PushForward(), ReNoise())
    with pytest.raises(ConfigError, match="no sampler called 'renoise', did you mean 're-noise'"):
        runs.sampler_named("renoise")
    assert [runs.sampler_named(name) for name in ("restart", "gamma", "euler", "heun")] == [
        Restart(),
        Gamma(),
        Euler(),
        Heun(),
    ]
    assert runs.sampler_named("gamma", 0.25) == Gamma(gamma=0.25)
    with pytest.raises(ConfigError, match=r"gamma = 0\.25 is a setting of the sampler gamma, not of euler"):
        runs.sampler_named("euler", 0.25)


def test_grids_have_names() -> None:
    assert [runs.grid_named(name) for name in ("auto", "uniform", "karras", "edm")] == [
        None,
        "uniform",
        "karras",
        "edm",
    ]
    with pytest.raises(ConfigError, match="no grid called 'edms', did you mean 'edm'"):
        runs.grid_named("edms")


# -------------------------------------------------------------------------------------------------------------- scoring


class ExactGaussian(torch.nn.Module):
    """The average velocity of N(0, C): X_{t,r}(x) = Q diag(S_r/S_t) Qᵀ x, C = Q diag(λ) Qᵀ, S_t² = (1−t)² λ + t²."""

    num_classes, null_label = 0, None

    def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor | None = None) -> Tensor:
        spread, axes = torch.linalg.eigh(torch.tensor(GAUSSIAN_COVARIANCE))

        def scale(t: Tensor) -> Tensor:
            return ((1 - t[:, None]) ** 2 * spread + t[:, None] ** 2).sqrt()

        end = (x @ axes * scale(time - second) / scale(time)) @ axes.T
        return (x - end) / second[:, None]


def exact_gaussian() -> hub.Model:
    """The model that has learned the toy `gaussian`."""
    run, dataset = runs.configure("meanflow", "gaussian")
    flow = run.recipe.flow_map(ExactGaussian())
    return hub.Model(flow=flow, spec=DataSpec.fit(dataset), run=run, images=1, step=1, path=Path("exact"))


def test_the_exact_flow_scores_like_real_data_in_any_number_of_steps() -> None:
    record = runs.score(exact_gaussian(), (1, 2), n=2000)
    rows = record["rows"]
    assert list(rows) == ["1 step", "2 steps", "real (train)"]
    assert (record["data"], record["images_seen"]) == ("gaussian", 1)
    for name in rows:
        assert rows[name]["n"] == rows[name]["n_reference"] == 2000
        assert rows[name]["energy_distance"] < 0.06  # noise of two sets of 2000 points; a unit shift gives 0.8
    # One jump of the exact flow is two of them.
    assert rows["1 step"]["sliced_w2"] == pytest.approx(rows["2 steps"]["sliced_w2"], abs=0.01)
    table = runs.score_table(record)
    assert table.splitlines()[1].split()[:2] == ["1", "step"]
    assert f"{rows['1 step']['energy_distance']:.5f}" in table
    assert runs.verdict(record) == []


@pytest.mark.parametrize(
    ("sampler", "written"),
    [
        (ReNoise(), {"kind": "ReNoise"}),
        (Gamma(gamma=0.5), {"kind": "Gamma", "gamma": 0.5}),
        (Restart(), {"kind": "Restart", "repeats": 1}),
    ],
)
def test_every_sampler_of_the_exact_flow_scores_like_real_data(sampler: Sampler, written: dict[str, Any]) -> None:
    record = runs.score(exact_gaussian(), (2, 5), n=2000, sampler=sampler, grid="uniform", middle=0.7)
    assert (record["sampler"], record["grid"], record["middle"]) == (written, "uniform", 0.7)
    # Independent sets of 2000 points are 0.03 to 0.07 apart, by seed; re-noise without its noise is 0.67 away.
    assert all(row["energy_distance"] < 0.1 for row in record["rows"].values())


def test_the_middle_time_is_that_of_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    draw = runs.draw

    def spy(flow: FlowMap, spec: DataSpec, n: int, **others: Any) -> Any:
        asked.append(others["times"])
        return draw(flow, spec, n, **others)

    monkeypatch.setattr(scoring, "draw", spy)
    runs.score(exact_gaussian(), (1, 2, 3), n=10, grid="karras", middle=0.7)
    assert asked == [(1.0, 0.0), (1.0, 0.7, 0.0), pytest.approx((1.0, (2 / 3) ** 7, (1 / 3) ** 7, 0.0))]


def test_real_images_score_as_real_images(digits: hub.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that returns the training images is at distance 0 and classified as they are."""
    real = load_data("digits", "train")

    def returns_the_data(*_: object, **__: object) -> Iterator[runs.Drawn]:
        yield runs.Drawn(first=0, pixels=real.samples, labels=real.labels)

    monkeypatch.setattr(scoring, "draw", returns_the_data)
    monkeypatch.setattr(scoring, "class_labels", lambda *_: real.labels)
    record = runs.score(digits, (1, 4), n=len(real))
    row = record["rows"]["1 step"]
    assert row["fd"] == pytest.approx(0, abs=1e-3)
    assert row["conditional_accuracy"] > 0.99
    # More samples than there are held-out images: the real row has as many as there are.
    assert record["rows"]["real (held out)"]["n"] == 500
    assert record["rows"]["real (held out)"]["fd"] > row["fd"]
    assert runs.verdict(record) == ["One step is no worse than four."]
    assert runs.score_table(record).startswith(evaluate.table(record["rows"]))
    assert record["rows"]["1 step"]["classifier"]["sha256"][:12] in runs.score_table(record)


def test_the_verdict_names_what_is_worse() -> None:
    one = {"conditional_accuracy": None, "coverage": 0.5, "recall": 0.75, "fd": 2.0}
    four = {"conditional_accuracy": 0.9, "coverage": 0.625, "recall": 0.5, "fd": 1.0}
    record = {"rows": {"1 step": one, "4 steps": four}}
    assert runs.verdict(record) == [
        "One step is worse than four in: coverage 0.500 against 0.625; FD 2.000 against 1.000."
    ]
    assert runs.verdict({"rows": {"1 step": one}}) == []


def test_a_model_is_scored_wherever_its_file_lies(digits: hub.Model, tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "copied.safetensors"
    file.write_bytes(digits.path.read_bytes())
    monkeypatch.chdir(tmp_path)
    record = runs.score(hub.load(file), (1,), n=16)
    assert record["model"] == str(file)
    assert record["rows"]["1 step"]["n"] == 16


def refuses_to_score(model: hub.Model, message: str, error: type[Exception] = MetricError, **arguments: Any) -> None:
    with pytest.raises(error, match=message):
        runs.score(model, **{"steps": (1,), "n": 16, **arguments})


def test_what_cannot_be_scored_is_refused_before_any_sample(
    digits: hub.Model, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_samples(*_: object, **__: object) -> None:
        raise AssertionError("sampled before everything was checked")

    own = finished(tmp_path / "own", "esc", str(flat))
    large = replace(digits, spec=replace(digits.spec, shape=(1, 16, 16)))
    dyadic = finished(tmp_path / "dyadic", "shortcut")
    guided = finished(
        tmp_path / "guided", "esc", "digits", "objective.target.velocity.kappa=0.5", "objective.label_dropout=0.1"
    )
    monkeypatch.setattr(scoring, "draw", no_samples)
    refuses_to_score(own, r"one is shipped for cifar10, digits, fashion-mnist, mnist only.*evaluate_images")
    refuses_to_score(large, r"makes images of shape \(1, 16, 16\), the classifier for digits takes \(1, 8, 8\)")
    refuses_to_score(digits, "n = 5 samples are too few to score, at least 6", n=5)
    refuses_to_score(digits, "give at least one number of steps", steps=())
    refuses_to_score(digits, "steps must be at least 1, got 0", SamplerError, steps=(1, 0))
    refuses_to_score(dyadic, "use 1, 2, 4, 8", SamplerError, steps=(1, 2, 3))
    refuses_to_score(guided, "would apply it twice", SamplerError, guidance=2.0)
    refuses_to_score(exact_gaussian(), "n = 0 samples are too few to score, at least 1", n=0)


def test_guidance_without_a_null_class_is_refused(tmp_path: Path) -> None:
    model = finished(tmp_path, "meanflow", "digits", "objective.label_dropout=0")
    with pytest.raises(IncompatibleParts, match="null class"):
        runs.generate(model.flow, model.spec, 2, guidance=2.0)


# ------------------------------------------------------------------------------------------------------------- pictures


def test_the_comparison_has_a_panel_for_the_data_and_every_number_of_steps(digits: hub.Model, tmp_path: Path) -> None:
    drawn = []
    for steps in ((1,), (1, 2, 4, 8, 128)):
        runs.comparison_picture(digits, steps, tmp_path / "c.png", rows=2)
        drawn.append(Image.open(tmp_path / "c.png").size)
    # 2 panels side by side; 6 in two rows of three
    assert drawn[1][0] == pytest.approx(1.5 * drawn[0][0])
    assert drawn[1][1] > 1.5 * drawn[0][1]


def test_points_and_few_classes_are_compared_too(classed: Path, tmp_path: Path) -> None:
    runs.comparison_picture(exact_gaussian(), (1,), tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size[0] > 2 * 256
    split = tmp_path / "split"
    for part in ("train", "test"):
        (split / part).parent.mkdir(exist_ok=True)
        (split / part).symlink_to(classed)
    model = finished(tmp_path / "run", "esc", str(split))
    runs.comparison_picture(model, (1,), tmp_path / "f.png", rows=50)  # more rows than a class has images
    assert Image.open(tmp_path / "f.png").size[1] > 12 * 32


def test_previews_are_drawn_in_steps_that_the_network_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    generate = runs.generate

    def spy(flow: FlowMap, spec: DataSpec, n: int, **others: Any) -> Any:
        asked.append(others["steps"])
        return generate(flow, spec, n, **others)

    monkeypatch.setattr(running, "generate", spy)
    for recipe in ("flow-matching", "esc"):
        finished(tmp_path / recipe, recipe, "digits", "train.preview_every=2")
    assert asked == [32, 1]
    assert (tmp_path / "esc" / "samples" / "step-00000002.png").is_file()


def test_a_run_knows_its_data(digits: hub.Model) -> None:
    run, dataset = runs.open_run(digits.path.parent)
    assert isinstance(run, RunConfig)
    assert isinstance(dataset, Dataset)
    assert (run.recipe.name, dataset.name) == ("esc", "digits")
    assert run == digits.run
    assert recipe_named("esc").notes()[0] in runs.notes(run, dataset)


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("meanflow", ("network.patch=8", "network.width=32"), ("network.patch=4", "network.width=64")),
        ("esc", ("network.patch=8", "network.width=60"), ("network.patch=4", "network.width=64")),
        ("meanflow", ("network.patch=8", "network.width=64"), ()),
        ("ect", ("network.patch=4", "network.width=8"), ("network.patch=2", "network.width=64")),
        (
            "meanflow",
            ("network.patch=8", "network.width=60", "network.heads=6"),
            ("network.patch=4", "network.width=192"),
        ),
        ("meanflow", (), ()),
    ],
)
def test_tokens_that_cannot_carry_their_patches_are_told(
    recipe: str, settings: tuple[str, ...], said: tuple[str, ...]
) -> None:
    """What is advised is a run that can be, and has nothing left to say."""
    run, dataset = runs.configure(recipe, "digits", settings=settings)
    found = [note for note in runs.notes(run, dataset) if "cannot carry" in note]
    assert len(found) == bool(said)
    for note in found:
        assert f"has {run.network.patch**2} numbers" in note  # type: ignore[attr-defined]
        assert note.endswith(" or ".join(f"--set {each}" for each in said))
        for setting in said:
            better, _ = runs.configure(recipe, "digits", settings=(*settings, setting))
            assert not any("cannot carry" in each for each in runs.notes(better, dataset))


def test_networks_that_return_images_may_be_narrow() -> None:
    """Images fill few of the dimensions that they have."""
    run, dataset = runs.configure("imm", "digits", settings=("network.width=8", "network.heads=2"))
    assert any("cannot carry" in note for note in runs.notes(run, dataset))
    run = replace(run, recipe=replace(run.recipe, parameterization=Denoiser()))
    assert not any("cannot carry" in note for note in runs.notes(run, dataset))
