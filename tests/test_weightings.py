"""Weights of the times by their formulas, what they need of the times, and losses in half precision."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from oracles import f64, log_slope
from shortflow.draw import Draw
from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, Denoiser, EDMSkip, FlowMap, Parameterization, SimpleEDM
from shortflow.losses import Adaptive, Boundary, ByTime, Product, SquaredError, Unweighted, Variational, Weighting
from shortflow.losses.weightings import Rule
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import Gaussian
from steps import close, draw_at

RULES: tuple[Rule, ...] = get_args(Rule)
PATHS: list[Path] = [Linear(), Cosine(noise_scale=0.5), VarianceExploding()]


def flow(
    path: Path | None = None, parameterization: Parameterization | None = None, sigma_data: float = 0.5
) -> FlowMap:
    return FlowMap(nn.Identity(), path or Linear(), parameterization or AverageVelocity(), sigma_data=sigma_data)


def draw(t: Tensor, r: Tensor | None = None, s: Tensor | None = None, path: Path | None = None) -> Draw:
    x = torch.zeros(len(t), 2, dtype=t.dtype)
    return draw_at(path or Linear(), x, x, t, torch.zeros_like(t) if r is None else r, s)


# ----------------------------------------------------------------------------------------------------- weights of times


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_weights_of_steps_are_in_units_of_the_noise(path: Path) -> None:
    t, s = f64(0.5, 1.0, 0.02), f64(0.375, 0.75, 0.0)
    at, error = draw(t, s=s, path=path), f64(1.0, 2.0, 3.0)
    step = path.sigma(t) - path.sigma(s)
    close(ByTime(rule="inverse-step")(error, flow(path), at), error / step)
    close(ByTime(rule="inverse-root-step")(error, flow(path), at), error / step.sqrt())
    close(ByTime(rule="inverse-variance")(error, flow(path), at), error / path.sigma(t) ** 2)


@pytest.mark.parametrize("parameterization", [AverageVelocity(scale=2.0), SimpleEDM(), Denoiser()], ids=repr)
def test_the_weight_of_the_output_turns_a_state_error_into_one_of_the_output(
    parameterization: Parameterization,
) -> None:
    t, r = f64(0.5, 1.0, 0.3), f64(0.2, 0.0, 0.25)
    model, at = flow(Cosine(), parameterization), draw(t, r, path=Cosine())
    generator = torch.Generator().manual_seed(0)
    x, mine, theirs = torch.randn(3, 3, 2, generator=generator, dtype=torch.float64)
    states = [model.move(x, output, t, r) for output in (mine, theirs)]
    state_error = SquaredError(space="state")(*states, model, at)
    output_error = SquaredError()(mine, theirs, model, at)
    close(ByTime(rule="inverse-output-square")(state_error, model, at), output_error, 1e-10)
    close(ByTime(rule="inverse-output")(state_error.sqrt(), model, at), output_error.sqrt(), 1e-10)


def test_the_weight_of_edm() -> None:
    """(σ² + σ_d²)/(σ σ_d)², which is 1/c_out² for jumps to the data; golden: 5.5625 at σ = .8, σ_d = .5."""
    path = VarianceExploding()
    sigma = f64(0.002, 0.8, 3.0, 80.0)
    at, one = draw(sigma / 80, path=path), torch.ones(4).double()
    got = ByTime(rule="edm")(one, flow(path), at)
    close(got, (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    assert got[1].item() == pytest.approx(5.5625)
    for parameterization in (EDMSkip(), SimpleEDM()):
        close(ByTime(rule="inverse-output-square")(one, flow(path, parameterization), at), got)


def test_the_weight_of_edm_does_not_depend_on_the_path() -> None:
    """At equal noise-to-signal ratio σ/α the denoising problem is the same: σ = t/(1 − t)."""
    t = f64(0.1, 0.5, 0.9)
    one, sigma = torch.ones(3).double(), t / (1 - t)
    want = ByTime(rule="edm")(one, flow(VarianceExploding()), draw(sigma / 80, path=VarianceExploding()))
    close(ByTime(rule="edm")(one, flow(), draw(t)), want)
    cosine = torch.atan(sigma) * 2 / math.pi
    close(ByTime(rule="edm")(one, flow(Cosine()), draw(cosine, path=Cosine())), want)
    close(ByTime(rule="edm")(one[:1], flow(), draw(f64(1.0))), f64(4.0))


def test_the_weight_of_ucgm() -> None:
    close(
        ByTime(rule="inverse-sine")(f64(2.0, 1.0), flow(), draw(f64(1.0, 0.5))), f64(8.0, 4.0) / f64(1.57, 0.785).sin()
    )


def test_shares_of_the_first_jump_and_their_inverse() -> None:
    """(t − s)/(t − r) and its inverse where s < t; 1 on flow-matching rows and continuous ones, without NaN."""
    t, s, r = f64(0.9, 0.9, 0.9, 0.9, 0.0), f64(0.3, 0.5, 0.9, 0.9, 0.0), f64(0.3, 0.1, 0.3, 0.9, 0.0)
    at, error = draw(t, r, s), f64(1.0, 2.0, 3.0, 4.0, 5.0)
    close(ByTime(rule="share")(error, flow(), at), error * f64(1.0, 0.5, 1.0, 1.0, 1.0))
    close(ByTime(rule="gap-over-step")(error, flow(), at), error * f64(1.0, 2.0, 1.0, 1.0, 1.0))
    error.requires_grad_()
    for rule in ("share", "gap-over-step"):
        slope = torch.autograd.grad(ByTime(rule=rule)(error, flow(), at).sum(), error)[0]
        assert bool(torch.isfinite(slope).all())


def test_the_weight_of_alpha_flow() -> None:
    """α L/(L + c) on rows with a first jump of the share α, L/(L + c) on the others; the gradient of α log(L + c)."""
    error = f64(0.5, 2.0, 1e-4).requires_grad_()
    at = draw(f64(0.9, 0.9, 0.7), f64(0.1, 0.1, 0.7), f64(0.7, 0.9, 0.7))
    loss = Product(parts=(Adaptive(power=1.0, c=1e-3), ByTime(rule="share")))(error, flow(), at)
    alpha = f64(0.25, 1.0, 1.0)
    close(loss.detach(), (alpha * error / (error + 1e-3)).detach())
    close(torch.autograd.grad(loss.sum(), error)[0], alpha / (error.detach() + 1e-3))


def test_the_inverse_share_turns_a_two_step_gradient_into_the_continuous_one() -> None:
    """‖u − T‖² (t − r)/(t − s) has in the limit s → t the gradient of ‖u − u_tgt‖², for the network u = 1.3 v, D = 1.

    T = [X_{s,r}(x_t − (t − s) v) − x_t]/(r − t), u_tgt = v − (t − r) D_t u; both without gradient. Error O(t − s).
    """
    law, t, r = Gaussian(path=Linear(), mean=0.3, std=0.5), f64(0.7), f64(0.2)
    x = f64(1.1)[:, None]
    v = law.velocity(x, t)

    def u(x: Tensor, t: Tensor) -> Tensor:
        return 1.3 * law.velocity(x, t)

    rate = torch.func.jvp(u, (x, t), (v, torch.ones_like(t)))[1]
    want = 2 * (u(x, t) - (v - (t - r)[:, None] * rate))
    sizes, errors = [1e-2, 3e-3, 1e-3], []
    for size in sizes:
        s = t - size
        landed = x - size * v
        target = (landed + (r - s)[:, None] * u(landed, s) - x) / (r - t)[:, None]
        output = u(x, t).requires_grad_()
        at = draw(t, r, s)
        error = SquaredError()(output, target, flow(), at)
        got = torch.autograd.grad(ByTime(rule="gap-over-step")(error, flow(), at).sum(), output)[0]
        errors.append((got - want).abs().item())
    assert log_slope(sizes, errors) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rules_are_finite_wherever_they_may_be_used(rule: Rule, dtype: torch.dtype) -> None:
    """At both ends of time, on the diagonal unless the rule needs a gap, with s = t unless it needs a step."""
    weighting = ByTime(rule=rule)
    rows = [(1.0, 0.5, 0.0), (1.0, 0.0, 0.0), (1e-3, 5e-4, 0.0)]
    if not weighting.needs_step:
        rows += [(1.0, 1.0, 0.0), (0.5, 0.5, 0.25)]
        if not weighting.needs_gap:
            rows += [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)]
    t, s, r = torch.tensor(rows, dtype=dtype).T
    for path in PATHS:
        got = weighting(torch.ones(len(rows), dtype=dtype), flow(path), draw(t, r, s, path))
        assert got.dtype == dtype
        assert bool((torch.isfinite(got) & (got >= 0)).all()), got


def test_what_rules_divide_by_is_what_they_need() -> None:
    """A rule is infinite on a row with s = t (with r = t) exactly if it says that it needs a step (a gap)."""
    t = f64(0.5)
    for rule in RULES:
        weighting = ByTime(rule=rule)
        without_step = weighting(f64(1.0), flow(), draw(t, f64(0.2), t))
        without_gap = weighting(f64(1.0), flow(), draw(t, t, t))
        assert bool(torch.isfinite(without_step)) != weighting.needs_step, rule
        assert bool(torch.isfinite(without_gap)) != (weighting.needs_step or weighting.needs_gap), rule


def test_needs_are_those_of_the_parts() -> None:
    step, gap = ByTime(rule="inverse-step"), ByTime(rule="inverse-gap")
    assert (step.needs_step, step.needs_gap, gap.needs_step, gap.needs_gap) == (True, False, False, True)
    both = Product(parts=(Adaptive(), Product(parts=(step,)), gap))
    assert both.needs_step
    assert both.needs_gap
    for part in (Unweighted(), Adaptive(), Variational(), Boundary(at=0.1), Product(parts=(Adaptive(),))):
        assert not part.needs_step
        assert not part.needs_gap


# ------------------------------------------------------------------------------------------------------------- boundary


@pytest.mark.parametrize("share", [0.25, None])
def test_rows_at_the_boundary_count_apart(share: float | None) -> None:
    """Mean of the six others + .1 · mean of the two whose second jump starts below the boundary."""
    s = f64(0.5, 0.01, 0.9, 0.0125, 0.3, 0.012, 0.6, 0.7)
    error = f64(1.0, 10.0, 2.0, 3.0, 4.0, 30.0, 5.0, 6.0)
    got = Boundary(at=0.0125, share=share)(error, flow(), draw(torch.ones(8).double(), s=s))
    assert got.mean().item() == pytest.approx(21 / 6 + 0.1 * 40 / 2)


@given(below=st.lists(st.booleans(), min_size=1, max_size=12), weight=st.floats(0, 10))
def test_the_boundary_is_weighted_by_the_batch_where_no_share_is_given(below: list[bool], weight: float) -> None:
    """Exactly for every batch, those without or with nothing but boundary rows included."""
    s = f64(*(0.1 if row else 0.8 for row in below))
    error = torch.arange(1, 1 + len(below)).double()
    got = Boundary(at=0.5, share=None, weight=weight)(error, flow(), draw(torch.ones_like(s), s=s)).mean().item()
    inside = [e for e, row in zip(error.tolist(), below, strict=True) if row]
    outside = [e for e, row in zip(error.tolist(), below, strict=True) if not row]
    want = sum(outside) / max(1, len(outside)) + weight * sum(inside) / max(1, len(inside))
    assert got == pytest.approx(want, rel=1e-12)


def test_weights_of_the_boundary_are_functions_of_the_row() -> None:
    """With the share of the law given, what a row weighs does not depend on the rows beside it."""
    weighting, s = Boundary(at=0.5, share=0.25, weight=0.1), f64(0.1, 0.8, 0.2)
    together = weighting(torch.ones(3).double(), flow(), draw(torch.ones(3).double(), s=s))
    alone = [weighting(f64(1.0), flow(), draw(f64(1.0), s=s[i : i + 1])) for i in range(3)]
    close(together, torch.cat(alone))
    close(together, f64(0.4, 4 / 3, 0.4))


# ------------------------------------------------------------------------------------------------------- half precision


class Constant(nn.Module):
    """A log-variance head in half precision, as under autocast."""

    def log_variance(self, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
        return torch.full_like(time, -7.0, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "weighting",
    [
        Adaptive(power=1.0, c=1e-6),
        Adaptive(power=0.75),
        Adaptive(power=0.5),
        ByTime(rule="edm"),
        Boundary(at=0.2),
        Variational(),
        Product(parts=(Adaptive(power=0.5), Variational())),
    ],
    ids=repr,
)
def test_losses_of_half_precision_errors_are_computed_in_single(weighting: Weighting, dtype: torch.dtype) -> None:
    """c = 1e-6 is 0 and e⁷ · 60 too much for float16."""
    error = torch.tensor([0.0, 0.5, 60.0], dtype=dtype)
    model = FlowMap(Constant(), Linear(), AverageVelocity())
    t = torch.tensor([0.5, 0.25, 1.0])
    got = weighting(error, model, draw(t))
    assert got.dtype == torch.float32
    close(got, weighting(error.float(), model, draw(t)), 0)
    assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0])
def test_adaptive_losses_and_their_gradients_are_finite_for_any_error(power: float) -> None:
    error = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 1e30], requires_grad=True)
    loss = Adaptive(power=power)(error, flow(), draw(torch.full((5,), 0.5)))
    slope = torch.autograd.grad(loss.sum(), error)[0]
    assert bool(torch.isfinite(loss).all())
    close(slope, (error.detach() + 1e-3) ** -power, 1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ByTime(rule="inverse"), "(?s)'inverse-step', 'inverse-gap'"),  # type: ignore
        (lambda: Boundary(at=0.0), "at must be a time between 0 and 1, got 0"),
        (lambda: Boundary(at=80.0), "at must be a time between 0 and 1, got 80"),
        (lambda: Boundary(at=0.5, share=1.0), "share must be between 0 and 1, or null, got 1"),
        (lambda: Boundary(at=0.5, weight=-0.1), "weight must not be negative, got -0.1"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises((ShortflowError, TypeCheckError), match=message):
        build()
