"""Latents that are made while a run goes on: what a store of them would have given, in batches, runs and models."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import saved
from commands import Shortflow
from shortflow import hub, runs
from shortflow.data import DataSpec, load
from shortflow.data import encoded as encoded_module
from shortflow.data.encoded import Encoded
from shortflow.data.encoders import load_autoencoder
from shortflow.data.latents import open_latents
from shortflow.data.sources import open_source
from shortflow.errors import CheckpointError, ConfigError, DataError, MetricError
from shortflow.runs import advice

SIDE = 16
TINY = [
    "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}",
    "train.batch=8",
    "train.group=4",
    "train.images=32",
    "train.log_every=1",
    "train.save_every=2",
    "train.preview_every=4",
    "trackers=[]",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/shortflow"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in three classes, an autoencoder, and a float32 store of latents made of both."""
    folder, random = tmp_path_factory.mktemp("encoded"), np.random.default_rng(0)
    for k in range(13):
        file = folder / f"photos/{'abc'[k % 3]}/{k:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(20 + k, 24, 3), dtype=np.uint8)).save(file)
    saved(folder / "vae")
    autoencoder = load_autoencoder(str(folder / "vae"))
    source = open_source(str(folder / "photos"), resolution=SIDE)
    runs.encode(
        runs.Images(source, autoencoder),
        autoencoder,
        folder / "latents",
        settings=runs.EncodeSettings(batch=5, shard=6, dtype="float32"),
    )
    return folder


def on_the_fly(folder: Path, *settings: str, recipe: str = "esc", **others: Any) -> Any:
    given = [*TINY, f"data.encoder={folder / 'vae'}", *settings]
    return runs.configure(recipe, str(folder / "photos"), resolution=SIDE, settings=given, **others)


def stored(folder: Path, *settings: str, recipe: str = "esc", **others: Any) -> Any:
    return runs.configure(recipe, str(folder / "latents"), settings=[*TINY, *settings], **others)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("recipe", ["esc", "flow-matching"])
def test_batches_are_those_of_a_store(folder: Path, recipe: str, flip: bool) -> None:
    """Image or mirror, mean, deviation, noise, labels and units, in class-consistent and in plain batches."""
    (one, made), (other, kept) = (each(folder, f"data.flip={flip}", recipe=recipe) for each in (on_the_fly, stored))
    assert isinstance(made.samples, Encoded)
    assert (made.kind, made.shape, made.classes, made.name) == ("latents", kept.shape, kept.classes, kept.name)
    assert made.samples.shape == kept.samples.shape
    specs = [DataSpec.fit(dataset) for dataset in (made, kept)]
    assert specs[0] == specs[1]
    assert specs[0].to_dict() == specs[1].to_dict()
    pair = [runs.running.batches(run, data, specs[0], None) for run, data in ((one, made), (other, kept))]
    for step in (0, 5, 3):
        found, wanted = (batches(step) for batches in pair)
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.label, wanted.label)  # type: ignore[arg-type]
        assert torch.equal(found.x, pair[0](step).x)  # whatever was asked for before
    plain = replace(made.samples, images=made.samples.images[:3]).shape
    assert plain == (3, 2, 2, 4, 4, 4)


def test_the_images_of_a_run_are_its_reference(folder: Path) -> None:
    """Where latents are made while the run goes on; a store has none."""

    def model(made: Any) -> hub.Model:
        run, dataset = made
        spec = DataSpec.fit(dataset)
        return hub.Model(flow=hub.build_flow(run, spec), spec=spec, run=run, images=0, step=0, path=folder / "none")

    found = runs.training_images(model(on_the_fly(folder)))
    images = load(str(folder / "photos"), resolution=SIDE).samples
    np.testing.assert_array_equal(np.concatenate(list(found.read(0, 13))), images)
    with pytest.raises(MetricError, match="was trained on latents, which are no images to compare with"):
        runs.training_images(model(stored(folder)))


def test_parts_of_a_batch_are_the_batch(folder: Path) -> None:
    """Whoever encodes them: processes share the rows of a step, and the noise belongs to rows."""
    run, dataset = on_the_fly(folder, recipe="flow-matching")
    spec = DataSpec.fit(dataset)
    whole = runs.running.batches(run, dataset, spec, None)(2)
    halves = [runs.running.batches(run, dataset, spec, None, range(k, k + 1), 2)(2) for k in (0, 1)]
    torch.testing.assert_close(torch.cat([half.x for half in halves]), whole.x, rtol=1e-5, atol=1e-6)


def test_grey_images_get_the_channels_of_the_autoencoder(folder: Path) -> None:
    autoencoder = load_autoencoder(str(folder / "vae"))
    grey = np.random.default_rng(0).integers(256, size=(2, 1, SIDE, SIDE), dtype=np.uint8)
    rows, sides = np.array([0, 1, 1]), np.array([0, 0, 1])
    found = Encoded(images=grey, autoencoder=autoencoder)[rows, sides]
    wanted = Encoded(images=np.repeat(grey, 3, axis=1), autoencoder=autoencoder)[rows, sides]
    np.testing.assert_array_equal(found, wanted)
    mean, std = autoencoder.encode(np.repeat(grey[1:, :, :, ::-1], 3, axis=1))
    np.testing.assert_allclose(found[2], torch.stack([mean[0], std[0]]).numpy(), rtol=1e-5, atol=1e-6)


def test_an_autoencoder_without_a_spread(folder: Path, tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", gaussian=False)
    run, dataset = on_the_fly(folder, f"data.encoder={plain}")
    assert dataset.samples.shape == (13, 2, 1, 4, 4, 4)
    z = dataset.take(np.arange(4), np.array([False, True, False, True]))
    autoencoder = load_autoencoder(str(plain))
    (wanted,) = autoencoder.encode(np.ascontiguousarray(dataset.samples.images[1:2, ..., ::-1]))
    np.testing.assert_allclose(z[1], wanted[0].numpy(), rtol=1e-5, atol=1e-6)
    assert run.data.encoder == str(plain)


def test_mean_and_deviation_are_measured_where_they_are_asked_for(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the store where all images are taken; kept, so that a run that goes on has the same units."""
    _, dataset = on_the_fly(folder)
    assert not (cache / "measured").exists()
    wanted = open_latents(folder / "latents").measured
    assert wanted is not None
    np.testing.assert_allclose(dataset.samples.measured, wanted, rtol=1e-5, atol=1e-6)
    spec, known = (DataSpec.fit(each, 0.5) for each in (dataset, open_latents(folder / "latents")))
    assert (spec.scale, spec.shift) == (pytest.approx(known.scale, rel=1e-5), pytest.approx(known.shift, abs=1e-5))
    (kept,) = (cache / "measured").iterdir()
    monkeypatch.setattr(Encoded, "_moments", None)
    assert DataSpec.fit(dataset, 0.5) == spec
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    kept.write_text("[[1")
    assert DataSpec.fit(dataset, 0.5) == spec  # measured anew
    monkeypatch.setattr(encoded_module, "MEASURED", 4)
    some = Encoded(images=dataset.samples.images, autoencoder=dataset.samples.autoencoder)
    of_four = Encoded(images=dataset.samples.images[[0, 4, 8, 12]], autoencoder=dataset.samples.autoencoder)
    np.testing.assert_allclose(some.measured, of_four.measured, rtol=1e-5)


def trained(run: Any, dataset: Any, out: Path, stop: int | None = None, **options: Any) -> Path:
    records = runs.training(run, dataset, out, **options)
    for record in records:
        if record.step == stop:
            records.close()  # type: ignore[attr-defined]
            break
    return out


def test_a_run_is_resumed_sampled_and_goes_on_with_a_store(folder: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    whole = trained(*on_the_fly(folder), tmp_path / "whole")
    trained(*on_the_fly(folder), tmp_path / "again", stop=3)
    trained(*runs.open_run(tmp_path / "again"), tmp_path / "again", resume=True)
    a, b = (hub.load(path, "cpu") for path in (whole, tmp_path / "again"))
    weights, others = a.flow.state_dict(), b.flow.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert a.spec.latent == open_latents(folder / "latents").latent
    with Image.open(whole / "samples/step-00000004.png") as preview:
        assert preview.mode == "RGB"
    said = shortflow("sample", whole, "--n", 4, "--out", tmp_path / "s.npy")
    assert (said.code, np.load(tmp_path / "s.npy").shape) == (0, (4, 3, SIDE, SIDE))
    # Its model is one of these latents, wherever they come from.
    runs.configure("meanflow", str(folder / "latents"), settings=TINY, init_from=str(whole))
    on_the_fly(folder, recipe="meanflow", init_from=str(trained(*stored(folder), tmp_path / "stored")))


def test_the_same_losses_with_and_without_a_store(folder: Path, tmp_path: Path) -> None:
    losses = []
    for name, of in (("made", on_the_fly), ("kept", stored)):
        run, dataset = of(folder)
        losses.append([record.loss for record in runs.training(run, dataset, tmp_path / name)])
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_other_units_are_refused_with_the_command_that_makes_a_store(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "latents", tmp_path / "latents")
    runs.rescaled(tmp_path / "latents", [0.18125])
    settings = [*TINY, "train.images=8"]
    model = trained(*runs.configure("flow-matching", str(tmp_path / "latents"), settings=settings), tmp_path / "model")
    with pytest.raises(ConfigError) as caught:
        on_the_fly(folder, recipe="meanflow", init_from=str(model))
    assert "is 0.18125, that of photos is 0.5" in str(caught.value)
    assert f"shortflow encode {folder / 'photos'} --encoder {folder / 'vae'} --out LATENTS --scale 0.18125" in str(
        caught.value
    )
    other = saved(tmp_path / "other", seed=1)
    run = trained(*on_the_fly(folder), tmp_path / "run")
    longer = on_the_fly(folder, f"data.encoder={other}", "train.images=64")
    with pytest.raises(CheckpointError, match=r"the autoencoder of the run is .*vae .*, that of the data is .*other"):
        runs.training(*longer, run, resume=True)


def test_the_network_budget_and_flips_are_those_for_latents(folder: Path) -> None:
    run, _ = runs.configure(
        "meanflow", str(folder / "photos"), resolution=SIDE, settings=[f"data.encoder={folder / 'vae'}"]
    )
    network: Any = run.network
    assert (network.size, network.patch, run.data.flip, run.train.batch) == ("B", 1, True, 256)
    plain, _ = runs.configure("meanflow", str(folder / "photos"), resolution=SIDE)
    assert (plain.data.flip, plain.train.batch) == (False, 128)


def test_what_cannot_be_encoded_is_refused(folder: Path, tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "side": ({"resolution": 18}, "which do not divide images of side 18; take 16 or 20"),
        "nowhere": ({"settings": ["data.encoder=./nowhere"]}, "there is no autoencoder at './nowhere'"),
        "channels": ({"settings": [f"data.encoder={saved(tmp_path / 'five', in_channels=5)}"]}, "of 5 channels, got 3"),
    }
    for given, message in cases.values():
        options = {"resolution": SIDE, "settings": [f"data.encoder={folder / 'vae'}"], **given}
        with pytest.raises(DataError, match=message):
            runs.configure("esc", str(folder / "photos"), **options)


# -------------------------------------------------------------------------------------------------------------- advice


def test_the_cost_is_told_beside_that_of_a_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shortflow: Shortflow
) -> None:
    monkeypatch.setattr(Encoded, "seconds", lambda self: 0.25)
    run, dataset = on_the_fly(folder, "train.images=9600")
    (note,) = [each for each in runs.notes(run, dataset) if each.startswith("images are encoded")]
    assert note == (
        "images are encoded while training: 9,600 of them at 250 ms each (cpu) take 40.0 min in all. A store of "
        f"latents, of each image and its mirror, takes 6.5 s once: shortflow encode {folder / 'photos'} --encoder "
        f"{folder / 'vae'} --resolution 16 --out LATENTS, and train on --data LATENTS"
    )
    command = note.partition("once: shortflow ")[2].partition(", and")[0].replace("LATENTS", str(tmp_path / "out"))
    assert shortflow(*command.split()).code == 0
    run, dataset = on_the_fly(folder, "train.images=24")
    assert any(note.endswith("no more than a store of latents would") for note in runs.notes(run, dataset))
    assert not any("encoded while" in note for note in runs.notes(*stored(folder)))


def test_encoding_is_timed(folder: Path) -> None:
    assert 0 < on_the_fly(folder)[1].samples.seconds() < 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (119.0, "119 s"), (120.0, "2.0 min"), (7200.0, "2.0 h"), (172_800.0, "2.0 days")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert advice._time(seconds) == text


def squares(n: int, tmp_path: Path, classes: bool = False) -> str:
    np.savez(
        tmp_path / "few.npz",
        images=np.random.default_rng(0).integers(256, size=(n, 8, 8), dtype=np.uint8),
        **({"labels": np.arange(n) % 2} if classes else {}),
    )
    return str(tmp_path / "few.npz")


def few(run: Any, dataset: Any) -> list[str]:
    return [note for note in runs.notes(run, dataset) if "networks begin to repeat" in note]


def test_few_images_are_told_with_settings_that_exist(tmp_path: Path) -> None:
    """Each of them changes the run; with all of them nothing is left to say."""
    path = squares(700, tmp_path)
    run, dataset = runs.configure("esc", path)
    (note,) = few(run, dataset)
    assert note.startswith(
        "few has 700 images, and this run sees each 18,285 times: below 10,000 images and above 200 times networks "
        "begin to repeat what they have seen. More images help most; then --set train.images=140000, --set data.flip"
    )
    settings = [word.partition(" ")[0].rstrip(",") for word in note.split("--set ")[1:]]
    assert settings == [
        "train.images=140000",
        "data.flip=true",
        "network.dropout=0.1",
        "network.width=128",
        "recipe.optimizer.weight_decay=0.01",
    ]
    for setting in settings:
        assert runs.configure("esc", path, settings=[setting])[0] != run
    assert few(*runs.configure("esc", path, settings=settings)) == []
    (left,) = few(*runs.configure("esc", path, settings=settings[1:3]))
    assert "data.flip" not in left
    assert "network.dropout" not in left


def test_the_thresholds(tmp_path: Path) -> None:
    path = squares(500, tmp_path)
    budgets = [[f"train.images={n}", f"batch={batch}"] for n, batch in ((100_000, 100), (100_100, 100), (100_200, 200))]
    told = [few(*runs.configure("esc", path, settings=[*each, "group=50"])) for each in budgets]
    assert [len(each) for each in told] == [0, 1, 1]
    # A thousand steps are no fewer.
    assert ["train.images=" in note for (note,) in told[1:]] == [True, False]
    many = load(squares(10_000, tmp_path))
    run = runs.configure("esc", path)[0]
    assert few(run, many) == []
    assert len(few(run, many.subset(slice(9_999)))) == 1
    for recipe, data in (("esc", "mixture"), ("esc", "digits")):  # points; and a preset that is meant so
        assert few(*runs.configure(recipe, data)) == []


def test_other_networks_have_other_words(tmp_path: Path) -> None:
    path = squares(500, tmp_path)
    unet = few(*runs.configure("esc", path, settings=["network=UNetConfig", "network.channels=128"]))
    assert "--set network.channels=64" in unet[0]
    narrow = few(*runs.configure("esc", path, settings=["network.width=64"]))
    assert "network.width" not in narrow[0]


# ------------------------------------------------------------------------------------------------------ damaged images


def test_damaged_images_are_listed_beside_the_run(folder: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(folder / "photos", photos)
    (photos / "a/03.png").write_bytes((photos / "a/03.png").read_bytes()[:200])
    (photos / "b/04.png").write_bytes(b"words")
    words = ["train", "esc", "--data", photos, "--resolution", SIDE]
    words += [word for setting in (*TINY, "network.patch=4", "data.flip=false") for word in ("--set", setting)]
    refused = shortflow(*words, "--out", tmp_path / "run")
    assert refused.code == 2
    assert "2 of 13 images cannot be read: a/03.png (image file is truncated" in refused.err
    assert "b/04.png (no image); replace or remove these files, or leave them out with --set data.corrupt=skip" in (
        refused.err
    )
    assert not (tmp_path / "run").exists()
    dry = shortflow(*words, "--set", "data.corrupt=skip", "--out", tmp_path / "run", "--dry-run")
    assert (dry.code, "note: 2 of 13 images cannot be read and are left out: a/03.png" in dry.out) == (0, True)
    said = shortflow(*words, "--set", "data.corrupt=skip", "--out", tmp_path / "run")
    assert said.code == 0
    assert "on photos (11 samples, 3 classes)" in said.out
    lines = (tmp_path / "run/left-out.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a/03.png", "b/04.png"]
    assert lines[1] == "b/04.png\tno image"
    again = shortflow("train", "--resume", "--out", tmp_path / "run")
    assert (again.code, "This run is complete" in again.out) == (0, True)
    wrong = shortflow(*words, "--set", "data.corrupt=ignore", "--out", tmp_path / "x")
    assert (wrong.code, "refuse" in wrong.err and "skip" in wrong.err) == (2, True)


def test_encoding_has_the_same_words(folder: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    words = ["encode", folder / "photos", "--encoder", folder / "vae", "--resolution", SIDE, "--out", out]
    assert shortflow(*words, "--label", "none").code == 0
    assert open_latents(out).labels is None
    said = shortflow(*words, "--label", "kind")
    assert (said.code, "data.label=kind names a field of shards or tables" in said.err) == (2, True)


def test_classes_can_be_left_out(folder: Path) -> None:
    run, dataset = runs.configure("esc", str(folder / "photos"), resolution=SIDE, settings=["data.label=none"])
    assert dataset.labels is None
    assert runs.notes(run, dataset)[0].startswith("photos has no classes: guidance, label dropout")
