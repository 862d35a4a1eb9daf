"""Flow maps to sample from, and the exact law of the samples, shared by the tests of the samplers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shortflow.flowmap import AverageVelocity, Conditioning, EDMSkip, FlowMap, LogSigma, StartAndGap
from shortflow.nn import MLP
from shortflow.paths import Linear, VarianceExploding
from shortflow.sample import Sampler, sample
from shortflow.theory import ExactNetwork, Gaussian, Law
from shortflow.typing import expand

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def exact(law: Law, ends: Any = "any", **options: Any) -> FlowMap:
    """The exact flow map of a law."""
    return FlowMap(ExactNetwork(law), law.path, AverageVelocity(), StartAndGap(), ends=ends, **options)


def start(b: int = 3, draws: int = 1, d: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(draws, b, d, generator=g, dtype=torch.float64)


def standard_deviation(flow: FlowMap, rule: Sampler, times: Sequence[float], centre: float = 0.0) -> float:
    """The exact standard deviation of the samples of a one-dimensional flow map that is linear about `centre`.

    A sampler of a linear map is linear in its noises, so unit noises measure its coefficients one by one.
    """
    draws = rule.draws(len(times) - 1)
    eps = torch.eye(draws, dtype=torch.float64)[:, :, None]
    return float((rule.run(flow, eps, times, None) - centre).square().sum().sqrt())


class Scaled(nn.Module):
    """The network of a consistency map that is wrong by a factor: X_{t,r} = factor(t, r) · exact."""

    def __init__(self, law: Gaussian, factor: Any) -> None:
        super().__init__()
        self.law, self.factor = law, factor

    def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor | None) -> Tensor:
        r = time - second
        end = expand(self.factor(time, r), x) * self.law.flow_map(x, time, r)
        return (x - end) / expand(second, x)


def wrong(factor: Any) -> FlowMap:
    """A wrong map for data N(0, ½²) on the linear path."""
    law = Gaussian(path=Linear(), mean=0.0, std=0.5)
    return FlowMap(Scaled(law, factor), law.path, AverageVelocity(), StartAndGap())


def exploding(network: nn.Module, ends: Any = "zero") -> FlowMap:
    span = (SIGMA_MIN / SIGMA_MAX, 1.0)
    return FlowMap(network, VarianceExploding(), EDMSkip(), LogSigma(), sigma_data=0.5, ends=ends, span=span)


def network(num_classes: int = 3, null_class: bool = True, dropout: float = 0.0, seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    net = MLP(shape=(2,), width=16, depth=1, num_classes=num_classes, null_class=null_class, dropout=dropout)
    nn.init.normal_(net.last.weight)
    return net


def mlp(ends: Any = "any", **options: Any) -> FlowMap:
    return FlowMap(network(**options), Linear(), AverageVelocity(), StartAndGap(), ends=ends)


def collect(*args: Any, **options: Any) -> Tensor:
    return torch.cat([batch.x for batch in sample(*args, **options)])


class Silent(nn.Module):
    """A network that must not be called."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, *_: Any) -> Tensor:
        raise AssertionError("the network was called")


def silent(
    ends: Any = "any",
    num_classes: int = 0,
    span: tuple[float, float] = (0.0, 1.0),
    conditioning: Conditioning | None = None,
) -> FlowMap:
    return FlowMap(Silent(num_classes), Linear(), AverageVelocity(), conditioning, ends=ends, span=span)
