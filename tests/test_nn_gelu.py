"""GELU as a layer, in the form for compilers: the same function, derivative and tangent as the kernel's."""

import pytest
import torch
from torch import Tensor

from shortflow.dual import push_forward
from shortflow.nn.gelu import GELU


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def stock(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


X = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e4, -1e4, 1e-30])]).double()


def test_without_a_compiler_it_is_the_kernel_or_in_single_precision_as_near() -> None:
    assert torch.equal(GELU()(X), stock(X))
    torch.testing.assert_close(GELU()(X.float()), stock(X.float()), rtol=1e-6, atol=1e-6)


def test_the_form_for_compilers_is_the_same_function(compiling: None) -> None:
    torch.testing.assert_close(GELU()(X), stock(X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(GELU()(X.float()), stock(X.float()), rtol=1e-6, atol=1e-6)


def test_its_derivatives_are_the_same(compiling: None) -> None:
    found, expected = (
        torch.autograd.functional.hvp(lambda x, f=f: f(x).sum(), X[:4001], torch.ones(4001).double())[1]
        for f in (GELU(), stock)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    first, wanted = (torch.autograd.functional.jacobian(lambda x, f=f: f(x).sum(), X) for f in (GELU(), stock))
    assert first.isfinite().all()
    torch.testing.assert_close(first, wanted, rtol=1e-11, atol=1e-11)


def test_its_tangent_is_the_same(compiling: None) -> None:
    rate = torch.randn(len(X), generator=torch.Generator().manual_seed(0)).double()
    value, slope = push_forward(GELU(), (X,), (rate,))
    wanted, expected = torch.func.jvp(stock, (X,), (rate,))
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)
