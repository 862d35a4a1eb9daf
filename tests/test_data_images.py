"""Folders of images: exact pixels of every kind of file, layouts, and errors that name the file."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shortflow.data import decoded, load
from shortflow.data.decoded import load_folder
from shortflow.data.formats import base
from shortflow.data.images import CROPS, read_image
from shortflow.errors import DataError


def save(path: Path, pixels: object, mode: str | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    (image if mode is None else image.convert(mode)).save(path, **options)


def grey(level: int, side: int = 4) -> np.ndarray:
    return np.full((side, side), level, dtype=np.uint8)


def rgb(r: int, g: int, b: int, side: int = 4) -> np.ndarray:
    return np.tile(np.array([r, g, b], dtype=np.uint8), (side, side, 1))


# Kinds of files -----------------------------------------------------------------------------------------------------


def one(folder: Path, resolution: int | None = None) -> np.ndarray:
    return load_folder(folder, resolution=resolution).samples[0]


def test_rgb_pixels_come_through_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(5, 5, 3), dtype=np.uint8)
    save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(one(tmp_path), pixels.transpose(2, 0, 1))


def test_grey_keeps_one_channel_unless_one_is_coloured(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey(10))
    save(tmp_path / "b.png", Image.fromarray(grey(255)).convert("1"))
    np.testing.assert_array_equal(load_folder(tmp_path).samples, np.stack([grey(10), grey(255)])[:, None])
    save(tmp_path / "c.png", rgb(1, 2, 3))
    mixed = load_folder(tmp_path).samples
    assert mixed.shape == (3, 3, 4, 4)
    assert mixed[:, :, 0, 0].tolist() == [[10, 10, 10], [255, 255, 255], [1, 2, 3]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), [255, 255, 255]),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), [10, 20, 30]),
        # (0.2·c + 0.8·255) for alpha 51/255
        (Image.new("RGBA", (2, 2), (10, 20, 30, 51)), [206, 208, 210]),
        (Image.new("LA", (2, 2), (100, 51)), [224]),
        (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), [0, 255, 255]),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 255)), [0, 0, 0]),
        (Image.new("RGB", (2, 2), (9, 200, 7)).quantize(4), [9, 200, 7]),
        (Image.new("L", (2, 2), 33).quantize(4), [33]),
    ],
    ids=["clear", "opaque", "alpha", "grey-alpha", "cyan", "black", "palette", "grey-palette"],
)
def test_modes(tmp_path: Path, image: Image.Image, expected: list[int]) -> None:
    image.save(tmp_path / "a.tif" if image.mode == "CMYK" else tmp_path / "a.png")
    assert one(tmp_path)[:, 1, 1].tolist() == expected


def test_transparent_colours_become_white(tmp_path: Path) -> None:
    """A palette entry or a level that is declared transparent (tRNS)."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 100, 0])
    palette.putdata([0, 1])
    save(tmp_path / "p/a.png", palette, transparency=0)
    assert one(tmp_path / "p", 1).shape == (3, 1, 1)
    save(tmp_path / "q/a.png", palette.resize((2, 2), Image.Resampling.NEAREST), transparency=0)
    assert one(tmp_path / "q")[:, 0].T.tolist() == [[255, 255, 255], [0, 100, 0]]
    save(tmp_path / "l/a.png", np.array([[5, 6], [6, 5]], np.uint8), transparency=5)
    assert one(tmp_path / "l").tolist() == [[[255, 6], [6, 255]]]


def test_16_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    """65535 levels to 255: the level l becomes l/257, rounded."""
    levels = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    save(tmp_path / "a.png", levels)
    save(tmp_path / "b.tif", levels)
    save(tmp_path / "c.tif", Image.fromarray(levels.astype(np.int32)))
    for sample in load_folder(tmp_path).samples:
        assert sample.tolist() == [[[0, 1], [128, 255]]]


def test_32_bit_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.full((2, 2), 0.5, np.float32))
    save(tmp_path / "b.tif", np.full((2, 2), 70_000, np.int32))
    with pytest.raises(DataError, match=r"2 of 2 images .*a\.tif \(32-bit float.*b\.tif \(32-bit pixels 70000"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[1, 2], [3, 4]]),
        (2, [[2, 1], [4, 3]]),
        (3, [[4, 3], [2, 1]]),
        (6, [[3, 1], [4, 2]]),
        (8, [[2, 4], [1, 3]]),
    ],
)
def test_exif_rotation(tmp_path: Path, orientation: int, expected: list[list[int]]) -> None:
    image = Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert one(tmp_path).tolist() == [expected]


# Layouts ------------------------------------------------------------------------------------------------------------


def test_flat_folder_is_unconditional_and_in_name_order(tmp_path: Path) -> None:
    for level, name in ((3, "c.png"), (1, "a.png"), (2, "b.PNG")):
        save(tmp_path / "faces" / name, grey(level), format="png")
    for junk in (".DS_Store", "Thumbs.db", ".hidden.png", "desktop.ini"):
        (tmp_path / "faces" / junk).write_bytes(b"junk")
    data = load(str(tmp_path / "faces"))
    assert data.samples[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert (data.labels, data.classes, data.name, data.split) == (None, (), "faces", "train")


def test_sub_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    for level, name in ((30, "dog/x.png"), (10, "cat/y.png"), (11, "cat/z.png")):
        save(tmp_path / name, grey(level))
    (tmp_path / ".cache").mkdir()
    data = load_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1]
    assert data.samples[:, 0, 0, 0].tolist() == [10, 11, 30]


def test_splits(tmp_path: Path) -> None:
    for level, name in ((1, "train/a/x.png"), (2, "train/b/x.png"), (3, "test/a/x.png"), (4, "test/b/x.png")):
        save(tmp_path / name, grey(level))
    for split, levels, labels in (
        ("train", [1, 2], [0, 1]),
        ("test", [3, 4], [0, 1]),
        ("all", [3, 4, 1, 2], [0, 1] * 2),
    ):
        data = load_folder(tmp_path, split)
        assert (data.samples[:, 0, 0, 0].tolist(), data.split) == (levels, split)
        assert data.labels is not None
        assert data.labels.tolist() == labels
    with pytest.raises(DataError, match="no split 'val'; there are test, train and all"):
        load_folder(tmp_path, "val")
    with pytest.raises(DataError, match="no split 'test', because it is not divided; move the images to folders"):
        load_folder(tmp_path / "train", "test")
    save(tmp_path / "test/c/x.png", grey(5))
    with pytest.raises(DataError, match="test, train do not have the same classes"):
        load_folder(tmp_path, "all")


def test_resolution_brings_different_sizes_together(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((8, 16), 50, np.uint8))
    save(tmp_path / "b.png", np.full((5, 4), 60, np.uint8))
    samples = load(str(tmp_path), resolution=4).samples
    np.testing.assert_array_equal(samples, np.stack([grey(50), grey(60)])[:, None])


# Errors -------------------------------------------------------------------------------------------------------------


def test_missing_or_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image in it"):
        load_folder(tmp_path)
    save(tmp_path / "cat/a.png", grey(1))
    with pytest.raises(DataError, match=r"a.png: is a file, not a folder"):
        load_folder(tmp_path / "cat/a.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/.DS_Store").touch()
    with pytest.raises(DataError, match="dog: a class without an image"):
        load_folder(tmp_path)


@pytest.mark.parametrize("resolution", [None, 2])
def test_damaged_files_are_listed_together(tmp_path: Path, resolution: int | None) -> None:
    save(tmp_path / "a.png", grey(1, 64))
    noise = np.random.default_rng(0).integers(256, size=(64, 64), dtype=np.uint8)
    for k in range(6):
        path = tmp_path / f"cut{k}.png"
        save(path, noise)
        path.write_bytes(path.read_bytes()[:1500])
    (tmp_path / "empty.jpg").touch()
    named = r"1 of 8 .*empty.jpg \(" if resolution is None else r"7 of 8 .*cut0.png \(.*cut4.png \(.* and 2 more"
    with pytest.raises(DataError, match=f"{named}.*replace or remove these files"):
        load_folder(tmp_path, resolution=resolution)
    (tmp_path / "empty.jpg").unlink()
    with pytest.raises(DataError, match=r"6 of 7 .*cut0.png \(.*cut4.png \(.* and 1 more"):
        load_folder(tmp_path, resolution=resolution)


def test_sizes_without_a_resolution(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey(1, 4))
    save(tmp_path / "b.png", grey(1, 5))
    with pytest.raises(DataError, match=r"b.png: 5×5, but a.png is 4×4; give a resolution"):
        load_folder(tmp_path)
    save(tmp_path / "a.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"a.png: 6×4 is not a square; give a resolution"):
        load_folder(tmp_path)
    for bad in (0, -3):
        with pytest.raises(DataError, match=f"at least 1 pixel, got {bad}"):
            load_folder(tmp_path, resolution=bad)


# Folders larger than memory -------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, which every folder goes through."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "_IN_MEMORY", 0)
    monkeypatch.setattr(decoded, "_AT_ONCE", 3)
    return tmp_path / "cache/shortflow/folders"


@pytest.mark.parametrize("kind", ["grey", "coloured", "mixed"])
def test_a_large_folder_is_decoded_once_and_mapped(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rng = np.random.default_rng(0)
    for k in range(8):
        shape = (5, 5) if kind == "grey" or (kind == "mixed" and k < 7) else (5, 5, 3)
        save(tmp_path / f"data/{'ab'[k % 2]}/{k}.png", rng.integers(256, size=shape, dtype=np.uint8))
    mapped = load_folder(tmp_path / "data")
    with monkeypatch.context() as small:
        small.setattr(decoded, "_IN_MEMORY", 2**20)
        small.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        plain = load_folder(tmp_path / "data")
    assert isinstance(mapped.samples, np.memmap)
    assert not isinstance(plain.samples, np.memmap)
    assert mapped.fingerprint() == plain.fingerprint()
    assert mapped.shape == ((1 if kind == "grey" else 3), 5, 5)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(base, "read_image", None)  # nothing is decoded any more
    assert load_folder(tmp_path / "data").fingerprint() == plain.fingerprint()


def test_a_changed_folder_is_decoded_anew(tmp_path: Path, cache: Path) -> None:
    for k in range(3):
        save(tmp_path / f"data/{k}.png", grey(k))
    first = load_folder(tmp_path / "data")
    save(tmp_path / "data/1.png", rgb(9, 8, 7))
    second = load_folder(tmp_path / "data")
    assert second.samples[:, :, 0, 0].tolist() == [[0, 0, 0], [9, 8, 7], [2, 2, 2]]
    assert len(list(cache.iterdir())) == 1  # the old file is gone, but may still be used
    assert first.samples[:, 0, 0, 0].tolist() == [0, 1, 2]
    load_folder(tmp_path / "data", resolution=2)
    assert len(list(cache.iterdir())) == 2  # another resolution has a file of its own
    for crop in CROPS:  # and so has another crop
        load(str(tmp_path / "data"), resolution=2, crop=crop)
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_cache_is_written_anew(tmp_path: Path, cache: Path) -> None:
    save(tmp_path / "data/a.png", grey(5))
    load_folder(tmp_path / "data")
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert load_folder(tmp_path / "data").samples[0, 0, 0, 0] == 5


def test_all_damaged_files_of_a_large_folder_are_told_and_nothing_is_kept(tmp_path: Path, cache: Path) -> None:
    for k in range(9):
        save(tmp_path / f"data/{k}.png", grey(k))
    for k in (1, 7):
        (tmp_path / f"data/{k}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"2 of 9 images cannot be read: 1.png .*7.png .*replace or remove these files"):
        load_folder(tmp_path / "data", resolution=4)
    assert list(cache.iterdir()) == []


def test_a_cache_without_space_is_told(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "data/a.png", grey(5))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded, "_write", full)
    with pytest.raises(DataError, match=r"data: the decoded images, 0.0 GiB, .*No space left.*set XDG_CACHE_HOME"):
        load_folder(tmp_path / "data")


def test_decoding_says_how_far_it_is(tmp_path: Path, cache: Path) -> None:
    for k in range(8):
        save(tmp_path / f"data/{k}.png", grey(k))
    said: list[tuple[int, int]] = []
    load_folder(tmp_path / "data", resolution=1, report=lambda *done: said.append(done))
    assert said == [(3, 8), (6, 8), (8, 8)]
    said.clear()
    load_folder(tmp_path / "data", resolution=1, report=lambda *done: said.append(done))
    assert said == []  # it is there


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded."""
    found: list[Path] = []

    def read(path: Path, *arguments: object) -> np.ndarray:
        found.append(path)
        return read_image(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "read_image", read)
    return found


@pytest.mark.parametrize("damaged", [False, True])
def test_what_took_long_to_decode_is_kept_however_small_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path], damaged: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save(tmp_path / "data/a.png", grey(5))
    save(tmp_path / "data/b.png", rgb(1, 2, 3))
    if damaged:
        (tmp_path / "data/c.png").write_bytes(b"nothing")

    def loaded() -> tuple[list[int], int]:
        data = load(str(tmp_path / "data"), resolution=4, corrupt="skip")
        assert not isinstance(data.samples, np.memmap)
        return data.samples[:, :, 0, 0].tolist(), len(data.skipped)

    first, once = loaded(), len(reads)
    assert (loaded(), len(reads)) == (first, 2 * once)  # it takes no time, so it is done again
    monkeypatch.setattr(decoded, "PATIENCE", -1.0)
    assert (loaded(), len(reads)) == (first, 3 * once)
    assert (loaded(), len(reads)) == (first, 3 * once)
    assert first == ([[5, 5, 5], [1, 2, 3]], int(damaged))
    if damaged:
        with pytest.raises(DataError, match=r"c.png \(no image\)"):
            load_folder(tmp_path / "data", resolution=4)


def test_a_cache_that_cannot_be_written_stops_no_small_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "PATIENCE", -1.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    save(tmp_path / "data/a.png", grey(5))
    assert load_folder(tmp_path / "data").samples[0, 0, 0, 0] == 5


def test_colour_that_comes_late_decodes_nothing_twice(tmp_path: Path, cache: Path, reads: list[Path]) -> None:
    for k in range(7):
        save(tmp_path / f"data/{k}.png", np.arange(16, dtype=np.uint8).reshape(4, 4) + k)
    save(tmp_path / "data/7.png", rgb(9, 8, 7))
    samples = load_folder(tmp_path / "data").samples
    assert len(reads) == 8
    for k in range(7):
        np.testing.assert_array_equal(
            samples[k], np.tile(np.arange(16, dtype=np.uint8).reshape(1, 4, 4) + k, (3, 1, 1))
        )
    assert samples[7, :, 0, 0].tolist() == [9, 8, 7]


def started_together(f: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(3) as pool:
        return [each.result() for each in [pool.submit(f) for _ in range(3)]]


def test_of_several_processes_one_decodes(
    tmp_path: Path, cache: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads here: what each holds is a file that it has opened itself, as processes do."""
    for k in range(6):
        save(tmp_path / f"data/{k}.png", grey(k))
    monkeypatch.setattr(decoded, "PATIENCE", 0.0)
    read = base.read_image
    monkeypatch.setattr(base, "read_image", lambda *given: (time.sleep(0.05), read(*given))[1])
    said: list[tuple[int, int]] = []
    found = started_together(
        lambda: load_folder(tmp_path / "data", report=lambda *done: said.append(done)).samples[:, 0, 0, 0].tolist()
    )
    assert found == [list(range(6))] * 3
    assert sorted(path.name for path in reads) == [f"{k}.png" for k in range(6)]
    assert said.count((0, 6)) == 2  # those who wait say that they do
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


def test_nobody_waits_for_long_where_nothing_is_kept(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who waited for less than what is kept decode at the same time, each for itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save(tmp_path / "data/a.png", grey(5))
    inside, most, read = [0], [0], base.read_image

    def slow(*given: object) -> np.ndarray:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.3)
        inside[0] -= 1
        return read(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "read_image", slow)
    started_together(lambda: load_folder(tmp_path / "data", resolution=4))
    assert (len(reads), most[0]) == (3, 2)
