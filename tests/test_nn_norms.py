"""Normalisation layers: both forms against each other, and derivatives of every kind against central differences."""

import math

import pytest
import torch
from torch.nn import functional as F

from shortflow.nn import norms
from shortflow.nn.norms import GroupNorm, LayerNorm, PartNorm, RMSNorm

LAYERS = {
    "rms": (RMSNorm(6), (5, 6)),
    "part": (PartNorm(3), (5, 12)),
    "layer": (LayerNorm(6), (5, 6)),
    "group": (GroupNorm(16), (5, 16, 3, 2)),
}
layers = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=list(LAYERS))


def randomized(layer):
    torch.manual_seed(0)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    return layer.double()


@layers
def test_both_forms_compute_the_same_numbers(layer, shape, monkeypatch):
    layer, x = randomized(layer), 3 * torch.randn(shape, dtype=torch.float64) + 1
    outside = layer(x)
    monkeypatch.setattr(norms, "transformed", lambda: True)
    torch.testing.assert_close(layer(x), outside, rtol=0, atol=1e-12)


@layers
def test_the_gradient_of_a_forward_derivative_is_right(layer, shape):
    """For the library's own layer norm it is not: see the next test."""
    layer = randomized(layer)
    scale, x, dx, way = torch.randn(4, *shape, dtype=torch.float64)

    def loss(scale):
        return torch.func.jvp(lambda x: layer(scale * x), (x,), (dx,))[1].square().sum()

    found = (torch.autograd.grad(loss(scale.requires_grad_()), scale)[0] * way).sum()
    h = 1e-6
    with torch.no_grad():
        expected = (loss(scale + h * way) - loss(scale - h * way)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_kernel_of_layer_norm_has_wrong_second_derivatives_yet():
    """The reason for the written-out form. When this fails, PyTorch has mended it and the form may go."""
    scale, x, dx = torch.randn(3, 5, 6, dtype=torch.float64)

    def loss(scale, layer):
        return torch.func.jvp(lambda x: layer(scale * x), (x,), (dx,))[1].square().sum()

    scale.requires_grad_()
    kernel, ours = (
        torch.autograd.grad(loss(scale, layer), scale)[0] for layer in (lambda x: F.layer_norm(x, (6,)), LayerNorm(6))
    )
    assert (kernel - ours).norm() > 0.1 * ours.norm()


@layers
def test_means_are_taken_in_float32(layer, shape):
    layer = randomized(layer).bfloat16()
    x = (100 + torch.randn(shape)).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    exact = layer.double()(x.double())
    layer.bfloat16()
    for value in (layer(x), torch.func.jvp(layer, (x,), (x,))[0]):
        assert (value.double() - exact).norm() / exact.norm() < 0.01  # rounding of the result: 2⁻⁹


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (384, 32), (48, 12), (144, 24), (36, 9), (8, 2), (4, 1)])
def test_groups_are_at_most_32_and_hold_four_channels_or_more(channels, groups):
    layer = GroupNorm(channels)
    assert layer.groups == groups
    x = torch.randn(2, channels, 3, 3)
    torch.testing.assert_close(layer(x), F.group_norm(x, groups, eps=1e-6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_takes_every_layout(layout):
    layer, x = randomized(GroupNorm(16)), torch.randn(2, 16, 4, 3, dtype=torch.float64)
    laid = x.contiguous(memory_format=layout)
    value, slope = torch.func.jvp(layer, (laid,), (laid,))
    torch.testing.assert_close(value, layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, torch.func.jvp(layer, (x,), (x,))[1], rtol=0, atol=1e-12)


def test_parts_are_divided_by_their_own_root_mean_squares():
    x = torch.tensor([[3.0, -1.0, 1.0, 5.0, 0.0, 0.0, 0.0, 0.0, 1e-3, 1e-3, -1e-3, 1e-3]], dtype=torch.float64)
    root = math.sqrt(9 + 1e-6)
    expected = [3 / root, -1 / root, 1 / root, 5 / root, 0, 0, 0, 0, 0.5**0.5, 0.5**0.5, -(0.5**0.5), 0.5**0.5]
    torch.testing.assert_close(PartNorm(3)(x)[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-15)
    slope = torch.func.jvp(PartNorm(3), (torch.zeros_like(x),), (torch.ones_like(x),))[1]
    torch.testing.assert_close(slope, torch.full_like(x, 1000.0))


def test_rms_norm_divides_by_the_root_mean_square():
    norm = RMSNorm(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    x = torch.tensor([[3.0, -1.0, 1.0, 5.0]], dtype=torch.float64)  # mean square 9
    root = math.sqrt(9 + 1e-6)
    expected = torch.tensor([[3 / root, -2 / root, -1 / root, 2.5 / root]], dtype=torch.float64)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-15)
