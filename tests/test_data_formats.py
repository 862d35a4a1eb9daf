"""Every form in which images lie: the same images from all of them, by `train` and by `encode`, and what is refused."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shortflow import data
from shortflow.cli import evaluating
from shortflow.data import decoded
from shortflow.data.formats import expanded, tables
from shortflow.data.images import CROPS, Crop, square
from shortflow.data.sources import open_source
from shortflow.data.stored import open_images
from shortflow.errors import DataError

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")

RANDOM = np.random.default_rng(0)
CLASSES = ("cat", "dog", "eel")
PIXELS = RANDOM.integers(256, size=(9, 20, 20, 3), dtype=np.uint8)
LABELS = [0, 0, 0, 1, 1, 1, 2, 2, 2]
NAMES = [f"{CLASSES[label]}/{k}" for k, label in enumerate(LABELS)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of a test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    return tmp_path / "cache/shortflow/folders"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def features() -> Any:
    return datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))})


def table(pixels: np.ndarray = PIXELS, labels: list[int] = LABELS) -> Any:
    rows = {"picture": [{"bytes": png(each), "path": None} for each in pixels], "kind": labels}
    return datasets.Dataset.from_dict(rows, features=features())


# ------------------------------------------------------------------------------------------------------------- writers


def as_folder(at: Path) -> Path:
    for name, pixels in zip(NAMES, PIXELS, strict=True):
        (at / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (at / "photos" / f"{name}.png").write_bytes(png(pixels))
    return at / "photos"


def as_zip(at: Path) -> Path:
    with zipfile.ZipFile(at / "photos.zip", "w") as archive:
        for name, pixels in zip(NAMES, PIXELS, strict=True):
            archive.writestr(f"photos/{name}.png", png(pixels))
    return at / "photos.zip"


def as_npz(at: Path) -> Path:
    np.savez(at / "photos.npz", images=PIXELS, labels=LABELS)
    return at / "photos.npz"


def as_compressed_npz(at: Path) -> Path:
    np.savez_compressed(at / "photos.npz", images=PIXELS.transpose(0, 3, 1, 2), labels=LABELS)
    return at / "photos.npz"


def as_shards(at: Path) -> Path:
    (at / "shards").mkdir()
    (at / "shards/classnames.txt").write_text("\n".join(CLASSES))
    with webdataset.ShardWriter(f"{at}/shards/%03d.tar", maxcount=4, verbose=0) as sink:
        for k, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            sink.write({"__key__": f"{k:04d}", "png": pixels, "cls": label, "txt": "a caption"})
    return at / "shards"


def as_pattern(at: Path) -> str:
    return f"{as_shards(at)}/{{000..002}}.tar"


def as_named_json(at: Path) -> str:
    (at / "shards").mkdir()
    with webdataset.ShardWriter(f"{at}/shards/%03d.tar", maxcount=4, verbose=0) as sink:
        for k, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            sink.write({"__key__": f"{k:04d}", "img.png": pixels, "json": {"label": CLASSES[label]}})
    return f"{at}/shards/*.tar"


def as_tar(at: Path) -> Path:
    folder = as_folder(at)
    with tarfile.open(at / "photos.tar", "w") as archive:
        archive.add(folder, "./photos")
    return at / "photos.tar"


def as_saved(at: Path) -> Path:
    table().save_to_disk(str(at / "saved"))
    return at / "saved"


def as_splits(at: Path) -> Path:
    datasets.DatasetDict(train=table(), test=table(255 - PIXELS)).save_to_disk(str(at / "saved"))
    return at / "saved"


def as_parquet(at: Path) -> Path:
    (at / "set/data").mkdir(parents=True)
    table(PIXELS[:5], LABELS[:5]).to_parquet(str(at / "set/data/train-00000-of-00002.parquet"))
    table(PIXELS[5:], LABELS[5:]).to_parquet(str(at / "set/data/train-00001-of-00002.parquet"))
    table(255 - PIXELS).to_parquet(str(at / "set/data/test-00000-of-00001.parquet"))
    return at / "set"


def as_plain_parquet(at: Path) -> Path:
    """Without what `datasets` adds to a file: bytes and names."""
    import pyarrow
    import pyarrow.parquet

    columns = {"image": [png(each) for each in PIXELS], "label": [CLASSES[label] for label in LABELS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), at / "photos.parquet")
    return at / "photos.parquet"


def as_metadata(at: Path) -> Path:
    (at / "listed").mkdir()
    lines = ["file_name,label"]
    for k, pixels in enumerate(PIXELS):
        (at / f"listed/{k}.png").write_bytes(png(pixels))
        lines.append(f"{k}.png,{CLASSES[LABELS[k]]}")
    (at / "listed/metadata.csv").write_text("\n".join(lines))
    return at / "listed"


WRITERS: dict[str, Callable[[Path], Path | str]] = {
    name.removeprefix("as_"): writer for name, writer in list(globals().items()) if name.startswith("as_")
}


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("writer", WRITERS)
def test_all_forms_become_squares_in_the_same_way(
    writer: str, crop: Crop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `square` makes them of one image, for training, encoding and evaluation."""
    monkeypatch.setattr(table, "__defaults__", (PIXELS[:, :14], LABELS))
    monkeypatch.setitem(globals(), "PIXELS", PIXELS[:, :14])  # no squares
    given = str(WRITERS[writer](tmp_path))
    wanted = np.stack([np.asarray(square(Image.fromarray(pixels), 12, crop)) for pixels in PIXELS])
    wanted = wanted.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(np.asarray(data.load(given, resolution=12, crop=crop).samples), wanted)
    source = open_source(given, resolution=12, crop=crop)
    np.testing.assert_array_equal([source.read(k).transpose(2, 0, 1) for k in range(9)], wanted)
    evaluated = open_images(given, resolution=12, crop=crop)
    np.testing.assert_array_equal(np.concatenate(list(evaluated.read(0, 9))), wanted)
    assert (evaluated.resolution, evaluated.crop) == (12, crop)


@pytest.mark.parametrize("resolution", [None, 12])
@pytest.mark.parametrize("writer", WRITERS)
def test_all_forms_give_the_same_images_to_training_encoding_and_evaluation(
    writer: str, resolution: int | None, tmp_path: Path
) -> None:
    """Those of the folder, decoded, cropped and scaled as its images are."""
    given = str(WRITERS[writer](tmp_path))
    (tmp_path / "plain").mkdir()
    wanted = data.load(str(as_folder(tmp_path / "plain")), resolution=resolution)
    if resolution is None:
        np.testing.assert_array_equal(wanted.samples, PIXELS.transpose(0, 3, 1, 2))
    found = data.load(given, resolution=resolution)
    np.testing.assert_array_equal(np.asarray(found.samples), wanted.samples)
    assert found.labels is not None
    assert found.labels.tolist() == LABELS
    assert found.classes == (("0", "1", "2") if "npz" in writer else CLASSES)
    source = open_source(given, resolution=resolution)
    assert (source.resolution, source.classes, len(source)) == (resolution or 20, found.classes, 9)
    for k in range(9):
        np.testing.assert_array_equal(source.read(k).transpose(2, 0, 1), wanted.samples[k])
        assert source.title(k)
    evaluated = open_images(given, resolution=resolution)
    np.testing.assert_array_equal(np.concatenate(list(evaluated.read(0, 9))), wanted.samples)
    assert (evaluated.count, evaluated.shape) == (9, wanted.shape)
    unlabelled = data.load(given, resolution=resolution, label="none")
    assert (unlabelled.labels, unlabelled.classes) == (None, ())
    assert unlabelled.shape == found.shape


@pytest.mark.parametrize("writer", WRITERS)
def test_all_forms_are_kept_and_mapped_where_they_are_large(
    writer: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = str(WRITERS[writer](tmp_path))
    plain = data.load(given, resolution=12)
    monkeypatch.setattr(decoded, "_IN_MEMORY", 0)
    mapped = data.load(given, resolution=12)
    assert isinstance(mapped.samples, np.memmap)
    assert mapped.fingerprint() == plain.fingerprint()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(decoded, "each", None)  # nothing is decoded any more
    assert data.load(given, resolution=12).fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("writer", WRITERS)
def test_copies_have_the_same_listing_and_other_images_another(writer: str, tmp_path: Path) -> None:
    """By which `encode` knows what to encode again."""
    sums = []
    for place in ("a", "b", "c"):
        (tmp_path / place).mkdir()
        if place == "c":
            PIXELS[4, :7] = 0
        try:
            source = open_source(str(WRITERS[writer](tmp_path / place)), resolution=8)
        finally:
            PIXELS[:] = ORIGINAL
        sums.append([source.listing(rows) for rows in (range(3), range(3, 9))])
    assert sums[0] == sums[1]
    assert (sums[2][0] == sums[0][0], sums[2][1] == sums[0][1]) == (True, False)


ORIGINAL = PIXELS.copy()


def test_arrays_of_one_file_are_mapped_where_they_lie(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=LABELS, images=np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)))
    np.save(tmp_path / "a.npy", np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)))
    for name in ("a.npz", "a.npy"):
        found = data.load(str(tmp_path / name))
        assert isinstance(found.samples, np.memmap)
        np.testing.assert_array_equal(found.samples, PIXELS.transpose(0, 3, 1, 2))


def test_the_format_s_own_reader_sees_the_same_samples(tmp_path: Path) -> None:
    """WebDataset's package as the oracle of what a sample is, for names with folders, dots and several fields."""
    files = {
        "a.b/0001.left.png": png(PIXELS[0]),
        "a.b/0001.cls": b"1\n",
        "a.b/0001.json": b"{}",
        "./c/x.y.png": png(PIXELS[1]),
        "./c/x.cls": b"0",
        "lone.PNG": png(PIXELS[2]),
        "lone.cls": b"2",
        ".hidden.png": b"x",
    }
    write_tar(tmp_path / "s.tar", files)
    source = open_source(str(tmp_path / "s.tar"))
    oracle = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False, empty_check=False))
    oracle = [each for each in oracle if each["__key__"]]  # without the hidden file
    assert len(oracle) == len(source) == 3
    assert source.labels is not None
    for k, sample in enumerate(oracle):
        (name,) = [name for name in sample if name.endswith("png")]
        image = np.asarray(Image.open(io.BytesIO(sample[name])))
        np.testing.assert_array_equal(source.read(k), image)
        assert source.labels[k] == int(sample["cls"])
        assert source.title(k) == f"s.tar: {sample['__key__'].removeprefix('./')}.{name}"


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# ----------------------------------------------------------------------------------------------------- splits, columns


def test_splits(tmp_path: Path) -> None:
    for writer in (as_splits, as_parquet):
        path = str(writer(tmp_path))
        assert [len(data.load(path, split)) for split in ("train", "test", "all")] == [9, 9, 18]
        np.testing.assert_array_equal(data.load(path, "test").samples, 255 - PIXELS.transpose(0, 3, 1, 2))
        with pytest.raises(DataError, match=r"no split 'val'; there are (test, train|train, test) and all"):
            data.load(path, "val")
    for name in ("photos-train-0", "photos-train-1", "photos-test-0"):
        write_tar(tmp_path / f"shards/{name}.tar", {f"{name}.png": png(PIXELS[0])})
    path = str(tmp_path / "shards")
    assert [len(data.load(path, split)) for split in ("train", "test", "all")] == [2, 1, 3]
    write_tar(tmp_path / "shards/more.tar", {"a.png": png(PIXELS[0])})
    with pytest.raises(DataError, match=r"name a split \(test, train\), and others do not: more.tar"):
        data.load(path)
    for folder in ("train", "validation"):
        write_tar(tmp_path / f"parted/{folder}/0.tar", {f"{folder}.png": png(PIXELS[0])})
    assert [len(data.load(str(tmp_path / "parted"), split)) for split in ("train", "validation", "all")] == [1, 1, 2]
    with pytest.raises(DataError, match="no split 'test', because no file has one in its name"):
        data.load(str(write_tar(tmp_path / "one.tar", {"a.png": png(PIXELS[0])})), "test")


def test_columns_are_chosen_where_there_are_several(tmp_path: Path) -> None:
    rows = {
        "before": [{"bytes": png(each), "path": None} for each in PIXELS],
        "after": [{"bytes": png(255 - each), "path": None} for each in PIXELS],
        "fine": LABELS,
        "coarse": [0] * 9,
        "number": list(range(9)),
        "score": [0.5] * 9,
    }
    kinds = {name: datasets.ClassLabel(names=list(CLASSES)) for name in ("fine", "coarse")}
    kinds |= {"before": datasets.Image(), "after": datasets.Image()}
    kinds |= {"number": datasets.Value("int32"), "score": datasets.Value("float32")}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(str(tmp_path / "two"))
    path = str(tmp_path / "two")
    with pytest.raises(
        DataError, match=r"several columns of images \(before, after\); choose one with --set data.image="
    ):
        data.load(path)
    with pytest.raises(
        DataError, match=r"several columns of classes \(fine, coarse\); choose one with --set data.label="
    ):
        data.load(path, image="after")
    found = data.load(path, image="after", label="coarse")
    np.testing.assert_array_equal(found.samples, 255 - PIXELS.transpose(0, 3, 1, 2))
    assert found.classes == ("cat",)  # classes without an image are left out
    assert data.load(path, image="after", label="number").num_classes == 9
    for column in ("score", "nothing", "before"):
        with pytest.raises(DataError, match=f"'{column}' is no column of labels .*; there are fine, coarse, number"):
            data.load(path, image="after", label=column)
    for column, what in (("fine", "is no column of images"), ("x", "is no column")):
        with pytest.raises(DataError, match=f"'{column}' {what}; columns are .*, images before, after"):
            data.load(path, image=column)
    fields = {"0.a.png": png(PIXELS[0]), "0.b.png": png(PIXELS[1]), "0.json": b'{"kind": "x", "label": 1}'}
    shard = str(write_tar(tmp_path / "two.tar", fields))
    with pytest.raises(DataError, match=r"0 has several images, a.png, b.png; choose with --set data.image=NAME"):
        data.load(shard)
    assert data.load(shard, image="b.png", label="kind").classes == ("x",)
    with pytest.raises(DataError, match="no sample has the label 'z'; fields beside the images: json"):
        data.load(shard, image="b.png", label="z")
    with pytest.raises(DataError, match=r"no field 'c.png' in its samples; images are a.png, b.png"):
        data.load(shard, image="c.png")


def test_targets_of_an_evaluation(tmp_path: Path) -> None:
    """What can only be images is no run."""
    for given in ("hf:someone/photos", "photos.tar", "shards/{0..9}.tar", "a/*.parquet", "x.npz", "cifar10:test"):
        assert not evaluating._is_run(given)
    (tmp_path / "run.yaml").touch()
    places = {
        "hf:someone/photos:large": "hf-someone-photos-large.evaluation-inception@cifar10-test.json",
        "out/{0..9}.tar": "out/-0..9-.tar.evaluation-inception@cifar10-test.json",
        "cifar10:test": "cifar10-test.evaluation-inception@cifar10-test.json",
        "out/photos": "out/photos.evaluation-inception@cifar10-test.json",
    }
    for given, place in places.items():
        assert evaluating._place(given, "inception", "cifar10", "test", False) == Path(place)
    for given in (str(tmp_path), "out/model.safetensors", "out/run"):
        assert evaluating._is_run(given)


def test_columns_belong_to_shards_and_tables_only(tmp_path: Path) -> None:
    for writer in (as_folder, as_zip, as_npz):
        with pytest.raises(DataError, match=r"data.label=kind names a field of shards or tables, .*leave it out"):
            data.load(str(writer(tmp_path)), label="kind")
    with pytest.raises(DataError, match="digits has no columns to choose from"):
        data.load("digits", image="picture")


def test_patterns(tmp_path: Path) -> None:
    for k in range(8, 13):
        (tmp_path / f"x{k:03d}.tar").touch()
    name = f"{tmp_path}/x"
    assert [path.name for path in expanded(f"{name}{{009..011}}.tar")] == ["x009.tar", "x010.tar", "x011.tar"]
    assert [path.name for path in expanded(f"{name}0{{12,08}}.tar")] == ["x012.tar", "x008.tar"]
    assert [path.name for path in expanded(f"{name}01*.tar")] == ["x010.tar", "x011.tar", "x012.tar"]
    assert expanded(f"{name}008.tar") == []  # no pattern
    with pytest.raises(DataError, match=r"x013.tar is not there; fetch it, or give the files that there are"):
        expanded(f"{name}{{008..013}}.tar")
    for wrong in ("{12..08}", "{0..99999999}"):
        with pytest.raises(DataError, match="counts no files"):
            expanded(f"{name}{wrong}.tar")


# ---------------------------------------------------------------------------------------------------------- bad inputs


def test_bad_shards_are_refused_with_the_remedy(tmp_path: Path) -> None:
    picture = png(PIXELS[0])
    whole = {f"{k}.{name}": content for k in range(3) for name, content in (("png", picture), ("cls", b"1"))}
    cases: dict[str, tuple[dict[str, bytes], str]] = {
        "empty": ({"readme.md": b"x"}, r"no image in its samples; images end in .avif"),
        "some": (
            {"0.png": picture, "0.cls": b"1", "1.png": picture},
            r"1 of 2 samples have no label: 1.png; .*label=none",
        ),
        "negative": ({"0.png": picture, "0.cls": b"-1"}, r"labels are numbers from 0, one for each class, got -1…-1"),
        "huge": ({"0.png": picture, "0.json": b'{"label": 99999999999999999999}'}, r"got 99999999999999999999…"),
        "json": ({"0.png": picture, "0.json": b"{"}, r"0.json is no JSON"),
        "float": ({"0.png": picture, "0.json": b'{"label": 0.5}'}, r"label 0.5, which is neither a number nor a name"),
        "twice": ({"0.png": picture, "0.PNG": picture}, r"0 has png twice"),
        "binary": ({"0.png": picture, "0.cls": b"\xff\xfe"}, r"0.cls is no text"),
    }
    for name, (files, message) in cases.items():
        with pytest.raises(DataError, match=message):
            data.load(str(write_tar(tmp_path / f"{name}.tar", files)))
    path = write_tar(tmp_path / "named/0.tar", whole)
    (path.parent / "classes.txt").write_text("only\n")
    with pytest.raises(DataError, match="label 1, but names of 1 classes only; name them all"):
        data.load(str(path))
    content = write_tar(tmp_path / "whole.tar", whole).read_bytes()
    for name, part in {"cut": content[:700], "words": b"words" * 200, "nothing": b""}.items():
        (tmp_path / f"{name}.tar").write_bytes(part)
        with pytest.raises(DataError, match=f"{name}.tar: no tar file, or only a part of one .*; fetch it again"):
            data.load(str(tmp_path / f"{name}.tar"))
    (tmp_path / "packed.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"packed.tar.gz is neither .*; unpack it to .tar first"):
        data.load(str(tmp_path / "packed.tar.gz"))
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"0.png is a link; write the shards again"):
        data.load(str(tmp_path / "link.tar"))


def test_bad_tables_are_refused_with_the_remedy(tmp_path: Path) -> None:
    table(labels=[0, 1, 2, -1, 0, 0, 0, 0, 0]).save_to_disk(str(tmp_path / "unknown"))
    with pytest.raises(DataError, match=r"1 of 9 rows have no label in 'kind': row 3; choose another column or split"):
        data.load(str(tmp_path / "unknown"))
    assert data.load(str(tmp_path / "unknown"), label="none").labels is None
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(DataError, match=r"no column of images among text"):
        data.load(str(tmp_path / "texts"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"these parquet files cannot be read"):
        data.load(str(tmp_path / "bad.parquet"))
    path = as_saved(tmp_path)
    (path / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"this data set of `datasets` cannot be read .*save it again"):
        data.load(str(path))
    table().save_to_disk(str(tmp_path / "whole"))
    with pytest.raises(DataError, match="no split 'test', because the data set is not divided"):
        data.load(str(tmp_path / "whole"), "test")
    listed = as_metadata(tmp_path)
    (listed / "metadata.csv").write_text("name,label\n0.png,cat\n")
    with pytest.raises(DataError, match=r"metadata.csv and the images do not fit .*it needs a column file_name"):
        data.load(str(listed))


def test_the_hub_is_asked_by_name_and_said_where_it_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answer(*what: Any, **how: Any) -> Any:
        asked.append((what, how))
        return table() if "split" in how else datasets.DatasetDict(train=table(), test=table())

    monkeypatch.setattr(datasets, "load_dataset", answer)
    found = data.load("hf:someone/photos:large", resolution=8)
    assert (found.name, len(found), found.classes) == ("photos", 9, CLASSES)
    assert len(data.load("hf:photos", "all", resolution=8)) == 18
    assert asked == [(("someone/photos", "large"), {"split": "train"}), (("photos", None), {})]

    def silence(*what: Any, **how: Any) -> Any:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(datasets, "load_dataset", silence)
    with pytest.raises(DataError) as caught:
        data.load("hf:someone/photos", resolution=8)
    assert "hf:someone/photos (train): the hub did not give it (no route to host)" in str(caught.value)
    assert "--repo-type dataset someone/photos --local-dir FOLDER" in str(caught.value)
    for wrong in ("hf:", "hf:../photos", "hf:/etc", "hf:a/b/c", "hf:~/x", "hf:a b"):
        with pytest.raises(DataError, match="names no data set of the hub; give hf:NAME or hf:OWNER/NAME"):
            data.load(wrong)
    for reader in ("imagefolder", "pandas", "webdataset"):
        with pytest.raises(DataError, match=f"{reader} is a reader of files, .*give their path"):
            data.load(f"hf:{reader}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()  # a script in it is not executed
    (tmp_path / "photos/photos.py").write_text("raise SystemExit('executed')")
    with pytest.raises(DataError, match="there is a file or folder photos here; give its path without hf:"):
        data.load("hf:photos")


def test_without_the_package_its_forms_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(writer(tmp_path)) for writer in (as_saved, as_plain_parquet, as_metadata)]
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    for path in (*paths, "hf:photos"):
        with pytest.raises(DataError, match=r"needs the package `datasets`, .*: pip install 'shortflow\[data\]'"):
            data.load(path)


def test_versions_that_could_execute_scripts_are_told_not_to() -> None:
    class Old:
        __version__ = "3.6.0"

    assert tables._without_scripts(Old) == {"trust_remote_code": False}
    assert tables._without_scripts(datasets) == {}


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    as_plain_parquet(tmp_path)
    for name in ("photos.parquet", "a.tar"):
        (tmp_path / "mixed" / name).touch()
    write_tar(tmp_path / "one.tar", {"a.png": png(PIXELS[0])})
    cases = {
        str(tmp_path / "mixed"): r"holds .tar and .parquet files; give a pattern of one kind",
        f"{tmp_path}/mixed/*": r"a pattern stands for .tar files or for .parquet files, got a.tar, photos.parquet",
        f"{tmp_path}/nothing*.tar": r"neither a known name nor a folder or file",
        "https://example.com/{000..009}.tar": r"only what lies on a disk is read",
        "pipe:cat x.tar": r"only what lies on a disk is read",
    }
    for given, message in cases.items():
        with pytest.raises(DataError, match=message):
            data.load(given)


def test_kinds_of_pixels_are_the_same_in_every_form(tmp_path: Path) -> None:
    """Grey, alpha, 16 bits, CMYK and EXIF rotation through archives, shards and tables: as in a folder."""
    turned = Image.fromarray(PIXELS[0])
    exif = turned.getexif()
    exif[0x0112] = 6
    pictures = {
        "alpha.png": (Image.fromarray(RANDOM.integers(256, size=(20, 20, 4), dtype=np.uint8)), {}),
        "cmyk.jpg": (Image.fromarray(PIXELS[1]).convert("CMYK"), {}),
        "deep.png": (Image.fromarray(RANDOM.integers(65536, size=(20, 20), dtype=np.uint16)), {}),
        "exif.jpg": (turned, {"exif": exif}),
        "grey.webp": (Image.fromarray(PIXELS[2, :, :, 0]), {"lossless": True}),
        "palette.gif": (Image.fromarray(PIXELS[3]).quantize(16), {}),
    }
    contents = {}
    for name, (image, options) in pictures.items():
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG"}.get(name[-3:], name.rpartition(".")[2].upper()), **options)
        contents[name] = buffer.getvalue()
    (tmp_path / "folder").mkdir()
    for name, content in contents.items():
        (tmp_path / "folder" / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    write_tar(tmp_path / "p.tar", contents)
    rows = {"image": [{"bytes": content, "path": None} for content in contents.values()]}
    of_images = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=of_images).to_parquet(str(tmp_path / "p.parquet"))
    for resolution in (None, 9):
        wanted = data.load(str(tmp_path / "folder"), resolution=resolution)
        for name in ("p.zip", "p.tar", "p.parquet"):
            found = data.load(str(tmp_path / name), resolution=resolution)
            assert found.labels is None
            np.testing.assert_array_equal(found.samples, wanted.samples)
    turned_back = data.load(str(tmp_path / "p.tar")).samples[3]
    np.testing.assert_allclose(turned_back.mean((1, 2)), np.rot90(PIXELS[0], -1).mean((0, 1)), atol=3)


# ------------------------------------------------------------------------------------------------------------- damages


def damaged(path: Path) -> Path:
    """Nine images in class folders, of which 1 and 7 are cut and 4 is no image at all."""
    folder = as_folder(path)
    for k in (1, 7):
        file = folder / f"{NAMES[k]}.png"
        file.write_bytes(file.read_bytes()[:400])
    (folder / f"{NAMES[4]}.png").write_bytes(b"words")
    return folder


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("resolution", [None, 12])
def test_damaged_images_are_refused_or_left_out_by_choice(
    large: bool, resolution: int | None, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    wanted = data.load(str(as_folder(tmp_path / "whole")), resolution=resolution)
    folder = str(damaged(tmp_path))
    if large:
        monkeypatch.setattr(decoded, "_IN_MEMORY", 0)
    kept = [0, 2, 3, 5, 6, 8]
    for _ in range(2):  # the second time from the cache, if it is large
        found = data.load(folder, resolution=resolution, corrupt="skip")
        assert isinstance(found.samples, np.memmap) == large
        np.testing.assert_array_equal(found.samples, wanted.samples[kept])
        assert found.labels is not None
        assert found.labels.tolist() == [LABELS[k] for k in kept]
        assert [(k, title) for k, title, _ in found.skipped] == [(k, f"{NAMES[k]}.png") for k in (1, 4, 7)]
        assert (found.skipped[1][2], "truncated" in found.skipped[0][2]) == ("no image", True)
    first = resolution is None and not large  # all that headers tell
    several = r"1 of 9 .*dog/4.png \(no image\)" if first else r"3 of 9 .*cat/1.png \(.*eel/7"
    with pytest.raises(DataError, match=f"{several}.*leave them out with --set data.corrupt=skip"):
        data.load(folder, resolution=resolution)
    if large:  # what is left out stands beside what is kept; without it all are decoded anew
        (listed,) = cache.glob("*.json")
        assert [k for k, *_ in json.loads(listed.read_text())["skipped"]] == [1, 4, 7]
        listed.unlink()
        assert len(data.load(folder, resolution=resolution, corrupt="skip").skipped) == 3
        assert listed.is_file()


def test_a_class_that_has_lost_all_its_images_is_an_error(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    for k in (3, 5):
        (folder / f"{NAMES[k]}.png").write_bytes(b"words")
    with pytest.raises(DataError, match=r"5 of 9 images cannot be read: .*No image is left of dog; replace some"):
        data.load(str(folder), resolution=8, corrupt="skip")
    assert len(data.load(str(folder), resolution=8, corrupt="skip", label="none")) == 4
    for name in NAMES:
        (folder / f"{name}.png").write_bytes(b"words")
    for label in (None, "none"):
        with pytest.raises(DataError, match=r"9 of 9 images cannot be read: .*; there is nothing left"):
            data.load(str(folder), resolution=8, corrupt="skip", label=label)


def test_damaged_images_of_every_form_are_named(tmp_path: Path) -> None:
    files = {f"{k}.png": png(PIXELS[k]) for k in range(3)} | {"bad.png": png(PIXELS[3])[:300]}
    write_tar(tmp_path / "p.tar", files)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    rows = {"image": [{"bytes": content, "path": None} for content in files.values()]}
    kinds = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(tmp_path / "saved"))
    names = {"p.tar": "p.tar: bad.png", "p.zip": "bad.png", "saved": "row 3"}
    for form, name in names.items():
        with pytest.raises(DataError, match=rf"images cannot be read: {name} \(.*data.corrupt=skip"):
            data.load(str(tmp_path / form), resolution=8)
        assert len(data.load(str(tmp_path / form), resolution=8, corrupt="skip")) == 3
    gone = as_metadata(tmp_path)
    source = open_source(str(gone), resolution=8)
    (gone / "5.png").unlink()
    with pytest.raises(ValueError, match=r"neither bytes nor a file on this disk \(.*5.png\)"):
        source.read(5)
