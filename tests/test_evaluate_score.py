"""The Inception score: limits, a statement of its own, merging, splits."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from shortflow.errors import MetricError
from shortflow.evaluate import SplitScores


def stated(logits: np.ndarray, splits: int) -> tuple[float, float]:
    """ADM's and torch-fidelity's formula with all probabilities at hand."""
    scores = []
    for i in range(splits):
        log_p = log_softmax(
            logits[i * len(logits) // splits : (i + 1) * len(logits) // splits].astype(np.float64), axis=1
        )
        p = np.exp(log_p)
        scores.append(math.exp((p * (log_p - np.log(p.mean(0, keepdims=True)))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def test_one_class_for_all_scores_one_and_all_classes_evenly_their_number() -> None:
    same = torch.tensor([[3.0, 0.0, 1.0]]).expand(20, 3)
    assert SplitScores.of(same, torch.arange(20), 20).value() == pytest.approx((1.0, 0.0), abs=1e-12)
    sure = 200 * torch.eye(7)[torch.arange(70) % 7]
    assert SplitScores.of(sure, torch.arange(70), 70).value() == pytest.approx((7.0, 0.0), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 60), st.integers(1, 10), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 99))
def test_sums_of_parts_are_the_score_of_all(n: int, splits: int, cuts: list[int], seed: int) -> None:
    logits = 3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    total = None
    for first, last in pairwise(edges):
        part = SplitScores.of(logits[first:last], torch.arange(first, last), n, splits)
        total = part if total is None else total.merge(part)
    assert total is not None
    assert total.value() == pytest.approx(stated(logits.numpy(), splits), rel=1e-10, abs=1e-10)
    again = SplitScores.from_tensors(total.tensors("s."), "s.")
    assert again.value() == total.value()


def test_a_set_sorted_by_class_scores_lower_in_its_order() -> None:
    """What the splits in order mean: each of them then has one class of ten."""
    labels = torch.arange(1000) // 100
    sure = 200.0 * torch.eye(10)
    assert SplitScores.of(sure[labels], torch.arange(1000), 1000).value()[0] == pytest.approx(1.0)
    assert SplitScores.of(sure[labels.view(10, 100).T.flatten()], torch.arange(1000), 1000).value()[0] == pytest.approx(
        10.0
    )


def test_every_split_needs_an_image() -> None:
    with pytest.raises(MetricError, match="needs 10 images at least, one a split; got 4"):
        SplitScores.of(torch.zeros(4, 3), torch.arange(4), 9).value()
