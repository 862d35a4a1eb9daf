"""Laws made from laws: `WithDiagonal`, `Between`, `BoundaryRows`; and what every law says of itself, however nested."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distances import at, ks
from oracles import f64
from shortflow.config import from_plain, to_plain
from shortflow.errors import ShortflowError
from shortflow.times import (
    Between,
    BoundaryRows,
    Diagonal,
    Dyadic,
    Fixed,
    GapThenEnd,
    Geometric,
    Gradual,
    GridLaw,
    GridPairs,
    GroupedJumps,
    Independent,
    LogitNormal,
    LogNormalNoise,
    LogStudentNoise,
    Neighbours,
    Nested,
    Random,
    SigmoidDecay,
    Sorted,
    StagedDyadic,
    Step,
    Tightening,
    TimeSampler,
    ToData,
    Triangle,
    TrigLogNormal,
    Truncated,
    Uniform,
    WithDiagonal,
)
from shortflow.times.base import ordered
from shortflow.typing import Progress

SOFLOW = Independent(start=LogitNormal(mu=0.2, sigma=0.8), end=LogitNormal(mu=-1.0, sigma=0.8), ratio=1.0, least=1e-4)
ECT = Between(base=ToData(law=LogNormalNoise()), at=Tightening())
SAMPLERS = {
    "T7": ECT,
    "T10": WithDiagonal(jumps=GapThenEnd(), law=LogitNormal(mu=-0.4), ratio=0.5),
    "T11": WithDiagonal(jumps=Between(base=SOFLOW, at=Geometric()), law=LogitNormal(mu=-0.2), count="exact"),
    "T11, CIFAR-10": Between(base=replace(SOFLOW, least=1e-6), at=Geometric(start=1.0, end=3.125e-4)),
    "T12": WithDiagonal(jumps=Between(base=Sorted(ratio=1.0), at=SigmoidDecay()), count="exact", ratio=0.75),
    "T12, mixed": Between(base=Sorted(ratio=0.5), at=SigmoidDecay(start_share=0.2, end_share=0.3)),
    "T13": Between(base=Nested(), at=Step()),
    "T14": WithDiagonal(jumps=Triangle(), law=Uniform(), ratio=0.25, count="exact"),
    "PSD-M": WithDiagonal(jumps=Between(base=Triangle(), at=Fixed()), law=Uniform()),
    "PSD-U": WithDiagonal(jumps=Between(base=Triangle(), at=Random()), law=Uniform()),
    "TCM": Between(base=BoundaryRows(), at=Tightening(stages=1, q=256.0)),
    "boundary alone": BoundaryRows(base=ToData(law=TrigLogNormal()), boundary=0.3, share=1.0),
    "progressive": StagedDyadic(),
    "progressive, 20 levels": StagedDyadic(levels=20, coarsest=3),
    "dyadic consistency": StagedDyadic(levels=8, order="coarse-to-fine", jump="data"),
    "neighbours": Neighbours(),
    "a million neighbours": Neighbours(steps=10**6),
    "triangle": Triangle(),
    "nested": Nested(start=LogitNormal(mu=-8.0, sigma=3.0)),
    "gap then end": GapThenEnd(),
    "gap then end, uniform": GapThenEnd(length=Uniform(), end=Uniform(low=0.5)),
    "independent": Independent(ratio=1.0, least=1e-6),
    "independent, far": Independent(start=Uniform(), end=Uniform(), ratio=0.9, least=0.9),
    "grouped cosine": GroupedJumps(eta="cosine", low=0.006, k=15),
    "grid with diagonal": WithDiagonal(jumps=GridPairs(), law=LogNormalNoise(), ratio=0.5, count="exact"),
    "dyadic in diagonal": WithDiagonal(jumps=Dyadic(share=1.0), law=GridLaw(n=128), ratio=0.6, count="exact"),
    "gradual between": Between(base=Gradual(ramp=1.0), at=Random()),
    "diagonal in diagonal": WithDiagonal(jumps=WithDiagonal(jumps=Triangle(), ratio=0.5), ratio=0.5, count="exact"),
    "four deep": WithDiagonal(
        jumps=Between(
            base=WithDiagonal(jumps=BoundaryRows(base=ToData(law=Uniform()), boundary=0.5), ratio=0.8), at=Random()
        ),
        law=Truncated(low=0.25),
        ratio=0.7,
    ),
    "short steps": Between(base=Sorted(ratio=1.0), at=Fixed(value=1e-12)),
    "tiny steps": Between(base=ToData(law=Uniform()), at=Step(size=1e-12)),
    "long steps": Between(base=Nested(), at=Step(size=1.0)),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def rows(n: int, sampler: TimeSampler, progress: Progress, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return sampler(n, progress, torch.Generator().manual_seed(seed), torch.float64)


# ---------------------------------------------------------------------------------------------------- every law


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_times_are_ordered_and_what_the_sampler_says(sampler: TimeSampler, data: st.DataObject) -> None:
    number = st.one_of(
        st.sampled_from([0.0, 2.0**-53, 1e-12, 0.5, 1 - 2.0**-24, 1 - 2.0**-53]),
        st.floats(0, 1, exclude_max=True),
    )
    n = sampler.group * data.draw(st.integers(1, 4))
    table = st.lists(number, min_size=n * sampler.uniforms, max_size=n * sampler.uniforms)
    u = f64(*data.draw(table)).reshape(n, sampler.uniforms)
    progress = Progress(images=data.draw(st.integers(0, 100)), total=100)
    for dtype in (torch.float32, torch.float64):
        t, s, r = ordered(sampler.times(u, progress), dtype)
        assert {x.dtype for x in (t, s, r)} == {dtype}
        assert bool(((r >= 0) & (r <= s) & (s <= t) & (t <= 1)).all())  # NaN would fail, too
        jump = r < t
        if sampler.gap == "positive":
            assert bool(jump.all())
            assert bool((t - r >= 0.9e-6).all())
        if sampler.continuous:
            assert torch.equal(s, t)
        elif not sampler.limit:
            assert bool((s < t)[jump].all())
        assert torch.equal(s[~jump], t[~jump])
        low, high = (torch.tensor(end, dtype=dtype) for end in sampler.span)
        assert bool(((t >= low) & (t <= high)).all())
        if sampler.ends == "zero":
            assert bool((r[jump] <= low).all())
        if sampler.ends == "dyadic":
            torch.testing.assert_close(torch.log2((t - r)[jump]), torch.log2((t - r)[jump]).round(), rtol=0, atol=0)


@every_sampler
def test_a_generator_decides_everything(sampler: TimeSampler) -> None:
    n = 24
    one, same = (rows(n, sampler, at(0.5), 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    fixed = [sampler.stratified(n, at(0.5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*fixed, strict=True))


@every_sampler
def test_run_files_can_name_it(sampler: TimeSampler) -> None:
    again = from_plain(TimeSampler, to_plain(sampler))
    assert again == sampler
    facts = ("uniforms", "gap", "ends", "continuous", "limit", "group", "stages", "span")
    for other in (again, copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler)), replace(sampler)):  # type: ignore
        assert [getattr(other, fact) for fact in facts] == [getattr(sampler, fact) for fact in facts]
        assert all(torch.equal(a, b) for a, b in zip(rows(8, other, at(0.3)), rows(8, sampler, at(0.3)), strict=True))


def test_a_run_file_may_be_written_by_hand() -> None:
    plain = {
        "kind": "WithDiagonal",
        "jumps": {
            "kind": "Between",
            "base": {"kind": "Sorted", "ratio": 1},
            "at": {"kind": "SigmoidDecay", "gamma": 9},
        },
        "law": "Uniform",
        "count": "exact",
    }
    want = WithDiagonal(jumps=Between(base=Sorted(ratio=1.0), at=SigmoidDecay(gamma=9.0)), law=Uniform(), count="exact")
    assert from_plain(TimeSampler, plain) == want


# ----------------------------------------------------------------------------------------------------- WithDiagonal


def test_rows_beside_the_jumps_are_flow_matching() -> None:
    """T14: a quarter jumps, uniform on the triangle; the others have t ~ law."""
    sampler = WithDiagonal(jumps=Triangle(), law=LogitNormal(mu=-0.4), ratio=0.25)
    assert (sampler.uniforms, sampler.gap, sampler.ends, sampler.continuous) == (3, "mixed", "any", True)
    t, s, r = sampler.stratified(80_000)
    jump = r < t
    assert jump.double().mean().item() == pytest.approx(0.25, abs=1e-3)
    assert torch.equal(s, t)
    assert ks(t[~jump], sampler.law.cdf) < 2e-3
    assert ks(t[jump], lambda x: x**2) < 4e-3
    assert ks((r / t)[jump], lambda x: x) < 4e-3


def test_exact_count_of_jumps_at_random_places() -> None:
    for sampler in (SAMPLERS["T11"], SAMPLERS["T14"]):
        for n in (1, 7, 64, 130):
            t, _, r = rows(n, sampler, at(0.5), n)
            assert int((r < t).sum()) == round(0.25 * n)
    t, _, r = rows(64, SAMPLERS["T14"], at(0.5))
    assert not bool((r < t)[:16].all())
    counts = {int((times[2] < times[0]).sum()) for times in (rows(64, SAMPLERS["T10"], at(0.5), i) for i in range(20))}
    assert len(counts) > 3


def test_exact_counts_inside_count_the_rows_that_jump() -> None:
    """Half of 64 rows are jumps, a quarter of those start at the boundary; dyadic levels share the rows that jump."""
    inner = BoundaryRows(base=ToData(law=Uniform()), boundary=0.5)
    t, _, r = rows(64, WithDiagonal(jumps=inner, ratio=0.5, count="exact"), at(0.5))
    assert int((r < t).sum()) == 32
    assert int(inner.at_boundary(t).sum()) == 8
    t, _, r = rows(70, WithDiagonal(jumps=Dyadic(share=1.0), ratio=0.5, count="exact"), at(0.5))
    lengths, counts = (t - r)[r < t].unique(return_counts=True)
    assert lengths.tolist() == [2.0**-j for j in range(6, -1, -1)]
    assert counts.tolist() == [5] * 7


def test_the_diagonal_stays_inside_the_span_of_the_jumps() -> None:
    """Its law is the conditional one, not clipped: no two rows share a time."""
    sampler = WithDiagonal(jumps=GridPairs(), law=Uniform(), ratio=0.0)
    assert sampler.span == (0.002 / 80, 1.0)
    t = sampler.stratified(1000).t
    assert len(t.unique()) == 1000
    assert ks(t, Uniform(low=0.002 / 80).cdf) < 2e-3


def test_what_is_inside_shows_outside() -> None:
    both = SAMPLERS["T12"]
    assert (both.uniforms, both.gap, both.continuous, both.limit) == (4, "mixed", False, True)
    ect = WithDiagonal(jumps=ECT)
    assert (ect.gap, ect.ends, ect.continuous, ect.limit) == ("mixed", "zero", False, False)
    assert (ECT.gap, ECT.ends, ECT.uniforms) == ("positive", "zero", 1)
    staged = WithDiagonal(jumps=StagedDyadic())
    assert (staged.stages, staged.ends, staged.stage(at(0.5))) == (7, "dyadic", 3)
    assert (ECT.stages, ECT.stage(at(0.5))) == (1, 0)
    assert WithDiagonal(jumps=Gradual()).gap == "mixed"


# ---------------------------------------------------------------------------------------------------------- Between


def test_between_keeps_the_pair_and_moves_the_middle() -> None:
    base = Sorted(ratio=0.5)
    table = torch.rand(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t, s, r = Between(base=base, at=Random()).times(table, Progress())
    want = base.times(table[:, :3], Progress())
    assert torch.equal(t, want.t)
    assert torch.equal(r, want.r)
    # ρ = 1 − u, so that s = r + u (t − r)
    torch.testing.assert_close(s, r + table[:, 3] * (t - r), rtol=0, atol=2e-6)
    assert torch.equal(s[r == t], t[r == t])


def test_midpoint_and_random_splits() -> None:
    """PSD-M: s = (t + r)/2. PSD-U: (t − s)/(t − r) ~ U(0, 1), independent of the jump."""
    t, s, r = Between(base=Triangle(), at=Fixed()).stratified(1000)
    torch.testing.assert_close(s, (t + r) / 2, rtol=0, atol=1e-6)
    t, s, r = Between(base=Triangle(), at=Random()).stratified(40_000)
    share, long = (t - s) / (t - r), t - r > 0.3
    assert ks(share[long], lambda x: x) < 5e-3
    assert ks(share[~long & (t - r > 0.01)], lambda x: x) < 5e-3


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_first_steps_can_be_divided_by(share: float) -> None:
    """Never shorter than 1e-6 in fp32, unless the jump itself is, or the limit is meant."""
    for at_rule in (Fixed(value=1e-9), Geometric(start=1e-9, end=1e-12), Step(size=1e-9)):
        t, s, _ = Between(base=Triangle(), at=at_rule).stratified(5000, at(share), torch.float32)
        assert bool((t - s >= 0.9e-6).all())
        assert bool((t - s <= 1.1e-6).all())


# ---------------------------------------------------------------------------------------------------- boundary rows


def test_a_quarter_starts_just_above_the_boundary() -> None:
    """TCM: ⌊b/4⌋ rows at σ' = 1, whose neighbours lie below it; all others above, log-Student-t."""
    inner = BoundaryRows()
    sampler = Between(base=inner, at=Tightening())
    assert (sampler.gap, sampler.ends, sampler.continuous, sampler.uniforms) == ("positive", "zero", False, 2)
    for n in (1, 3, 4, 64, 130):
        for dtype in (torch.float32, torch.float64):
            t, s, _ = sampler(n, at(1.0), torch.Generator().manual_seed(n), dtype)
            edge = inner.at_boundary(t)
            assert int(edge.sum()) == n // 4
            assert bool((t[edge] > torch.tensor(1 / 80, dtype=dtype)).all())
            assert bool((s[edge] < torch.tensor(1 / 80, dtype=dtype)).all())
    t, _, _ = rows(64, sampler, at(0.5))
    assert not bool(inner.at_boundary(t)[:16].all())


def test_other_rows_keep_their_law() -> None:
    inner = BoundaryRows()
    t, s, r = inner.stratified(8000)
    edge = inner.at_boundary(t)
    assert int(edge.sum()) == 2000
    assert ks(t[~edge], LogStudentNoise().cdf) < 3e-3
    assert torch.equal(s, t)
    assert r.unique().tolist() == [0.0]


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: WithDiagonal(jumps=Diagonal()), "Diagonal never jumps .* give it a law with jumps"),
        (lambda: WithDiagonal(jumps=GroupedJumps()), "GroupedJumps gives groups of 4 rows the same times"),
        (lambda: WithDiagonal(ratio=1.5), "WithDiagonal: ratio .* got 1.5"),
        (lambda: WithDiagonal(ratio=math.nan), "ratio"),
        (lambda: WithDiagonal(jumps=GridPairs(), law=Uniform(high=1e-6)), "no mass between 2.5e-05 and 1"),
        (lambda: Between(base=Dyadic()), "Dyadic has an intermediate time of its own; give it a law with s = t"),
        (lambda: Between(base=Between()), "Between has an intermediate time of its own"),
        (lambda: Between(base=Diagonal()), "Diagonal never jumps"),
        (lambda: BoundaryRows(base=Triangle()), "always jump to the data, and Triangle are not; use ToData"),
        (lambda: BoundaryRows(base=GridPairs()), "GridPairs are not"),
        (lambda: BoundaryRows(base=WithDiagonal(jumps=ToData())), "WithDiagonal are not"),
        (lambda: BoundaryRows(boundary=0.0), r"boundary must be a time inside \(0, 1\), got 0"),
        (lambda: BoundaryRows(boundary=1.0), "boundary"),
        (lambda: BoundaryRows(boundary=math.nan), "boundary"),
        (lambda: BoundaryRows(share=-0.1), "share must be in .0, 1., got -0.1"),
    ],
)
def test_impossible_settings_are_refused_by_name(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ShortflowError, match=words):
        build()
