"""Samples on disk, batch by batch: the same images however they are written, in the memory of a batch."""

import json
import shutil
import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sampling import exact
from shortflow import hub, runs
from shortflow.data import DataSpec, load
from shortflow.errors import ConfigError, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.nn.compiling import compile_network
from shortflow.paths import Linear
from shortflow.runs import streaming
from shortflow.sample import images, sample
from shortflow.theory import Gaussian

TINY = ("network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}", "train.preview_every=0")


def trained(directory: Path, *settings: str) -> hub.Model:
    run, dataset = runs.configure(*settings[:2], settings=["train.images=64", "train.batch=32", *settings[2:]])
    for _ in runs.training(run, dataset, directory):
        pass
    return hub.load(directory)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> hub.Model:
    return trained(tmp_path_factory.mktemp("digits"), "esc", "digits", *TINY)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> hub.Model:
    small = ("network={kind: MLPConfig, width: 16, depth: 1}", "train.preview_every=0")
    return trained(tmp_path_factory.mktemp("points"), "esc", "rings", *small)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BATCH", 8)


def stopping(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """Drawing that fails after some batches."""
    real = streaming.draw

    def draw(*arguments: Any, **settings: Any) -> Iterator[runs.Drawn]:
        for k, part in enumerate(real(*arguments, **settings)):
            if k == after:
                raise error
            yield part

    monkeypatch.setattr(streaming, "draw", draw)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------------------- what is written


def test_files_and_array_hold_the_samples_of_generate(digits: hub.Model, tmp_path: Path) -> None:
    pixels, labels = runs.generate(digits.flow, digits.spec, 21, steps=2, seed=3, classes=[4, 7], batch_size=8)
    assert labels is not None
    assert runs.save_array(digits, 21, tmp_path / "a/s.npy", steps=2, seed=3, classes=[4, 7]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a/s.npy"), pixels)
    np.testing.assert_array_equal(np.load(tmp_path / "a/s-labels.npy"), labels)
    assert sorted(content(tmp_path / "a")) == ["s-labels.npy", "s.json", "s.npy"]
    assert runs.save_folder(digits, 21, tmp_path / "f", steps=2, seed=3, classes=[4, 7]) == 0
    for k in range(21):
        image = np.asarray(Image.open(tmp_path / f"f/{k:06d}-{labels[k]}.png"))
        np.testing.assert_array_equal(image, pixels[k, 0])
    assert len(load(str(tmp_path / "f"))) == 21  # a folder of images like any other


def test_points_are_an_array(points: hub.Model, tmp_path: Path) -> None:
    runs.save_array(points, 11, tmp_path / "p.npy", seed=1)
    wanted, _ = runs.generate(points.flow, points.spec, 11, seed=1, batch_size=8)
    found = np.load(tmp_path / "p.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    assert not (tmp_path / "p-labels.npy").exists()
    with pytest.raises(ConfigError, match=r"this model makes points; write an array"):
        runs.save_folder(points, 3, tmp_path / "f")


def test_the_images_are_the_same_for_any_batch_size(digits: hub.Model) -> None:
    """To the bit where every row is computed alone; through matrix products to rounding, half a level at most."""
    law = Gaussian(path=Linear(), mean=0.0, std=0.5, sample_shape=(1, 4, 4))
    spec = DataSpec(name="g", shape=(1, 4, 4))
    whole = runs.generate(exact(law), spec, 23, steps=2, batch_size=23)[0]
    for size in (1, 5, 16):
        np.testing.assert_array_equal(runs.generate(exact(law), spec, 23, steps=2, batch_size=size)[0], whole)
        tail = [part.pixels for part in runs.draw(exact(law), spec, 23, steps=2, batch_size=size, first=9)]
        np.testing.assert_array_equal(np.concatenate(tail), whole[9:])
    states = [torch.cat([b.x for b in sample(digits.flow, 23, (1, 8, 8), batch_size=s)]) for s in (1, 7, 23)]
    for other in states[:2]:
        torch.testing.assert_close(other, states[2], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
@pytest.mark.parametrize("kind", ["folder", "array"])
def test_an_interrupted_writing_goes_on_with_the_same_bits(
    digits: hub.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: BaseException
) -> None:
    write = runs.save_folder if kind == "folder" else runs.save_array
    name = "s" if kind == "folder" else "s.npy"
    write(digits, 30, tmp_path / "whole" / name)
    with monkeypatch.context() as patched:
        stopping(patched, 2, error)
        if isinstance(error, OSError):
            with pytest.raises(
                ShortflowError, match=r"No space left on device after 16 of 30 samples; make space, and"
            ):
                write(digits, 30, tmp_path / "parts" / name)
        else:
            with pytest.raises(KeyboardInterrupt):
                write(digits, 30, tmp_path / "parts" / name)
    assert not (tmp_path / "parts/s.npy").exists()  # an array has its name when it is whole
    reports: list[tuple[int, int]] = []
    assert write(digits, 30, tmp_path / "parts" / name, report=lambda *done: reports.append(done)) == 16
    assert reports == [(24, 30), (30, 30)]
    inside = "s" if kind == "folder" else "."
    assert content(tmp_path / "parts" / inside) == content(tmp_path / "whole" / inside)
    monkeypatch.setattr(streaming, "draw", None)  # nothing is left to do
    assert write(digits, 30, tmp_path / "parts" / name) == 30


def test_cut_files_are_written_again(digits: hub.Model, tmp_path: Path) -> None:
    """As a loss of power may leave them: the images after the last that is whole, the rows after the last record."""
    runs.save_folder(digits, 30, tmp_path / "f")
    whole = content(tmp_path / "f")
    for name in ("000010-0.png", "000029-9.png"):
        (tmp_path / "f" / name).write_bytes(whole[name][:-3])
    (tmp_path / "f/000020-0.png").unlink()
    assert runs.save_folder(digits, 30, tmp_path / "f") == 10
    assert content(tmp_path / "f") == whole
    runs.save_array(digits, 30, tmp_path / "s.npy")
    array = (tmp_path / "s.npy").read_bytes()
    record = json.loads((tmp_path / "s.json").read_text())
    for rows, done, start in ((30, 16, 16), (20, 24, 16), (8.5, 16, 8), (0, 8, 0)):
        header = len(array) - 30 * 64
        (tmp_path / ".s.npy.part").write_bytes(array[: header + int(rows * 64)] if rows else b"")
        (tmp_path / "s.npy").unlink()
        (tmp_path / "s.json").write_text(json.dumps({**record, "done": done}))
        assert runs.save_array(digits, 30, tmp_path / "s.npy") == start
        assert (tmp_path / "s.npy").read_bytes() == array


def test_more_images_are_added_to_a_folder(digits: hub.Model, tmp_path: Path) -> None:
    assert runs.save_folder(digits, 10, tmp_path / "f") == 0
    assert runs.save_folder(digits, 25, tmp_path / "f") == 10
    runs.save_folder(digits, 25, tmp_path / "g")
    assert content(tmp_path / "f") == content(tmp_path / "g")


def test_samples_made_otherwise_are_never_mixed(digits: hub.Model, tmp_path: Path) -> None:
    folder, array = tmp_path / "f", tmp_path / "s.npy"
    runs.save_folder(digits, 9, folder, seed=1)
    runs.save_array(digits, 9, array, seed=1)
    for changed, message in (
        ({"seed": 2}, r"made with seed 1, not 2; give another name"),
        ({"seed": 1, "steps": 2}, r"made with times \[1.0, 0.0\], not \[1.0, 0.5, 0.0\]"),
        ({"seed": 1, "classes": [3]}, r"classes None, not \[3\]"),
        ({"seed": 1, "bf16": True}, r"precision fp32, not bf16"),
    ):
        for write, place in ((runs.save_folder, folder), (runs.save_array, array)):
            with pytest.raises(ConfigError, match=message):
                write(digits, 9, place, **changed)
    with pytest.raises(ConfigError, match=r"n 9, not 10"):
        runs.save_array(digits, 10, array, seed=1)
    compiled = hub.load(digits.path)
    compile_network(compiled.flow.network, backend="eager")
    with pytest.raises(ConfigError, match=r"compiled False, not True"):
        runs.save_folder(compiled, 9, folder, seed=1)
    other = tmp_path / "other.safetensors"
    shutil.copy(digits.path, other)
    with open(other, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(ConfigError, match="made with model "):
        runs.save_folder(replace(digits, path=other), 9, folder, seed=1)


def test_what_is_there_and_is_not_ours_is_left_alone(digits: hub.Model, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"mine is not empty, and not made by such a command"):
        runs.save_folder(digits, 3, tmp_path / "mine")
    (tmp_path / "a.npy").write_text("dear")
    with pytest.raises(ConfigError, match=r"a.npy is there already; give another name, or remove it"):
        runs.save_array(digits, 3, tmp_path / "a.npy")
    with pytest.raises(ConfigError, match=r"a.npy is a file; give a folder"):
        runs.save_folder(digits, 3, tmp_path / "a.npy")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ConfigError, match=r"b.json cannot be read"):
        runs.save_array(digits, 3, tmp_path / "b.npy")
    assert content(tmp_path / "mine") == {"letter.txt": b"dear"}
    assert (tmp_path / "a.npy").read_text() == "dear"


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_memory_does_not_grow_with_the_number_of_samples(
    digits: hub.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """At most two batches are alive: the one that is written and the one that is drawn next, and their noise."""
    alive: list[weakref.ref] = []
    most = 0
    run = images._run

    def watched(flow: FlowMap, *arguments: Any) -> torch.Tensor:
        nonlocal most
        x = run(flow, *arguments)
        alive.append(weakref.ref(x))
        most = max(most, sum(one() is not None for one in alive))
        return x

    monkeypatch.setattr(images, "_run", watched)
    write = runs.save_folder if kind == "folder" else runs.save_array
    name = "f" if kind == "folder" else "s.npy"
    peaks = []
    for n in (32, 192):
        tracemalloc.start()
        write(digits, n, tmp_path / str(n) / name)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(alive) == 4 + 24
    assert most <= 2
    # Names and labels may grow with n, a few hundred bytes a file; the states of the network would by 256 bytes each.
    assert peaks[1] - peaks[0] < 160 * (1000 if kind == "folder" else 64)


def test_scores_are_taken_batch_by_batch(digits: hub.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is that of all images together, to rounding of the classifier's passes."""
    from shortflow import evaluate
    from shortflow.runs import scoring

    seen: list[int] = []
    real = evaluate.evaluate_images

    def spy(given: Any, labels: Any, **others: Any) -> dict[str, Any]:
        parts = list(given)
        seen.extend(len(part) for part in parts)
        return real(iter(parts), labels, **others)

    monkeypatch.setattr(scoring.evaluate, "evaluate_images", spy)
    row = runs.score(digits, (1,), n=300)["rows"]["1 step"]
    assert seen == [256, 44]
    pixels, labels = runs.generate(digits.flow, digits.spec, 300)
    train, test = load("digits", "train"), load("digits", "test")
    classifier = evaluate.load_classifier("digits")
    reference = evaluate.Reference.of(
        train.samples, train.labels, held_out=test.samples, held_out_labels=test.labels, classifier=classifier
    )
    wanted = real(pixels, labels, reference=reference, classifier=classifier)
    assert row["fingerprint"] == wanted["fingerprint"]
    assert row["fd"] == pytest.approx(wanted["fd"], rel=1e-5)
    assert row["conditional_accuracy"] == wanted["conditional_accuracy"]


def test_scoring_goes_on_with_the_samples_that_are_kept(
    digits: hub.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are those of samples that are not kept; of the work, only what is missing is done again."""
    monkeypatch.setattr(streaming, "BATCH", 256)
    wanted = runs.score(digits, (1, 2), n=300, seed=3)
    reported: list[tuple[int, int]] = []
    with monkeypatch.context() as patched:
        stopping(patched, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            runs.score(digits, (1, 2), n=300, seed=3, keep=tmp_path, report=lambda *done: reported.append(done))
    assert reported == [(256, 900)]
    reported.clear()
    found = runs.score(digits, (1, 2), n=300, seed=3, keep=tmp_path, report=lambda *done: reported.append(done))
    assert reported == [(300, 900), (300, 900), (812, 900), (900, 900), (900, 900)]
    assert [row["fingerprint"] for name, row in found["rows"].items() if "step" in name] == [
        row["fingerprint"] for name, row in wanted["rows"].items() if "step" in name
    ]
    assert found["rows"]["1 step"]["fd"] == pytest.approx(wanted["rows"]["1 step"]["fd"], rel=1e-5)
    assert {"1-step.npy", "2-steps.npy"} <= set(content(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(streaming, "draw", lambda *_, **__: pytest.fail("drawn again"))
        assert runs.score(digits, (1, 2), n=300, seed=3, keep=tmp_path)["rows"] == found["rows"]
    with pytest.raises(ConfigError, match="made with seed 3, not 4"):
        runs.score(digits, (1,), n=300, seed=4, keep=tmp_path)


def test_scoring_says_how_far_it_is(points: hub.Model, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    plain = runs.score(points, (4, 1), n=300, report=lambda *done: reported.append(done))
    assert reported == [(1024, 1500), (1200, 1500), (1456, 1500), (1500, 1500)]
    assert runs.score(points, (4, 1), n=300, keep=tmp_path)["rows"]["1 step"]["n"] == plain["rows"]["1 step"]["n"]


# ------------------------------------------------------------------------------------------------------------ bfloat16


def test_bf16_samples_are_near_those_of_fp32(digits: hub.Model) -> None:
    """bfloat16 keeps 8 bits: relative errors of 2⁻⁹ a rounding, far below what a wrong time would make of it."""
    exactly, fast = (
        torch.cat([batch.x for batch in sample(digits.flow, 40, (1, 8, 8), steps=2, bf16=bf16)])
        for bf16 in (False, True)
    )
    assert fast.dtype == torch.float32  # the state stays in full
    apart = float((fast - exactly).norm() / exactly.norm())
    assert 0 < apart < 0.02
    said = runs.bf16_difference(digits.flow, digits.spec, 40, steps=2)
    pixels = [runs.generate(digits.flow, digits.spec, 40, steps=2, bf16=b)[0].astype(float) for b in (True, False)]
    assert said == pytest.approx(np.linalg.norm(pixels[0] - pixels[1]) / (pixels[1].std() * pixels[1].size ** 0.5))
    assert not torch.is_autocast_enabled("cpu")
