"""Diagnoses of every kind of data that can be trained on: latents, stored or made on the way; vectors and sequences in
place of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import Shortflow
from photolatents import SIDE, TINY, photographs
from shortflow import runs
from shortflow.config import recipe_named
from shortflow.data import DataSpec, load
from shortflow.diagnose import Looking, diagnose_data, diagnose_run
from shortflow.errors import ConfigError
from test_conditions_runs import WIDTH, N, conditions, folder, trained
from test_diagnose_data import check_record

FEW = Looking(rows=16, flow_rows=4)


# ------------------------------------------------------------------------------------------------------------- latents


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs"))


def test_a_run_on_latents_that_are_made_on_the_way_is_diagnosed_as_it_was_trained(
    here: Path, tmp_path: Path, shortflow: Shortflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its autoencoder, and without the images that it left out; the law is that of a store of the same latents."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = [*TINY, f"data.encoder={here / 'vae'}", "data.corrupt=skip"]
    run, data = runs.configure("esc", str(here / "photos"), resolution=SIDE, settings=settings)
    assert len(data) == 40
    for _ in runs.training(run, data, tmp_path / "run"):
        pass
    said = shortflow("diagnose", tmp_path / "run", "--rows", 16)
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "run/diagnosis.json").read_text())
    check_record(record)
    assert record["settings"]["law"] == "the 40 points of photos themselves"
    assert record["scalars"]["holds"]["value"] == 1
    assert any("means of their Gaussians" in note for note in record["notes"])
    stored = ("--data", here / "latents", "--out", tmp_path / "b")
    said = shortflow("diagnose", tmp_path / "run", "--rows", 16, *stored)
    assert said.code == 0, said.err
    other = json.loads((tmp_path / "b").read_text())
    for name in ("bound", "distance", "mean/eulerian"):
        assert other["scalars"][name]["value"] == pytest.approx(record["scalars"][name]["value"], rel=1e-3), name


def test_stored_latents_have_a_diagnosis(here: Path) -> None:
    data = load(str(here / "latents"))
    d = diagnose_data(data, recipe_named("esc"), batch=8, looking=FEW)
    check_record(d.to_dict())
    spec = DataSpec.fit(data, recipe_named("esc").sigma_data)
    z = spec.encode(data.take(np.arange(40))).double()
    assert d.number("data_std").value == pytest.approx(float(z.std(0).square().mean().sqrt()), rel=1e-6)
    assert d.settings["shape"] == [4, 4, 4]
    assert any("means of their Gaussians" in note for note in d.notes)


# ---------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("shape", [(WIDTH,), (3, WIDTH)], ids=["vectors", "sequences"])
def test_a_run_that_is_told_vectors_is_diagnosed_without_them(
    shape: tuple[int, ...], tmp_path: Path, shortflow: Shortflow
) -> None:
    """Beside the law of all images; samples, whose neighbours are looked for, are told those of held-out images."""
    data = folder(tmp_path / "data", conditions(shape))
    model = trained(data, tmp_path / "run", "esc", "objective.label_dropout=0.1")
    assert model.flow.condition_shape == shape
    said = shortflow("diagnose", tmp_path / "run", "--rows", 16)
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "run/diagnosis.json").read_text())
    check_record(record)
    assert record["scalars"]["holds"]["value"] == 1
    assert record["scalars"]["mean/boundary"]["value"] > 0
    assert "copies/samples" in record["scalars"]
    assert any("told that there is no condition" in note for note in record["notes"])


def test_what_the_network_is_told_is_that_nothing_is_there(tmp_path: Path) -> None:
    """Weights of the conditions are no matter for anything but the samples: NaN stands for none."""
    data = folder(tmp_path / "data", conditions((WIDTH,)))
    model = trained(data, tmp_path / "run", "esc", "objective.label_dropout=0.1")
    with torch.no_grad():
        for weight in model.flow.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    found = []
    for _ in range(2):
        found.append(diagnose_run(model, load(str(data), "train"), looking=FEW).number("bound").value)
        with torch.no_grad():
            for name, weight in model.flow.named_parameters():
                if "y_embedder" in name and weight.shape[-1] == WIDTH:
                    weight.mul_(3)
    assert found[0] == found[1]


def test_a_run_that_knows_nothing_without_its_conditions_is_refused(tmp_path: Path, shortflow: Shortflow) -> None:
    data = folder(tmp_path / "data", conditions((WIDTH,)))
    plain = ("objective.target.velocity.omega=1", "objective.target.velocity.kappa=0", "objective.label_dropout=0")
    model = trained(data, tmp_path / "run", "meanflow", *plain)
    if model.flow.null_label is not None:
        pytest.skip("it knows what stands for none")
    with pytest.raises(ConfigError, match=r"told a vector of 5 numbers .* without label dropout.*label_dropout=0\.1"):
        diagnose_run(model, load(str(data), "train"), looking=FEW)
    assert shortflow("diagnose", tmp_path / "run").code == 2


def test_data_with_vectors_have_a_diagnosis(tmp_path: Path) -> None:
    data = load(str(folder(tmp_path / "data", conditions((WIDTH,)))), "train")
    assert data.conditions is not None
    d = diagnose_data(data, recipe_named("esc"), batch=8, looking=FEW)
    check_record(d.to_dict())
    assert d.settings["classes"] == 0
    assert [name for name in d.scalars if name.startswith("removed/")] == ["removed/all"]
    assert any("what they are told by nothing is used" in note for note in d.notes)
    assert d.settings["images"] == N
