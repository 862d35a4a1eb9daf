"""Every combination of parts works or is refused at construction, by name and with the remedy."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import (
    AverageVelocity,
    EDMSkip,
    LogSigma,
    LogStep,
    StartAndGap,
    StartOnly,
    TrigFlow,
)
from shortflow.grids import SquareRootCount
from shortflow.guidance import Guided
from shortflow.losses import (
    Adaptive,
    ByTime,
    KernelMMD,
    Product,
    SquaredError,
    Variational,
)
from shortflow.objective import Objective
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, consistency_training, imm, meanflow, sct, shortcut
from shortflow.targets import Direct, Split, Tangent, TwoStep
from shortflow.times import (
    Diagonal,
    Dyadic,
    Gradual,
    GridPairs,
    GroupedJumps,
    Independent,
    KarrasGrid,
    Sorted,
    ToData,
)
from shortflow.velocity import Conditional
from steps import drawn, flow_of, loss_and_gradient

PATHS: dict[str, Path] = {
    "linear": Linear(),
    "scaled": Linear(noise_scale=0.5),
    "cosine": Cosine(),
    "trig": Cosine(noise_scale=0.5),
    "ve": VarianceExploding(sigma_max=80.0),
    "ve-small": VarianceExploding(sigma_max=3.0),
    "custom": CustomPath(
        alpha_fn=lambda t: 1 - t**2,
        sigma_fn=lambda t: t,
        d_alpha_fn=lambda t: -2 * t,
        d_sigma_fn=lambda t: torch.ones_like(t),
    ),
}
# The recipes whose noise levels or angles are those of one path, and live reflow, whose straight jumps have one output
# for every end where DDIM steps are Euler steps only; all others are defined on every path.
ONLY_ON = {
    **dict.fromkeys(("edm", "ct", "ict", "ect", "cd", "tcm"), ("ve",)),
    **dict.fromkeys(("sct", "sct-distilled"), ("trig",)),
    "live-reflow": ("linear", "scaled", "ve", "ve-small"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_works_on_a_path_or_is_refused_at_construction(name: str, path: str) -> None:
    recipe = RECIPES[name]()
    if path not in ONLY_ON.get(name, PATHS):
        with pytest.raises(IncompatibleParts):
            replace(recipe, path=PATHS[path])
        return
    recipe = replace(recipe, path=PATHS[path])
    flow = flow_of(recipe)
    loss, slope = loss_and_gradient(recipe.objective, flow, drawn(recipe, 32))
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    assert slope.norm() > 0


# ------------------------------------------------------------------------------------------------------------ refusals


def two_step(**changes: object) -> Objective:
    parts = {"times": GroupedJumps(), "target": TwoStep(first=Conditional()), **changes}
    return Objective(**parts)  # pyright: ignore[reportArgumentType]


INCOMPATIBLE: dict[str, tuple[Callable[[], object], str]] = {
    "tangent with two-step times": (
        lambda: Objective(times=Dyadic(), target=Tangent()),
        "Tangent with Dyadic: .*use Sorted or Gradual or Independent or ToData times, or the target Split$",
    ),
    "tangent with grid pairs": (
        lambda: Objective(times=GridPairs(), target=Tangent()),
        "Tangent with GridPairs: .*or the target TwoStep$",
    ),
    "tangent without gaps": (
        lambda: Objective(times=Diagonal(), target=Tangent()),
        "Tangent with Diagonal: .*or the target Direct$",
    ),
    "two steps without gaps": (
        lambda: two_step(times=Diagonal()),
        "TwoStep with Diagonal: .*zero gaps; use GridPairs or GroupedJumps times, or the target Direct$",
    ),
    "two steps with mixed gaps": (
        lambda: two_step(times=Dyadic()),
        r"TwoStep with Dyadic: .*mixed gaps; use GridPairs or GroupedJumps times, or the target "
        r"Split\(bootstrap=TwoStep\(…\)\)$",
    ),
    "two steps with continuous times": (
        lambda: two_step(times=ToData()),
        r"TwoStep with ToData: .*two-step \(s < t\).*continuous \(s = t\).*or the target Tangent$",
    ),
    "direct with gaps": (
        lambda: Objective(times=Sorted(), target=Direct()),
        "Direct with Sorted: .*use Diagonal times, or the target Tangent$",
    ),
    "split without diagonal rows": (
        lambda: Objective(times=GridPairs(), target=Split()),
        "Split with GridPairs: .*use Dyadic times, or the target TwoStep$",
    ),
    "kernel with ungrouped times": (
        lambda: two_step(times=GridPairs(), metric=KernelMMD(group=4)),
        r"KernelMMD compares groups of 4 rows .* GridPairs draws groups of 1; use GroupedJumps\(group=4\)",
    ),
    "kernel with other groups": (
        lambda: two_step(times=GroupedJumps(group=2), metric=KernelMMD(group=4)),
        r"draws groups of 2; use GroupedJumps\(group=4\)",
    ),
    "states with diagonal rows": (
        lambda: Objective(times=Sorted(), target=Tangent(), metric=SquaredError(space="state")),
        "states are equal by construction where r = t, which Sorted draws; use space='output'",
    ),
    "guidance without a null class": (
        lambda: Objective(times=Sorted(), target=Tangent(velocity=Guided()), label_dropout=0.0),
        "omega 1, kappa 0.5, .* label_dropout is 0, .*set label_dropout to 0.1 or remove the guidance",
    ),
    "guided small steps without a null class": (
        lambda: Objective(times=Dyadic(), target=Split(bootstrap=TwoStep(first=None, guidance=2.0)), label_dropout=0.0),
        "scale 2 at the smallest step.* label_dropout is 0",
    ),
    "guided small steps of another length": (
        lambda: Objective(times=Dyadic(levels=5), target=Split(bootstrap=TwoStep(first=None, guidance=2.0))),
        "jumps of length 0.015625.*set guided_gap to 0.0625, the smallest one, or set guidance to 1",
    ),
    "guided small steps without dyadic times": (
        lambda: Objective(times=GroupedJumps(), target=TwoStep(first=None, guidance=2.0)),
        "none sees the data; use TwoStep.first=Conditional..., or Split with Dyadic times",
    ),
    "two steps of the network alone": (
        lambda: two_step(target=TwoStep(first=None)),
        "none sees the data; use TwoStep.first=Conditional..., or Split with Dyadic times",
    ),
    "no flow-matching rows": (
        lambda: Objective(times=Dyadic(share=1.0), target=Split()),
        "none sees the data; set share below 1",
    ),
    "guided velocity of a network that only jumps to the data": (
        lambda: Objective(times=ToData(), target=Tangent(velocity=Guided())),
        "ToData trains jumps to the data only; guide when sampling, or use Sorted or Gradual times",
    ),
    "a teacher on another number of noise levels": (
        lambda: replace(consistency_training().objective, times=GridPairs(count=SquareRootCount(s1=20))),
        "teacher.count = .* must equal times.count of GridPairs",
    ),
    "rows in two units": (
        lambda: replace(meanflow(), parameterization=AverageVelocity(normalize=True), sigma_data=0.5),
        "would be in different units; use AverageVelocity.. or Transfer..",
    ),
    "classes hidden on rows that never come": (
        lambda: two_step(dropped_rows="diagonal"),
        "GroupedJumps never draws, so the null class would never be trained; use dropped_rows='all'",
    ),
    "division by a zero step": (
        lambda: Objective(times=ToData(), target=Tangent(), weighting=ByTime(rule="inverse-step")),
        "divides by t − s, which is 0 on rows that ToData draws; use GridPairs or GroupedJumps",
    ),
    "division by a zero gap": (
        lambda: Objective(
            times=Sorted(), target=Tangent(), weighting=Product(parts=(ByTime(rule="inverse-gap"), Adaptive()))
        ),
        "divides by t − r, which is 0 on rows that Sorted draws",
    ),
    "an empty window": (lambda: meanflow(window=(1.0, 0.0)), r"window \[1.0, 0.0\] is empty"),
    "guidance of guidance": (lambda: Guided(base=Guided()), "guide once"),
    "log steps without dyadic times": (
        lambda: replace(meanflow(), conditioning=LogStep()),
        r"Sorted with LogStep\(steps=128\).*use Dyadic times with LogStep\(steps=128\)",
    ),
    "dyadic times without log steps": (
        lambda: replace(shortcut(), conditioning=StartAndGap()),
        r"Dyadic with StartAndGap.*use Dyadic times with LogStep\(steps=128\)",
    ),
    "log steps of another grid": (
        lambda: replace(shortcut(), conditioning=LogStep(steps=64)),
        r"use Dyadic times with LogStep\(steps=128\)",
    ),
    "grid pairs off their path": (
        lambda: Recipe(name="ct", path=Cosine(), objective=two_step(times=GridPairs())),
        r"KarrasGrid draws noise levels up to 80.0, the path is Cosine.*use VarianceExploding\(sigma_max=80.0\)",
    ),
    "grid pairs of another noise level": (
        lambda: Recipe(
            name="ct",
            path=VarianceExploding(sigma_max=80.0),
            conditioning=LogSigma(),
            objective=two_step(times=GridPairs(grid=KarrasGrid(sigma_max=20.0))),
        ),
        r"use VarianceExploding\(sigma_max=20.0\)",
    ),
    "one time for many ends": (
        lambda: replace(meanflow(), conditioning=StartOnly()),
        "Sorted draws many ends r, but StartOnly tells the network t only; use StartAndGap",
    ),
    "one noise level for many ends": (
        lambda: replace(imm(), conditioning=LogSigma()),
        "LogSigma tells the network t only",
    ),
    "trigflow off its path": (
        lambda: replace(meanflow(), parameterization=TrigFlow()),
        "TrigFlow needs the cosine path",
    ),
    "trigflow with another scale": (lambda: replace(sct(), sigma_data=1.0), r"use Cosine\(noise_scale=1.0\)"),
    "edm off its path": (
        lambda: replace(meanflow(), parameterization=EDMSkip()),
        r"EDMSkip needs the variance-exploding path.*use VarianceExploding\(\)",
    ),
    "variational before adaptive": (lambda: Product(parts=(Variational(), Adaptive())), "must be the last part"),
}


@pytest.mark.parametrize("what", INCOMPATIBLE)
def test_incompatible_parts_are_refused_by_name_with_the_remedy(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, before any random number is drawn."""
    build, message = INCOMPATIBLE[what]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: pytest.fail("a random number was drawn"))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: pytest.fail("a random number was drawn"))
    with pytest.raises(IncompatibleParts, match=message):
        build()


TIMES = (Diagonal(), Sorted(), Gradual(), Independent(), ToData(), Dyadic(), GridPairs(), GroupedJumps())


@pytest.mark.parametrize("law", TIMES, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("target", [Direct(), TwoStep(), Tangent(), Split()], ids=lambda target: type(target).__name__)
def test_following_the_remedy_gives_an_objective(law: object, target: object) -> None:
    """Every pair of target and law fits, or names laws and targets that do."""
    try:
        Objective(times=law, target=target)  # pyright: ignore[reportArgumentType]
    except IncompatibleParts as error:
        times, _, targets = str(error).rpartition("; use ")[2].partition(" times, or the target ")
        laws = {type(other).__name__: other for other in TIMES}
        others = {type(other).__name__: other for other in (Direct(), TwoStep(), Tangent(), Split())}
        if targets.startswith("Split("):
            assert targets == f"Split(bootstrap={type(target).__name__}(…))"
            others[targets] = Split(bootstrap=target)  # pyright: ignore[reportArgumentType]
        for name in times.split(" or "):
            Objective(times=laws[name], target=target)  # pyright: ignore[reportArgumentType]
        for name in targets.split(" or "):
            Objective(times=law, target=others[name])  # pyright: ignore[reportArgumentType]
