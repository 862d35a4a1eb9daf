"""The parts of a network, found once, are those that a walk finds."""

import torch
from torch import nn

from shortflow.modules import Parts


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2))
        self.tied = self.second[0]
        self.shared = nn.Linear(2, 3)
        self.shared.weight = self.first.weight
        self.register_buffer("b", torch.zeros(1))
        self.register_buffer("nothing", None)


def test_weights_and_buffers_are_found_once_and_in_order() -> None:
    network = Network()
    parts = Parts(network)
    for found, walked in ((parts.parameters, network.parameters()), (parts.buffers, network.buffers())):
        assert list(map(id, found)) == list(map(id, walked))
    assert len(parts.parameters) == 6
    assert len(parts.buffers) == 4


def test_what_is_exchanged_is_seen() -> None:
    network = Network()
    parts = Parts(network)
    network.first.bias = nn.Parameter(torch.ones(3))
    network.double()  # makes new buffers
    assert parts.parameters[1] is network.first.bias
    assert list(map(id, parts.buffers)) == list(map(id, network.buffers()))


def test_one_part_in_evaluation_mode_is_told() -> None:
    network = Network()
    parts = Parts(network)
    assert parts.training
    network.second[1].eval()
    assert not parts.training
