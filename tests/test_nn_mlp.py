"""The residual network for points, against its formula; what all networks share is in test_nn_conditioning."""

import pytest
import torch

from shortflow.errors import ShortflowError
from shortflow.nn import MLP, parameter_count


def test_forward_is_its_formula():
    torch.manual_seed(0)
    network = MLP(shape=(2,), width=6, depth=2, num_classes=3).double()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    w = network.state_dict()
    x, label = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    time, second = torch.rand(2, 4, dtype=torch.float64)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(x):
        return x * torch.sigmoid(x)

    c = silu(network.t_embedder(time) + network.r_embedder(second) + w["y_embedder.embedding_table.weight"][label])
    h = linear("first", x)
    for block in ("blocks.0", "blocks.1"):
        h = h + linear(f"{block}.fc2", silu(linear(f"{block}.fc1", silu(h)) + linear(f"{block}.condition", c)))
    torch.testing.assert_close(network(x, time, second, label), linear("last", silu(h)), rtol=0, atol=1e-12)


def test_number_of_weights():
    d, width, depth = 3, 10, 2
    time = 256 * width + width + width * width + width
    expected = (d * width + width) + 2 * time + depth * 3 * (width * width + width) + (width * d + d)
    assert parameter_count(MLP(shape=(d,), width=width, depth=depth)) == expected


def test_it_learns_a_function_of_point_and_time():
    """Regression of x ↦ sin(2x + 4t): the error falls below 1 % of the variance, so times do get through."""
    torch.manual_seed(0)
    network = MLP(shape=(1,), width=48, depth=2, second_time=False)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        x, time = 2 * torch.rand(256, 1) - 1, torch.rand(256)
        loss = (network(x, time) - torch.sin(2 * x + 4 * time[:, None])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.005


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"shape": (1, 8, 8)}, r"shape \(d,\), got \(1, 8, 8\).*SiT"),
        ({"shape": (0,)}, r"got \(0,\)"),
        ({"shape": ()}, r"got \(\)"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 1, got -1"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"width": 0, "dropout": 2.0}, "width must be .*; dropout must be"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ShortflowError, match=message):
        MLP(**{"shape": (2,), **setting})
