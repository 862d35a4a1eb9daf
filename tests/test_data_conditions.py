"""Conditions of data: values by name, padding, arrays that stay on the disk, and what is refused in words."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from shortflow.arrays import Stacked, open_array
from shortflow.data import Batches, Conditions, Dataset, DataSpec, Shuffled, load, open_conditions, write_conditions
from shortflow.data.conditions import save_conditions
from shortflow.errors import DataError

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((6, 3)).astype(np.float32)
SEQUENCES = RNG.standard_normal((6, 4, 3)).astype(np.float32)
MASK = np.arange(4) < np.array([4, 1, 2, 3, 4, 2])[:, None]
NAMES = [f"{k}.png" for k in (3, 0, 5, 1, 4, 2)]  # not the order of the files


def images(folder: Path, n: int = 6) -> Path:
    """n grey squares whose level is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        Image.new("L", (4, 4), k).save(folder / f"{k}.png")
    return folder


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_padding_is_nan_whatever_the_file_holds_there(kind: type) -> None:
    values = SEQUENCES.astype(kind)
    values[1, 1:] = np.inf
    found = Conditions(values=values, mask=MASK).take(np.array([1, 4]))
    assert found.dtype == np.float32
    assert np.isnan(found[0, 1:]).all()
    assert np.array_equal(found[0, 0], values[1, 0].astype(np.float32))
    assert np.array_equal(found[1], values[4].astype(np.float32))


def test_rows_and_subsets_are_those_of_the_array() -> None:
    whole = Conditions(values=VECTORS)
    part = whole.subset(np.array([4, 0, 2])).subset(np.array([False, True, True]))
    assert len(part) == 2
    assert part.shape == (3,)
    assert part.values is VECTORS
    assert np.array_equal(part.take(np.array([1, 0, 1])), VECTORS[[2, 0, 2]])


def test_a_mapped_array_is_read_row_by_row(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    save_file({"conditions": SEQUENCES, "mask": MASK}, str(tmp_path / "s.safetensors"))
    vectors, sequences = (open_conditions(tmp_path / name) for name in ("v.npy", "s.safetensors"))
    assert isinstance(vectors.values, np.memmap)
    assert isinstance(sequences.values, np.memmap)
    assert np.array_equal(vectors.take(np.array([5, 1])), VECTORS[[5, 1]])
    want = np.where(MASK[..., None], SEQUENCES, np.nan)
    assert np.array_equal(sequences.take(np.arange(6)), want, equal_nan=True)
    stacked = Conditions(values=Stacked((open_array(tmp_path / "v.npy"), VECTORS)))
    assert np.array_equal(stacked.take(np.array([7, 2])), VECTORS[[1, 2]])
    np.save(tmp_path / "one.npy", VECTORS[0])
    assert len(open_conditions(tmp_path / "one.npy")) == 1
    save_conditions(sequences.subset(np.array([2, 0])), tmp_path / "again.safetensors")
    again = open_conditions(tmp_path / "again.safetensors")
    assert np.array_equal(again.take(np.arange(2)), want[[2, 0]], equal_nan=True)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Conditions(values=VECTORS.astype(np.float64)), "float16 or float32, got float64"),
        (lambda: Conditions(values=VECTORS[:, 0]), r"vectors \(n, d\) or sequences \(n, k, d\).*shape \(6,\)"),
        (lambda: Conditions(values=VECTORS, mask=MASK), "the mask of conditions"),
        (lambda: Conditions(values=SEQUENCES, mask=MASK[:, :2]), r"must be bool of shape \(6, 4\)"),
        (lambda: Conditions(values=SEQUENCES, mask=MASK & (np.arange(6) != 2)[:, None]), r"row 2 is the first"),
        (lambda: Conditions(values=np.where(np.arange(6)[:, None] == 3, np.nan, VECTORS)), "sample 3 is not finite"),
    ],
)
def test_what_cannot_be_a_condition_is_refused(made: Callable[[], Conditions], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made()


# ------------------------------------------------------------------------------------------------------------- datasets


def test_data_have_conditions_or_classes() -> None:
    points = np.zeros((6, 2), np.float32)
    dataset = Dataset(name="mine", samples=points, conditions=Conditions(values=SEQUENCES, mask=MASK))
    assert dataset.conditional
    assert dataset.num_classes == 0
    told = dataset.subset(np.array([5, 1])).told(np.array([1]))
    assert told is not None
    assert told.dtype == torch.float32
    assert bool(told[0, 1:].isnan().all())
    prints = {
        each.fingerprint()
        for each in (
            dataset,
            replace(dataset, conditions=None),
            replace(dataset, conditions=Conditions(values=SEQUENCES)),
            replace(dataset, conditions=Conditions(values=SEQUENCES[::-1], mask=MASK[::-1])),
        )
    }
    assert len(prints) == 4
    with pytest.raises(DataError, match="6 conditions for 5 samples"):
        Dataset(name="mine", samples=points[:5], conditions=Conditions(values=VECTORS))
    with pytest.raises(DataError, match="classes or other conditions, not both"):
        replace(dataset, labels=np.zeros(6, np.int64), classes=("a",))


def test_the_spec_says_what_samples_are_told_by() -> None:
    points = np.zeros((6, 2), np.float32)
    spec = DataSpec.fit(Dataset(name="mine", samples=points, conditions=Conditions(values=SEQUENCES)))
    assert spec.condition == (4, 3)
    assert spec.told == "a sequence of up to 4 vectors of 3 numbers"
    assert DataSpec.from_dict(spec.to_dict()) == spec
    assert "condition" not in replace(spec, condition=None).to_dict()  # files of others stay as they were
    blank = spec.blank(2)
    assert blank is not None
    assert blank.shape == (2, 4, 3)
    with pytest.raises(DataError, match=r"a vector \(d,\) or a sequence \(n, d\) in place of classes"):
        replace(spec, classes=("a",))


def test_batches_bring_each_sample_its_own_condition() -> None:
    points = np.arange(6, dtype=np.float32)[:, None]
    dataset = Dataset(name="mine", samples=points, conditions=Conditions(values=VECTORS))
    batches = Batches(dataset=dataset, spec=DataSpec.fit(dataset), order=Shuffled(n=6, batch_size=4, seed=3))
    for step in (2, 0, 2):
        batch = batches(step)
        assert batch.label is not None
        assert np.array_equal(batch.label.numpy(), VECTORS[batch.x[:, 0].long().numpy()])


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("array", ["conditions.npy", "conditions.safetensors"])
def test_rows_go_by_the_names_of_the_images(array: str, tmp_path: Path) -> None:
    folder = images(tmp_path / "photos")
    write_conditions(folder, NAMES, VECTORS)
    if array.endswith("npy"):
        (folder / "conditions.safetensors").unlink()
        np.save(folder / array, VECTORS)
    dataset = load(str(folder))
    assert dataset.conditions is not None
    told = dataset.conditions.take(np.arange(6))
    for row, name in enumerate(NAMES):
        assert np.array_equal(told[int(dataset.samples[int(name[0]), 0, 0, 0])], VECTORS[row])  # pyright: ignore


def test_splits_have_files_of_their_own_and_can_be_joined(tmp_path: Path) -> None:
    for split, values in (("train", SEQUENCES), ("test", 2 * SEQUENCES)):
        write_conditions(images(tmp_path / split), NAMES, values, MASK if split == "test" else None)
    train, test, everything = (load(str(tmp_path), split).conditions for split in ("train", "test", "all"))
    assert train is not None
    assert test is not None
    assert everything is not None
    rows = np.arange(6)
    parts = np.concatenate([test.take(rows), train.take(rows)])  # splits in the order of their names
    assert np.array_equal(everything.take(np.arange(12)), parts, equal_nan=True)
    for name in ("conditions.safetensors", "conditions.txt"):
        (tmp_path / "test" / name).unlink()
    with pytest.raises(DataError, match=r"test: no conditions, but other splits have some"):
        load(str(tmp_path), "all")


def spoilt(folder: Path, how: str) -> Path:
    """A folder with conditions in which something is wrong."""
    images(folder)
    write_conditions(folder, NAMES, VECTORS)
    listing = folder / "conditions.txt"
    if how == "no names":
        listing.unlink()
    elif how == "no array":
        (folder / "conditions.safetensors").unlink()
    elif how == "two arrays":
        np.save(folder / "conditions.npy", VECTORS)
    elif how == "more lines":
        listing.write_text(listing.read_text() + "6.png\n")
    elif how == "an image more":
        Image.new("L", (4, 4)).save(folder / "6.png")
    elif how == "an image less":
        (folder / "3.png").unlink()
    elif how == "a name twice":
        listing.write_text(listing.read_text().replace("5.png", "0.png"))
    elif how == "damaged":
        (folder / "conditions.safetensors").write_bytes(b"nothing")
    else:
        images(folder / "a")
        for k in range(6):
            (folder / f"{k}.png").unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no names", "there are conditions.safetensors .*write_conditions writes both"),
        ("no array", "there are conditions.txt"),
        ("two arrays", "there are conditions.npy, conditions.safetensors, conditions.txt"),
        ("more lines", "conditions.txt has 7 lines and conditions.safetensors 6 rows"),
        ("an image more", "1 images have no condition: 6.png"),
        ("an image less", "1 names are of no image there: 3.png"),
        ("a name twice", "'0.png' is there twice"),
        ("damaged", "conditions.safetensors: cannot be read"),
        ("classes", "there are class folders and conditions"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(how: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(str(spoilt(tmp_path / "photos", how)))


@pytest.mark.parametrize(
    ("names", "message"),
    [(NAMES[:5], "5 names for 6 conditions"), ([*NAMES[:5], "../3.png"], "there is no image '../3.png'")],
)
def test_conditions_are_written_for_images_that_are_there(names: list[str], message: str, tmp_path: Path) -> None:
    folder = images(tmp_path / "photos")
    with pytest.raises(DataError, match=message):
        write_conditions(folder, names, VECTORS)
    assert not (folder / "conditions.txt").exists()
