import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shortflow.dropout import Dropout, shared_dropout
from shortflow.dual import push_forward
from shortflow.nn import MLP, compiling
from shortflow.nn.compiling import compile_network


def network() -> MLP:
    torch.manual_seed(0)
    net = MLP(shape=(4,), width=8, depth=1)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3)
    return net


def inputs(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=g), torch.rand(rows, generator=g), torch.randn(rows, 4, generator=g)


def stand_in(monkeypatch: pytest.MonkeyPatch, change: Any = None, error: str | None = None) -> list[int]:
    """A compiler that changes results or fails; returns the list of its calls."""
    calls: list[int] = []

    def compiler(run, **options):
        assert options == {"backend": "inductor", "dynamic": None, "fullgraph": True}

        def compiled(*args):
            calls.append(1)
            if error is not None:
                raise RuntimeError(error)
            result = run(*args)
            if change is None:
                return result
            return tuple(change(part) for part in result) if isinstance(result, tuple) else change(result)

        return compiled

    monkeypatch.setattr(compiling.torch, "compile", compiler)
    return calls


def test_a_compiled_network_is_called_like_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, v = inputs()
    plain = network()(x, t, t / 2)
    pair = push_forward(lambda x, t: network()(x, t, t / 2), (x, t), (v, torch.ones_like(t)))
    calls = stand_in(monkeypatch)
    net = network()
    compile_network(net)
    assert torch.equal(net(x, t, t / 2), plain)
    found = push_forward(lambda x, t: net(x, t, t / 2), (x, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(found, pair)
    assert len(calls) == 4  # two calls, each with its proof
    assert torch.equal(net(x, t, second=t / 2), plain)  # keywords go to the plain network
    assert len(calls) == 4


@pytest.mark.parametrize("dual", [False, True])
def test_a_network_whose_compiled_form_differs_goes_on_without_it(dual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, change=lambda part: 1.01 * part)
    x, t, v = inputs()
    net, plain = network(), network()(x, t, t / 2)
    compile_network(net)

    def run() -> Tensor:
        if not dual:
            return net(x, t, t / 2)
        return push_forward(lambda x, t: net(x, t, t / 2), (x, t), (v, torch.ones_like(t)))[0]

    with pytest.warns(UserWarning, match=r"its \w+ differs from the plain network's by 1\.0e-02.*train\.compile"):
        assert torch.equal(run(), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(), plain)
    assert len(calls) == 1


def steeper(part: Tensor) -> Tensor:
    """The same value with a gradient one per cent too large."""
    return part + 0.01 * (part - part.detach())


@pytest.mark.parametrize("dual", [False, True])
def test_a_wrong_gradient_is_noticed_behind_a_right_value(dual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, change=steeper)
    x, t, v = inputs()
    plain, net = network(), network()
    compile_network(net)

    def run(net: MLP) -> Tensor:
        if not dual:
            return net(x, t, t / 2)
        return push_forward(lambda x, t: net(x, t, t / 2), (x, t), (v, torch.ones_like(t)), graph=True)[1]

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(net), run(plain))  # where there is no gradient, there is none to be wrong
    with pytest.warns(UserWarning, match=r"its gradient of [\w.]+ differs from the plain network's by 1\.0e-02"):
        run(net).square().sum().backward()
    run(plain).square().sum().backward()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


class Doubled(torch.autograd.Function):
    """x ↦ x, with twice the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * gradient


def test_a_wrong_gradient_of_the_input_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a point that comes from an earlier pass; the gradients of the weights are right."""
    stand_in(monkeypatch)
    x, t, _ = inputs()
    net = network()
    compile_network(net)
    compiled: Any = net._compiled_call_impl
    right = compiled.run
    compiled.run = lambda values, *others: right([Doubled.apply(values[0]), *values[1:]], *others)
    net(x, t, t / 2)  # no gradient is asked for
    point = (x.clone().requires_grad_() * 2).tanh()
    with pytest.warns(UserWarning, match=r"its gradient of input 0 differs from the plain network's by 1\.0e\+00"):
        net(point, t, t / 2)


def test_the_proof_adds_nothing_to_gradients_and_takes_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers after the network take the masks that they would take."""
    stand_in(monkeypatch)
    x, t, _ = inputs()
    torch.manual_seed(0)
    plain, net = (MLP(shape=(4,), width=8, depth=1, dropout=0.5).train() for _ in range(2))
    net.load_state_dict(plain.state_dict())
    for weight in (*plain.parameters(), *net.parameters()):
        weight.data += 0.1
    compile_network(net)
    after, found = Dropout(0.5), []
    for each in (plain, net):
        with shared_dropout(3, len(x)):
            result = each(x, t, t / 2)
            found.append((result, after(torch.ones(len(x), 64))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(weight.grad is None for weight in net.parameters())


def test_a_network_that_does_not_compile_goes_on_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, error="no compiler found\nand a long story")
    x, t, _ = inputs()
    net, plain = network(), network()(x, t, t / 2)
    compile_network(net)
    with pytest.warns(UserWarning, match=r"RuntimeError: no compiler found\);"):
        assert torch.equal(net(x, t, t / 2), plain)


MANY = """
import torch
from test_nn_compiling import inputs, network
from shortflow.dual import push_forward
from shortflow.nn.compiling import compile_network

x, t, v = inputs()
for _ in range(4):
    net = network()
    compile_network(net, backend="aot_eager")
    net(x, t, t / 2)
    with torch.no_grad():
        net(x, t, t / 2)
    push_forward(lambda x, t: net(x, t, t / 2), (x, t), (v, torch.ones_like(t)))
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_each_of_many_networks_has_its_graphs() -> None:
    """A network, its average and frozen models: more graphs than the compiler allows one function."""
    done = subprocess.run(
        [sys.executable, "-c", MANY], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "recompile_limit" not in done.stderr
    assert int(done.stdout) == 12


REAL = """
import warnings
import torch
from test_nn_compiling import inputs, network
from shortflow.dual import push_forward
from shortflow.nn.compiling import compile_network

warnings.simplefilter("error")
plain, net = network(), network()
compile_network(net, backend="aot_eager")
for rows in (6, 5, 4, 7):
    x, t, v = inputs(rows)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(net(x, t, t / 2), plain(x, t, t / 2))
    pairs = [push_forward(lambda x, t: f(x, t, t / 2), (x, t), (v, torch.ones_like(t))) for f in (net, plain)]
    torch.testing.assert_close(*pairs)
    for f, pair in zip((net, plain), pairs):
        f.zero_grad()
        pair[0].square().sum().backward()
    for a, b in zip(net.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_few_graphs_serve_any_number_of_rows() -> None:
    """In a process of its own, because functions that check their types cannot be compiled."""
    done = subprocess.run(
        [sys.executable, "-c", REAL], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) <= 6
