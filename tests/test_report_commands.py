"""The command that scores a run is one that can: by what its data are."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Shortflow
from reports import made_run
from shortflow.data import Dataset, DataSpec, load
from shortflow.data.latentspec import LatentSpec
from shortflow.report.commands import score_command, unscored
from test_data_latents import store


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SHORTFLOW_INCEPTION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photos(folder: Path) -> Path:
    folder.mkdir()
    for k in range(4):
        Image.fromarray(np.full((8, 8, 3), 50 * k, np.uint8)).save(folder / f"{k}.png")
    return folder


def test_points_and_classified_images_need_no_options() -> None:
    assert score_command("out/a b", load("moons"), "moons") == "shortflow evaluate 'out/a b'"
    assert score_command("out/run", load("digits"), "digits") == "shortflow evaluate out/run"
    small = load("digits", resolution=4)
    assert score_command("run", small, "digits") == "shortflow evaluate run --features inception --download"


def test_photographs_are_scored_by_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is fetched where it is not at hand."""
    source = str(photos(tmp_path / "photos"))
    assert score_command("run", load(source), source) == "shortflow evaluate run --features inception --download"
    (tmp_path / "weights.pth").write_bytes(b"x")
    monkeypatch.setenv("SHORTFLOW_INCEPTION", str(tmp_path / "weights.pth"))
    assert score_command("run", load(source), source) == "shortflow evaluate run --features inception"


def test_stored_latents_name_the_images_that_they_are_of(tmp_path: Path) -> None:
    latent = LatentSpec(encoder="vae", sha256=None, pixels=(3, 32, 32), shift=(0.0,) * 4, scale=(1.0,) * 4)
    spec = DataSpec(name="photos", shape=(4, 4, 4), shift=0.0, scale=1.0, image=False, latent=latent)
    for source, words in (
        ({}, "--reference IMAGES"),
        ({"where": "./my photos"}, "--reference './my photos'"),
        ({"where": "photos.zip", "split": "val"}, "--reference photos.zip --split val"),
    ):
        folder = tmp_path / f"latents-{len(words)}"
        store(folder, source={"name": "photos", "split": "train", "sha256": ""} | source)
        wanted = f"shortflow evaluate run --features inception {words} --resolution 32 --download"
        assert score_command("run", spec, str(folder)) == wanted
    gone = "shortflow evaluate run --features inception --reference IMAGES --resolution 32 --download"
    assert score_command("run", spec, str(tmp_path / "gone")) == gone
    # Latents that are made while the run goes on: its own images are the reference.
    source = str(photos(tmp_path / "photos"))
    assert score_command("run", spec, source) == "shortflow evaluate run --features inception --download"


def test_a_page_says_it_of_whatever_is_there() -> None:
    spec = DataSpec.fit(Dataset(name="p", samples=np.zeros((2, 3, 8, 8), np.uint8)), None)
    said = unscored(Path("run"), {"data": spec.to_dict()}, "./p")
    assert said == "It has not been scored: shortflow evaluate run --features inception --download."
    for damaged in (None, {}, {"data": 3}, {"data": {"name": "x"}}):
        assert unscored(Path("run"), damaged, "./p") == "It has not been scored: shortflow evaluate run."


def test_the_command_of_a_run_on_photographs_is_one_that_works(
    tmp_path: Path, shortflow: Shortflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that lacks here are the weights, which nobody fetches in a test."""
    source = str(photos(tmp_path / "photos"))
    run = made_run(tmp_path / "run", data=source, scored=False)
    assert "images are scored in the features of a classifier, and one is shipped for" in shortflow("evaluate", run).err
    monkeypatch.setattr("shortflow.evaluate.download_inception", lambda *arguments: None)
    command = shlex.split(score_command(run, load(source), source))
    said = shortflow(*command[1:], "-n", 4)
    assert (said.code, said.out) == (2, "")
    assert "Inception-v3: no weights were given" in said.err
