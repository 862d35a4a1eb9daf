"""Attention among few tokens: values, derivatives of every kind, and when it is not taken."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shortflow.dual import layers, push_forward
from shortflow.fewtokens import FEW, attention_of, few, flat
from shortflow.nn.attention import attend, explicit_attention
from shortflow.products import stock_products


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(b: int, h: int, n: int, m: int, d: int, e: int, *, turned: bool = False) -> list[Tensor]:
    """Queries, keys, contents; turned: heads and tokens lie the other way round in memory, as layers leave them."""
    shapes = [(b, h, n, d), (b, h, m, d), (b, h, m, e)]
    if not turned:
        return [drawn(*shape, seed=i) for i, shape in enumerate(shapes)]
    return [drawn(b, k, h, f, seed=i).transpose(1, 2) for i, (b, h, k, f) in enumerate(shapes)]


@given(
    b=st.integers(0, 3),
    h=st.integers(1, 3),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    d=st.integers(5, 12),
    e=st.integers(5, 12),
    turned=st.booleans(),
)
def test_values_and_gradients_are_those_of_double_precision(
    b: int, h: int, n: int, m: int, d: int, e: int, turned: bool
) -> None:
    exact = [x.requires_grad_() for x in tokens(b, h, n, m, d, e, turned=turned)]
    near = [x.detach().float().requires_grad_() for x in exact]
    assert few(*near)
    expected, found = explicit_attention(*exact), attend(*near)
    assert found.shape == (b, h, n, e)
    slope = drawn(b, h, n, e, seed=7)
    rates = torch.autograd.grad(expected, exact, slope)
    for one, other in zip((found, *torch.autograd.grad(found, near, slope.float())), (expected, *rates), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(attend(*near), found)


def test_derivatives_of_derivatives() -> None:
    inputs = tuple(x.requires_grad_() for x in tokens(2, 2, 3, 4, 5, 6))
    assert few(*inputs)
    assert torch.autograd.gradcheck(attend, inputs)
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_weights_are_those_of_a_softmax_and_have_no_gradient() -> None:
    q, k, v = (flat(x).requires_grad_() for x in tokens(2, 3, 4, 5, 6, 7))
    result, weights = attention_of(q, k, v, 0.3)
    torch.testing.assert_close(weights, torch.softmax(0.3 * q @ k.mT, -1), rtol=0, atol=1e-14)
    assert result.requires_grad
    assert not weights.requires_grad


@pytest.mark.parametrize("graph", [False, True])
def test_the_tangent_shares_the_weights(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, tangent and, where it is asked for, the gradient of the tangent are those of torch.func.jvp."""
    inputs, rates = tokens(2, 3, 4, 5, 6, 7, turned=True), tokens(2, 3, 4, 5, 6, 7)
    inputs = [x.requires_grad_() for x in inputs]

    taken: list[bool] = []

    def asked(*x: Tensor) -> bool:
        taken.append(few(*x))
        return taken[-1]

    monkeypatch.setattr(layers, "few", asked)
    found = push_forward(attend, tuple(inputs), tuple(rates), graph=graph)
    assert taken
    assert all(taken)
    expected = torch.func.jvp(explicit_attention, tuple(inputs), tuple(rates))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    parts = list(zip(found, expected, strict=True))
    for one, other in parts if graph else parts[:1]:
        slope = torch.ones_like(one)
        for a, b in zip(
            torch.autograd.grad(one, inputs, slope, retain_graph=True),
            torch.autograd.grad(other, inputs, slope, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert found[1].requires_grad == graph


def test_tangents_of_some_of_the_three() -> None:
    q, k, v = tokens(2, 3, 4, 5, 6, 7)
    rate = drawn(*q.shape, seed=9)
    for f in (
        lambda x: attend(x, k, v),
        lambda x: attend(x, k * x.mean(), v),
        lambda x: attend(q, k, v * x.mean()),
    ):
        found, expected = push_forward(f, (q,), (rate,)), torch.func.jvp(f, (q,), (rate,))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_tangents_in_double_precision_of_values_in_single() -> None:
    inputs, rates = [x.float() for x in tokens(2, 3, 4, 5, 6, 7)], tokens(2, 3, 4, 5, 6, 7)
    value, rate = push_forward(attend, tuple(inputs), tuple(rates), dtype=torch.float64)
    assert torch.equal(value, attend(*inputs))
    exact = torch.func.jvp(explicit_attention, tuple(x.double() for x in inputs), tuple(rates))[1]
    assert rate.dtype == torch.float64
    torch.testing.assert_close(rate, exact, rtol=0, atol=1e-5)


def test_where_it_is_not_taken() -> None:
    q, k, v = tokens(2, 2, 3, 3, 8, 8)
    assert few(q, k, v)
    assert not few(q, k.float(), v)
    assert not few(*(x.bfloat16() for x in (q, k, v)))
    assert not few(q, k[:1], v[:1])  # which the fused kernel matches
    assert not few(q[0], k[0], v[0])
    assert not few(q, k[:, :, :0], v[:, :, :0])
    assert not few(*(x.to("meta") for x in (q, k, v)))
    with stock_products():
        assert not few(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert not few(q, k, v)
    torch.func.vmap(lambda x: x if not few(q, k, v) else 1 / 0)(q)
    for m, d, taken in ((FEW, FEW // 2, True), (FEW, FEW // 2 - 1, False), (FEW + 1, 2 * FEW, False), (17, 8, False)):
        assert few(*tokens(1, 1, 1, m, d, d)) == taken
