"""Arrays in files: what is mapped is what was written, nothing is read in advance, and damage is told by name."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from shortflow.arrays import npy_header, open_array
from shortflow.errors import DataError


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float16", "float32", "float64"])
def test_both_formats_give_the_array_that_was_saved(tmp_path: Path, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, (5, 1, 2, 3)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    save_file({"other": np.ones((7, 3), np.float32), "x": array}, tmp_path / "two.safetensors")
    save_file({"x": array}, tmp_path / "one.safetensors")
    for found in (
        open_array(tmp_path / "a.npy"),
        open_array(tmp_path / "one.safetensors"),
        open_array(tmp_path / "two.safetensors", "x"),
    ):
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)


def test_a_header_and_rows_are_a_file(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    (tmp_path / "a.npy").write_bytes(npy_header(np.float32, (3, 2, 2)) + b"".join(row.tobytes() for row in rows))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), rows)


def test_a_file_larger_than_memory_is_opened(tmp_path: Path) -> None:
    """A sparse file of 1 TiB: it could not be if it were read."""
    path = tmp_path / "huge.npy"
    shape = (2**28, 1, 64, 64)
    header = npy_header(np.uint8, shape)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + 2**40)
        file.seek(len(header) + 2**40 - 1)
        file.write(b"\x07")
    found = open_array(path)
    assert found.shape == shape
    assert (found[0, 0, 0, 0], found[-1, 0, -1, -1]) == (0, 7)


def test_what_cannot_be_mapped_is_told(tmp_path: Path) -> None:
    array = np.zeros((4, 3), np.float32)
    np.save(tmp_path / "a.npy", array)
    save_file({"x": array, "y": array}, tmp_path / "a.safetensors")
    for name, key, message in (
        ("nowhere.npy", None, "nowhere.npy: cannot be mapped .*No such file.*write or fetch"),
        ("a.npz", None, r"only .npy and .safetensors files can be memory-mapped"),
        ("a.npy", "x", "has no key 'x'; leave it out"),
        ("a.safetensors", None, r"holds 2 tensors \(x, y\); give the key"),
        ("a.safetensors", "z", "there is no tensor 'z'; there are x, y"),
    ):
        with pytest.raises(DataError, match=message):
            open_array(tmp_path / name, key)
    for name, key in (("a.npy", None), ("a.safetensors", "y")):
        whole = (tmp_path / name).read_bytes()
        for size in (len(whole) - 1, 40, 3, 0):
            (tmp_path / f"cut-{name}").write_bytes(whole[:size])
            with pytest.raises(DataError, match=f"cut-{name}: cannot be mapped"):
                open_array(tmp_path / f"cut-{name}", key)


def test_types_that_numpy_lacks_are_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    save_torch({"x": torch.zeros(2, 2, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match="x is BF16, which NumPy does not have; save it as F32"):
        open_array(tmp_path / "b.safetensors")
