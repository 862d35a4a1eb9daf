"""Processes that see other data than each other are told so, whatever it is that differs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shortflow.data import Dataset
from shortflow.data.conditions import Conditions
from shortflow.errors import DataError
from shortflow.runs.agreeing import check_same_data, fingerprint
from shortflow.train.engine import Engine

N = 40
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 1, 4, 4), dtype=np.uint8)
LABELS = np.arange(N) % 3
DATA = Dataset(name="photos", samples=IMAGES, labels=LABELS, classes=("ant", "bee", "cat"))


class Two(Engine):
    """An engine that hears from another process, which has other data."""

    def __init__(self, other: Dataset) -> None:
        super().__init__()
        self.world, self.other = 2, other

    def gathered(self, value: Any) -> list[Any]:
        return [value, ("node-b", fingerprint(self.other))]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": IMAGES[:-1], "labels": LABELS[:-1]}, r"39 samples, process 0 on .* has 40;"),
        ({"samples": IMAGES[:, :, :2]}, r"samples of shape \[1, 2, 4\], process 0 on .* of shape \[1, 4, 4\]"),
        ({"classes": ("ant", "bee", "cow")}, "other classes"),
        ({"classes": ("bee", "ant", "cat")}, "or numbers them otherwise"),
        ({"labels": LABELS[::-1].copy()}, "other labels"),
        ({"samples": IMAGES[::-1]}, "other samples .* another order of them"),
        ({"labels": None, "classes": ()}, "other classes"),
    ],
)
def test_what_differs_is_named_with_the_process_and_the_remedy(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^photos: process 1 on node-b has .*{message}") as caught:
        check_same_data(Two(replace(DATA, **changed)), DATA)
    assert "copy them anew to that machine" in str(caught.value)


def test_conditions_are_compared() -> None:
    values = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
    told = replace(DATA, labels=None, classes=(), conditions=Conditions(values=values))
    check_same_data(Two(told), told)
    with pytest.raises(DataError, match="other conditions"):
        check_same_data(Two(replace(told, conditions=Conditions(values=-values))), told)


def test_the_same_data_pass_and_so_does_one_process() -> None:
    check_same_data(Two(replace(DATA)), DATA)
    check_same_data(Engine(), DATA)


def test_few_samples_are_read() -> None:
    """Of a set that is larger than memory, too."""

    class Counting(np.ndarray):
        read = 0

        def __getitem__(self, key: Any) -> Any:
            Counting.read += len(key)
            return np.asarray(self)[key]

    many = np.zeros((5000, 1, 4, 4), np.uint8).view(Counting)
    fingerprint(Dataset(name="many", samples=many))
    assert 0 < Counting.read <= 16
