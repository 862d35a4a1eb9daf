"""GELU by the exponential: the function, derivatives of every kind, and when it is not taken."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shortflow.activations import gelu
from shortflow.dual import push_forward
from shortflow.products import stock_products


def stock(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


X = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e4, -1e4, 1e-30, 1e25, -1e25, torch.inf])])


def test_it_is_as_near_to_double_precision_as_the_kernel() -> None:
    exact = stock(X[:-3].double())
    size = exact.abs().clamp(min=1)
    ours, theirs = (((f(X[:-3]).double() - exact) / size).abs().max() for f in (gelu, stock))
    assert ours < 3e-7
    assert ours < 3 * theirs
    assert not torch.equal(gelu(X), stock(X))  # the other form was taken
    assert gelu(X)[-3:].tolist() == [X[-3], 0, torch.inf]


def test_in_double_precision_it_is_the_kernel() -> None:
    assert torch.equal(gelu(X.double()), stock(X.double()))


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_those_of_the_kernel(turned: bool) -> None:
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    x = (x.t() if turned else x).requires_grad_()
    found, expected = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (gelu, stock))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    slope = torch.ones_like(x)
    assert torch.equal(*(torch.autograd.grad(f(x), x, slope)[0] for f in (gelu, stock)))
    found, expected = (
        torch.autograd.grad(torch.autograd.grad(f(x), x, slope, create_graph=True)[0].sum(), x)[0]
        for f in (gelu, stock)
    )
    assert torch.equal(found, expected)
    with torch.no_grad():
        before = x.clone()
        assert torch.equal(gelu(x), gelu(x.clone().requires_grad_()))
        assert torch.equal(x, before)  # nothing is changed in place


def test_its_tangent_is_that_of_the_kernel() -> None:
    x, rate = (torch.randn(500, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    value, slope = push_forward(gelu, (x,), (rate,))
    assert torch.equal(value, gelu(x))
    assert torch.equal(push_forward(stock, (x,), (rate,))[0], stock(x))  # what is not ours stays what it is
    torch.testing.assert_close(slope, torch.func.jvp(stock, (x,), (rate,))[1], rtol=1e-6, atol=1e-6)


def test_where_it_is_not_taken() -> None:
    x = X[:4001]
    with stock_products():
        assert torch.equal(gelu(x), stock(x))
    assert torch.equal(torch.func.vmap(gelu)(x[:, None])[:, 0], stock(x))
    assert torch.equal(torch.func.jvp(gelu, (x,), (x,))[0], stock(x))
    assert torch.equal(gelu(x.bfloat16()), stock(x.bfloat16()))
    assert torch.equal(gelu(x[:0]), x[:0])
