"""Which parts of an objective fit together. Everything else is refused at construction, by name, with the remedy."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from shortflow import times as laws
from shortflow.coupling import Coupling
from shortflow.errors import IncompatibleParts
from shortflow.guidance import GuidanceAsInput, PowerGuidance, TrainingGuidance
from shortflow.losses import Adaptive, ByTime, Metric, Weighting
from shortflow.targets import Along, Direct, Eulerian, Secant, Split, Tangent, Target, Terminal, TwoStep
from shortflow.teachers import ScheduledEma, Snapshot, Teacher
from shortflow.times import Between, Dyadic, StagedDyadic, TimeSampler, WithDiagonal
from shortflow.velocity import Conditional, Mixture, Own, PlugIn, Reference, Velocity

__all__ = ["check_guidance", "check_layout", "check_times", "dyadic_steps", "parts_of", "two_steps"]

LAWS = ("Diagonal", "Sorted", "Gradual", "Independent", "ToData", "Dyadic", "GridPairs", "GroupedJumps")


def _fits(target: Target, law: TimeSampler) -> bool:
    """Whether the target is defined for the jumps that the law draws."""
    return law.gap in target.gaps and target.continuous in (None, law.continuous)


def _strays(target: Target, law: TimeSampler) -> tuple[str, str] | None:
    """Jumps that the target asks the network for and the law never trains, in words, and the remedy."""
    steps, inner = two_steps(target), target.bootstrap if isinstance(target, Split) else target
    if law.ends == "zero" and isinstance(inner, Terminal):
        times = "WithDiagonal(jumps=Triangle())" if isinstance(target, Split) else "Triangle"
        return "follows the network through all ends r from t to 0", f"use {times} times, or the target Tangent"
    if law.ends == "zero" and steps is not None and steps.first is None:
        return "takes the first step, to s, by the network", "use first=Conditional(), or jumps to any end (Triangle)"
    if law.ends in ("zero", "dyadic") and steps is not None and steps.segments > 1:
        return (
            f"makes the second step in {steps.segments} jumps, to ends between s and r",
            "use segments=1, or jumps to any end (Triangle)",
        )
    return None


def _fitting(target: Target, law: TimeSampler) -> str:
    """The laws that would fit the target, and the targets that would fit the law, in words."""
    fits = [name for name in LAWS if _fits(target, other := getattr(laws, name)()) and not _strays(target, other)]
    fits = fits or ["Triangle"]  # jumps to any end on every row
    targets = [type(other).__name__ for other in (Direct(), TwoStep(), Tangent(), Split()) if _fits(other, law)]
    if law.gap == "mixed" and "positive" in target.gaps and target.continuous in (None, law.continuous):
        targets = [f"Split(bootstrap={type(target).__name__}(…))"]  # the jumps fit, the rows with r = t do not
    return f"use {' or '.join(fits)} times, or the target {' or '.join(targets)}"


def two_steps(target: Target) -> TwoStep | None:
    """The two steps inside a target, if it has any."""
    inner = target.bootstrap if isinstance(target, Split) else target
    inner = inner.steps if isinstance(inner, Secant) else inner
    return inner if isinstance(inner, TwoStep) else None


def parts_of(target: Target) -> tuple[Target, ...]:
    """The targets of the kinds of rows."""
    return target.parts if isinstance(target, Split) else (target,)


def has_diagonal(law: TimeSampler) -> bool:
    """Whether some rows have r = t."""
    if isinstance(law, Between):
        return has_diagonal(law.base)
    if isinstance(law, WithDiagonal) and law.ratio == 1:
        return has_diagonal(law.jumps)
    return law.gap == "zero" or (law.gap == "mixed" and getattr(law, "ratio", getattr(law, "share", 0.5)) < 1)


def dyadic_steps(law: TimeSampler) -> int | None:
    """The number of the finest steps of a law of dyadic jumps, also inside another law; None for all other laws."""
    if isinstance(law, Dyadic | StagedDyadic):
        return law.steps if law.ends == "dyadic" else None
    inside = (part for part in vars(law).values() if isinstance(part, TimeSampler))
    return next((found for part in inside if (found := dyadic_steps(part)) is not None), None)


def _inside(velocity: Velocity) -> list[Velocity]:
    """The velocity and those that it wraps."""
    inner = [velocity]
    if isinstance(velocity, TrainingGuidance):
        inner += _inside(velocity.base)
    if isinstance(velocity, Mixture):
        inner.append(velocity.plug_in)
    return inner


def check_times(
    law: TimeSampler, target: Target, metric: Metric, weightings: Sequence[Weighting], teacher: Teacher
) -> None:
    """Raise `IncompatibleParts` where target, metric or weighting are not defined for the times."""
    name = type(law).__name__
    if not _fits(target, law):
        steps = {None: "any", True: "continuous (s = t)", False: "two-step (s < t)"}
        raise IncompatibleParts(
            f"{type(target).__name__} with {name}: the target is for {steps[target.continuous]} times with "
            f"{' or '.join(target.gaps)} gaps t − r, the law has {steps[law.continuous]} ones with {law.gap} gaps; "
            + _fitting(target, law)
        )
    if law.limit and not (isinstance(target, Split) and target.limit is not None):
        raise IncompatibleParts(
            f"{type(target).__name__} with {name}: the first step of this law shrinks to nothing (s = t), where two "
            "steps are no target; use Split(…, limit=Tangent(…))"
        )
    if not isinstance(teacher, Snapshot):  # which holds the model that training started from
        _check_sight(law, target)
    strays = _strays(target, law)
    if strays is not None:
        trained = "jumps to the data" if law.ends == "zero" else "jumps of dyadic length"
        raise IncompatibleParts(
            f"{type(target).__name__} with {name}: the target {strays[0]}, but the law has {trained} only; {strays[1]}"
        )
    _check_variance(target)
    if metric.space == "state" and target.compares == "rate":
        raise IncompatibleParts(
            f"{type(metric).__name__} compares states, but {type(target).__name__} compares rates; use "
            "SquaredError(space='output')"
        )
    if metric.space == "state" and law.gap != "positive":
        raise IncompatibleParts(
            f"{type(metric).__name__} compares states, and states are equal by construction where r = t, "
            f"which {name} draws; use space='output' or a law that never has r = t"
        )
    if metric.group > 1 and law.group != metric.group:
        raise IncompatibleParts(
            f"{type(metric).__name__} compares groups of {metric.group} rows at the same times, but "
            f"{name} draws groups of {law.group}; use GroupedJumps(group={metric.group})"
        )
    for part in weightings:
        if (isinstance(part, Adaptive) or part.learned) and getattr(metric, "unbiased", False):
            raise IncompatibleParts(
                f"{type(part).__name__} is for errors that are not negative, but {type(metric).__name__}(unbiased=True)"
                " gives some below 0; use unbiased=False, or another weighting"
            )
        step = part.needs_step
        if (step or part.needs_gap) and (law.gap != "positive" or (step and (law.continuous or law.limit))):
            what = f"ByTime(rule={part.rule!r})" if isinstance(part, ByTime) else type(part).__name__
            raise IncompatibleParts(
                f"{what} divides by {'t − s' if step else 't − r'}, which is 0 on rows that {name} "
                "draws; use GridPairs or GroupedJumps times, or another weighting"
            )


def _sight(law: TimeSampler, target: Target) -> str:
    """What would let the network see the data."""
    if isinstance(target, Split):
        if not has_diagonal(law):
            return f"set {'share' if hasattr(law, 'share') else 'ratio'} below 1"
        return "use direct=Direct(velocity=Conditional())"
    if isinstance(target, TwoStep):
        return "use TwoStep(first=Conditional()), or Split with Dyadic times"
    if isinstance(target, Direct):
        return "use Direct(velocity=Conditional())"
    return f"use Split(bootstrap={type(target).__name__}(…)) and times that also draw r = t"


def _check_sight(law: TimeSampler, target: Target) -> None:
    """Raise `IncompatibleParts` if the network would only ever follow itself."""
    name = type(law).__name__
    if isinstance(target, Split):
        sees = target.bootstrap.grounded or (target.direct.grounded and has_diagonal(law))
    else:
        sees = target.grounded
    if not sees:
        raise IncompatibleParts(
            f"{type(target).__name__} with {name}: every row would regress the network onto itself, and none sees "
            f"the data; {_sight(law, target)}"
        )
    inside = [v for velocity in target.velocities() for v in _inside(velocity)]
    if any(isinstance(v, Own) and not v.head for v in inside) and not has_diagonal(law):
        raise IncompatibleParts(
            f"{type(target).__name__} with {name}: Own asks for the network's velocity u_{{t,t}}, but no row has "
            "r = t, so it would never be trained; use WithDiagonal, Sorted or Gradual times"
        )


def _check_variance(target: Target) -> None:
    """Raise `IncompatibleParts` where the variance of a velocity would enter a loss with its gradient."""
    inner = target.bootstrap if isinstance(target, Split) else target
    if not isinstance(inner, Eulerian) or inner.detach_space:
        return
    noisy = [v for v in _inside(inner.velocity) if isinstance(v, Conditional | PlugIn | Mixture)]
    if noisy:
        raise IncompatibleParts(
            f"Eulerian(detach_space=False) with {type(noisy[0]).__name__}: the gradient through ∇X·v would also shrink "
            "the variance of v, a bias; use detach_space=True, or velocity=Own()"
        )


def _known_number(law: TimeSampler) -> str:
    """How the number of rows that jump becomes one that is known."""
    inside = {"": law} | {f".{name}": part for name, part in vars(law).items() if isinstance(part, TimeSampler)}
    for where, part in inside.items():
        if getattr(part, "count", None) != "bernoulli":
            continue
        exact = replace(cast(Any, part), count="exact")
        if (exact if part is law else replace(cast(Any, law), **{where[1:]: exact})).jumping(64) is not None:
            return f"set times{where}.count to 'exact'"
    return "use layout='counted'"


def check_layout(law: TimeSampler, target: Target, layout: str) -> None:
    """Raise `IncompatibleParts` where a fixed layout cannot know beforehand which rows jump."""
    if layout not in ("counted", "fixed"):
        raise IncompatibleParts(f"layout must be 'counted' or 'fixed', got {layout!r}")
    if layout == "counted":
        return
    if law.jumping(64) is None:
        remedy = _known_number(law)
        raise IncompatibleParts(
            f"layout='fixed' needs as many rows with r < t in every batch, but {type(law).__name__} draws their "
            f"number; {remedy}"
        )
    if isinstance(target, Split) and target.limit is not None:
        raise IncompatibleParts(
            "layout='fixed' with Split(limit=…): the target of rows with r < t changes in the course of the run; use "
            "layout='counted'"
        )


def check_guidance(
    *,
    law: TimeSampler,
    target: Target,
    metric: Metric,
    weightings: Sequence[Weighting],
    label_dropout: float,
    dropped_rows: str,
    teacher: Teacher,
    guidance: PowerGuidance | None,
    velocity_head: bool,
    coupling: Coupling | None,
    pairs: bool,
    guided: str | None,
) -> None:
    """Raise `IncompatibleParts` where guidance, teacher, head or coupling do not fit."""
    velocities = [v for velocity in target.velocities() for v in _inside(velocity)]
    mixes = [v for v in velocities if isinstance(v, TrainingGuidance) and v.guides]
    steps, name = two_steps(target), type(law).__name__
    # Also a mix of scale 1 asks the network; but a velocity head learns from every row.
    asking = [v for v in velocities if isinstance(v, TrainingGuidance) and not v.idle and not getattr(v, "head", False)]
    if asking and law.ends == "zero" and law.gap == "positive":
        raise IncompatibleParts(
            f"{type(asking[0]).__name__} mixes in the network's own velocity u_{{t,t}}, but {name} trains jumps to the "
            "data only; guide when sampling, or use Sorted or Gradual times"
        )
    if isinstance(teacher, ScheduledEma) and getattr(law, "count", None) != teacher.count:
        raise IncompatibleParts(
            f"ScheduledEma follows the number of noise levels, so teacher.count = {teacher.count} must equal "
            f"times.count of {name}; set both, or use Ema(rate=…)"
        )
    if isinstance(teacher, Snapshot) and law.stages != teacher.stages:
        raise IncompatibleParts(
            f"Snapshot renews its weights after each of {teacher.stages} stages, but {name} has "
            f"{law.stages}; make them equal, with StagedDyadic times"
        )
    # A guided teacher has a null class of its own.
    ours = bool(mixes) or (steps is not None and steps.guidance != 1) or getattr(coupling, "guidance", 1) != 1
    if label_dropout == 0 and guided is not None and ours:
        raise IncompatibleParts(
            f"{guided} needs the unconditional velocity, but label_dropout is 0, so the null class would "
            "never be trained; set label_dropout to 0.1 or remove the guidance"
        )
    if label_dropout == 0 and mixes and guided is None:
        raise IncompatibleParts(
            "guidance that the network is told needs the unconditional velocity, but label_dropout is 0; set it to 0.1"
        )
    if label_dropout > 0 and dropped_rows == "diagonal" and law.gap == "positive":
        raise IncompatibleParts(
            f"dropped_rows='diagonal' hides classes where r = t only, which {name} never draws, so "
            "the null class would never be trained; use dropped_rows='all' or label_dropout=0"
        )
    dyadic = dyadic_steps(law)
    smallest = None if dyadic is None else 2 / dyadic
    if steps is not None and steps.guidance != 1 and steps.guided_gap != smallest:
        remedy = "use Dyadic times" if smallest is None else f"set guided_gap to {smallest:g}, the smallest one"
        raise IncompatibleParts(
            f"TwoStep guides jumps of length {steps.guided_gap:g}, but {law} does not start from those; "
            f"{remedy}, or set guidance to 1"
        )
    _check_once(velocities, mixes, steps)
    _check_told(velocities, guidance)
    _check_head(target, metric, weightings, velocities, velocity_head)
    _check_pairs(target, velocities, law, coupling, pairs)


def _check_once(velocities: Sequence[Velocity], mixes: Sequence[TrainingGuidance], steps: TwoStep | None) -> None:
    """Raise `IncompatibleParts` where guidance would act twice."""
    also = [f"TwoStep (scale {steps.guidance:g})"] if steps is not None and steps.guidance != 1 else []
    also += [f"Reference (scale {v.guidance:g})" for v in velocities if isinstance(v, Reference) and v.guidance != 1]
    if mixes and also:
        raise IncompatibleParts(
            f"{type(mixes[0]).__name__} ({mixes[0].words}) and {also[0]}: guidance would act twice; set one of the two "
            "scales to 1"
        )


def _check_told(velocities: Sequence[Velocity], guidance: PowerGuidance | None) -> None:
    told = any(isinstance(v, GuidanceAsInput) for v in velocities)
    other = next(
        (v for v in velocities if isinstance(v, TrainingGuidance) and not isinstance(v, GuidanceAsInput)), None
    )
    if told and other is not None:
        raise IncompatibleParts(
            f"GuidanceAsInput and {type(other).__name__}: the network would be told a scale and carry another; guide "
            "with one of them"
        )
    if told and guidance is None:
        raise IncompatibleParts("GuidanceAsInput needs scales to train with; set objective.guidance to PowerGuidance()")
    if guidance is not None and not told:
        raise IncompatibleParts(
            "objective.guidance tells the network a scale, but no velocity follows it; use GuidanceAsInput as the "
            "target's velocity, or set objective.guidance to null"
        )


def _check_head(
    target: Target,
    metric: Metric,
    weightings: Sequence[Weighting],
    velocities: Sequence[Velocity],
    velocity_head: bool,
) -> None:
    asked: list[Any] = [v for v in velocities if isinstance(v, Own | GuidanceAsInput) and v.head]
    if asked and not velocity_head:
        raise IncompatibleParts(
            f"{type(asked[0]).__name__}(head=True) asks the velocity head, but objective.velocity_head is off; turn "
            "it on, or set head to false"
        )
    if not velocity_head:
        return
    if not isinstance(target, Tangent | Direct | Along):
        raise IncompatibleParts(
            f"velocity_head learns the velocity at the heart of the target, which {type(target).__name__} has not on "
            "every row; use Tangent, Direct or Along"
        )
    if metric.space != "output":
        raise IncompatibleParts("velocity_head is compared as an output; use a metric with space='output'")
    if any(part.learned for part in weightings):
        raise IncompatibleParts(
            "velocity_head and a learned weighting: one log-variance cannot balance two errors; use Adaptive or "
            "Unweighted"
        )


def _check_pairs(
    target: Target, velocities: Sequence[Velocity], law: TimeSampler, coupling: Coupling | None, pairs: bool
) -> None:
    if coupling is not None and pairs:
        raise IncompatibleParts("coupling makes the pairs that pairs=True expects in the data; choose one of them")
    if coupling is not None and not (target == Along() and law.gap == "mixed"):
        raise IncompatibleParts(
            f"{type(coupling).__name__} couples the pairs of rows with r < t, whose target must be their own straight "
            "path; use Along() with WithDiagonal times (and guide the pairs, if at all)"
        )
    if coupling is None and not pairs:
        return
    plug = next((v for v in velocities if isinstance(v, PlugIn | Mixture)), None)
    if plug is not None:
        raise IncompatibleParts(
            f"{type(plug).__name__} is the velocity of independent pairs, but here data and noise are coupled; use "
            "Conditional()"
        )
