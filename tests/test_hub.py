"""Model files: they open by their path, give the trained model back bit for bit, and say what is wrong with others."""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shortflow import hub
from shortflow.config import DataConfig, RunConfig, override, recipe_named, to_plain
from shortflow.data import DataSpec
from shortflow.errors import CheckpointError, ShortflowError
from shortflow.nn.configs import MLPConfig, SiTConfig
from shortflow.recipes import RECIPES
from shortflow.runs import generate
from shortflow.train.weights import save_model

POINTS = DataSpec(name="mixture", shape=(2,), classes=("a", "b", "c"), shift=0.25, scale=0.5, image=False)
IMAGES = DataSpec(name="digits", shape=(1, 8, 8), classes=tuple("0123456789"))


def a_run(recipe: str = "esc", *settings: str) -> RunConfig:
    run = RunConfig(
        recipe=recipe_named(recipe), network=MLPConfig(width=16, depth=2), data=DataConfig(source="mixture")
    )
    return override(run, settings)


def saved(directory: Path, run: RunConfig, spec: DataSpec = POINTS, header: dict[str, Any] | None = None) -> Path:
    """A run directory with a model whose weights are random, as training writes it."""
    flow = hub.build_flow(run, spec)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    metadata = {**hub.describe(run, spec), "images": 640, "step": 5, **(header or {})}
    save_model(flow, directory / "model.safetensors", metadata)
    return directory


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_comes_back_with_what_its_recipe_says(recipe: str, tmp_path: Path) -> None:
    run = a_run(recipe)
    saved(tmp_path, run)
    model = hub.load(tmp_path)
    objective = run.recipe.objective
    assert (model.run, model.spec, model.images, model.step) == (run, POINTS, 640, 5)
    assert (model.flow.ends, model.flow.span) == (objective.ends, objective.times.span)
    assert (model.flow.guided, model.flow.lowest) == (objective.guided, objective.lowest)
    assert model.flow.told == (None if objective.guidance is None else (1.0, 0.0, 1.0))
    assert model.flow.sigma_data == (run.recipe.sigma_data or 1.0)
    assert (model.flow.path, model.flow.parameterization) == (run.recipe.path, run.recipe.parameterization)
    assert model.flow.conditioning == run.recipe.conditioning
    assert model.flow.null_label == (3 if run.recipe.objective.label_dropout > 0 else None)
    assert not model.flow.training
    assert not any(weight.requires_grad for weight in model.flow.parameters())
    assert model.path == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("run", "spec"),
    [
        (a_run("esc"), POINTS),
        (a_run("ct", "sigma_data=0.5"), POINTS),
        (a_run("meanflow", "network={kind: SiTConfig, size: tiny, dropout: 0.1}"), IMAGES),
    ],
)
def test_samples_of_a_loaded_model_are_bit_identical(run: RunConfig, spec: DataSpec, tmp_path: Path) -> None:
    flow = hub.build_flow(run, spec)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_model(flow, tmp_path / "model.safetensors", {**hub.describe(run, spec), "images": 1, "step": 1})
    before, labels = generate(flow, spec, 12, steps=2, seed=3)
    shutil.move(tmp_path / "model.safetensors", tmp_path / "elsewhere.safetensors")
    model = hub.load(str(tmp_path / "elsewhere.safetensors"))
    after, again = generate(model.flow, model.spec, 12, steps=2, seed=3)
    assert before.std() > 0
    assert np.array_equal(before, after)
    assert np.array_equal(labels, again)  # pyright: ignore[reportArgumentType]


def test_an_unconditional_model_has_no_label_table(tmp_path: Path) -> None:
    spec = DataSpec(name="gaussian", shape=(2,), image=False)
    saved(tmp_path, a_run(), spec)
    model = hub.load(tmp_path)
    assert (model.flow.num_classes, model.flow.null_label) == (0, None)
    assert not any("label" in name for name in model.flow.state_dict())


def test_the_header_is_plain_json_and_can_be_read_alone(tmp_path: Path) -> None:
    run = a_run()
    saved(tmp_path, run)
    header = hub.read_header(tmp_path)
    assert header == json.loads(json.dumps(hub.describe(run, POINTS))) | {"images": 640, "step": 5}
    assert header["run"] == to_plain(run)
    assert header["format"] == hub.FORMAT


def test_check_needs_no_memory_and_no_random_numbers() -> None:
    run = a_run("esc", "network={kind: SiTConfig, size: XL, width: 36864}")
    before = torch.get_rng_state()
    flow = hub.check(run, IMAGES)
    assert sum(weight.numel() for weight in flow.parameters()) > 10**11
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ShortflowError, match="patch=2 does not divide the image of 9×9"):
        hub.check(run, DataSpec(name="odd", shape=(1, 9, 9)))


# ------------------------------------------------------------------------------------------------------------- refusals


def test_where_there_is_no_model(tmp_path: Path) -> None:
    assert "expected a run directory with model.safetensors in it" in refusal(tmp_path)
    assert "expected a run directory" in refusal(tmp_path / "none")


def test_damaged_files(tmp_path: Path) -> None:
    saved(tmp_path, a_run())
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", b"not a model", whole[:-1], whole[: len(whole) // 2], whole[:5], b"\xff" * 100):
        file.write_bytes(damaged)
        assert "copy or download it again" in refusal(file)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (tmp_path / "proof",)

    torch.save({"model": Bomb()}, tmp_path / "model.safetensors")
    assert "no safetensors file" in refusal(tmp_path / "model.safetensors")
    assert not (tmp_path / "proof").exists()


def test_files_of_others(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    assert "no shortflow model: its header has no description" in refusal(file)
    save_file({"a": torch.zeros(2)}, file, {"shortflow": "{"})
    assert "is not JSON" in refusal(file)
    save_file({"a": torch.zeros(2)}, file, {"shortflow": "[" * 100_000})
    assert "is not JSON" in refusal(file)
    for text, found in (('{"format": 2}', "2"), ("{}", "None"), ("[1]", r"[1]")):
        save_file({"a": torch.zeros(2)}, file, {"shortflow": text})
        assert f"has format {found}, this version of shortflow reads format 1" in refusal(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": None}, "expected settings, got None"),
        ({"run": {"recipe": {"name": "x", "nme": 1}}}, "recipe.nme: no such setting of Recipe, did you mean 'name'?"),
        ({"data": None}, "makes no sense"),
        ({"data": {}}, "missing keys"),
        ({"images": "many"}, "makes no sense"),
        ({"step": None}, "makes no sense"),
        ({"images": float("inf")}, "makes no sense"),
    ],
)
def test_headers_that_make_no_sense(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path, a_run(), header=change)
    assert message in refusal(tmp_path / "model.safetensors")


def test_headers_that_lack_something(tmp_path: Path) -> None:
    flow = hub.build_flow(a_run(), POINTS)
    for missing in ("run", "data", "images", "step"):
        header = {**hub.describe(a_run(), POINTS), "images": 1, "step": 1}
        del header[missing]
        save_model(flow, tmp_path / "model.safetensors", header)
        assert f"lacks '{missing}'" in refusal(tmp_path / "model.safetensors")


def changed(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The model with its tensors changed, under the same header."""
    file = saved(directory, a_run()) / "model.safetensors"
    header, tensors = hub.read_header(file), load_file(file)
    change(tensors)
    save_file(tensors, file, {"shortflow": json.dumps(header)})
    return file


def test_weights_of_another_network(tmp_path: Path) -> None:
    names = sorted(hub.build_flow(a_run(), POINTS).state_dict())
    gone = refusal(changed(tmp_path, lambda tensors: tensors.pop(names[0])) and tmp_path / "model.safetensors")
    assert f"{names[0]} is missing" in gone
    more = refusal(changed(tmp_path, lambda tensors: tensors.update(stranger=torch.zeros(1))))
    assert "stranger is not in the network" in more
    shape = refusal(changed(tmp_path, lambda tensors: tensors.update({names[0]: torch.zeros(7)})))
    assert f"{names[0]} has the shape (7,), the network wants" in shape
    whole = refusal(changed(tmp_path, lambda tensors: tensors.update({n: t.int() for n, t in tensors.items()})))
    assert "holds torch.int32" in whole
    assert "more" in whole


def test_a_description_that_lies_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    began = time.perf_counter()
    file = saved(tmp_path, a_run()) / "model.safetensors"
    tensors, header = load_file(file), hub.read_header(file)
    lies: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"kind": "MLPConfig", "depth": 10**9}, {}, "has 1000000000 blocks, the file has"),
        ({"kind": "MLPConfig", "depth": 2, "width": 10**8}, {}, "has the shape"),
        (
            {"kind": "SiTConfig", "width": 4 * 10**6, "heads": 4},
            {"shape": [1, 2**12, 2**12]},
            "blocks|too large|tensors",
        ),
        ({"kind": "SiTConfig", "size": "tiny", "patch": 1}, {"shape": [1, 2**14, 2**14], "image": True}, "too large"),
    ]
    for network, data, message in lies:
        lie = {**header, "run": {**header["run"], "network": network}, "data": {**header["data"], **data}}
        save_file(tensors, file, {"shortflow": json.dumps(lie)})
        with pytest.raises(CheckpointError, match=message):
            hub.load(file)
    assert time.perf_counter() - began < 20


def test_a_header_that_is_longer_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "no safetensors file" in refusal(file)


def test_unused_config_of_images_is_checked_against_points(tmp_path: Path) -> None:
    run = a_run()
    file = saved(tmp_path, run) / "model.safetensors"
    header = hub.read_header(file)
    header["run"]["network"] = to_plain(SiTConfig(size="tiny", depth=1))
    save_file(load_file(file), file, {"shortflow": json.dumps(header)})
    assert "use an MLP for points" in refusal(file)


def test_a_file_from_before_a_setting_opens_with_its_default(tmp_path: Path) -> None:
    """Names of weights and numbers stay what they were: the positions of a SiT are no part of its file."""
    run = a_run("flow-matching", "network={kind: SiTConfig, size: tiny}")
    saved(tmp_path, run, IMAGES)
    header, tensors = hub.read_header(tmp_path), load_file(tmp_path / "model.safetensors")
    assert "network.pos_embed" not in tensors
    for name in ("frequencies", "positions"):
        del header["run"]["network"][name]
    save_file(tensors, tmp_path / "model.safetensors", {"shortflow": json.dumps(header)})
    assert hub.load(tmp_path).run == run
