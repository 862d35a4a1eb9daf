"""The dual pass through whole networks: value, derivative, their gradients, precision, masks, cost."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction, checkpoint
from torch.utils.flop_counter import FlopCounterMode

from shortflow.dropout import shared_dropout
from shortflow.dual import Dual, NoRule, dual, push_forward
from shortflow.errors import ShortflowError
from shortflow.nn import MLP, SiT, UNet
from shortflow.tangent import DualPass, ForwardMode

ROWS = 5
SHAPES = {"sit": (4, 8, 8), "unet": (3, 8, 8), "mlp": (7,)}


def network(kind: str, dropout: float = 0.0, **more: Any) -> nn.Module:
    """A network of each kind with random weights everywhere."""
    torch.manual_seed(0)
    shared = {"shape": SHAPES[kind], "num_classes": 3, "null_class": True, "dropout": dropout, **more}
    if kind == "sit":
        made: nn.Module = SiT(patch=2, width=32, depth=2, heads=4, qk_norm=True, **shared)
    elif kind == "unet":
        made = UNet(channels=8, multipliers=(1, 2), depth=1, attention=(1,), **shared)
    else:
        made = MLP(width=16, depth=2, **shared)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.15)
    return made


def point(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, ROWS, *SHAPES[kind], generator=g, dtype=torch.float64)
    t = 0.1 + 0.8 * torch.rand(ROWS, generator=g, dtype=torch.float64)
    return x.to(dtype), t.to(dtype), v.to(dtype)


def called(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    label = torch.tensor([0, 1, 2, 3, 0])
    return lambda x, t: net(x, t, 0.5 * t, label)


def gradients(loss: Tensor, net: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]


@pytest.mark.parametrize("kind", SHAPES)
def test_value_and_derivative_are_those_of_jvp(kind: str) -> None:
    net = network(kind).double()
    x, t, v = point(kind)
    expected = torch.func.jvp(called(net), (x, t), (v, torch.ones_like(t)))
    found = push_forward(called(net), (x, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found[0].requires_grad
    assert not found[1].requires_grad
    h = 1e-5
    plain = called(net)
    slope = (plain(x + h * v, t + h) - plain(x - h * v, t - h)) / (2 * h)
    torch.testing.assert_close(found[1], slope.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_value_has_the_gradient_of_a_plain_pass(kind: str) -> None:
    net = network(kind).double()
    x, t, v = point(kind)
    found = push_forward(called(net), (x, t), (v, torch.ones_like(t)))[0]
    plain = called(net)(x, t)
    assert torch.equal(found, plain)
    torch.testing.assert_close(gradients(found.square().sum(), net), gradients(plain.square().sum(), net))


@pytest.mark.parametrize("kind", SHAPES)
def test_the_derivative_has_its_gradient_where_it_is_wanted(kind: str) -> None:
    net = network(kind).double()
    x, t, v = point(kind)
    found = push_forward(called(net), (x, t), (v, torch.ones_like(t)), graph=True)[1]
    expected = torch.func.jvp(called(net), (x, t), (v, torch.ones_like(t)))[1]
    torch.testing.assert_close(
        gradients(found.square().sum(), net), gradients(expected.square().sum(), net), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("kind", SHAPES)
def test_single_precision_is_good_to_six_digits(kind: str) -> None:
    net = network(kind)
    exact = push_forward(called(net.double()), point(kind)[:2], (point(kind)[2], torch.ones(ROWS).double()))[1]
    x, t, v = point(kind, torch.float32)
    found = push_forward(called(net.float()), (x, t), (v, torch.ones_like(t)))[1]
    assert float((found.double() - exact).norm() / exact.norm()) < 2e-6


@pytest.mark.parametrize("kind", SHAPES)
def test_under_autocast_the_value_is_a_plain_pass_and_the_derivative_stays_in_single_precision(kind: str) -> None:
    net = network(kind)
    exact = push_forward(called(net.double()), point(kind)[:2], (point(kind)[2], torch.ones(ROWS).double()))[1]
    net, (x, t, v) = net.float(), point(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        plain = called(net)(x, t)
        (value,), rate = DualPass().keeping(lambda x, t: (called(net)(x, t),), x, t, v)
        low = push_forward(called(net), (x, t), (v, torch.ones_like(t)))[1]
        outside = DualPass()(called(net), x, t, v)
    assert torch.equal(value, plain)
    assert rate.dtype == torch.float32
    error, rough = (float((found.double() - exact).norm() / exact.norm()) for found in (rate, low))
    assert error < 0.02  # the values that the rules multiply by are in bf16
    assert error < rough
    torch.testing.assert_close(outside, ForwardMode()(called(net), x, t, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_value_and_derivative_see_the_same_masks(kind: str) -> None:
    net = network(kind, dropout=0.3).double().train()
    x, t, v = point(kind)

    def masked(x: Tensor, t: Tensor) -> Tensor:
        with shared_dropout(7, ROWS):
            return called(net)(x, t)

    expected = torch.func.jvp(masked, (x, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(push_forward(masked, (x, t), (v, torch.ones_like(t))), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "most"), [("sit", 2.2), ("unet", 2.2), ("mlp", 2.05)])
def test_the_cost_is_that_of_two_passes(kind: str, most: float) -> None:
    net = network(kind)
    x, t, v = point(kind, torch.float32)

    def count(f: Callable[[], Any]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            f()
        return counter.get_total_flops()

    plain = count(lambda: called(net)(x, t))
    both = count(lambda: push_forward(called(net), (x, t), (v, torch.ones_like(t))))
    stock = count(lambda: torch.func.jvp(called(net), (x, t), (v, torch.ones_like(t))))
    assert both / plain < most
    assert stock / plain > 2.8


def test_what_does_not_depend_on_the_inputs_has_derivative_zero() -> None:
    x = torch.randn(3, 2)
    value, rate = push_forward(lambda x: {"a": (2 * x, torch.ones(4)), "b": x > 0}, (x,), (x,))
    assert torch.equal(rate["a"][0], 2 * x)
    assert torch.equal(rate["a"][1], torch.zeros(4))
    assert torch.equal(value["b"], x > 0)
    assert not rate["b"].any()


def test_a_pair_is_two_leaves_of_a_tree() -> None:
    pair = dual(torch.ones(2), torch.zeros(2))
    leaves, spec = pytree.tree_flatten(([pair], 3))
    assert [type(leaf) for leaf in leaves] == [Tensor, Tensor, int]
    again = pytree.tree_unflatten(leaves, spec)[0][0]
    assert isinstance(again, Dual)
    assert again.policy == pair.policy
    assert pytree.tree_map(lambda leaf: leaf.shape if isinstance(leaf, Tensor) else leaf, pair) == ((2,), (2,))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@pytest.mark.parametrize(
    ("name", "through"),
    [
        ("CheckpointFunction", lambda f, x: checkpoint(f, x, use_reentrant=True)),
        ("Doubled", lambda f, x: f(Doubled.apply(x))),
        ("Doubled", lambda f, x: Doubled.apply(f(x))),
        ("Doubled", lambda f, x: torch.cat([f(x), Doubled.apply(x)])),
        ("Doubled", lambda f, x: torch.cat(tensors=[x, Doubled.apply(f(x))])),
    ],
)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_a_function_that_would_lose_gradients_is_refused_by_name(name: str, through: Any, graph: bool) -> None:
    """PyTorch asks no rule about an autograd.Function, and returns values that know nothing of the weights."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.randn(3, 2)

    def f(x: Tensor) -> Tensor:
        return through(second, first(x))

    with pytest.raises(NoRule, match=f"the autograd.Function {name}, which would lose gradients.*use_reentrant=False"):
        push_forward(f, (x,), (x,), graph=graph)
    with torch.no_grad():  # there is none to lose
        torch.testing.assert_close(push_forward(f, (x,), (x,))[1], torch.func.jvp(plain(f), (x,), (x,))[1])


def plain(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """f with what Doubled computes written out, which torch.func.jvp can differentiate."""

    def written(x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Doubled, "apply", lambda x: 2 * x)
            patch.setattr(CheckpointFunction, "apply", lambda f, preserve, *args: f(*args))
            return f(x)

    return written


def test_a_pair_offers_its_halves_to_whoever_hooks_into_gradients() -> None:
    """As FSDP2 does: what says that it requires a gradient is taken for a tensor, what has fields is searched."""
    weight = torch.ones(2, requires_grad=True)
    pair = dual(2 * weight, torch.zeros(2))
    assert pair.requires_grad is False
    assert [field.name for field in dataclasses.fields(pair)] == ["value", "tangent", "policy"]
    again = dataclasses.replace(pair, value=pair.value * 3)
    assert isinstance(again, Dual)
    assert torch.equal((again * 1).value, torch.full((2,), 6.0))
    (again * 1).value.sum().backward()
    assert torch.equal(weight.grad, torch.full((2,), 6.0))


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ShortflowError, match=r"tangent 0 has shape \(3,\)"):
        push_forward(lambda x: x, (torch.ones(2),), (torch.ones(3),))
    with pytest.raises(ShortflowError, match="dual of a dual"):
        push_forward(lambda x: push_forward(lambda z: z, (x,), (torch.ones(2),))[0], (torch.ones(2),), (torch.ones(2),))


COMPILED = """
import torch
from test_dual_networks import SHAPES, called, gradients, network, point
from shortflow.dual import push_forward

for kind in SHAPES:
    net, (x, t, v) = network(kind), point(kind, torch.float32)

    def both(x, t, v):
        return push_forward(called(net), (x, t), (v, torch.ones_like(t)))

    found, expected = torch.compile(both, fullgraph=True, backend="aot_eager")(x, t, v), both(x, t, v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    losses = [part[0].square().sum() for part in (found, expected)]
    torch.testing.assert_close(*(gradients(loss, net) for loss in losses), rtol=1e-3, atol=1e-4)
    print(kind)
"""


@pytest.mark.slow
def test_it_compiles_to_one_graph() -> None:
    """In a process of its own, because functions that check their types cannot be compiled."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == list(SHAPES), done.stderr[-3000:]
