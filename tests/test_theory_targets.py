"""What training targets amount to on a law that is known exactly: orders, biases, variances and fixed points."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import column, derivative, f64, gaussian, log_slope
from shortflow.paths import Cosine, Linear, Path
from shortflow.theory import Gaussian

# --- a discrete target becomes the continuous one -------------------------------------------------------------------


@pytest.mark.parametrize("path", [Linear(), Cosine()])
def test_discrete_residual_converges_to_the_continuous_one_at_first_order(path: Path) -> None:
    """(t − r)/δ (u − T) = u − u_tgt + O(δ), with T = (X_{s,r}(x − δ v) − x)/(r − t) and u_tgt = v − (t − r) D_t u."""
    law, x, t, r = gaussian(path), column(1.1), f64(0.7), f64(0.2)

    def u(x: Tensor, t: Tensor) -> Tensor:
        return law.average_velocity(x, t, r) + 0.3 * torch.sin(2 * x + t[:, None]) * (1 - r)[:, None]

    v, one = law.velocity(x, t), torch.ones_like(t)
    continuous = u(x, t) - v + (t - r)[:, None] * derivative(u, (x, t), (v, one))
    assert continuous.abs().item() > 0.01
    sizes, errors = [0.02, 0.01, 0.005, 0.0025], []
    for step in sizes:
        middle = x - step * v
        end = middle + (r - (t - step))[:, None] * u(middle, t - step)
        target = (end - x) / (r - t)[:, None]
        errors.append((((t - r) / step)[:, None] * (u(x, t) - target) - continuous).abs().item())
    assert log_slope(sizes, errors) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("order", "heun"), [(2, False), (3, True)])
def test_local_error_of_the_first_step(order: int, heun: bool) -> None:
    """One Euler step of the marginal flow and an exact second one miss by O(δ²) in X, one Heun step by O(δ³)."""
    law, x, t, r = gaussian(Linear()), column(1.1), f64(0.7), f64(0.2)
    sizes, errors = [0.02, 0.01, 0.005, 0.0025], []
    for step in sizes:
        v = law.velocity(x, t)
        slope = 0.5 * (v + law.velocity(x - step * v, t - step)) if heun else v
        errors.append((law.flow_map(x - step * slope, t - step, r) - law.flow_map(x, t, r)).abs().item())
    assert log_slope(sizes, errors) == pytest.approx(order, abs=0.05)


# --- bias and variance of targets -----------------------------------------------------------------------------------


def quadrature(n: int = 20) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(z), z ~ N(0, 1), exact for polynomials of degree 2n − 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize(
    ("step", "variance", "bias"),
    [
        (0.4, 0.07345768, 0.00836964),
        (0.2, 0.0124878, 0.00020127),
        (0.1, 0.00243902, 7.4817e-6),
        (0.05, 0.00053827, 3.627e-7),
        (0.01, 1.951e-5, 5e-10),
    ],
)
def test_variance_and_bias_of_the_conditional_first_step(step: float, variance: float, bias: float) -> None:
    """c = .5, t = .7, r = .2, exact second step: T = X_{s,r}(x_t − δ v_c), by quadrature over x_t and v_c | x_t."""
    law, t, s, r = gaussian(Linear()), f64(0.7), f64(0.7 - step), f64(0.2)
    z, w = quadrature()
    m, std = law.marginal(column(0.0), t)
    x = m + std * z[:, None]
    n = len(z)
    v, spread = law.velocity(x, t.expand(n)), torch.sqrt(law.velocity_variance(x, t.expand(n)))
    velocities = v + spread[:, None] * z[None, :]
    ends = law.flow_map((x - step * velocities).reshape(-1, 1), s.expand(n * n), r.expand(n * n)).reshape(n, n)
    mean = (ends * w).sum(1)
    got_variance = (w * ((ends - mean[:, None]).square() * w).sum(1)).sum().item()
    got_bias = (w * (mean - law.flow_map(x, t.expand(n), r.expand(n))[:, 0]).square()).sum().item()
    assert got_variance == pytest.approx(variance, rel=3e-4)
    assert got_bias == pytest.approx(bias, rel=3e-4 if step > 0.02 else 0.1)


def test_continuous_target_variance_floor() -> None:
    """E tr(J Cov[v_c | x] Jᵀ), J = ∇X_{t,r} = S_r/S_t: W² c² τ² S_r²/S_t⁴ = .190363, the limit of the discrete one."""
    law, x, t, r = gaussian(Linear()), column(1.1), f64(0.7), f64(0.2)
    slope = derivative(lambda x: law.flow_map(x, t, r), (x,), (torch.ones_like(x),))
    floor = (slope[:, 0] ** 2 * law.velocity_variance(x, t)).item()
    assert floor == pytest.approx(0.190363, abs=5e-7)
    step = 1e-4
    ahead = derivative(lambda x: law.flow_map(x, t - step, r), (x,), (torch.ones_like(x),))
    discrete = ((step * ahead[:, 0]) ** 2 * law.velocity_variance(x, t) / step**2).item()
    assert discrete == pytest.approx(floor, rel=1e-3)


# --- exact fixed points ---------------------------------------------------------------------------------------------


def gain(law: Gaussian, steps: int) -> float:
    """Standard deviation of N uniform jumps from pure noise with the marginal velocity, as a share of the true one."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x = law.path.sigma(times[:1])[:, None]
    for i in range(steps):
        t, r = times[i : i + 1], times[i + 1 : i + 2]
        a, b = law.path.transfer(t, r)
        x = a[:, None] * x + b[:, None] * law.velocity(x, t)
    return x.item() / float(law.std)


def angles(law: Gaussian, times: Tensor) -> Tensor:
    """φ = atan2(σ, αc), from 0 at data to π/2 at noise."""
    return torch.atan2(law.path.sigma(times), law.path.alpha(times) * float(law.std))


@pytest.mark.parametrize(("steps", "want"), [(4, 0.7110), (16, 0.9201), (64, 0.9794)])
def test_consistency_training_shrinks_the_spread(steps: int, want: float) -> None:
    """c = .7, τ = .5, linear, uniform grid: Π cos Δφ.

    The fixed point regresses f_s(x_s) on x_t for the same data and noise, A_t = A_s Cov(x_s, x_t)/S_t², which is the
    chain of jumps to E[x_s | x_t].
    """
    law = Gaussian(path=Linear(noise_scale=0.5), std=0.7)
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    product = torch.cos(angles(law, times).diff()).prod().item()
    assert product == pytest.approx(want, abs=5e-5)
    _, s = law.marginal(torch.zeros(steps + 1, 1, dtype=torch.float64), times)
    a, c = 1.0, law.path
    for i in range(steps):
        now, then = times[i + 1 : i + 2], times[i : i + 1]
        covariance = c.alpha(now) * c.alpha(then) * 0.49 + c.sigma(now) * c.sigma(then)
        a = a * (covariance / s[i + 1] ** 2).item()
    assert a * s[-1].item() / 0.7 == pytest.approx(product, abs=1e-12)
    assert gain(law, steps) == pytest.approx(product, abs=1e-12)


def test_equal_angles_shrink_the_spread_by_pi_squared_over_eight_n() -> None:
    """cos(π/2N)^N = 1 − π²/(8N) + O(1/N²): the cosine path with c = τ has equal angles on a uniform grid."""
    law = Gaussian(path=Cosine(noise_scale=0.5), std=0.5)
    for steps in (4, 16, 64):
        assert gain(law, steps) == pytest.approx(math.cos(math.pi / 2 / steps) ** steps, abs=1e-12)
    assert (1 - gain(law, 512)) * 512 == pytest.approx(math.pi**2 / 8, rel=2e-3)


@pytest.mark.parametrize(
    ("steps", "want"),
    [(1, 0.0), (2, 0.4), (4, 0.6811), (8, 0.8296), (16, 0.9114), (32, 0.9547), (64, 0.9771), (128, 0.98849)],
)
def test_the_fixed_point_of_a_dyadic_ladder_is_its_finest_euler_map(steps: int, want: float) -> None:
    """c = .5, τ = 1, linear: self-consistent jumps on the grid 1/N reproduce N Euler steps, not the flow map."""
    assert gain(Gaussian(path=Linear(), std=0.5), steps) == pytest.approx(want, abs=6e-5)


def test_gain_of_the_128_step_ladder_for_standardised_latents() -> None:
    assert gain(Gaussian(path=Linear(noise_scale=0.5), std=0.7), 128) == pytest.approx(0.98966, abs=6e-6)
