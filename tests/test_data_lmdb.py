"""Latents that others have pickled: arrays come out as they went in, and no program is executed."""

import builtins
import contextlib
import importlib.util
import io
import os
import pickle
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shortflow.data import lmdblatents
from shortflow.data.lmdblatents import LmdbLatents, entry, is_lmdb, open_lmdb, unpickled
from shortflow.errors import DataError

MOMENTS = np.random.default_rng(0).normal(size=(8, 4, 4)).astype(np.float32)
FLIP = np.random.default_rng(1).normal(size=(8, 4, 4)).astype(np.float32)


def content(protocol: int = pickle.DEFAULT_PROTOCOL, **change: Any) -> bytes:
    """An entry as zhuyu-cs/MeanFlow and EDAPINENUT/ExplicitShortCut write it."""
    return pickle.dumps({"moments": MOMENTS, "moments_flip": FLIP, "label": 7, **change}, protocol)


# -------------------------------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_moments_are_mean_and_deviation_of_image_and_mirror(protocol: int) -> None:
    moments, label = entry(content(protocol, filename="n00000007/img.JPEG"))
    assert (moments.shape, moments.dtype, label) == ((2, 2, 4, 4, 4), np.float32, 7)
    for side, stored in enumerate((MOMENTS, FLIP)):
        np.testing.assert_array_equal(moments[side, 0], stored[:4])
        np.testing.assert_allclose(moments[side, 1], np.exp(0.5 * stored[4:]), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"moments": torch.from_numpy(MOMENTS), "moments_flip": torch.from_numpy(FLIP)},
        {"moments": torch.from_numpy(MOMENTS.transpose(0, 2, 1).copy()).transpose(1, 2)},  # not in C order
        {"moments": np.asfortranarray(MOMENTS)},
        {"moments": MOMENTS.astype(">f4")},
        {"moments": MOMENTS.astype(np.float64)},
        {"label": np.int64(7)},
        {"label": torch.tensor(7)},
    ],
)
def test_arrays_of_every_kind_are_the_same(change: dict[str, Any]) -> None:
    moments, label = entry(content(**change))
    np.testing.assert_array_equal(moments, entry(content())[0])
    assert label == 7


def test_halves_are_read_and_logarithms_cut_as_in_diffusers() -> None:
    half, _ = entry(content(moments=MOMENTS.astype(np.float16)))
    np.testing.assert_array_equal(half[0, 0], MOMENTS[:4].astype(np.float16).astype(np.float32))
    wild = MOMENTS.copy()
    wild[4:] = np.where(MOMENTS[4:] > 0, 100, -100)
    moments, _ = entry(content(moments=wild))
    np.testing.assert_allclose(moments[0, 1], np.where(MOMENTS[4:] > 0, np.exp(10), np.exp(-15)), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pickle.dumps([1, 2]), "an entry with list"),
        (pickle.dumps({"image": b"jpeg", "label": 3}), "an entry with image, label, where moments"),
        (content(moments=MOMENTS[:, 0]), "moments of shape"),
        (content(moments=MOMENTS[:7]), "moments of shape"),
        (content(moments=MOMENTS.astype(np.int32)), "moments of shape"),
        (content(moments=[1.0, 2.0]), "moments of shape list"),
        (content(label=-1), "the label -1"),
        (content(label="cat"), "the label 'cat'"),
        (content()[:-30], "no plain array"),
        (b"", "no plain array"),
        (random.Random(0).randbytes(100), "no plain array"),
    ],
)
def test_other_entries_are_refused(value: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        entry(value)


# --------------------------------------------------------------------------------------------------------------- malice


class Calls:
    """Its pickle calls a function when it is opened in the usual way."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def test_a_hostile_pickle_executes_nothing(tmp_path: Path) -> None:
    marked = tmp_path / "executed"
    command = f"touch {marked}"
    programs = [
        Calls(os.system, command),
        Calls(subprocess.check_call, ["touch", str(marked)]),
        Calls(eval, f"open({str(marked)!r}, 'w').close()"),
        Calls(exec, f"open({str(marked)!r}, 'w').close()"),
        Calls(builtins.open, str(marked), "w"),
        Calls(getattr, {}, "keys"),
        Calls(np.load, str(marked)),
        Calls(torch.load, str(marked)),
        Calls(importlib.util.find_spec, "os"),
        Calls(np.frombuffer, b"1234"),  # harmless, and yet no part of how arrays are written
    ]
    pickle.loads(pickle.dumps(programs[0]))
    assert marked.exists()  # this is what the usual way does
    marked.unlink()
    for program in programs:
        for value in (
            pickle.dumps(program),
            content(moments=program),
            content(label=program),
            content(filename=program),
        ):
            with pytest.raises(DataError, match="which is no part of an array, and was not called"):
                entry(value)
    raw = {
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "reduce": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "through a known one": b"cnumpy\ndtype\n(cos\nsystem\ntR.",
        "nested name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pname\n.",
        "inside a tensor": b"\x80\x02ctorch.storage\n_load_from_bytes\n"
        + pickle.dumps(pickle.dumps(programs[0]), 2)[2:-1]
        + b"\x85R.",
    }
    for value in raw.values():
        with pytest.raises(DataError, match="no plain array"):
            unpickled(value)
    assert not marked.exists()


def test_a_tensor_with_a_program_in_its_storage_executes_nothing(tmp_path: Path) -> None:
    marked = tmp_path / "executed"
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {marked}"), inner, _use_new_zipfile_serialization=False)
    value = pickle.dumps(Calls(torch.storage._load_from_bytes, inner.getvalue()))
    with pytest.raises(DataError, match="no plain array"):
        unpickled(value)
    assert not marked.exists()


def test_functions_that_stand_for_others_stay_what_they_are() -> None:
    """A program may set attributes of what it can name; whatever it tries, the next entry is read as before."""
    before = dict(lmdblatents._KNOWN)
    for target in (b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"):
        for name in (b"__init__", b"__setstate__", b"__call__", b"__defaults__", b"__code__", b"value"):
            attributes = b"(N(dS'" + name + b"'\ncnumpy.core.multiarray\nscalar\nstb."
            with contextlib.suppress(DataError):
                unpickled(target + attributes)
            np.testing.assert_array_equal(entry(content())[0][0, 0], MOMENTS[:4])
    assert before == lmdblatents._KNOWN


@pytest.mark.parametrize(
    "state",
    [
        (1, (2**40,), np.dtype("f4"), False, b"1234"),
        (1, (-1,), np.dtype("f4"), False, b"1234"),
        (1, (1,), np.dtype("O"), False, [object]),
        (1, (1,), np.dtype("f4"), False, b"12"),
        (1, (1,), "f4", False, b"1234"),
        (1, (1,), np.dtype("S4"), False, b"1234"),
        (1, (1,), np.dtype([("a", "f4")]), False, b"1234"),
    ],
)
def test_arrays_that_are_not_what_they_say(state: Any) -> None:
    class Array:
        def __reduce__(self) -> Any:
            return np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    with pytest.raises(DataError, match="no plain array"):
        unpickled(pickle.dumps(Array()))


def test_tensors_that_are_larger_than_their_content() -> None:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    for offset, size, stride in (
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (3, 3), (1, 1)),
        (-1, (2,), (1,)),
        (0, (9,), (0,)),
    ):
        value = pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {}))
        if stride == (0,):
            assert unpickled(value).tolist() == [0.0] * 9
        else:
            with pytest.raises(DataError, match=r"larger than its content|no plain array"):
                unpickled(value)


# ----------------------------------------------------------------------------------------------------------------- LMDB


def test_gaps_are_named(tmp_path: Path) -> None:
    found = LmdbLatents(path=tmp_path, get={b"0": content(), b"2": b"x"}.get, count=3)
    assert found.read(0)[1] == 7
    with pytest.raises(DataError, match="there is no entry 1 of 3; the caching was interrupted"):
        found.read(1)
    with pytest.raises(DataError, match="entry 2: a pickle that is no plain array"):
        found.read(2)


def test_the_package_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.mdb").touch()
    assert is_lmdb(tmp_path)
    assert not is_lmdb(tmp_path / "data")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="not installed: pip install lmdb"):
        open_lmdb(tmp_path)


def test_a_real_lmdb_is_read(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")

    def written(path: Path, entries: dict[bytes, bytes]) -> Path:
        with lmdb.open(str(path), map_size=2**22) as environment, environment.begin(write=True) as transaction:
            for key, value in entries.items():
                transaction.put(key, value)
        return path

    found = open_lmdb(written(tmp_path / "a", {b"0": content(), b"1": content(label=2), b"num_samples": b"2"}))
    assert (found.count, [found.read(k)[1] for k in range(2)]) == (2, [7, 2])
    for name, entries in {"none": {b"0": content()}, "words": {b"num_samples": b"many"}}.items():
        with pytest.raises(DataError, match="no LMDB of latents: its key num_samples is"):
            open_lmdb(written(tmp_path / name, entries))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/data.mdb").write_bytes(b"nothing" * 1000)
    with pytest.raises(DataError, match="no LMDB, or only a part of one"):
        open_lmdb(tmp_path / "c")
