"""IDX files: values of a file written by hand, and every way in which a file can be wrong."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from shortflow.data.idx import read_idx, read_pair
from shortflow.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["x-ubyte", "x-ubyte.gz"])
def test_values_in_c_order(tmp_path: Path, name: str) -> None:
    array = read_idx(write(tmp_path / name, idx(IMAGES)), 3)
    np.testing.assert_array_equal(array, IMAGES)
    assert array.flags.writeable


def test_golden_bytes(tmp_path: Path) -> None:
    raw = bytes.fromhex("00000801 00000003 050009")
    assert read_idx(write(tmp_path / "y", raw), 1).tolist() == [5, 0, 9]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "starts with , but"),
        (b"\x00\x00\x0d\x03" + idx(IMAGES)[4:], "starts with 00 00 0d 03, but an IDX file of bytes with 3 axes"),
        (idx(IMAGES[0]), "starts with 00 00 08 02"),
        (b"<!DOCTYPE html>", "starts with 3c 21 44 4f"),
        (idx(IMAGES)[:10], "ends within its header, after 10 of 16 bytes"),
        (idx(IMAGES)[:-1], "announces 2×3×4 = 24 bytes, but 23 follow"),
        (idx(IMAGES) + b"\x00", "but 25 follow"),
    ],
)
def test_damage_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    for name in ("bad", "bad.gz"):
        with pytest.raises(DataError, match=f"{name}: .*{message}"):
            read_idx(write(tmp_path / name, raw), 3)


def test_gzip_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    whole = gzip.compress(idx(np.random.default_rng(0).integers(256, size=(5, 20, 20))))
    for raw in (whole[:-9], whole[:200], whole[:300] + b"\xff" * 40 + whole[340:], b"no gzip at all"):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"cut.gz: cannot be read \(.*fetch the file again"):
            read_idx(path, 3)
    with pytest.raises(DataError, match="absent: cannot be read"):
        read_idx(tmp_path / "absent", 3)


def test_pairs_must_match(tmp_path: Path) -> None:
    x, y = write(tmp_path / "x", idx(IMAGES)), write(tmp_path / "y", idx(np.array([3, 1])))
    images, labels = read_pair(x, y, 10)
    np.testing.assert_array_equal(images, IMAGES[:, None])
    assert labels.tolist() == [3, 1]
    with pytest.raises(DataError, match="y: label 3 is not in 0…2"):
        read_pair(x, y, 3)
    with pytest.raises(DataError, match="x holds 2 images, but y 3 labels"):
        read_pair(x, write(y, idx(np.array([3, 1, 1]))), 10)
