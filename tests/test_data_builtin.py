"""Data by name: the digits against scikit-learn, where named data are looked for, and the real data if there."""

import gzip
import hashlib
import importlib.util
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from shortflow.data import builtin, load, names
from shortflow.errors import DataError

real = pytest.mark.skipif("SHORTFLOW_DATA" not in os.environ, reason="SHORTFLOW_DATA is not set: no real data here")


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_names() -> None:
    assert names()[:4] == ("digits", "mnist", "fashion-mnist", "cifar10")
    assert {"gaussian", "mixture", "moons", "checkerboard", "rings", "swissroll", "pinwheel"} <= set(names())


# Digits -------------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    ink, labels = load_digits(return_X_y=True)
    expected = np.rint(ink.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    path = Path(builtin.__file__).with_name("digits.npz")
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["images"], expected)
        np.testing.assert_array_equal(arrays["labels"], labels)
        assert sha256(arrays["images"]) == "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f"
        assert sha256(arrays["labels"]) == "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"
        assert sha256(arrays["test"]) == "51e566525151788d1d85f377d24b82ec84782ff807d71a681895acab8119c39f"


def test_digits_splits_are_stratified_and_disjoint() -> None:
    train, test, both = (load("digits", split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (1297, 500, 1797)
    assert (train.shape, train.classes) == ((1, 8, 8), tuple("0123456789"))
    for part in (train, test):
        assert part.labels is not None
        exact = np.bincount(load_digits().target) * len(part) / 1797
        assert np.abs(np.bincount(part.labels) - exact).max() < 1
    assert both.labels is not None
    np.testing.assert_array_equal(both.samples, np.concatenate([train.samples, test.samples]))
    every = sorted(image.tobytes() for image in both.samples)
    assert every == sorted(np.rint(ink * (255 / 16)).astype(np.uint8).tobytes() for ink in load_digits().data)


def test_resolution_of_named_images() -> None:
    small, native = load("digits", "test", resolution=4), load("digits", "test")
    assert small.shape == (1, 4, 4)
    boxes = native.samples.reshape(500, 1, 4, 2, 4, 2).mean((3, 5))
    assert np.abs(small.samples - boxes).max() <= 1  # rounded once along each axis
    assert load("digits", "test", resolution=8).fingerprint() == native.fingerprint()
    with pytest.raises(DataError, match="points have no resolution, got 8"):
        load("rings", resolution=8)


# Where it looks -----------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root: Path, name: str = "mnist", first: int = 0) -> None:
    (root / name).mkdir(parents=True)
    for stem, n in (("train", 4), ("t10k", 2)):
        images = first + np.arange(n * 9).reshape(n, 3, 3)
        (root / name / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (root / name / f"{stem}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) + 3))


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a data folder nor the package that reaches the hub."""
    monkeypatch.delenv("SHORTFLOW_DATA", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_mnist(tmp_path / "a", name)
    monkeypatch.setenv("SHORTFLOW_DATA", str(tmp_path / "a"))
    data = load(name)
    np.testing.assert_array_equal(data.samples.flatten(), np.arange(36))
    assert data.labels is not None
    assert data.labels.tolist() == [3, 4, 5, 6]
    assert (data.shape, data.num_classes, data.name) == ((1, 3, 3), 10, name)
    both = load(name, "all")
    assert both.labels is not None
    assert both.labels.tolist() == [3, 4, 5, 6, 3, 4]
    write_mnist(tmp_path / "b", name, first=100)
    assert load(name, "test", root=tmp_path / "b").samples[0, 0, 0, 0] == 100


@pytest.mark.usefixtures("nothing")
def test_half_a_data_set_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "mnist/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz: not there, but t10k-images-idx3-ubyte.gz is"):
        load("mnist", "test", root=tmp_path)


@pytest.mark.usefixtures("nothing")
def test_nowhere_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("mnist")
    for part in (
        "mnist (train): the environment variable SHORTFLOW_DATA is not set",
        "the package `datasets`, which could fetch ylecun/mnist, is not installed",
        "Set SHORTFLOW_DATA to a folder that holds mnist/train-images-idx3-ubyte.gz",
        "pip install 'shortflow[data]'",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError) as caught:
        load("cifar10", "test", root=tmp_path)
    for form in ("cifar10/test", "cifar10/cifar10_test.npz", "cifar10/cifar10_med.npz"):
        assert str(tmp_path / form) in str(caught.value)


def hub(load_dataset: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(load_dataset=load_dataset))


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize(
    ("name", "repository", "column", "mode"),
    [
        ("mnist", "ylecun/mnist", "image", "L"),
        ("fashion-mnist", "zalando-datasets/fashion_mnist", "image", "L"),
        ("cifar10", "uoft-cs/cifar10", "img", "RGB"),
    ],
)
def test_hub(monkeypatch: pytest.MonkeyPatch, name: str, repository: str, column: str, mode: str) -> None:
    colours = [(10, 20, 30), (40, 50, 60)]
    made = [Image.new(mode, (4, 4), colour if mode == "RGB" else colour[0]) for colour in colours]

    def load_dataset(path: str, split: str) -> dict:
        assert (path, split) == (repository, "test")
        return {column: made, "label": [7, 2]}

    hub(load_dataset, monkeypatch)
    data = load(name, "test")
    expected = [[10, 20, 30], [40, 50, 60]] if mode == "RGB" else [[10], [40]]
    assert data.samples[:, :, 3, 3].tolist() == expected
    assert data.labels is not None
    assert data.labels.tolist() == [7, 2]


@pytest.mark.usefixtures("nothing")
def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, split: str) -> dict:
        raise ConnectionError("no route\nlong trace")

    hub(load_dataset, monkeypatch)
    with pytest.raises(DataError, match=r"did not give uoft-cs/cifar10 \(no route\)\. Set .* or make the hub reach"):
        load("cifar10")


def test_unknown_names_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'cifar-10' is neither .* did you mean 'cifar10'\? Names are digits, mnist"):
        load("cifar-10")
    for name in ("digits", "mnist", "rings"):
        with pytest.raises(DataError, match=f"{name}: no split 'val'; there are 'train', 'test' and 'all'"):
            load(name, "val")


def test_a_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    Image.new("L", (3, 3), 9).save(tmp_path / "digits/a.png")
    assert len(load("digits")) == 1297
    assert load("./digits").samples.tolist() == [[[[9] * 3] * 3]]


# Real data ----------------------------------------------------------------------------------------------------------


@real
def test_real_mnist() -> None:
    train, test = load("mnist"), load("mnist", "test")
    assert (train.samples.shape, len(test)) == ((60_000, 1, 28, 28), 10_000)
    assert train.samples.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert train.samples.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert train.labels is not None
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]


@real
def test_real_fashion_mnist() -> None:
    train, test = load("fashion-mnist"), load("fashion-mnist", "test")
    assert train.samples.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert train.samples.std() / 255 == pytest.approx(0.3530, abs=5e-5)
    for data, each in ((train, 6000), (test, 1000)):
        assert data.labels is not None
        assert np.bincount(data.labels).tolist() == [each] * 10
    assert train.labels is not None
    assert train.classes[train.labels[0]] == "ankle boot"


@real
@pytest.mark.slow
def test_real_cifar10() -> None:
    train, test = load("cifar10"), load("cifar10", "test")
    mean = train.samples.mean((0, 2, 3)) / 255
    std = np.array([train.samples[:, channel].std() for channel in range(3)]) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=5e-5)
    for data, each in ((train, 5000), (test, 1000)):
        assert data.labels is not None
        assert np.bincount(data.labels).tolist() == [each] * 10
