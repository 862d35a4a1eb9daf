"""How images become squares: exact pixels of every crop, and one crop on both sides of a comparison."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autoencoders import saved
from commands import Shortflow
from extractors import pictures
from shortflow import evaluate
from shortflow.data.images import CROPS, Crop, check_square, resize, square
from shortflow.errors import DataError
from shortflow.evaluate import save_program
from test_cli_evaluating import TINY, record
from test_data_images import grey, rgb

TALL = pictures(24, side=16)[:, :, :, 3:13]

# -------------------------------------------------------------------------------------------------------------- pixels


def test_crop_halves_by_box_and_takes_the_centre() -> None:
    """16×8 with value 8x: box halving gives 16k + 4 at column k of 8, and columns 2…5 are the centre."""
    wide = np.tile(np.arange(16, dtype=np.uint8) * 8, (8, 1))
    out = np.asarray(square(Image.fromarray(wide), 4))
    np.testing.assert_array_equal(out, np.tile([36, 52, 68, 84], (4, 1)))
    tall = np.asarray(square(Image.fromarray(wide.T.copy()), 4))
    np.testing.assert_array_equal(tall, out.T)


def test_crop_of_odd_excess_starts_at_the_floor() -> None:
    """7 columns to 4: one and a half too many on each side, so the first is column 1."""
    wide = np.tile(np.arange(7, dtype=np.uint8), (4, 1))
    np.testing.assert_array_equal(np.asarray(square(Image.fromarray(wide), 4)), np.tile([1, 2, 3, 4], (4, 1)))


def test_crop_halves_only_from_twice_the_size() -> None:
    """A checkerboard of pixels: one halving makes it uniform grey, bicubic from 7 to 4 does not."""
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    assert set(np.asarray(square(Image.fromarray(board), 4)).flatten()) == {128}
    below = Image.fromarray(board[:7, :7].copy())
    expected = below.resize((4, 4), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(square(below, 4)), np.asarray(expected))
    assert len(set(np.asarray(expected).flatten())) > 1


def test_crop_halves_twice_then_scales() -> None:
    """36×36 to 8: 18, then bicubic from 18 to 8; a constant stays itself to the last bit."""
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(36, 36, 3), dtype=np.uint8))
    half = image.resize((18, 18), Image.Resampling.BOX)
    quarter = half.resize((9, 9), Image.Resampling.BOX).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(square(image, 8)), np.asarray(quarter))
    np.testing.assert_array_equal(np.asarray(square(Image.fromarray(grey(77, 37)), 8)), grey(77, 8))


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (500, 375), (63, 40), (3, 200), (129, 128)])
def test_crop_always_has_the_resolution(size: tuple[int, int]) -> None:
    assert square(Image.new("RGB", size, (9, 8, 7)), 64).size == (64, 64)
    np.testing.assert_array_equal(np.asarray(square(Image.new("RGB", size, (9, 8, 7)), 64)), rgb(9, 8, 7, 64))


def test_a_stretched_image_is_all_of_it() -> None:
    """16×8 to 4: one halving of both sides, then the long one alone by a cubic of twice the width of a pixel."""
    rows = np.repeat(np.array([[10], [10], [200], [200]], np.uint8), 2, axis=0)
    wide = np.tile(rows, (1, 16))
    np.testing.assert_array_equal(np.asarray(square(Image.fromarray(wide), 4, "resize")), np.tile(rows[::2], (1, 4)))
    level = np.random.default_rng(0).integers(256, size=16).astype(np.uint8)
    half = np.rint(level.reshape(8, 2).mean(1) + 1e-9)  # halves are rounded up
    place = np.abs(np.arange(8) + 0.5 - 2 * (np.arange(4)[:, None] + 0.5)) / 2
    cubic = np.where(place < 1, 1.5 * place**3 - 2.5 * place**2 + 1, -0.5 * place**3 + 2.5 * place**2 - 4 * place + 2)
    weights = np.where(place < 2, cubic, 0)
    expected = np.clip(weights @ half / weights.sum(1), 0, 255)
    found = np.asarray(square(Image.fromarray(np.tile(level, (8, 1))), 4, "resize"))
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found, np.tile(expected, (4, 1)), atol=0.51)
    tall = np.asarray(square(Image.fromarray(np.tile(level, (8, 1)).T.copy()), 4, "resize"))
    np.testing.assert_array_equal(tall, found.T)


def test_a_padded_image_lies_whole_in_the_middle_of_white() -> None:
    """16×8 with value 8x to 4: two halvings, 32k + 12 at column k, between a row of white above and one below."""
    wide = np.tile(np.arange(16, dtype=np.uint8) * 8, (8, 1))
    white, inside = [255] * 4, [12, 44, 76, 108]
    out = np.asarray(square(Image.fromarray(wide), 4, "pad"))
    assert out.tolist() == [white, inside, inside, white]
    np.testing.assert_array_equal(np.asarray(square(Image.fromarray(wide.T.copy()), 4, "pad")), out.T)
    colours = Image.fromarray(np.tile(np.array([[[10, 20, 30]]], np.uint8), (1, 4, 1)))
    found = np.asarray(square(colours, 4, "pad"))  # three rows too many: the second is the image
    assert found[1].tolist() == [[10, 20, 30]] * 4
    assert (found[[0, 2, 3]] == 255).all()


def test_a_padded_image_that_is_smaller_is_scaled_up() -> None:
    """2×1 to 4: a row of each level twice as high, between white ones; a constant stays itself."""
    found = np.asarray(square(Image.fromarray(np.full((1, 2), 9, np.uint8)), 4, "pad"))
    assert found.tolist() == [[255] * 4, [9] * 4, [9] * 4, [255] * 4]


@pytest.mark.parametrize("side", [3, 8, 17, 36])
def test_an_image_that_is_square_is_the_same_by_every_crop(side: int) -> None:
    image = Image.fromarray(np.random.default_rng(side).integers(256, size=(side, side, 3), dtype=np.uint8))
    first, *others = (np.asarray(square(image, 8, crop)) for crop in CROPS)
    assert first.shape == (8, 8, 3)
    for each in others:
        np.testing.assert_array_equal(each, first)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (1000, 2), (1, 200), (129, 128)])
def test_every_crop_makes_the_square(size: tuple[int, int], crop: Crop) -> None:
    for mode, white in (("L", 255), ("RGB", (255, 255, 255))):
        image = square(Image.new(mode, size, "white"), 64, crop)
        assert (image.size, image.mode, image.getcolors()) == ((64, 64), mode, [(64 * 64, white)])


def test_a_crop_that_there_is_not_is_told() -> None:
    with pytest.raises(DataError, match="there is no crop 'middle'; there are centre, resize, pad"):
        check_square(8, "middle")
    with pytest.raises(DataError, match=r"crop pad says how images become squares; give their side as well"):
        check_square(None, "pad")
    with pytest.raises(DataError, match="resolution must be at least 1 pixel, got 0"):
        check_square(0, "pad")
    check_square(None, "centre")


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_of_arrays_is_the_crop_of_each(channels: int) -> None:
    samples = np.random.default_rng(1).integers(256, size=(3, channels, 6, 6), dtype=np.uint8)
    out = resize(samples, 3)
    assert out.shape == (3, channels, 3, 3)
    boxes = samples.reshape(3, channels, 3, 2, 3, 2).mean((3, 5))
    assert np.abs(out - boxes).max() <= 1  # rounded once along each axis
    for before, after in zip(samples, out, strict=True):
        layer = Image.fromarray(before[0] if channels == 1 else before.transpose(1, 2, 0))
        expected = np.asarray(square(layer, 3)).reshape(3, 3, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(after, expected)
    assert resize(samples, 6) is samples


# -------------------------------------------------------------------------------------------------------- both sides


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    path = tmp_path_factory.mktemp("program") / "four.pt2"
    save_program(path, network, name="four", size=8)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """tall/, images that are no squares."""
    (tmp_path / "tall").mkdir()
    for k, image in enumerate(TALL):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"tall/{k:03d}.png")
    return tmp_path


def test_both_sides_become_squares_in_one_way(shortflow: Shortflow, files: Path, program: Path) -> None:
    """By --crop: of images, of a reference that is images, and of one that is statistics, which say by which."""
    by = {crop: resize(TALL, 8, crop) for crop in ("centre", "resize", "pad")}
    words = ("--features", program, "--resolution", 8)
    extractor = evaluate.load_program(program)
    for crop, images in by.items():
        said = shortflow("reference", files / "tall", *words, "--crop", crop, "--out", files / f"{crop}.npz")
        assert said.code == 0, said.err
        known = evaluate.read_statistics(files / f"{crop}.npz")
        wanted = extractor.run(images).features.double().mean(0)
        torch.testing.assert_close(known.features.mean, wanted, rtol=1e-6, atol=1e-7)
        assert known.crop == crop
        np.save(files / "squares.npy", images)
        for reference in (files / f"{crop}.npz", files / "tall"):
            out = ("--out", files / "found.json")
            said = shortflow("evaluate", files / "tall", "--reference", reference, *words, "--crop", crop, *out)
            assert said.code == 0, said.err
            found = record(files / "found.json")
            assert found["rows"]["tall"]["distance"] == pytest.approx(0, abs=1e-9)
            assert (found["resize"], found["crop"], found["reference"]["crop"]) == ("to 8", crop, crop)
        # What is square already was brought to nothing.
        said = shortflow("evaluate", files / "squares.npy", "--reference", files / f"{crop}.npz", *words[:2], *out)
        assert said.code == 0, said.err
        assert record(files / "found.json")["rows"]["squares.npy"]["distance"] == pytest.approx(0, abs=1e-9)
        assert record(files / "found.json")["crop"] is None
    said = shortflow("evaluate", files / "tall", "--reference", files / "pad.npz", *words)
    assert said.code == 2
    assert "pad.npz is of images by crop pad, these are by crop centre, which moves every distance" in said.err
    said = shortflow("reference", files / "tall", "--features", program, "--crop", "pad", "--out", files / "s.npz")
    assert (said.code, "crop pad says how images become squares; give their side as well" in said.err) == (2, True)


def test_statistics_that_do_not_say_how_squares_were_made_are_compared(
    shortflow: Shortflow, files: Path, program: Path
) -> None:
    """Those of other projects, and of ours before there was a choice; by another crop than theirs that is told."""
    words = ("--features", program, "--resolution", 8)
    assert shortflow("reference", files / "tall", *words, "--out", files / "s.npz").code == 0
    with np.load(files / "s.npz") as arrays:
        kept = dict(arrays)
    described = json.loads(str(kept["shortflow"]))
    del described["crop"]
    np.savez(files / "old.npz", **kept | {"shortflow": np.array(json.dumps(described))})
    assert evaluate.read_statistics(files / "old.npz").crop is None
    note = "Note: the images are by crop pad, and the reference does not say how its images became squares"
    for crop, told in (("centre", False), ("pad", True)):
        said = shortflow("evaluate", files / "tall", "--reference", files / "old.npz", *words, "--crop", crop)
        assert (said.code, note in said.out) == (0, told), said.err


def test_a_reference_becomes_squares_as_the_images_of_a_run_did(
    shortflow: Shortflow, files: Path, program: Path
) -> None:
    settings = [f"--set={each}" for each in (*TINY, "images=64", "batch=32", "data.crop=pad")]
    run = files / "run"
    said = shortflow("train", "esc", "--data", files / "tall", "--resolution", 8, "--out", run, *settings)
    assert said.code == 0, said.err
    assert "  resolution: 8\n  crop: pad\n" in (run / "run.yaml").read_text()
    words = ("--features", program, "--steps", 1, "-n", 12, "--out", files / "found.json")
    assert shortflow("evaluate", run, *words).code == 0
    own = record(files / "found.json")
    np.save(files / "squares.npy", resize(TALL, 8, "pad"))
    for reference in (("squares.npy",), ("tall", "--resolution", 8), ("tall", "--resolution", 8, "--crop", "pad")):
        said = shortflow("evaluate", run, *words, "--reference", files / reference[0], *reference[1:])
        assert said.code == 0, said.err
        row = record(files / "found.json")["rows"]["1 step"]
        assert row["distance"] == pytest.approx(own["rows"]["1 step"]["distance"], rel=1e-9)
    assert own["crop"] == "pad"
    other = ("--reference", files / "tall", "--resolution", 8, "--crop", "resize")
    said = shortflow("evaluate", run, *words, *other)
    assert (said.code, "tall is of images by crop resize, these are by crop pad" in said.err) == (2, True)
    said = shortflow("evaluate", run, *words, "--crop", "pad")
    assert "--crop: has no meaning for the images that a run was trained on" in said.err


def test_a_store_says_its_crop_to_the_run_and_the_run_to_its_scores(
    shortflow: Shortflow, files: Path, program: Path
) -> None:
    saved(files / "vae")
    words = ("encode", files / "tall", "--encoder", files / "vae", "--resolution", 16, "--out", files / "latents")
    said = shortflow(*words, "--crop", "pad")
    assert (said.code, said.err) == (0, "")
    command = said.out.splitlines()[-1].removeprefix("Train:   shortflow ")
    assert command == f"train esc --data {files}/latents --set data.crop=pad --out out/latents"
    settings = [f"--set={each}" for each in (*TINY, "images=16", "batch=8", "train.group=4")]
    run = ("--out", files / "run", *settings)
    said = shortflow("train", "esc", "--data", files / "latents", *run)
    assert (said.code, "by crop pad (halved by boxes, bicubic, whole on white), not centre" in said.err) == (2, True)
    assert shortflow(*command.split()[:-2], *run).code == 0
    score = ("evaluate", files / "run", "--features", program, "--steps", 1, "-n", 8, "--out", files / "found.json")
    distances = []
    np.save(files / "squares.npy", resize(TALL, 16, "pad"))
    for reference in ((files / "tall", "--resolution", 16), (files / "squares.npy",)):
        said = shortflow(*score, "--reference", *reference)
        assert said.code == 0, said.err
        assert record(files / "found.json")["crop"] == "pad"
        distances.append(record(files / "found.json")["rows"]["1 step"]["distance"])
    assert distances[0] == pytest.approx(distances[1], rel=1e-9)
    shortflow("reference", files / "tall", "--features", program, "--resolution", 16, "--out", files / "centre.npz")
    said = shortflow(*score, "--reference", files / "centre.npz")
    assert "centre.npz is of images by crop centre, these are by crop pad, which moves" in said.err
