"""Times, classes and positions as vectors: values against the written-out formulas, precision, errors."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from shortflow.errors import ShortflowError
from shortflow.nn.embeddings import GuidanceEmbedding, LabelEmbedding, TimeEmbedding, position_embedding


@pytest.mark.parametrize("scale", [1.0, 0.02, 16.0])
def test_sinusoids_are_cosines_then_sines_of_the_raw_time(scale):
    embedding = TimeEmbedding(8, scale=scale)
    time = torch.tensor([0.0, 0.3, 1.0, 7.0], dtype=torch.float64)
    expected = [
        [math.cos(scale * t * 10_000 ** (-j / 128)) for j in range(128)]
        + [math.sin(scale * t * 10_000 ** (-j / 128)) for j in range(128)]
        for t in time.tolist()
    ]
    torch.testing.assert_close(
        embedding.sinusoids(time), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_fourier_frequencies_are_the_quantiles_of_a_folded_normal(scale):
    normal = statistics.NormalDist()
    omega = [2 * math.pi * scale * normal.inv_cdf(0.5 + (j + 0.5) / 16) for j in range(8)]
    time = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    expected = [[math.cos(t * w) for w in omega] + [math.sin(t * w) for w in omega] for t in time.tolist()]
    embedding = TimeEmbedding(4, frequencies=16, scale=scale, spectrum="fourier")
    torch.testing.assert_close(
        embedding.sinusoids(time), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert not list(embedding.buffers())


def test_fourier_kernel_tends_to_that_of_random_frequencies():
    """E cos(ω(t − t')) = exp(−(2π)² (t − t')²/2) for ω = 2π N(0, 1); the quantiles are a rule to integrate it."""
    time, errors = torch.tensor([0.1, 0.3], dtype=torch.float64), []
    for count in (32, 128, 512):
        vectors = TimeEmbedding(4, frequencies=2 * count, spectrum="fourier").sinusoids(time)
        errors.append(abs(float(vectors[0] @ vectors[1]) / count - math.exp(-((2 * math.pi * 0.2) ** 2) / 2)))
    assert errors[0] / errors[1] > 2
    assert errors[1] / errors[2] > 2
    assert errors[2] < 5e-4


def test_time_vector_is_a_two_layer_network_of_the_sinusoids():
    embedding = TimeEmbedding(6, frequencies=10).double()
    time = torch.rand(5, dtype=torch.float64)
    weights = embedding.state_dict()
    hidden = embedding.sinusoids(time) @ weights["mlp.0.weight"].T + weights["mlp.0.bias"]
    hidden = hidden / (1 + torch.exp(-hidden))
    expected = hidden @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]
    torch.testing.assert_close(embedding(time), expected, rtol=0, atol=1e-14)


def test_time_stays_in_float32_under_autocast():
    embedding, time = TimeEmbedding(16), torch.rand(7)

    def value_and_slope():
        return torch.func.jvp(embedding, (time,), (torch.ones_like(time),))

    value, slope = value_and_slope()
    with torch.autocast("cpu", torch.bfloat16):
        low_value, low_slope = value_and_slope()
        assert torch.nn.functional.linear(time[None], torch.ones(1, 7)).dtype == torch.bfloat16  # autocast is on
    assert low_value.dtype == low_slope.dtype == torch.float32
    assert torch.equal(value, low_value)
    assert torch.equal(slope, low_slope)


@pytest.mark.parametrize(
    ("weights", "time", "result"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_the_wider_of_time_and_weights_decides_the_precision(weights, time, result):
    embedding = TimeEmbedding(8).to(weights)
    exact = TimeEmbedding(8).double()
    exact.load_state_dict({name: value.double() for name, value in embedding.state_dict().items()})
    times = torch.rand(5, dtype=time)
    value = embedding(times)
    assert value.dtype == result
    tolerance = 1e-6 if result == torch.float32 else 1e-12
    torch.testing.assert_close(value.double(), exact(times.double()), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_time_in_half_precision_is_refused(dtype):
    with pytest.raises(ShortflowError, match=r"must be float32 or float64.*time\.float\(\)"):
        TimeEmbedding(8)(torch.rand(3).to(dtype))


@pytest.mark.parametrize("frequencies", [0, -2, 7])
def test_number_of_frequencies_must_be_even_and_positive(frequencies):
    with pytest.raises(ShortflowError, match=f"got {frequencies}"):
        TimeEmbedding(8, frequencies=frequencies)


@pytest.mark.parametrize("null", [False, True])
def test_label_vectors_are_the_rows_of_the_table(null):
    embedding = LabelEmbedding(3, 4, null=null)
    labels = torch.tensor([2, 0, 2, 3]) if null else torch.tensor([2, 0, 2, 1])
    assert embedding.embedding_table.weight.shape == (4 if null else 3, 4)
    assert torch.equal(embedding(labels), embedding.embedding_table.weight[labels])


@pytest.mark.parametrize(("null", "bad", "top"), [(False, 3, 2), (True, 4, 3), (True, -1, 3), (False, -2, 2)])
def test_label_out_of_range_is_named(null, bad, top):
    with pytest.raises(ShortflowError, match=rf"label {bad} is out of range: valid labels are 0 to {top} "):
        LabelEmbedding(3, 4, null=null)(torch.tensor([0, bad]))


def test_a_table_needs_classes():
    with pytest.raises(ShortflowError, match="num_classes ≥ 1, got 0"):
        LabelEmbedding(0, 4, null=False)


def test_an_empty_batch_of_labels_is_no_error():
    assert LabelEmbedding(3, 4, null=False)(torch.zeros(0, dtype=torch.long)).shape == (0, 4)


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), quarter=st.integers(1, 4))
def test_positions_hold_the_column_then_the_row(rows, columns, quarter):
    expected = []
    for row in range(rows):
        for column in range(columns):
            vector = []
            for place in (column, row):
                angles = [place / 10_000 ** (j / quarter) for j in range(quarter)]
                vector += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            expected.append(vector)
    torch.testing.assert_close(
        position_embedding(rows, columns, 4 * quarter), torch.tensor(expected), rtol=0, atol=1e-6
    )


def test_inner_products_of_positions_depend_on_the_offset_only():
    table = position_embedding(6, 9, 32).reshape(6, 9, 32).double()
    here = (table[:-2, :-3] * table[2:, 3:]).sum(-1)
    torch.testing.assert_close(here, here[:1, :1].expand_as(here), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [0, 6, -4])
def test_positions_need_a_multiple_of_four(width):
    with pytest.raises(ShortflowError, match=f"multiple of 4, got {width}"):
        position_embedding(2, 2, width)


def test_guidance_is_finite_for_every_scale_and_smooth_in_its_numbers():
    torch.manual_seed(0)
    embedding = GuidanceEmbedding(8).double()
    rows = torch.tensor([[1.0, 0.0, 1.0], [8.0, 0.4, 0.65], [math.inf, 0.0, 1.0]], dtype=torch.float64)
    assert bool(embedding(rows).isfinite().all())
    dw, h = torch.randn(2, 3, dtype=torch.float64), 1e-6
    ends = [embedding(rows[:2] + s * dw) for s in (h, -h)]
    slope = torch.func.jvp(embedding, (rows[:2],), (dw,))[1]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(4), "b,? 3"),
        (torch.ones(4, 2), "b,? 3"),
        (torch.tensor([[2.0, 0.0, 1.0], [-0.5, 0.0, 1.0]]), "must be positive .1 means none., got -0.5"),
        (torch.tensor([[math.nan, 0.0, 1.0]]), "must be positive"),
        (torch.ones(4, 3).half(), "float32 or float64"),
    ],
)
def test_guidance_that_is_none_is_refused(rows, message):
    with pytest.raises((ShortflowError, TypeCheckError), match=message):  # whichever looks first
        GuidanceEmbedding(8)(rows)
