"""Runs on latents: photographs → latents → a class-consistent run → samples → pictures, and every mismatch refused."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import saved
from photographs import archive
from shortflow import hub, runs
from shortflow.cli import main
from shortflow.config import override, recipe_named
from shortflow.data import DataSpec
from shortflow.data.encoders import load_autoencoder
from shortflow.data.latents import open_latents
from shortflow.errors import CheckpointError, ConfigError, MetricError

SIDE, CLASSES, EACH = 16, 5, 4
TINY = [
    "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}",
    "train.batch=8",
    "train.group=4",
    "train.images=32",
    "train.log_every=1",
    "train.save_every=2",
    "train.preview_every=4",
]
SETTINGS = [word for setting in TINY for word in ("--set", setting)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip file of photographs in class folders."""
    return archive(tmp_path_factory.mktemp("photos") / "photos.zip", CLASSES, EACH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A folder with an autoencoder, latents of the photographs, and a run on them."""
    folder = tmp_path_factory.mktemp("latents")
    saved(folder / "vae")
    encoded(photographs, folder)
    trained(folder / "latents", folder / "run")
    return folder


def encoded(photographs: Path, folder: Path) -> Path:
    words = ["encode", photographs, "--encoder", folder / "vae", "--resolution", SIDE, "--out", folder / "latents"]
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words), "--shard-size", "7", "--batch", "4"])
    assert caught.value.code in (0, None)
    return folder / "latents"


def trained(latents: Path, out: Path, recipe: str = "esc", **others: Any) -> None:
    for _ in runs.training(*runs.configure(recipe, str(latents), settings=TINY, **others), out):
        pass


def copied(folder: Path, to: Path) -> Path:
    """The folder elsewhere, where the paths that its files name lead nowhere."""
    shutil.copytree(folder, to)
    return to


# -------------------------------------------------------------------------------------------------------- the whole way


def test_photographs_become_pictures_of_a_class_consistent_run(folder: Path, shortflow: Any, tmp_path: Path) -> None:
    run, model = runs.open_run(folder / "run")[0], hub.load(folder / "run", "cpu")
    assert (run.recipe.batches, model.step, model.spec.kind) == ("class-consistent", 4, "latents")
    assert model.spec.latent == open_latents(folder / "latents").latent
    assert (model.spec.shape, len(model.spec.classes)) == ((4, 4, 4), CLASSES)
    with Image.open(folder / "run/samples/step-00000004.png") as preview:
        assert preview.mode == "RGB"
    said = shortflow("sample", folder / "run", "--n", 6, "--out", tmp_path / "s.npy")
    assert (said.code, said.err) == (0, "")
    z, labels = runs.generate(model.flow, model.spec, 6)
    small = load_autoencoder(str(folder / "vae"))
    pixels = np.load(tmp_path / "s.npy")
    assert (pixels.shape, pixels.dtype) == ((6, 3, SIDE, SIDE), np.uint8)
    np.testing.assert_array_equal(pixels, small.decode(z))
    assert labels is not None
    assert np.load(tmp_path / "s-labels.npy").tolist() == labels.tolist()
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["autoencoder"] == small.sha256
    assert shortflow("sample", folder / "run", "--n", 6, "--single", "--out", tmp_path / "single").code == 0
    paths = sorted((tmp_path / "single").glob("*.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(paths[3])), pixels[3].transpose(1, 2, 0))
    for options in ((), ("--interpolate",)):
        assert shortflow("sample", folder / "run", "--n", 8, "--out", tmp_path / "g.png", *options).code == 0
        with Image.open(tmp_path / "g.png") as picture:
            assert picture.mode == "RGB"


def test_the_units_of_the_decoder_are_those_of_the_encoder(folder: Path) -> None:
    """Network units and back: the autoencoder sees the latents that it made."""
    found = open_latents(folder / "latents")
    for sigma_data in (None, 0.5):
        spec = DataSpec.fit(found, sigma_data)
        z = found.take(np.arange(8))
        np.testing.assert_allclose(spec.decode(spec.encode(z)), z, rtol=1e-5, atol=1e-5)


def test_latents_start_from_the_published_settings(folder: Path) -> None:
    run, dataset = runs.configure("meanflow", str(folder / "latents"))
    assert dataset.kind == "latents"
    network: Any = run.network
    assert (network.size, network.patch, run.data.flip, run.train.batch) == ("B", 1, True, 256)
    assert run.recipe == recipe_named("meanflow")
    assert not runs.configure("meanflow", str(folder / "latents"), settings=["data.flip=false"])[0].data.flip


def test_a_resumed_run_is_the_run_uninterrupted(folder: Path, tmp_path: Path) -> None:
    run, dataset = runs.configure("esc", str(folder / "latents"), settings=TINY)
    records = runs.training(run, dataset, tmp_path / "again")
    for record in records:
        if record.step == 3:
            records.close()  # type: ignore[attr-defined]
            break
    for _ in runs.training(*runs.open_run(tmp_path / "again"), tmp_path / "again", resume=True):
        pass
    a, b = (hub.load(path, "cpu").flow.state_dict() for path in (folder / "run", tmp_path / "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------- without the autoencoder


def test_without_the_autoencoder_latents_are_written(folder: Path, shortflow: Any, tmp_path: Path) -> None:
    here = copied(folder, tmp_path / "copy")
    (here / "vae").rename(here / "elsewhere")
    hidden = folder / "vae"
    hidden.rename(folder / "hidden")
    try:
        for options, name in (((), "s.npz"), (("--single",), "s.npz"), (("--interpolate",), "s.npz")):
            said = shortflow("sample", here / "run", "--n", 8, "--out", tmp_path / "s.png", *options)
            assert (said.code, said.err) == (0, "")
            assert "note: latents are not decoded: there is no autoencoder at" in said.out
            with np.load(tmp_path / name, allow_pickle=False) as found:
                latents, sha256 = found["latents"], str(found["encoder_sha256"])
                assert found["scale"].tolist() == [0.5] * 4
                assert ("labels" in found.files) == (options != ("--interpolate",))
            assert (latents.shape, latents.dtype) == ((8, 4, 4, 4), np.float32)
            (tmp_path / name).unlink()
        said = shortflow("sample", here / "run", "--n", 5, "--out", tmp_path / "l.npy")
        assert (said.code, np.load(tmp_path / "l.npy").shape) == (0, (5, 4, 4, 4))

        run, dataset = runs.configure("esc", str(here / "latents"), settings=TINY)
        assert any("previews are written as .npz" in note for note in runs.plan(run, dataset, tmp_path / "new").notes)
        with pytest.warns(UserWarning, match=r"previews are written as .npz: latents are not decoded"):
            for _ in runs.training(run, dataset, tmp_path / "new"):
                pass
        assert [path.name for path in (tmp_path / "new/samples").iterdir()] == ["step-00000004.npz"]
    finally:
        (folder / "hidden").rename(hidden)

    small = load_autoencoder(str(here / "elsewhere"))
    assert small.sha256 == sha256  # it is known wherever it lies
    said = shortflow("sample", here / "run", "--n", 8, "--encoder", here / "elsewhere", "--out", tmp_path / "d.npy")
    assert said.code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy")[:5], small.decode(np.load(tmp_path / "l.npy")))
    where = [f"data.encoder={here / 'elsewhere'}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run, dataset = runs.configure("esc", str(here / "latents"), settings=[*TINY, *where])
        for _ in runs.training(run, dataset, tmp_path / "found"):
            pass
    assert [path.name for path in (tmp_path / "found/samples").iterdir()] == ["step-00000004.png"]


def test_scores_of_latents_name_the_remedy(folder: Path, shortflow: Any) -> None:
    with pytest.raises(MetricError, match=r"this model makes latents, .*\(shortflow evaluate RUN --reference"):
        runs.score(hub.load(folder / "run", "cpu"), (1,))
    assert shortflow("evaluate", folder / "run").code == 2


# -------------------------------------------------------------------------------------------------------------- refused


def test_an_autoencoder_decodes_no_images(shortflow: Any, tmp_path: Path) -> None:
    trained(Path("digits"), tmp_path / "digits", "flow-matching")
    said = shortflow("sample", tmp_path / "digits", "--encoder", saved(tmp_path / "vae"))
    assert (said.code, "this model makes images, which no autoencoder decodes" in said.err) == (2, True)


def test_another_autoencoder_is_refused_by_name(folder: Path, shortflow: Any, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", seed=1)
    said = shortflow("sample", folder / "run", "--encoder", other)
    assert said.code == 2
    assert re.search(r"other is another autoencoder \(sha256 .{12}…\) than .*vae \(sha256 .{12}…\)", said.err)
    run, dataset = runs.configure("esc", str(folder / "latents"), settings=[*TINY, f"data.encoder={other}"])
    with pytest.raises(ConfigError, match=r"data.encoder: .* is another autoencoder"):
        runs.training(run, dataset, tmp_path / "run")
    wide = saved(tmp_path / "wide", latent_channels=6)
    assert "is another autoencoder" in shortflow("sample", folder / "run", "--encoder", wide).err
    with pytest.raises(ConfigError, match=r"data.encoder makes latents of images, and mixture is points; leave it out"):
        runs.configure("esc", "mixture", settings=[f"data.encoder={other}"])


def test_a_run_does_not_go_on_at_another_scale(folder: Path, tmp_path: Path) -> None:
    here = copied(folder, tmp_path / "copy")
    trained(here / "latents", here / "own")
    runs.rescaled(here / "latents", [0.18125])
    run, dataset = runs.open_run(here / "own")
    longer = override(run, ["train.images=64"])
    with pytest.raises(CheckpointError, match=r"scale of the run is 0.5, that of the data is 0.18125"):
        runs.training(longer, dataset, here / "own", resume=True)
    runs.rescaled(here / "latents", [0.5])
    assert runs.open_run(here / "own")[1].latent == hub.load(here / "own", "cpu").spec.latent


@pytest.mark.parametrize("role", ["teacher", "init_from"])
def test_models_of_other_latents_are_refused_with_the_command_that_mends_it(
    folder: Path, tmp_path: Path, role: str, shortflow: Any
) -> None:
    """The trap of 0.18125 against 0.18215."""
    here = copied(folder, tmp_path / "copy")
    runs.rescaled(here / "latents", [0.18125])
    trained(here / "latents", here / "model", "flow-matching")
    runs.rescaled(here / "latents", [0.18215])
    recipe = "sct-distilled" if role == "teacher" else "meanflow"
    with pytest.raises(ConfigError) as caught:
        runs.configure(recipe, str(here / "latents"), settings=TINY, **{role: str(here / "model")})
    assert f"the scale of {role} {here / 'model'} is 0.18125, that of photos is 0.18215" in str(caught.value)
    remedy = re.search(r"shortflow (encode .* --scale 0.18125 --shift 0.0)", str(caught.value))
    assert remedy is not None
    said = shortflow(*remedy[1].split())
    assert (said.code, said.err) == (0, "")
    assert "scale 0.18125" in said.out
    runs.configure(recipe, str(here / "latents"), settings=TINY, **{role: str(here / "model")})


def test_a_teacher_of_images_is_no_teacher_of_latents(folder: Path, tmp_path: Path) -> None:
    trained(Path("digits"), tmp_path / "digits", "flow-matching")
    with pytest.raises(ConfigError, match=r"was trained on digits \(shape \(1, 8, 8\)\)"):
        runs.configure("sct-distilled", str(folder / "latents"), settings=TINY, teacher=str(tmp_path / "digits"))


def test_commands_that_say_too_little_or_too_much(folder: Path, shortflow: Any, photographs: Path) -> None:
    latents = folder / "latents"
    cases = {
        (photographs,): "give the autoencoder and a folder for the latents",
        (photographs, "--encoder", folder / "vae"): "give the autoencoder and a folder",
        (latents,): "holds finished latents; give --scale or --shift to use them in other units",
        (latents, "--scale", "1", "--encoder", "x"): "and leave out --encoder",
        (latents, "--scale", "many"): "--scale: expected numbers",
        (latents, "--scale", "1,2"): "expected one number or 4, one for each channel, got 2",
        (photographs, "--encoder", folder / "vae", "--out", folder / "x", "--resolution", 30): "take 28 or 32",
    }
    for words, message in cases.items():
        said = shortflow("encode", *words)
        assert (said.code, message in said.err) == (2, True), said
    assert not (folder / "x").exists()
