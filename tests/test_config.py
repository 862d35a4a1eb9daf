"""Objects ⇄ plain values ⇄ YAML: round trips over the whole table, refusals with path and remedy, hostile files."""

import dataclasses
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shortflow import losses
from shortflow.config import (
    DataConfig,
    RunConfig,
    difference,
    dump,
    flatten,
    from_plain,
    kinds,
    load_run,
    nearest,
    override,
    parts,
    recipe_named,
    register,
    to_plain,
    to_yaml,
)
from shortflow.errors import ConfigError
from shortflow.grids import KarrasGrid
from shortflow.laws import LogitNormal
from shortflow.losses import Adaptive, ByTime, KernelMMD, Metric, Product, PseudoHuber, SquaredError, Variational
from shortflow.nn.configs import MLPConfig, SiTConfig
from shortflow.optimizer import Optimizer
from shortflow.paths import CustomPath, Linear
from shortflow.paths import Path as NoisePath
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES
from shortflow.times import Sorted, TimeSampler, ToData
from shortflow.train import TrainSettings
from shortflow.velocity import Conditional, Mixture, PlugIn, Velocity
from shortflow.yamlfile import parse_yaml

# Settings of the parts that have some without a default.
NEEDED: dict[str, dict[str, Any]] = {
    "Boundary": {"at": 0.0125},
    "ByTime": {"rule": "imm"},
    "Perceptual": {"trunk": "vgg16.pth", "heads": "vgg.pth"},
    "Product": {"parts": (Adaptive(), Variational())},
    "TrigFlow": {},
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The table, put back after the test."""
    copy = dict(parts._KINDS)
    monkeypatch.setattr(parts, "_KINDS", copy)
    return copy


def esc() -> RunConfig:
    return RunConfig(recipe=recipe_named("esc"))


def refusals(*settings: str, run: RunConfig | None = None) -> list[str]:
    """The lines of the error that the settings raise."""
    with pytest.raises(ConfigError) as caught:
        override(run or esc(), settings)
    return str(caught.value).split("\n")


def only_refusal(*settings: str, run: RunConfig | None = None) -> str:
    (line,) = refusals(*settings, run=run)
    return line


# ---------------------------------------------------------------------------------------------------------- round trips


def through_yaml(value: Any, hint: Any) -> Any:
    return from_plain(hint, parse_yaml(to_yaml(value), "test"))


@pytest.mark.parametrize("name", sorted(parts._KINDS))
def test_every_part_survives_yaml(name: str) -> None:
    part = parts._KINDS[name]
    value = part(**NEEDED.get(name, {}))
    for family in parts.FAMILIES:
        if isinstance(value, family):
            assert through_yaml(value, family) == value


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml_in_a_run(name: str) -> None:
    for recipe in (recipe_named(name), recipe_named(name).unconditional()):
        run = RunConfig(
            recipe=recipe,
            network=MLPConfig(width=64),
            data=DataConfig(source="mixture"),
            train=TrainSettings(images=1000, batch=20, group=4),
        )
        assert through_yaml(run, RunConfig) == run


def descendants(base: type) -> set[type]:
    return {base}.union(*(descendants(child) for child in base.__subclasses__()))


def test_table_holds_every_part_of_the_package_but_the_one_made_of_functions() -> None:
    found = {
        part.__name__
        for family in parts.FAMILIES
        for part in descendants(family)
        if dataclasses.is_dataclass(part) and not inspect.isabstract(part) and part.__module__.startswith("shortflow.")
    }
    assert found - set(parts._KINDS) == {"CustomPath"}
    assert set(parts._KINDS) <= found
    assert kinds(NoisePath) == ["Cosine", "Linear", "VarianceExploding"]


@settings(max_examples=30, deadline=None)
@given(
    c=st.floats(min_value=1e-300, max_value=1e300),
    power=st.floats(min_value=0, max_value=1e9),
    lr=st.floats(min_value=1e-30, max_value=1e3),
    decay=st.floats(min_value=0, max_value=1, exclude_max=True),
    seed=st.integers(min_value=0, max_value=2**63 - 1),
    source=st.text(
        alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs"]), min_size=1, max_size=20
    ),
)
def test_numbers_and_texts_survive_yaml_exactly(
    c: float, power: float, lr: float, decay: float, seed: int, source: str
) -> None:
    base = recipe_named("esc")
    objective = dataclasses.replace(base.objective, weighting=Adaptive(c=c, power=power))
    recipe = dataclasses.replace(base, objective=objective, optimizer=Optimizer(lr=lr, betas=(decay, 0.9), ema=decay))
    run = RunConfig(recipe=recipe, network=MLPConfig(), data=DataConfig(source=source), train=TrainSettings(seed=seed))
    assert through_yaml(run, RunConfig) == run


def test_numpy_numbers_are_written_as_plain_ones() -> None:
    plain = to_plain(Adaptive(c=np.float64(0.5), power=1.0))
    assert plain == {"kind": "Adaptive", "power": 1.0, "c": 0.5}
    assert type(plain["c"]) is float


def test_dumped_file_is_the_run_and_is_written_whole(tmp_path: Path) -> None:
    run = esc()
    dump(run, tmp_path / "run.yaml")
    assert load_run(tmp_path / "run.yaml") == run
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]
    assert "betas: [0.9, 0.95]" in (tmp_path / "run.yaml").read_text()


# ----------------------------------------------------------------------------------------------- what cannot be written


def linear_path() -> CustomPath:
    return CustomPath(
        alpha_fn=lambda t: 1 - t,
        sigma_fn=lambda t: t,
        d_alpha_fn=lambda t: -(t + 1 - t),
        d_sigma_fn=lambda t: t + 1 - t,
    )


def test_a_path_made_of_functions_cannot_be_written_and_the_error_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"CustomPath cannot stand in a run file: alpha_fn.*register"):
        to_plain(Recipe(name="mine", path=linear_path()))
    with pytest.raises(ConfigError, match="no such kind 'CustomPath'"):
        from_plain(NoisePath, {"kind": "CustomPath"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_not_written(value: float) -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        to_plain([value])


def test_objects_that_are_no_parts_are_not_written() -> None:
    with pytest.raises(ConfigError, match="only numbers, texts and registered parts"):
        to_plain({1, 2})
    with pytest.raises(ConfigError, match="must be a dataclass"):
        register(dict)


# ------------------------------------------------------------------------------------------------------- reading: types


@pytest.mark.parametrize(
    ("setting", "field", "expected"),
    [
        ("lr", "1e-4", 1e-4),  # a text in YAML 1.1
        ("lr", "1", 1.0),
        ("lr", "'2e-3'", 2e-3),
        ("clip", "null", None),
        ("clip", "", None),
        ("clip", "1e2", 100.0),
    ],
)
def test_numbers_are_read_in_every_notation(setting: str, field: str, expected: float | None) -> None:
    value = getattr(override(esc(), [f"optimizer.{setting}={field}"]).recipe.optimizer, setting)
    assert value == expected
    assert value is None or type(value) is float


@pytest.mark.parametrize("text", ["1000000", "1_000_000", "1e6", "1.0e6", "'1000000'"])
def test_whole_numbers_are_read_in_every_notation(text: str) -> None:
    images = override(esc(), [f"train.images={text}"]).train.images
    assert images == 1_000_000
    assert type(images) is int


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch=abc", "train.batch: expected a whole number, got 'abc'"),
        ("train.batch=1.5", "train.batch: expected a whole number, got 1.5"),
        ("train.batch=true", "train.batch: expected a whole number, got True"),
        ("train.batch=", "train.batch: expected a whole number, got None"),
        ("train.batch=[1]", "train.batch: expected a whole number, got [1]"),
        ("train.batch=.nan", "train.batch: expected a whole number, got nan"),
        ("train.batch=.inf", "train.batch: expected a whole number, got inf"),
        ("train.seed=99999999999999999999", "train.seed: expected a whole number, got 99999999999999999999"),
        ("train.group=x", "train.group: expected a whole number or null, got 'x'"),
        ("optimizer.lr=fast", "recipe.optimizer.lr: expected a number, got 'fast'"),
        ("optimizer.lr=nan", "recipe.optimizer.lr: expected a number that is finite, got 'nan'"),
        ("optimizer.lr=.nan", "recipe.optimizer.lr: expected a number that is finite, got nan"),
        ("optimizer.lr=.inf", "recipe.optimizer.lr: expected a number that is finite, got inf"),
        ("optimizer.lr=yes", "recipe.optimizer.lr: expected a number, got True"),
        ("optimizer.betas=[0.9]", "recipe.optimizer.betas: expected a list of 2 numbers, got [0.9]"),
        (
            "optimizer.betas=[0.9, 0.9, 0.9]",
            "recipe.optimizer.betas: expected a list of 2 numbers, got [0.9, 0.9, 0.9]",
        ),
        ("optimizer.betas=[0.9, true]", "recipe.optimizer.betas: expected a list of 2 numbers, got [0.9, True]"),
        ("optimizer.betas=0.9", "recipe.optimizer.betas: expected a list of 2 numbers, got 0.9"),
        (
            "objective.target.velocity.window=[0]",
            "recipe.objective.target.velocity.window: expected a list of 2 numbers, got [0]",
        ),
        ("network.qk_norm=1", "network.qk_norm: expected true or false, got 1"),
        ("network.qk_norm='yes'", "network.qk_norm: expected true or false, got 'yes'"),
        ("data.source=2024", "data.source: expected a text, got 2024; put it in quotes"),
        ("data.source=no", "data.source: expected a text, got False; put it in quotes"),
        ("data.source=' '", "data.source is empty; give a name such as digits, or a folder of images"),
        ("data.resolution=0", "data.resolution is the side of the images in pixels and must be at least 1, got 0"),
        ("train.precision=fp16", "train.precision: expected 'fp32' or 'bf16', got 'fp16'"),
        (
            "objective.metric.reduce=summ",
            "recipe.objective.metric.reduce: expected 'sum' or 'mean', got 'summ'",
        ),
        ("optimizer.lr=-1", "recipe.optimizer.lr must be positive and finite, got -1.0"),
        ("train.batch=0", "train.batch must be at least 1, got 0"),
        ("train=5", "train: expected settings, got 5"),
        ("objective.weighting.parts=3", "recipe.objective.weighting.parts: expected a list, got 3"),
        ("optimizer.betas.0=x", "recipe.optimizer.betas: expected a list of 2 numbers, got ['x', 0.95]"),
    ],
)
def test_wrong_types_and_impossible_values_name_path_and_expectation(setting: str, message: str) -> None:
    assert only_refusal(setting) == message


def test_every_setting_of_every_part_refuses_a_wrong_type() -> None:
    checked = 0
    for name, part in parts._KINDS.items():
        plain = to_plain(part(**NEEDED.get(name, {})))
        family = next(f for f in parts.FAMILIES if issubclass(part, f))
        for field in parts.fields_of(part):
            with pytest.raises(ConfigError, match=rf"^{field}\b"):
                from_plain(family, {**plain, field: {"what": "is this"}})
            checked += 1
    assert checked > 60


def test_every_misspelled_setting_of_every_part_is_refused_with_the_nearest() -> None:
    for name, part in parts._KINDS.items():
        plain = to_plain(part(**NEEDED.get(name, {})))
        family = next(f for f in parts.FAMILIES if issubclass(part, f))
        for field in parts.fields_of(part):
            wrong = {**plain, f"{field}x": 1}
            with pytest.raises(ConfigError, match=rf"^{field}x: no such setting of {name}, did you mean '{field}'\?"):
                from_plain(family, wrong)
        with pytest.raises(ConfigError, match=r"^zzzzzz: no such setting of .*(there are|it has none)"):
            from_plain(family, {**plain, "zzzzzz": 1})


# --------------------------------------------------------------------------------------------------- reading: the parts


def test_all_errors_are_told_at_once() -> None:
    lines = refusals(
        "objective.target.velocty.omega=3",
        "lrr=3",
        "batch=abc",
        "network.size=tinny",
        "optimizer.betas=[0.9]",
        "objective.metric=PseudoHubber",
        "objective.metric.c=2",
        "nothing",
        "objective.weighting.parts.7=Adaptive",
    )
    assert [line.split(":")[0] for line in lines] == [
        "recipe.objective.target.velocty",
        "lrr",
        "'nothing'",
        "objective.weighting.parts.7",
        "recipe.objective.metric",
        "recipe.optimizer.betas",
        "network",
        "train.batch",
    ]
    assert "did you mean 'velocity'?" in lines[0]
    assert "did you mean 'optimizer.lr'?" in lines[1]
    assert "did you mean 'PseudoHuber'?" in lines[4]
    assert "did you mean 'tiny'?" in lines[6]


def test_errors_of_a_file_name_the_file_and_every_place(tmp_path: Path) -> None:
    plain = to_plain(esc())
    plain["recipe"]["objective"]["weighting"]["parts"][1]["kind"] = "Variatonal"
    plain["recipe"]["optimzer"] = plain["recipe"].pop("optimizer")
    plain["train"]["batch"] = "many"
    plain["trian"] = {}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError) as caught:
        load_run(file)
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{file}:"
    assert sorted(line.split(":")[0] for line in lines[1:]) == [
        "recipe.objective.weighting.parts.1",
        "recipe.optimzer",
        "train.batch",
        "trian",
    ]
    assert "did you mean 'Variational'?" in str(caught.value)
    assert "did you mean 'optimizer'?" in str(caught.value)


def test_a_name_stands_for_a_part_with_its_defaults() -> None:
    assert from_plain(Metric, "KernelMMD") == KernelMMD()
    assert from_plain(TimeSampler, {"kind": "ToData", "law": "LogitNormal"}) == ToData(law=LogitNormal())
    # Where the type is a part itself, its kind may be left out.
    assert from_plain(KarrasGrid, {"rho": 5}) == KarrasGrid(rho=5.0)


def test_a_missing_kind_and_a_missing_setting_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"^'kind' is missing; there are: KernelMMD, Perceptual, PseudoHuber, SquaredError"
    ):
        from_plain(Metric, {"reduce": "sum"})
    with pytest.raises(ConfigError, match=r"^rule: is missing; ByTime needs it: 'inverse-step' or 'inverse-gap'"):
        from_plain(ByTime, "ByTime")
    with pytest.raises(ConfigError, match=r"^recipe: is missing"):
        from_plain(RunConfig, {})
    with pytest.raises(ConfigError, match=r"expected the name of a part \(Conditional, FadingGuidance"):
        from_plain(Velocity, None)
    with pytest.raises(ConfigError, match=r"no such kind \['SquaredError'\]"):
        from_plain(Metric, {"kind": ["SquaredError"]})


def test_parts_that_do_not_fit_are_refused_with_their_place() -> None:
    line = only_refusal("objective.label_dropout=0", "objective.target.velocity.kappa=0.5")
    assert line.startswith("recipe.objective: training guidance")
    assert "set label_dropout to 0.1" in line


def test_a_part_of_another_family_is_refused() -> None:
    assert "no such kind 'SquaredError'" in only_refusal("recipe.path=SquaredError")


def test_deep_nesting_ends_in_an_error_not_in_a_crash() -> None:
    plain: dict[str, Any] = {"kind": "Unweighted"}
    for _ in range(5000):
        plain = {"kind": "Product", "parts": [plain]}
    with pytest.raises(ConfigError, match="nested deeper than 40 levels"):
        from_plain(losses.Weighting, plain)


def test_nearest_ignores_case_and_lists_what_there_is() -> None:
    assert nearest("squarederror", kinds(Metric)) == "did you mean 'SquaredError'?"
    assert nearest("qqq", ["a", "b"]) == "there are: a, b"
    for names in (["esc", "esd"], ["esd", "esc"]):  # two letters the wrong way round
        assert nearest("ecs", names) == "did you mean 'esc'?"
        assert nearest("edss", names) == "did you mean 'esd'?"


# ------------------------------------------------------------------------------------------------------------ overrides


def test_prefixes_may_be_left_out() -> None:
    settings = ["images=512", "size=tiny", "source=mnist", "sigma_data=0.5", "objective.label_dropout=0.2"]
    run = override(esc(), settings)
    assert run.train.images == 512
    assert run.network == SiTConfig(size="tiny")
    assert run.data.source == "mnist"
    assert (run.recipe.sigma_data, run.recipe.objective.label_dropout) == (0.5, 0.2)
    full = ["train.images=512", "network.size=tiny", "data.source=mnist", "recipe.sigma_data=0.5"]
    assert override(esc(), [*full, "recipe.objective.label_dropout=0.2"]) == run


def test_a_part_put_in_place_takes_settings_at_once() -> None:
    run = override(
        esc(),
        [
            "objective.target.velocity.base=Mixture",
            "objective.target.velocity.base.plug_in.mask=none",
            "objective.metric=PseudoHuber",
            "objective.metric.c=0.1",
            "objective.metric.space=output",
            "network=MLPConfig",
            "network.width=32",
        ],
    )
    assert run.recipe.objective.target.velocities()[0] == dataclasses.replace(
        esc().recipe.objective.target.velocities()[0], base=Mixture(plug_in=PlugIn(mask="none"))
    )
    assert run.recipe.objective.metric == PseudoHuber(c=0.1, space="output")
    assert run.network == MLPConfig(width=32)


def test_a_part_with_a_needed_setting_can_be_built_up() -> None:
    run = override(esc(), ["objective.weighting=ByTime", "objective.weighting.rule=imm", "objective.weighting.bias=2"])
    assert run.recipe.objective.weighting == ByTime(rule="imm", bias=2.0)
    assert "rule: is missing" in only_refusal("objective.weighting=ByTime")


def test_an_empty_place_takes_a_part() -> None:
    shortcut = RunConfig(recipe=recipe_named("shortcut"))
    run = override(shortcut, ["objective.target.bootstrap.first=Conditional", "objective.target.bootstrap.guidance=1"])
    target = run.recipe.objective.target
    assert to_plain(target)["bootstrap"]["first"] == {"kind": "Conditional"}
    assert Conditional() in target.velocities()


def test_kind_replaces_the_part_and_a_mapping_gives_its_settings() -> None:
    for setting in ("objective.metric.kind=PseudoHuber", "objective.metric={kind: PseudoHuber}"):
        run = override(esc(), [setting, "objective.metric.space=output"])
        assert run.recipe.objective.metric == PseudoHuber(space="output")
    run = override(esc(), ["objective.times={kind: Sorted, ratio: 0.5}", "objective.times.count=exact"])
    assert to_plain(run.recipe.objective.times)["ratio"] == 0.5
    assert to_plain(run.recipe.objective.times)["count"] == "exact"


@pytest.mark.parametrize("key", ["objective.weighting.parts.0", "objective.weighting.parts[0]"])
def test_entries_of_lists_are_counted_from_zero(key: str) -> None:
    run = override(esc(), [f"{key}.c=1e-2"])
    assert run.recipe.objective.weighting == Product(parts=(Adaptive(c=0.01), Variational()))
    run = override(esc(), [f"{key}=Unweighted"])
    assert run.recipe.objective.weighting == Product(parts=(losses.Unweighted(), Variational()))
    assert override(esc(), ["optimizer.betas.0=5e-1"]).recipe.optimizer.betas == (0.5, 0.95)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("=3", "'=3': expected field.path=value, such as train.batch=64"),
        ("objective.weighting.parts.2=Unweighted", "objective.weighting.parts.2: no such entry, there are 0, 1"),
        ("objective.weighting.parts.-1=Unweighted", "objective.weighting.parts.-1: no such entry, there are 0, 1"),
        ("train.batch.size=3", "train.batch is 128, a single value without settings of its own"),
        ("objective.teacher.rate=0.9", "objective.teacher.rate: no such setting, there are none here"),
        ("network.sizes=3", "network.sizes: no such setting, did you mean 'size'?"),
        ("zzzzzzzz=3", "zzzzzzzz: no such setting, `shortflow show RECIPE` lists them"),
        ("omegaa=3", "omegaa: no such setting, did you mean 'objective.target.velocity.omega'?"),
        (
            "train.batch=[1",
            "train.batch: '[1' is not YAML that can be read: expected ',' or ']', but got '<stream end>'",
        ),
    ],
)
def test_impossible_overrides_say_what_there_is(setting: str, message: str) -> None:
    assert only_refusal(setting).startswith(message)


def test_settings_of_a_part_that_is_gone_are_refused() -> None:
    assert "no such setting" in only_refusal("objective.weighting=Unweighted", "objective.weighting.parts.0.c=1")


@pytest.mark.parametrize("name", RECIPES)
def test_every_leaf_of_every_recipe_can_be_given_its_own_value(name: str) -> None:
    run = RunConfig(recipe=recipe_named(name))
    settings = [f"{path}={yaml.safe_dump(value, default_flow_style=True)}" for path, value in flatten(to_plain(run))]
    kind = [setting.split(".kind=")[0] for setting in settings if ".kind=" in setting]
    rest = [setting.removesuffix("...\n") for setting in settings if ".kind=" not in setting]
    assert len(rest) >= 35
    assert override(run, rest) == run
    # Every part as a whole, from the outermost in and from the innermost out: in the first order nothing hides what an
    # inner part has done, in the second what an outer one has.
    parts = [f"{path}={to_yaml_line(run, path)}" for path in kind]
    for order in (parts, parts[::-1]):
        assert difference(override(run, order), run) == []


def to_yaml_line(run: RunConfig, path: str) -> str:
    place: Any = to_plain(run)
    for name in path.split("."):
        place = place[int(name)] if isinstance(place, list) else place[name]
    return yaml.safe_dump(place, default_flow_style=True, width=10_000)


# ---------------------------------------------------------------------------------------------------------- differences


def test_the_difference_of_two_recipes_is_what_was_changed_in_order() -> None:
    a = esc()
    b = override(a, ["objective.weighting=Adaptive", "optimizer.lr=1e-3", "batches=shuffled"])
    assert difference(a, a) == []
    assert difference(a, b) == [
        ("recipe.objective.weighting.kind", "Product", "Adaptive"),
        ("recipe.objective.weighting.power", "—", 1.0),
        ("recipe.objective.weighting.c", "—", 0.001),
        ("recipe.objective.weighting.parts.0.kind", "Adaptive", "—"),
        ("recipe.objective.weighting.parts.0.power", 1.0, "—"),
        ("recipe.objective.weighting.parts.0.c", 0.001, "—"),
        ("recipe.objective.weighting.parts.1.kind", "Variational", "—"),
        ("recipe.batches", "class-consistent", "shuffled"),
        ("recipe.optimizer.lr", 1e-4, 1e-3),
    ]
    assert [(path, right, left) for path, left, right in difference(b, a)] != []
    assert {path for path, _, _ in difference(b, a)} == {path for path, _, _ in difference(a, b)}


# ------------------------------------------------------------------------------------------------------- your own parts


def test_a_registered_part_is_used_from_a_run_file(table: dict[str, type], tmp_path: Path) -> None:
    @register
    @dataclass(frozen=True, kw_only=True)
    class Cubed(Metric):
        space: Literal["output", "state"] = "output"
        scale: float = 1.0

        def __call__(self, prediction: Any, target: Any, flow: Any, draw: Any) -> Any:
            return self.scale * (prediction - target).abs().pow(3).flatten(1).mean(1)

    @register
    @dataclass(frozen=True, kw_only=True)
    class Halves(Sorted):
        pass

    @register
    @dataclass(frozen=True, kw_only=True)
    class Doubled(Linear):
        factor: int = 2

    assert table["Cubed"] is Cubed
    run = override(esc(), ["objective.metric=Cubed", "objective.metric.scale=3", "path={kind: Doubled, factor: 5}"])
    run = override(run, ["objective.times=Halves", "objective.times.law=LogitNormal"])
    assert run.recipe.objective.metric == Cubed(scale=3.0)
    dump(run, tmp_path / "run.yaml")
    again = load_run(tmp_path / "run.yaml")
    assert again == run
    assert (again.recipe.path, again.recipe.objective.times) == (Doubled(factor=5), Halves(law=LogitNormal()))
    # Where the part is not known, the error says what to do.
    del table["Cubed"]
    with pytest.raises(ConfigError, match=r"no such kind 'Cubed'.*has to be registered first"):
        load_run(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="Cubed cannot stand in a run file: it is not registered; call shortflow"):
        dump(run, tmp_path / "run.yaml")


def test_parts_that_could_not_be_read_again_are_not_registered(table: dict[str, type]) -> None:
    class NoDataclass(Metric):
        pass

    @dataclass(kw_only=True)
    class Changeable(NoisePath):
        pass

    @dataclass(frozen=True, kw_only=True)
    class Unfinished(NoisePath):
        pass

    @dataclass(frozen=True, kw_only=True)
    class OfFunctions(Linear):
        function: Any = None

    @dataclass(frozen=True, kw_only=True)
    class OfNoFamily:
        pass

    class Inherits(SquaredError):
        pass

    SquaredErrorAgain = dataclass(frozen=True, kw_only=True)(type("SquaredError", (SquaredError,), {}))
    for part, reason in (
        (NoDataclass, "must be a dataclass"),
        (Inherits, "must be a dataclass"),
        (Changeable, "frozen=True"),
        (Unfinished, "it lacks alpha, d_alpha, d_sigma, sigma"),
        (OfFunctions, "function can be neither numbers, texts nor parts"),
        (OfNoFamily, "belongs to no family"),
        (SquaredErrorAgain, "already a part called SquaredError"),
    ):
        with pytest.raises(ConfigError, match=reason):
            register(part)
    assert register(SquaredError) is SquaredError  # again is no harm
    assert set(table) == set(parts._KINDS)


def test_value_errors_of_your_own_part_become_config_errors(table: dict[str, type]) -> None:
    @register
    @dataclass(frozen=True, kw_only=True)
    class Even(Linear):
        n: int = 2

        def __post_init__(self) -> None:
            if self.n % 2:
                raise ValueError(f"n must be even, got {self.n}")

    assert "Even" in table
    assert only_refusal("recipe.path={kind: Even, n: 3}") == "recipe.path: n must be even, got 3"


# ------------------------------------------------------------------------------------------------------------ run files


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "run.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_short_run_file_is_a_recipe_with_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "recipe: esc\ntrain: {images: 1e4}\n")
    assert load_run(file) == RunConfig(recipe=recipe_named("esc"), train=TrainSettings(images=10_000))
    with pytest.raises(ConfigError, match=r"run.yaml:\nthere is no recipe called 'ecs', did you mean 'esc'"):
        load_run(written(tmp_path, "recipe: ecs\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold the settings recipe, network, data and train, got nothing"),
        ("- 1\n", "must hold the settings .*, got list"),
        ("recipe: [\n", r"not YAML that can be read: .* \(line 2\)"),
        ("recipe: esc\nrecipe: imm\n", r"'recipe' is given twice \(line 2\)"),
        (
            "recipe: !!python/object/apply:os.system ['exit 1']\n",
            "the tag !!python/object/apply:os.system is not allowed",
        ),
        ("recipe: !!python/name:os.system\n", "the tag !!python/name:os.system is not allowed"),
        ("a: &x [1]\nb: *x\n", r"aliases \(\*x\) are not allowed; write the value out \(line 2\)"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 40 levels"),
        ("a: " + "{b: " * 5000 + "1" + "}" * 5000, "nested deeper than 40 levels"),
        ("a: " + "x" * 300_000, "has 300,003 characters, at most 200,000"),
        ("a: 2024-99-99\n", "holds a value that is none: month must be in 1..12"),
        (b"\xff\xfe\x00", "is not a text file"),
        ("a: \x07\n", "is not YAML"),
        ("? [a, b]\n: 1\n", "unhashable|no such setting"),
        ("1: 2\nrecipe: esc\n", "1: no such setting of RunConfig"),
    ],
)
def test_files_that_hold_no_run_are_refused_quickly(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run(written(tmp_path, text))


def test_alias_bombs_and_code_do_nothing(tmp_path: Path) -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n" for i in range(20)
    )
    with pytest.raises(ConfigError, match="aliases"):
        load_run(written(tmp_path, bomb))
    proof = tmp_path / "proof"
    code = f"recipe: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{proof}']]\n"
    with pytest.raises(ConfigError):
        load_run(written(tmp_path, code))
    assert not proof.exists()


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_run(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_run(tmp_path)


def test_literal_settings_take_their_choices_only() -> None:
    choices = get_args(parts.fields_of(TrainSettings)["precision"])
    assert choices == ("fp32", "bf16")
    for choice in choices:
        assert override(esc(), [f"train.precision={choice}"]).train.precision == choice
