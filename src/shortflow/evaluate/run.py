"""Evaluation of generated images: uint8 arrays in, one JSON-able record out. Arrays only, whoever made them.

The record always carries N, the classifier's sha256 and the reference's fingerprint, because a Fréchet distance is
comparable at equal N and equal weights only. The neighbour scores are taken at equal counts

    n = min(N, n_reference, n_held_out, limit),

the first n of each side in a fixed random order (see `shortflow.evaluate.reference`); if N ≥ 2n, the scores are means
over the first min(⌊N/n⌋, 5) disjoint runs of n samples against the same n reference images. The kernel distance cuts
its blocks in the same orders. Values depend on the order of the images within that noise, and on nothing random else.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import MetricError
from shortflow.evaluate.classifier import LoadedClassifier
from shortflow.evaluate.frechet import Moments, frechet_distance
from shortflow.evaluate.kernel import kernel_distance
from shortflow.evaluate.neighbours import neighbour_radii, neighbour_scores
from shortflow.evaluate.points import energy_distance, sliced_wasserstein
from shortflow.evaluate.reference import SAMPLE_ORDER, Features, Reference

__all__ = ["NEIGHBOUR_LIMIT", "compare_points", "evaluate_images", "real_row"]

NEIGHBOUR_LIMIT = 5000
_CHUNKS = 5
_SCORES = ("precision", "recall", "density", "coverage")


def evaluate_images(
    images: Any,
    labels: Any = None,
    *,
    reference: Any,
    reference_labels: Any = None,
    held_out: Any = None,
    held_out_labels: Any = None,
    classifier: LoadedClassifier,
    k: int = 5,
    neighbours: int | None = None,
) -> dict[str, Any]:
    """The quality of generated images as a record.

    Args:
        images: uint8 array (N, c, h, w) of torch or numpy, or an iterable of such batches (never held together).
        labels: the classes the images were asked to show (N,), or None.
        reference: uint8 images the generator learned from; or a `Reference`, to classify them once for many calls;
            or None: then the moments stored with the classifier serve, and what needs images is None with a reason.
        held_out: uint8 real images that nobody learned from; their count caps n, so that `real_row` fits beside.
        k: which nearest neighbour gives the radius.
        neighbours: cap on n for the neighbour scores; 5000 if None.

    Returns:
        n                       N, the number of images.
        fd, fd_percent          Fréchet distance to all reference images, and 100·fd/tr Σ_reference.
        class_fd                mean over classes of the Fréchet distance within the class: the one distance that
                                sees wrong labels. None without labels on both sides or if a class is lacking.
        kid                     kernel distance (unbiased; in blocks of 5000).
        precision, recall, density, coverage, k, neighbours_n, neighbours_chunks      see `neighbour_scores`.
        conditional_accuracy    share of images classified as their label; read it against held-out real images, not
                                against one. None without labels.
        classifier              {name, sha256}.
        reference               {n, fingerprint}.
        fingerprint             sha256 of the images (and labels) evaluated.
        reason                  why values are None, or None.

    Raises:
        MetricError: if an array is empty or has the wrong type or shape, labels do not fit, there are not more than
            k images on a side, or a `Reference` belongs to another classifier.
    """
    known = _reference(reference, reference_labels, held_out, held_out_labels, classifier)
    _check_counts(_length(images), known, k, neighbours)
    generated = Features.of(images, labels, classifier).shuffled(SAMPLE_ORDER)
    return _evaluate(generated, known, k, neighbours)


def real_row(
    *,
    reference: Any,
    reference_labels: Any = None,
    held_out: Any = None,
    held_out_labels: Any = None,
    classifier: LoadedClassifier,
    k: int = 5,
    neighbours: int | None = None,
    count: int | None = None,
) -> dict[str, Any]:
    """The record of the held-out real images: the floor to read a generator's record against.

    Args:
        count: number N of generated images beside; as many held-out images are taken (in the fixed order), so that
            N and n agree, as far as there are that many. All of them if None.

    Raises:
        MetricError: as `evaluate_images`; and if there are no held-out images.
    """
    known = _reference(reference, reference_labels, held_out, held_out_labels, classifier)
    if known.held_out is None:
        raise MetricError("the real row needs held-out images; pass held_out=, the test split for instance")
    real = known.held_out if count is None else known.held_out.first(count)
    _check_counts(len(real), known, k, neighbours)
    return _evaluate(real, known, k, neighbours)


def compare_points(samples: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> dict[str, Any]:
    """Distances of two point clouds (n, d) and (m, d): `energy_distance` (with its root), `sliced_w2`, `n`,
    `n_reference`. A generator's values are read against those of a second draw from the truth.

    Raises:
        MetricError: if a cloud is empty, not two-dimensional or not finite, or the dimensions differ.
    """
    a, b = _points(samples, "samples"), _points(reference, "reference")
    return {
        "n": len(a),
        "n_reference": len(b),
        "energy_distance": energy_distance(a, b),
        "sliced_w2": sliced_wasserstein(a, b),
    }


def _points(points: Tensor | np.ndarray, what: str) -> Float[Tensor, "n d"]:
    tensor = torch.as_tensor(points)
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise MetricError(f"{what}: give floating-point points (n, d), got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _length(images: Any) -> int | None:
    return len(images) if isinstance(images, Tensor | np.ndarray) else None


def _reference(
    reference: Any, labels: Any, held_out: Any, held_out_labels: Any, classifier: LoadedClassifier
) -> Reference:
    if not isinstance(reference, Reference):
        return Reference.of(
            reference, labels, held_out=held_out, held_out_labels=held_out_labels, classifier=classifier
        )
    if labels is not None or held_out is not None or held_out_labels is not None:
        raise MetricError("a Reference holds labels and held-out images already; pass them to Reference.of instead")
    if reference.classifier.sha256 != classifier.sha256:
        raise MetricError(
            f"the Reference was made with classifier {reference.classifier.name} "
            f"({reference.classifier.sha256[:12]}), not with {classifier.name} ({classifier.sha256[:12]})"
        )
    return reference


def _check_counts(n: int | None, reference: Reference, k: int, neighbours: int | None) -> None:
    """Raise before the images are classified if the neighbour scores cannot be had; n is None for an iterable."""
    if k < 1:
        raise MetricError(f"k must be at least 1, got {k}")
    sizes = {
        "generated": n,
        "reference": None if reference.train is None else len(reference.train),
        "held-out": None if reference.held_out is None else len(reference.held_out),
        "neighbours=": neighbours,
    }
    short = [f"{what} {size}" for what, size in sizes.items() if size is not None and size <= k]
    if short:
        raise MetricError(f"k = {k} needs at least {k + 1} images on every side, got {', '.join(short)}")


def _evaluate(generated: Features, reference: Reference, k: int, neighbours: int | None) -> dict[str, Any]:
    _check_counts(len(generated), reference, k, neighbours)
    moments, classifier = Moments.of(generated.values), reference.classifier
    fd = frechet_distance(moments, reference.moments)
    class_fd, reason = _class_fd(generated, reference)
    correct = generated.correct
    record = {
        "n": len(generated),
        "fd": fd,
        "fd_percent": 100 * fd / reference.moments.trace,
        "class_fd": class_fd,
        "kid": None,
        "k": k,
        "neighbours_n": None,
        "neighbours_chunks": None,
        **dict.fromkeys(_SCORES),
        "conditional_accuracy": None if correct is None else float(correct.double().mean()),
        "classifier": {"name": classifier.name, "sha256": classifier.sha256},
        "reference": reference.record(),
        "fingerprint": generated.fingerprint,
        "reason": reason,
    }
    if reference.train is None:
        record["reason"] = "no reference images were given: kid, class_fd and the neighbour scores need them"
        return record
    record["kid"] = kernel_distance(generated.values, reference.train.values)
    return record | _neighbours(generated, reference, k, neighbours)


def _neighbours(generated: Features, reference: Reference, k: int, limit: int | None) -> dict[str, Any]:
    """The scores at n = min of all counts and the limit, averaged over disjoint runs of n generated samples."""
    assert reference.train is not None
    counts = [len(generated), len(reference.train), NEIGHBOUR_LIMIT if limit is None else limit]
    n = min(counts if reference.held_out is None else [*counts, len(reference.held_out)])
    chunks = min(len(generated) // n, _CHUNKS)
    real = reference.train.values[:n]
    radii = neighbour_radii(real, k)
    scores = [
        neighbour_scores(generated.values[i * n : (i + 1) * n], real, k=k, reference_radii=radii) for i in range(chunks)
    ]
    means = {name: sum(getattr(score, name) for score in scores) / chunks for name in _SCORES}
    return {"neighbours_n": n, "neighbours_chunks": chunks, **means}


def _class_fd(generated: Features, reference: Reference) -> tuple[float | None, str | None]:
    train = reference.train
    if generated.labels is None:
        return None, "class_fd and conditional_accuracy need labels of the images"
    if train is None or train.labels is None:
        return None, "class_fd needs labelled reference images"
    values = []
    for label in train.labels.unique().tolist():
        rows = [side.values[side.labels == label] for side in (generated, train)]
        if min(map(len, rows)) < 2:
            return None, f"class_fd needs two images of every class, class {label} has fewer"
        values.append(frechet_distance(*map(Moments.of, rows)))
    return sum(values) / len(values), None
