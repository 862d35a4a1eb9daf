"""The rules for the intermediate time, s = t − ρ (t − r): T7, T11, T12 and T13."""

import math
from collections.abc import Callable

import pytest
import torch

from distances import at, ks
from oracles import f64
from shortflow.errors import ShortflowError
from shortflow.times import (
    Between,
    Fixed,
    Fraction,
    Geometric,
    Independent,
    LogitNormal,
    LogNormalNoise,
    Nested,
    SigmoidDecay,
    Sorted,
    Step,
    Tightening,
    ToData,
)
from shortflow.typing import Progress

SOFLOW = Independent(start=LogitNormal(mu=0.2, sigma=0.8), end=LogitNormal(mu=-1.0, sigma=0.8), ratio=1.0, least=1e-4)
ECT = Between(base=ToData(law=LogNormalNoise()), at=Tightening())


def fraction(rule: Fraction, t: float, r: float, share: float) -> float:
    """ρ of one jump."""
    u = torch.full((1, rule.uniforms), 0.5, dtype=torch.float64)
    return rule(f64(t), f64(r), u, at(share)).item()


@pytest.mark.parametrize(("share", "want"), [(0.0, 0.1), (0.25, 0.0376), (0.5, 0.01414), (0.75, 0.00532), (1.0, 0.002)])
def test_geometric_golden_values(share: float, want: float) -> None:
    """SoFlow's ρ on ImageNet at five points of the run (specification, from the published schedule)."""
    assert fraction(Geometric(), 0.9, 0.1, share) == pytest.approx(want, rel=2e-3)
    t, s, r = Between(base=SOFLOW, at=Geometric()).stratified(1000, at(share))
    clear = t - r > 1e-3
    got = ((t - s) / (t - r))[clear]
    torch.testing.assert_close(got, torch.full_like(got, 0.1 * 0.02**share), rtol=1e-9, atol=0)


def test_geometric_from_one_starts_as_flow_matching() -> None:
    """SoFlow on CIFAR-10: ρ = 1 puts s on r at first, so that the target is the point itself."""
    _, s, r = Between(base=SOFLOW, at=Geometric(start=1.0, end=3.125e-4)).stratified(1000)
    assert torch.equal(s, r)
    assert fraction(Geometric(start=1.0, end=3.125e-4), 0.9, 0.1, 0.5) == pytest.approx(math.sqrt(3.125e-4), rel=1e-12)


@pytest.mark.parametrize(
    ("share", "want"),
    [
        (0.0, 1),
        (0.28, 1),
        (0.3, 0.99331),
        (0.4, 0.92414),
        (0.5, 0.5),
        (0.6, 0.07586),
        (0.7, 0.006693),
        (0.72, 0),
        (1, 0),
    ],
)
def test_sigmoid_decay_golden_values(share: float, want: float) -> None:
    """α-Flow's schedule over the whole run (specification)."""
    assert SigmoidDecay().alpha(at(share)) == pytest.approx(want, rel=1e-3, abs=0)
    if want in (0, 1):
        assert SigmoidDecay().alpha(at(share)) == want


def test_sigmoid_decay_snaps_where_it_is_published_to() -> None:
    """It leaves 1 at .2885 and reaches 0 at .7117: ½ ∓ log(199)/25."""
    edge = math.log(199) / 25
    assert (0.5 - edge, 0.5 + edge) == (pytest.approx(0.2883, abs=2e-4), pytest.approx(0.7117, abs=1e-4))
    for share, want in ((0.5 - edge - 1e-5, 1.0), (0.5 + edge + 1e-5, 0.0)):
        assert SigmoidDecay().alpha(at(share)) == want
    for share in (0.5 - edge + 1e-5, 0.5 + edge - 1e-5):
        assert 0 < SigmoidDecay().alpha(at(share)) < 1


def test_sigmoid_decay_has_a_window() -> None:
    """XL/2: from half of the run to 5/6 of it; outside of the window α is exactly 1 and 0."""
    rule = SigmoidDecay(start_share=0.5, end_share=0.8, gamma=2.0)
    assert [rule.alpha(at(share)) for share in (0.0, 0.5, 0.8, 1.0)] == [1, 1, 0, 0]
    assert rule.alpha(at(0.65)) == pytest.approx(0.5, abs=1e-12)
    assert rule.alpha(at(0.575)) == pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-12)
    with pytest.raises(ShortflowError, match="clamp"):
        SigmoidDecay(clamp=0.5)


def test_sigmoid_decay_ends_in_the_limit() -> None:
    """T12: s = α r + (1 − α) t; at first s = r, at the end s = t exactly, and the sampler says that it can be."""
    sampler = Between(base=Sorted(ratio=1.0), at=SigmoidDecay())
    assert sampler.limit
    assert not sampler.continuous
    assert not Between(base=Sorted(), at=Fixed()).limit
    for share, alpha in ((0.1, 1.0), (0.4, 0.924142), (0.5, 0.5), (0.9, 0.0)):
        t, s, r = sampler.stratified(2000, at(share))
        torch.testing.assert_close(s, alpha * r + (1 - alpha) * t, rtol=0, atol=2e-6)
        if alpha in (0.0, 1.0):
            assert torch.equal(s, t if alpha == 0 else r)


def test_steps_of_fixed_length() -> None:
    """T13: s = max(t − .01, r)."""
    t, s, r = Between(base=Nested(), at=Step()).stratified(4000)
    torch.testing.assert_close(s, torch.maximum(t - 0.01, r), rtol=0, atol=1e-15)
    assert bool((s == r).any())


ECT_TABLE = {
    0.1: (0, 0, 0.0400, 0.0700, 0.0850, 0.0925, 0.0962, 0.0981),
    1.0: (0, 0.2121, 0.6061, 0.8030, 0.9015, 0.9508, 0.9754, 0.9877),
    10.0: (4.998, 7.499, 8.750, 9.375, 9.687, 9.844, 9.922, 9.961),
}


@pytest.mark.parametrize("sigma", ECT_TABLE)
def test_tightening_golden_values(sigma: float) -> None:
    """T7: the cleaner noise level of easy consistency tuning, q = 2, eight stages (specification)."""
    for stage, want in enumerate(ECT_TABLE[sigma]):
        t = sigma / 80
        got = sigma * (1 - fraction(Tightening(), t, 0.0, (stage + 0.5) / 8))
        assert got == pytest.approx(want, abs=6e-4 if sigma == 10 else 6e-5)


def test_tightening_is_the_mapping_of_noise_levels() -> None:
    """σ' = σ max(0, 1 − q^−(stage+1)(1 + k sigmoid(−bσ))), also on a path with another σ_max."""
    rule = Tightening(q=4.0, k=3.0, b=0.5, stages=3, sigma_max=50.0)
    assert [rule.stage(at(share)) for share in (0.0, 0.33, 0.34, 0.67, 1.0)] == [0, 0, 1, 2, 2]
    sampler = Between(base=ToData(law=LogNormalNoise(sigma_max=50.0)), at=rule)
    t, s, r = sampler.stratified(4000, at(0.5))
    sigma = 50 * t
    want = sigma * (1 - 4.0**-2 * (1 + 3 / (1 + torch.exp(0.5 * sigma)))).clamp(min=0)
    clear = t > 1e-4
    torch.testing.assert_close((50 * s)[clear], want[clear], rtol=1e-12, atol=1e-12)
    assert r.unique().tolist() == [0.0]
    # Low noise at first: the target is the data itself.
    t, s, _ = Between(base=ToData(law=LogNormalNoise()), at=Tightening()).stratified(4000)
    assert bool((s[t < 1 / 80] == 0).all())
    assert ks(t, LogNormalNoise().cdf) < 1e-3


@pytest.mark.parametrize("stages", [7, 8, 49, 64])
def test_stages_begin_at_their_first_image(stages: int) -> None:
    """Also where share · stages comes out below a whole number: (1/49) · 49 = 1 − 2⁻⁵³."""
    rule = Tightening(stages=stages)
    began = [rule.stage(Progress(images=10 * i, total=10 * stages)) for i in range(stages + 1)]
    assert began == [*range(stages), stages - 1]
    assert [rule.stage(Progress(images=10 * i - 1, total=10 * stages)) for i in range(1, stages + 1)] == [
        *range(stages)
    ]


def test_tightening_for_jumps_that_end_above_the_data() -> None:
    """s = max(r, what the mapping makes of t)."""
    t, s, r = Between(base=Nested(start=LogNormalNoise()), at=Tightening()).stratified(4000, at(0.4))
    to_data = Tightening()(t, torch.zeros_like(t), t.new_zeros(len(t), 0), at(0.4))
    want = torch.maximum(r, t * (1 - to_data))
    torch.testing.assert_close(s, want, rtol=0, atol=1.1e-6)
    assert bool((s == r).any())
    assert bool((s > r).any())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Fixed(value=0.0), "Fixed: value must be in .0, 1., got 0"),
        (lambda: Fixed(value=1.1), "value"),
        (lambda: Geometric(start=0.0), "Geometric: start"),
        (lambda: Geometric(end=2.0), "Geometric: end"),
        (lambda: SigmoidDecay(start_share=0.5, end_share=0.5), "start_share < end_share ≤ 1 .*, got 0.5 and 0.5"),
        (lambda: SigmoidDecay(end_share=1.5), "end_share"),
        (lambda: SigmoidDecay(gamma=0.0), "gamma must be in"),
        (lambda: SigmoidDecay(clamp=0.0), "clamp must be in .0, 0.5., got 0"),
        (lambda: Step(size=0.0), "Step: size must be in .0, 1., got 0"),
        (lambda: Tightening(q=1.0), "q > 1, got 1"),
        (lambda: Tightening(k=-1.0), "k ≥ 0, got -1"),
        (lambda: Tightening(b=-1.0), "b ≥ 0"),
        (lambda: Tightening(stages=0), "stages must be between 1 and 64, got 0"),
        (lambda: Tightening(sigma_max=0.0), "sigma_max > 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ShortflowError, match=words):
        build()
