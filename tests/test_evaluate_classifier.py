"""Shipped classifiers: files, digests, pinned accuracy, one pass for features and logits."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shortflow.data import load
from shortflow.errors import MetricError
from shortflow.evaluate import Classifier, Moments, classifier_names, frechet_distance, load_classifier, read_classifier
from shortflow.evaluate.classifier import WEIGHTS, save_classifier

# Metric values are comparable at equal weights only: a new digest voids every number published before.
DIGITS_SHA256 = "e0553542e3b45207942430fc335b8aeb44ff25de2a47b69b4d640660a0e5b222"
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
FLOORS = {"digits": 0.98, "mnist": 0.985, "fashion-mnist": 0.9, "cifar10": 0.7}


@pytest.fixture(scope="module")
def digits():
    return load_classifier("digits")


@pytest.fixture(scope="module")
def held_out():
    data = load("digits", "test")
    return torch.from_numpy(data.samples), torch.from_numpy(data.labels)


def test_names():
    assert set(classifier_names()) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shipped_file(name):
    classifier, path = load_classifier(name), WEIGHTS / f"{name}.safetensors"
    assert classifier.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert classifier.network.shape == SHAPES[name] == tuple(classifier.metadata["shape"])
    assert classifier.metadata["held_out_accuracy"] > FLOORS[name]
    assert classifier.metadata["recipe"]["augmentation"] == "none"
    assert classifier.moments.count == int(classifier.metadata["trained_on"].split()[1])
    assert classifier.moments.mean.shape == (64,)
    assert not classifier.network.training
    assert load_classifier(name) is classifier


def test_digits_are_pinned(digits, held_out):
    images, labels = held_out
    assert digits.sha256 == DIGITS_SHA256
    assert (WEIGHTS / "digits.safetensors").stat().st_size < 300_000
    accuracy = float((digits.logits(images).argmax(1) == labels).double().mean())
    assert digits.metadata["held_out_accuracy"] == 0.988
    # Two images of 500 may lie so near a boundary that another machine's rounding decides.
    assert accuracy == pytest.approx(0.988, abs=0.0041)


def test_stored_moments_are_those_of_the_training_images(digits):
    moments = Moments.of(digits.features(load("digits", "train").samples))
    assert frechet_distance(moments, digits.moments) < 1e-6
    assert torch.allclose(moments.mean, digits.moments.mean, atol=1e-5)


def test_logits_are_the_head_of_the_features(digits, held_out):
    features, logits = digits.run(held_out[0])
    assert features.shape == (500, 64)
    assert float(features.min()) == 0.0  # behind a ReLU
    head = digits.network.head
    assert torch.allclose(logits, features @ head.weight.T + head.bias, atol=1e-5)
    assert torch.equal(digits.features(held_out[0]), features)


def test_numpy_and_torch_and_batch_split_agree(digits, held_out, monkeypatch):
    images = held_out[0][:123]
    whole = digits.features(images)
    assert torch.equal(digits.features(images.numpy()), whole)
    assert torch.equal(digits.features(np.asfortranarray(images.numpy())), whole)
    monkeypatch.setattr("shortflow.evaluate.classifier._BATCH", 50)
    assert torch.allclose(digits.features(images), whole, atol=1e-5)


def test_parameter_counts_and_odd_sizes():
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    # 28 → 14 → 7 → 4: convolutions 9(1·24 + 24·48 + 48·96), norms 2·168, linear 96·16·64 + 64 and 64·10 + 10.
    assert count(Classifier(shape=(1, 28, 28))) == 9 * (24 + 24 * 48 + 48 * 96) + 336 + 98368 + 650
    features, logits = Classifier(shape=(3, 7, 10), width=2, classes=4)(torch.zeros(2, 3, 7, 10, dtype=torch.uint8))
    assert (features.shape, logits.shape) == ((2, 64), (2, 4))


def test_save_and_read(tmp_path, held_out):
    torch.manual_seed(0)
    network = Classifier(shape=(1, 8, 8), width=4, strides=(1, 2, 2)).eval()
    moments = Moments.of(torch.randn(20, 64))
    record = {"name": "mine", "shape": [1, 8, 8], "width": 4, "strides": [1, 2, 2], "classes": 10, "features": 64}
    for file in ("a", "b"):
        save_classifier(tmp_path / file, network, moments, record)
    loaded = read_classifier(tmp_path / "a")
    with torch.no_grad():
        expected = network(held_out[0][:9])
    assert torch.equal(loaded.run(held_out[0][:9])[0], expected[0])
    assert loaded.name == "mine"
    assert torch.equal(loaded.moments.scatter, moments.scatter)
    assert loaded.sha256 == read_classifier(tmp_path / "b").sha256


def test_unknown_name_lists_the_known():
    with pytest.raises(MetricError, match=r"'svhn'.*cifar10, digits, fashion-mnist, mnist.*read_classifier"):
        load_classifier("svhn")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(MetricError, match=r"none\.safetensors is not a readable"):
        read_classifier(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("not weights at all")
    with pytest.raises(MetricError, match="text is not a readable"):
        read_classifier(tmp_path / "text")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(MetricError, match=r"other\.safetensors is not a readable"):
        read_classifier(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"torch\.float32; scale to 0…255"),
        (np.zeros((2, 1, 8, 8), dtype=np.float64), "float64"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(n, 1, 8, 8\), got shape \(2, 3, 8, 8\)"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), r"got shape \(2, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "empty"),
    ],
)
def test_wrong_images_are_refused(digits, images, message):
    with pytest.raises(MetricError, match=message):
        digits.run(images)
