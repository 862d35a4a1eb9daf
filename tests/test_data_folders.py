"""Folders as people have them: which files are images, what is said of the others, and what deeper folders mean."""

import io
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, features

from commands import Shortflow
from shortflow.data import images, load
from shortflow.data.formats import base, open_path
from shortflow.data.formats.members import Members, members_among, members_of
from shortflow.data.sources import open_source
from shortflow.errors import DataError

SEVERAL = r"take all of them, without classes, with --set data.label=none \(encode: --label none\)"


def photo(path: Path, level: int = 0, form: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path, form)


def junk(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"junk")


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.fixture
def takeout(tmp_path: Path) -> Path:
    """An export of photographs: images, a text beside each, films, and what three systems leave behind."""
    folder = tmp_path / "photos"
    for k, (name, form) in enumerate([("a.JPG", "JPEG"), ("b.jfif", "JPEG"), ("c.jpe", "JPEG"), ("d.png", "PNG")]):
        photo(folder / name, 10 * k, form)
    junk(folder, *(f"{name}.json" for name in "abcd"), "b.mov", "c.mp4", "d.xmp", "README")
    junk(folder, "Thumbs.db", ".DS_Store", "._a.JPG", "desktop.ini", ".trash/e.jpg", "@eaDir/a.JPG/SMALL.jpg")
    return folder


NOTE = (
    "skipped 12 files that are no images, beside 4 that are: 4 .json, 1 .mov, 1 .mp4, 1 .xmp, 1 without an ending, "
    "4 hidden"
)


def test_what_is_no_image_is_skipped_and_told(takeout: Path) -> None:
    data = load(str(takeout), resolution=8)
    assert [round(int(level), -1) for level in data.samples[:, 0, 0, 0]] == [0, 10, 20, 30]
    assert (data.labels, data.notes) == (None, (f"{takeout}: {NOTE}",))
    assert open_source(str(takeout), resolution=8).notes == data.notes


def test_archives_go_by_the_same_rule(takeout: Path) -> None:
    path = zipped(takeout)
    data = load(str(path), resolution=8)
    (note,) = data.notes
    assert note == f"{path}: {NOTE.replace('12 files', '14 files').replace('4 hidden', '6 hidden')}"  # none are folders
    np.testing.assert_array_equal(data.samples, load(str(takeout), resolution=8).samples)


def test_a_few_hidden_files_are_not_worth_a_word_and_many_are(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    junk(tmp_path, ".DS_Store")
    assert members_of(tmp_path).note() is None
    junk(tmp_path, "._a.png")
    assert members_of(tmp_path).note() == "skipped 2 files that are no images, beside 1 that are: 2 hidden"


def test_notes_of_many_kinds_are_short() -> None:
    found = members_among([f"{k}.{'x' * (k + 1)}" for k in range(9)] + ["a.png"])
    kinds = "1 .x, 1 .xx, 1 .xxx, 1 .xxxx, 1 .xxxxx, 1 .xxxxxx, 3 others"
    assert found.note() == f"skipped 9 files that are no images, beside 1 that are: {kinds}"
    assert Members(images=()).note() is None


def test_training_and_encoding_say_it(takeout: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("train", "esc", "--data", takeout, "--resolution", 8, "--dry-run", "--out", tmp_path / "run")
    assert (said.code, said.err) == (0, "")
    assert f"note: {takeout}: {NOTE}" in said.out


@pytest.mark.skipif(not features.check("avif"), reason="Pillow below 11.3")
def test_avif_is_an_image(tmp_path: Path) -> None:
    photo(tmp_path / "a.avif", 200, "AVIF")
    assert abs(int(load(str(tmp_path)).samples[0, 0, 4, 4]) - 200) <= 2


# What cannot be decoded here ------------------------------------------------------------------------------------------


def test_raw_data_are_named_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "a.png", 7)
    photo(tmp_path / "b.dng", 9, "TIFF")  # of which Pillow would read what may be the thumbnail
    with monkeypatch.context() as untouched:
        untouched.setattr(base, "read_image", None)
        for opened in (load, open_source):
            with pytest.raises(DataError, match=r"1 of 2 images .*: b.dng \(raw data of a camera; develop it to JPEG"):
                opened(str(tmp_path), resolution=8)
    left = load(str(tmp_path), resolution=8, corrupt="skip")
    assert left.samples[:, 0, 0, 0].tolist() == [7]
    assert [title for _, title, _ in left.skipped] == ["b.dng"]
    assert len(open_source(str(tmp_path), corrupt="skip")) == 2


def test_telephones_need_a_plugin_and_it_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "a.HEIC", 7)
    monkeypatch.setattr(images, "_plugin", lambda: None)
    images.reads_heif.cache_clear()
    with pytest.raises(
        DataError, match=r"a.HEIC \(HEIF needs a plugin: pip install pillow-heif; or convert it to JPEG"
    ):
        load(str(tmp_path))
    plugin, calls = ModuleType("pillow_heif"), []
    plugin.register_heif_opener = lambda: calls.append(1)  # type: ignore[attr-defined]
    monkeypatch.setattr(images, "_plugin", lambda: plugin)
    images.reads_heif.cache_clear()
    try:
        assert load(str(tmp_path)).samples[0, 0, 0, 0] == 7
        assert calls == [1]
    finally:
        images.reads_heif.cache_clear()


@pytest.mark.skipif(images.reads_heif(), reason="pillow-heif is there")
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_those_of_telephones_are_known_by_their_content_too(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "photos"
    photo(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    junk(folder, "c.jpg")
    given = folder if form == "folder" else zipped(folder)
    with pytest.raises(DataError, match=r"2 of 3 .*: b.jpg \(HEIF needs a plugin: .*\), c.jpg \(no image\);"):
        load(str(given), resolution=8)


# Depth ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_albums_in_dates_are_a_choice(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "photos"
    for k, name in enumerate(["2022/12/a.png", "2023/01/b.png", "2023/02/b.png", "2023/c.png"]):
        photo(folder / name, k)
    given = str(folder if form == "folder" else zipped(folder))
    choice = r"images lie in folders of folders \(2022/12/a.png\), so .*; " + SEVERAL
    with pytest.raises(
        DataError, match=choice + r", or let the first sub-folder be the class \(2022, 2023\) with .*=folder"
    ):
        load(given)
    every = load(given, label="none")
    assert (every.labels, every.samples[:, 0, 0, 0].tolist()) == (None, [0, 1, 2, 3])
    years = load(given, label="folder")
    assert years.classes == ("2022", "2023")
    assert years.labels is not None
    assert years.labels.tolist() == [0, 1, 1, 1]
    assert len(open_source(given, label="none")) == 4


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_at_the_top_and_below_are_a_choice(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "photos"
    for k, name in enumerate(["a.png", "album/b.png", "album/c.png"]):
        photo(folder / name, k)
    given = str(folder if form == "folder" else zipped(folder))
    choice = r"1 image at the top \(a.png, …\) and 2 images in sub-folders \(album\); " + SEVERAL
    for label in (None, "folder"):
        with pytest.raises(DataError, match=choice + ", or, for classes, move those at the top into their folders"):
            load(given, label=label)
    assert load(given, label="none").samples[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_all_images_of_a_split_and_no_others(tmp_path: Path) -> None:
    for k, name in enumerate(["test/x/y/a.png", "train/b.png", "train/x/y/z/c.png"]):
        photo(tmp_path / name, k)
    junk(tmp_path, "README.md", "notes/todo.txt")  # which do not undo the splits
    assert load(str(tmp_path), label="none").samples[:, 0, 0, 0].tolist() == [1, 2]
    assert load(str(tmp_path), "test", label="none").samples[:, 0, 0, 0].tolist() == [0]
    assert load(str(tmp_path), "all", label="none").samples[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_folders_without_images_are_no_classes_and_empty_ones_a_slip(tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/b.png"):
        photo(tmp_path / name)
    junk(tmp_path, "films/a.mov", "films/more/b.mov")
    data = load(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.notes == (
        f"{tmp_path}: skipped 2 files that are no images: 2 .mov",
        f"{tmp_path}: films has no image, so no class",
    )
    (tmp_path / "fox/young").mkdir(parents=True)
    with pytest.raises(
        DataError, match="fox: a class without an image; add images or remove the folder, or leave classes"
    ):
        load(str(tmp_path))
    assert load(str(tmp_path), label="none").classes == ()


def test_sub_folders_as_classes_need_sub_folders(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"data\.label=folder takes sub-folders as classes, and there are none; leave it out"
    ):
        load(str(tmp_path), label="folder")
    with pytest.raises(DataError, match=r"data\.label=colour names a field of shards or tables, which this is not"):
        load(str(tmp_path), label="colour")


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    photo(tmp_path / "elsewhere/a.png", 3)
    photo(tmp_path / "photos/dog/b.png", 4)
    (tmp_path / "photos/cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos/again").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "photos", target_is_directory=True)
    data = load(str(tmp_path / "photos"), label="folder")
    assert (data.classes, data.samples[:, 0, 0, 0].tolist()) == (("cat", "dog"), [3, 4])


def test_the_order_is_that_of_names_folder_by_folder(tmp_path: Path) -> None:
    """A blank comes before a slash, but the folder "cat" before "cat 2"."""
    for k, name in enumerate(["cat/b.png", "cat 2/a.png", "dog/a.png"]):
        photo(tmp_path / name, k)
    assert [str(path) for path in members_of(tmp_path).images] == ["cat/b.png", "cat 2/a.png", "dog/a.png"]
    assert open_path(str(tmp_path)).title(0) == "cat/b.png"


def test_shards_of_deep_folders_are_the_same_choice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for k, name in enumerate(["2022/12/a.png", "2023/01/b.png"]):
            content = io.BytesIO()
            Image.new("L", (8, 8), k).save(content, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))
    given = str(tmp_path / "a.tar")
    with pytest.raises(DataError, match="folders of folders .*" + SEVERAL):
        load(given)
    assert load(given, label="folder").classes == ("2022", "2023")
    assert load(given, label="none").classes == ()
