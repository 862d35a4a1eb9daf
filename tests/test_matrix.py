"""Every combination of parts trains a step like the slow reference, or is refused at construction with a remedy.

All combinations of a few axes at a time are built. A sample of those that the library accepts (`matrix_sample.txt`,
which holds every value of every axis and as many pairs of values as so few can) takes a step on a small network in
float64: the loss of every row and the gradient of every weight are those of `slow_reference`. The long checks do the
same for a sample that holds every pair of values there is, and evaluate thousands of others.

When a part comes or a combination is refused anew, write the sample again: `python tests/matrix.py`.
"""

import itertools
import math
from functools import cache

import pytest
import torch
from torch import nn

from matrix import (
    SAMPLE,
    Case,
    Combination,
    case_of,
    covering,
    objective_of,
    pairs_of,
    read_sample,
    recipe_of,
    refusal,
    search,
)
from matrix_axes import (
    AXES,
    CONDITIONINGS,
    METRICS,
    OPTIONS,
    PARAMETERIZATIONS,
    PATHS,
    TARGETS,
    TEACHERS,
    TIMES,
    VELOCITIES,
    WEIGHTINGS,
)
from shortflow.errors import IncompatibleParts
from shortflow.losses import PseudoHuber
from shortflow.nn import MLP, MLPConfig, NetworkConfig, SiTConfig, UNetConfig
from shortflow.recipe import Recipe
from slow_reference import slow_loss
from steps import gradient, randomize


def step(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss of every row, gradient of their mean), both finite, and something is learned."""
    loss = case.recipe.objective.evaluate(case.flow, case.teacher, case.draw).loss
    slope = gradient(loss.mean(), case.flow.network)
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    assert slope.norm() > 0
    return loss.detach(), slope


def check(case: Case) -> None:
    """The loss to 1e-9 and the gradient to 1e-6 of the slow reference's."""
    loss, slope = step(case)
    slow = slow_loss(case.recipe.objective, case.flow, case.teacher, case.draw)
    assert (loss - slow.detach()).abs().max() <= 1e-9 * slow.detach().abs().max()
    metric = case.recipe.objective.metric
    if isinstance(metric, PseudoHuber) and metric.c == 0 and float(slow.detach().abs().min()) < 1e-12:
        return  # the norm of a rounding error has the direction of a rounding error
    want = gradient(slow.mean(), case.flow.network)
    assert (slope - want).norm() <= 1e-6 * want.norm()


def case_named(combination: Combination) -> Case:
    return case_of(recipe_of(combination), labels=combination[-1] != "unconditional")


# --------------------------------------------------------------------------------------------------- built or refused


@cache
def fitting() -> list[tuple[str, str, str, str]]:
    """For every pair of times and target that fit, the first velocity and teacher with which they do."""
    found = []
    for times, target in itertools.product(TIMES, TARGETS):
        for velocity, teacher in itertools.product(VELOCITIES, ("online", "snapshot")):
            if refusal(lambda n=(times, target, velocity, "mean", "unweighted", teacher, "none"): objective_of(*n)):
                continue
            found.append((times, target, velocity, teacher))
            break
    return found


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_every_objective_is_built_or_refused_with_a_remedy(every: int) -> None:
    """All times, targets, velocities and options; for all that fit, all metrics with all weightings, and teachers.

    A prime stride meets all values of all axes; the slow check leaves nothing out.
    """
    place = built = refused = 0

    def tried(*combination: str) -> None:
        nonlocal place, built, refused
        place += 1
        if place % every:
            return
        if refusal(lambda: objective_of(*combination)) is None:
            built += 1
        else:
            refused += 1

    for times, target, velocity in itertools.product(TIMES, TARGETS, VELOCITIES):
        tried(times, target, velocity, "mean", "unweighted", "online", "none")
    for times, target, velocity, teacher in fitting():
        for metric, weighting in itertools.product(METRICS, WEIGHTINGS):
            tried(times, target, velocity, metric, weighting, teacher, "none")
        for other, options in itertools.product(TEACHERS, OPTIONS):
            tried(times, target, velocity, "mean", "unweighted", other, options)
    assert place > 50_000
    assert built + refused == place // every
    assert min(built, refused) * every > 10_000


@pytest.mark.parametrize("some", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_every_recipe_is_built_or_refused_with_a_remedy(some: int) -> None:
    """Every objective that fits with every conditioning, each on some of all paths with all parameterisations."""
    forms = list(itertools.product(PATHS, PARAMETERIZATIONS))
    counts, place, met = {"built": 0, "refused": 0}, 0, set()
    # Strides without a common factor, so that every conditioning meets every form.
    more = next(k for k in itertools.count() if math.gcd(len(CONDITIONINGS) * some + k, len(forms)) == 1)
    for times, target, velocity, teacher in fitting():
        place += more
        objective = objective_of(times, target, velocity, "mean", "unweighted", teacher, "none")
        for conditioning in CONDITIONINGS:
            for _ in range(some):
                path, form = forms[(place := place + 1) % len(forms)]
                settings = {"path": PATHS[path], "parameterization": PARAMETERIZATIONS[form]}
                settings |= {"conditioning": CONDITIONINGS[conditioning], "sigma_data": 0.5}
                words = refusal(lambda s=settings, o=objective: Recipe(name="any", objective=o, **s))
                counts["built" if words is None else "refused"] += 1
                met.add((conditioning, path, form))
    assert len(met) == len(forms) * len(CONDITIONINGS)
    assert counts["built"] > 150 * some
    assert counts["refused"] > 1500 * some


# ------------------------------------------------------------------------------------------------ as the slow reference


def test_the_sample_holds_every_value_of_every_axis() -> None:
    for i, (axis, values) in enumerate(AXES.items()):
        assert {combination[i] for combination in SAMPLE} == set(values), axis
    assert len(set(SAMPLE)) == len(SAMPLE) == len(read_sample())


@pytest.mark.parametrize("combination", SAMPLE, ids="-".join)
def test_a_step_is_that_of_the_slow_reference(combination: Combination) -> None:
    check(case_named(combination))


# ------------------------------------------------------------------------------------------------------------- networks

SHAPES = {"mlp": (3,), "sit": (1, 4, 4), "unet": (1, 4, 4)}
CONFIGS: dict[str, NetworkConfig] = {
    "mlp": MLPConfig(width=8, depth=1),
    "sit": SiTConfig(size="tiny", width=8, depth=1, heads=2, patch=2, head_depth=1),
    "unet": UNetConfig(size="tiny", channels=4, multipliers=(1, 1), attention=(1,)),
}
# One for every way in which a network is asked: plain and frozen passes, derivatives in and out of the gradient, heads.
ASKED: dict[str, Combination] = {
    "plain": ("cosine", "simple-edm", "gap", "grouped", "two-segments", "plug-in", "mmd", "imm", "ema", "none"),
    "frozen": ("ve", "edm", "log-sigma", "boundary", "two-below", "reference", "huber", "adaptive", "online", "none"),
    "guided": ("linear", "transfer", "end", "sorted-exact", "tangent", "guided", "sum", "learned", "online", "none"),
    "normalized": ("trig", "trig-flow", "angle", "to-data", "tangent-sct", "mixture", "mean", "learned", "ema", "none"),
    "head": (
        "linear",
        "average",
        "gap-only",
        "sorted",
        "tangent-head",
        "as-input-head",
        "sum",
        "edm",
        "online",
        "none",
    ),
    "end": ("custom", "average", "end", "diagonal-exact", "split-terminal", "own", "mean", "learned", "ema", "none"),
    "end-moved": ("linear", "denoiser", "end", "nested", "terminal-moved", "reference", "mean", "edm", "ema", "none"),
    "residual": ("linear", "average", "gap", "sorted", "split-eulerian", "own", "mean", "learned", "online", "none"),
    "space": ("cosine", "transfer", "end", "nested", "eulerian-through", "reference", "mean", "edm", "ema", "none"),
    "dyadic": ("linear", "average", "log-step", "dyadic", "split-guided", "conditional", "mean", "edm", "ema", "none"),
    "pairs": ("cosine", "transfer", "flag", "diagonal-data", "along", "conditional", "sum", "edm", "ema", "coupling"),
    "unconditional": (
        "linear",
        "average",
        "gap",
        "gradual",
        "tangent",
        "mixture",
        "sum",
        "edm",
        "ema",
        "unconditional",
    ),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_network_is_trained_like_the_slow_reference(kind: str, asked: str) -> None:
    def build(shape: tuple[int, ...], seed: int, **needs: object) -> nn.Module:
        return randomize(CONFIGS[kind].build(shape, **needs), seed)  # pyright: ignore[reportArgumentType]

    combination = ASKED[asked]
    recipe, labels = recipe_of(combination), combination[-1] != "unconditional"
    check(case_of(recipe, build, SHAPES[kind], labels))


@pytest.mark.parametrize(
    ("has", "remedy"),
    [
        ({"second_time": False}, "second_time=False.*; build it with second_time=True"),
        ({"guidance": False}, "guidance=False.*; build it with guidance=True"),
        ({"velocity_head": False}, "velocity_head=False.*; build it with velocity_head=True"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(has: dict[str, bool], remedy: str) -> None:
    recipe = recipe_of(("linear", "average", "gap", *ASKED["head"][3:]))
    needs = {"num_classes": 3, "null_class": True, "guidance": True, "velocity_head": True}
    recipe.flow_map(MLP(shape=(2,), width=8, depth=1, **needs))
    with pytest.raises(IncompatibleParts, match=remedy):
        recipe.flow_map(MLP(shape=(2,), width=8, depth=1, **{**needs, **has}))


def test_a_network_without_the_log_variance_is_refused() -> None:
    recipe = recipe_of(ASKED["residual"])
    with pytest.raises(IncompatibleParts, match=r"log_variance=False.*; build it with log_variance=True"):
        recipe.flow_map(MLP(shape=(2,), width=8, depth=1, num_classes=3, null_class=True))


# ---------------------------------------------------------------------------------------------------------- long checks


@pytest.mark.slow
def test_every_pair_of_parts_is_that_of_the_slow_reference() -> None:
    found = search(200_000)
    chosen = covering(found)
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, found))
    for combination in chosen:
        check(case_named(combination))


@pytest.mark.slow
def test_thousands_of_other_combinations_take_a_step() -> None:
    for combination in search(40_000, seed=1):
        step(case_named(combination))
