"""Runs on images that are told vectors or sequences: from a folder to samples, by functions and by commands."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import save_file

from autoencoders import saved
from commands import Said, Shortflow
from shortflow import hub, runs
from shortflow.data import Conditions, load, write_conditions
from shortflow.data.encoders import load_autoencoder
from shortflow.data.sources import open_source
from shortflow.errors import CheckpointError, ConfigError, DataError, SamplerError, ShortflowError
from shortflow.hub import Model
from shortflow.runs import EncodeSettings, Images, encode
from shortflow.sample import sample

N, WIDTH = 24, 5
SMALL = (
    "network=SiTConfig",
    "network.size=tiny",
    "network.depth=1",
    "network.patch=4",
    "train.batch=8",
    "train.images=16",
    "train.preview_every=0",
    "train.trackers=[]",
)
MASK = np.arange(3) < np.array([3, 1, 2] * (N // 3))[:, None]


def conditions(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, *shape)).astype(np.float32)


def folder(where: Path, values: np.ndarray, mask: np.ndarray | None = None) -> Path:
    """Images of 8×8 pixels with conditions, in a split for training and one that is held out."""
    for k, split in enumerate(("train", "test")):
        (where / split).mkdir(parents=True)
        names = [f"{i:02d}.png" for i in range(N)]
        for i, name in enumerate(names):
            pixels = np.random.default_rng([k, i]).integers(256, size=(8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(where / split / name)
        write_conditions(where / split, names, values + k, mask)
    return where


def trained(data: Path, out: Path, recipe: str = "esc", *settings: str, **others: Any) -> Model:
    run, dataset = runs.configure(recipe, str(data), settings=[*SMALL, *settings], **others)
    for record in runs.training(run, dataset, out):
        assert math.isfinite(record.loss)
    return hub.load(out, "cpu")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, run) of images that are told vectors."""
    here = tmp_path_factory.mktemp("vectors")
    data = folder(here / "data", conditions((WIDTH,)))
    trained(data, here / "run", "esc", "train.preview_every=2")
    return data, here / "run"


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, run) of images that are told sequences of up to three tokens."""
    here = tmp_path_factory.mktemp("sequences")
    data = folder(here / "data", conditions((3, WIDTH)), MASK)
    plain = ("objective.target.velocity.omega=1", "objective.target.velocity.kappa=0")
    trained(data, here / "run", "meanflow", *plain)
    return data, here / "run"


# -------------------------------------------------------------------------------------------------------------- the run


def test_a_model_says_what_it_is_told_and_opens_by_its_file_alone(
    vectors: tuple[Path, Path], sequences: tuple[Path, Path]
) -> None:
    for (_, out), shape in ((vectors, (WIDTH,)), (sequences, (3, WIDTH))):
        model = hub.load(out / "model.safetensors", "cpu")
        assert hub.read_header(out)["data"]["condition"] == list(shape)
        assert model.spec.condition == model.flow.condition_shape == shape
        assert model.flow.null_label is not None
        assert math.isnan(model.flow.null_label)
        assert model.spec.num_classes == 0
    assert (vectors[1] / "previews").is_dir() or list(vectors[1].rglob("*.png"))


def test_samples_are_those_of_the_conditions_in_turn(sequences: tuple[Path, Path]) -> None:
    model = hub.load(sequences[1], "cpu")
    with torch.no_grad():
        for weight in model.flow.parameters():  # two steps of training leave the output near zero
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    told = torch.from_numpy(Conditions(values=conditions((3, WIDTH)), mask=MASK).take(np.arange(2)))
    pixels, labels = runs.generate(model.flow, model.spec, 5, condition=told, batch_size=2)
    assert labels is None
    alone = [
        runs.generate(model.flow, model.spec, 5, condition=told[row : row + 1])[0][
            [k for k in range(5) if k % 2 == row]
        ]
        for row in (0, 1)
    ]
    assert np.array_equal(pixels[0::2], alone[0])
    assert np.array_equal(pixels[1::2], alone[1])
    assert not np.array_equal(alone[0][0], runs.generate(model.flow, model.spec, 1, condition=told[1:])[0][0])
    free, _ = runs.generate(model.flow, model.spec, 2, condition=torch.full((1, 1, WIDTH), math.nan))
    assert not np.array_equal(free[0], pixels[0])
    guided, _ = runs.generate(model.flow, model.spec, 2, condition=told, guidance=3.0)
    assert not np.array_equal(guided, pixels[:2])
    rows, columns = runs.interpolation(model, rows=2, points=4, condition=told)
    assert (len(rows), columns) == (8, 4)
    ends = [runs.generate(model.flow, model.spec, 1, condition=told[:1], seed=seed)[0][0] for seed in (0, 1)]
    assert np.array_equal(rows[[0, 3]], np.stack(ends))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, r"told a vector of 5 numbers for each image; give them, as float32 \(m, 5\)"),
        (torch.zeros(3, dtype=torch.long), "got torch.int64"),
        (torch.zeros(3, 4), r"got torch.float32 of shape \(3, 4\)"),
        (torch.zeros(0, 5), r"got torch.float32 of shape \(0, 5\)"),
    ],
)
def test_samples_are_refused_before_the_network_is_asked(vectors: tuple[Path, Path], label: Any, message: str) -> None:
    model = hub.load(vectors[1], "cpu")
    with pytest.raises(SamplerError, match=message):
        sample(model.flow, 3, model.spec.shape, label=label)


def test_one_that_was_told_always_knows_no_image_of_none(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", conditions((WIDTH,)))
    plain = ("objective.target.velocity.omega=1", "objective.target.velocity.kappa=0", "objective.label_dropout=0")
    model = trained(data, tmp_path / "run", "meanflow", *plain)
    assert model.flow.null_label is None
    told = torch.full((2, WIDTH), math.nan)
    told[0] = 0
    with pytest.raises(SamplerError, match=r"trained without label dropout.*row 1 holds none"):
        runs.generate(model.flow, model.spec, 2, condition=told)


def test_a_run_goes_on_to_the_same_bits_and_only_with_its_own_conditions(tmp_path: Path) -> None:
    values = conditions((WIDTH,))
    data = folder(tmp_path / "data", values)
    run, dataset = runs.configure("esc", str(data), settings=[*SMALL, "train.images=32", "train.save_every=2"])
    whole = [record.loss for record in runs.training(run, dataset, tmp_path / "whole")]
    records = runs.training(run, dataset, tmp_path / "parts")
    for _ in range(2):
        next(records)
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    again, dataset = runs.open_run(tmp_path / "parts")
    assert [record.loss for record in runs.training(again, dataset, tmp_path / "parts", resume=True)] == whole[2:]
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()
    names = [f"{i:02d}.png" for i in range(N)]
    write_conditions(data / "train", names, values[:, :4])
    again, dataset = runs.open_run(tmp_path / "parts")
    with pytest.raises(CheckpointError, match=r"condition was \[5\], is \[4\]"):
        runs.training(again, dataset, tmp_path / "parts", resume=True)


def test_reflow_makes_pairs_by_the_conditions_of_the_data(sequences: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = sequences
    trained(data, tmp_path / "teacher", "flow-matching")
    pairs = ("pairs.count=8", "pairs.steps=2", "pairs.precision=float32")
    model = trained(data, tmp_path / "run", "reflow", *pairs, teacher=str(tmp_path / "teacher"))
    assert model.spec.condition == (3, WIDTH)
    found = sorted((tmp_path / "run/pairs").glob("*.safetensors"))
    from safetensors.torch import load_file

    label = load_file(str(found[0]))["label"]
    assert label.shape == (8, 3, WIDTH)
    told = load(str(data)).conditions
    assert told is not None
    everything = told.take(np.arange(N))
    assert all(any(np.array_equal(row, one, equal_nan=True) for one in everything) for row in label.numpy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("network=UNetConfig", "network.channels=8"), "a UNet is told a vector.*a sequence of up to 3 vectors of 5"),
        (("objective.target.velocity.base.plug_in.mask=none",), "set the mask to 'label'"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_configure(
    sequences: tuple[Path, Path], settings: tuple[str, ...], message: str
) -> None:
    kept = [each for each in SMALL if not each.startswith("network")] if "UNet" in settings[0] else SMALL
    with pytest.raises(ConfigError, match=message):
        runs.configure("esc", str(sequences[0]), settings=[*kept, *settings])


def test_other_models_must_be_told_the_same(
    vectors: tuple[Path, Path], sequences: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"was trained on data \(shape \(1, 8, 8\), a vector of 5 numbers\)"):
        runs.configure("meanflow", str(sequences[0]), settings=SMALL, init_from=str(vectors[1]))
    with pytest.raises(ShortflowError, match="a vector of 5 numbers"):
        runs.configure("meanflow", "digits", settings=SMALL, init_from=str(vectors[1]))


def test_notes_say_what_conditions_change(vectors: tuple[Path, Path], tmp_path: Path) -> None:
    run, dataset = runs.configure("esc", str(vectors[0]), settings=SMALL)
    text = "\n".join(runs.notes(run, dataset))
    assert "conditions that are no classes: batches are shuffled" in text
    assert "a mean over the images of a batch whose conditions are equal" in text
    assert "root mean square" not in text
    large = folder(tmp_path / "data", 100 * conditions((WIDTH,)))
    run, dataset = runs.configure("flow-matching", str(large), settings=SMALL)
    assert "the conditions have a root mean square of 95.8" in "\n".join(runs.notes(run, dataset))
    assert run.recipe.objective.label_dropout > 0  # conditional, whatever the conditions are


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_a_model_is_scored_by_the_conditions_of_the_held_out_images(vectors: tuple[Path, Path]) -> None:
    model = hub.load(vectors[1], "cpu")
    compared = runs.drawn_images(model, (1,), 6)
    assert compared.made["conditions"] == "the first 6 of test, in turn"
    found = np.concatenate(list(compared.images["1 step"].read(0, 6)))
    held_out = load(str(vectors[0]), "test").conditions
    assert held_out is not None
    told = torch.from_numpy(held_out.take(np.arange(6)))
    assert np.array_equal(found, runs.generate(model.flow, model.spec, 6, condition=told)[0])


def test_where_nothing_is_held_out_the_training_data_tell(vectors: tuple[Path, Path], tmp_path: Path) -> None:
    data = folder(tmp_path / "data", conditions((WIDTH,)))
    model = trained(data / "train", tmp_path / "run")
    found, split = runs.held_out_conditions(model)
    assert split == "train"
    assert found is not None
    assert len(found) == N
    for name in ("conditions.txt", "conditions.safetensors"):
        (data / "train" / name).unlink()
    with pytest.raises(DataError, match=r"is told a vector of 5 numbers for each image, and the data have none"):
        runs.held_out_conditions(model)


# -------------------------------------------------------------------------------------------------------------- latents


def test_latents_keep_what_their_images_are_told_by(tmp_path: Path) -> None:
    """Also where images cannot be read: rows stay with their latents."""
    data = folder(tmp_path / "data", conditions((3, WIDTH)), MASK) / "train"
    (data / "05.png").write_bytes(b"nothing")
    encoder = load_autoencoder(str(saved(tmp_path / "encoder", in_channels=1)))
    source = open_source(str(data), resolution=8)
    settings = EncodeSettings(batch=4, shard=10, dtype="float32", corrupt="skip")
    for _ in range(2):  # the second time it is verified, and stays
        encode(Images(source, encoder), encoder, tmp_path / "latents", settings=settings)
    dataset = load(str(tmp_path / "latents"))
    assert dataset.kind == "latents"
    assert dataset.conditions is not None
    kept = [k for k in range(N) if k != 5]
    want = Conditions(values=conditions((3, WIDTH)), mask=MASK).take(np.array(kept))
    assert np.array_equal(dataset.conditions.take(np.arange(N - 1)), want, equal_nan=True)
    save_file({"conditions": np.zeros((3, WIDTH), np.float32)}, str(tmp_path / "latents/conditions.safetensors"))
    with pytest.raises(DataError, match=r"conditions.safetensors holds .* meta.json says \(23, 3, 5\)"):
        load(str(tmp_path / "latents"))
    (tmp_path / "latents/conditions.safetensors").unlink()
    with pytest.raises(DataError, match="there is no such file"):
        load(str(tmp_path / "latents"))


# ------------------------------------------------------------------------------------------------------------- commands


def test_a_dry_run_says_what_the_network_is_told(sequences: tuple[Path, Path], shortflow: Shortflow) -> None:
    settings = [word for each in SMALL for word in ("--set", each)]
    said = shortflow("train", "meanflow", "--data", sequences[0], "--out", "nowhere", "--dry-run", *settings)
    assert said.code == 0, said.err
    assert "told a sequence of up to 3 vectors of 5 numbers" in said.out
    assert not Path("nowhere").exists()


def test_commands_draw_by_a_file_of_conditions(
    vectors: tuple[Path, Path], sequences: tuple[Path, Path], shortflow: Shortflow, tmp_path: Path
) -> None:
    np.save(tmp_path / "told.npy", conditions((WIDTH,))[:3])
    at = ("--condition", tmp_path / "told.npy", "--out", tmp_path / "made.npy")
    said = shortflow("sample", vectors[1], "--n", 7, *at)
    assert said.code == 0, said.err
    model = hub.load(vectors[1], "cpu")
    told = torch.from_numpy(conditions((WIDTH,))[:3])
    assert np.array_equal(np.load(tmp_path / "made.npy"), runs.generate(model.flow, model.spec, 7, condition=told)[0])
    assert "(3, 5)" in json.loads((tmp_path / "made.json").read_text())["condition"]
    np.save(tmp_path / "told.npy", conditions((WIDTH,))[3:5])
    assert (
        "belongs to samples that were made with condition (3, 5)" in shortflow("sample", vectors[1], "--n", 7, *at).err
    )
    mask = np.ascontiguousarray(MASK[:, :2])
    save_file({"conditions": conditions((2, WIDTH)), "mask": mask}, str(tmp_path / "told.safetensors"))
    at = ("--condition", tmp_path / "told.safetensors", "--out", tmp_path / "made.png")
    for more in ((), ("--interpolate",)):  # sequences may be shorter than those of the data
        said = shortflow("sample", sequences[1], "--n", 8, *at, *more)
        assert said.code == 0, said.err
    assert (tmp_path / "made.png").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "this model is told a vector of 5 numbers for each sample; give them with --condition FILE.npy"),
        (("--class", "3"), "--class 3: this model is told a vector of 5 numbers; give them with --condition FILE"),
        (("--condition", "none.npy"), "none.npy: there is no such file"),
        (("--condition", "four.npy"), "four.npy: it holds a vector of 4 numbers, and this model is told a vector of 5"),
        (("--condition", "long.npy"), "long.npy: it holds a sequence of up to 2 vectors of 5 numbers"),
        (("--condition", "double.npy"), "double.npy: conditions must be vectors"),
    ],
)
def test_commands_refuse_what_does_not_fit(
    given: tuple[str, ...],
    message: str,
    vectors: tuple[Path, Path],
    shortflow: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("four.npy", np.zeros((2, 4), np.float32))
    np.save("long.npy", np.zeros((2, 2, 5), np.float32))
    np.save("double.npy", np.zeros((2, 5)))
    said = shortflow("sample", vectors[1], *given)
    assert said.code == 2
    assert message in said.err
    assert not Path("samples.png").exists()


def test_a_model_of_classes_takes_no_condition(shortflow: Shortflow, tmp_path: Path) -> None:
    settings = [word for each in SMALL for word in ("--set", each)]
    shortflow("train", "meanflow", "--data", "digits", "--out", tmp_path / "run", *settings)
    np.save(tmp_path / "told.npy", np.zeros((2, 5), np.float32))
    said = shortflow("sample", tmp_path / "run", "--condition", tmp_path / "told.npy")
    assert said.code == 2
    assert "this model is told one of 10 classes; leave it out" in said.err


def test_the_run_file_names_the_data_and_the_data_name_the_condition(vectors: tuple[Path, Path]) -> None:
    run = yaml.safe_load((vectors[1] / "run.yaml").read_text())
    assert run["data"]["source"] == str(vectors[0])
    assert "condition" not in run["network"]
