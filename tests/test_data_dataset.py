"""Datasets and their scaling: exact round trips, exact moments, and errors that name what does not fit."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortflow.data import Dataset, DataSpec, dataset
from shortflow.errors import DataError

LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)


def images(n: int = 6) -> Dataset:
    samples = np.random.default_rng(0).integers(256, size=(n, 3, 4, 4), dtype=np.uint8)
    return Dataset(name="noise", samples=samples, labels=np.arange(n) % 2, classes=("a", "b"), split="test")


def points() -> Dataset:
    return Dataset(name="p", samples=np.array([[1, 2], [3, 6]], dtype=np.float32))


def test_properties_and_subset() -> None:
    data = images()
    assert (len(data), data.shape, data.num_classes, data.is_image) == (6, (3, 4, 4), 2, True)
    assert (len(points()), points().shape, points().num_classes, points().is_image) == (2, (2,), 0, False)
    for rows in (np.array([4, 1]), np.array([False, True, False, False, True, False]), slice(1, 5, 3)):
        part = data.subset(rows)
        np.testing.assert_array_equal(part.samples, data.samples[rows])
        np.testing.assert_array_equal(part.labels, np.arange(6)[rows] % 2)
        assert (part.name, part.classes, part.split) == ("noise", ("a", "b"), "test")
    assert points().subset(slice(1)).labels is None


def test_fingerprint_sees_values_order_labels_and_shape_but_not_names() -> None:
    data = images()
    one_level = data.samples.copy()
    one_level[2, 1, 0, 3] ^= 1
    variants = [
        data,
        Dataset(name="n", samples=one_level, labels=data.labels, classes=data.classes),
        Dataset(name="n", samples=data.samples, labels=1 - data.labels, classes=data.classes),
        Dataset(name="n", samples=data.samples),
        Dataset(name="n", samples=data.samples.reshape(6, 3, 2, 8)),
        data.subset(np.arange(6)[::-1]),
    ]
    assert len({d.fingerprint() for d in variants}) == len(variants)
    twin = Dataset(name="other", samples=np.asfortranarray(data.samples), labels=data.labels, classes=("x", "y"))
    assert twin.fingerprint() == data.fingerprint()


def test_fingerprint_is_pinned() -> None:
    """Written into checkpoints, so it must not drift: SHA-256 of '<f4(2, 2)' and the little-endian floats."""
    assert points().fingerprint() == "4685990aa5db9164b40f25760916d62725b06421097b91bd0d9051eb7b955fb8"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": np.zeros((2, 3, 4, 4))}, "uint8 images .* got float64"),
        ({"samples": np.zeros((2, 4, 4), np.uint8)}, r"got uint8 of shape \(2, 4, 4\)"),
        ({"samples": np.zeros((0, 1, 4, 4), np.uint8)}, "no samples"),
        ({"labels": None}, "labels and classes go together"),
        ({"classes": ()}, "labels and classes go together"),
        ({"labels": np.array([0, 1, 0])}, "one for each of the 2 samples"),
        ({"labels": np.array([0, 1], np.int32)}, "got int32"),
        ({"labels": np.array([0, 2])}, r"0…1 \(2 classes\), got 0…2"),
        ({"labels": np.array([-1, 1])}, "got -1…1"),
    ],
)
def test_parts_that_do_not_fit(values: dict, message: str) -> None:
    good = {"samples": np.zeros((2, 1, 4, 4), np.uint8), "labels": np.array([0, 1]), "classes": ("a", "b")}
    with pytest.raises(DataError, match=message):
        Dataset(name="bad", **(good | values))


def test_natural_scale_of_images_is_minus_one_to_one() -> None:
    spec = DataSpec.fit(Dataset(name="levels", samples=LEVELS))
    assert (spec.shift, spec.scale, spec.image, spec.shape) == (0.0, 1.0, True, (1, 8, 8))
    x = spec.encode(LEVELS)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.flatten().numpy(), np.arange(256) / 127.5 - 1, atol=1e-7)
    assert (x.min().item(), x.max().item()) == (-1, 1)


def test_standardised_images_have_zero_mean_and_the_std_asked_for() -> None:
    data = images(200)
    x = DataSpec.fit(data, 0.5).encode(data.samples).double()
    assert abs(x.mean().item()) < 1e-6
    assert x.std(correction=0).item() == pytest.approx(0.5, abs=1e-6)


def test_levels_have_closed_form_moments() -> None:
    """All 256 levels once: mean 0, variance (256² − 1)/12 / 127.5²."""
    spec = DataSpec.fit(Dataset(name="levels", samples=LEVELS), 1.0)
    assert spec.shift == pytest.approx(0, abs=1e-15)
    assert spec.scale == pytest.approx(127.5 / ((256**2 - 1) / 12) ** 0.5, rel=1e-12)


def test_points_are_standardised_as_one_number() -> None:
    """Values 1, 2, 3, 6: mean 3, population variance 3.5, one scale for both coordinates."""
    spec = DataSpec.fit(points(), 2.0)
    assert (spec.shift, spec.image) == (3.0, False)
    assert spec.scale == pytest.approx(2 / 3.5**0.5, rel=1e-12)
    x = spec.encode(points().samples)
    np.testing.assert_allclose(x.numpy(), (points().samples - 3) * 2 / 3.5**0.5, rtol=1e-6)
    np.testing.assert_allclose(spec.decode(x), points().samples, rtol=1e-6)
    np.testing.assert_array_equal(DataSpec.fit(points()).encode(points().samples).numpy(), points().samples)


@given(shift=st.floats(-4, 4), scale=st.floats(1e-3, 1e3))
def test_every_level_survives_the_round_trip(shift: float, scale: float) -> None:
    spec = DataSpec(name="levels", shape=(1, 8, 8), shift=shift, scale=scale)
    np.testing.assert_array_equal(spec.decode(spec.encode(LEVELS)), LEVELS)


def test_decode_rounds_and_clamps() -> None:
    spec = DataSpec(name="x", shape=(1, 1, 6))
    level = torch.tensor([-3.0, 0.4, 100.6, 254.7, 900.0, float("nan")])
    out = spec.decode((level / 127.5 - 1).reshape(1, 1, 1, 6))
    assert out.dtype == np.uint8
    assert out.flatten().tolist() == [0, 0, 101, 255, 255, 0]


def test_decode_takes_half_precision_and_gradients() -> None:
    x = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16, requires_grad=True)
    assert DataSpec(name="x", shape=(1, 1, 2), shift=1.0).decode(x).flatten().tolist() == [255, 255]


def test_encode_leaves_read_only_samples_alone() -> None:
    frozen = LEVELS.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataSpec(name="x", shape=(1, 8, 8)).encode(frozen).add_(1)
    np.testing.assert_array_equal(frozen, LEVELS)


def test_json_round_trip() -> None:
    spec = DataSpec.fit(images(), 0.5)
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(DataError, match=r"missing keys \['scale'\], unknown keys \['scales'\]"):
        DataSpec.from_dict({("scales" if k == "scale" else k): v for k, v in spec.to_dict().items()})


def test_specs_that_cannot_be() -> None:
    flat = Dataset(name="flat", samples=np.full((2, 1, 2, 2), 7, np.uint8))
    with pytest.raises(DataError, match="flat: the values have standard deviation 0"):
        DataSpec.fit(flat, 0.5)
    assert DataSpec.fit(flat).scale == 1
    broken = Dataset(name="p", samples=np.array([[np.nan, 0]], np.float32))
    with pytest.raises(DataError, match="standard deviation nan"):
        DataSpec.fit(broken, 1.0)
    for sigma in (0.0, -1.0, float("inf")):
        with pytest.raises(DataError, match=f"got {sigma}"):
            DataSpec.fit(points(), sigma)
    with pytest.raises(DataError, match="got scale 0"):
        DataSpec(name="x", shape=(2,), scale=0.0)
    spec = DataSpec(name="x", shape=(1, 8, 8))
    with pytest.raises(DataError, match=r"expected uint8 samples of shape \(1, 8, 8\), got uint8 of shape \(3, 8, 8\)"):
        spec.encode(np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"expected samples of shape \(1, 8, 8\), got \(1, 8, 9\)"):
        spec.decode(torch.zeros(1, 1, 8, 9))


def test_moments_by_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one part they are NumPy's to the bit; in many, which a set larger than memory needs, to rounding."""
    pixels = Dataset(name="u", samples=np.random.default_rng(0).integers(256, size=(40, 1, 3, 3), dtype=np.uint8))
    cloud = Dataset(name="p", samples=np.random.default_rng(1).standard_normal((5000, 3)).astype(np.float32) + 2)
    wide = cloud.samples.astype(np.float64)
    assert dataset._moments(cloud) == (wide.mean(), wide.std())
    whole = [dataset._moments(data) for data in (pixels, cloud)]
    monkeypatch.setattr(dataset, "_AT_ONCE", 70)
    assert dataset._moments(pixels) == whole[0]  # counts are exact
    np.testing.assert_allclose(dataset._moments(cloud), whole[1], rtol=1e-13)
