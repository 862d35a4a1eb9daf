"""Pictures of runs on latents and of runs that are told vectors: real images beside samples, and nearest neighbours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photolatents import SIDE, TINY, photographs
from shortflow import hub, runs
from shortflow.data import load
from shortflow.data.encoders import load_autoencoder
from shortflow.report import report_page
from shortflow.runs import illustrating
from test_conditions_runs import WIDTH, conditions, folder, trained
from test_illustrating import cells_of


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(illustrating, "step_cost", lambda recipe: 3.25)
    monkeypatch.setattr(illustrating, "SAMPLES", 12)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(params=["on the way", "stored"])
def run(request: pytest.FixtureRequest, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on latents of the same images, made while it is trained, or stored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings, source, side = [*TINY, f"data.encoder={here / 'vae'}"], here / "latents", None
    if request.param == "on the way":
        settings, source, side = [*settings, "data.corrupt=skip"], here / "photos", SIDE
    config, data = runs.configure("esc", str(source), resolution=side, settings=settings)
    for _ in runs.training(config, data, tmp_path / "run"):
        pass
    return tmp_path / "run"


def index_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "pictures/pictures.json").read_text())


def test_real_images_stand_beside_samples_of_latents(run: Path, here: Path) -> None:
    """As they are where the run has them, decoded where it has their latents only; a class a column."""
    runs.illustrate(run, steps=[1])
    real, held_out = index_of(run)["real"], load(str(here / "photos"), "test", resolution=SIDE)
    stored = hub.load(run).run.data.source.endswith("latents")
    assert real["of"] == ("held out, decoded from latents" if stored else "held out")
    assert (real["columns"], index_of(run)["classes"]) == (2, ["a", "b"])
    shown = cells_of(run / "pictures/real.png", 2, SIDE, 2)
    assert held_out.labels is not None
    want = np.stack([held_out.samples[held_out.labels == k % 2][k // 2] for k in range(len(shown))])
    if stored:
        latents = load(str(here / "latents"), "test")
        assert latents.labels is not None
        places = [np.flatnonzero(latents.labels == k % 2)[k // 2] for k in range(len(shown))]
        want = load_autoencoder(str(here / "vae")).decode(latents.take(np.array(places)))
    assert np.array_equal(shown, want[:, 0])


def test_neighbours_of_latents_are_the_nearest(run: Path, here: Path) -> None:
    """Of images by their pixels, of stored latents in their own units, and shown as images."""
    runs.illustrate(run, steps=[1])
    near, model = index_of(run)["neighbours"], hub.load(run)
    stored = near["of"] == "latents"
    decoder = load_autoencoder(str(here / "vae"))
    drawn, _ = runs.generate(model.flow, model.spec, 12, autoencoder=None if stored else decoder)
    train = load(str(here / "latents")) if stored else load(str(here / "photos"), resolution=SIDE, corrupt="skip")
    among = np.asarray(train.take(np.arange(40)) if stored else train.samples[:])
    scale = 1.0 if stored else 255.0
    distances = np.sqrt(np.square((drawn[:, None].astype(float) - among[None]) / scale).mean((2, 3, 4)))
    assert near["median"] == pytest.approx(np.median(distances.min(1)), rel=1e-4)
    assert (near["train"], near["held_out"], near["nearest"]) == (40, 12, 5)
    grid = cells_of(run / "pictures/neighbours.png", near["columns"], SIDE, 2)
    images = decoder.decode(among) if stored else among
    samples = decoder.decode(drawn) if stored else drawn
    for k in range(near["columns"]):
        assert np.array_equal(grid[k], samples[k, 0])
        assert np.array_equal(grid[near["columns"] + k], images[distances[k].argmin(), 0])
    page = report_page([run])
    assert ("in units of the stored latents" if stored else "in units of the pixel range") in page


def test_a_run_that_is_told_vectors_has_pictures(tmp_path: Path) -> None:
    """Samples are told what the real images are told, column by column; so are interpolations and neighbours."""
    data = folder(tmp_path / "data", conditions((WIDTH,)))
    model = trained(data, tmp_path / "run", "esc")
    runs.illustrate(tmp_path / "run", steps=[1])
    index, held_out = index_of(tmp_path / "run"), load(str(data), "test")
    assert any("Samples are told, column by column" in note for note in index["notes"])
    drawn = index["samples"][0]
    columns = drawn["columns"]
    assert held_out.conditions is not None
    shown = cells_of(tmp_path / "run/pictures" / drawn["file"], columns, 8, 5)
    told = held_out.told(np.arange(columns))
    want, _ = runs.generate(model.flow, model.spec, len(shown), condition=told)
    assert np.array_equal(shown, want[:, 0])
    real = cells_of(tmp_path / "run/pictures/real.png", columns, 8, 5)
    assert np.array_equal(real, held_out.samples[:columns, 0])
    assert {"interpolation", "neighbours"} <= set(index)
    assert not any(note.startswith("no ") for note in index["notes"])


def test_images_without_the_colours_of_their_autoencoder_have_no_neighbours(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey digits on latents of a decoder with three channels: everything else is drawn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, data = runs.configure("esc", "digits", settings=[*TINY, f"data.encoder={here / 'vae'}"])
    for _ in runs.training(config, data, tmp_path / "run"):
        pass
    runs.illustrate(tmp_path / "run", steps=[1])
    index = index_of(tmp_path / "run")
    assert "no neighbours: samples have the shape (3, 8, 8), the data (1, 8, 8)" in index["notes"]
    assert {"samples", "real", "interpolation"} <= set(index)
