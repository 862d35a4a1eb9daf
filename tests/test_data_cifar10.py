"""CIFAR-10 in its three forms: the packed one against an encoder written pixel by pixel, cache, and errors."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shortflow.data import cifar10
from shortflow.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/shortflow"


def residuals(images: np.ndarray) -> np.ndarray:
    """(3, n, h, w) residuals of (n, 3, h, w) images, from the definition, one pixel at a time."""
    red, green, blue = images.astype(int).transpose(1, 0, 2, 3)
    out = np.empty((3, *green.shape), dtype=np.uint8)
    for k, plane in enumerate((green, red - green, blue - green)):
        for n, i, j in np.ndindex(plane.shape):
            a = plane[n, i, j - 1] if j else 0
            b = plane[n, i - 1, j] if i else 0
            c = plane[n, i - 1, j - 1] if i and j else 0
            if i == 0:
                m = a
            elif j == 0:
                m = b
            else:
                m = sorted((a, b, a + b - c))[1]
            out[k, n, i, j] = (plane[n, i, j] - m) % 256
    return out


def some(n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    images = rng.integers(256, size=(n, 3, 32, 32), dtype=np.uint8)
    images[0] = np.linspace(0, 255, 3 * 32 * 32).reshape(3, 32, 32).astype(np.uint8)
    return images, (np.arange(n) % 10).astype(np.uint8)


def write_packed(folder: Path, n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(exist_ok=True)
    images, labels = some(n)
    np.savez(folder / "cifar10_med.npz", train_residual=residuals(images), train_labels=labels)
    return images, labels


@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (2, 3, 7, 4), (1, 3, 1, 1), (3, 3, 1, 5), (3, 3, 5, 1)])
def test_unpack_inverts_the_definition(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_CHUNK", 2)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.testing.assert_array_equal(cifar10.unpack(residuals(images)), images)
    extreme = (images > 127).astype(np.uint8) * 255
    np.testing.assert_array_equal(cifar10.unpack(residuals(extreme)), extreme)


def test_packed_form_is_decoded_once_and_the_source_left_alone(tmp_path: Path, cache: Path) -> None:
    images, labels = write_packed(tmp_path / "c")
    for _ in range(2):
        found = cifar10.read(tmp_path / "c", "train")
        assert found is not None
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], labels)
    assert os.listdir(tmp_path / "c") == ["cifar10_med.npz"]
    (kept,) = cache.rglob("*.*")
    assert kept.name == "cifar10_train.npz"
    with np.load(kept) as arrays:
        np.testing.assert_array_equal(arrays["images"], images.transpose(0, 2, 3, 1))


def test_the_cache_is_read_follows_the_source_and_repairs_itself(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = write_packed(tmp_path / "c")
    cifar10.read(tmp_path / "c", "train")
    (kept,) = cache.rglob("*.npz")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:1000])
    found = cifar10.read(tmp_path / "c", "train")
    assert found is not None
    np.testing.assert_array_equal(found[0], images)
    assert kept.read_bytes()[:4] == whole[:4]
    monkeypatch.setattr(cifar10, "unpack", lambda _: pytest.fail("decoded again"))
    cifar10.read(tmp_path / "c", "train")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    other, _ = write_packed(tmp_path / "c", 3)
    found = cifar10.read(tmp_path / "c", "train")
    assert found is not None
    np.testing.assert_array_equal(found[0], other)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    images, _ = write_packed(tmp_path / "c")
    found = cifar10.read(tmp_path / "c", "train")
    assert found is not None
    np.testing.assert_array_equal(found[0], images)


def test_plain_and_png_forms(tmp_path: Path) -> None:
    images, labels = some(10)
    np.savez(tmp_path / "cifar10_test.npz", images=images.transpose(0, 2, 3, 1), labels=labels)
    found = cifar10.read(tmp_path, "test")
    assert found is not None
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)
    for image, label in zip(images, labels, strict=True):
        path = tmp_path / "test" / cifar10.CLASSES[label] / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(255 - image.transpose(1, 2, 0)).save(path)
    found = cifar10.read(tmp_path, "test")
    assert found is not None
    np.testing.assert_array_equal(found[0], 255 - images)
    np.testing.assert_array_equal(found[1], np.arange(10))
    assert cifar10.read(tmp_path, "train") is None


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cifar10_train.npz"
    for arrays in ({"images": np.zeros((2, 32, 32, 3), np.uint8)}, {"labels": np.zeros(2, np.int64)}):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=r"cifar10_train.npz: cannot read images, labels \(.* not a file"):
            cifar10.read(tmp_path, "train")
    for images, labels in (
        (np.zeros((2, 32, 32, 3)), np.zeros(2, int)),
        (np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2, int)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros(3, int)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 10])),
        (np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, int)),
    ):
        np.savez(path, images=images, labels=labels)
        with pytest.raises(DataError, match=r"cifar10_train.npz: expected uint8 images of shape"):
            cifar10.read(tmp_path, "train")
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"cifar10_train.npz: cannot read"):
        cifar10.read(tmp_path, "train")
    path.rename(tmp_path / "cifar10_med.npz")
    with pytest.raises(DataError, match=r"cifar10_med.npz: cannot read train_residual"):
        cifar10.read(tmp_path, "train")
    folder = tmp_path / "train/plane"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    with pytest.raises(DataError, match=r"expected 3×32×32 images in the class folders airplane, .* in plane"):
        cifar10.read(tmp_path, "train")


def test_unpacking_says_how_far_it_is(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_CHUNK", 2)
    write_packed(tmp_path / "c", 5)
    said: list[tuple[int, int]] = []
    cifar10.read(tmp_path / "c", "train", lambda *done: said.append(done))
    assert said == [(2, 5), (4, 5), (5, 5)]
