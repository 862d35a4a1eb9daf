"""Consistency training seen two ways: as denoising where the second noise level is zero, and on two paths at once."""

import math

import torch
from torch import Tensor, nn

from shortflow.flowmap import EDM, EDMSkip, FlowMap, LogSigma, StartOnly, TrigFlow
from shortflow.losses import ByTime, PseudoHuber, SquaredError
from shortflow.objective import Objective
from shortflow.paths import Cosine, VarianceExploding
from shortflow.recipes import ect, edm
from shortflow.targets import TwoStep
from shortflow.times import GridPairs
from shortflow.typing import Progress
from steps import close, draw_at, gradient, loss_and_gradient, mlp

SIGMA_DATA = 0.5


def data(n: int = 8, d: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return SIGMA_DATA * x, eps


def test_easy_consistency_tuning_with_the_second_level_at_zero_is_denoising_weighted_by_one_over_sigma() -> None:
    """Every row of ECT's first stage below some noise level: ‖D(x_t) − x_0‖/σ_t with EDM's D, written out here."""
    path, (x, eps) = VarianceExploding(sigma_max=80.0), data()
    net = mlp(second_time=False)
    flow = FlowMap(net, path, EDM(), LogSigma(), sigma_data=SIGMA_DATA)
    t = torch.linspace(0.001, 0.9, len(x), dtype=torch.float64)
    zero = torch.zeros_like(t)
    loss, slope = loss_and_gradient(ect().objective, flow, draw_at(path, x, eps, t, zero, zero))

    sigma = (80 * t)[:, None]
    scale = (sigma**2 + SIGMA_DATA**2).sqrt()
    noisy = x + sigma * eps
    denoised = SIGMA_DATA**2 / scale**2 * noisy + sigma * SIGMA_DATA / scale * net(noisy / scale, sigma[:, 0].log() / 4)
    want = (denoised - x).norm(dim=1) / sigma[:, 0]
    close(loss, want.detach(), 1e-10)
    close(slope, gradient(want.mean(), net), 1e-9)


def test_half_of_the_first_stage_of_easy_consistency_tuning_is_denoising() -> None:
    """1 − q⁻¹(1 + k sigmoid(−bσ)) ≤ 0 where σ ≤ log 7 with q = 2, k = 8, b = 1: sigmoid(−σ) ≥ 1/8."""
    times = ect().objective.times.stratified(4096, Progress(images=0, total=1))
    low = times.t * 80 <= math.log(7)
    assert torch.equal(times.s == 0, low)
    assert 0.4 < float(low.double().mean()) < 0.95


def test_a_diffusion_model_in_edms_form_is_where_easy_consistency_tuning_starts() -> None:
    """The denoiser D that `edm` trains is, for the same weights, the jump to the data of `ect`; its loss is EDM's."""
    path, (x, eps) = VarianceExploding(sigma_max=80.0), data()
    net = mlp(second_time=False)
    before, after = (recipe.flow_map(net) for recipe in (edm(label_dropout=0.0), ect()))
    t = torch.linspace(0.001, 1.0, len(x), dtype=torch.float64)
    x_t = path.interpolate(x, eps, t)
    denoised = path.data(x_t, before.velocity(x_t, t), t)
    close(after(x_t, t, torch.zeros_like(t)), denoised, 1e-9)
    loss, _ = loss_and_gradient(edm(label_dropout=0.0).objective, before, draw_at(path, x, eps, t, t))
    sigma = 80 * t
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    close(loss, (weight * (denoised - x).square().mean(1)).detach(), 1e-9)


class OnTheCircle(nn.Module):
    """A network for the variance-exploding path, asked from the cosine path: tan θ = σ/σ_d, F_trig = −F_EDM."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        sigma = SIGMA_DATA * torch.tan(time * (math.pi / 2))
        return -self.network(x, sigma.clamp(min=torch.finfo(time.dtype).tiny).log() / 4, None, label)


def test_consistency_training_is_the_same_on_the_variance_exploding_and_on_the_cosine_path() -> None:
    """Mapped times and the mapped network have the same jumps to the data: a loss of states and its gradient agree."""
    (x, eps), net = data(), mlp(second_time=False)
    levels = GridPairs().stratified(len(x), Progress(images=1, total=2))
    objective = Objective(
        times=GridPairs(),
        target=TwoStep(),
        metric=SquaredError(reduce="mean", space="state"),
        label_dropout=0.0,
    )
    exploding = VarianceExploding(sigma_max=80.0)
    first = FlowMap(net, exploding, EDMSkip(), LogSigma(), sigma_data=SIGMA_DATA)
    zero = torch.zeros_like(levels.t)
    want = loss_and_gradient(objective, first, draw_at(exploding, x, eps, levels.t, zero, levels.s))

    cosine = Cosine(noise_scale=SIGMA_DATA)
    second = FlowMap(OnTheCircle(net), cosine, TrigFlow(), StartOnly(), sigma_data=SIGMA_DATA)
    t, s = (2 / math.pi * torch.atan(80 * time / SIGMA_DATA) for time in (levels.t, levels.s))
    got = loss_and_gradient(objective, second, draw_at(cosine, x, eps, t, zero, s))
    close(got[0], want[0], 1e-9)
    close(got[1], want[1], 1e-8)


def test_the_unsquared_norm_over_the_step_does_not_care_how_states_are_scaled_by_the_metric() -> None:
    """`ict` with c → 0 is ECT's loss: the pseudo-Huber distance tends to the norm, the weight is the same."""
    path, (x, eps) = VarianceExploding(sigma_max=80.0), data()
    flow = FlowMap(mlp(second_time=False), path, EDMSkip(), LogSigma(), sigma_data=SIGMA_DATA)
    times = GridPairs().stratified(len(x), Progress(images=1, total=2))
    draw = draw_at(path, x, eps, times.t, times.r, times.s)
    losses = [
        loss_and_gradient(
            Objective(
                times=GridPairs(),
                target=TwoStep(),
                metric=PseudoHuber(c=c, space="state"),
                weighting=ByTime(rule="inverse-step"),
                label_dropout=0.0,
            ),
            flow,
            draw,
        )[0]
        for c in (1e-9, 0.0)
    ]
    close(losses[0], losses[1], 1e-6)
