"""The whole way on photographs: encode → train → sample → decode → evaluate; the last without keeping an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import autoencoders
from autoencoders import saved
from commands import Shortflow
from launcher import launched
from photographs import archive
from reports import Reader, value
from shortflow import hub, runs
from shortflow.data.encoders import load_autoencoder
from shortflow.errors import ConfigError
from shortflow.evaluate import save_program
from shortflow.evaluate.tally import Tally

FACTOR, CLASSES, EACH = 8, 5, 4
slow = pytest.mark.slow


def tiny(side: int) -> list[str]:
    """Settings of a run on latents of images of this side."""
    patch = 2 if side < 256 else 4
    return [
        f"network={{kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2, patch: {patch}}}",
        "train.batch=8",
        "train.group=4",
        "train.images=32",
        "train.preview_every=4",
    ]


def travelled(shortflow: Shortflow, folder: Path, side: int, labels: bool = True) -> Path:
    """FOLDER/{photos.zip, vae, latents, run}, each made by its command."""
    photos, latents = archive(folder / "photos.zip", CLASSES, EACH, labels), folder / "latents"
    saved(folder / "vae", factor=FACTOR, scaling_factor=0.18215)
    said = shortflow("encode", photos, "--encoder", folder / "vae", "--resolution", side, "--out", latents)
    assert (said.code, said.err) == (0, "")
    settings = [f"--set={setting}" for setting in tiny(side)]
    said = shortflow("train", "esc", "--data", latents, "--out", folder / "run", *settings)
    assert (said.code, said.err) == (0, "")
    words = f"--features inception --reference {photos} --resolution {side} --download"
    assert said.out.splitlines()[-1] == f"Scores:  shortflow evaluate {folder}/run {words}"
    return folder / "run"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    path = tmp_path_factory.mktemp("program") / "four.pt2"
    save_program(path, network, name="four", size=16)
    return path


def record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("side", "labels"),
    [
        (32, True),
        (32, False),
        pytest.param(256, True, marks=slow),
        pytest.param(512, True, marks=slow),
        pytest.param(512, False, marks=slow),
    ],
)
def test_photographs_become_figures(
    side: int, labels: bool, shortflow: Shortflow, tmp_path: Path, program: Path
) -> None:
    """What is scored while it is drawn is what is written, read and scored: to the last digit."""
    run, vae = travelled(shortflow, tmp_path, side, labels), load_autoencoder(str(tmp_path / "vae"))
    model = hub.load(run, "cpu")
    assert model.spec.shape == (4, side // FACTOR, side // FACTOR)
    assert model.run.recipe.batches == ("class-consistent" if labels else "shuffled")
    assert len(model.spec.classes) == (CLASSES if labels else 0)
    with Image.open(run / "samples/step-00000004.png") as preview:
        assert preview.mode == "RGB"

    said = shortflow("sample", run, "--n", 12, "--steps", 2, "--seed", 3, "--out", tmp_path / "s.npy")
    assert (said.code, said.err) == (0, "")
    pixels = np.load(tmp_path / "s.npy")
    assert (pixels.shape, pixels.dtype) == ((12, 3, side, side), np.uint8)
    z = runs.generate(model.flow, model.spec, 12, steps=2, seed=3)[0]
    np.testing.assert_array_equal(pixels, vae.decode(z))

    against = ("--reference", tmp_path / "photos.zip", "--resolution", side, "--features", program)
    said = shortflow("evaluate", run, *against, "--steps", "1,2", "-n", 12, "--seed", 3)
    assert (said.code, said.err) == (0, "")
    (place,) = run.glob("evaluation-four@photos-????????.json")
    lines, found = said.out.splitlines(), record(place)
    assert lines[0].split() == ["FD-12", "precision", "recall", "KID", "N"]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["1 step", "2 steps"]
    assert f"decoded by {tmp_path}/vae {vae.sha256[:12]}" in said.out
    assert shortflow("evaluate", tmp_path / "s.npy", *against).code == 0
    assert found["rows"]["2 steps"] == record(tmp_path / f"s.npy.{place.name}")["rows"]["s.npy"]
    made = found["made"]
    assert made["autoencoder"] == {"name": str(tmp_path / "vae"), "sha256": vae.sha256}
    assert made["latents"] == {"scale": [0.18215] * 4, "shift": [0.0] * 4}
    assert (made["seed"], made["sha256"]) == (3, hub.fingerprint(run / "model.safetensors"))
    assert found["resolution"] == [side, side]
    assert (found["reference"]["n"], found["reference"]["formats"]) == (CLASSES * EACH, {"jpeg": CLASSES * EACH})
    assert not [path for path in run.iterdir() if path.name.startswith(".evaluation")]  # no chunk is left

    features = place.stem.removeprefix("evaluation-")
    assert f"1 step, {features}   FD-12 {found['rows']['1 step']['distance']:.2f}, " in shortflow("status", run).out
    said = shortflow("report", run, "--no-draw", "--out", tmp_path / "page.html")
    assert (said.code, said.err) == (0, "")
    page = Reader.of((tmp_path / "page.html").read_text())
    head, *body = page.tables["Scores by number of steps"]
    assert (head[:2], head[-1]) == (["", "FD-12"], "N")
    assert [(row[0], row[-1]) for row in body] == [("1 step", "12"), ("2 steps", "12")]
    assert value(body[0][1]) == pytest.approx(found["rows"]["1 step"]["distance"], rel=1e-3)
    assert f"reference {tmp_path}/photos.zip, {CLASSES * EACH} images" in page.text
    assert "not been scored" not in page.text


# ------------------------------------------------------------------------------------------------- scores of latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of photographs and a run on them."""
    folder = tmp_path_factory.mktemp("photographs")
    saved(folder / "vae", factor=FACTOR)
    source = runs.Images(runs_source(archive(folder / "photos.zip", CLASSES, EACH)), load(folder / "vae"))
    runs.encode(source, load(folder / "vae"), folder / "latents")
    for _ in runs.training(*runs.configure("esc", str(folder / "latents"), settings=tiny(16)), folder / "run"):
        pass
    return folder


def runs_source(path: Path) -> Any:
    from shortflow.data.sources import open_source

    return open_source(str(path), "train", 16)


def load(folder: Path) -> Any:
    return load_autoencoder(str(folder))


def scored(folder: Path, program: Path) -> tuple[object, ...]:
    shared = ("--reference", folder / "photos.zip", "--resolution", 16, "--features", program)
    return ("evaluate", folder / "run", *shared, "--steps", 1, "-n", 1100)


def test_an_interrupted_score_of_latents_goes_on(
    folder: Path, program: Path, shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the chunk where it stopped, and ends with the figures of one that was left alone."""
    arguments = scored(folder, program)
    assert shortflow(*arguments, "--out", tmp_path / "whole.json").code == 0
    real, done = Tally.of, []

    def of(batches: Any, extractor: Any, plan: Any, first: int, last: int) -> Tally:
        if plan.n == 1100 and len(done) == stop:
            raise KeyboardInterrupt
        done.append((plan.n, first))
        return real(batches, extractor, plan, first, last)

    monkeypatch.setattr(Tally, "of", of)
    stop = 2  # the reference is one chunk
    said = shortflow(*arguments, "--out", tmp_path / "again.json")
    assert (said.code, done[0]) == (130, (20, 0))
    before, stop = list(done), 99
    assert shortflow(*arguments, "--out", tmp_path / "again.json").code == 0
    assert len(done) == len(set(done)) > len(before)  # nothing was computed twice
    assert record(tmp_path / "again.json") == record(tmp_path / "whole.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "whole.json"]


@slow
def test_two_processes_give_the_figures_of_one(
    folder: Path, program: Path, shortflow: Shortflow, tmp_path: Path
) -> None:
    arguments = (*scored(folder, program), "--import", autoencoders.__file__)
    assert shortflow(*scored(folder, program), "--out", tmp_path / "1.json").code == 0
    launched(2, *arguments, "--out", tmp_path / "2.json")
    assert record(tmp_path / "1.json") == record(tmp_path / "2.json")


def test_scores_of_latents_need_their_own_autoencoder(
    folder: Path, program: Path, shortflow: Shortflow, tmp_path: Path
) -> None:
    def refused(message: str, *arguments: object) -> None:
        said = shortflow("evaluate", *arguments)
        assert (said.code, said.out) == (2, "")
        assert message in said.err

    run, against = folder / "run", ("--reference", folder / "photos.zip", "--resolution", 16, "--features", program)
    other = saved(tmp_path / "other", seed=1, factor=FACTOR)
    refused("other is another autoencoder (sha256 ", run, *against, "--encoder", other)
    refused("shortflow evaluate RUN --reference STATS|IMAGES --encoder FOLDER", run)
    refused("was trained on latents, which are no images to compare with; give", run, "--features", program)
    refused("--encoder: has no meaning for images that are there", folder / "photos.zip", *against, "--encoder", other)
    (folder / "vae").rename(folder / "hidden")
    try:
        refused("latents are not decoded: there is no autoencoder at", run, *against)
        refused("Give the folder of the autoencoder", run, *against)
        assert shortflow("evaluate", run, *against, "--encoder", folder / "hidden", "-n", 4, "--steps", 1).code == 0
    finally:
        (folder / "hidden").rename(folder / "vae")
    with pytest.raises(ConfigError, match="is another autoencoder"):
        runs.drawn_images(hub.load(run, "cpu"), (1,), 10, autoencoder=load(other))
