"""From images to latents on disk: values, resumption to the byte, several processes, and what is refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

import autoencoders
from autoencoders import saved
from shortflow import data
from shortflow.arrays import open_array
from shortflow.config import DataConfig
from shortflow.data.encoders import Autoencoder, load_autoencoder
from shortflow.data.latents import open_latents, read_meta
from shortflow.data.lmdblatents import LmdbLatents
from shortflow.data.sources import open_source
from shortflow.errors import CheckpointError, ConfigError, DataError
from shortflow.lock import RunLock
from shortflow.runs import EncodeSettings, Images, Stored, encode, rescaled, storing
from shortflow.runs.loading import load_data
from test_data_lmdb import FLIP, MOMENTS, content

N, SIDE = 22, 16
SETTINGS = EncodeSettings(batch=3, shard=8, dtype="float32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in two classes, the last one grey."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for k in range(N):
        path = folder / "ab"[k % 2] / f"{k:02d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if k == N - 1 else pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    return load_autoencoder(str(saved(tmp_path_factory.mktemp("autoencoder"))))


def made(photos: Path, small: Autoencoder, out: Path, settings: EncodeSettings = SETTINGS, **options: Any) -> Any:
    source = open_source(str(photos), resolution=SIDE)
    return encode(Images(source, small), small, out, settings=settings, **options)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --------------------------------------------------------------------------------------------------------------- values


def test_moments_are_those_of_a_direct_encoding_of_image_and_mirror(
    photos: Path, small: Autoencoder, tmp_path: Path
) -> None:
    result = made(photos, small, tmp_path)
    pixels, found = data.load(str(photos), resolution=SIDE), open_latents(tmp_path, verify=True)
    assert pixels.labels is not None
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, pixels.labels)
    assert (found.classes, found.name, len(found)) == (pixels.classes, photos.name, N)
    moments = found.samples[:]
    for side, images in enumerate((pixels.samples, np.ascontiguousarray(pixels.samples[..., ::-1]))):
        for kind, direct in enumerate(small.encode(images)):
            np.testing.assert_allclose(moments[:, side, kind], direct.numpy(), rtol=1e-5, atol=1e-5)
    assert not np.allclose(moments[:, 0, 0][..., ::-1], moments[:, 1, 0], atol=1e-2)  # a mirrored latent is another one
    z = moments.astype(np.float64)
    np.testing.assert_allclose(result.measured[0], z[:, :, 0].mean(axis=(0, 1, 3, 4)), rtol=1e-9)
    variance = z[:, :, 0].var(axis=(0, 1, 3, 4)) + np.square(z[:, :, 1]).mean(axis=(0, 1, 3, 4))
    np.testing.assert_allclose(result.measured[1], np.sqrt(variance), rtol=1e-9)


def test_decoded_latents_are_compared_with_the_images(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    result = made(photos, small, tmp_path)
    rows = np.unique(np.linspace(0, N - 1, 8).round().astype(int))
    pixels, moments = data.load(str(photos), resolution=SIDE).samples[rows], open_latents(tmp_path).samples[rows]
    for side, psnr in enumerate(result.psnr):
        back = small.decode(np.ascontiguousarray(moments[:, side, 0])).astype(float)
        error = np.square((back[..., ::-1] if side else back) - pixels).mean()
        assert psnr == pytest.approx(10 * np.log10(255**2 / error), rel=1e-9)
    with Image.open(tmp_path / "decoded.png") as picture:
        assert picture.width > 3 * 2 * SIDE


def test_the_description_says_what_they_are(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    made(photos, small, tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["latent"] == small.spec(SIDE).to_dict()
    assert meta["latent"]["scale"] == [0.5] * 4
    assert {key: meta[key] for key in ("count", "classes", "resolution", "dtype", "shape", "skipped", "gaussian")} == {
        "count": N,
        "classes": ["a", "b"],
        "resolution": SIDE,
        "dtype": "float32",
        "shape": [4, 4, 4],
        "skipped": [],
        "gaussian": True,
    }
    assert [shard["count"] for shard in meta["shards"]] == [8, 8, 6]
    assert meta["crop"] == "ADM: halved by boxes, bicubic, centre"
    assert read_meta(tmp_path)["crop"] == "centre"


def test_the_crop_is_that_of_training_is_recorded_and_not_mixed_up(
    photos: Path, small: Autoencoder, tmp_path: Path
) -> None:
    source = open_source(str(photos), resolution=SIDE, crop="pad")
    encode(Images(source, small), small, tmp_path / "pad", settings=SETTINGS)
    pixels = data.load(str(photos), resolution=SIDE, crop="pad").samples
    direct = small.encode(pixels)[0].numpy()
    np.testing.assert_allclose(open_latents(tmp_path / "pad").samples[:][:, 0, 0], direct, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "pad/meta.json").read_text())["crop"] == "halved by boxes, bicubic, whole on white"
    with pytest.raises(ConfigError, match="made with crop halved by boxes, bicubic, whole on white, not ADM: halved"):
        made(photos, small, tmp_path / "pad")
    # A run says how its images became squares, and that of the store has to be the same.
    where = str(tmp_path / "pad")
    with pytest.raises(DataError, match=r"by crop pad \(halved by .*\), not centre; say so with --set data\.crop=pad"):
        load_data(DataConfig(source=where))
    with pytest.raises(DataError, match=r"by crop pad \(halved by .*\), not resize"):
        load_data(DataConfig(source=where, crop="resize"))
    assert len(load_data(DataConfig(source=where, crop="pad"))) == N
    assert len(data.load(where)) == N  # of whom nobody asks
    meta = json.loads((tmp_path / "pad/meta.json").read_text())
    for unknown in ({**meta, "crop": "unknown (an LMDB of latents)"}, {k: meta[k] for k in meta if k != "crop"}):
        (tmp_path / "pad/meta.json").write_text(json.dumps(unknown))
        assert len(load_data(DataConfig(source=where))) == N


def test_halves_are_rounded_once_and_overflow_is_told(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    made(photos, small, tmp_path / "single")
    half = EncodeSettings(batch=3, shard=8)
    made(photos, small, tmp_path / "half", half)
    np.testing.assert_array_equal(
        open_latents(tmp_path / "half").samples[:], open_latents(tmp_path / "single").samples[:].astype(np.float16)
    )
    loud = load_autoencoder(str(saved(tmp_path / "loud")))
    loud.module.encoder.weight.data[:4] *= 1e6  # type: ignore[union-attr, operator]
    with pytest.raises(DataError, match="more than float16 can hold; give --dtype float32"):
        made(photos, loud, tmp_path / "loud latents", half)
    loud.module.encoder.weight.data *= float("nan")  # type: ignore[union-attr, operator]
    with pytest.raises(DataError, match="makes latents of image 0 that are not finite numbers"):
        made(photos, loud, tmp_path / "not finite", half)


def test_grey_images_are_given_the_channels_of_the_autoencoder(tmp_path: Path, small: Autoencoder) -> None:
    result = encode(Images(open_source("digits", "test"), small), small, tmp_path, settings=EncodeSettings(shard=500))
    pixels = np.repeat(data.load("digits", "test").samples, 3, axis=1)
    direct = small.encode(pixels)[0].numpy()
    np.testing.assert_allclose(open_latents(tmp_path).samples[:][:, 0, 0], direct, rtol=1e-3, atol=1e-3)
    assert (result.count, len(result.classes), open_latents(tmp_path).split) == (500, 10, "test")
    one = load_autoencoder(str(saved(tmp_path / "grey", in_channels=1)))
    assert Images(open_source("digits"), one).load(range(2))[0][0][0].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("scale", "shift", "want"),
    [
        (None, None, ([0.5] * 4, [0.0] * 4)),
        ([0.18215], None, ([0.18215] * 4, [0.0] * 4)),
        ([1.0, 2.0, 3.0, 4.0], [0.1], ([1.0, 2.0, 3.0, 4.0], [0.1] * 4)),
    ],
)
def test_natural_units_are_those_of_the_config_or_given(
    photos: Path, small: Autoencoder, tmp_path: Path, scale: Any, shift: Any, want: Any
) -> None:
    latent = made(photos, small, tmp_path, scale=scale, shift=shift).latent
    assert (list(latent.scale), list(latent.shift)) == want
    assert open_latents(tmp_path).latent == latent


def test_measured_units_have_no_mean_and_deviation_one(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    made(photos, small, tmp_path, scale="measured", shift="measured")
    found = open_latents(tmp_path)
    assert found.latent is not None
    moments = found.samples[:]
    x = np.stack([found.latent.natural(moments[:, side, 0]) for side in (0, 1)]).astype(np.float64)
    spread = moments[:, :, 1] * np.reshape(found.latent.scale, (4, 1, 1))
    np.testing.assert_allclose(x.mean(axis=(0, 1, 3, 4)), 0, atol=1e-6)
    variance = x.var(axis=(0, 1, 3, 4)) + np.square(spread).mean(axis=(0, 1, 3, 4))
    np.testing.assert_allclose(variance, 1, rtol=1e-5)
    made(photos, small, tmp_path)  # once more, without a word about units: they stay
    assert open_latents(tmp_path).latent == found.latent
    assert rescaled(tmp_path, [0.18125], [0.0]) == open_latents(tmp_path).latent
    assert read_meta(tmp_path)["latent"].scale == (0.18125,) * 4


# ----------------------------------------------------------------------------------------------------------- resumption


class Stop(Exception):
    """What ends an encoding in the middle."""


@pytest.mark.parametrize("batches", [1, 3, 4, 7])
def test_an_encoding_that_is_interrupted_ends_with_the_same_bytes(
    photos: Path, small: Autoencoder, tmp_path: Path, batches: int
) -> None:
    made(photos, small, tmp_path / "whole")
    count = 0

    def report(done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == batches:
            raise Stop

    with pytest.raises(Stop):
        made(photos, small, tmp_path / "again", report=report)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "again").glob("*.safetensors")}
    assert len(there) == (batches - 1) // 3  # three batches a shard, which is written after the third was reported
    assert not (tmp_path / "again/meta.json").exists()
    said: list[str] = []
    result = made(photos, small, tmp_path / "again", say=said.append)
    assert result.before == 8 * len(there)
    assert said[0].startswith(f"{N - result.before} of {N} images to encode, with their mirrors, to latents 4×4×4:")
    assert content_of(tmp_path / "again") == content_of(tmp_path / "whole")
    for name, written in there.items():
        assert (tmp_path / "again" / name).stat().st_mtime_ns == written  # it was kept


def test_a_finished_store_is_verified_and_damage_is_mended(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    made(photos, small, tmp_path)
    whole, said = content_of(tmp_path), []
    assert made(photos, small, tmp_path, say=said.append).before == N
    assert said == []
    path = tmp_path / "000001.safetensors"
    path.write_bytes(whole[path.name][:-3] + b"abc")
    assert made(photos, small, tmp_path).before == N - 8
    path.write_bytes(whole[path.name][:-3])
    (tmp_path / ".writing-0123-000002.safetensors").write_bytes(b"what a killed process leaves")
    assert made(photos, small, tmp_path).before == N - 8
    assert content_of(tmp_path) == whole


def test_shards_of_images_that_have_changed_are_made_anew(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    made(copy, small, tmp_path / "out")
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(copy / "a/00.png")
    assert made(copy, small, tmp_path / "out").before == N - 8
    for path in sorted((copy / "b").iterdir())[-6:]:
        path.unlink()
    result = made(copy, small, tmp_path / "out")
    assert (result.count, result.before) == (16, 16)
    assert sorted(content_of(tmp_path / "out")) == [
        "000000.safetensors",
        "000001.safetensors",
        "decoded.png",
        "meta.json",
    ]
    fresh = made(copy, small, tmp_path / "fresh")
    assert fresh.measured == result.measured
    assert content_of(tmp_path / "fresh") == content_of(tmp_path / "out")


def command(source: Path, folder: str, out: Path) -> list[str]:
    """The command line that `made` stands for."""
    options = {"--encoder": folder, "--resolution": SIDE, "--out": out, "--batch": 3, "--shard-size": 8}
    options |= {"--dtype": "float32", "--import": autoencoders.__file__, "--device": "cpu"}
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-m", "shortflow", "encode", str(source), *words]


@pytest.mark.slow
def test_a_process_that_is_killed_costs_the_shard_that_it_was_at(
    photos: Path, small: Autoencoder, tmp_path: Path
) -> None:
    made(photos, small, tmp_path / "whole")
    began = subprocess.Popen(command(photos, small.name, tmp_path / "again"), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (tmp_path / "again/000000.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.002)
    began.send_signal(signal.SIGKILL)
    began.wait()
    made(photos, small, tmp_path / "again")
    assert content_of(tmp_path / "again") == content_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    made(photos, small, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = [
        subprocess.Popen(
            command(photos, small.name, tmp_path / "two"),
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [each.communicate(timeout=240)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")
    assert f"{N} latents, 2 classes" in said[0]
    assert said[1] == ""


# -------------------------------------------------------------------------------------------------------------- refused


def test_images_that_cannot_be_read_are_listed_or_left_out(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    copy = tmp_path / photos.name
    shutil.copytree(photos, copy)
    whole = (copy / "a/04.png").read_bytes()
    (copy / "a/04.png").write_bytes(whole[: len(whole) // 2])
    (copy / "b/21.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        made(copy, small, tmp_path / "out")
    assert str(caught.value).startswith("2 images cannot be read: a/04.png (")
    assert "; b/21.png (no image). Replace them, or leave them out with --corrupt skip" in str(caught.value)
    assert sorted(content_of(tmp_path / "out")) == ["000001.safetensors"]  # everything else is encoded

    skip = EncodeSettings(batch=3, shard=8, dtype="float32", corrupt="skip")
    result = made(copy, small, tmp_path / "out", skip)
    assert (result.count, result.before) == (N - 2, 8)
    assert [(k, title) for k, title, _ in result.skipped] == [(2, "a/04.png"), (21, "b/21.png")]
    assert [tuple(each) for each in json.loads((tmp_path / "out/meta.json").read_text())["skipped"]] == list(
        result.skipped
    )
    left, found = open_latents(tmp_path / "out"), made(photos, small, tmp_path / "all")
    kept = [k for k in range(N) if k not in (2, 21)]
    assert found.count == N
    everything = open_latents(tmp_path / "all")
    np.testing.assert_allclose(left.samples[:], everything.samples[kept], atol=1e-5)
    assert everything.labels is not None
    assert left.labels is not None
    np.testing.assert_array_equal(left.labels, everything.labels[kept])

    with pytest.raises(DataError, match="2 images cannot be read"):  # they are still missing
        made(copy, small, tmp_path / "out")
    for name in ("a/04.png", "b/21.png"):
        shutil.copy(photos / name, copy / name)
    assert made(copy, small, tmp_path / "out").count == N
    one, other = (content_of(tmp_path / name) for name in ("out", "all"))
    meta = [json.loads(content.pop("meta.json")) for content in (one, other)]
    assert [each["source"].pop("where") for each in meta] == [str(copy), str(photos)]
    assert meta[0] == meta[1]
    assert one == other


def test_a_class_that_has_lost_all_its_images_is_an_error(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    copy = tmp_path / photos.name
    shutil.copytree(photos, copy)
    for path in (copy / "b").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"no image is left of b: b/.*\(no image\); .* Replace some of these"):
        made(copy, small, tmp_path / "out", EncodeSettings(batch=3, shard=8, corrupt="skip"))
    assert not (tmp_path / "out/meta.json").exists()


def test_nothing_but_damaged_images_is_no_store(small: Autoencoder, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for k in range(3):
        (tmp_path / f"photos/{k}.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 3 images of photos can be read"):
        made(tmp_path / "photos", small, tmp_path / "out", EncodeSettings(corrupt="skip"))


def test_a_folder_of_other_latents_or_files_is_left_alone(photos: Path, small: Autoencoder, tmp_path: Path) -> None:
    made(photos, small, tmp_path / "out")
    before = content_of(tmp_path / "out")
    other = load_autoencoder(str(saved(tmp_path / "other", seed=1)))
    with pytest.raises(
        ConfigError, match=f"made with autoencoder {small.sha256[:12]}…, not {other.sha256[:12]}…; give another --out"
    ):
        made(photos, other, tmp_path / "out")
    (tmp_path / "cats").mkdir()
    shutil.copy(photos / "a/00.png", tmp_path / "cats")
    with pytest.raises(ConfigError, match=f"made with source {photos.name}, not cats"):
        made(tmp_path / "cats", small, tmp_path / "out")
    with pytest.raises(ConfigError, match="made with resolution 16, not 8"):
        encode(Images(open_source(str(photos), resolution=8), small), small, tmp_path / "out", settings=SETTINGS)
    for settings, message in (
        (EncodeSettings(batch=3, shard=8), "dtype float32, not float16"),
        (EncodeSettings(batch=4, shard=8, dtype="float32"), "batch 3, not 4"),
        (EncodeSettings(batch=3, shard=9, dtype="float32"), "shard 8, not 9"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(photos, small, tmp_path / "out", settings)
    assert content_of(tmp_path / "out") == before
    with pytest.raises(ConfigError, match=r"holds other files \(a, b\); give the latents a folder of their own"):
        made(photos, small, photos)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        made(photos, small, tmp_path / "file")
    lock = RunLock(tmp_path / "out")
    with pytest.raises(CheckpointError, match="is in use"):
        made(photos, small, tmp_path / "out")
    lock.release()


def test_too_little_space_is_told_before_anything_is_encoded(
    photos: Path, small: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(storing.shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    need = N * (2 * 2 * 4 * 4 * 4 * 4 + 8) / 2**20
    with pytest.raises(DataError, match=f"the latents need {need:.1f} MiB in .*, and 0.0 MiB are free"):
        made(photos, small, tmp_path / "out")
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"dtype": "float8"}, "float16.{2,4}float32"),
        ({"corrupt": "x"}, "refuse.{2,4}skip"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, TypeCheckError), match=message):  # the type checker of the tests may come first
        EncodeSettings(**values)


# --------------------------------------------------------------------------------------------------------- from an LMDB


def lmdb(labels: list[int]) -> LmdbLatents:
    entries = {str(k).encode(): content(moments=MOMENTS + k, label=label) for k, label in enumerate(labels)}
    return LmdbLatents(path=Path("imagenet_lmdb"), get=entries.get, count=len(labels))


def test_the_latents_of_others_become_a_store(small: Autoencoder, tmp_path: Path) -> None:
    labels = [3, 0, 3, 1, 3]
    settings = EncodeSettings(batch=2, shard=3, dtype="float32")
    result = encode(Stored(lmdb(labels), small), small, tmp_path, settings=settings)
    found = open_latents(tmp_path, verify=True)
    assert found.labels is not None
    assert [found.classes[label] for label in found.labels] == ["3", "0", "3", "1", "3"]
    assert (result.psnr, found.latent) == (None, small.spec(16))
    for k in range(5):
        np.testing.assert_array_equal(found.samples[:][k, :, 0], np.stack([MOMENTS + k, FLIP])[:, :4])
    stored = open_array(tmp_path / "000001.safetensors", "moments")
    np.testing.assert_allclose(stored[1, 0, 1], np.exp(0.5 * (MOMENTS[4:] + 4)), rtol=1e-6)
    single = encode(Stored(lmdb([0] * 4), small), small, tmp_path / "single", settings=settings)
    assert single.classes == open_latents(tmp_path / "single").classes == ()


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    other = load_autoencoder(str(saved(tmp_path, latent_channels=6)))
    with pytest.raises(DataError, match=r"latents of 4 channels, 4×4, .* are not those of .* \(6 channels\)"):
        Stored(lmdb([0]), other)


def test_hostile_entries_are_listed_with_the_others(small: Autoencoder, tmp_path: Path) -> None:
    latents = lmdb([0, 1, 0, 1])
    mark = tmp_path / "executed"

    def get(key: bytes) -> bytes | None:
        return b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR." if key == b"2" else latents.get(key)

    hostile = LmdbLatents(path=latents.path, get=get, count=4)
    with pytest.raises(DataError, match=r"1 images cannot be read: entry 2 \(.*names os.system, .* was not called\)"):
        encode(Stored(hostile, small), small, tmp_path / "out")
    assert not mark.exists()
