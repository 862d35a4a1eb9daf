"""Evaluation records of digits: what each metric must see, equal counts, batches, and refusals."""

import json

import numpy as np
import pytest
import torch

from shortflow.data import load
from shortflow.errors import MetricError
from shortflow.evaluate import (
    Moments,
    Reference,
    evaluate_images,
    frechet_distance,
    kernel_distance,
    load_classifier,
    neighbour_scores,
    real_row,
)


def order(n, seed):
    """The declared order of reference (0) and samples (1)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits")


@pytest.fixture(scope="module")
def train():
    return load("digits", "train")


@pytest.fixture(scope="module")
def held_out():
    return load("digits", "test")


@pytest.fixture(scope="module")
def reference(classifier, train, held_out):
    return Reference.of(
        train.samples, train.labels, held_out=held_out.samples, held_out_labels=held_out.labels, classifier=classifier
    )


@pytest.fixture(scope="module")
def real(classifier, reference):
    return real_row(reference=reference, classifier=classifier)


def test_real_row_is_the_declared_composition(classifier, train, held_out, real):
    fake, known = classifier.features(held_out.samples), classifier.features(train.samples)
    fd = frechet_distance(Moments.of(fake), Moments.of(known))
    assert real["fd"] == pytest.approx(fd)
    assert real["fd_percent"] == pytest.approx(100 * fd / float(torch.cov(known.double().T).trace()))
    assert real["kid"] == pytest.approx(kernel_distance(fake, known))
    scores = neighbour_scores(fake, known[order(1297, 0)[:500]], k=5)
    assert (real["precision"], real["recall"]) == (scores.precision, scores.recall)
    assert (real["density"], real["coverage"]) == (scores.density, scores.coverage)
    assert (real["n"], real["neighbours_n"], real["neighbours_chunks"], real["k"]) == (500, 500, 1, 5)
    assert real["conditional_accuracy"] == pytest.approx(0.988, abs=0.0041)
    assert real["classifier"] == {"name": "digits", "sha256": classifier.sha256}
    assert real["reference"]["n"] == 1297
    assert real["reason"] is None


def test_held_out_digits_are_covered_and_close(real):
    assert real["coverage"] >= 0.95
    assert real["recall"] >= 0.95
    assert real["precision"] >= 0.85
    assert real["fd_percent"] < 0.5


def test_class_means_are_accurate_and_have_no_recall(classifier, train, held_out, reference, real):
    means = np.stack([train.samples[train.labels == c].mean(axis=0) for c in range(10)]).round().astype(np.uint8)
    record = evaluate_images(means[held_out.labels], held_out.labels, reference=reference, classifier=classifier)
    assert record["conditional_accuracy"] >= 0.9
    assert record["recall"] == 0.0
    assert record["coverage"] < 0.3
    assert record["fd"] > 10 * real["fd"]


def test_shuffled_labels_move_only_accuracy_and_class_distance(classifier, held_out, reference, real):
    shuffled = np.random.default_rng(0).permutation(held_out.labels)
    record = evaluate_images(held_out.samples, shuffled, reference=reference, classifier=classifier)
    assert record["conditional_accuracy"] < 0.2
    assert record["class_fd"] > 20 * real["class_fd"]
    for key in ("fd", "kid", "precision", "recall", "density", "coverage"):
        assert record[key] == real[key]
    assert record["fingerprint"] != real["fingerprint"]


def test_lost_classes_and_noise_are_seen_in_order(classifier, held_out, reference, real):
    noise = np.random.default_rng(0).normal(0, 255, held_out.samples.shape)

    def damaged(sigma):
        images = (held_out.samples + sigma * noise).round().clip(0, 255).astype(np.uint8)
        return evaluate_images(images, reference=reference, classifier=classifier)

    records = [real, damaged(0.1), damaged(0.3), damaged(1.0)]
    assert [r["fd"] for r in records] == sorted(r["fd"] for r in records)
    assert [r["kid"] for r in records] == sorted(r["kid"] for r in records)
    assert [r["coverage"] for r in records] == sorted((r["coverage"] for r in records), reverse=True)
    half = evaluate_images(held_out.samples[held_out.labels < 5], reference=reference, classifier=classifier)
    assert half["fd"] > 30 * real["fd"]
    assert half["recall"] < 0.6


def test_the_reference_itself_is_at_distance_zero(classifier, train, reference):
    record = evaluate_images(train.samples, train.labels, reference=reference, classifier=classifier)
    assert record["fd"] < 1e-6
    assert record["class_fd"] < 1e-6


def test_batches_equal_the_whole_array(classifier, held_out, reference, real):
    stream = (torch.from_numpy(held_out.samples[i : i + 150]) for i in range(0, 500, 150))
    record = evaluate_images(stream, held_out.labels, reference=reference, classifier=classifier)
    assert record["fingerprint"] == real["fingerprint"]
    assert record["fd"] == pytest.approx(real["fd"], abs=1e-6)
    assert record["conditional_accuracy"] == real["conditional_accuracy"]


def test_more_samples_are_scored_in_disjoint_runs(classifier, train, held_out, reference):
    features, n = classifier.features(train.samples), 200
    record = evaluate_images(held_out.samples, reference=reference, classifier=classifier, neighbours=n)
    generated = classifier.features(held_out.samples)[order(500, 1)]
    runs = [neighbour_scores(generated[i : i + n], features[order(1297, 0)[:n]]) for i in (0, n)]
    assert (record["neighbours_n"], record["neighbours_chunks"]) == (n, 2)
    assert record["recall"] == pytest.approx(np.mean([run.recall for run in runs]))
    assert record["coverage"] == pytest.approx(np.mean([run.coverage for run in runs]))
    many = evaluate_images(held_out.samples, reference=reference, classifier=classifier, neighbours=50)
    assert many["neighbours_chunks"] == 5


def test_counts_are_equal_on_all_sides(classifier, train, held_out, reference):
    few = evaluate_images(held_out.samples[:120], reference=reference, classifier=classifier)
    assert (few["n"], few["neighbours_n"]) == (120, 120)
    beside = real_row(reference=reference, classifier=classifier, count=120)
    assert (beside["n"], beside["neighbours_n"]) == (120, 120)
    same = evaluate_images(held_out.samples[order(500, 1)[:120]], reference=reference, classifier=classifier)
    assert beside["fd"] == pytest.approx(same["fd"], abs=1e-6)
    # 700 generated, 1297 reference, 500 held out.
    record = evaluate_images(train.samples[:700], reference=reference, classifier=classifier)
    assert (record["n"], record["neighbours_n"], record["neighbours_chunks"]) == (700, 500, 1)
    record = evaluate_images(train.samples[:700], reference=train.samples, classifier=classifier)
    assert record["neighbours_n"] == 700


def test_sorting_the_images_hardly_moves_the_scores(classifier, held_out, reference, real):
    # In the order given, runs of 100 images sorted by class would hold two classes each.
    ordered = held_out.samples[held_out.labels.argsort(kind="stable")]
    records = [
        evaluate_images(images, reference=reference, classifier=classifier, neighbours=100)
        for images in (held_out.samples, ordered)
    ]
    for key in ("recall", "coverage"):
        assert records[1][key] == pytest.approx(records[0][key], abs=0.06)
        assert records[1][key] > 0.8


def test_arrays_and_prepared_reference_agree(classifier, train, held_out, real):
    record = evaluate_images(
        held_out.samples,
        held_out.labels,
        reference=train.samples,
        reference_labels=train.labels,
        held_out=held_out.samples,
        classifier=classifier,
    )
    assert record == real


def test_without_reference_images_the_stored_moments_serve(classifier, held_out, real):
    record = evaluate_images(held_out.samples, held_out.labels, reference=None, classifier=classifier)
    assert record["fd"] == pytest.approx(real["fd"], rel=1e-4)
    assert record["fd_percent"] == pytest.approx(real["fd_percent"], rel=1e-4)
    assert record["conditional_accuracy"] == real["conditional_accuracy"]
    assert all(record[key] is None for key in ("kid", "precision", "recall", "density", "coverage", "neighbours_n"))
    assert "reference images" in record["reason"]
    assert classifier.sha256 in record["reference"]["fingerprint"]


def test_records_are_json_and_without_labels_say_why(classifier, held_out, reference, real):
    assert json.loads(json.dumps(real, allow_nan=False)) == real
    record = evaluate_images(held_out.samples, reference=reference, classifier=classifier)
    assert record["conditional_accuracy"] is None
    assert record["class_fd"] is None
    assert "labels" in record["reason"]
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"images": np.zeros((5, 1, 8, 8), np.uint8)}, "k = 5 needs at least 6 images on every side, got generated 5"),
        ({"neighbours": 5}, "neighbours= 5"),
        ({"k": 0}, "k must be at least 1"),
        ({"k": 500}, "generated 40, held-out 500"),
        ({"images": np.zeros((9, 1, 8, 8), np.float32)}, "needs a uint8 array"),
        ({"images": np.zeros((9, 3, 8, 8), np.uint8)}, "images: the digits classifier.*got shape"),
        ({"images": iter([])}, "no images"),
        ({"images": 3}, "got int"),
        ({"images": iter([np.zeros((4, 1, 8, 8), np.uint8)])}, "got generated 4"),
        ({"labels": np.zeros(3, np.int64)}, r"40 images need labels of shape \(40,\), got \(3,\)"),
        ({"labels": np.full(40, 10)}, r"0…9 for the digits classifier, got 10…10"),
        ({"labels": np.zeros(40)}, "labels must be integers"),
        ({"held_out": np.zeros((9, 1, 8, 8), np.uint8)}, "Reference.of"),
    ],
)
def test_refusals(classifier, held_out, reference, kwargs, message):
    given = {"images": held_out.samples[:40], "reference": reference, "classifier": classifier} | kwargs
    with pytest.raises(MetricError, match=message):
        evaluate_images(given.pop("images"), given.pop("labels", None), **given)


def test_real_row_needs_held_out_images(classifier, train):
    with pytest.raises(MetricError, match="held-out images"):
        real_row(reference=train.samples[:50], classifier=classifier)


def test_a_reference_belongs_to_its_classifier(reference, held_out):
    with pytest.raises(MetricError, match="made with classifier digits"):
        evaluate_images(held_out.samples, reference=reference, classifier=load_classifier("mnist"))
