"""Delivery of batches: the bits of the plain formula, the order of the steps, and no thread that is left behind."""

import contextlib
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortflow.arrays import open_array
from shortflow.data import Batches, ClassConsistent, Dataset, DataSpec, Shuffled
from shortflow.data.samplers import coins
from shortflow.errors import DataError
from shortflow.prefetch import prefetched
from shortflow.typing import Batch

N = 50
PIXELS = np.random.default_rng(3).integers(256, size=(N, 3, 6, 6), dtype=np.uint8)
LABELS = np.arange(N) % 4


def dataset(samples: np.ndarray = PIXELS) -> Dataset:
    return Dataset(name="noise", samples=samples, labels=LABELS, classes=("a", "b", "c", "d"))


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("shortflow")]


def numbered(k: int) -> Batch:
    return Batch(x=torch.full((2, 1), float(k)))


# ------------------------------------------------------------------------------------------------------------- batches


@given(shift=st.floats(-2, 2), scale=st.floats(1e-3, 1e3))
def test_batches_have_the_bits_of_the_plain_formula(shift: float, scale: float) -> None:
    levels = Dataset(name="l", samples=np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1))
    spec = DataSpec(name="l", shape=(1, 1, 1), shift=shift, scale=scale)
    order = Shuffled(n=256, batch_size=256, seed=0)
    x = Batches(dataset=levels, spec=spec, order=order)(3).x
    pixels = torch.from_numpy(levels.samples[order.indices(3)].astype(np.float32))
    assert torch.equal(x, ((pixels / 127.5 - 1) - shift) * scale)


@pytest.mark.parametrize("sigma_data", [None, 0.5])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_memory_mapped_set_gives_the_same_batches(tmp_path: Path, grouped: bool, sigma_data: float | None) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    mapped = dataset(open_array(tmp_path / "pixels.npy"))
    order: Shuffled | ClassConsistent = Shuffled(n=N, batch_size=16, seed=5)
    if grouped:
        order = ClassConsistent(labels=LABELS, batch_size=16, seed=5, group=4)
    assert mapped.fingerprint() == dataset().fingerprint()
    spec = DataSpec.fit(dataset(), sigma_data)
    assert DataSpec.fit(mapped, sigma_data) == spec
    one, other = (Batches(dataset=data, spec=spec, order=order) for data in (dataset(), mapped))
    for step in (0, 1, 7):
        a, b = one(step), other(step)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.x, spec.encode(PIXELS[order.indices(step)]))
        assert a.label is not None
        assert b.label is not None
        assert a.label.tolist() == b.label.tolist() == LABELS[order.indices(step)].tolist()


def test_flips_mirror_half_of_the_images_and_are_functions_of_seed_and_step() -> None:
    spec, order = DataSpec.fit(dataset()), Shuffled(n=N, batch_size=40, seed=1)
    plain, flipped = (Batches(dataset=dataset(), spec=spec, order=order, flip=flip) for flip in (False, True))
    for step in (0, 9):
        a, b = plain(step).x, flipped(step).x
        turned = torch.from_numpy(coins(40, 1, step))
        assert torch.equal(b, torch.where(turned[:, None, None, None], a.flip(3), a))
        assert 8 < int(turned.sum()) < 32
    assert torch.equal(flipped(9).x, flipped(9).x)
    assert coins(40, 1, 0).tolist() != coins(40, 1, 1).tolist()
    assert coins(40, 1, 0).tolist() != coins(40, 2, 0).tolist()
    np.testing.assert_array_equal(dataset().samples, PIXELS)  # the data themselves are as they were
    n = 100_000
    assert abs(coins(n, 0, 0).mean() - 0.5) < 5 * 0.5 / n**0.5


def test_the_flips_of_several_processes_are_those_of_one() -> None:
    spec = DataSpec.fit(dataset())
    parts = [
        Batches(dataset=dataset(), spec=spec, order=Shuffled(n=N, batch_size=12, seed=1, rank=r, world=3), flip=True)
        for r in range(3)
    ]
    whole = Batches(dataset=dataset(), spec=spec, order=Shuffled(n=N, batch_size=12, seed=1), flip=True)
    assert torch.equal(torch.cat([part(4).x for part in parts]), whole(4).x)


# ----------------------------------------------------------------------------------------------------------- prefetched


@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 20)])
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_batches_come_in_order_and_the_thread_ends_with_them(steps: range, ahead: int) -> None:
    found = [int(batch.x[0, 0]) for batch in prefetched(numbered, steps, ahead=ahead)]
    assert found == list(steps)
    assert not threads()


def test_the_next_batches_are_prepared_while_one_is_used() -> None:
    made: list[int] = []
    third = threading.Event()

    def batch_of(k: int) -> Batch:
        made.append(k)
        if k == 2:
            third.set()
        return numbered(k)

    batches = prefetched(batch_of, range(100), ahead=2)
    next(batches)
    assert third.wait(10)
    time.sleep(0.05)
    assert made == [0, 1, 2]  # and no more than two ahead
    batches.close()
    assert not threads()


def test_an_error_comes_where_its_batch_would_have_been() -> None:
    def batch_of(k: int) -> Batch:
        if k == 3:
            raise DataError("photos/cat.jpg is damaged; replace it")
        return numbered(k)

    found = []
    with pytest.raises(DataError, match=r"cat.jpg is damaged; replace it"):
        found.extend(int(batch.x[0, 0]) for batch in prefetched(batch_of, range(9)))
    batches = prefetched(batch_of, range(9))
    assert [int(batch.x[0, 0]) for batch in islice(batches, 3)] == [0, 1, 2]
    with pytest.raises(DataError):
        next(batches)
    assert not threads()


@pytest.mark.parametrize("leave", [lambda b: b.close(), lambda b: b.throw(KeyboardInterrupt), lambda b: None])
def test_leaving_early_ends_the_thread(leave: Callable) -> None:
    batches = prefetched(numbered, range(1000))
    next(batches)
    assert len(threads()) == 1
    with contextlib.suppress(KeyboardInterrupt):
        leave(batches)
    del batches
    assert not threads()
