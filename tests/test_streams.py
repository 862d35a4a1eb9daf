import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortflow.streams import Streams


@pytest.mark.parametrize(
    ("streams", "name", "seed"),
    [
        # printf '0/0/0/noise' | b2sum -l 64, little-endian, without its lowest bit
        (Streams(), "noise", 792011621244050106),
        (Streams(), "times", 3950249156533208302),
        (Streams(seed=7, images=1280, rank=3), "noise", 721506206380172343),
    ],
)
def test_seeds_are_pinned(streams: Streams, name: str, seed: int) -> None:
    """Runs and images are functions of these numbers: a change here changes every result."""
    assert streams.seed_of(name) == seed


def test_first_numbers_of_a_stream_are_pinned() -> None:
    got = torch.randn(3, generator=Streams(seed=1, images=5).generator("sample"))
    torch.testing.assert_close(got, torch.tensor([-1.10267806, -0.16432478, 0.21266216]), rtol=0, atol=1e-6)


fields = st.tuples(
    st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.sampled_from(["noise", "times", "a/b"])
)


@given(a=fields, b=fields)
def test_streams_differ_in_every_part(a: tuple[int, int, int, str], b: tuple[int, int, int, str]) -> None:
    one, two = (Streams(seed=s, images=i, rank=r).seed_of(name) for s, i, r, name in (a, b))
    assert (one == two) == (a == b)
    assert 0 <= one < 2**63


def test_a_stream_does_not_depend_on_what_was_drawn_from_others() -> None:
    streams = Streams(seed=3)
    want = torch.rand(4, generator=streams.generator("noise"))
    torch.rand(100, generator=streams.generator("times"))
    torch.manual_seed(0)
    assert torch.equal(torch.rand(4, generator=streams.generator("noise")), want)


def test_streams_look_independent() -> None:
    """The correlation of 20,000 numbers of neighbouring streams is within 5 of its standard deviations, 1/√n."""
    n = 20_000
    draws = [torch.randn(n, generator=Streams(images=k).generator(name)) for k in (0, 1) for name in ("noise", "times")]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlation.abs().max() < 5 / n**0.5
