"""Each recipe against its training step written out once more, and the published values it carries."""

import importlib
import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from shortflow.draw import Draw
from shortflow.flowmap import AverageVelocity, EDMSkip, LogSigma, LogStep, StartAndGap, StartOnly, TrigFlow
from shortflow.guidance import Guided
from shortflow.losses import Adaptive, ByTime, KernelMMD, Product, SquaredError, Unweighted, Variational
from shortflow.objective import Ema, Objective, Online, ScheduledEma
from shortflow.optimizer import Optimizer
from shortflow.paths import Cosine, Linear, VarianceExploding
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, consistency_training, esc, flow_matching, imm, meanflow, sct, shortcut
from shortflow.streams import Streams
from shortflow.targets import CosineWeight, Direct, Split, Tangent, TwoStep
from shortflow.times import Diagonal, Dyadic, Gradual, GridPairs, GroupedJumps, LogitNormal, Sorted, ToData, Uniform
from shortflow.typing import Batch, Progress
from shortflow.velocity import Conditional, Mixture, PlugIn
from steps import gradient, network_for

NULL = 4

# ------------------------------------------------------------------------- the training steps, written out once more
#
# Each function returns the loss of every row from the network, the teacher's network and the numbers of a draw, in
# plain arithmetic on the linear, cosine or variance-exploding path. No part of the library is used.

Step = Callable[[nn.Module, nn.Module, Draw], Tensor]


def told(draw: Draw, hide: bool = True) -> Tensor:
    assert draw.label is not None
    return torch.where(draw.dropped, NULL, draw.label) if hide else draw.label


def flow_matching_step(net: nn.Module, teacher: nn.Module, draw: Draw) -> Tensor:
    t = draw.times.t[:, None]
    x_t, v = (1 - t) * draw.x + t * draw.eps, draw.eps - draw.x
    return (net(x_t, draw.times.t, None, told(draw)) - v).square().mean(1)


def consistency_training_step(net: nn.Module, teacher: nn.Module, draw: Draw) -> Tensor:
    low, sd = 0.002, 0.5

    def f(network: nn.Module, sigma: Tensor) -> Tensor:
        x = draw.x + sigma[:, None] * draw.eps
        skip = sd**2 / ((sigma - low) ** 2 + sd**2)
        out = (sigma - low) * sd / (sigma**2 + sd**2).sqrt()
        scaled = x / (sigma**2 + sd**2).sqrt()[:, None]
        return skip[:, None] * x + out[:, None] * network(scaled, sigma.log() / 4, None, draw.label)

    with torch.no_grad():
        target = f(teacher, 80 * draw.times.s)
    return (f(net, 80 * draw.times.t) - target).square().mean(1)


def shortcut_step(net: nn.Module, teacher: nn.Module, draw: Draw) -> Tensor:
    """Scale 1.5 at the smallest bootstrapped jump; everything clipped to ±4."""
    t, _, r = draw.times
    n, y = len(t), told(draw)
    jump = t - r
    level = torch.where(jump > 0, -torch.log2(jump.clamp(min=1e-3)), 7.0)
    x_t = (1 - t)[:, None] * draw.x + t[:, None] * draw.eps
    target = torch.empty_like(x_t)
    with torch.no_grad():
        for i in range(n):
            row = slice(i, i + 1)

            def u(x: Tensor, time: Tensor, row: slice = row, i: int = i) -> Tensor:
                j = level[row] + 1
                own = teacher(x, time, j, y[row])
                if round(level[i].item()) != 6:
                    return own
                none = teacher(x, time, j, torch.tensor([NULL]))
                return none + 1.5 * (own - none)

            if jump[i] == 0:
                target[i] = draw.eps[i] - draw.x[i]
                continue
            half = jump[row] / 2
            first = u(x_t[row], t[row])
            x_s = (x_t[row] - half[:, None] * first).clamp(-4, 4)
            target[i] = ((first + u(x_s, t[row] - half)) / 2).clamp(-4, 4)[0]
    return (net(x_t, t, level, y) - target).square().mean(1)


def imm_step(net: nn.Module, teacher: nn.Module, draw: Draw) -> Tensor:
    """Groups of 4, σ_d = .5, b = 4, a = 2. Times and points are in units of the data's standard deviation."""
    sd, d, (t, s, r), y = 0.5, draw.x.shape[1], draw.times, told(draw)

    def jump(network: nn.Module, start: Tensor) -> Tensor:
        x = (1 - start)[:, None] * draw.x + start[:, None] * sd * draw.eps
        scale = 1 / (sd * ((1 - start) ** 2 + start**2).sqrt())
        output = network(scale[:, None] * x, 1000 * start, 1000 * (start - r), y)
        return x - (start - r)[:, None] * sd * output

    a = jump(net, t)
    with torch.no_grad():
        b = jump(teacher, s)
    losses = []
    for g in range(0, len(t), 4):
        w = 1 / ((t[g] - r[g]) * sd)
        total = torch.zeros(()).double()
        for i in range(g, g + 4):
            for j in range(g, g + 4):
                for sign, x, z in ((1, a[i], a[j]), (1, b[i], b[j]), (-2, a[i], b[j])):
                    distance = (x - z).square().sum().clamp(min=1e-8).sqrt()
                    total = total + sign * torch.exp(-w * distance / d) / 16
        ratio = 2 * torch.log((1 - t[g]) / t[g])
        weight = 0.5 * torch.sigmoid(4 - ratio) * 2 / (t[g] * (1 - t[g])) * (1 - t[g]) ** 2
        losses += [total * weight / ((1 - t[g]) ** 2 + t[g] ** 2)] * 4
    return torch.stack(losses)


def sct_step(net: nn.Module, teacher: nn.Module, draw: Draw) -> Tensor:
    """In the angle θ = πt/2; r_k is the share of the warm-up (1/40 of the run). The network is told 2θ/π."""
    sd, theta, z = 0.5, draw.times.t * math.pi / 2, 0.5 * draw.eps
    cos, sin = torch.cos(theta)[:, None], torch.sin(theta)[:, None]
    x, dx = cos * draw.x + sin * z, cos * z - sin * draw.x
    r_k = min(1.0, draw.progress.images / draw.progress.total * 40)

    def f(x: Tensor, theta: Tensor) -> Tensor:
        return net(x, theta * 2 / math.pi, None, draw.label)

    with torch.no_grad():
        old, j = torch.func.jvp(f, (x / sd, theta), (cos * sin * dx / sd, (cos * sin)[:, 0]))
        g = -(cos**2) * (sd * old - dx) - r_k * (cos * sin * x + sd * j)
        g = g / (g.norm(dim=1, keepdim=True) + 0.1)
    ell = net.log_variance(draw.times.t)  # pyright: ignore[reportCallIssue]
    return torch.exp(-ell) * (f(x / sd, theta) - old - g).square().mean(1) + ell


def average_velocity_error(
    net: nn.Module, draw: Draw, v: Tensor, omega: float, kappa: float, window: tuple[float, float]
) -> Tensor:
    """‖u − sg(ṽ − (t − r) D u)‖², ṽ = ωv + κu_c + (1 − ω − κ)u_∅ inside the window where a class is told."""
    t, _, r = draw.times
    y, zero = told(draw), torch.zeros_like(t)
    x_t = (1 - t)[:, None] * draw.x + t[:, None] * draw.eps
    with torch.no_grad():
        u_c, u_0 = net(x_t, t, zero, draw.label), net(x_t, t, zero, torch.full_like(y, NULL))
        guided = (~draw.dropped & (t >= window[0]) & (t <= window[1]))[:, None]
        v = torch.where(guided, omega * v + kappa * u_c + (1 - omega - kappa) * u_0, v)
        rate = torch.func.jvp(lambda x, t: net(x, t, t - r, y), (x_t, t), (v, torch.ones_like(t)))[1]
        target = v - (t - r)[:, None] * rate
    return (net(x_t, t, t - r, y) - target).square().sum(1)


def meanflow_step(net: nn.Module, teacher: nn.Module, draw: Draw) -> Tensor:
    error = average_velocity_error(net, draw, draw.eps - draw.x, 0.2, 0.92, (0.0, 0.8))
    return error / (error.detach() + 1e-3)


def esc_step(net: nn.Module, teacher: nn.Module, draw: Draw) -> Tensor:
    """Plug-in weights γ_i ∝ exp(−‖x_t − (1 − t)x_i‖²/2t²) over images of the row's class, all if it is hidden."""
    v = draw.eps - draw.x
    assert draw.label is not None
    for j in range(len(v)):
        if draw.coin[j] >= 0.5:
            continue
        t = draw.times.t[j]
        x_t = (1 - t) * draw.x[j] + t * draw.eps[j]
        some = torch.ones(len(v), dtype=torch.bool) if draw.dropped[j] else draw.label == draw.label[j]
        images = draw.x[some]
        gamma = torch.softmax(-(x_t - (1 - t) * images).square().sum(1) / (2 * t * t), 0)
        v[j] = (gamma[:, None] * (-images + (x_t - (1 - t) * images) / t)).sum(0)
    error = average_velocity_error(net, draw, v, 1.0, 0.5, (0.0, 1.0))
    ell = net.log_variance(draw.times.t)  # pyright: ignore[reportCallIssue]
    return torch.exp(-ell) * error / (error.detach() + 1e-3) + ell


STEPS: dict[str, tuple[Recipe, Step]] = {
    "flow-matching": (flow_matching(), flow_matching_step),
    "ct": (consistency_training(), consistency_training_step),
    "shortcut": (shortcut(), shortcut_step),
    "imm": (imm(), imm_step),
    "sct": (sct(), sct_step),
    "meanflow": (meanflow(omega=0.2, kappa=0.92, window=(0.0, 0.8), ratio=0.6), meanflow_step),
    "esc": (esc(ratio=0.6), esc_step),
}


def step_draw(recipe: Recipe, n: int = 32, share: float = 0.013, scale: float = 1.0, seed: int = 3) -> Draw:
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (n,), generator=generator)
    if recipe.batches == "class-consistent":
        label = label // 3  # classes 0 and 1 only, so that plug-in rows have company
    progress = Progress(images=round(share * 100_000), total=100_000)
    null = NULL if recipe.null_class else None
    return recipe.objective.draw(Batch(x=x, label=label), recipe.path, Streams(seed=seed), progress, null)


@pytest.mark.parametrize("name", STEPS)
def test_step_is_the_one_written_out(name: str) -> None:
    """Loss of every row to 1e-10, gradient of their mean to 1e-9; a teacher has weights of its own."""
    recipe, step = STEPS[name]
    # Large points, so that the shortcut models' clipping at ±4 acts.
    draw = step_draw(recipe, scale=4.0 if name == "shortcut" else 1.0)
    flow, teacher = (recipe.flow_map(network_for(recipe, seed=seed)) for seed in (1, 2))
    if isinstance(recipe.objective.teacher, Online):
        teacher = flow
    loss = recipe.objective.evaluate(flow, teacher, draw).loss
    want = step(flow.network, teacher.network, draw)
    torch.testing.assert_close(loss, want, rtol=1e-10, atol=1e-10)
    got, wanted = gradient(loss.mean(), flow.network), gradient(want.mean(), flow.network)
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


def test_the_draws_above_exercise_every_branch() -> None:
    """Dropped rows, both kinds of gaps, rows outside the window, plug-in rows, jumps to the data, all levels."""
    draws = {name: step_draw(recipe) for name, (recipe, _) in STEPS.items()}
    for name in ("flow-matching", "shortcut", "imm", "meanflow", "esc"):
        assert draws[name].dropped.any()
    for name in ("shortcut", "meanflow", "esc"):
        assert 0 < draws[name].times.bootstrap.sum() < 32
    assert (draws["meanflow"].times.t > 0.8).any()
    assert 0 < (draws["esc"].coin < 0.5).sum() < 32
    assert 0 < ((draws["esc"].times.r == 0) & draws["esc"].times.bootstrap).sum() < draws["esc"].times.bootstrap.sum()
    t, _, r = draws["shortcut"].times
    assert torch.unique(-torch.log2((t - r)[:8])).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert not (draws["shortcut"].dropped & draws["shortcut"].times.bootstrap).any()
    # the class of a row without label dropout is told all the same
    assert not recipe_of("ct").null_class
    assert draws["ct"].condition is draws["ct"].label


def recipe_of(name: str) -> Recipe:
    return RECIPES[name]()


# ------------------------------------------------------------------------------------------------- published values


def test_flow_matching_values() -> None:
    recipe = flow_matching()
    assert recipe.objective == Objective(times=Diagonal(law=Uniform()), target=Direct(velocity=Conditional()))
    assert (recipe.path, recipe.parameterization, recipe.conditioning) == (Linear(), AverageVelocity(), StartOnly())
    assert recipe.objective.metric == SquaredError(reduce="mean")
    assert (recipe.null_class, recipe.log_variance, recipe.sigma_data) == (True, False, None)


def test_consistency_training_values() -> None:
    """Karras grid 0.002…80 with ρ = 7, N from 2 to 151 points, target decay .9, .99803, .99861 at share 0, ½, 1."""
    recipe = consistency_training()
    times, teacher = recipe.objective.times, recipe.objective.teacher
    assert isinstance(times, GridPairs)
    assert isinstance(teacher, ScheduledEma)
    assert (times.grid.sigma_min, times.grid.sigma_max, times.grid.rho) == (0.002, 80.0, 7.0)
    shares = [Progress(images=k, total=100) for k in (0, 1, 10, 25, 50, 75, 100)]
    assert [times.count(p) for p in shares] == [2, 16, 48, 76, 107, 131, 151]
    decays = [teacher.decay(shares[i]) for i in (0, 4, 6)]
    assert decays == pytest.approx([0.9, 0.99803, 0.99861], abs=5e-6)
    assert (recipe.path, recipe.sigma_data) == (VarianceExploding(sigma_max=80.0), 0.5)
    assert (recipe.parameterization, recipe.conditioning) == (EDMSkip(), LogSigma())
    assert recipe.objective.target == TwoStep(first=Conditional())
    assert recipe.objective.metric == SquaredError(reduce="mean", space="state")
    assert recipe.optimizer == Optimizer(lr=2e-4, betas=(0.9, 0.999), clip=None, ema=0.9999)
    assert (recipe.null_class, recipe.objective.label_dropout) == (False, 0.0)


def test_shortcut_values() -> None:
    recipe = shortcut()
    assert recipe.objective.times == Dyadic(levels=7, share=0.25)
    step = TwoStep(first=None, clip=4.0, guidance=1.5, guided_gap=1 / 64)
    assert recipe.objective.target == Split(direct=Direct(), bootstrap=step)
    assert recipe.objective.teacher == Ema(rate=0.999)
    assert (recipe.objective.label_dropout, recipe.objective.dropped_rows) == (0.1, "diagonal")
    assert recipe.conditioning == LogStep(steps=128)
    assert recipe.optimizer == Optimizer(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, clip=None, ema=0.999)
    assert shortcut(guidance=1.0).objective.guided is None
    assert shortcut(levels=5).conditioning == LogStep(steps=32)


def test_imm_values() -> None:
    recipe = imm()
    assert recipe.objective.times == GroupedJumps(low=0.0, high=0.994, k=12, group=4)
    assert recipe.objective.metric == KernelMMD(group=4)
    assert recipe.objective.weighting == ByTime(rule="imm", bias=4.0, power=2.0)
    assert (recipe.path, recipe.sigma_data) == (Linear(noise_scale=0.5), 0.5)
    assert (recipe.parameterization, recipe.conditioning) == (
        AverageVelocity(normalize=True),
        StartAndGap(scale=1000.0),
    )
    assert recipe.objective.label_dropout == 0.1
    assert recipe.objective.guided is None


def test_sct_values() -> None:
    recipe = sct()
    target = recipe.objective.target
    assert isinstance(target, Tangent)
    assert (target.weight, target.warmup, target.normalize, target.norm) == (CosineWeight(), 1 / 40, 0.1, "l2")
    law = recipe.objective.times
    assert isinstance(law, ToData)
    assert [getattr(law.law, name) for name in ("mean", "std", "sigma_data")] == [-1.0, 1.4, 0.5]
    assert (recipe.path, recipe.sigma_data) == (Cosine(noise_scale=0.5), 0.5)
    assert (recipe.parameterization, recipe.conditioning) == (TrigFlow(), StartOnly())
    assert recipe.objective.weighting == Variational()
    assert recipe.optimizer == Optimizer(lr=1e-4, betas=(0.9, 0.99), clip=None, ema=0.9999)
    assert (recipe.null_class, recipe.log_variance) == (False, True)


def test_meanflow_values() -> None:
    recipe = meanflow()
    assert recipe.objective == Objective(
        times=Sorted(law=LogitNormal(mu=-0.4, sigma=1.0), ratio=0.25),
        target=Tangent(velocity=Guided(base=Conditional(), omega=1.0, kappa=0.5, window=(0.0, 1.0))),
        metric=SquaredError(reduce="sum"),
        weighting=Adaptive(power=1.0, c=1e-3),
        label_dropout=0.1,
    )
    assert recipe.optimizer == Optimizer(lr=1e-4, betas=(0.9, 0.95), clip=None, ema=0.9999)
    assert (recipe.null_class, recipe.log_variance) == (True, False)


def test_esc_differs_from_meanflow_in_four_places() -> None:
    ours, theirs = esc(), meanflow()
    assert ours.objective.times == Gradual(law=LogitNormal(mu=-0.4, sigma=1.0), ratio=0.25, ramp=20_000 / 600_000)
    target = ours.objective.target
    assert isinstance(target, Tangent)
    assert target.velocity == Guided(base=Mixture(plug_in=PlugIn(mask="label"), probability=0.5), omega=1.0, kappa=0.5)
    assert ours.objective.weighting == Product(parts=(Adaptive(power=1.0, c=1e-3), Variational()))
    assert (ours.batches, theirs.batches) == ("class-consistent", "shuffled")
    assert ours.optimizer == replace(theirs.optimizer, clip=1.0)
    assert (ours.null_class, ours.log_variance) == (True, True)
    same = ("metric", "label_dropout", "dropped_rows", "teacher")
    assert all(getattr(ours.objective, name) == getattr(theirs.objective, name) for name in same)


@pytest.mark.parametrize(("omega", "kappa", "scale"), [(1.0, 0.5, 2.0), (0.2, 0.92, 2.5), (2.0, 0.0, 2.0)])
def test_published_guidance_pairs_have_these_effective_scales(omega: float, kappa: float, scale: float) -> None:
    target = meanflow(omega=omega, kappa=kappa).objective.target
    assert isinstance(target, Tangent)
    assert isinstance(target.velocity, Guided)
    assert target.velocity.effective_scale == pytest.approx(scale, rel=1e-12)


# --------------------------------------------------------------------------------------------- what every recipe has


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_itself_and_its_source(name: str) -> None:
    """The name is the table's, the docstring maps symbols to fields, the BibTeX entry is of the year or one later."""
    recipe = recipe_of(name)
    module = importlib.import_module(RECIPES[name].__module__)
    assert recipe.name == name
    assert "| field |\n|---|---|\n" in module.__doc__
    entry = module.BIBTEX
    assert entry.startswith("@")
    assert entry.count("{") == entry.count("}")
    year = int(entry.split("year")[1].split("{")[1].split("}")[0])
    assert recipe.year <= year <= recipe.year + 1
    assert 20 <= int(recipe.arxiv[:2]) == recipe.year % 100
    assert recipe.title


@pytest.mark.parametrize("name", RECIPES)
def test_tables_mention_real_fields(name: str) -> None:
    """Every `objective.…` in a table is a chain of fields of the recipe."""
    recipe = recipe_of(name)
    doc = importlib.import_module(RECIPES[name].__module__).__doc__ or ""
    chains = [part for part in doc.split("`") if part.startswith("objective.")]
    assert chains
    for chain in chains:
        value: object = recipe
        for field in chain.split("."):
            assert hasattr(value, field), f"{chain}: {type(value).__name__} has no {field}"
            value = getattr(value, field)


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_built_from_what_the_recipe_needs(name: str) -> None:
    """Null class with label dropout, log-variance head with a variational weight, a second time where r varies."""
    recipe = recipe_of(name)
    assert recipe.null_class == (name not in ("ct", "sct"))
    assert recipe.log_variance == (name in ("sct", "esc"))
    assert recipe.conditioning.second == (name not in ("flow-matching", "ct", "sct"))
    flow = recipe.flow_map(nn.Identity())
    assert (flow.sigma_data, flow.ends) == (recipe.sigma_data or 1.0, recipe.objective.times.ends)
    assert flow.span == recipe.objective.times.span
    assert (flow.guided is not None) == (name in ("shortcut", "meanflow", "esc"))


def test_notes_warn_of_two_weightings_that_undo_each_other() -> None:
    assert {name for name in RECIPES if recipe_of(name).notes()} == {"esc"}
    assert "little left to do" in esc().notes()[0]
    half = replace(esc().objective, weighting=Product(parts=(Adaptive(power=0.5), Variational())))
    assert not replace(esc(), objective=half).notes()
    assert not replace(esc(), objective=replace(esc().objective, weighting=Unweighted())).notes()


@pytest.mark.parametrize("name", RECIPES)
def test_unconditional_recipes_have_no_guidance_no_dropout_and_shuffled_batches(name: str) -> None:
    recipe, plain = recipe_of(name), recipe_of(name).unconditional()
    assert plain.objective.guided is None
    assert (plain.null_class, plain.batches, plain.objective.label_dropout) == (False, "shuffled", 0.0)
    kept = {f.name for f in fields(Recipe)} - {"objective", "batches"}
    assert all(getattr(plain, field) == getattr(recipe, field) for field in kept)
    assert plain.objective.times == recipe.objective.times
    assert plain.unconditional() == plain


def test_unconditional_esc_keeps_its_plug_in_velocity() -> None:
    target = esc().unconditional().objective.target
    assert isinstance(target, Tangent)
    assert target.velocity == Mixture(probability=0.5)
