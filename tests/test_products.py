"""Linear maps by oneDNN: values, derivatives of every kind, operations counted, compiled, and when it is not taken."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shortflow import products
from shortflow.dual import push_forward
from shortflow.products import Linear, linear, stock_products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True, scope="module")
def always() -> Iterator[None]:
    """Take it on every processor, for every size."""
    before = products.ONE_DNN, products.SMALL
    products.ONE_DNN, products.SMALL = True, 0  # type: ignore[misc]
    yield
    products.ONE_DNN, products.SMALL = before  # type: ignore[misc]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taken(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise in counter.get_flop_counts()["Global"]


def apart(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@given(
    batch=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    biased=st.booleans(),
    turned=st.booleans(),
)
def test_values_and_gradients_are_those_of_double_precision(
    batch: list[int], inputs: int, outputs: int, biased: bool, turned: bool
) -> None:
    x = drawn(*batch[::-1], inputs) if not turned or len(batch) < 2 else drawn(*batch, inputs).transpose(0, 1)
    weight, bias = drawn(outputs, inputs, seed=1), drawn(outputs, seed=2) if biased else None
    given_ = [each.requires_grad_() for each in (x, weight, bias) if each is not None]
    exact = [each.detach().double().requires_grad_() for each in given_]
    found = linear(*given_, *([] if biased else [None]))
    expected = F.linear(*exact)
    slope = drawn(*expected.shape, seed=3)
    slopes = torch.autograd.grad(found, given_, slope)
    true = torch.autograd.grad(expected, exact, slope.double())
    assert all(
        apart(a.detach(), b.detach()) < 2e-6
        for a, b in zip((found, *slopes), (expected, *true), strict=True)
        if b.numel()
    )


def test_only_gradients_that_are_needed_are_computed() -> None:
    x, weight = drawn(5, 3), drawn(4, 3, seed=1).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, None).sum().backward()
    assert x.grad is None
    assert counter.get_total_flops() == 2 * (2 * 5 * 4 * 3)


def test_operations_are_counted_as_those_of_pytorch() -> None:
    x, layer = drawn(2, 5, 3).requires_grad_(), Linear(3, 4)
    totals = []
    for stock in (False, True):
        with FlopCounterMode(display=False) as counter:
            if stock:
                with stock_products():
                    layer(x).sum().backward()
            else:
                layer(x).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] == 3 * (2 * 10 * 3 * 4)


def test_gradients_have_gradients() -> None:
    x, weight = drawn(6, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()

    def second(function: object) -> Tensor:
        value = function(x, weight, None).square().sum()  # type: ignore[operator]
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        (found,) = torch.autograd.grad(slope.square().sum(), weight)
        return found

    torch.testing.assert_close(second(linear), second(F.linear), rtol=1e-5, atol=1e-4)


def test_a_pair_has_the_tangent_of_forward_mode() -> None:
    layer, x, tangent = Linear(3, 4), drawn(5, 3), drawn(5, 3, seed=1)
    value, rate = push_forward(layer, (x,), (tangent,))
    expected = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close((value, rate), expected)


@pytest.mark.parametrize("why", ["stock", "small", "double", "autocast", "transform", "elsewhere", "another processor"])
def test_pytorch_chooses_where_nothing_is_gained_or_known(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = drawn(5, 3), nn.Parameter(drawn(4, 3))
    assert taken(x, weight, None)
    if why == "stock":
        with stock_products():
            assert not taken(x, weight, None)
    elif why == "small":
        monkeypatch.setattr(products, "SMALL", 5 * 3 * 4 + 1)
        assert not taken(x, weight, None)
    elif why == "double":
        assert not taken(x.double(), weight.double(), None)
    elif why == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert not taken(x, weight, None)
            assert linear(x, weight, None).dtype == torch.bfloat16
    elif why == "transform":
        torch.testing.assert_close(torch.func.vmap(lambda x: linear(x, weight, None))(x), F.linear(x, weight))
    elif why == "elsewhere":
        assert linear(x.to("meta"), weight.to("meta"), None).is_meta
    else:
        monkeypatch.setattr(products, "ONE_DNN", False)
        assert not taken(x, weight, None)


def test_compiled_with_numbers_of_rows_that_change() -> None:
    layer = Linear(3, 4)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for rows in (5, 7, 0, 9):
        x = drawn(rows, 3, seed=rows).requires_grad_()
        found, expected = compiled(x), F.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(found, expected)
        slopes = torch.autograd.grad(found.square().sum(), (x, *layer.parameters()))
        torch.testing.assert_close(slopes, torch.autograd.grad(expected.square().sum(), (x, *layer.parameters())))
