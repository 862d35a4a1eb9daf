"""Images where they lie: folders, archives and arrays give the same pixels, any range, in little memory."""

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from extractors import pictures
from shortflow.arrays import Stacked
from shortflow.data import Dataset, decoded, load
from shortflow.data.formats import base
from shortflow.data.images import read_image
from shortflow.data.latentspec import LatentSpec
from shortflow.data.stored import Stored, of_dataset, open_images
from shortflow.errors import DataError


def read(stored: Stored, first: int = 0, last: int | None = None) -> np.ndarray:
    return np.concatenate(list(stored.read(first, stored.count if last is None else last)))


def folder(path: Path, images: np.ndarray, ending: str = "png") -> Path:
    """Single files in two class folders, whose names sort in the order of the images."""
    for k, image in enumerate(images):
        place = path / ("a" if k < len(images) // 2 else "b") / f"{k:04d}.{ending}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place, lossless=True)
    return path


def zipped(path: Path, source: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(source))
        archive.writestr("dataset.json", "{}")
        archive.writestr("__MACOSX/._0001.png", b"x")
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return pictures(70, side=9)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> dict[str, Path]:
    """The same images in every form."""
    root = tmp_path_factory.mktemp("forms")
    last = images.transpose(0, 2, 3, 1)
    np.savez(root / "adm.npz", last)
    np.savez_compressed(root / "packed.npz", labels=np.arange(70), samples=images)
    np.savez_compressed(root / "both.npz", arr_0=last, arr_1=np.arange(70), mu=np.zeros(3), sigma=np.eye(3))
    np.save(root / "first.npy", images)
    np.save(root / "last.npy", last)
    folder(root / "pngs", images)
    zipped(root / "pngs.zip", root / "pngs")
    return {path.name: path for path in root.iterdir()}


NAMES = ["adm.npz", "packed.npz", "both.npz", "first.npy", "last.npy", "pngs", "pngs.zip"]


@pytest.mark.parametrize("name", NAMES)
def test_every_form_holds_the_same_images(name: str, forms: dict[str, Path], images: np.ndarray) -> None:
    stored = open_images(forms[name])
    assert (stored.count, stored.shape, stored.resolution) == (70, (3, 9, 9), None)
    assert stored.formats == ({"png": 70} if "pngs" in name else {"array": 70})
    np.testing.assert_array_equal(read(stored), images)
    np.testing.assert_array_equal(read(stored, 50, 70), images[50:])
    np.testing.assert_array_equal(read(stored, 3, 5), images[3:5])  # backwards
    assert stored.identity == open_images(forms[name]).identity


@pytest.mark.parametrize("name", NAMES)
def test_a_resolution_crops_and_scales(name: str, forms: dict[str, Path]) -> None:
    stored = open_images(forms[name], resolution=4)
    assert stored.shape == (3, 4, 4)
    np.testing.assert_array_equal(read(stored), read(open_images(forms["first.npy"], resolution=4)))


def test_grey_arrays_and_named_data(tmp_path: Path) -> None:
    digits = load("digits", "test")
    stored = open_images("digits:test")
    assert (stored.source, stored.count, stored.shape) == ("digits:test", 500, (1, 8, 8))
    np.testing.assert_array_equal(read(stored), digits.samples)
    assert open_images("digits").count == 1297
    np.savez(tmp_path / "grey.npz", digits.samples[:, 0])
    np.testing.assert_array_equal(read(open_images(tmp_path / "grey.npz")), digits.samples)


def test_only_images_of_a_data_set_are_images() -> None:
    random = np.random.default_rng(0)
    halves = [random.integers(256, size=(n, 1, 4, 4), dtype=np.uint8) for n in (70, 30)]
    stacked = Dataset(name="two files", samples=Stacked(tuple(halves)))
    np.testing.assert_array_equal(read(of_dataset(stacked), 10, 90), np.concatenate(halves)[10:90])
    with pytest.raises(DataError, match="points: these are points, not images"):
        of_dataset(Dataset(name="points", samples=np.zeros((3, 2), np.float32)))
    latent = LatentSpec(encoder="vae", sha256=None, pixels=(3, 32, 32), shift=(0.0,) * 4, scale=(1.0,) * 4)
    moments = np.zeros((3, 2, 2, 4, 4, 4), np.float16)
    measured = ((0.0,) * 4, (1.0,) * 4)
    with pytest.raises(DataError, match="cached: these are latents, not images"):
        of_dataset(Dataset(name="cached", samples=moments, latent=latent, measured=measured))


def test_identity_follows_the_files(tmp_path: Path) -> None:
    folder(tmp_path / "f", pictures(4))
    before = open_images(tmp_path / "f").identity
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "f/a/0000.png")
    assert open_images(tmp_path / "f").identity != before


def test_formats_are_counted_and_grey_files_become_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((8, 8), 77, np.uint8))
    for name in ("1.jpg", "2.JPEG", "3.png", ".hidden.png"):
        image.save(tmp_path / name, format="PNG" if name.endswith("g") and "3" in name else "JPEG")
    stored = open_images(tmp_path)
    assert stored.formats == {"jpeg": 2, "png": 1}
    assert read(stored).shape == (3, 3, 8, 8)


def test_a_compressed_array_is_read_through_once_in_little_memory(tmp_path: Path) -> None:
    images = np.zeros((2000, 64, 64, 3), np.uint8)
    images[:] = np.arange(2000, dtype=np.uint8)[:, None, None, None]
    np.savez_compressed(tmp_path / "s.npz", images)
    del images
    stored = open_images(tmp_path / "s.npz")
    tracemalloc.start()
    seen = [
        int(batch[k, 0, 0, 0])
        for first in range(0, 2000, 500)
        for batch in stored.read(first, first + 500)
        for k in range(len(batch))
    ]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == [k % 256 for k in range(2000)]
    assert peak < 2000 * 64 * 64 * 3 / 4


def test_what_is_refused(tmp_path: Path) -> None:
    def refused(given: Any, message: str, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            read(open_images(given, **options))

    def saved(name: str = "s.npz", **arrays: np.ndarray) -> Path:
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    refused("nowhere", r"there is no such folder or file, and no data set of that name \(digits, mnist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no image in it")
    refused("digits:nowhere", "no split 'nowhere'")
    refused(saved(arr_0=np.zeros((2, 8, 8, 3))), "images are uint8, got float64; scale to 0…255, round")
    refused(saved(arr_0=np.zeros((2, 8, 8, 4), np.uint8)), "1 or 3 channels, got shape")
    refused(saved(mu=np.zeros(3), sigma=np.eye(3)), r"holds no uint8 images \(n, h, w, c\), but mu float64")
    refused(saved(a=pictures(2), b=pictures(2)), r"several arrays of images \(a, b\); keep one, or call it arr_0")
    refused(saved(arr_0=pictures(1)[:0]), "the array is empty")
    refused(saved(arr_0=np.asfortranarray(pictures(2))), "Fortran order")
    refused(saved(arr_0=np.array([None])), "images are uint8, got object")
    refused(saved(arr_0=pictures(2)), "at least 1 pixel", resolution=0)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(saved(arr_0=pictures(200)).read_bytes()[:-5000])
    refused(cut, "is no readable .npz file")
    (tmp_path / "x.zip").write_bytes(b"x")
    refused(tmp_path / "x.zip", "no zip file, or only a part of one")
    (tmp_path / "x.txt").write_text("x")
    refused(tmp_path / "x.txt", "neither a folder nor a .zip, .npz, .npy, .tar or .parquet file")
    refused(saved(arr_0=pictures(2)), "no split 'test', because a file of arrays has none", split="test")
    refused("rings", "these are points, not images")


def test_damaged_files_and_mixed_sizes_are_named_before_the_first_is_used(tmp_path: Path) -> None:
    folder(tmp_path, pictures(4))
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / "b/9.png")
    with pytest.raises(DataError, match=r"b/9\.png has 6×5 pixels, others have 8×8; give a resolution"):
        open_images(tmp_path)
    assert read(open_images(tmp_path, resolution=4)).shape == (5, 3, 4, 4)
    (tmp_path / "b/9.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read: b/9\.png .*leave them out with --corrupt skip"):
        open_images(tmp_path, resolution=4)
    (tmp_path / "a/0000.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"2 of 5 images cannot be read: a/0000\.png \(no image\), b/9\.png"):
        open_images(tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("resolution", [None, 16])
def test_a_file_without_its_end_is_refused_before_the_first_is_used(
    tmp_path: Path, ending: str, resolution: int | None
) -> None:
    """Its header is whole."""
    folder(tmp_path, pictures(4, side=32), ending)
    path = tmp_path / f"b/0003.{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with Image.open(path) as header:
        assert header.size == (32, 32)
    with pytest.raises(DataError, match=rf"1 of 4 images cannot be read: b/0003\.{ending} .*--corrupt skip"):
        open_images(tmp_path, resolution=resolution)
    path.write_bytes(whole)
    assert open_images(tmp_path, resolution=resolution).count == 4


def test_images_are_looked_at_once_where_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache, given = tmp_path / "cache/shortflow/whole", folder(tmp_path / "f", pictures(5))
    (given / "b/0004.png").write_bytes(b"x")
    decodes: list[Any] = []

    def read(file: Any, *arguments: Any) -> Any:
        decodes.append(file)
        return read_image(file, *arguments)

    monkeypatch.setattr(base, "read_image", read)

    def looked(corrupt: Any = "skip", **options: Any) -> int:
        """How many images are decoded to open all of them."""
        decodes.clear()
        assert open_images(given, corrupt=corrupt, resolution=4, **options).count == 4
        return len(decodes)

    assert (looked(), looked()) == (5, 5)  # it takes no time, so it is done again
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(decoded, "PATIENCE", -1.0)
    assert (looked(), looked(), looked(crop="pad")) == (5, 0, 0)
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read: b/0004\.png \(no image\)"):
        looked("refuse")
    (kept,) = cache.iterdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(given / "a/0000.png")
    assert (looked(), looked()) == (5, 0)
    (anew,) = cache.iterdir()
    assert anew != kept
    anew.write_text('{"failures": [')
    assert looked() == 5
    monkeypatch.setenv("XDG_CACHE_HOME", str(given / "a/0000.png"))  # where nothing can be written
    assert looked() == 5


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_damaged_files_are_left_out_where_that_is_asked_for(form: str, tmp_path: Path) -> None:
    """Also those whose header is whole; what is left is what a folder without them holds."""
    images = pictures(8, side=32)
    broken, clean = (folder(tmp_path / name, images) for name in ("broken", "clean"))
    for name, content in (("a/0000.png", b"x"), ("b/0006.png", (clean / "b/0006.png").read_bytes()[:-1500])):
        (broken / name).write_bytes(content)
        (clean / name).unlink()
    given = broken if form == "folder" else zipped(tmp_path / "broken.zip", broken)
    found = open_images(given, corrupt="skip")
    assert (found.count, found.formats) == (6, {"png": 6})
    assert [title for title, _ in found.skipped] == ["a/0000.png", "b/0006.png"]
    np.testing.assert_array_equal(read(found), read(open_images(clean)))
    np.testing.assert_array_equal(read(found, 3, 6), images[[4, 5, 7]])
    assert found.identity == open_images(given, corrupt="skip").identity
    assert open_images(clean).skipped == ()


def test_photographs_on_their_side_have_one_size(tmp_path: Path) -> None:
    """A header says 6×5 of a picture that is seen as 5×6; that is no other size."""
    Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(tmp_path / "0.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / "1.jpg", exif=turned)
    assert read(open_images(tmp_path)).shape == (2, 3, 6, 5)
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / "1.jpg")
    with pytest.raises(DataError, match=r"1\.jpg has 6×5 pixels, others have 5×6"):
        open_images(tmp_path)


def test_a_folder_holds_the_images_that_a_run_is_trained_on(tmp_path: Path) -> None:
    """The same splits, layouts and refusals."""
    folder(tmp_path / "photos/train", pictures(6))
    folder(tmp_path / "photos/test", pictures(4, seed=1))
    packed = zipped(tmp_path / "photos.zip", tmp_path / "photos")
    for given in (str(tmp_path / "photos"), str(packed)):
        for split in ("train", "test", "all"):
            wanted = load(given, split).samples
            np.testing.assert_array_equal(read(open_images(given, split=split)), wanted)
            np.testing.assert_array_equal(read(open_images(f"{given}:{split}")), wanted)
        np.testing.assert_array_equal(read(open_images(given)), load(given).samples)
        with pytest.raises(DataError, match="no split 'val'"):
            open_images(given, split="val")
        with pytest.raises(DataError, match="of the split test, not train; leave out one of them"):
            open_images(f"{given}:test", split="train")
    deep = folder(tmp_path / "deep/a/b", pictures(2)).parent.parent
    with pytest.raises(DataError, match="take all of them, without classes"):
        load(str(deep))
    np.testing.assert_array_equal(
        read(open_images(deep)), load(str(deep), label="none").samples
    )  # classes do not matter
