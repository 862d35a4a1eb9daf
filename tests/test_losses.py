"""Golden numbers, closed forms and optima of metrics and weightings."""

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Literal

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from oracles import f64, log_slope
from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.losses import (
    Adaptive,
    ByTime,
    KernelMMD,
    Metric,
    Product,
    PseudoHuber,
    SquaredError,
    Unweighted,
    Variational,
    Weighting,
    grouped_mmd,
)
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from steps import close, draw_at


class Head(nn.Module):
    """A network that is a table of log-variances, one for each of the times 0, 1/4, …, 1."""

    def __init__(self, *values: float, shape: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.table, self.shape = nn.Parameter(f64(*values)), shape

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    def log_variance(self, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return self.table[torch.round(4 * time).long()].reshape(self.shape)


def flow(network: nn.Module | None = None, path: Path | None = None, sigma_data: float = 1.0) -> FlowMap:
    return FlowMap(network or Head(0.0), path or Linear(), AverageVelocity(), sigma_data=sigma_data)


def draw(t: Tensor, r: Tensor | None = None, s: Tensor | None = None, path: Path | None = None, d: int = 2) -> Draw:
    x = torch.zeros(len(t), d, dtype=torch.float64)
    return draw_at(path or Linear(), x, x, t, torch.zeros_like(t) if r is None else r, s)


# ------------------------------------------------------------------------------------------------------------ metrics


def test_squared_error_as_sum_and_mean() -> None:
    a, b = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).double(), torch.tensor([[[0.0, 2.0], [5.0, 1.0]]]).double()
    at = draw(f64(0.5))
    close(SquaredError(reduce="sum")(a, b, flow(), at), f64(14.0))
    close(SquaredError()(a, b, flow(), at), f64(3.5))


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-3, 1.0, 1e6])
def test_pseudo_huber_keeps_its_digits_near_zero(size: float) -> None:
    """√(‖e‖² + c²) − c in 60-digit arithmetic, c = .03 (the naive form returns 0), and its gradient."""
    with localcontext() as context:
        context.prec = 60
        c, e = Decimal("0.03"), Decimal(size)
        want = float((2 * e * e + c * c).sqrt() - c)
    error = torch.full((1, 2), size, dtype=torch.float64, requires_grad=True)
    got = PseudoHuber(c=0.03)(error, torch.zeros(1, 2).double(), flow(), draw(f64(0.5)))
    assert got.item() == pytest.approx(want, rel=1e-13, abs=1e-300)
    slope = torch.autograd.grad(got.sum(), error)[0]
    close(slope, error.detach() / math.sqrt(2 * size**2 + 0.03**2), 1e-10)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e6])
def test_pseudo_huber_without_a_constant_is_the_norm(size: float) -> None:
    """c = 0: ‖e‖ with the gradient e/‖e‖; and what small constants tend to."""
    error = (size * f64(3.0, -4.0)[None]).requires_grad_()
    at, zero = draw(f64(0.5)), torch.zeros(1, 2).double()
    got = PseudoHuber(c=0.0)(error, zero, flow(), at)
    close(got.detach() / size, f64(5.0), 1e-14)
    close(torch.autograd.grad(got.sum(), error)[0], f64(0.6, -0.8)[None], 1e-14)
    assert got.item() == pytest.approx(PseudoHuber(c=size * 1e-9)(error, zero, flow(), at).item(), rel=1e-8)


@pytest.mark.parametrize("c", [0.0, 1e-8, 0.03, None])
def test_pseudo_huber_has_gradient_zero_where_there_is_no_error(c: float | None) -> None:
    """On a row of zeros, and none of the others suffers from it."""
    error = torch.tensor([[0.0, 0.0], [0.3, 0.4]], requires_grad=True)
    got = PseudoHuber(c=c)(error, torch.zeros(2, 2), flow(), draw(f64(0.5, 0.5)))
    slope = torch.autograd.grad(got.sum(), error)[0]
    assert got[0].item() == 0
    assert slope[0].tolist() == [0, 0]
    assert slope[1].norm().item() == pytest.approx(
        0.5 / math.hypot(0.5, 0.00054 * 2**0.5 if c is None else c), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", [SquaredError(reduce="sum"), PseudoHuber(c=0.0), PseudoHuber(c=1.0)], ids=repr)
def test_errors_of_half_precision_are_computed_in_single(metric: Metric, dtype: torch.dtype) -> None:
    """Sums of squares that overflow float16, and 4096 equal terms that bfloat16 would stop adding up at 256."""
    a = torch.full((1, 4096), 9.0, dtype=dtype)
    got = metric(a, torch.ones_like(a), flow(), draw(f64(0.5)))
    assert got.dtype == torch.float32
    want = metric(a.double(), torch.ones_like(a).double(), flow(), draw(f64(0.5)))
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


def test_pseudo_huber_default_constant() -> None:
    """c = .00054 √D: .0299 for the 3072 coordinates of a CIFAR-10 image."""
    c = 0.00054 * math.sqrt(3072)
    assert c == pytest.approx(0.0299, abs=5e-5)
    error = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    error[0, 0, 0, 0] = 0.4
    got = PseudoHuber()(error, torch.zeros_like(error), flow(), draw(f64(0.5)))
    assert got.item() == pytest.approx(math.sqrt(0.16 + c * c) - c, rel=1e-12)


GOLDEN = 0.226211249657
A = torch.tensor([[[0.1, 0.2], [0.5, -0.3]]], dtype=torch.float64)
B = torch.tensor([[[0.0, 0.1], [0.4, 0.2]]], dtype=torch.float64)


def test_golden_mmd_is_what_the_default_gives() -> None:
    """w̃ = 2, D = 2, squared distances clamped at 1e-8. Here w̃ = 1/(t − r) with t − r = 1/2."""
    metric = KernelMMD(group=2)
    assert grouped_mmd(A, B, f64(2.0), metric.epsilon, False).item() == pytest.approx(GOLDEN, abs=1e-12)
    at = draw(f64(0.7, 0.7), f64(0.2, 0.2))
    close(metric(A[0], B[0], flow(), at), f64(GOLDEN, GOLDEN), 1e-11)


def kernel_by_hand(a: Tensor, b: Tensor, w: float, epsilon: float = 1e-4) -> Tensor:
    rows = [[math.exp(-w * max(math.dist(x, y), epsilon) / len(x)) for y in b.tolist()] for x in a.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def test_each_group_has_its_own_bandwidth_and_its_own_value() -> None:
    """Shape (G,) for any G, entry by entry: a bandwidth broadcast over groups is the published slip."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    w = f64(0.5, 2.0, 7.0)
    got = grouped_mmd(a, b, w, 1e-4, False)
    assert got.shape == (3,)
    for g in range(3):
        k = [kernel_by_hand(x[g], y[g], w[g].item()) for x, y in ((a, a), (b, b), (a, b))]
        assert got[g].item() == pytest.approx((k[0].mean() + k[1].mean() - 2 * k[2].mean()).item(), abs=1e-13)
        close(got[g : g + 1], grouped_mmd(a[g : g + 1], b[g : g + 1], w[g : g + 1], 1e-4, False))
    gap = (1 / w).repeat_interleave(4)
    rows = KernelMMD(group=4)(
        a.reshape(12, 5), b.reshape(12, 5), flow(), draw(0.1 + gap / 4, torch.full_like(gap, 0.1))
    )
    close(rows, grouped_mmd(a, b, 4 * w, 1e-4, False).repeat_interleave(4), 1e-12)


def test_unbiased_form_leaves_out_the_diagonals() -> None:
    """L_V = (1 − 1/M)(Ū_aa + Ū_bb) + 2 k_0/M − 2C with the kernel k_0 at distance ε: damped by 3/4 at M = 4."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    w, m, epsilon = f64(1.0, 3.0), 4, 1e-4
    v, u = (grouped_mmd(a, b, w, epsilon, unbiased) for unbiased in (False, True))
    for g in range(2):
        cross = kernel_by_hand(a[g], b[g], w[g].item()).mean().item()
        k0 = math.exp(-w[g].item() * epsilon / 3)
        assert v[g].item() == pytest.approx((1 - 1 / m) * (u[g].item() + 2 * cross) + 2 * k0 / m - 2 * cross, abs=1e-13)


def test_unbiased_form_has_mean_zero_for_equal_laws() -> None:
    """And the biased one 2 (k_0 − E k)/M above it. 5σ bands."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4000, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    w = torch.ones(4000, dtype=torch.float64)
    v, u = (grouped_mmd(a, b, w, 1e-4, unbiased) for unbiased in (False, True))
    assert abs(u.mean().item()) < 5 * u.std().item() / math.sqrt(4000)
    far = torch.exp(-(a[:, 0] - b[:, 0]).norm(dim=1) / 2).mean().item()
    assert v.mean().item() == pytest.approx((1 - far) / 2, abs=5 * v.std().item() / math.sqrt(4000))


def test_single_particle_mmd_is_the_kernel_distance() -> None:
    """M = 1: 2 (k_0 − k(a, b)), k_0 = 1 up to ε."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t, r = torch.linspace(0.5, 1, 6).double(), torch.linspace(0, 0.4, 6).double()
    got = KernelMMD(group=1)(a, b, flow(), draw(t, r))
    want = 2 * (1 - torch.exp(-(a - b).norm(dim=1) / (3 * (t - r))))
    close(got, want, 2e-3)
    close(KernelMMD(group=1, epsilon=1e-9)(a, b, flow(), draw(t, r)), want, 1e-7)


def test_single_particles_are_pulled_straight_to_the_target() -> None:
    """M = 1: the gradient is 2 k w/D · e/‖e‖, that of a pseudo-l1 distance."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 1, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    w = f64(0.5, 1.0, 2.0, 4.0, 8.0)
    a.requires_grad_()
    slope = torch.autograd.grad(grouped_mmd(a, b, w, 1e-4, False).sum(), a)[0][:, 0]
    e = (a - b).detach()[:, 0]
    distance = e.norm(dim=1, keepdim=True)
    close(slope, 2 * torch.exp(-w[:, None] * distance / 3) * w[:, None] / 3 * e / distance)


@pytest.mark.parametrize("kernel", ["laplace", "energy", "linear"])
def test_diagonals_damp_the_gradient_between_particles(kernel: Literal["laplace", "energy", "linear"]) -> None:
    """∂V = (1 − 1/M) ∂U_aa − 2 ∂C: the V-statistic pushes the particles apart with 3/4 of the force at M = 4."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    a.requires_grad_()
    w, m = f64(1.0, 3.0), 4

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value.sum(), a)[0]

    v, u = (slope(grouped_mmd(a, b, w, 1e-4, unbiased, kernel)) for unbiased in (False, True))
    # U_aa by hand: pairs i ≠ j, far enough apart that ε plays no part
    i, j = torch.triu_indices(m, m, 1)
    square = (a[:, i] - a[:, j]).square().sum(-1)
    pairs = {"laplace": torch.exp(-w[:, None] * square.sqrt() / 3), "energy": -square.sqrt(), "linear": -square}[kernel]
    inner = slope(2 * pairs.sum(1) / (m * (m - 1)))
    close(v, u - inner / m)
    close(v - (1 - 1 / m) * inner, u - inner)  # what pulls towards the targets is the same in both


def test_linear_kernel_matches_means_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    w = torch.ones(3).double()
    value = grouped_mmd(a, b, w, 1e-4, False, "linear")
    close(value, 2 * (a.mean(1) - b.mean(1)).square().sum(1))
    spread = a.mean(1, keepdim=True) + 3 * (a - a.mean(1, keepdim=True))
    close(grouped_mmd(spread, b, w, 1e-4, False, "linear"), value)
    one = KernelMMD(group=1, kernel="linear")(a[0], b[0], flow(), draw(torch.full((4,), 0.5).double()))
    close(one, 2 * SquaredError(reduce="sum")(a[0], b[0], flow(), draw(torch.full((4,), 0.5).double())))


def test_energy_kernel_is_the_energy_distance_and_the_limit_of_a_wide_laplace() -> None:
    """2 E‖a − b‖ − E‖a − a'‖ − E‖b − b'‖; and MMD²_laplace = (w/D) energy + O(w²)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def mean(x: Tensor, y: Tensor) -> float:
        return sum(math.dist(p, q) for p in x[0].tolist() for q in y[0].tolist()) / 16

    got = grouped_mmd(a, b, f64(1.0), 1e-9, False, "energy").item()
    assert got == pytest.approx(2 * mean(a, b) - mean(a, a) - mean(b, b), abs=1e-8)
    widths = [1e-2, 3e-3, 1e-3]
    errors = [abs(grouped_mmd(a, b, f64(w), 1e-9, False).item() * 3 / w - got) for w in widths]
    assert log_slope(widths, errors) == pytest.approx(1, abs=0.02)


def test_bandwidth_of_one_for_outputs_that_are_data() -> None:
    """Golden number with w̃ = 2 from b = 1/2; the same points at b = 1/4 and in units of one."""
    at = draw(f64(0.7, 0.7), f64(0.45, 0.45))
    close(KernelMMD(group=2)(A[0], B[0], flow(), at), grouped_mmd(A, B, f64(4.0), 1e-4, False).expand(2))
    unit = KernelMMD(group=2, bandwidth="unit")(A[0], B[0], flow(), at)
    close(unit, grouped_mmd(A, B, f64(1.0), 1e-4, False).expand(2))


def test_mmd_of_equal_points_is_zero_with_a_finite_gradient() -> None:
    """Any coupling is allowed: a permutation of the predictions is a perfect target."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    loss = grouped_mmd(a, a.detach()[:, [2, 0, 3, 1]], f64(1.0), 1e-4, False)
    assert abs(loss.item()) < 1e-15
    slope = torch.autograd.grad(loss.sum(), a)[0]
    close(slope, torch.zeros_like(slope), 1e-13)


def test_mmd_is_computed_in_float32_for_half_precision_states() -> None:
    at = draw(f64(0.7, 0.7), f64(0.2, 0.2))
    got = KernelMMD(group=2)(A[0].bfloat16(), B[0].bfloat16(), flow(), at)
    assert got.dtype == torch.float32
    want = grouped_mmd(A.bfloat16().double(), B.bfloat16().double(), f64(2.0), 1e-4, False)
    assert got[0].item() == pytest.approx(want.item(), abs=1e-6)


def test_batches_that_do_not_split_into_groups_are_refused() -> None:
    with pytest.raises(ShortflowError, match="a batch of 2 rows cannot be split into groups of 4"):
        KernelMMD(group=4)(A[0], B[0], flow(), draw(f64(0.7, 0.7), f64(0.2, 0.2)))


# ---------------------------------------------------------------------------------------------------------- weightings


def test_plain_weightings() -> None:
    """No weight, adaptive power 0 and log-variance 0 are the plain error; adaptive power ½ is the root."""
    error, at = f64(0.5, 2.0, 0.0), draw(f64(0.25, 0.5, 0.75))
    for weighting in (Unweighted(), Adaptive(power=0.0), Product(parts=()), Product(parts=(Adaptive(power=0.0),))):
        close(weighting(error, flow(), at), error, 0)
    close(Variational()(error, flow(Head(0.0, 0.0, 0.0, 0.0, 0.0)), at), error, 0)
    close(Adaptive(power=0.5, c=1e-3)(error, flow(), at), error / (error + 1e-3).sqrt())


def test_adaptive_value_and_gradient() -> None:
    """Power 1: the value L/(L + c) and the gradient of log(L + c)."""
    error, c = f64(1e-6, 1e-3, 0.5, 40.0).requires_grad_(), 1e-3
    loss = Adaptive(power=1.0, c=c)(error, flow(), draw(f64(0.1, 0.2, 0.3, 0.4)))
    close(loss.detach(), (error / (error + c)).detach())
    got = torch.autograd.grad(loss.sum(), error)[0]
    want = torch.autograd.grad(torch.log(error + c).sum(), error)[0]
    close(got, want)
    half = torch.autograd.grad(Adaptive(power=0.75, c=c)(error, flow(), draw(f64(0.1, 0.2, 0.3, 0.4))).sum(), error)[0]
    close(half, (error.detach() + c) ** -0.75)


def test_variational_optimum_is_the_log_of_the_mean_error() -> None:
    """Minimised by gradient: ℓ*(t) = log E[L | t], where the loss is 1 + ℓ* and every t has the weighted error 1."""
    network = Head(0.0, 0.0, 0.0, 0.0, 0.0)
    t = f64(0.25, 0.25, 0.5, 0.5, 0.75, 0.75)
    error, at = f64(0.1, 0.3, 2.0, 4.0, 50.0, 70.0), draw(f64(0.25, 0.25, 0.5, 0.5, 0.75, 0.75))
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = Variational()(error, flow(network), at).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    want = f64(0.2, 3.0, 60.0).log()
    close(network.table.detach()[1:4], want, 1e-6)
    loss = Variational()(error, flow(network), at).detach()
    close(loss.reshape(3, 2).mean(1), 1 + want, 1e-6)
    weighted = torch.exp(-network.log_variance(t).detach()) * error
    close(weighted.reshape(3, 2).mean(1), torch.ones(3).double(), 1e-6)


def test_variational_gradient_differs_by_time() -> None:
    """A (b, 1) log-variance times a (b,) error would give every ℓ the same gradient."""
    network = Head(0.0, 0.3, 0.3, 0.3, 0.3)
    loss = Variational()(f64(1.0, 5.0, 9.0), flow(network), draw(f64(0.25, 0.5, 0.75)))
    got = torch.autograd.grad(loss.sum(), network.table)[0]
    close(got, f64(0.0, *(1 - math.exp(-0.3) * error for error in (1.0, 5.0, 9.0)), 0.0))


def test_log_variance_of_shape_b_1_is_refused() -> None:
    network = Head(0.0, 0.3, 0.3, 0.3, 0.3, shape=(-1, 1))
    with pytest.raises(ShortflowError, match=r"one number a row, \(3,\), got \(3, 1\)"):
        Variational()(f64(1.0, 5.0, 9.0), flow(network), draw(f64(0.25, 0.5, 0.75)))


def test_a_network_without_the_head_is_refused() -> None:
    with pytest.raises(IncompatibleParts, match="build it with log_variance=True"):
        Variational()(f64(1.0), flow(nn.Identity()), draw(f64(0.25)))


def test_weights_of_steps_and_gaps() -> None:
    error, path = f64(1.0, 2.0), VarianceExploding(sigma_max=80.0)
    at = draw(f64(0.5, 1.0), f64(0.25, 0.0), f64(0.375, 0.75), path)
    close(ByTime(rule="inverse-step")(error, flow(path=path), at), error / (80 * f64(0.125, 0.25)))
    close(ByTime(rule="inverse-gap")(error, flow(path=path), at), error / f64(0.0625, 1.0))


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("path", [Linear(noise_scale=0.5), Cosine(noise_scale=0.5)])
def test_imm_weight(path: Path, power: float) -> None:
    """½ sigmoid(b − λ)(−λ') α^a/(α² + σ²), σ in units of σ_d, with λ' from central differences of log(α²/σ²)."""
    t, h, unit = torch.linspace(0.05, 0.98, 9).double(), 1e-6, replace(path, noise_scale=1.0)

    def log_snr(t: Tensor) -> Tensor:
        return torch.log(unit.alpha(t) ** 2 / unit.sigma(t) ** 2)

    slope = (log_snr(t + h) - log_snr(t - h)) / (2 * h)
    alpha, sigma = unit.alpha(t), unit.sigma(t)
    want = 0.5 / (1 + torch.exp(log_snr(t) - 4.0)) * -slope * alpha**power / (alpha**2 + sigma**2)
    got = ByTime(rule="imm", bias=4.0, power=power)(torch.ones(9).double(), flow(path=path, sigma_data=0.5), draw(t))
    close(got, want, 1e-7)
    if isinstance(path, Linear):
        close(-slope, 2 / (t * (1 - t)), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_imm_weight_is_finite_at_both_ends(dtype: torch.dtype) -> None:
    """At t = 1, α = 0: 0 · ∞ on the linear path, and a cosine just below zero in single precision."""
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    for path in (Linear(), Cosine()):
        got = ByTime(rule="imm", bias=4.0, power=2.0).imm(t, flow(path=path))
        assert torch.isfinite(got).all()
        assert got[1].item() == pytest.approx(0.0, abs=1e-6)
    assert ByTime(rule="imm", power=1.0).imm(t, flow())[1].item() == pytest.approx(1.0, rel=1e-6)


def test_products_apply_their_parts_in_order() -> None:
    network, error = Head(0.0, 0.2, -0.4, 0.1, 0.0), f64(1.0, 5.0, 9.0)
    at = draw(f64(0.25, 0.5, 0.75))
    parts = (Adaptive(power=1.0, c=1e-3), Variational())
    weighting, log_variance = Product(parts=parts), f64(0.2, -0.4, 0.1)
    assert weighting.learned
    assert not Product(parts=(Adaptive(),)).learned
    close(
        weighting(error, flow(network), at).detach(), torch.exp(-log_variance) * error / (error + 1e-3) + log_variance
    )


@pytest.mark.parametrize("first", [Variational(), Product(parts=(Adaptive(), Variational()))])
def test_a_variational_weight_must_come_last(first: Weighting) -> None:
    with pytest.raises(IncompatibleParts, match="must be the last part"):
        Product(parts=(first, Adaptive()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PseudoHuber(c=-1.0), "c must be a finite number, not negative, or null, got -1"),
        (lambda: PseudoHuber(c=math.inf), "c must be a finite number, not negative, or null, got inf"),
        (lambda: KernelMMD(kernel="gauss"), "(?s)laplace.*energy.*linear"),  # type: ignore
        (lambda: KernelMMD(bandwidth="wide"), "(?s)output.*unit"),  # type: ignore
        (lambda: KernelMMD(group=0), "group must be at least 1, got 0"),
        (lambda: KernelMMD(group=1, unbiased=True), "group must be at least 2, got 1"),
        (lambda: KernelMMD(epsilon=0.0), "epsilon must be positive, got 0"),
        (lambda: Adaptive(c=0.0), "c must be positive, got 0"),
        (lambda: Adaptive(power=-1.0), "power must not be negative, got -1"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises((ShortflowError, TypeCheckError), match=message):
        build()
