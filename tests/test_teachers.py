"""Decays of the averages that targets are computed with."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortflow.errors import ShortflowError
from shortflow.teachers import GrowingEma, Snapshot
from shortflow.typing import Progress


def after(step: int, batch: int = 256) -> Progress:
    return Progress(images=step * batch, total=10**9, batch=batch)


@pytest.mark.parametrize(
    ("step", "kappa"), [(0, 0.0), (1, 0.495), (2, 0.61998750), (3, 0.69029219), (10, 0.85604142), (1000, 0.98993536)]
)
def test_the_decay_grows_by_its_recursion(step: int, kappa: float) -> None:
    """κ_{k+1} = κ_k + ½ (1 − κ_k)(.99 − κ_k), κ_0 = 0: iterated in float64 (its first three steps by hand)."""
    assert GrowingEma(rate=0.99).decay(after(step)) == pytest.approx(kappa, abs=5e-9)


@given(rate=st.floats(0.5, 0.9999), steps=st.lists(st.integers(0, 3000), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_each_decay_follows_from_the_one_before(rate: float, steps: list[int]) -> None:
    """In whatever order they are asked for: a resumed run starts in the middle."""
    for step in steps:
        now, then = GrowingEma(rate=rate).decay(after(step)), GrowingEma(rate=rate).decay(after(step + 1))
        assert then == pytest.approx(now + 0.5 * (1 - now) * (rate - now), abs=2e-12)
        assert now <= then <= rate


@pytest.mark.parametrize("rate", [0.5, 0.99, 0.999])
def test_the_decay_reaches_its_rate(rate: float) -> None:
    assert GrowingEma(rate=rate).decay(after(10**6)) == pytest.approx(rate, abs=1e-11)


def test_a_slow_warm_up_is_not_cut_short() -> None:
    """With rate .9999 it takes some hundred thousand steps: 1 − κ_k ≈ c/(1 − e^{−ck/2}) near the end, c = 1e-4."""
    for step in (10_000, 40_000, 100_000):
        c = 1e-4
        want = 1 - c / (1 - math.exp(-c * (step + 4) / 2))
        assert GrowingEma(rate=0.9999).decay(after(step)) == pytest.approx(want, abs=1e-6)


def test_steps_are_counted_and_not_images() -> None:
    assert GrowingEma().decay(after(3, batch=7)) == GrowingEma().decay(after(3, batch=1024))


@pytest.mark.parametrize("stages", [1, 3, 7])
def test_stages_are_of_equal_length(stages: int) -> None:
    total, snapshot = 7 * 3 * 100, Snapshot(stages=stages)
    found = [snapshot.stage(Progress(images=k, total=total)) for k in range(total + 1)]
    assert found == [min(stages - 1, k * stages // total) for k in range(total + 1)]


@pytest.mark.parametrize("stages", [3, 7, 49, 93])
def test_stages_begin_with_their_first_image(stages: int) -> None:
    """Whatever the rounding of images/total · stages, which may fall just below a whole number."""
    snapshot = Snapshot(stages=stages)
    for stage in range(stages):
        first = Progress(images=stage * 1000, total=stages * 1000)
        assert snapshot.stage(first) == stage
        if stage:
            assert snapshot.stage(Progress(images=stage * 1000 - 1, total=stages * 1000)) == stage - 1


def test_what_a_snapshot_keeps_is_an_average() -> None:
    assert Snapshot(rate=0.99).decay(after(5)) == 0.99
    assert Snapshot(rate=0.0).decay(after(5)) == 0.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GrowingEma(rate=1.0), "rate must be between 0 and 1, got 1.0"),
        (lambda: GrowingEma(rate=0.0), "rate must be between 0 and 1, got 0.0"),
        (lambda: Snapshot(stages=0), "stages must be at least 1, got 0"),
        (lambda: Snapshot(rate=1.0), r"rate must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build()
