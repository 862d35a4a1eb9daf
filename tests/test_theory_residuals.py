"""Residuals of flow maps: zero on exact ones, known on wrong ones; singular values; the guidance in a network's
weights."""

import pytest
import torch
from torch import Tensor, nn

from oracles import f64, gaussian, mixture
from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.paths import Cosine, Linear
from shortflow.sample import SAMPLERS, grid_times
from shortflow.theory import ExactNetwork, FiniteData, GaussianMixture, exact_flow
from shortflow.theory.residuals import (
    boundary_error,
    eulerian,
    lagrangian,
    lipschitz,
    realised_guidance,
    semigroup,
)

T, S, R = f64(0.9, 0.6, 0.4), f64(0.5, 0.4, 0.3), f64(0.2, 0.1, 0.25)
X = f64(0.3, -1.2, 0.8)[:, None]


@pytest.mark.parametrize("path", [Linear(), Cosine()])
@pytest.mark.parametrize("build", [gaussian, lambda path: mixture(path, 40)])
def test_the_exact_map_has_no_residuals(build, path) -> None:
    law = build(path)
    flow, v = exact_flow(law), law.velocity(X, T)
    assert semigroup(flow, X, T, S, R).max() < 1e-9
    assert eulerian(flow, X, T, R, v).max() < 1e-9
    assert lagrangian(flow, X, T, R, law.velocity).max() < 1e-9
    assert boundary_error(flow, X, T, v).max() < 1e-20


class Constant(nn.Module):
    """u = b whatever is asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return torch.full_like(x, self.value) + 0 * x


def test_a_consistent_map_that_is_wrong() -> None:
    """u = b is the exact map of another flow: a semigroup, but every other residual is ‖b − v‖²."""
    law, flow = gaussian(Linear()), FlowMap(Constant(0.4), Linear(), AverageVelocity())
    assert semigroup(flow, X, T, S, R).max() < 1e-20
    v = law.velocity(X, T)
    want = (0.4 - v[:, 0]).square()
    torch.testing.assert_close(boundary_error(flow, X, T, v), want)
    torch.testing.assert_close(eulerian(flow, X, T, R, v), want)
    end = X + (R - T)[:, None] * 0.4
    torch.testing.assert_close(lagrangian(flow, X, T, R, law.velocity), (0.4 - law.velocity(end, R)[:, 0]).square())


def test_singular_values_are_found() -> None:
    matrix = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64)
    found = lipschitz(lambda x: torch.einsum("bij,bj->bi", matrix, x), x, rounds=200)
    torch.testing.assert_close(found, torch.linalg.svdvals(matrix)[:, 0], rtol=1e-6, atol=0)
    fewer = lipschitz(lambda x: torch.einsum("bij,bj->bi", matrix, x), x, rounds=3)
    assert bool((fewer <= found + 1e-9).all())
    images = lipschitz(lambda x: 3 * x, torch.randn(2, 1, 3, 3))
    assert images.tolist() == pytest.approx([3, 3])


class Leaning(ExactNetwork):
    """The exact velocities with guidance: v_∅ + w (v_c − v_∅)."""

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        none = torch.full((len(x),), self.num_classes)
        free = super().forward(x, time, second, none)
        return free + 2.5 * (super().forward(x, time, second, label) - free)


def test_the_guidance_in_the_weights_is_found() -> None:
    law = GaussianMixture(
        path=Linear(), weights=f64(1, 1), means=f64(-1, 1)[:, None], stds=f64(0.3, 0.4), labels=torch.tensor([0, 1])
    )
    flow, label = FlowMap(Leaning(law), law.path, AverageVelocity()), torch.tensor([0, 1, 1])
    direction = law.velocity(X, T, label) - law.velocity(X, T)
    along, squares = realised_guidance(flow, X, T, label, direction)
    torch.testing.assert_close(along / squares, torch.full((3,), 2.5, dtype=torch.float64))
    with pytest.raises(ShortflowError, match="null class"):
        realised_guidance(exact_flow(gaussian(Linear())), X, T, label, direction)


def test_classes_of_components_are_laws_of_their_own() -> None:
    """As those of points are: class 1 has two of three components, and the label 2 means all of them."""
    arguments = {"means": f64(-1, 0.2, 1.5)[:, None], "stds": f64(0.2, 0.3, 0.4)}
    law = GaussianMixture(path=Cosine(), weights=f64(1, 2, 3), labels=torch.tensor([0, 1, 1]), **arguments)
    assert law.num_classes == 2
    parts = [torch.tensor([0]), torch.tensor([1, 2]), torch.arange(3)]
    for row, part in enumerate(parts):
        alone = GaussianMixture(
            path=Cosine(), weights=law.weights[part], means=law.means[part], stds=law.stds[part], steps=20
        )
        one = (X[row : row + 1], T[row : row + 1])
        label = torch.tensor([row])
        for what in ("velocity", "velocity_variance", "log_density", "score"):
            torch.testing.assert_close(getattr(law, what)(*one, label), getattr(alone, what)(*one))
        end = law.on(steps=20).flow_map(*one, R[row : row + 1], label)
        torch.testing.assert_close(end, alone.flow_map(*one, R[row : row + 1]))
    with pytest.raises(ShortflowError, match="component in every class"):
        GaussianMixture(path=Cosine(), weights=f64(1, 2, 3), labels=torch.tensor([0, 2, 2]), **arguments)
    with pytest.raises(ShortflowError, match="4 entries for 3 components"):
        GaussianMixture(path=Cosine(), weights=f64(1, 2, 3), labels=torch.tensor([0, 1, 1, 0]), **arguments)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("kind", ["gaussian", "mixture", "finite"])
def test_every_sampler_runs_on_exact_maps(name: str, kind: str) -> None:
    """Samplers that keep the law of an exact map give its mean and deviation; the others come near in many steps."""
    law = {
        "gaussian": gaussian(Linear()),
        "mixture": mixture(Linear(), 12),
        "finite": FiniteData(path=Linear(), points=f64(-1.0, 0.2, 1.5)[:, None], steps=12),
    }[kind]
    sampler, flow, n = SAMPLERS[name](), exact_flow(law), 1000
    steps = 4 if name not in ("euler", "heun") else 24
    times = grid_times(flow, steps)
    sampler.check(flow, times)
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(sampler.draws(steps), n, 1, generator=generator, dtype=torch.float64)
    found = sampler.run(flow, eps, times, None)
    data = law.sample(200_000, generator, torch.float64)
    slack = 0.05 if name == "euler" else 0.0
    assert abs(found.mean() - data.mean()) < 5 * data.std() / n**0.5 + slack
    assert abs(found.std() / data.std() - 1) < 5 / (2 * n) ** 0.5 + slack
