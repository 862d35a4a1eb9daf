"""Invariances that hold for any data: clocks, units, and the root-mean-square norm of a tangent under copies."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from oracles import column, f64, finite, gaussian, mixture
from shortflow.draw import Draw
from shortflow.flowmap import (
    EDM,
    AverageVelocity,
    EDMSkip,
    FlowMap,
    Parameterization,
    SimpleEDM,
    StartAndGap,
    TrigFlow,
)
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding
from shortflow.targets import Tangent
from shortflow.theory import FiniteData, Gaussian, GaussianMixture, Law
from shortflow.typing import Times


def relabelled(path: Path) -> CustomPath:
    """The path run on the clock τ with t = ψ(τ) = τ(1 + τ)/2."""

    def psi(tau: torch.Tensor) -> torch.Tensor:
        return tau * (1 + tau) / 2

    return CustomPath(
        alpha_fn=lambda tau: path.alpha(psi(tau)),
        sigma_fn=lambda tau: path.sigma(psi(tau)),
        d_alpha_fn=lambda tau: path.d_alpha(psi(tau)) * (0.5 + tau),
        d_sigma_fn=lambda tau: path.d_sigma(psi(tau)) * (0.5 + tau),
    )


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("law", [gaussian, mixture, finite], ids=lambda law: law.__name__)
def test_relabelling_time_changes_the_velocity_but_no_jump(law, path: Path) -> None:
    steps = {} if law is gaussian else {"steps": 100}  # of an integrator of fourth order
    slow, fast = law(path, **steps), law(relabelled(path), **steps)
    x, tau, rho = column(-0.7, 0.2, 1.3), f64(0.9, 0.6, 0.7), f64(0.2, 0.1, 0.4)
    t, r = tau * (1 + tau) / 2, rho * (1 + rho) / 2
    torch.testing.assert_close(fast.flow_map(x, tau, rho), slow.flow_map(x, t, r), rtol=0, atol=1e-8)
    # the way, u·(r − t), is the same; the speed is not
    way = fast.average_velocity(x, tau, rho) * (rho - tau)[:, None]
    torch.testing.assert_close(way, slow.average_velocity(x, t, r) * (r - t)[:, None], rtol=0, atol=1e-8)
    torch.testing.assert_close(fast.velocity(x, tau), slow.velocity(x, t) * (0.5 + tau)[:, None], rtol=0, atol=1e-10)
    assert (fast.velocity(x, tau) - slow.velocity(x, t)).abs().min() > 1e-3


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_data_and_noise_in_another_unit_have_the_same_flow_in_that_unit(name: str, kind: type[Linear | Cosine]) -> None:
    """x → kx with the data and the noise scale times k: v → kv, X → kX, at equal times."""
    k, x, t, r = 3.0, column(-0.7, 0.2, 1.3), f64(0.9, 0.6, 0.7), f64(0.2, 0.1, 0.4)

    def law(unit: float) -> Law:
        path = kind(noise_scale=0.7 * unit)
        if name == "gaussian":
            return Gaussian(path=path, mean=0.3 * unit, std=0.5 * unit)
        points, weights = column(-1.0, 0.8) * unit, f64(0.3, 0.7)
        if name == "finite":
            return FiniteData(path=path, points=points, weights=weights, steps=40)
        return GaussianMixture(path=path, weights=weights, means=points, stds=f64(0.2, 0.5) * unit, steps=40)

    small, large = law(1.0), law(k)
    torch.testing.assert_close(large.velocity(k * x, t), k * small.velocity(x, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(large.flow_map(k * x, t, r), k * small.flow_map(x, t, r), rtol=0, atol=1e-6)
    torch.testing.assert_close(large.velocity_variance(k * x, t), k**2 * small.velocity_variance(x, t))


@pytest.mark.parametrize(
    ("form", "path"),
    [
        (AverageVelocity(normalize=True), lambda k: Linear(noise_scale=0.5 * k)),
        (TrigFlow(), lambda k: Cosine(noise_scale=0.5 * k)),
        (SimpleEDM(), lambda k: Cosine(noise_scale=0.7 * k)),
        (SimpleEDM(), lambda k: VarianceExploding(sigma_max=80.0 * k)),
        (EDMSkip(), lambda k: VarianceExploding(sigma_max=80.0 * k)),
        (EDM(), lambda k: VarianceExploding(sigma_max=80.0 * k)),
    ],
    ids=["average velocity", "trig", "simple EDM, cosine", "simple EDM", "EDM with skip", "EDM"],
)
def test_a_network_that_is_told_the_scale_of_the_data_does_not_know_their_unit(
    form: Parameterization, path: Callable[[float], Path]
) -> None:
    """The same weights with σ_data, σ and x times k: the jump and the velocity times k."""
    k, x = 3.0, torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
    t, r = f64(1.0, 0.7, 0.4, 0.1), f64(0.0, 0.3, 0.4, 0.05)
    small, large = (FlowMap(Curved(), path(unit), form, sigma_data=0.5 * unit) for unit in (1.0, k))
    torch.testing.assert_close(large(k * x, t, r), k * small(x, t, r), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(large.velocity(k * x, t), k * small.velocity(x, t), rtol=1e-12, atol=1e-12)


class Curved(torch.nn.Module):
    """The same smooth function of each coordinate."""

    num_classes, null_label = 0, None

    def forward(self, x, time, second=None, label=None):
        return torch.sin(x + time[:, None]) * (1 + second[:, None])


def drawn(x: torch.Tensor, eps: torch.Tensor) -> Draw:
    t, r = torch.full((len(x),), 0.8, dtype=x.dtype), torch.full((len(x),), 0.3, dtype=x.dtype)
    return Draw(
        x=x,
        eps=eps,
        x_t=Linear().interpolate(x, eps, t),
        times=Times(t, t, r),
        label=None,
        dropped=torch.zeros(len(x), dtype=torch.bool),
        coin=torch.ones(len(x)),
    )


def test_rms_normalised_tangents_do_not_depend_on_batch_or_dimension(generator: torch.Generator) -> None:
    flow = FlowMap(Curved(), Linear(), AverageVelocity(), StartAndGap())
    x, eps = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    rms = Tangent(normalize=0.1, norm="rms")
    want = rms(flow, drawn(x, eps)).value
    alone = torch.cat([rms(flow, drawn(x[i : i + 1], eps[i : i + 1])).value for i in range(4)])
    torch.testing.assert_close(alone, want, rtol=0, atol=1e-12)
    doubled = drawn(x.repeat(1, 3), eps.repeat(1, 3))
    torch.testing.assert_close(rms(flow, doubled).value, want.repeat(1, 3), rtol=0, atol=1e-12)
    # the plain norm sees three times the coordinates
    plain = replace(rms, norm="l2")
    assert (plain(flow, doubled).value - plain(flow, drawn(x, eps)).value.repeat(1, 3)).abs().max() > 1e-2
