"""Runs with a teacher, a weaker model, a start or pairs: what is refused before time is spent, and what they train."""

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shortflow import hub, runs
from shortflow.config import RunConfig, from_plain, load_run, to_plain
from shortflow.data import DataSpec
from shortflow.draw import Draw, References
from shortflow.errors import CheckpointError, ConfigError
from shortflow.flowmap import FlowMap
from shortflow.pairs import Pairs
from shortflow.paths import Cosine
from shortflow.references import load_references, units
from shortflow.reframe import ReframedFlowMap
from shortflow.streams import Streams
from shortflow.train import Average, StepRecord, TrainStep
from shortflow.train.ema import averages_of
from shortflow.train.weights import save_weights
from shortflow.typing import Batch, Progress

SMALL = ("network={kind: MLPConfig, width: 16, depth: 1}", "train.preview_every=0", "train.images=64", "train.batch=32")
FOLLOW = "objective.target.velocity=Reference"
PAIRS = "objective.pairs=true"


def trained(
    directory: Path, recipe: str = "flow-matching", data: str = "mixture", *settings: str, **others: Any
) -> str:
    """A run of two steps; its weights are then made random, so that it does something."""
    run, dataset = runs.configure(recipe, data, settings=[*SMALL, *settings], **others)
    list(runs.training(run, dataset, directory))
    file = directory / "model.safetensors"
    generator = torch.Generator().manual_seed(len(directory.name))
    tensors = {
        name: value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(str(file)).items()
    }
    save_weights(tensors, file, hub.read_header(file))
    return str(directory)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs on the mixture (classes), but for `gaussian` and `moons`."""
    root = tmp_path_factory.mktemp("models")
    dropout = "objective.label_dropout=0.1"
    return {
        "plain": trained(root / "plain", "flow-matching", "mixture", dropout),
        "no null class": trained(root / "classes", "flow-matching", "mixture", "objective.label_dropout=0"),
        "gaussian": trained(root / "gaussian", "flow-matching", "gaussian"),
        "moons": trained(root / "moons", "flow-matching", "moons"),
        "guided": trained(root / "guided", "meanflow", "mixture", dropout, "objective.target.velocity.kappa=0.5"),
        "consistency": trained(root / "ct", "ct", "mixture", "objective.label_dropout=0"),
        "meanflow": trained(root / "meanflow", "meanflow", "mixture", dropout),
    }


def configured(recipe: str, *settings: str, data: str = "mixture", **others: Any) -> Any:
    return runs.configure(recipe, data, settings=[*SMALL, *settings], **others)


# ------------------------------------------------------------------------------------------------------------- refused


REFUSED: dict[str, tuple[str, tuple[str, ...], dict[str, str], str]] = {
    "no teacher": (
        "flow-matching",
        (FOLLOW,),
        {},
        r"follows a teacher, and none was given; train one with: shortflow train flow-matching --data mixture --out "
        r"out/teacher\nand then: shortflow train flow-matching --data mixture --teacher out/teacher",
    ),
    "no teacher for pairs": (
        "flow-matching",
        (PAIRS,),
        {},
        "learns from pairs that a teacher makes, and none was given",
    ),
    "no weaker model": (
        "flow-matching",
        ("objective.target.velocity={kind: Reference, autoguidance: 2}",),
        {"teacher": "plain"},
        r"guided by a weaker model, and none was given.*--weak out/weak",
    ),
    "no start": (
        "progressive-distillation",
        (),
        {},
        "starts from the weights of another model.*--init-from out/teacher",
    ),
    "nobody follows": ("flow-matching", (), {"teacher": "plain"}, r"follows no teacher.*--init-from"),
    "nobody asks": ("flow-matching", (FOLLOW,), {"teacher": "plain", "weak": "plain"}, "not guided by a weaker model"),
    "pairs for nothing": (
        "flow-matching",
        ("pairs.count=10",),
        {},
        r"does not learn from pairs.*objective\.pairs=true",
    ),
    "other data": ("flow-matching", (FOLLOW,), {"teacher": "moons"}, "was trained on moons.*this run is on mixture"),
    "guided twice": (
        "meanflow",
        (
            "objective.label_dropout=0.1",
            "objective.target.velocity={kind: Guided, base: {kind: Reference}, omega: 2, kappa: 0}",
        ),
        {"teacher": "guided"},
        r"guidance would act twice: training guidance \(omega 1, kappa 0\.5.* and training guidance \(omega 2",
    ),
    "guided again by its pairs": (
        "flow-matching",
        (PAIRS, "pairs.guidance=2"),
        {"teacher": "guided"},
        r"guidance would act twice: .*kappa 0\.5.* and guidance of the pairs \(scale 2\)",
    ),
    "pairs without a null class": (
        "flow-matching",
        (PAIRS, "pairs.guidance=2"),
        {"teacher": "no null class"},
        "guidance needs a network with a null class",
    ),
    "no velocity": (
        "flow-matching",
        (FOLLOW,),
        {"teacher": "consistency"},
        "jumps to the data only and knows no velocity, which flow-matching follows",
    ),
    "no jumps": ("tcm", (), {"teacher": "plain"}, "asks its teacher for jumps to the data; take a consistency model"),
    "no teacher with jumps": ("tcm", (), {}, "train one with: shortflow train ect --data mixture"),
    "pairs in many jumps to the data": ("flow-matching", (PAIRS,), {"teacher": "consistency"}, "set pairs.steps to 1"),
    "start on another path": (
        "meanflow",
        ("path=Cosine", "parameterization=Transfer"),
        {"init_from": "plain"},
        r"init_from .*old model lives on Linear.*the new one on Cosine",
    ),
    "start in other units": (
        "meanflow",
        ("recipe.sigma_data=0.5",),
        {"init_from": "plain"},
        r"sees its data as \(x − 0\)·1, this run as .*recipe.sigma_data=null",
    ),
    "start with other classes": ("meanflow", (), {"init_from": "gaussian"}, r"gaussian \(shape \(2,\), no classes\)"),
    "start too wide": ("meanflow", ("network.width=32",), {"init_from": "plain"}, r"the networks are not alike"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_before_time_is_spent(what: str, models: dict[str, str]) -> None:
    recipe, settings, others, message = REFUSED[what]
    given = {role: models[name] for role, name in others.items()}
    settings = tuple(each for each in SMALL if "network.width" not in " ".join(settings)) + settings
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        runs.configure(recipe, "mixture", settings=settings, **given)


@pytest.mark.parametrize("role", ["teacher", "weak", "init_from"])
def test_a_model_that_is_not_there_is_named(role: str, models: dict[str, str], tmp_path: Path) -> None:
    settings = ("objective.target.velocity={kind: Reference, autoguidance: 2}",) if role != "init_from" else ()
    given = {"teacher": models["plain"], "weak": models["plain"]} if role != "init_from" else {}
    given[role] = str(tmp_path / "none")
    with pytest.raises(CheckpointError, match=f"there is no model at {tmp_path / 'none'}"):
        configured("flow-matching", *settings, **given)


def test_classes_of_the_teacher_are_those_of_the_data(models: dict[str, str], tmp_path: Path) -> None:
    """Seen only where names and shapes agree, as in a folder that has got another class."""
    run, dataset = configured("flow-matching", FOLLOW, teacher=models["plain"])
    more = replace(dataset, classes=(*dataset.classes, "another"))
    with pytest.raises(ConfigError, match=r"knows 8 classes \(component 0, .*, …\), the data of this run have 9"):
        runs.training(run, more, tmp_path / "run")


# ------------------------------------------------------------------------------------------------------- configuration


def test_the_other_models_are_part_of_the_run(models: dict[str, str], tmp_path: Path) -> None:
    run, dataset = configured("flow-matching", FOLLOW, teacher=models["plain"], init_from=models["plain"])
    assert (run.teacher, run.weak, run.init_from, run.pairs) == (models["plain"], None, models["plain"], None)
    assert from_plain(RunConfig, to_plain(run)) == run
    same, _ = configured("flow-matching", FOLLOW, f"teacher={models['plain']}", f"init_from={models['plain']}")
    assert same == run
    list(runs.training(run, dataset, tmp_path / "run"))
    assert load_run(tmp_path / "run/run.yaml") == run
    assert runs.configure(str(tmp_path / "run/run.yaml"))[0] == run
    other, _ = runs.configure(str(tmp_path / "run/run.yaml"), teacher=models["no null class"])
    assert other.teacher == models["no null class"]


def test_a_run_without_them_reads_as_before() -> None:
    run, _ = configured("flow-matching")
    plain = to_plain(run)
    for name in ("teacher", "weak", "init_from", "pairs"):
        assert plain.pop(name) is None
    assert from_plain(RunConfig, plain) == run
    with pytest.raises(ConfigError, match="teacher is empty"):
        from_plain(RunConfig, {**plain, "teacher": " "})


def test_pairs_come_into_being_with_the_recipe_or_their_first_setting(models: dict[str, str]) -> None:
    assert configured("flow-matching", PAIRS, teacher=models["plain"])[0].pairs == Pairs()
    run, _ = configured("flow-matching", PAIRS, "pairs.count=7", "pairs.precision=float32", teacher=models["plain"])
    assert run.pairs == Pairs(count=7, precision="float32")
    with pytest.raises(ConfigError, match=r"pairs.cuont: no such setting, did you mean 'count'"):
        configured("flow-matching", PAIRS, "pairs.cuont=7", teacher=models["plain"])
    with pytest.raises(ConfigError, match=r"pairs.count must be at least 1, got 0"):
        configured("flow-matching", PAIRS, "pairs.count=0", teacher=models["plain"])


def test_a_run_that_starts_from_a_model_has_its_network(models: dict[str, str]) -> None:
    small = [setting for setting in SMALL if not setting.startswith("network")]
    run, _ = runs.configure("meanflow", "mixture", settings=small, init_from=models["plain"])
    assert run.network == hub.load(models["plain"]).run.network


# -------------------------------------------------------------------------------------------------------------- frames


def test_units_of_two_models_are_those_of_one_data_point() -> None:
    stored = np.array([[0.3, -1.0], [2.0, 0.5]], dtype=np.float32)
    there, here = (
        DataSpec(name="d", shape=(2,), shift=shift, scale=scale, image=False)
        for shift, scale in ((0.2, 1.5), (-0.4, 0.7))
    )
    k, m = units(there, here)
    torch.testing.assert_close(there.encode(stored), k * here.encode(stored) + m)
    assert units(here, here) == (1.0, 0.0)


def test_the_teacher_stands_on_the_path_and_in_the_units_of_the_student(models: dict[str, str]) -> None:
    settings = (FOLLOW, "path={kind: Cosine, noise_scale: 0.5}", "parameterization=Transfer", "recipe.sigma_data=0.5")
    run, dataset = configured("flow-matching", *settings, teacher=models["plain"])
    spec = DataSpec.fit(dataset, 0.5)
    loaded = load_references(run, spec)
    teacher = loaded.references.teacher
    assert isinstance(teacher, ReframedFlowMap)
    assert teacher.path == Cosine(noise_scale=0.5)
    assert (teacher.scale, teacher.shift) == pytest.approx((1 / spec.scale, spec.shift))
    assert loaded.references.weak is None
    assert loaded.identity == {"teacher": {"run": models["plain"], "sha256": hub.fingerprint(models["plain"])}}
    same, _ = configured("flow-matching", FOLLOW, teacher=models["plain"])
    plain = load_references(same, DataSpec.fit(dataset))
    assert plain.references.teacher is plain.models["teacher"].flow


def test_objectives_see_the_frozen_models_and_checkpoints_do_not(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = configured(
        "flow-matching",
        "objective.target.velocity={kind: Reference, autoguidance: 2}",
        teacher=models["plain"],
        weak=models["no null class"],
    )
    seen: list[References] = []
    evaluate = type(run.recipe.objective).evaluate

    def spy(self: Any, flow: FlowMap, teacher: FlowMap, draw: Draw) -> Any:
        seen.append(draw.references)
        return evaluate(self, flow, teacher, draw)

    monkeypatch.setattr(type(run.recipe.objective), "evaluate", spy)
    list(runs.training(run, dataset, tmp_path / "run"))
    teacher, weak = seen[0].teacher, seen[0].weak
    assert teacher is not None
    assert weak is not None
    for frozen, name in ((teacher, "plain"), (weak, "no null class")):
        before = hub.load(models[name]).flow.state_dict()
        assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
        assert not frozen.training
        assert not any(weight.requires_grad for weight in frozen.parameters())
    state = next((tmp_path / "run/state").iterdir())
    assert {path.name for path in state.iterdir()} == {
        "network.safetensors",
        "average.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_the_step_module_does_not_own_its_references(models: dict[str, str]) -> None:
    run, dataset = configured("flow-matching", FOLLOW, teacher=models["plain"])
    spec = DataSpec.fit(dataset)
    flow, teacher = hub.build_flow(run, spec), hub.load(models["plain"]).flow.train().requires_grad_(True)
    step = TrainStep(flow, run.recipe.objective, References(teacher=teacher))
    assert len(list(step.parameters())) == len(list(flow.parameters()))
    assert set(step.state_dict()) == {f"flow.{name}" for name in flow.state_dict()}
    step.train()
    assert not teacher.training
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert step.frozen == (teacher,)


# ---------------------------------------------------------------------------------------------------------------- runs


def test_a_distilled_model_opens_without_its_teacher(models: dict[str, str], tmp_path: Path) -> None:
    gone = shutil.copytree(models["plain"], tmp_path / "teacher")
    trained(tmp_path / "run", "flow-matching", "mixture", FOLLOW, teacher=str(gone), init_from=str(gone))
    sha = hub.fingerprint(gone)
    shutil.rmtree(gone)
    model = hub.load(tmp_path / "run")
    assert (model.run.teacher, model.run.init_from) == (str(gone), str(gone))
    assert hub.read_header(tmp_path / "run")["references"] == {"teacher": {"run": str(gone), "sha256": sha}}
    assert runs.generate(model.flow, model.spec, 3)[0].shape == (3, 2)


def test_a_run_goes_on_without_the_model_that_it_started_from(models: dict[str, str], tmp_path: Path) -> None:
    gone = shutil.copytree(models["plain"], tmp_path / "start")
    run, dataset = configured("progressive-distillation", "train.save_every=1", init_from=str(gone))
    records = runs.training(run, dataset, tmp_path / "run")
    next(records)
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    shutil.rmtree(gone)
    again, dataset = runs.open_run(tmp_path / "run")
    assert [record.step for record in runs.training(again, dataset, tmp_path / "run", resume=True)] == [2]


def started(directory: Path, teacher: str, *settings: str, **others: Any) -> Iterator[StepRecord]:
    run, dataset = configured(
        "flow-matching", FOLLOW, "train.images=128", "train.save_every=2", *settings, teacher=teacher, **others
    )
    return runs.training(run, dataset, directory)


def test_a_resumed_distillation_is_the_one_uninterrupted(models: dict[str, str], tmp_path: Path) -> None:
    start = {"init_from": models["plain"]}
    whole = list(started(tmp_path / "whole", models["plain"], **start))
    records = started(tmp_path / "cut", models["plain"], **start)
    first = [next(records), next(records)]
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    rest = list(runs.training(*runs.open_run(tmp_path / "cut"), tmp_path / "cut", resume=True))
    assert [record.loss for record in (*first, *rest)] == [record.loss for record in whole]
    a, b = (hub.load(tmp_path / name).flow.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_does_not_go_on_with_another_teacher(models: dict[str, str], tmp_path: Path) -> None:
    teacher = shutil.copytree(models["plain"], tmp_path / "teacher")
    records = started(tmp_path / "run", str(teacher))
    for _ in range(2):
        next(records)
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    file = teacher / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes((Path(models["no null class"]) / "model.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"the teacher of this run is not what it was: .*sha256.*give the run back"
    ):
        runs.training(*runs.open_run(tmp_path / "run"), tmp_path / "run", resume=True)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"teacher: there is no model at {teacher}"):
        runs.training(*runs.open_run(tmp_path / "run"), tmp_path / "run", resume=True)
    file.write_bytes(kept)
    assert [r.step for r in runs.training(*runs.open_run(tmp_path / "run"), tmp_path / "run", resume=True)] == [3, 4]


def test_weights_and_average_start_from_the_old_model(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = configured("meanflow", "objective.teacher={kind: Ema, rate: 0.99}", init_from=models["plain"])
    old = hub.load(models["plain"])
    seen: list[FlowMap] = []
    fit = importlib.import_module("shortflow.train.fit")  # the package has a function of this name

    def averages(flow: FlowMap, settings: Any) -> dict[str, Average]:
        made = averages_of(flow, settings)
        seen.extend(average.module for average in made.values())
        return made

    def optimizer(module: TrainStep, settings: Any) -> torch.optim.Optimizer:
        assert module.teacher is not None
        seen.extend([module.flow, module.teacher.module])
        return torch.optim.SGD(module.flow.parameters(), lr=0.0)

    monkeypatch.setattr(fit, "averages_of", averages)
    monkeypatch.setattr(fit, "build_optimizer", optimizer)
    records = runs.training(run, dataset, tmp_path / "run")
    assert len(seen) == 3
    x, t, r, label = torch.randn(5, 2), torch.rand(5), torch.zeros(5), torch.arange(5)
    with torch.no_grad():
        v = old.flow.velocity(x, t, label)
        assert float(v.std()) > 0.1
        for flow in seen:
            assert torch.equal(flow.velocity(x, t, label), v)
            assert torch.equal(flow.predict(x, t, r, label), v)
    records.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_one_step_of_distillation_follows_the_teachers_velocity(models: dict[str, str]) -> None:
    """The student that starts as its teacher has no loss, whatever its path: nothing is left to learn."""
    for settings in ((), ("path=Cosine", "parameterization=Transfer")):
        run, dataset = configured(
            "flow-matching", FOLLOW, "objective.label_dropout=0.1", *settings, teacher=models["plain"]
        )
        spec = DataSpec.fit(dataset)
        frozen = load_references(run, spec).references
        assert frozen.teacher is not None
        student = hub.load(models["plain"]).flow if not settings else frozen.teacher
        step = TrainStep(student, run.recipe.objective, frozen)
        x = spec.encode(dataset.samples[:16])
        batch = Batch(x=x, label=torch.from_numpy(dataset.labels[:16]))
        loss, _ = step(step.draw(batch, Streams(), Progress()))
        assert float(loss) < 1e-10


# --------------------------------------------------------------------------------------------------------------- pairs


def test_a_run_learns_from_the_pairs_of_its_teacher(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = configured(
        "flow-matching", PAIRS, "pairs={count: 48, steps: 4, precision: float32}", teacher=models["plain"]
    )
    seen: list[Draw] = []
    evaluate = type(run.recipe.objective).evaluate

    def spy(self: Any, flow: FlowMap, teacher: FlowMap, draw: Draw) -> Any:
        seen.append(draw)
        return evaluate(self, flow, teacher, draw)

    monkeypatch.setattr(type(run.recipe.objective), "evaluate", spy)
    said: list[tuple[int, int]] = []
    records = runs.training(run, dataset, tmp_path / "run", report=lambda *done: said.append(done))
    assert not (tmp_path / "run/pairs").exists()
    list(records)
    assert said == [(48, 48)]
    teacher = hub.load(models["plain"]).flow
    for draw in seen:
        assert torch.equal(draw.x_t, run.recipe.path.interpolate(draw.x, draw.eps, draw.times.t))
        torch.testing.assert_close(draw.x, euler(teacher, draw.eps, draw.label, 4))
    # Every pair once in an epoch, in other orders.
    rows = torch.cat([draw.eps for draw in seen])
    assert len(rows.unique(dim=0)) == 48


def euler(flow: FlowMap, x: Tensor, label: Tensor | None, steps: int) -> Tensor:
    for i in range(steps):
        x = x - flow.velocity(x, torch.full((len(x),), 1 - i / steps), label) / steps
    return x


def test_pairs_are_made_in_the_students_units(models: dict[str, str], tmp_path: Path) -> None:
    settings = (PAIRS, "pairs={count: 32, steps: 2, precision: float32}", "recipe.sigma_data=0.5", "path=Cosine")
    run, dataset = configured("flow-matching", *settings, "parameterization=Transfer", teacher=models["plain"])
    list(runs.training(run, dataset, tmp_path / "run"))
    stored, spec = load_file(str(tmp_path / "run/pairs/000000.safetensors")), DataSpec.fit(dataset, 0.5)
    made = euler(hub.load(models["plain"]).flow, stored["eps"], stored["label"], 2)
    torch.testing.assert_close(stored["x"], (made - spec.shift) * spec.scale)


def test_guided_pairs_make_a_guided_model(models: dict[str, str], tmp_path: Path) -> None:
    trained(
        tmp_path / "run",
        "flow-matching",
        "mixture",
        PAIRS,
        "pairs={count: 32, steps: 2, guidance: 2}",
        teacher=models["plain"],
    )
    assert hub.load(tmp_path / "run").flow.guided == "guidance of its pairs (scale 2)"
    trained(tmp_path / "next", "flow-matching", "mixture", FOLLOW, teacher=models["guided"])
    guided = hub.load(tmp_path / "next").flow.guided
    assert guided is not None
    assert guided.startswith("training guidance")
    assert guided.endswith("of its teacher")


def test_a_run_interrupted_among_its_pairs_goes_on(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shortflow import pairs as pairs_module

    monkeypatch.setattr(pairs_module, "ROWS", 16)
    settings = (PAIRS, "pairs={count: 48, steps: 2}")
    run, dataset = configured("flow-matching", *settings, teacher=models["plain"])
    whole = list(runs.training(run, dataset, tmp_path / "whole"))

    def stop(done: int, count: int) -> None:
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(runs.training(run, dataset, tmp_path / "cut", report=stop))
    assert len(list((tmp_path / "cut/pairs").iterdir())) == 2
    said: list[int] = []
    rest = list(
        runs.training(
            *runs.open_run(tmp_path / "cut"),
            tmp_path / "cut",
            resume=True,
            report=lambda done, count: said.append(done),
        )
    )
    assert said == [48]
    assert [record.loss for record in rest] == [record.loss for record in whole]
    for name in ("000000", "000001", "000002"):
        a, b = (tmp_path / which / f"pairs/{name}.safetensors" for which in ("whole", "cut"))
        assert a.read_bytes() == b.read_bytes()
