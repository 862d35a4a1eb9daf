import math

import pytest
import torch
from torch import Tensor

from oracles import column, divergence, f64, finite, log_slope, mixture
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear
from shortflow.theory import FiniteData, GaussianMixture

# Points −1, .2, 1.5 with equal weights, x = .3, t = .6, τ = 1.
GOLDEN = {
    "linear": {
        "gamma": (0.217889351815, 0.402349336201, 0.379761311984),
        "data": 0.432222483402,
        "velocity": -0.220370805670,
        "variance": 2.504527783525,
        "slope": -0.003018522350,
        "flow_map": 0.275389339896,
    },
    "cosine": {
        "gamma": (0.238654256807, 0.424830712082, 0.336515031111),
        "data": 0.351084432276,
        "velocity": -0.339294308957,
        "variance": 3.353458136087,
        "slope": -0.409829147023,
        "flow_map": 0.274680609405,
    },
}
# The same points with noise (.5, −.3, .1) at times (.3, .8, .95).
BATCH = {
    "linear": {
        "x_t": (-0.55, -0.2, 0.17),
        "conditional": (1.5, -0.5, -1.4),
        "velocity": (1.202122608130, -0.441224743438, -0.076209219653),
        "own": (0.925531408530, 0.344060342663, 0.336781865484),
    },
    "cosine": {
        "x_t": (-0.664011274319, -0.223513556014, 0.217380376965),
        "conditional": (1.412921497063, -0.444404044379, -2.336606802982),
        "velocity": (0.712546844789, -0.326871617587, -0.366300198017),
        "own": (0.831377157497, 0.351172596996, 0.339400199848),
    },
}
PATHS = {"linear": Linear(), "cosine": Cosine()}
both = pytest.mark.parametrize("name", ["linear", "cosine"])


def close(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@both
def test_golden_numbers(name: str) -> None:
    law, x, t, golden = finite(PATHS[name]), column(0.3), f64(0.6), GOLDEN[name]
    got = {
        "data": law.posterior_data(x, t),
        "velocity": law.velocity(x, t),
        "variance": law.velocity_variance(x, t),
        "slope": divergence(lambda x: law.velocity(x, t), x),
    }
    for what, value in got.items():
        assert value.item() == pytest.approx(golden[what], abs=2e-12), what
    close(law.responsibilities(x, t)[0], f64(*golden["gamma"]), 2e-12)
    assert law.flow_map(x, t, f64(0.1)).item() == pytest.approx(golden["flow_map"], abs=1e-9)


@both
def test_golden_batch(name: str) -> None:
    """Each row at its own time; the responsibilities of the own point and their effective number."""
    path, golden = PATHS[name], BATCH[name]
    points, eps, t = column(-1.0, 0.2, 1.5), column(0.5, -0.3, 0.1), f64(0.3, 0.8, 0.95)
    law, x_t = finite(path), path.interpolate(points, eps, t)
    close(x_t[:, 0], f64(*golden["x_t"]), 2e-12)
    close(path.velocity(points, eps, t)[:, 0], f64(*golden["conditional"]), 2e-12)
    close(law.velocity(x_t, t)[:, 0], f64(*golden["velocity"]), 2e-12)
    gamma = law.responsibilities(x_t, t)
    close(gamma.diagonal(), f64(*golden["own"]), 2e-12)
    if name == "linear":
        close(1 / gamma.square().sum(1), f64(1.159886, 2.980230, 2.999761), 1e-6)


@both
def test_one_point_has_the_conditional_velocity_and_no_variance(name: str) -> None:
    path, data, eps, t = PATHS[name], column(0.7), column(-0.4), f64(0.6)
    law = FiniteData(path=path, points=data, steps=20)
    x_t = path.interpolate(data, eps, t)
    close(law.velocity(x_t, t), path.velocity(data, eps, t))
    close(law.flow_map(x_t, t, f64(0.25)), path.interpolate(data, eps, f64(0.25)), 1e-8)
    assert law.velocity_variance(x_t, t).item() == 0


@both
def test_points_are_the_limit_of_narrow_components(name: str) -> None:
    path, points, weights = PATHS[name], torch.randn(5, 3, dtype=torch.float64), f64(1, 2, 3, 4, 5)
    law = FiniteData(path=path, points=points, weights=weights)
    narrow = GaussianMixture(path=path, weights=weights, means=points, stds=torch.full_like(weights, 1e-7))
    x, t = torch.randn(4, 3, dtype=torch.float64), f64(0.3, 0.5, 0.8, 1.0)
    for what in ("velocity", "posterior_noise", "score", "velocity_variance", "log_density"):
        close(getattr(law, what)(x, t), getattr(narrow, what)(x, t), 1e-8)


def test_pure_noise_knows_nothing_of_the_data() -> None:
    """Linear, t = 1: γ = p, v = x − E x_0 and Cov[v_c | x] = Cov x_0."""
    law, x = finite(Linear()), column(0.3)
    close(law.responsibilities(x, f64(1.0))[0], f64(1, 1, 1) / 3)
    close(law.velocity(x, f64(1.0)), x - 0.7 / 3)
    close(law.velocity_variance(x, f64(1.0)), law.points.var(0, correction=0))


@both
@pytest.mark.parametrize("end", [0.0, 1e-7, 1e-4])
def test_the_flow_ends_in_a_point(name: str, end: float) -> None:
    """Memorisation: X_{1,r}(x) → α_r x_i + O(σ_r), and x_i itself at r = 0."""
    path, x = PATHS[name], column(-1.5, 0.05, 2.0)
    law = finite(path, 40)
    t, r = torch.ones(3, dtype=torch.float64), torch.full((3,), end, dtype=torch.float64)
    got, points = law.flow_map(x, t, r), law.points
    if end == 0:
        close(got, points, 1e-9)
    else:
        noise = (got - path.alpha(r)[:, None] * points) / path.sigma(r)[:, None]
        limit = (law.flow_map(x, t, t * 1e-3) - path.alpha(t * 1e-3)[:, None] * points) / path.sigma(t * 1e-3)[:, None]
        close(noise, limit, 1e-6)


def test_flow_map_runs_both_ways_through_the_floor() -> None:
    law, x = finite(Linear(), 40), column(0.3, -0.4)
    for end in (0.3, 1e-3, 1e-5):
        r, t = f64(end, end), f64(0.6, 0.9)
        close(law.flow_map(law.flow_map(x, t, r), r, t), x, 1e-6)
    below = f64(1e-5, 1e-6)
    close(law.flow_map(x, below, below), x, 1e-15)


def test_flow_from_a_point_at_time_zero_has_a_value() -> None:
    """Starting on a data point at t = 0 the noise is unknown; its mean is zero, so x follows α_t x_i at first."""
    law = finite(Linear(), 20)
    end = law.flow_map(column(0.2), f64(0.0), f64(0.01))
    close(end, column(0.2 * 0.99), 1e-6)


def test_variance_near_a_point_is_not_lost_to_rounding() -> None:
    """Two points at distance Δ: γ_0 γ_1 Δ² (W/σ)² with γ_1 = e^{-ℓ}/(1 + e^{-ℓ}), far below machine epsilon."""
    law = FiniteData(path=Linear(), points=column(-1.0, 1.5))
    t, x = f64(0.08, 0.05), column(-0.9, -0.93)
    far, near = (((x[:, 0] - (1 - t) * point) / t) ** 2 / 2 for point in (1.5, -1.0))
    ratio = torch.exp(near - far)
    got = law.velocity_variance(x, t)
    close(got.log(), (ratio / (1 + ratio) ** 2 * 2.5**2 / t**2).log())
    assert bool((got < 1e-50).all())


def test_classes_are_data_sets_of_their_own() -> None:
    points, labels = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    weights = f64(1, 2, 3, 4, 5, 6)
    law = FiniteData(path=Cosine(), points=points, weights=weights, labels=labels, steps=20)
    assert law.num_classes == 2
    x, t, label = torch.randn(3, 2, dtype=torch.float64), f64(0.5, 0.7, 0.9), torch.tensor([1, 0, 2])
    for row, members in ((0, labels == 1), (1, labels == 0), (2, labels >= 0)):
        alone = FiniteData(path=Cosine(), points=points[members], weights=weights[members], steps=20)
        at = (x[row : row + 1], t[row : row + 1])
        for what in ("velocity", "velocity_variance", "log_density"):
            close(getattr(law, what)(x, t, label)[row : row + 1], getattr(alone, what)(*at))
        end = law.flow_map(x, t, 0.5 * t, label)[row : row + 1]
        close(end, alone.flow_map(*at, 0.5 * at[1]))
    close(law.velocity(x, t), law.velocity(x, t, torch.full((3,), 2)))


def test_the_class_mixture_is_the_marginal() -> None:
    """v = Σ_y P(y | x) v(· | y): conditioning changes nothing on average."""
    points, labels = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    law = FiniteData(path=Linear(), points=points, labels=labels)
    x, t = torch.randn(3, 2, dtype=torch.float64), f64(0.5, 0.7, 0.9)
    gamma = law.responsibilities(x, t)
    want = sum(gamma[:, labels == y].sum(1, keepdim=True) * law.velocity(x, t, torch.full((3,), y)) for y in (0, 1))
    close(law.velocity(x, t), want)


def test_rotation_of_data_and_point_rotates_the_velocity() -> None:
    points, x, t = torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64), f64(0.4, 0.8)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turned = FiniteData(path=Cosine(), points=points @ rotation.T)
    close(turned.velocity(x @ rotation.T, t), FiniteData(path=Cosine(), points=points).velocity(x, t) @ rotation.T)


def test_order_of_points_and_shape_of_samples_do_not_matter() -> None:
    points, x, t = (
        torch.randn(5, 2, 3, 1, dtype=torch.float64),
        torch.randn(2, 2, 3, 1, dtype=torch.float64),
        f64(0.4, 0.8),
    )
    law, flat = FiniteData(path=Linear(), points=points), FiniteData(path=Linear(), points=points.flatten(1).flip(0))
    close(law.velocity(x, t).flatten(1), flat.velocity(x.flatten(1), t))
    close(law.velocity_variance(x, t), flat.velocity_variance(x.flatten(1), t))


def test_far_points_and_small_noise_do_not_overflow() -> None:
    """Logits of ±10⁸ in single precision."""
    law = FiniteData(path=Linear(), points=torch.tensor([[-3.0], [5.0]]))
    x, t = torch.tensor([[-2.9]]), torch.tensor([2e-4])
    torch.testing.assert_close(law.velocity(x, t), (x + 3) / t[:, None], rtol=1e-5, atol=0)


def test_samples_follow_the_weights(generator: torch.Generator) -> None:
    law, n = FiniteData(path=Linear(), points=column(-1, 2), weights=f64(1, 3)), 20_000
    share = (law.sample(n, generator) > 0).double().mean().item()
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / n)


# ------------------------------------------------------------------- a batch of B samples in place of the law, x apart


def velocities(batches: Tensor, x: Tensor, t: Tensor, weights: Tensor | None = None) -> Tensor:
    """The velocity at (x, t) of every batch of points on the linear path: one law with a class for each batch."""
    n, size, _ = batches.shape
    law = FiniteData(
        path=Linear(),
        points=batches.flatten(0, 1),
        weights=None if weights is None else weights.flatten(),
        labels=torch.arange(n).repeat_interleave(size),
    )
    return law.velocity(x.expand(n, -1), t.expand(n), torch.arange(n))[:, 0]


def test_a_batch_of_two_kinds_of_points_is_biased_by_1_over_b() -> None:
    """The number k of points of the second kind is binomial, so mean and variance over all batches are finite sums.

    With weights w_i = N(x; α x_i, σ²) of mean w̄: bias −E[w² (v_i − v)]/(B w̄²), variance E[w² (v_i − v)²]/(B w̄²).
    """
    path, points, x, t, p = Linear(), column(-1.0, 1.5), column(0.3), f64(0.6), 0.35
    law = FiniteData(path=path, points=points, weights=f64(1 - p, p))
    exact, shares = law.velocity(x, t).item(), f64(1 - p, p)
    alone = torch.cat([FiniteData(path=path, points=point[None]).velocity(x, t)[:, 0] for point in points])
    w = torch.exp(-((x[0] - path.alpha(t) * points[:, 0]) ** 2) / (2 * path.sigma(t) ** 2))
    w = w / (shares @ w)
    sizes, biases, variances = [64, 128, 256, 512], [], []
    for size in sizes:
        k = torch.arange(size + 1, dtype=torch.float64)
        chance = torch.distributions.Binomial(size, f64(p)).log_prob(k).exp()
        mixed = velocities(points.expand(size - 1, 2, 1), x, t, torch.stack([size - k, k], 1)[1:-1])
        v = torch.cat([alone[:1], mixed, alone[1:]])
        biases.append((chance @ (v - exact)).item())
        variances.append((chance @ (v - chance @ v) ** 2).item())
    assert log_slope(sizes, [abs(bias) for bias in biases]) == pytest.approx(-1, abs=0.02)
    assert log_slope(sizes, variances) == pytest.approx(-1, abs=0.02)
    assert biases[-1] * sizes[-1] == pytest.approx(-(shares @ (w**2 * (alone - exact))).item(), rel=0.02)
    assert variances[-1] * sizes[-1] == pytest.approx((shares @ (w**2 * (alone - exact) ** 2)).item(), rel=0.02)


def test_a_batch_from_a_continuous_law_has_bias_and_variance_of_order_1_over_b(generator: torch.Generator) -> None:
    """Monte Carlo. From v̂ − v goes its part linear in the batch, Σ w_i (v_i − v)/(B w̄), which has the mean 0: what is
    left has a spread of order 1/B, like its mean, so that the bias stands out of the noise."""
    path, x, t, draws = Linear(), column(0.3), f64(0.6), 400
    law = mixture(path)
    exact, density = law.velocity(x, t), law.log_density(x, t).exp()
    alpha, sigma = path.alpha(t), path.sigma(t)
    sizes, biases, variances = [16, 32, 64, 128, 256], [], []
    for size in sizes:
        points = law.sample(draws * size, generator, torch.float64).reshape(draws, size, 1)
        v = torch.cat([velocities(some, x, t) for some in points.split(20)])
        noise = (x - alpha * points[..., 0]) / sigma
        w = torch.exp(-noise.square() / 2) / (sigma * math.sqrt(2 * math.pi)) / density
        v_c = noise - points[..., 0]  # on the linear path
        linear = (w * (v_c - exact)).mean(1)
        biases.append((v - exact[0] - linear).mean().item())
        variances.append(v.var().item())
    assert log_slope(sizes, variances) == pytest.approx(-1, abs=0.15)
    assert log_slope(sizes, [abs(bias) for bias in biases]) == pytest.approx(-1, abs=0.15)
    assert len({math.copysign(1, bias) for bias in biases}) == 1


def test_bad_data_are_named() -> None:
    points, bad = column(0, 1, 2), ShortflowError
    with pytest.raises(bad, match="points is empty"):
        FiniteData(path=Linear(), points=torch.empty(0, 2))
    with pytest.raises(bad, match="weights must be positive"):
        FiniteData(path=Linear(), points=points, weights=f64(1, 0, 1))
    with pytest.raises(bad, match="a point in every class, got the classes"):
        FiniteData(path=Linear(), points=points, labels=torch.tensor([0, 2, 0]))
    with pytest.raises(bad, match="has no labels"):
        FiniteData(path=Linear(), points=points).velocity(points, f64(0.5, 0.5, 0.5), torch.tensor([0, 0, 0]))
    law = FiniteData(path=Linear(), points=points, labels=torch.tensor([0, 1, 0]))
    with pytest.raises(bad, match=r"labels must be 0\.\.1, or 2 for no class; got \[0, 3, 1\]"):
        law.velocity(points, f64(0.5, 0.5, 0.5), torch.tensor([0, 3, 1]))
    with pytest.raises(bad, match=r"points have the shape \(1,\), x has the shape \(1, 2\)"):
        law.velocity(f64(1, 2)[None], f64(0.5))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_blocks_and_classes_apart_change_nothing(
    ordered: bool, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large data are worked on in blocks of points and of rows, and class by class."""
    points, labels = torch.randn(40, 2, 3, dtype=torch.float64), torch.arange(40) % 3
    labels = labels.sort().values if ordered else labels
    x, t = torch.randn(9, 2, 3, dtype=torch.float64), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    label = torch.tensor([3, 0, 2, 1, 3, 0, 0, 2, 1]) if labelled else None
    weights = torch.rand(40, dtype=torch.float64) + 0.1

    def results() -> list[torch.Tensor]:
        law = FiniteData(path=Linear(), points=points, labels=labels, weights=weights, steps=3)
        drawn = law.sample_posterior(x, 0.02 * t, label, torch.Generator().manual_seed(0))  # one point has all weight
        rate = torch.func.jvp(lambda x: law.velocity(x, t, label), (x,), (x.flip(0),))[1]
        end = law.flow_map(x, t, 0.3 * t, label)
        return [
            law.velocity(x, t, label),
            law.velocity_variance(x, t, label),
            law.log_density(x, t, label),
            drawn,
            rate,
            end,
        ]

    whole = results()
    monkeypatch.setattr("shortflow.theory.finite.SMALL", 0)
    for block in (2**24, 100, 7):
        monkeypatch.setattr("shortflow.theory.finite.BLOCK", block)
        for found, want in zip(results(), whole, strict=True):
            close(found, want)
