"""`shortflow evaluate` and `shortflow reference` as their user sees them, on runs and on anybody's images."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import inceptions
from commands import Shortflow
from extractors import pictures
from reports import Reader
from shortflow import evaluate, runs
from shortflow.data import load
from shortflow.evaluate import inception, save_program
from shortflow.evaluate.tally import Tally
from shortflow.files import sha256_of
from shortflow.lock import RunLock
from shortflow.report.commands import scored_by
from shortflow.runs import comparing

TINY = ("network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}", "train.preview_every=0")


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without weights."""
    monkeypatch.delenv("SHORTFLOW_INCEPTION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluating") / "run"
    for _ in runs.training(*runs.configure("esc", settings=[*TINY, "images=64", "batch=32"]), directory):
        pass
    return directory


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    path = tmp_path_factory.mktemp("program") / "four.pt2"
    save_program(path, network, name="four", size=8)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """pngs/, jpegs/, samples.npz (ADM's), real.npz and digits.npz (statistics and images), wide.npy."""
    for name, ending, seed in (("pngs", "png", 1), ("jpegs", "jpg", 2)):
        (tmp_path / name).mkdir()
        for k, image in enumerate(pictures(24, seed=seed)):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / name / f"{k:03d}.{ending}")
    np.savez(tmp_path / "samples.npz", pictures(40).transpose(0, 2, 3, 1))
    np.save(tmp_path / "wide.npy", pictures(30, side=16))
    return tmp_path


def record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def newest(images: Path) -> dict[str, Any]:
    """The record of images that was written last."""
    found = images.parent.glob(f"{images.name}.evaluation-*.json")
    return record(max(found, key=lambda path: path.stat().st_mtime_ns))


def key(path: Path) -> str:
    """What a reference on a disk is called in the name of a record."""
    return f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


# --------------------------------------------------------------------------------------------------------------- images


def test_anybodys_images_against_a_reference(shortflow: Shortflow, files: Path, program: Path) -> None:
    said = shortflow("reference", files / "samples.npz", "--features", program, "--out", files / "s.npz")
    assert (said.code, said.err) == (0, "")
    assert said.out == f"40 images of 8×8 pixels, four → {files}/s.npz\n"
    said = shortflow("evaluate", files / "pngs", "--reference", files / "s.npz", "--features", program)
    assert (said.code, said.err) == (0, "")
    lines, found = said.out.splitlines(), newest(files / "pngs")
    row = found["rows"]["pngs"]
    assert lines[0].split() == ["FD-24", "precision", "recall", "KID", "N"]
    assert lines[1].split() == [
        "pngs",
        *(f"{row[k]:.4f}" for k in ("distance", "precision", "recall")),
        f"{row['kid']:.6f}",
        "24",
    ]
    assert lines[2] == f"features:  four, weights {sha256_of(program)[:12]}, images bicubic-antialias to 8"
    assert lines[3] == f"reference: {files}/s.npz, 40 images, sha256 {sha256_of(files / 's.npz')[:12]}"
    assert lines[4] == f"images:    {files}/pngs (24 of png); uint8, as stored"
    assert lines[-1] == f"→ {files}/pngs.evaluation-four@{key(files / 's.npz')}.json"
    assert found["made"] == {"source": str(files / "pngs"), "formats": {"png": 24}, "skipped": []}
    assert (found["resolution"], found["resize"], found["rounding"]) == ([8, 8], None, "uint8, as stored")
    assert found["features"]["weights"] == sha256_of(program)
    assert sorted(path.name for path in files.iterdir() if path.name.startswith(".")) == []  # no chunks are left

    # The same from the reference's images, by hand, and from Python.
    said = shortflow("evaluate", files / "pngs", "--reference", files / "samples.npz", "--features", program)
    assert newest(files / "pngs")["rows"]["pngs"]["distance"] == pytest.approx(row["distance"], rel=1e-9)
    extractor = evaluate.load_program(program)
    a, b = (evaluate.Moments.of(extractor.run(pictures(n, seed=seed)).features) for n, seed in ((24, 1), (40, 0)))
    assert row["distance"] == pytest.approx(evaluate.frechet_distance(a, b), rel=1e-9)


def test_remarks_say_what_a_figure_does_not(shortflow: Shortflow, files: Path, program: Path) -> None:
    shared = ("--features", program, "--reference", files / "samples.npz")
    said = shortflow("evaluate", files / "jpegs", *shared)
    assert "Note: the images are jpeg files: lossy compression moves distances." in said.out
    np.savez(files / "few.npz", pictures(4))
    said = shortflow("evaluate", files / "few.npz", *shared)
    assert "Note: 4 images are no more than the 4 features: their covariance is singular" in said.out
    assert newest(files / "few.npz")["rows"]["few.npz"]["recall"] is not None


def test_another_resolution_needs_a_word(shortflow: Shortflow, files: Path, program: Path) -> None:
    shared = ("evaluate", files / "wide.npy", "--reference", files / "samples.npz", "--features", program)
    said = shortflow(*shared)
    assert said.code == 2
    assert "samples.npz is of images of 8×8 pixels, these have 16×16, and a resize moves every distance" in said.err
    assert "--resolution 8 crops and scales what has another size" in said.err
    said = shortflow(*shared, "--resolution", 8)
    assert said.code == 0
    found = newest(files / "wide.npy")
    assert (found["resolution"], found["resize"]) == ([8, 8], "to 8")
    assert (found["crop"], found["reference"]["crop"]) == ("centre", "centre")


def test_references_have_records_of_their_own(
    shortflow: Shortflow, trained: Path, files: Path, program: Path, tmp_path: Path
) -> None:
    """In the same features, of images and of a run; and what was written before names said so is still read."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (files / "elsewhere").mkdir()
    shutil.copy(files / "samples.npz", files / "elsewhere/samples.npz")
    with np.load(files / "samples.npz") as arrays:
        np.savez(files / "other.npz", 255 - arrays["arr_0"])
    references = [files / "samples.npz", files / "elsewhere/samples.npz", files / "other.npz"]
    words = ("--features", program)
    for reference in references:
        assert shortflow("evaluate", files / "pngs", "--reference", reference, *words).code == 0
    names = [f"pngs.evaluation-four@{key(reference)}.json" for reference in references]
    assert sorted(path.name for path in files.glob("pngs.*")) == sorted(names)
    for name, reference in zip(names, references, strict=True):
        assert record(files / name)["reference"]["source"] == str(reference)
    distances = [record(files / name)["rows"]["pngs"]["distance"] for name in names]
    assert distances[0] == distances[1] != distances[2]

    drawn = ("--steps", 1, "-n", 8, *words)
    assert shortflow("evaluate", run, *drawn).code == 0
    (run / "evaluation-four.json").rename(run / "evaluation-old.json")  # as another features' were
    for reference in (None, "digits", "digits:test"):
        said = shortflow("evaluate", run, *drawn, *(() if reference is None else ("--reference", reference)))
        assert said.code == 0, said.err
    assert shortflow("evaluate", run, *drawn, "--reference", "digits", "--split", "test").code == 0
    names = ["evaluation-four.json", "evaluation-four@digits-test.json", "evaluation-four@digits.json"]
    assert sorted(path.name for path in run.glob("evaluation*.json")) == [*names, "evaluation-old.json"]
    rows = {name: record(run / name)["rows"]["1 step"] for name in names}
    assert rows[names[0]] == rows[names[2]] != rows[names[1]]
    said = shortflow("status", run)
    for of in ("four", "four@digits-test", "four@digits", "old"):
        assert f"1 step, {of} " in said.out
    assert shortflow("report", run, "--no-draw", "--out", files / "page.html").code == 0
    captions = Reader.of((files / "page.html").read_text()).tables
    for source in ("digits:train", "digits:test"):
        assert f"Scores by number of steps, features of four, against {source}" in captions


def test_an_interrupted_evaluation_goes_on(
    shortflow: Shortflow, files: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ("evaluate", files / "pngs", "--reference", files / "samples.npz", "--features", program)
    real, done = Tally.of, []

    def of(batches: Any, extractor: Any, plan: Any, first: int, last: int) -> Tally:
        if plan.n == 24:
            raise KeyboardInterrupt
        done.append(plan.n)
        return real(batches, extractor, plan, first, last)

    monkeypatch.setattr(Tally, "of", of)
    said = shortflow(*shared)
    assert said.code == 130
    assert said.out.endswith("the same command goes on from the last finished chunk\n")
    monkeypatch.setattr(Tally, "of", lambda *arguments: done.append(arguments[2].n) or real(*arguments))
    assert shortflow(*shared).code == 0
    assert done == [40, 24]  # the reference was not seen again


def test_classifier_features_of_images(shortflow: Shortflow, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", load("digits", "test").samples)
    said = shortflow("evaluate", tmp_path / "d.npy", "--reference", "digits", "--features", "classifier")
    assert said.code == 0, said.err
    found = newest(tmp_path / "d.npy")
    assert found["rows"]["d.npy"]["distance"] == pytest.approx(0.312, abs=0.002)  # the floor of docs/evaluation.md
    assert found["features"]["name"] == "classifier-digits"
    assert found["reference"]["n"] == 1297


def test_adm_reference_files_give_statistics_and_images(
    shortflow: Shortflow, files: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mu and sigma for the distance, arr_0 for precision and recall; they say nothing of what made them."""
    arrays = {"mu": np.zeros(4), "sigma": np.eye(4), "arr_0": pictures(30, seed=5).transpose(0, 2, 3, 1)}
    np.savez(files / "adm.npz", **arrays)
    shared = ("evaluate", files / "samples.npz", "--reference", files / "adm.npz", "--features", program)
    said = shortflow(*shared)
    assert said.code == 2
    assert "does not say what made it and is taken for statistics of the published Inception weights" in said.err
    monkeypatch.setattr(evaluate, "check_comparable", lambda *arguments: None)
    assert shortflow(*shared).code == 0
    row = newest(files / "samples.npz")["rows"]["samples.npz"]
    seen = evaluate.load_program(program).run(pictures(40)).features
    wanted = evaluate.Gaussian(mean=torch.zeros(4).double(), cov=torch.eye(4).double())
    assert row["distance"] == pytest.approx(evaluate.frechet_distance(evaluate.Moments.of(seen), wanted), rel=1e-9)
    assert (row["neighbours_n"], row["neighbours_reference"]) == (40, 30)
    # As ADM has it, all samples beside 10,000 of the reference; a number is one of each side.
    monkeypatch.setattr(comparing, "FEATURES", 20)
    found = []
    for words in ((), ("--neighbours", 15), ("--neighbours", "adm", "--reference", files / "pngs")):
        assert shortflow(*shared, *words).code == 0
        found.append(newest(files / "samples.npz"))
    rows = [each["rows"]["samples.npz"] for each in found]
    assert [(each["neighbours_n"], each["neighbours_reference"]) for each in rows] == [(40, 20), (15, 15), (40, 20)]
    assert [each["neighbours"] for each in found] == [
        "all samples and 20 of the reference, at most",
        "15 samples and 15 of the reference, at most",
        "all samples and 20 of the reference, at most",
    ]
    real = evaluate.load_program(program).run(pictures(30, seed=5)).features
    first = real[torch.randperm(30, generator=torch.Generator().manual_seed(0))[:20]]
    scores = evaluate.neighbour_scores(seen, first, k=3)
    assert (rows[0]["precision"], rows[0]["recall"]) == (scores.precision, scores.recall)


def test_inception_scores_in_order_are_those_of_adm(shortflow: Shortflow, tmp_path: Path) -> None:
    """Of 5,000 images each as they come, the last part with what is left: exp of the mean KL to the part's mean."""
    images = np.concatenate([load("digits", "all").samples] * 3)  # 5,391 of them
    np.save(tmp_path / "d.npy", images)
    shared = ("evaluate", tmp_path / "d.npy", "--reference", "digits:test", "--features", "classifier:digits")
    assert shortflow(*shared).code == 0
    mixed = newest(tmp_path / "d.npy")
    said = shortflow(*shared, "--is-splits", "ordered")
    assert "the Inception score is of images in their order: it is low for a set that is sorted by class" in said.out
    found = newest(tmp_path / "d.npy")
    assert mixed["inception_score_splits"] == "10, in a random order"
    assert found["inception_score_splits"] == "5,000 images each, in order"
    p = evaluate.load_classifier("digits").logits(images).double().softmax(1)
    scores = [(part * (part / part.mean(0)).log()).sum(1).mean().exp() for part in (p[:5000], p[5000:])]
    row = found["rows"]["d.npy"]
    assert row["inception_score"] == pytest.approx(float(torch.stack(scores).mean()), rel=1e-9)
    assert row["inception_score"] != pytest.approx(mixed["rows"]["d.npy"]["inception_score"], rel=1e-6)


# -------------------------------------------------------------------------------------------------------------- damages


def test_damaged_images_are_refused_first_or_left_out_and_listed(
    shortflow: Shortflow, files: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = files / "clean"
    shutil.copytree(files / "pngs", clean)
    for name, content in (("005.png", b"x"), ("017.png", (clean / "017.png").read_bytes()[:-60])):
        (files / "pngs" / name).write_bytes(content)
        (clean / name).unlink()
    shared = ("--reference", files / "samples.npz", "--features", program)
    with monkeypatch.context() as patched:
        patched.setattr(Tally, "of", lambda *arguments: pytest.fail("something was computed"))
        said = shortflow("evaluate", files / "pngs", *shared)
    assert (said.code, said.out) == (2, "")
    assert "pngs: 2 of 24 images cannot be read: 005.png (no image), 017.png (" in said.err
    assert said.err.endswith("; replace or remove these files, or leave them out with --corrupt skip\n")
    said = shortflow("evaluate", files / "pngs", *shared, "--corrupt", "skip")
    assert said.code == 0, said.err
    assert "Note: 2 of the images cannot be read and are left out: 005.png (no image), 017.png (" in said.out
    found = newest(files / "pngs")
    assert [title for title, _ in found["made"]["skipped"]] == ["005.png", "017.png"]
    assert shortflow("evaluate", clean, *shared).code == 0
    assert found["rows"]["pngs"] == newest(files / "clean")["rows"]["clean"]
    # Of a reference, too, whose file says so.
    said = shortflow("reference", files / "pngs", "--features", program, "--out", files / "s.npz", "--corrupt", "skip")
    assert "skipped: 005.png (no image)\n" in said.out
    wanted = ("--reference", files / "s.npz", "--features", program)
    said = shortflow("evaluate", files / "samples.npz", *wanted)
    assert "Note: 2 of the reference cannot be read and are left out: 005.png (no image), 017.png (" in said.out


def test_what_is_passed_over_in_a_folder_is_told_as_in_training(
    shortflow: Shortflow, files: Path, program: Path
) -> None:
    """By `reference` and by `evaluate`, of both sides and of what a run was trained on, each once."""
    for name, others in (("pngs", ("a.json", "b.json", "c.mov")), ("jpegs", ("a.xmp",))):
        for other in others:
            (files / name / other).write_text("x")
    notes = {
        "pngs": f"note: {files}/pngs: skipped 3 files that are no images: 2 .json, 1 .mov\n",
        "jpegs": f"note: {files}/jpegs: skipped 1 file that is no image: 1 .xmp\n",
    }
    said = shortflow("reference", files / "pngs", "--features", program, "--out", files / "s.npz")
    assert said.out.startswith(notes["pngs"])
    against = ("--features", program, "--reference")
    said = shortflow("evaluate", files / "pngs", *against, files / "jpegs")
    assert said.out.startswith(notes["jpegs"] + notes["pngs"])
    said = shortflow("evaluate", files / "pngs", *against, files / "pngs")
    assert said.out.count("note: ") == 1
    settings = [f"--set={each}" for each in (*TINY, "images=64", "batch=32")]
    said = shortflow("train", "esc", "--data", files / "pngs", "--out", files / "run", *settings)
    assert notes["pngs"] in said.out
    said = shortflow("evaluate", files / "run", "--features", program, "--steps", 1, "-n", 8)
    assert said.out.startswith(notes["pngs"])


def test_chunks_of_other_choices_are_removed(
    shortflow: Shortflow, files: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that an interrupted command left beside the same result; never those that somebody is working on."""
    shared = ("evaluate", files / "pngs", "--reference", files / "samples.npz", "--features", program)
    real = Tally.of

    def of(batches: Any, extractor: Any, plan: Any, first: int, last: int) -> Tally:
        if plan.n < 40:
            raise KeyboardInterrupt
        return real(batches, extractor, plan, first, last)

    def folders() -> list[Path]:
        return sorted(path for path in files.iterdir() if path.name.startswith(".pngs.evaluation-"))

    with monkeypatch.context() as patched:
        patched.setattr(Tally, "of", of)
        assert shortflow(*shared).code == 130
        (before,) = folders()  # of the reference
        (files / "pngs/003.png").unlink()
        assert shortflow(*shared).code == 130
        assert folders() == [before]  # the reference is as it was
        assert shortflow(*shared, "--neighbours", 5).code == 130
        (after,) = folders()
        assert after != before
    notes = files / f".pngs.evaluation-four@{key(files / 'samples.npz')}.json-notes"
    notes.mkdir()
    lock = RunLock(after)
    assert shortflow(*shared).code == 0
    assert after in folders()
    lock.release()
    assert shortflow(*shared).code == 0
    assert folders() == [notes]


def test_a_reference_is_the_split_that_a_run_sees(shortflow: Shortflow, files: Path, program: Path) -> None:
    photos = files / "photos"
    (files / "pngs").rename(photos.with_name("p")), photos.mkdir()
    (files / "p").rename(photos / "train"), (files / "jpegs").rename(photos / "test")
    for k, (words, count) in enumerate((((), {"png": 24}), (("--split", "test"), {"jpeg": 24}))):
        out = files / f"{k}.npz"
        assert shortflow("reference", photos, "--features", program, "--out", out, *words).code == 0
        said = shortflow("evaluate", files / "samples.npz", "--reference", photos, "--features", program, *words)
        assert said.code == 0, said.err
        found = newest(files / "samples.npz")
        assert found["reference"]["formats"] == count
        assert shortflow("evaluate", files / "samples.npz", "--reference", out, "--features", program).code == 0
        again = newest(files / "samples.npz")
        assert again["rows"]["samples.npz"]["distance"] == pytest.approx(found["rows"]["samples.npz"]["distance"])
    said = shortflow("evaluate", f"{photos}:test", "--reference", photos, "--features", program)
    assert newest(files / "photos-test")["made"]["formats"] == {"jpeg": 24}


# ----------------------------------------------------------------------------------------------------------------- runs


def test_the_command_of_a_record_makes_it_again(shortflow: Shortflow, files: Path, program: Path) -> None:
    """Also of what a run was trained on, whose name is no path."""
    run, words = files / "run", ("--features", "classifier:mnist", "--steps", 1, "-n", 8)
    settings = [f"--set={each}" for each in (*TINY, "images=64", "batch=32")]
    (files / "grey").mkdir()
    for k in range(4):
        Image.fromarray(pictures(4, side=28)[k, 0]).save(files / f"grey/{k}.png")
    for part in ("train", "test"):
        shutil.copytree(files / "grey", files / f"set/{part}")
    assert shortflow("train", "esc", "--data", files / "set", "--out", run, *settings).code == 0
    for more in ((), ("--split", "test"), ("--reference", files / "grey")):
        said = shortflow("evaluate", run, *words, *more)
        assert said.code == 0, said.err
        path = Path(said.out.splitlines()[-1].removeprefix("→ "))
        before = path.read_text()
        path.unlink()
        command = scored_by(str(run), json.loads(before))
        assert command is not None
        assert shortflow(*shlex.split(command)[1:]).code == 0
        assert path.read_text() == before


def test_a_run_by_number_of_steps(shortflow: Shortflow, trained: Path, files: Path, program: Path) -> None:
    said = shortflow("evaluate", trained, "--features", program, "--steps", "1,2", "-n", 30, "--seed", 3)
    assert (said.code, said.err) == (0, "")
    found = record(trained / "evaluation-four.json")
    assert list(found["rows"]) == ["1 step", "2 steps"]
    assert (found["made"]["seed"], found["made"]["images_seen"], found["made"]["guidance"]) == (3, 64, 1.0)
    assert found["rounding"] == "uint8: nearest level, clamped to 0…255"
    assert found["reference"]["source"] == "digits:train"
    assert found["made"]["classes"] == "in turn: sample k is of class k mod 10"
    assert (
        "images:    seed 3, guidance 1, PushForward, grid uniform, fp32; uint8: nearest level, clamped to 0…255"
        in said.out
    )
    # The same images, written first and scored as anybody's.
    shortflow("sample", trained, "--n", 30, "--steps", 2, "--seed", 3, "--out", files / "s.npy")
    shortflow("evaluate", files / "s.npy", "--reference", "digits", "--features", program)
    again = newest(files / "s.npy")["rows"]["s.npy"]
    assert again == found["rows"]["2 steps"]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_does_not_go_together(shortflow: Shortflow, trained: Path, files: Path, program: Path) -> None:
    def refused(message: str, *arguments: object) -> None:
        said = shortflow(*arguments)
        assert (said.code, said.out) == (2, "")
        assert message in said.err

    pngs, against = files / "pngs", ("--reference", files / "samples.npz")
    refused("say what to compare these images with: --reference STATS.npz", "evaluate", pngs)
    refused("Inception-v3: no weights were given. Fetch https://", "evaluate", pngs, *against)
    refused("there is no file nowhere.pth", "evaluate", pngs, *against, "--inception", "nowhere.pth")
    refused(
        "there are no features 'dino'; give inception, classifier", "evaluate", pngs, *against, "--features", "dino"
    )
    refused(
        "--n, --guidance: has no meaning for images that are there",
        "evaluate",
        pngs,
        *against,
        "-n",
        5,
        "--guidance",
        2,
    )
    given = ("--features", "classifier:digits", "--inception", "x.pth")
    refused("--inception: has no meaning for --features classifier:digits", "evaluate", pngs, *against, *given)
    refused(
        "--resolution: has no meaning for the features of the shipped classifier",
        "evaluate",
        trained,
        "--resolution",
        4,
    )
    message = "--keep: has no meaning for these features, whose sums are kept beside the result"
    refused(message, "evaluate", pngs, *against, "--keep", files)
    refused("there is no model at nowhere", "evaluate", "nowhere")
    with pytest.MonkeyPatch.context() as launcher:
        launcher.setenv("WORLD_SIZE", "2")
        refused("the shipped classifier are for one process", "evaluate", trained)
    refused("there is no such folder or file", "evaluate", "nowhere.npz", *against, "--features", program)
    refused("there is no such folder or file", "evaluate", pngs, "--reference", "nowhere", "--features", program)
    refused("takes images of 1 channel, got 3", "evaluate", pngs, *against, "--features", "classifier:digits")
    refused("no classifier is shipped for", "evaluate", pngs, *against, "--features", "classifier")
    refused("pickled statistics are not opened", "evaluate", pngs, "--reference", "edm2.pkl", "--features", program)
    refused("give a name that ends so", "reference", pngs, "--out", files / "s.npy")
    refused("is there already; give another name", "reference", pngs, "--out", files / "samples.npz")


def test_a_download_only_when_asked(shortflow: Shortflow, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*arguments: object, **options: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(inception.urllib.request, "urlopen", fetched)
    shared = ("reference", files / "pngs", "--out", files / "s.npz")
    assert "no weights were given" in shortflow(*shared).err
    said = shortflow(*shared, "--download")
    assert said.code == 2
    assert "could not be fetched: https://github.com/mseitzer/" in said.err
    assert "(no network here)" in said.err


# ------------------------------------------------------------------------------------------------------------ inception


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inceptions.write(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.mark.slow
def test_a_reference_by_inception(shortflow: Shortflow, files: Path, random_weights: Path) -> None:
    np.save(files / "three.npy", pictures(3))
    shared = ("reference", files / "three.npy", "--inception", random_weights, "--out", files / "s.npz")
    said = shortflow(*shared)
    assert f"SHA-256 {sha256_of(random_weights)}, but that of the published" in said.err
    assert shortflow(*shared, "--other-weights").code == 0
    found = evaluate.read_statistics(files / "s.npz")
    assert (found.features.mean.shape, found.spatial.mean.shape, found.rows.shape) == ((2048,), (2023,), (3, 2048))
    wanted = inceptions.activations(torch.load(random_weights, weights_only=True), pictures(3))
    torch.testing.assert_close(found.features.mean, wanted["features"].double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.spatial.mean, wanted["spatial"].double().mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_whole_pipeline_with_inception(
    shortflow: Shortflow, files: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All figures with random weights; the name FID is theirs only while they pass for the published ones."""
    shared = ("evaluate", files / "samples.npz", "--reference", files / "pngs", "--inception", random_weights)
    said = shortflow(*shared, "--other-weights")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].split() == ["FD-40", "sFD-40", "IS", "precision", "recall", "KID", "N"]
    assert "Note: these are not the published Inception weights: nothing here is FID." in said.out
    row = newest(files / "samples.npz")["rows"]["samples.npz"]
    weights = torch.load(random_weights, weights_only=True)
    ours, theirs = (inceptions.activations(weights, pictures(n, seed=seed)) for n, seed in ((40, 0), (24, 1)))
    for name, key in (("features", "distance"), ("spatial", "spatial_distance")):
        # tr (Σ_a^½ Σ_b Σ_a^½)^½ is the sum of the singular values of A Bᵀ for Σ_a = AᵀA, Σ_b = BᵀB.
        a, b = (side[name].double() for side in (ours, theirs))
        centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
        shift = (a.mean(0) - b.mean(0)).square().sum()
        cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
        wanted = shift + centred[0].square().sum() + centred[1].square().sum() - 2 * cross
        assert row[key] == pytest.approx(float(wanted), rel=1e-4)
    assert row["inception_score"] == pytest.approx(
        evaluate.SplitScores.of(ours["logits"], evaluate.Plan(n=40, order=1).places(), 40).value()[0], rel=1e-5
    )
    monkeypatch.setattr(inception, "SHA256", sha256_of(random_weights))
    said = shortflow(*shared)
    assert said.out.splitlines()[0].split()[:2] == ["FID-40", "sFID-40"]
    assert "published weights" in said.out
