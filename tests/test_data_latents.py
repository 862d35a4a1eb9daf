"""Latents as data: natural units, draws from the posterior, stores on disk, and files that must not be believed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shortflow import data
from shortflow.arrays import Stacked
from shortflow.data import Batches, ClassConsistent, Dataset, DataSpec, Shuffled, latents
from shortflow.data.latents import Measured, open_latents, read_meta, rescale, write_meta, write_shard
from shortflow.data.latentspec import LatentSpec
from shortflow.data.samplers import coins, normals
from shortflow.errors import DataError

N, C, SIDE = 20, 3, 2
RANDOM = np.random.default_rng(0)
SPREAD = np.abs(RANDOM.normal(size=(N, 2, C, SIDE, SIDE)))
MOMENTS = np.stack([RANDOM.normal(2, 3, size=(N, 2, C, SIDE, SIDE)), SPREAD], axis=2).astype(np.float32)
LABELS = np.arange(N) % 4
LATENT = LatentSpec(
    encoder="vaes/small", sha256="ab" * 32, pixels=(3, 8, 8), shift=(0.5, -1.0, 2.0), scale=(0.2, 0.25, 0.5)
)
MADE = {"autoencoder": "ab" * 32, "labelled": True}


def dataset(moments: Any = MOMENTS, **others: Any) -> Dataset:
    measured = Measured.of(MOMENTS)
    values: dict[str, Any] = {
        "name": "small",
        "samples": Stacked((moments[:7], moments[7:])),
        "labels": LABELS,
        "classes": tuple("abcd"),
        "latent": LATENT,
        "measured": (tuple(measured.mean.tolist()), tuple(measured.std.tolist())),
    }
    return Dataset(**values | others)


def store(folder: Path, moments: np.ndarray = MOMENTS, labels: np.ndarray | None = LABELS, **others: Any) -> Path:
    """A store of three shards."""
    parts = [range(0, 8), range(8, 16), range(16, N)]
    shards, total = [], Measured.of(moments[:0])
    for number, rows in enumerate(parts):
        path = folder / latents.shard_name(number)
        made = write_shard(
            path,
            moments[rows.start : rows.stop],
            None if labels is None else labels[rows.start : rows.stop],
            made={**MADE, "labelled": labels is not None},
            pixels="",
        )
        total = total.merged(made.measured)
        shards.append(
            {"name": path.name, "count": len(rows), "bytes": path.stat().st_size, "sha256": latents.sha256_of(path)}
        )
    meta = {
        "latent": LATENT.to_dict(),
        "shape": [C, SIDE, SIDE],
        "gaussian": True,
        "dtype": str(moments.dtype),
        "count": N,
        "classes": [] if labels is None else list("abcd"),
        "measured": {"mean": total.mean.tolist(), "std": total.std.tolist()},
        "source": {"name": "photos", "split": "train", "sha256": ""},
        "shards": shards,
    }
    write_meta(folder, meta | others)
    return folder


# -------------------------------------------------------------------------------------------------------------- Stacked


@settings(deadline=None)
@given(st.lists(st.integers(0, N - 1), max_size=12), st.lists(st.integers(1, N - 1), max_size=4, unique=True))
def test_stacked_parts_are_one_array(rows: list[int], cuts: list[int]) -> None:
    whole = Stacked(tuple(np.split(MOMENTS, sorted(cuts))))
    assert (len(whole), whole.shape, whole.dtype, whole.ndim, whole.size) == (N, MOMENTS.shape, "f4", 6, MOMENTS.size)
    index = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(whole[index], MOMENTS[index])
    which = index % 2
    np.testing.assert_array_equal(whole[index, which, 0], MOMENTS[index, which, 0])
    np.testing.assert_array_equal(whole[3:17:5], MOMENTS[3:17:5])
    np.testing.assert_array_equal(whole[MOMENTS[:, 0, 0, 0, 0, 0] > 2], MOMENTS[MOMENTS[:, 0, 0, 0, 0, 0] > 2])


def test_stacked_refuses_what_does_not_fit() -> None:
    for parts in ((), (MOMENTS, MOMENTS[:, :1]), (MOMENTS, MOMENTS.astype(np.float16))):
        with pytest.raises(DataError, match="one type and shape"):
            Stacked(parts)
    with pytest.raises(IndexError):
        Stacked((MOMENTS,))[N]


# ---------------------------------------------------------------------------------------------------------------- units


def test_natural_units_are_by_channel_and_have_an_inverse() -> None:
    z = MOMENTS[:, 0, 0]
    x = LATENT.natural(z)
    for c in range(C):
        np.testing.assert_allclose(x[:, c], (z[:, c] - LATENT.shift[c]) * LATENT.scale[c], rtol=1e-6)
    np.testing.assert_allclose(LATENT.latents(x), z, rtol=1e-5, atol=1e-6)
    assert LatentSpec.from_dict(json.loads(json.dumps(LATENT.to_dict()))) == LATENT


@pytest.mark.parametrize("sigma_data", [None, 0.5])
def test_the_spec_of_data_adds_its_own_scale(sigma_data: float | None) -> None:
    """Over images, mirrors and the spread, all elements at once."""
    spec = DataSpec.fit(dataset(), sigma_data)
    assert (spec.kind, spec.image, spec.shape) == ("latents", False, (C, SIDE, SIDE))
    x = spec.encode(np.concatenate([MOMENTS[:, 0, 0], MOMENTS[:, 1, 0]])).double()
    if sigma_data is None:
        assert (spec.shift, spec.scale) == (0, 1)
    else:
        units = torch.tensor(LATENT.scale).double()[:, None, None] * spec.scale
        noise = (torch.from_numpy(SPREAD).swapaxes(0, 1).flatten(0, 1) * units).square().mean()
        assert abs(x.mean().item()) < 1e-6
        assert math.sqrt(float(x.var(correction=0) + noise)) == pytest.approx(0.5, rel=1e-6)
    np.testing.assert_allclose(spec.decode(spec.encode(MOMENTS[:, 0, 0])), MOMENTS[:, 0, 0], rtol=1e-5, atol=1e-5)
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_specs_of_earlier_files_are_read_as_before() -> None:
    values = {"name": "d", "shape": [1, 8, 8], "classes": [], "shift": 0.0, "scale": 1.0, "image": True}
    spec = DataSpec.from_dict(values)
    assert (spec.latent, spec.kind, spec.to_dict()) == (None, "images", values)
    with pytest.raises(DataError, match=r"unknown keys \['latents'\]"):
        DataSpec.from_dict({**values, "latents": {}})
    with pytest.raises(DataError, match="no uint8 images"):
        DataSpec.from_dict({**values, "latent": LATENT.to_dict()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": [0.2, 0.25]}, "a shift and a scale for each channel, got 3 and 2"),
        ({"scale": [0.2, 0.25, 0.0]}, "positive finite scales"),
        ({"shift": [0.2, math.inf, 0.0]}, "finite shifts"),
        ({"pixels": [3, 8]}, "makes no sense"),
        ({"pixels": [3, 0, 8]}, "images \\(c, h, w\\)"),
        ({"scale": "many"}, "makes no sense"),
        ({"encoder": " "}, "the name of an autoencoder"),
        ({"more": 1}, "must have"),
    ],
)
def test_descriptions_of_latents_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LatentSpec.from_dict({**LATENT.to_dict(), **change})


def test_differences_are_named() -> None:
    def other(**change: Any) -> LatentSpec:
        return LatentSpec.from_dict({**LATENT.to_dict(), **change})

    def apart(change: dict[str, Any], of: LatentSpec = LATENT) -> list[str]:
        return of.differences(other(**change), ("the model", "the data"))

    assert apart({}) == apart({"encoder": "elsewhere/copy"}) == []
    scale = apart({"scale": [0.18125] * 3})
    assert scale == ["the scale of the model is [0.2, 0.25, 0.5], that of the data is 0.18125"]
    near = LatentSpec(encoder="e", sha256=None, pixels=(3, 8, 8), shift=(0.0,), scale=(0.18215,))
    trap = LatentSpec(encoder="e", sha256=None, pixels=(3, 8, 8), shift=(0.0,), scale=(0.18125,))
    assert trap.differences(near, ("a", "b")) == ["the scale of a is 0.18125, that of b is 0.18215"]
    close = LatentSpec(encoder="e", sha256=None, pixels=(3, 8, 8), shift=(0.0,), scale=(0.18215001,))
    assert close.differences(near, ("a", "b")) == ["the scale of a is 0.18215001, that of b is 0.18215"]
    assert "sha256 cdcdcdcdcdcd…" in apart({"sha256": "cd" * 32})[0]
    assert apart({"sha256": None, "encoder": "./small"}) == []  # by its name
    assert "is vaes/small, that of the data is big" in apart({"sha256": None, "encoder": "big"})[0]
    assert len(apart({"pixels": [3, 4, 4], "shift": [0, 0, 0]})) == 2


# -------------------------------------------------------------------------------------------------------------- batches


def test_normal_numbers_are_normal_and_functions_of_seed_step_and_row() -> None:
    x = normals(range(64), 4095, 0, 3).astype(np.float64)
    n = x.size
    assert x.shape == (64, 4095)
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(np.square(x).mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    for level, share in ((1.0, 0.8413447), (2.0, 0.9772499), (3.0, 0.9986501)):
        assert abs((x < level).mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert abs((x[:, :2047] * x[:, 2048:4095]).mean()) < 5 / (n / 2) ** 0.5  # the two of a word
    np.testing.assert_array_equal(normals(range(5, 9), 4095, 0, 3), normals(range(64), 4095, 0, 3)[5:9])
    for other in (normals(range(64), 4095, 1, 3), normals(range(64), 4095, 0, 4), normals(range(1, 65), 4095, 0, 3)):
        assert (other[0] == x[0].astype(np.float32)).mean() < 0.01
        assert abs(np.corrcoef(other[0], x[0])[0, 1]) < 5 / 4095**0.5
    assert np.abs(normals(range(1), 2**16, 0, 0)).max() < 6.7


def test_a_batch_is_drawn_from_the_moments_of_the_image_or_its_mirror() -> None:
    spec, order = DataSpec.fit(dataset()), Shuffled(n=N, batch_size=12, seed=4)
    for flip in (False, True):
        batch = Batches(dataset=dataset(), spec=spec, order=order, flip=flip)(5)
        rows = order.indices(5)
        side = coins(12, 4, 5).astype(int) if flip else np.zeros(12, int)
        eps = normals(range(12), C * SIDE * SIDE, 4, 5).reshape(12, C, SIDE, SIDE)
        z = MOMENTS[rows, side, 0] + MOMENTS[rows, side, 1] * eps
        want = (z - np.reshape(LATENT.shift, (C, 1, 1))) * np.reshape(LATENT.scale, (C, 1, 1))
        np.testing.assert_allclose(batch.x.numpy(), want, rtol=1e-5, atol=1e-6)
        assert batch.label is not None
        assert batch.label.tolist() == LABELS[rows].tolist()


def test_without_a_spread_the_mean_is_the_latent() -> None:
    plain = dataset(MOMENTS[:, :, :1])
    batch = Batches(dataset=plain, spec=DataSpec.fit(plain), order=Shuffled(n=N, batch_size=4, seed=0))(0)
    rows = Shuffled(n=N, batch_size=4, seed=0).indices(0)
    np.testing.assert_array_equal(batch.x.numpy(), LATENT.natural(MOMENTS[rows, 0, 0]))
    np.testing.assert_array_equal(dataset().take(rows), MOMENTS[rows, 0, 0])  # nor where no noise is given


@pytest.mark.parametrize("grouped", [False, True])
def test_the_batches_of_several_processes_are_those_of_one(grouped: bool) -> None:
    spec = DataSpec.fit(dataset())

    def batch(rank: int, world: int) -> torch.Tensor:
        order: Any = Shuffled(n=N, batch_size=12, seed=1, rank=rank, world=world)
        if grouped:
            order = ClassConsistent(labels=LABELS, group=2, batch_size=12, seed=1, rank=rank, world=world)
        return Batches(dataset=dataset(), spec=spec, order=order, flip=True)(7).x

    assert torch.equal(torch.cat([batch(rank, 3) for rank in range(3)]), batch(0, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": MOMENTS[:, :1]}, r"moments \(n, 2, 1 or 2, c, h, w\)"),
        ({"samples": MOMENTS.astype(np.float64)}, "got float64"),
        ({"measured": None}, "as many scales"),
        ({"measured": ((0.0,), (1.0,))}, "as many scales"),
        ({"latent": LatentSpec(encoder="e", sha256=None, pixels=(3, 8, 8), shift=(0.0,), scale=(1.0,))}, "as many"),
        ({"labels": LABELS[:3]}, "one for each of the 20 samples"),
        ({"samples": MOMENTS[:0], "labels": LABELS[:0]}, "no samples"),
    ],
)
def test_parts_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset(**values)


# --------------------------------------------------------------------------------------------------------------- stores


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_is_read_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    found = open_latents(store(tmp_path, MOMENTS.astype(dtype)), verify=True)
    assert (len(found), found.shape, found.kind, found.name, found.split) == (
        N,
        (C, SIDE, SIDE),
        "latents",
        "photos",
        "train",
    )
    assert (found.classes, found.latent) == (tuple("abcd"), LATENT)
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.samples[:], MOMENTS.astype(dtype))
    assert isinstance(found.samples, Stacked)
    assert all(isinstance(part, np.memmap) for part in found.samples.parts)
    assert found.fingerprint() == dataset(MOMENTS.astype(dtype)).fingerprint()
    part = found.subset(np.array([3, 11]))
    np.testing.assert_array_equal(part.samples, MOMENTS[[3, 11]].astype(dtype))
    assert part.latent == LATENT


def test_measurements_are_those_of_all_numbers_whatever_the_shards(tmp_path: Path) -> None:
    mean, std = open_latents(store(tmp_path)).measured or ((), ())
    z = MOMENTS.astype(np.float64)
    np.testing.assert_allclose(mean, z[:, :, 0].mean(axis=(0, 1, 3, 4)), rtol=1e-12)
    variance = z[:, :, 0].var(axis=(0, 1, 3, 4)) + np.square(z[:, :, 1]).mean(axis=(0, 1, 3, 4))
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-12)
    far = Measured.of((1e8 + MOMENTS[:, :, :1]).astype(np.float64))  # where E z² − (E z)² has no digit left
    np.testing.assert_allclose(far.std, (1e8 + MOMENTS[:, :, 0]).astype(np.float64).std(axis=(0, 1, 3, 4)), rtol=1e-6)


def test_unconditional_stores_and_classes_without_images(tmp_path: Path) -> None:
    assert open_latents(store(tmp_path / "a", labels=None)).classes == ()
    found = open_latents(store(tmp_path / "b", labels=np.where(LABELS == 1, 3, LABELS)))
    assert found.classes == ("a", "c", "d")
    assert found.labels is not None
    assert found.labels.tolist() == [(0, 2, 1, 2)[label] for label in LABELS]


def test_load_knows_stores_and_their_splits(tmp_path: Path) -> None:
    here = store(tmp_path / "one")
    assert data.load(str(here)).kind == data.load(str(here), "all").kind == "latents"
    assert len(data.load(str(here), resolution=8)) == N
    with pytest.raises(DataError, match="images of side 8, not 16; leave out the resolution"):
        data.load(str(here), resolution=16)
    with pytest.raises(DataError, match="of the split 'train', not of 'test'; encode that as well, with --split test"):
        data.load(str(here), "test")
    source = {"name": "photos", "split": "test", "sha256": ""}
    store(tmp_path / "both/train"), store(tmp_path / "both/test", source=source)
    assert [data.load(str(tmp_path / "both"), split).split for split in ("train", "test")] == ["train", "test"]
    with pytest.raises(DataError, match="no latents of the split 'val'; there are test, train"):
        data.load(str(tmp_path / "both"), "val")
    (here / "meta.json").unlink()
    with pytest.raises(DataError, match="not finished; give the command that began them again"):
        data.load(str(here))


def test_other_units_write_no_shard(tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in store(tmp_path).glob("*.safetensors")}
    made = rescale(tmp_path, [0.18125] * 3, [0.0] * 3)
    assert open_latents(tmp_path, verify=True).latent == made
    assert made == LatentSpec.from_dict({**LATENT.to_dict(), "scale": [0.18125] * 3, "shift": [0.0] * 3})
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before
    with pytest.raises(DataError, match="3 channels need as many"):
        rescale(tmp_path, [1.0], [0.0])


# ---------------------------------------------------------------------------------------------------- damage and malice


def test_damage_is_found(tmp_path: Path) -> None:
    path = store(tmp_path) / "000001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"000001.safetensors has [\d,]+ of [\d,]+ bytes"):
        open_latents(tmp_path)
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    open_latents(tmp_path)  # sizes are right
    with pytest.raises(DataError, match=r"000001.safetensors is damaged"):
        open_latents(tmp_path, verify=True)
    with pytest.raises(DataError, match="its numbers are not those that were written"):
        latents.read_shard(path, verify=True)
    path.unlink()
    with pytest.raises(DataError, match=r"has 0 of"):
        open_latents(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/000000.safetensors", "000000.safetensors\n", ""]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = store(tmp_path / "store")
    (folder / "000000.safetensors").rename(tmp_path / "secret.safetensors")
    meta = json.loads((folder / "meta.json").read_text())
    meta["shards"][0]["name"] = name
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="is no name of a shard"):
        open_latents(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, and this version of shortflow reads format 1"),
        ({"count": 10**18}, "the counts of the shards are others"),
        ({"count": "many"}, "invalid literal"),
        ({"shape": [3, 2]}, "not enough values"),
        ({"shape": [3, -2, 2]}, "shape"),
        ({"shape": [4, 2, 2]}, "4, 2, 2\\] for 3 scales"),
        ({"dtype": "object"}, "neither float16 nor float32"),
        ({"measured": {"mean": [0, 0, math.nan], "std": [1, 1, 1]}}, "measured"),
        ({"measured": {"mean": [0, 0]}}, "missing"),
        ({"latent": {}}, "must have"),
        ({"latent": {**LATENT.to_dict(), "scale": [1e999] * 3}}, "positive finite scales"),
        ({"shards": []}, "counts"),
        ({"shards": 3}, "not iterable"),
        ({"shards": [{"name": "000000.safetensors"}]}, "missing"),
        ({"source": None}, "cannot be used"),
        ({"classes": None}, "cannot be used"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = store(tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(DataError, match=message):
        read_meta(folder)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "null", "\x00"])
def test_texts_that_are_no_description_are_refused(tmp_path: Path, content: str) -> None:
    (store(tmp_path) / "meta.json").write_text(content)
    with pytest.raises(DataError, match=r"meta.json cannot be used"):
        open_latents(tmp_path)


def test_a_huge_description_is_not_read(tmp_path: Path) -> None:
    with open(store(tmp_path) / "meta.json", "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(DataError, match="it has 1,099,511,627,776 bytes"):
        open_latents(tmp_path)


def test_shards_are_believed_as_far_as_their_bytes_go(tmp_path: Path) -> None:
    """Shapes in meta.json and in the header of a shard must be the same, and that of its bytes."""
    folder = store(tmp_path)
    path, meta = folder / "000000.safetensors", json.loads((folder / "meta.json").read_text())
    whole = path.read_bytes()

    def opened(content: bytes) -> None:
        path.write_bytes(content)
        meta["shards"][0]["bytes"] = len(content)
        (folder / "meta.json").write_text(json.dumps(meta))
        open_latents(folder)

    opened(whole)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for content in (b"", b"\xff" * 64, (2**62).to_bytes(8, "little") + whole[8:]):
        with pytest.raises(DataError, match="cannot be mapped"):
            opened(content)
    for shape in ([10**12, 2, 2, 3, 2, 2], [-8, -2, 2, 3, 2, 2], [8, 2, 2, 3, 4, 1]):
        header["moments"]["shape"] = shape
        text = json.dumps(header).encode()
        with pytest.raises(DataError, match=r"cannot be mapped|holds float32 of shape"):
            opened(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    for labels in (np.full(8, 9), np.full(8, -1)):
        write_shard(path, MOMENTS[:8], labels, made=MADE, pixels="")
        with pytest.raises(DataError, match="labels must be in 0…3"):
            opened(path.read_bytes())
    write_shard(path, MOMENTS[:7], LABELS[:7], made=MADE, pixels="")
    with pytest.raises(DataError, match=r"holds float32 of shape \(7, 2, 2, 3, 2, 2\), meta.json says"):
        opened(path.read_bytes())
