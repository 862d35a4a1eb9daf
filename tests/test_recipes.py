"""Recipes against their training steps written out once more, and what every one of them has and needs."""

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from shortflow.draw import Draw
from shortflow.losses import Adaptive, Product, Unweighted, Variational
from shortflow.objective import Online
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, consistency_training, esc, flow_matching, imm, meanflow, sct, shortcut
from shortflow.streams import Streams
from shortflow.targets import Tangent
from shortflow.typing import Batch, Progress
from shortflow.velocity import Mixture
from steps import gradient, network_for

NULL = 4

# ------------------------------------------------------------------------- the training steps, written out once more
#
# Each function returns the loss of every row from the network, the teacher's network and the numbers of a draw, in
# plain arithmetic on the linear, cosine or variance-exploding path. No part of the library is used.

TrainingStep = Callable[[nn.Module, nn.Module, Draw], Tensor]


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


STEPS: dict[str, tuple[Recipe, TrainingStep]] = {
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


# --------------------------------------------------------------------------------------------- what every recipe has


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_itself_and_its_source(name: str) -> None:
    """The name is the table's, the docstring maps symbols to fields, a BibTeX entry is of the year or one later.

    One paper is not on arXiv.
    """
    recipe = recipe_of(name)
    module = importlib.import_module(RECIPES[name].__module__)
    assert recipe.name == name
    assert "| field |\n|---|---|\n" in module.__doc__
    entry = module.BIBTEX
    assert entry.startswith("@")
    assert entry.count("{") == entry.count("}")
    years = [int(year) for year in re.findall(r"^ *year += \{(\d{4})\}", entry, re.MULTILINE)]
    assert any(recipe.year <= year <= recipe.year + 1 for year in years)
    assert len(years) == entry.count("@")
    if recipe.arxiv:
        assert re.fullmatch(r"\d{4}\.\d{5}", recipe.arxiv)
        assert 20 <= int(recipe.arxiv[:2]) == recipe.year % 100
    else:
        assert re.search(r"url\s+= \{https://openreview\.net/", entry)
    assert (recipe.arxiv == "") == (name == "rcgm")
    assert recipe.title


@pytest.mark.parametrize("name", RECIPES)
def test_tables_mention_real_fields(name: str) -> None:
    """Every `objective.…` in a table is a chain of fields of the recipe, but on lines for another one (`name`: …)."""
    recipe = recipe_of(name)
    lines = (importlib.import_module(RECIPES[name].__module__).__doc__ or "").splitlines()
    meant = [line for line in lines if not (named := re.findall(r"`([a-z-]+)`:", line)) or name in named]
    chains = [part for line in meant for part in line.split("`")[1::2] if part.startswith("objective.")]
    assert chains
    for chain in chains:
        value: object = recipe
        for field in chain.split("."):
            assert hasattr(value, field), f"{chain}: {type(value).__name__} has no {field}"
            value = getattr(value, field)


# Without guidance in or after training there is no class to hide, nor where a teacher carries it.
WITHOUT_NULL_CLASS = {
    "ct",
    "ict",
    "ect",
    "ct-linear",
    "sct",
    "cd",
    "cd-linear",
    "tcm",
    "reflow",
    "sct-distilled",
    "ayf-emd",
    "ayf-lmd",
}
VARIATIONAL = {"sct", "sct-linear", "sct-distilled", "esc", "esc-plus", "lsd", "esd", "psd"}
ONE_TIME = {
    "flow-matching",
    "edm",
    "ct",
    "ict",
    "ect",
    "ct-linear",
    "sct",
    "imf",
    "cd",
    "cd-linear",
    "tcm",
    "reflow",
    "sct-distilled",
}
GUIDED = {
    "shortcut",
    "live-reflow",
    "sct-linear",
    "meanflow",
    "esc",
    "esc-plus",
    "soflow",
    "alphaflow",
    "tvm",
    "cd-linear",
    "progressive-distillation",
}
CONSISTENCY = {
    "ct",
    "ict",
    "ect",
    "ct-linear",
    "cd",
    "cd-linear",
    "tcm",
    "sct",
    "sct-linear",
    "sct-distilled",
}  # re-noised between steps
ENDS = {
    **dict.fromkeys(RECIPES, "any"),
    **dict.fromkeys(("flow-matching", "edm", "reflow"), "diagonal"),
    **dict.fromkeys(("shortcut", "progressive-distillation"), "dyadic"),
    **dict.fromkeys(CONSISTENCY, "zero"),
}
DISTILLED = {"cd", "cd-linear", "tcm", "sct-distilled", "ayf-emd", "ayf-lmd"}
NEEDS = {"progressive-distillation": {"init"}, "reflow": {"pairs"}}


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_built_from_what_the_recipe_needs(name: str) -> None:
    """Null class with label dropout, log-variance head with a variational weight, a second time where r varies."""
    recipe = recipe_of(name)
    assert recipe.null_class == (name not in WITHOUT_NULL_CLASS)
    assert recipe.log_variance == (name in VARIATIONAL)
    assert recipe.conditioning.second == (name not in ONE_TIME)
    flow = recipe.flow_map(nn.Identity())
    assert (flow.sigma_data, flow.ends) == (recipe.sigma_data or 1.0, ENDS[name])
    assert (flow.span, flow.lowest) == (recipe.objective.times.span, 1 / 80 if name == "tcm" else 0.0)
    assert (flow.guided is not None) == (name in GUIDED)
    # Only improved MeanFlow is told its guidance and has a second head.
    assert (flow.told is not None) == recipe.objective.velocity_head == (name == "imf")
    assert recipe.objective.needs == NEEDS.get(name, {"teacher"} if name in DISTILLED else set())


def test_notes_warn_of_two_weightings_that_undo_each_other() -> None:
    assert {name for name in RECIPES if recipe_of(name).notes()} == {"esc", "esc-plus"}
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
