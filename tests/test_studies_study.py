"""Studies as files and commands: what is read, expanded, planned and refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shortflow.config import to_plain
from shortflow.errors import ConfigError
from shortflow.recipes import RECIPES
from shortflow.studies import Study, load_study, plan, planning, read_plan, ready_studies, study_of
from shortflow.studies.others import STARTS, TEACHERS
from shortflow.studies.study import expanded

SMALL = {"train.batch": 16, "train.group": 4, "network.width": 16, "network.depth": 2}


def study(**values: Any) -> Study:
    return study_of(
        {"recipes": ["flow-matching"], "data": "mixture", "budget": {"images": 64}, "settings": SMALL} | values
    )


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are looked up, not counted, which takes long."""
    monkeypatch.setattr(planning, "_cost", lambda recipe: 4.0)


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_file_says_what_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "about: x\nvariants:\n  - meanflow\n"
        "  - {name: small, recipe: esc, settings: {train.batch: 8, network.width: 32}}\n"
        "vary: {train.group: [4, null]}\nseeds: 2\nsteps: [1, 4]\nat: [0.5]\nbudget: {seconds: 3}\n"
    )
    found = load_study(str(path))
    assert (found.name, found.seeds, found.steps, found.at) == ("mine", (0, 1), (1, 4), (0.5, 1.0))
    assert found.budget is not None
    assert (found.budget.kind, found.budget.amount) == ("seconds", 3)
    variants = expanded(found)
    assert [v.name for v in variants] == [
        "meanflow,group=4",
        "meanflow,group=null",
        "small,group=4",
        "small,group=null",
    ]
    assert variants[2].settings == ("train.batch=8", "network.width=32", "train.group=4")


def test_a_study_is_what_is_read_back() -> None:
    found = study(recipes=["esc"], vary={"train.group": [4, 8], "path": ["Linear", "Cosine"]}, seeds=[3, 5])
    assert study_of(to_plain(found)) == found
    assert len(expanded(found)) == 4


@pytest.mark.parametrize(
    ("axis", "names"),
    [
        (["train.group=4,null"], ["group=4", "group=null"]),
        (["objective.target.velocity.window=[0, 1],[0, 0.5]"], ["window=0-1", "window=0-0.5"]),
        (["objective.times={kind: Gradual, ramp: 0.5},Sorted"], ["times=Gradual", "times=Sorted"]),
        (["a.rate=1e-3", "b.rate=true"], ["a.rate=1e-3,b.rate=true"]),
    ],
)
def test_values_that_are_varied_name_the_variants(axis: list[str], names: list[str]) -> None:
    assert [variant.name for variant in expanded(study(recipes=["esc"], vary=axis))] == names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipes": []}, "variants: there are none"),
        ({"budget": {"images": 1, "seconds": 2}}, r"budget: give one of images, .*, got images, seconds"),
        ({"budget": {}}, "got none of them"),
        ({"budget": {"images": 0}}, "budget.images must be above 0"),
        ({"bugdet": {"images": 1}}, r"bugdet: no such setting of Study, did you mean 'budget'\?"),
        ({"seeds": [1, 1]}, "seeds: give each once"),
        ({"steps": [0]}, "steps 1 or more"),
        ({"at": [0.0]}, "above 0 and at most 1"),
        ({"metric": "fdpercent"}, "did you mean 'fd_percent'"),
        ({"metric_steps": 7}, "not among steps"),
        ({"against": "flow-macthing"}, "did you mean 'flow-matching'"),
        ({"settings": {"train.seed": 1}}, "budget or seeds"),
        ({"variants": [{"recipe": "esc", "settings": {"images": 9}}]}, "the same for all variants"),
        ({"variants": [{"recipe": "esc", "name": "a/b"}]}, "name of a directory"),
        ({"recipes": ["esc", "esc"]}, "several are called esc"),
        ({"vary": ["train.group"]}, "expected field.path=value"),
        ({"vary": {"train.group": []}}, "expected field.path=value"),
        ({"seeds": "three"}, "seeds: expected a list"),
    ],
)
def test_what_makes_no_sense_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(**values)


def test_a_study_that_is_not_there_has_a_neighbour() -> None:
    with pytest.raises(ConfigError, match="did you mean 'systems'"):
        load_study("system")


# ------------------------------------------------------------------------------------------------------------ planning


@pytest.mark.usefixtures("free")
def test_models_of_others_come_before_with_the_network_of_those_who_need_them() -> None:
    found = plan(study(recipes=["tcm", "cd-linear"], vary={"network.width": [16, 24]}, seeds=[0]), threads=1)
    order = [variant.name for variant in found.variants]
    assert {v.name for v in found.variants if v.support} == {
        f"{name},width={width}" for name in ("edm", "ect", "flow-matching") for width in (16, 24)
    }
    for variant in found.compared:
        width = variant.name[-2:]
        for other in found.needs(variant):
            assert other.endswith(width)
            assert order.index(other) < order.index(variant.name)
    tcm = found.named("tcm,width=24")
    assert (tcm.teacher, tcm.start) == ("ect,width=24", "ect,width=24")
    assert found.named("ect,width=24").start == "edm,width=24"


@pytest.mark.usefixtures("free")
def test_a_variant_that_is_there_serves_the_others() -> None:
    found = plan(study(recipes=["reflow", "flow-matching"]), threads=1)
    assert [v.name for v in found.variants] == ["flow-matching", "reflow"]
    assert not found.variants[0].support
    variants = [{"recipe": "flow-matching", "name": "base"}, {"recipe": "reflow", "teacher": "base", "start": "base"}]
    named = plan(study(recipes=[], variants=variants), threads=1)
    assert [(v.name, v.teacher) for v in named.variants] == [("base", None), ("reflow", "base")]


@pytest.mark.usefixtures("free")
def test_variants_that_wait_for_each_other_are_refused() -> None:
    variants = [{"recipe": "reflow", "name": "a", "teacher": "b"}, {"recipe": "reflow", "name": "b", "teacher": "a"}]
    with pytest.raises(ConfigError, match="a → b → a: these variants wait for each other"):
        plan(study(recipes=[], variants=variants), threads=1)


@pytest.mark.usefixtures("free")
def test_budgets_are_turned_into_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_cost", lambda recipe: 3.0 if recipe.name == "flow-matching" else 5.0)
    two = {"recipes": ["flow-matching", "meanflow"]}

    def images(**budget: float) -> list[int]:
        return [v.images for v in plan(study(**two, budget=budget), threads=1).variants]

    assert images(images=640) == [640, 640]
    assert images(forwards=15_000) == [5000, 3000]
    forward = plan(study(), threads=1).variants[0].forward
    assert images(flops=15_000 * forward)[0] == 5000
    monkeypatch.setattr(planning, "speeds_of", lambda *_: {"flow-matching": 100.0, "meanflow": 60.0})
    assert images(seconds=10) == [1000, 600]
    with pytest.raises(ConfigError, match="less than a batch"):
        images(forwards=12)


@pytest.mark.usefixtures("free")
def test_a_plan_is_kept_and_grows_but_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "speeds_of", lambda *_: {"flow-matching": 10.0})
    first = planning.begin(study(budget={"seconds": 10}, seeds=1), tmp_path, threads=3)
    assert (first.threads, first.variants[0].images) == (3, 100)
    assert read_plan(tmp_path) == first
    monkeypatch.setattr(planning, "speeds_of", lambda *_: {"flow-matching": 99.0, "meanflow": 20.0})
    more = study(budget={"seconds": 10}, recipes=["flow-matching", "meanflow"], seeds=2, steps=[1])
    second = planning.begin(more, tmp_path, threads=1)
    assert second.threads == 3
    assert [v.images for v in second.variants] == [100, 200]  # who has cells keeps his budget
    assert planning.begin(None, tmp_path) == second
    with pytest.raises(ConfigError, match=r"other cells \(budget was .*10.*is .*20"):
        planning.begin(study(budget={"seconds": 20}), tmp_path)
    changed = [{"recipe": "flow-matching", "settings": {"network.width": 32}}]
    with pytest.raises(ConfigError, match=r"flow-matching: settings was \[\], is \['network.width=32'\]"):
        planning.begin(study(budget={"seconds": 10}, recipes=[], variants=changed), tmp_path)
    assert read_plan(tmp_path) == second


@pytest.mark.usefixtures("free")
def test_settings_in_another_order_are_the_same_cells(tmp_path: Path) -> None:
    def begun(settings: list[str], own: list[str]) -> planning.StudyPlan:
        variants = [{"recipe": "flow-matching", "settings": own}]
        return planning.begin(study(recipes=[], variants=variants, settings=settings, seeds=1), tmp_path)

    settings, own = ["network.width=32", "train.batch=16"], ["path=Cosine", "train.log_every=10"]
    first = begun(settings, own)
    again = begun(settings[::-1], own[::-1])
    assert [replace(v, settings=()) for v in again.variants] == [replace(v, settings=()) for v in first.variants]
    with pytest.raises(ConfigError, match="other cells"):
        begun(["network.width=32", "train.batch=32"], own)


@pytest.mark.usefixtures("free")
def test_settings_that_overwrite_each_other_are_other_cells_in_another_order(tmp_path: Path) -> None:
    settings = ["train.batch=32", "network.width=32", "train.batch=16"]
    planning.begin(study(settings=settings, seeds=1), tmp_path)
    with pytest.raises(ConfigError, match="other cells"):
        planning.begin(study(settings=settings[::-1], seeds=1), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipes": ["meanfow"]}, r"variant meanfow: .*did you mean 'meanflow'"),
        ({"metric": "recall"}, "points have no recall; there are energy_distance, sliced_w2"),
        ({"settings": {"train.btach": 3}}, "train.btach: no such setting"),
        ({"data": "nowhere"}, "nowhere"),
        ({"variants": [{"recipe": "meanflow", "teacher": "flow-matching"}]}, "variant meanflow: meanflow follows no"),
    ],
)
@pytest.mark.usefixtures("free")
def test_every_variant_is_checked_before_anything_is_trained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(study(**values), threads=1)


@pytest.mark.usefixtures("free")
def test_what_differs_is_said() -> None:
    found = plan(study(recipes=["flow-matching", "meanflow"]), threads=1)
    assert any("takes the limit s → t" in sentence for sentence in found.named("meanflow").difference)
    assert found.named("flow-matching").difference == ()
    found = plan(study(vary={"network.width": [16, 24]}), threads=1)
    assert found.variants[1].difference == ("network.width: 16 → 24",)


# ------------------------------------------------------------------------------------------------------- ready studies


@pytest.mark.parametrize("name", ready_studies())
@pytest.mark.usefixtures("free")
def test_a_ready_study_resolves_and_dry_runs(name: str) -> None:
    """Every cell could begin; what its variants are is told apart."""
    found = plan(load_study(name), threads=1)
    assert found.study.about
    assert found.metric == "fd_percent"
    assert len({v.difference for v in found.compared}) == len(found.compared)
    assert all(v.images >= 128_000 for v in found.variants)


def test_the_ready_studies_are_those_that_were_promised() -> None:
    assert set(ready_studies()) == {
        "systems", "esc-ablation", "paths", "targets", "ends", "frans", "scaling", "recipes"
    }  # fmt: skip
    assert [v.recipe for v in load_study("recipes").variants] == list(RECIPES)
    assert len(load_study("systems").variants) == 7


def test_every_recipe_that_needs_another_model_has_one() -> None:
    """Or names in the tables that are no recipes."""
    assert {*TEACHERS, *TEACHERS.values(), *STARTS, *STARTS.values()} <= set(RECIPES)
    for name, make in RECIPES.items():
        needs = make().objective.needs
        assert ("teacher" in needs or "pairs" in needs) == (name in TEACHERS)
        assert "init" not in needs or name in STARTS
