"""Tallies: the same however images come and are shared, against everything computed at once."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors import pictures, small
from shortflow.errors import MetricError
from shortflow.evaluate import Moments, Plan, SplitScores, Tally, tally
from shortflow.evaluate.tally import chunks


def same(a: Tally, b: Tally) -> bool:
    """To the last bit."""
    ours, theirs = a.tensors(), b.tensors()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_tally_is_what_it_says() -> None:
    images, extractor, plan = pictures(60), small(), Plan(n=60, keep=7, order=3)
    found = Tally.of([images], extractor, plan, 0, 60)
    known = extractor.run(images)
    torch.testing.assert_close(found.features.mean, known.features.double().mean(0))
    torch.testing.assert_close(found.features.cov, torch.cov(known.features.double().T))
    torch.testing.assert_close(found.spatial.cov, torch.cov(known.spatial.double().T))
    assert found.scores.value() == pytest.approx(SplitScores.of(known.logits, plan.places(), 60).value(), rel=1e-12)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found.kept, known.features[order[:7]])
    digest = hashlib.sha256(b"(3, 8, 8)" + images.tobytes()).digest()
    assert found.fingerprint == hashlib.sha256(digest).hexdigest()
    assert (found.first, found.last, found.shape) == (0, 60, (3, 8, 8))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 40))
def test_it_does_not_depend_on_how_the_images_come(sizes: list[int], keep: int) -> None:
    n = max(2, sum(sizes))
    images, extractor, plan = pictures(n), small(), Plan(n=n, keep=keep)
    parts = np.split(images, np.cumsum(sizes)[:-1])
    assert same(Tally.of(parts, extractor, plan, 0, n), Tally.of([images], extractor, plan, 0, n))


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 40), st.data())
def test_merged_chunks_are_the_whole(n: int, data: st.DataObject) -> None:
    images, extractor, plan = pictures(n), small(), Plan(n=n, keep=n // 2)
    cut = data.draw(st.integers(1, n - 1))
    a, b = (Tally.of([images[i:j]], extractor, plan, i, j) for i, j in ((0, cut), (cut, n)))
    whole, merged = Tally.of([images], extractor, plan, 0, n), a.merge(b)
    assert merged.features.count == n
    torch.testing.assert_close(merged.features.mean, whole.features.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.features.scatter, whole.features.scatter, rtol=1e-9, atol=1e-9)
    assert torch.equal(merged.kept, whole.kept)
    assert same(Tally.from_tensors(merged.tensors()), merged)


@given(st.integers(1, 3_000_000))
def test_chunks_cover_all_samples_once_and_are_few(n: int) -> None:
    parts = chunks(n)
    assert parts[0][0] == 0
    assert parts[-1][1] == n
    assert all(a[1] == b[0] for a, b in pairwise(parts))
    assert len(parts) <= 32
    assert all(first % 1024 == 0 for first, _ in parts)  # whole passes of any batch up to 1024
    assert len({last - first for first, last in parts[:-1]}) <= 1


def test_features_with_a_large_mean_keep_their_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    """One part in 10⁴ of the mean: sums of squares in float32 would lose it."""
    monkeypatch.setattr(tally, "_ROWS", 16)
    extractor, images = small(spatial=0), pictures(200)
    network = extractor.network
    shifted = small(spatial=0)
    object.__setattr__(shifted, "network", lambda x: _moved(network(x), 4096.0))
    plan = Plan(n=200, keep=0)
    moved, plain = (Tally.of([images], each, plan, 0, 200).features for each in (shifted, extractor))
    seen = extractor.run(images).features + 4096
    torch.testing.assert_close(moved.cov, torch.cov(seen.double().T), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved.cov, plain.cov, rtol=1e-2, atol=1e-3)


def _moved(found: object, by: float) -> object:
    from shortflow.evaluate import Activations

    return Activations(features=found.features.float() + by, logits=found.logits)  # type: ignore[attr-defined]


def test_few_images_have_no_score_and_one_no_covariance() -> None:
    assert Tally.of([pictures(9)], small(), Plan(n=9), 0, 9).scores is None
    assert Tally.of([pictures(9)], small(), Plan(n=9, spatial=False), 0, 9).spatial is None
    with pytest.raises(MetricError, match="at least 2 images"):
        Plan(n=1)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([pictures(4)], "expected 5 images from number 0 on, got 4"),
        ([pictures(9)], "expected 5 images from number 0 on, got more"),
        ([], "expected 5 images from number 0 on, got 0"),
        ([pictures(2), pictures(3, side=9)], "images of several shapes"),
    ],
)
def test_other_images_than_announced(batches: list[np.ndarray], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        Tally.of(batches, small(), Plan(n=20), 0, 5)


def test_only_neighbours_merge() -> None:
    plan, extractor = Plan(n=12), small()
    a, b = (Tally.of([pictures(4)], extractor, plan, i, i + 4) for i in (0, 8))
    with pytest.raises(MetricError, match=r"samples 0…3 of shape .* and 8…11 of shape .* do not go together"):
        a.merge(b)


def test_the_bias_of_the_distance_has_the_declared_order() -> None:
    """FD(N) ≈ FD(∞) + b/N: between N and 4N it falls by 4, and its slope in log N is −1."""
    from oracles import log_slope
    from shortflow.evaluate import frechet_distance

    extractor = small(dimension=8, spatial=0)
    truth = Tally.of([pictures(20_000, seed=1)], extractor, Plan(n=20_000, keep=0), 0, 20_000).features
    sizes, distances = [100.0, 200.0, 400.0, 800.0], []
    for size in sizes:
        n, draws = int(size), 12
        seen = extractor.run(pictures(n * draws, seed=2)).features
        distances.append(sum(frechet_distance(Moments.of(part), truth) for part in seen.split(n)) / draws)
    assert -1.15 < log_slope(sizes, distances) < -0.85


def test_the_inception_score_does_not_depend_on_the_order_of_the_files() -> None:
    """Sorted by class, as folders of classes are, splits in that order would have a class each."""
    extractor, images = small(), np.repeat(pictures(10), 100, axis=0)
    mixed = images[np.random.default_rng(0).permutation(1000)]
    scores = [Tally.of([each], extractor, Plan(n=1000), 0, 1000).scores for each in (images, mixed)]
    by_class, in_any_order = (score.value()[0] for score in scores)
    assert by_class == pytest.approx(in_any_order, rel=0.02)
    assert by_class > 1.2
