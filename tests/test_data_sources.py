"""Sources of images: one order, one picture each, and messages for what cannot be read."""

import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shortflow import data
from shortflow.data.sources import open_source
from shortflow.errors import DataError

RANDOM = np.random.default_rng(0)
PHOTOS = {
    f"{name}/{k}.png": RANDOM.integers(256, size=(20 + k, 30, 3), dtype=np.uint8) for name in "ba" for k in range(3)
}


def folder(path: Path, photos: dict[str, np.ndarray] = PHOTOS) -> Path:
    for name, pixels in photos.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / name)
    return path


def zipped(path: Path, photos: dict[str, np.ndarray] = PHOTOS, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, pixels in photos.items():
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
        for name, content in others.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def test_folders_and_zip_files_give_the_images_of_the_data_set(tmp_path: Path) -> None:
    whole = data.load(str(folder(tmp_path / "photos")), resolution=16)
    assert whole.labels is not None
    for path in (tmp_path / "photos", zipped(tmp_path / "photos.zip", readme__txt=b"words", __hidden=b"x")):
        source = open_source(str(path), resolution=16)
        assert (len(source), source.classes, source.name, source.resolution) == (6, ("a", "b"), "photos", 16)
        assert source.labels is not None
        assert source.labels.tolist() == whole.labels.tolist() == [0, 0, 0, 1, 1, 1]
        for k in range(6):
            np.testing.assert_array_equal(source.read(k).transpose(2, 0, 1), whole.samples[k])
        assert source.title(0) == "a/0.png"


@pytest.mark.parametrize("around", ["", "archive/", "deep/er/"])
def test_zip_files_have_the_layouts_of_folders(tmp_path: Path, around: str) -> None:
    flat = {f"{around}{k}.png": PHOTOS[f"a/{k}.png"] for k in range(3)} if not around.count("/") > 1 else {}
    if flat and not around:
        assert open_source(str(zipped(tmp_path / "flat.zip", flat)), resolution=8).labels is None
    classes = {around + name: pixels for name, pixels in PHOTOS.items()}
    assert open_source(str(zipped(tmp_path / "c.zip", classes)), resolution=8).classes == ("a", "b")
    splits = {f"{around}{split}/{name}": pixels for split in ("train", "test") for name, pixels in PHOTOS.items()}
    path = str(zipped(tmp_path / "s.zip", splits))
    assert [len(open_source(path, split, resolution=8)) for split in ("train", "test", "all")] == [6, 6, 12]
    with pytest.raises(DataError, match="no split 'val'; there are test, train and all"):
        open_source(path, "val", resolution=8)


def test_a_zip_file_is_read_by_many_threads(tmp_path: Path) -> None:
    source = open_source(str(zipped(tmp_path / "p.zip")), resolution=16)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.read, [k % 6 for k in range(120)]))
    for k, image in enumerate(found):
        np.testing.assert_array_equal(image, found[k % 6])


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "grey"])
@pytest.mark.parametrize("keys", [("images", "labels"), ("arr_0", "arr_1"), ("samples", None)])
def test_arrays_are_taken_as_they_are(tmp_path: Path, layout: str, keys: tuple[str, str | None]) -> None:
    images = RANDOM.integers(256, size=(5, 3, 8, 8), dtype=np.uint8)
    stored = {"nhwc": images.transpose(0, 2, 3, 1), "nchw": images, "grey": images[:, 0]}[layout]
    arrays = {keys[0]: stored} | ({} if keys[1] is None else {keys[1]: np.array([0, 2, 0, 2, 2], np.int32)})
    np.savez(tmp_path / "set.npz", **arrays)
    source = open_source(str(tmp_path / "set.npz"))
    assert (len(source), source.resolution, source.name) == (5, 8, "set")
    assert source.classes == (() if keys[1] is None else ("0", "1", "2"))
    for k in range(5):
        want = images[k, 0] if layout == "grey" else images[k].transpose(1, 2, 0)
        np.testing.assert_array_equal(source.read(k), want)
    assert open_source(str(tmp_path / "set.npz"), resolution=4).read(0).shape[:2] == (4, 4)


def test_named_sets_are_sources() -> None:
    source, digits = open_source("digits", "test"), data.load("digits", "test")
    assert (len(source), source.resolution, source.split) == (500, 8, "test")
    np.testing.assert_array_equal(source.read(7), digits.samples[7, 0])
    with pytest.raises(DataError, match="points have no latents"):
        open_source("moons")


def test_listings_change_with_the_images_and_with_nothing_else(tmp_path: Path) -> None:
    path = folder(tmp_path / "photos")
    archive = open_source(str(zipped(tmp_path / "p.zip")), resolution=16)
    before = [open_source(str(path), resolution=16).listing(rows) for rows in (range(3), range(3, 6))]
    os.utime(path / "a/0.png", (1, 1))  # a copy has other times
    assert before == [open_source(str(path), resolution=16).listing(rows) for rows in (range(3), range(3, 6))]
    Image.fromarray(PHOTOS["a/0.png"][:5]).save(path / "a/0.png")
    after = [open_source(str(path), resolution=16).listing(rows) for rows in (range(3), range(3, 6))]
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    other = open_source(str(zipped(tmp_path / "q.zip", {**PHOTOS, "a/0.png": 255 - PHOTOS["a/0.png"]})), resolution=16)
    assert archive.listing(range(3)) != other.listing(range(3))
    assert archive.listing(range(3, 6)) == other.listing(range(3, 6))


def test_what_is_no_source_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder(tmp_path / "photos")
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 8, 8, 3)))
    np.savez(tmp_path / "names.npz", pictures=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "labels.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0.0, 1.0]))
    np.savez(tmp_path / "objects.npz", images=np.array([object()]))
    zipped(tmp_path / "mixed.zip", {**PHOTOS, "c.png": PHOTOS["a/0.png"]})
    zipped(tmp_path / "empty.zip", {})
    zipped(tmp_path / "capitals.zip", {"A/0.png": PHOTOS["a/0.png"], "a/1.png": PHOTOS["a/0.png"]})
    cases = {
        "nowhere": "neither a known name nor a folder or file",
        "words.txt": "neither a folder nor a .zip, .npz, .npy, .tar or .parquet file",
        "broken.zip": "no zip file, or only a part of one",
        "broken.npz": "cannot be read",
        "floats.npz": "must be uint8 images .*, got float64 of shape \\(2, 8, 8, 3\\)",
        "names.npz": "no array is called images, samples, arr_0, x; there are pictures",
        "labels.npz": "labels must be whole numbers from 0, one for each of the 2 images, got float64",
        "objects.npz": "cannot be read",
        "capitals.zip": "the classes A and a differ in capital letters only",
        "mixed.zip": "1 image at the top \\(c.png, …\\) and 6 images in sub-folders \\(a, b\\); take all of them",
        "empty.zip": "no image in it",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / name), resolution=8)
    with pytest.raises(DataError, match=r"0.png: 30×20 is not a square; give a resolution"):
        open_source(str(tmp_path / "photos"))
    with pytest.raises(DataError, match="at least 1 pixel"):
        open_source(str(tmp_path / "photos"), resolution=0)
    with pytest.raises(DataError, match="no split 'test', because it is not divided"):
        open_source(str(tmp_path / "photos"), "test", resolution=8)


def test_a_bomb_in_a_zip_file_is_not_unpacked(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w") as entry,
    ):
        for _ in range(257):
            entry.write(bytes(2**20))
    source = open_source(str(tmp_path / "bomb.zip"), resolution=8)
    with pytest.raises(ValueError, match="269,484,032 bytes are no image"):
        source.read(0)
