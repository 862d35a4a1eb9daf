"""Statistics files of every style, comparisons, names, and what may not be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from extractors import pictures, small
from shortflow.errors import MetricError
from shortflow.evaluate import (
    Extractor,
    Plan,
    Statistics,
    Tally,
    check_comparable,
    compare_statistics,
    distance_name,
    frechet_distance,
    holds_images,
    holds_statistics,
    kernel_distance,
    neighbour_scores,
    read_statistics,
    statistics_table,
)


def seen(n: int = 40, extractor: Extractor | None = None, **options: Any) -> Statistics:
    extractor, images = extractor or small(), pictures(n, **options)
    return Statistics.of(Tally.of([images], extractor, Plan(n=n, keep=30), 0, n), extractor, "somewhere")


def covariance(d: int, seed: int) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(d, 2 * d))
    return factor @ factor.T / (2 * d)


# ---------------------------------------------------------------------------------------------------------------- files


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    before = seen()
    before.save(tmp_path / "deep" / "s.npz")
    after = read_statistics(tmp_path / "deep" / "s.npz")
    assert torch.equal(after.features.mean, before.features.mean)
    torch.testing.assert_close(after.features.cov, before.features.cov, rtol=0, atol=1e-15)
    assert torch.equal(after.spatial.mean, before.spatial.mean)
    assert torch.equal(after.rows, before.rows)
    assert (after.score, after.count, after.resolution) == (before.score, 40, (8, 8))
    assert after.extractor == small().record()
    assert len(after.sha256) == 64
    with pytest.raises(MetricError, match="give a name that ends so"):
        before.save(tmp_path / "s.npy")


def test_other_projects_can_read_what_is_saved(tmp_path: Path) -> None:
    before = seen()
    before.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as file:  # no pickle needed
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert file["sigma"].shape == (6, 6)
        np.testing.assert_allclose(file["sigma_s"], before.spatial.cov.numpy(), rtol=0, atol=1e-15)
        assert json.loads(str(file["shortflow"]))["n"] == 40


@pytest.mark.parametrize("keys", [("mu", "sigma"), ("ref_mu", "ref_sigma"), ("mean", "cov")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_style_of_keys(tmp_path: Path, keys: tuple[str, str], dtype: Any) -> None:
    mean, cov = np.arange(5.0), covariance(5, 0)
    np.savez(tmp_path / "s.npz", **{keys[0]: mean.astype(dtype), keys[1]: cov.astype(dtype)}, other=np.zeros(3))
    found = read_statistics(tmp_path / "s.npz")
    assert found.features.mean.dtype == found.features.cov.dtype == torch.float64
    np.testing.assert_allclose(found.features.mean, mean)
    np.testing.assert_allclose(found.features.cov, cov, atol=1e-6)
    assert (found.extractor, found.count, found.resolution, found.spatial, found.rows) == (None,) * 5
    assert holds_statistics(tmp_path / "s.npz")
    assert not holds_images(tmp_path / "s.npz")


def test_adm_files_have_spatial_statistics_and_images(tmp_path: Path) -> None:
    arrays = {"mu": np.zeros(5), "sigma": covariance(5, 0), "mu_s": np.ones(3), "sigma_s": covariance(3, 1)}
    np.savez_compressed(tmp_path / "adm.npz", **arrays, arr_0=pictures(4).transpose(0, 2, 3, 1), arr_1=np.arange(4))
    found = read_statistics(tmp_path / "adm.npz")
    np.testing.assert_allclose(found.spatial.cov, arrays["sigma_s"])
    assert holds_statistics(tmp_path / "adm.npz")
    assert holds_images(tmp_path / "adm.npz")


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"

    def refused(message: str, **arrays: Any) -> None:
        np.savez(path, **arrays)
        with pytest.raises(MetricError, match=message):
            read_statistics(path)

    good = {"mu": np.zeros(3), "sigma": np.eye(3)}
    refused("there is no mu and sigma in it, but activations", activations=np.zeros((4, 3)))
    refused("cannot be read as statistics .*allow_pickle", **{**good, "mu": np.array([None, 1], dtype=object)})
    refused(r"expected floating-point arrays \(d,\) and \(d, d\)", **{**good, "sigma": np.eye(2)})
    refused("expected floating-point", **{**good, "mu": np.zeros(3, np.int64)})
    refused("not finite", **{**good, "mu": np.array([0, np.nan, 0])})
    refused("is no covariance", **{**good, "sigma": np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1.0]])})
    refused("is no covariance", **{**good, "sigma": -np.eye(3)})
    refused("its record is damaged", **good, shortflow=np.array("{"))
    refused("statistics of format 9, this version of shortflow reads 1", **good, shortflow=np.array('{"format": 9}'))
    refused("features are float64", **good, shortflow=np.array('{"format": 1}'), features=np.zeros((2, 3)))
    with pytest.raises(MetricError, match="cannot be read as statistics"):
        read_statistics(tmp_path / "none.npz")
    path.write_bytes(b"PK damaged")
    with pytest.raises(MetricError, match="cannot be read as statistics"):
        read_statistics(path)
    with pytest.raises(MetricError, match=r"pickled statistics are not opened.*np.savez"):
        read_statistics(tmp_path / "edm2.pkl")


# ---------------------------------------------------------------------------------------------------------- comparisons


def test_a_record_is_the_declared_composition() -> None:
    ours, theirs = seen(40, seed=1), seen(50, seed=2)
    record = compare_statistics(ours, theirs, neighbours=20)
    assert record["distance"] == frechet_distance(ours.features, theirs.features)
    assert record["spatial_distance"] == frechet_distance(ours.spatial, theirs.spatial)
    assert (record["inception_score"], record["inception_score_std"]) == ours.score
    assert record["kid"] == kernel_distance(ours.rows, theirs.rows)
    scores = neighbour_scores(ours.rows[:20], theirs.rows[:20], k=3)
    assert (record["precision"], record["recall"]) == (scores.precision, scores.recall)
    assert (record["k"], record["neighbours_n"], record["neighbours_reference"]) == (3, 20, 20)
    assert (record["name"], record["spatial_name"], record["n"]) == ("FD-40", "sFD-40", 40)
    assert json.loads(json.dumps(record)) == record


def test_the_distance_is_that_of_scipys_matrix_root(tmp_path: Path) -> None:
    """The formula of pytorch-fid, clean-fid and ADM, on files of statistics."""
    means, covs = [np.zeros(12), np.linspace(0, 1, 12)], [covariance(12, 0), covariance(12, 1)]
    sides = []
    for k in range(2):
        np.savez(tmp_path / f"{k}.npz", mu=means[k], sigma=covs[k])
        sides.append(read_statistics(tmp_path / f"{k}.npz"))
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * sqrtm(covs[0] @ covs[1]).real)
    record = compare_statistics(*sides)
    assert record["distance"] == pytest.approx(wanted, rel=1e-9)
    absent = ("spatial_distance", "inception_score", "kid", "precision", "recall", "neighbours_n")
    assert [record[key] for key in absent] == [None] * len(absent)
    assert record["name"] == "FD-?"


@pytest.mark.parametrize(
    ("published", "resize", "n", "name"),
    [
        (True, "tf1-bilinear", 50_000, "FID"),
        (True, "tf1-bilinear", 5_000, "FID-5k"),
        (True, "tf1-bilinear", 10_000, "FID-10k"),
        (True, "tf1-bilinear", 49_999, "FID-49999"),
        (True, "tf1-bilinear", 60_000, "FID-60k"),
        (True, "bicubic-antialias", 50_000, "FD-50k"),
        (False, "tf1-bilinear", 50_000, "FD-50k"),
        (False, "tf1-bilinear", 500, "FD-500"),
        (True, "tf1-bilinear", None, "FID-?"),
    ],
)
def test_only_one_thing_is_called_fid(published: bool, resize: str, n: int | None, name: str) -> None:
    assert distance_name({"published": published, "resize": resize}, n) == name


def test_what_may_not_be_compared() -> None:
    ours, known = small(), seen()
    check_comparable(known, ours, (8, 8))
    check_comparable(known, ours, None)
    with pytest.raises(MetricError, match=r"somewhere was made with other features \(weights 000000000000…, here 000"):
        check_comparable(known, small(seed=1), (8, 8))
    with pytest.raises(MetricError, match=r"\(name small, here large\); make the reference anew"):
        check_comparable(known, small(name="large"), (8, 8))
    with pytest.raises(MetricError, match=r"images of 8×8 pixels, these have 20×16, .*--resolution 8"):
        check_comparable(known, ours, (16, 20))


def test_statistics_that_do_not_say_what_made_them_are_those_of_inception(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    large, unknown = small(dimension=2048, published=True), read_statistics(tmp_path / "s.npz")
    check_comparable(unknown, large, (8, 8))
    with pytest.raises(
        MetricError, match="taken for statistics of the published Inception weights; these features are"
    ):
        check_comparable(unknown, small(dimension=2048), (8, 8))
    np.savez(tmp_path / "s.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(MetricError, match="has 64 features, Inception has 2048"):
        check_comparable(read_statistics(tmp_path / "s.npz"), large, (8, 8))


def test_a_table_has_the_columns_that_there_are() -> None:
    ours, theirs = seen(40, seed=1), seen(50, seed=2)
    lines = statistics_table({"1 step": compare_statistics(ours, theirs)}).splitlines()
    assert lines[0].split() == ["FD-40", "sFD-40", "IS", "precision", "recall", "KID", "N"]
    assert lines[1].split()[:3] == ["1", "step", f"{frechet_distance(ours.features, theirs.features):.4f}"]
    bare = Statistics(features=ours.features, count=1234, extractor=small().record())
    assert statistics_table({"x": compare_statistics(bare, bare)}).splitlines()[0].split() == ["FD-1234", "N"]
    with pytest.raises(MetricError, match="at least one record"):
        statistics_table({})
