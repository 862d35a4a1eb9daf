"""Results that are computed again in the backward pass: the same gradients to the bit, and less memory."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F

from benchmarks.measure import peak_memory
from shortflow.dual import push_forward
from shortflow.nn import recomputing
from shortflow.nn.recomputing import recomputed
from shortflow.nn.sit import SiT

WIDTH, ROWS = 32, 64


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "LARGE", 0)


class Layer(nn.Module):
    """Linear(GELU(x)), and how often GELU was computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.calls = nn.Linear(WIDTH, WIDTH), 0

    def act(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.gelu(x, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        h, kept = recomputed(self.act, x)
        with kept:
            return self.linear(h)


def drawn() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def slopes(layer: nn.Module, x: Tensor, output: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output.square().sum(), (x, *layer.parameters()), retain_graph=True)


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "LARGE", 2**60)


@pytest.mark.parametrize("cast", [False, True])
def test_gradients_are_equal_to_the_bit(cast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Layer(), drawn()
    x = x.to(torch.bfloat16) if cast else x  # as layers before it leave it
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        output = layer(x)
    found = slopes(layer, x, output)
    assert layer.calls == 2
    assert all(map(torch.equal, found, slopes(layer, x, output)))  # a second time
    assert layer.calls == 3
    plainly(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        output = layer(x)
    assert all(map(torch.equal, found, slopes(layer, x, output)))
    assert layer.calls == 4


def test_pairs_keep_their_values_and_tangents(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[Any, ...]:
        layer, x = Layer(), drawn()
        value, tangent = push_forward(layer, (x,), (torch.ones_like(x),))
        return layer.calls, value, tangent, *slopes(layer, x, value)

    calls, *found = run()
    plainly(monkeypatch)
    assert calls == 1  # counted before the gradient
    assert all(map(torch.equal, found, run()[1:]))


def test_gradients_have_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def second() -> Tensor:
        layer, x = Layer(), drawn()
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), layer.linear.weight)[0]

    found = second()
    plainly(monkeypatch)
    torch.testing.assert_close(found, second(), rtol=0, atol=0)


@pytest.mark.parametrize("why", ["small", "no gradient", "transform", "offloading", "others"])
def test_a_plain_call_where_nothing_is_gained_or_others_decide(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Layer(), drawn()
    if why == "small":
        monkeypatch.setattr(recomputing, "LARGE", ROWS * WIDTH)
        slopes(layer, x, layer(x))
    elif why == "no gradient":
        with torch.no_grad():
            layer(x)
    elif why == "transform":
        torch.func.jvp(layer, (x,), (x,))
    elif why == "offloading":
        with save_on_cpu():
            output = layer(x)
        slopes(layer, x, output)
    else:
        with saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            output = layer(x)
        slopes(layer, x, output)
    assert layer.calls == 1


@pytest.mark.parametrize("differentiated", [True, False])
def test_nothing_is_left_behind(differentiated: bool) -> None:
    """What keeps its own result, as softmax and fused attention do, must not keep itself alive through the hooks."""
    layer, x = Layer(), drawn()
    gc.disable()
    try:
        h = x * 2
        seen = [weakref.ref(h)]
        result, kept = recomputed(layer.act, h)
        with kept:
            output = layer.linear(result).softmax(1)
            q = output[None, None]
            output = F.scaled_dot_product_attention(q, q, q)
        seen += [weakref.ref(each) for each in (q, output)]
        del h, result, q
        assert seen[0]() is not None  # kept in the place of the result
        if differentiated:
            output.sum().backward()
        del output, kept
        assert [each() for each in seen] == [None] * 3
    finally:
        gc.enable()


def network(checkpoint: bool = False) -> SiT:
    torch.manual_seed(0)
    net = SiT(shape=(4, 16, 16), patch=2, width=64, depth=3, heads=4, num_classes=3)
    net.checkpoint = checkpoint
    for weight in net.parameters():
        if weight.requires_grad and not weight.any():
            nn.init.normal_(weight, std=0.1)
    return net


def loss(net: SiT) -> Tensor:
    g = torch.Generator().manual_seed(2)
    x, t = torch.randn(8, 4, 16, 16, generator=g), torch.rand(8, generator=g)
    return net(x, t, t, torch.arange(8) % 3)[0].square().mean()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_transformer_has_the_same_gradient_in_less_memory(checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(checkpoint)
    found, memory = torch.autograd.grad(loss(net), list(net.parameters())), peak_memory(lambda: loss(net))
    plainly(monkeypatch)
    expected = torch.autograd.grad(loss(net), list(net.parameters()))
    assert all(map(torch.equal, found, expected))
    # Of 20 widths a token and block 4 of GELU and 2 of modulation are left out; a checkpoint leaves out almost all.
    share = memory / peak_memory(lambda: loss(net))
    assert share == 1 if checkpoint else 0.65 < share < 0.75
