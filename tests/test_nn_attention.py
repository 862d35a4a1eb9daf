"""Attention: both kernels against a loop, the choice between them, derivatives, normalised queries and keys."""

import math
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

from shortflow import fewtokens
from shortflow.errors import ShortflowError
from shortflow.nn import attention
from shortflow.nn.attention import Attention, attend, explicit_attention
from shortflow.transforms import transformed


def heads(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(2, 3, 7, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.fixture
def fused_calls(monkeypatch):
    """The number of calls of the fused kernel so far, as a list that grows; no tokens are few."""
    monkeypatch.setattr(fewtokens, "FEW", 0)
    calls, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def counted(*args):
        calls.append(1)
        return kernel(*args)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    return calls


def test_both_kernels_are_a_softmax_average_of_the_values(fused_calls):
    q, k, v = heads()
    expected = torch.empty_like(v)
    for b in range(2):
        for h in range(3):
            for i in range(7):
                logits = [float(q[b, h, i] @ k[b, h, j]) / math.sqrt(5) for j in range(7)]
                weights = [math.exp(logit - max(logits)) for logit in logits]
                expected[b, h, i] = sum(w / sum(weights) * v[b, h, j] for j, w in enumerate(weights))
    torch.testing.assert_close(explicit_attention(q, k, v), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(attend(q, k, v), expected, rtol=0, atol=1e-12)
    assert len(fused_calls) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_kernels_agree_in_value_and_gradient(dtype, tolerance):
    values = []
    for kernel in (attend, explicit_attention):
        q, k, v = (x.requires_grad_() for x in heads(dtype))
        out = kernel(q, k, v)
        values.append((out, *torch.autograd.grad(out.square().mean(), (q, k, v))))
    for fused, explicit in zip(*values, strict=True):
        torch.testing.assert_close(fused, explicit, rtol=tolerance, atol=tolerance)


def test_the_fused_kernel_has_no_forward_derivative_yet():
    """The reason for the explicit kernel. When this fails, PyTorch has learned it and the kernel may go."""
    q, k, v = heads(torch.float32)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda q: torch.nn.functional.scaled_dot_product_attention(q, k, v), (q,), (q,))


def test_kernel_is_explicit_exactly_inside_transforms(fused_calls):
    q, k, v = heads()
    outside = attend(q, k, v)
    assert len(fused_calls) == 1

    inside = [
        torch.func.jvp(lambda q: attend(q, k, v), (q,), (q,))[0],
        torch.func.vmap(attend)(q[:, None], k[:, None], v[:, None])[:, 0],
        torch.func.vmap(lambda q: torch.func.jvp(lambda p: attend(p, k, v), (q,), (q,))[0])(q[None])[0],
        torch.func.jvp(lambda q: torch.func.vmap(attend)(q[None], k[None], v[None])[0], (q,), (q,))[0],
    ]
    with forward_ad.dual_level():
        inside.append(forward_ad.unpack_dual(attend(forward_ad.make_dual(q, q), k, v)).primal)
    with torch.no_grad():
        inside.append(torch.func.jvp(lambda q: attend(q, k, v), (q,), (q,))[0])
    assert len(fused_calls) == 1
    for value in inside:
        torch.testing.assert_close(value, outside, rtol=0, atol=1e-12)

    attend(q, k, v)  # the transforms are over
    assert len(fused_calls) == 2


def test_kernel_is_explicit_where_pytorch_does_not_say(monkeypatch):
    assert not transformed()
    with monkeypatch.context() as patch:
        patch.delattr(torch._C, "_are_functorch_transforms_active")
        assert transformed()
    with monkeypatch.context() as patch:
        patch.delattr(forward_ad, "_current_level")
        assert transformed()
    assert not transformed()


COMPILED = """
import torch
from shortflow.nn import SiT

torch.manual_seed(0)
network = SiT(shape=(1, 4, 4), patch=2, width=16, depth=2, heads=2, qk_norm=True, modulation_norm=True).double()
for weight in network.parameters():
    torch.nn.init.normal_(weight, std=0.3)
x, time = torch.randn(3, 1, 4, 4).double(), torch.rand(3).double()

def step(x, time):
    function = lambda x, time: network(x, time, time / 2)
    return function(x, time), torch.func.jvp(function, (x, time), (2 * x, torch.ones_like(time)))[1]

expected = step(x, time)
graph, _ = torch._dynamo.export(step)(x, time)
fused = sum("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes)
compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(x, time)
print(fused, max(float((a - b).abs().max().detach()) for a, b in zip(compiled, expected)))
"""


@pytest.mark.slow
def test_compiled_network_chooses_as_eager_does():
    """One graph with both kernels: fused in the plain pass of both blocks, explicit in the derivative.

    In a process of its own, because functions that check their types cannot be compiled.
    """
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True)
    fused, error = result.stdout.split()
    assert int(fused) == 2
    assert float(error) < 1e-12


@pytest.mark.parametrize("qk_norm", [False, True])
def test_forward_derivatives_of_first_and_second_order(qk_norm):
    torch.manual_seed(0)
    layer = Attention(width=12, heads=3, qk_norm=qk_norm).double()
    x, dx = torch.randn(2, 2, 5, 12, dtype=torch.float64)

    def slope(x):
        return torch.func.jvp(layer, (x,), (dx,))[1]

    h = 1e-5
    first = (layer(x + h * dx) - layer(x - h * dx)) / (2 * h)
    torch.testing.assert_close(slope(x), first, rtol=0, atol=1e-8)
    second = (slope(x + h * dx) - slope(x - h * dx)) / (2 * h)
    torch.testing.assert_close(torch.func.jvp(slope, (x,), (dx,))[1], second, rtol=0, atol=1e-8)


def test_attention_does_not_know_the_order_of_tokens():
    layer = Attention(width=8, heads=2).double()
    x, order = torch.randn(3, 6, 8, dtype=torch.float64), torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-12)


def test_qk_norm_makes_the_result_free_of_the_scale_of_queries_and_keys():
    torch.manual_seed(0)
    plain, normed = (Attention(width=12, heads=3, qk_norm=qk_norm).double() for qk_norm in (False, True))
    x, changes = torch.randn(2, 5, 12, dtype=torch.float64), []
    for layer in (plain, normed):
        with torch.no_grad():
            layer.qkv.bias.zero_()
            before = layer(x)
            layer.qkv.weight[:24] *= 100
            changes.append((layer(x) - before).abs().max())
    assert changes[0] > 1e-2
    assert changes[1] < 1e-4  # ε = 1e-6 is all that is left


@pytest.mark.parametrize("number", [0, 5])
def test_heads_must_divide_the_width(number):
    with pytest.raises(ShortflowError, match=f"heads={number}, width=12"):
        Attention(width=12, heads=number)
