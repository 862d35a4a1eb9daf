"""Batch orders: every image once per epoch, random access, sharing between processes, and the law of the classes."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from shortflow.data import ClassConsistent, Shuffled
from shortflow.data import samplers as module
from shortflow.errors import DataError, ShortflowError


def drawn(sampler: Shuffled | ClassConsistent, steps: int, start: int = 0) -> np.ndarray:
    return np.concatenate([sampler.indices(step) for step in range(start, start + steps)])


def by_class(order: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    return {int(c): order[labels[order] == c] for c in np.unique(labels)}


def assert_epochs(order: np.ndarray, members: np.ndarray) -> None:
    """Every whole epoch of `order` is a permutation of `members`; the started one has no repetition."""
    for start in range(0, len(order), len(members)):
        epoch = order[start : start + len(members)]
        assert len(np.unique(epoch)) == len(epoch)
        if len(epoch) == len(members):
            np.testing.assert_array_equal(np.sort(epoch), members)


# Shuffled -----------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 40), batch_size=st.integers(1, 100), seed=st.integers(0, 2**64))
def test_shuffled_reads_whole_epochs(n: int, batch_size: int, seed: int) -> None:
    order = drawn(Shuffled(n=n, batch_size=batch_size, seed=seed), 3 * n // batch_size + 2)
    assert order.dtype == np.int64
    assert_epochs(order, np.arange(n))


@given(n=st.integers(1, 40), share=st.integers(1, 20), world=st.integers(1, 4), step=st.integers(0, 50))
def test_shuffled_processes_share_the_global_batch(n: int, share: int, world: int, step: int) -> None:
    whole = Shuffled(n=n, batch_size=share * world, seed=3).indices(step)
    parts = [
        Shuffled(n=n, batch_size=share * world, seed=3, rank=rank, world=world).indices(step) for rank in range(world)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_shuffled_is_a_pure_function_of_the_step() -> None:
    once = Shuffled(n=100, batch_size=32, seed=1)
    expected = [once.indices(step) for step in range(40)]
    again = Shuffled(n=100, batch_size=32, seed=1)
    for step in np.random.default_rng(0).permutation(40):
        np.testing.assert_array_equal(again.indices(int(step)), expected[step])
    np.testing.assert_array_equal(Shuffled(n=100, batch_size=32, seed=1).indices(39), expected[39])
    assert len(Shuffled(n=100, batch_size=32, seed=1).indices(10**9)) == 32


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [drawn(Shuffled(n=200, batch_size=200, seed=seed), 3).reshape(3, 200) for seed in (0, 1)]
    epochs = np.concatenate(orders)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    # Two independent permutations agree at about one place.
    agree = [(a == b).sum() for k, a in enumerate(epochs) for b in epochs[:k]]
    assert max(agree) <= 7


def test_shuffled_order_is_uniform() -> None:
    """Each of 5 samples is first equally often (2000 epochs)."""
    first = drawn(Shuffled(n=5, batch_size=5, seed=0), 2000).reshape(-1, 5)[:, 0]
    assert chisquare(np.bincount(first, minlength=5)).pvalue > 1e-3


def test_orders_are_pinned() -> None:
    """An order must never change between versions: a resumed run would see other batches."""
    assert Shuffled(n=10, batch_size=12, seed=0).indices(0).tolist() == [7, 6, 8, 3, 2, 4, 1, 5, 0, 9, 2, 5]
    labels = np.arange(12) % 3
    order = drawn(ClassConsistent(labels=labels, batch_size=6, seed=0, group=3), 2)
    assert order.tolist() == [11, 5, 2, 10, 7, 1, 4, 1, 10, 3, 6, 9]


# ClassConsistent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [32, 48, 64, 1250, 3000])
def test_class_of_1250_images_is_read_once_per_epoch(batch_size: int) -> None:
    """Published code kept leftovers of a class only below 32, and fell over at a batch of 64 (1250 mod 64 = 34)."""
    labels = np.repeat([0, 1], 1250)
    order = drawn(ClassConsistent(labels=labels, batch_size=batch_size, seed=0), 12_000 // batch_size + 1)
    for label, part in by_class(order, labels).items():
        assert len(part) > 2 * 1250
        assert_epochs(part, np.flatnonzero(labels == label))
        assert not np.array_equal(part[:1250], part[1250:2500])


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch_size=st.integers(1, 30),
    group=st.none() | st.integers(1, 40),
    seed=st.integers(0, 2**40),
)
def test_groups_share_a_class_and_classes_are_read_in_epochs(
    sizes: list[int], batch_size: int, group: int | None, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    sampler = ClassConsistent(labels=labels, batch_size=batch_size, seed=seed, group=group)
    batches = [sampler.indices(step) for step in range(25)]
    for batch in batches:
        assert batch.shape == (batch_size,)
        for start in range(0, batch_size, group or batch_size):
            assert len(set(labels[batch[start : start + (group or batch_size)]])) == 1
    for label, part in by_class(np.concatenate(batches), labels).items():
        assert_epochs(part, np.flatnonzero(labels == label))


@pytest.mark.parametrize("group", [None, 4, 5])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_together_read_each_class_in_epochs(world: int, group: int | None) -> None:
    labels = np.repeat([0, 1, 2], [7, 50, 20])
    ranks = [
        ClassConsistent(labels=labels, batch_size=12 * world, seed=5, group=group, rank=rank, world=world)
        for rank in range(world)
    ]
    order = np.concatenate([sampler.indices(step) for step in range(60) for sampler in ranks])
    for label, part in by_class(order, labels).items():
        assert_epochs(part, np.flatnonzero(labels == label))


@pytest.mark.parametrize("group", [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(group: int) -> None:
    labels = np.arange(90) % 6
    whole, *shared = (
        [
            ClassConsistent(labels=labels, batch_size=24, seed=2, group=group, rank=rank, world=world)
            for rank in range(world)
        ]
        for world in (1, 2, 3, 6)
    )
    for step in range(20):
        for ranks in shared:
            parts = np.concatenate([sampler.indices(step) for sampler in ranks])
            np.testing.assert_array_equal(parts, whole[0].indices(step))


def test_processes_choose_their_classes_independently() -> None:
    labels = np.repeat(np.arange(4), 25)
    ranks = [ClassConsistent(labels=labels, batch_size=16, seed=0, rank=rank, world=2) for rank in range(2)]
    pairs = np.array([[labels[sampler.indices(step)[0]] for sampler in ranks] for step in range(1500)])
    assert chisquare(np.bincount(4 * pairs[:, 0] + pairs[:, 1], minlength=16)).pvalue > 1e-3


def test_classes_are_uniform_whatever_their_size() -> None:
    labels = np.repeat(np.arange(10), [1, 2, 3, 5, 8, 13, 21, 34, 55, 500])
    order = drawn(ClassConsistent(labels=labels, batch_size=64, seed=7, group=8), 600)
    groups = labels[order].reshape(-1, 8)[:, 0]
    assert chisquare(np.bincount(groups, minlength=10)).pvalue > 1e-3
    # Consecutive draws are independent too.
    assert chisquare(np.bincount(10 * groups[0::2] + groups[1::2], minlength=100)).pvalue > 1e-3


@pytest.mark.parametrize("group", [None, 5])
def test_random_access_equals_sequential(group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also across the blocks in which draws are counted (made small here)."""
    monkeypatch.setattr(module, "_BLOCK", 64)
    labels = np.arange(100) % 7

    def fresh() -> ClassConsistent:
        return ClassConsistent(labels=labels, batch_size=18, seed=9, group=group)

    sequential = fresh()
    expected = [sequential.indices(step) for step in range(1001)]
    np.testing.assert_array_equal(fresh().indices(1000), expected[1000])
    jumping = fresh()
    for step in np.random.default_rng(0).integers(1001, size=300):
        np.testing.assert_array_equal(jumping.indices(int(step)), expected[step])


def test_step_a_million_is_cheap() -> None:
    sampler = ClassConsistent(labels=np.arange(50_000) % 1000, batch_size=64, seed=0)
    start = time.process_time()
    assert len(sampler.indices(1_000_000)) == 64
    assert time.process_time() - start < 2


def test_equal_seeds_equal_orders_and_other_seeds_others() -> None:
    labels = np.arange(60) % 4
    a, b, c = (drawn(ClassConsistent(labels=labels, batch_size=8, seed=seed), 10) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.5


def test_classes_without_images() -> None:
    labels = np.array([0, 2, 2, 7])
    with pytest.raises(DataError, match="5 of 8 classes have none: 1, 3, 4, 5, 6;"):
        ClassConsistent(labels=labels, batch_size=2, seed=0)
    with pytest.raises(DataError, match="1 of 4 classes have none: 3"):
        ClassConsistent(labels=np.array([0, 1, 2]), batch_size=2, seed=0, num_classes=4)
    with pytest.raises(DataError, match="label 2 is not one of num_classes=2"):
        ClassConsistent(labels=np.array([0, 1, 2]), batch_size=2, seed=0, num_classes=2)
    for bad in (np.array([], dtype=np.int64), np.array([0, -1])):
        with pytest.raises(DataError, match="a label ≥ 0 for every sample"):
            ClassConsistent(labels=bad, batch_size=2, seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"rank": 2, "world": 2}, "got rank 2 of world 2"),
        ({"batch_size": 10, "world": 4}, "batch_size 10 cannot be shared evenly by 4 processes; take 8 or 12"),
    ],
)
def test_values_out_of_range(values: dict, message: str) -> None:
    good = {"batch_size": 4, "seed": 0}
    with pytest.raises(ShortflowError, match=message):
        Shuffled(n=8, **(good | values))
    with pytest.raises(ShortflowError, match=message):
        ClassConsistent(labels=np.arange(8) % 2, **(good | values))


def test_other_values_out_of_range() -> None:
    with pytest.raises(DataError, match="n=0"):
        Shuffled(n=0, batch_size=1, seed=0)
    with pytest.raises(ShortflowError, match="group must be at least 1"):
        ClassConsistent(labels=np.arange(8) % 2, batch_size=4, seed=0, group=0)
    for sampler in (
        Shuffled(n=8, batch_size=1, seed=0),
        ClassConsistent(labels=np.zeros(8, int), batch_size=1, seed=0),
    ):
        with pytest.raises(ShortflowError, match="step must not be negative, got -1"):
            sampler.indices(-1)
