"""Targets, velocities, teachers, guidance and couplings that do not fit: each refusal, and its remedy, followed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from shortflow.coupling import LivePairs
from shortflow.errors import IncompatibleParts
from shortflow.guidance import FadingGuidance, GuidanceAsInput, Guided, PowerGuidance
from shortflow.losses import Adaptive, KernelMMD, PseudoHuber, SquaredError, Variational
from shortflow.objective import GrowingEma, Objective, Snapshot
from shortflow.targets import Along, Direct, Eulerian, Secant, Split, Tangent, Target, Terminal, TwoStep
from shortflow.times import Diagonal, Dyadic, Gradual, GridPairs, GroupedJumps, Sorted, TimeSampler, ToData, Triangle
from shortflow.typing import Progress, Times
from shortflow.velocity import Conditional, Mixture, Own, PlugIn, Reference

Build = Callable[[], object]


def of(times: TimeSampler, target: Target, **settings: object) -> Build:
    return lambda: Objective(times=times, target=target, **settings)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Shrinking(TimeSampler):
    """A law of two steps whose first one shrinks to nothing, in three stages."""

    uniforms: ClassVar[int] = 1
    gap: ClassVar = "mixed"
    ends: ClassVar = "any"
    continuous: ClassVar[bool] = False
    limit: ClassVar[bool] = True
    stages: ClassVar[int] = 3

    def times(self, u: Tensor, progress: Progress) -> Times:
        return Times(u[:, 0], u[:, 0], 0 * u[:, 0])


TOLD = Tangent(velocity=GuidanceAsInput(head=False))
HEAD = Tangent(direction=Own(head=True))

REFUSED: dict[str, tuple[Build, str, list[Build]]] = {
    "a terminal velocity on rows without a jump": (
        of(Sorted(), Terminal()),
        r"Terminal with Sorted: .*or the target Split\(bootstrap=Terminal\(…\)\)$",
        [of(Sorted(), Split(bootstrap=Terminal()))],
    ),
    "a residual on rows without a jump": (
        of(Gradual(), Eulerian()),
        r"or the target Split\(bootstrap=Eulerian\(…\)\)$",
        [of(Gradual(), Split(bootstrap=Eulerian()))],
    ),
    "a secant on rows without a jump": (
        of(Dyadic(), Secant()),
        r"use GridPairs or GroupedJumps times, or the target Split\(bootstrap=Secant\(…\)\)$",
        [of(GridPairs(), Secant()), of(GroupedJumps(), Secant()), of(Dyadic(), Split(bootstrap=Secant()))],
    ),
    "a terminal velocity with two steps": (
        of(GroupedJumps(), Terminal(velocity=Reference())),
        "use Triangle times, or the target TwoStep$",
        [of(Triangle(), Terminal(velocity=Reference())), of(GroupedJumps(), TwoStep())],
    ),
    "a secant in continuous time": (
        of(ToData(), Secant()),
        "use GridPairs or GroupedJumps times, or the target Tangent$",
        [of(GridPairs(), Secant()), of(ToData(), Tangent())],
    ),
    "a step that shrinks to nothing": (
        of(Shrinking(), Split(bootstrap=Secant())),
        r"shrinks to nothing \(s = t\).*use Split\(…, limit=Tangent\(…\)\)",
        [of(Shrinking(), Split(bootstrap=Secant(), limit=Tangent()))],
    ),
    "self-distillation without data": (
        of(ToData(), Terminal()),
        r"none sees the data; use Split\(bootstrap=Terminal\(…\)\) and times that also draw r = t",
        [of(Sorted(), Split(bootstrap=Terminal()))],
    ),
    "a residual without data": (
        of(ToData(), Eulerian()),
        r"use Split\(bootstrap=Eulerian\(…\)\) and times that also draw r = t",
        [of(Sorted(), Split(bootstrap=Eulerian()))],
    ),
    "a secant of the network alone": (
        of(GroupedJumps(), Secant(steps=TwoStep(first=None))),
        r"use Split\(bootstrap=Secant\(…\)\) and times that also draw r = t",
        [of(Dyadic(), Split(bootstrap=Secant(steps=TwoStep(first=None))))],
    ),
    "flow matching onto itself": (
        of(Diagonal(), Direct(velocity=Own())),
        r"none sees the data; use Direct\(velocity=Conditional\(\)\)",
        [of(Diagonal(), Direct(velocity=Conditional()))],
    ),
    "a head that learns itself": (
        of(Sorted(), Tangent(velocity=Own(head=True)), velocity_head=True),
        "none sees the data",
        [of(Sorted(), HEAD, velocity_head=True)],
    ),
    "rows without a jump that see no data": (
        of(Sorted(), Split(direct=Direct(velocity=Own()), bootstrap=Terminal())),
        r"use direct=Direct\(velocity=Conditional\(\)\)",
        [of(Sorted(), Split(direct=Direct(velocity=Conditional()), bootstrap=Terminal()))],
    ),
    "no row without a jump": (
        of(Sorted(ratio=1.0), Split(bootstrap=Terminal())),
        "set ratio below 1",
        [of(Sorted(ratio=0.9), Split(bootstrap=Terminal()))],
    ),
    "a velocity that nobody trains": (
        of(ToData(), Tangent(direction=Own())),
        "Own asks for the network's velocity .*use WithDiagonal, Sorted or Gradual times",
        [of(Sorted(), Tangent(direction=Own())), of(Gradual(), Tangent(direction=Own()))],
    ),
    "a noisy velocity with gradient through space": (
        of(Sorted(), Split(bootstrap=Eulerian(velocity=Conditional(), detach_space=False))),
        r"Eulerian\(detach_space=False\) with Conditional: .*use detach_space=True, or velocity=Own\(\)",
        [
            of(Sorted(), Split(bootstrap=Eulerian(velocity=Conditional()))),
            of(Sorted(), Split(bootstrap=Eulerian(detach_space=False))),
        ],
    ),
    "a noisy guided velocity with gradient through space": (
        of(Sorted(), Split(bootstrap=Eulerian(velocity=Guided(base=PlugIn()), detach_space=False))),
        "with PlugIn: .*detach_space=True",
        [of(Sorted(), Split(bootstrap=Eulerian(velocity=Guided(base=PlugIn()))))],
    ),
    "states beside rates": (
        of(Triangle(), Terminal(velocity=Reference()), metric=PseudoHuber()),
        r"Terminal compares rates; use SquaredError\(space='output'\)",
        [of(Triangle(), Terminal(velocity=Reference()), metric=SquaredError(space="output"))],
    ),
    "a kernel beside rates": (
        of(Sorted(), Split(bootstrap=Eulerian()), metric=KernelMMD()),
        "KernelMMD compares states, but Split compares rates",
        [of(Sorted(), Split(bootstrap=Eulerian()), metric=SquaredError())],
    ),
    "the network's velocity in training for the data end": (
        of(ToData(), Tangent(velocity=FadingGuidance())),
        "FadingGuidance mixes in .* ToData trains jumps to the data only; .*use Sorted or Gradual times",
        [of(Sorted(), Tangent(velocity=FadingGuidance())), of(Gradual(), Tangent(velocity=FadingGuidance()))],
    ),
    "the network's velocity for the data end, told": (
        of(ToData(), TOLD, guidance=PowerGuidance()),
        "GuidanceAsInput mixes in .*use Sorted or Gradual times",
        [
            of(Sorted(), TOLD, guidance=PowerGuidance()),
            of(ToData(), Tangent(velocity=GuidanceAsInput()), guidance=PowerGuidance(), velocity_head=True),
        ],
    ),
    "stages that the times do not have": (
        of(Sorted(), Tangent(), teacher=Snapshot()),
        "each of 7 stages, but Sorted has 1; make them equal",
        [of(Shrinking(), Split(bootstrap=TwoStep(), limit=Tangent()), teacher=Snapshot(stages=3))],
    ),
    "other stages than those of the times": (
        of(Shrinking(), Split(bootstrap=TwoStep(), limit=Tangent()), teacher=Snapshot(stages=4)),
        "each of 4 stages, but Shrinking has 3; make them equal",
        [of(Shrinking(), Split(bootstrap=TwoStep(), limit=Tangent()), teacher=GrowingEma())],
    ),
    "fading guidance without a null class": (
        of(Sorted(), Tangent(velocity=FadingGuidance()), label_dropout=0.0),
        "scale 3 up to t = 0.8, .*label_dropout is 0, .*set label_dropout to 0.1 or remove the guidance",
        [
            of(Sorted(), Tangent(velocity=FadingGuidance()), label_dropout=0.1),
            of(Sorted(), Tangent(velocity=FadingGuidance(scale=1.0)), label_dropout=0.0),
        ],
    ),
    "guided pairs without a null class": (
        of(Sorted(), Along(), coupling=LivePairs(guidance=2.0), label_dropout=0.0),
        "scale 2 of the pairs.*set label_dropout to 0.1",
        [of(Sorted(), Along(), coupling=LivePairs(guidance=2.0)), of(Sorted(), Along(), label_dropout=0.0)],
    ),
    "a scale that is told without a null class": (
        of(Sorted(), TOLD, guidance=PowerGuidance(), label_dropout=0.0),
        "label_dropout is 0; set it to 0.1",
        [of(Sorted(), TOLD, guidance=PowerGuidance(), label_dropout=0.1)],
    ),
    "a scale that is not drawn": (
        of(Sorted(), TOLD),
        r"set objective.guidance to PowerGuidance\(\)",
        [of(Sorted(), TOLD, guidance=PowerGuidance())],
    ),
    "a scale that nothing follows": (
        of(Sorted(), Tangent(), guidance=PowerGuidance()),
        "use GuidanceAsInput as the target's velocity, or set objective.guidance to null",
        [of(Sorted(), TOLD, guidance=PowerGuidance()), of(Sorted(), Tangent())],
    ),
    "a scale that is told and one that is not": (
        of(Sorted(), replace(TOLD, direction=Guided()), guidance=PowerGuidance()),
        "GuidanceAsInput and Guided: .*guide with one of them",
        [of(Sorted(), TOLD, guidance=PowerGuidance()), of(Sorted(), Tangent(direction=Guided()))],
    ),
    "a head that is not there": (
        of(Sorted(), HEAD),
        r"Own\(head=True\) asks the velocity head, .*turn it on, or set head to false",
        [of(Sorted(), HEAD, velocity_head=True), of(Sorted(), Tangent(direction=Own()))],
    ),
    "guidance by a head that is not there": (
        of(Sorted(), Tangent(velocity=GuidanceAsInput()), guidance=PowerGuidance()),
        r"GuidanceAsInput\(head=True\) asks the velocity head",
        [
            of(Sorted(), Tangent(velocity=GuidanceAsInput()), guidance=PowerGuidance(), velocity_head=True),
            of(Sorted(), TOLD, guidance=PowerGuidance()),
        ],
    ),
    "a head without a velocity to learn": (
        of(Dyadic(), Split(), velocity_head=True),
        "which Split has not on every row; use Tangent, Direct or Along",
        [
            of(Sorted(), Tangent(), velocity_head=True),
            of(Diagonal(), Direct(), velocity_head=True),
            of(Sorted(), Along(), velocity_head=True),
        ],
    ),
    "a head compared as a state": (
        of(ToData(), Tangent(), velocity_head=True, metric=PseudoHuber()),
        "use a metric with space='output'",
        [of(ToData(), Tangent(), velocity_head=True, metric=PseudoHuber(space="output"))],
    ),
    "one log-variance for two errors": (
        of(Sorted(), Tangent(), velocity_head=True, weighting=Variational()),
        "use Adaptive or Unweighted",
        [
            of(Sorted(), Tangent(), velocity_head=True, weighting=Adaptive()),
            of(Sorted(), Tangent(), velocity_head=True),
        ],
    ),
    "pairs twice": (
        of(Sorted(), Along(), coupling=LivePairs(), pairs=True),
        "choose one of them",
        [of(Sorted(), Along(), coupling=LivePairs()), of(Sorted(), Along(), pairs=True)],
    ),
    "pairs for another target": (
        of(Sorted(), Tangent(), coupling=LivePairs()),
        r"use Along\(\) with WithDiagonal times",
        [of(Sorted(), Along(), coupling=LivePairs())],
    ),
    "pairs whose rows do not follow their path": (
        of(Sorted(), Along(velocity=Guided()), coupling=LivePairs()),
        r"whose target must be their own straight path; use Along\(\).*guide the pairs",
        [of(Sorted(), Along(), coupling=LivePairs(guidance=2.0))],
    ),
    "pairs that no row takes": (
        of(Diagonal(), Along(), coupling=LivePairs()),
        "couples the pairs of rows with r < t",
        [of(Sorted(), Along(), coupling=LivePairs())],
    ),
    "the velocity of independent pairs": (
        of(Sorted(), Along(velocity=Mixture()), pairs=True),
        r"Mixture is the velocity of independent pairs, .*use Conditional\(\)",
        [of(Sorted(), Along(), pairs=True)],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name_and_the_remedy_works(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, before any random number is drawn."""
    build, message, remedies = REFUSED[what]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: pytest.fail("a random number was drawn"))
    with pytest.raises(IncompatibleParts, match=message):
        build()
    for remedy in remedies:
        remedy()


LAWS: list[TimeSampler] = [Diagonal(), Sorted(), Gradual(), ToData(), Dyadic(), GridPairs(), GroupedJumps()]
GROUNDED: list[Target] = [
    Along(),
    Secant(),
    Terminal(velocity=Reference()),
    Terminal(velocity=Reference(), through=False),
    Eulerian(velocity=Reference()),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("target", GROUNDED, ids=repr)
def test_following_the_words_of_a_refusal_gives_an_objective(law: TimeSampler, target: Target) -> None:
    """Every law that is named takes the target, and every target that is named fits the law."""
    try:
        Objective(times=law, target=target)
    except IncompatibleParts as error:
        times, _, targets = str(error).rpartition("; use ")[2].partition(" times, or the target ")
        laws = {type(other).__name__: other for other in LAWS}
        name = type(target).__name__
        others = {"Direct": Direct(), "TwoStep": TwoStep(), "Tangent": Tangent(), "Split": Split()}
        if targets.startswith("Split("):
            others = {f"Split(bootstrap={name}(…))": Split(bootstrap=target)}
        for word in times.split(" or "):
            if word in laws:
                Objective(times=laws[word], target=target)
        for word in targets.split(" or "):
            Objective(times=law, target=others[word])
