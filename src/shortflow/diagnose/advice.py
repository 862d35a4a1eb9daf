"""What to do with a diagnosis, in words, each with the figures that it rests on; differences only where errors
allow."""

import math
from collections.abc import Sequence

from shortflow.diagnose.record import Diagnosis
from shortflow.theory.estimates import Estimate

__all__ = ["advise_on_data", "advise_on_run", "shares_of"]

LITTLE = 0.01  # of a variance
MUCH = 0.1
WORDS = {"free": "mixing without the class", "masked": "masked by class", "class": "batches of one class"}


def _percent(e: Estimate) -> str:
    text = _short(100 * e.value)
    return f"{text} %" if math.isnan(e.error) else f"{text} ± {_short(float(f'{100 * e.error:.1g}'))} %"


def _short(value: float) -> str:
    """Two digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _stated(e: Estimate) -> str:
    return f"{e.value:.3g}" if math.isnan(e.error) else f"{e.value:.3g} ± {e.error:.1g}"


def _clear(a: Estimate, b: Estimate) -> bool:
    """Whether two values differ by more than two standard errors of their difference."""
    error = math.hypot(*(0.0 if math.isnan(e.error) else e.error for e in (a, b)))
    return abs(a.value - b.value) > 2 * error


def _curve(d: Diagnosis, name: str) -> list[tuple[float, Estimate]]:
    """The points of a curve."""
    found = d.curves[name]
    errors = found["error"] or [None] * len(found["y"])
    return [
        (x, Estimate(math.nan if y is None else y, math.nan if e is None else e))
        for x, y, e in zip(found["x"], found["y"], errors, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------- data


def advise_on_data(d: Diagnosis) -> None:
    _on_the_plug_in(d)
    _on_targets(d)
    _on_paths(d)
    _on_dimension(d)
    _on_the_adaptive_weight(d)
    _on_memory(d)


def _on_the_plug_in(d: Diagnosis) -> None:
    """By the variance that is removed, where the law is known; else by the rows that change at all.

    The variance of a finite set is that of one which is memorised: what is removed is a larger share of it than of that
    of new data.
    """
    batch, closed = d.settings["batch"], d.settings["closed"]
    kinds = [name.partition("/")[2] for name in d.scalars if name.startswith("removed/")]
    if not kinds:
        return
    removed, active = ({kind: d.number(f"{name}/{kind}") for kind in kinds} for name in ("removed", "active"))
    # A network that is told classes needs the velocity given the class: mixing all images answers another question.
    fitting = [kind for kind in kinds if kind != "free"] or kinds
    judged = removed if closed else active
    best = max(fitting, key=lambda kind: judged[kind].value)
    if judged[best].value < LITTLE:
        text = f"The plug-in velocity changes next to nothing at {batch} images: leave it out, or mix over more images."
    elif judged[best].value < MUCH:
        text = f"The plug-in velocity changes little at {batch} images; it costs little, too."
    else:
        text = (
            "Compare with and without the plug-in velocity, and with rows weighed alike: "
            f"at {batch} images it changes a good part of the targets."
        )
    evidence = "; ".join(
        f"{WORDS.get(kind, kind)}: {_percent(active[kind])} of rows change, "
        f"{_percent(removed[kind])} of the variance goes"
        for kind in kinds
    )
    d.advise(text, evidence if closed else f"{evidence} (of that of the data set's own law; of new data's less)")
    if "class" in kinds and "masked" in kinds:
        if _clear(judged["class"], judged["masked"]) and judged["class"].value > max(LITTLE, judged["masked"].value):
            text = "Draw batches of one class: the same number of images does more than with a mask."
        else:
            text = "Batches of one class bring the plug-in velocity no gain here that could be told from chance."
        d.advise(text, f"one class {_percent(judged['class'])}, masked {_percent(judged['masked'])}")
    _on_more_images(d, f"{'removed' if closed else 'active'}_by_images/{best}", batch)


def _on_more_images(d: Diagnosis, name: str, batch: int) -> None:
    points = _curve(d, name)
    enough = [x for x, each in points if each.value >= MUCH]
    if enough and enough[0] <= batch:
        return
    if enough:
        text = f"From about {enough[0]:,.0f} images on (a larger batch, or a memory) the plug-in velocity matters."
    else:
        text = f"Not even {points[-1][0]:,.0f} images make the plug-in velocity matter."
    d.advise(text, ", ".join(f"{x:,.0f} images {_percent(each)}" for x, each in points[-4:]))


def _on_targets(d: Diagnosis) -> None:
    """Compare targets over all cells that were measured."""
    if "continuous_variance" not in d.maps:
        d.advise(
            "Nothing can be said of targets: the data set collapses to single points at almost any noise.",
            f"collapse at t = {d.number('collapse_time').value:.3g}",
        )
        return
    half = _cells_of(d, "discrete_variance", "discrete_bias")
    if not half:
        return
    logs = [math.log(variance / floor) for floor, variance, _ in half]
    mean = sum(logs) / len(logs)
    error = math.sqrt(sum((each - mean) ** 2 for each in logs) / max(1, len(logs) - 1) / len(logs))
    ratio, clear = math.exp(mean), abs(mean) > 2 * error
    bias, short = (
        sum(bias / variance for _, variance, bias in cells) / max(1, len(cells))
        for cells in (half, _cells_of(d, "discrete_variance/eighth", "discrete_bias/eighth"))
    )
    if bias > MUCH:
        text = "Discrete targets with long first steps are biased: prefer continuous time, or first steps that shrink."
    elif clear and ratio < 0.8:
        text = "Discrete targets have less noise than continuous time at equal gradients, and little bias: try them."
    elif clear and ratio > 1.25:
        text = "Continuous time has less noise than discrete targets at equal gradients, and no bias: prefer it."
    else:
        text = "Discrete and continuous targets are equally noisy here; choose by cost and stability."
    d.advise(
        text,
        f"over {len(half)} cells (t, r) a first step of half the gap has {ratio:.2g} times the variance of the target "
        f"in continuous time (geometric mean, ± {100 * error:.0f} %), and a squared bias of {100 * bias:.2g} % of it; "
        f"of an eighth {100 * short:.2g} %",
    )


def _cells_of(d: Diagnosis, variance: str, bias: str) -> list[tuple[float, float, float]]:
    """(floor of continuous time, variance, squared bias) of the cells that were measured; a bias that cannot be told
    from 0 is 0."""
    floors, sizes = (_flat(d.maps[name]["values"]) for name in ("continuous_variance", variance))
    biases = _flat(d.maps[bias]["values"]) if bias in d.maps else [None] * len(floors)
    cells = zip(floors, sizes, biases, strict=True)
    return [(floor, size, off or 0.0) for floor, size, off in cells if floor and size and size > 0]


def _flat(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [value for row in rows for value in row]


def _on_paths(d: Diagnosis) -> None:
    ends = {name.partition("/")[2]: dict(_curve(d, name)) for name in d.curves if name.startswith("few_steps/")}
    own = d.settings["path_name"]
    if own not in ends:
        return
    for steps in (1, 4):
        found = {name: errors[steps] for name, errors in ends.items()}
        best, words = min(found, key=lambda name: found[name].value), "one step" if steps == 1 else f"{steps} steps"
        if best == own or not _clear(found[best], found[own]):
            text = f"No path follows its exact flow better in {words} than the recipe's ({own}), as far as errors tell."
        else:
            text = f"In {words} the path {best} follows its exact flow better than the recipe's ({own}): try it."
        d.advise(text, ", ".join(f"{name}: {_stated(each)}" for name, each in found.items()))


def _on_dimension(d: Diagnosis) -> None:
    keys = ("posterior", "two_neighbours", "neighbours")
    found = {key: d.number(f"dimension/{key}") for key in keys if f"dimension/{key}" in d.scalars}
    values = [each.value for each in found.values() if math.isfinite(each.value)]
    if not values:
        return
    evidence = ", ".join(f"{key.replace('_', ' ')} {each.value:.3g}" for key, each in found.items())
    spread = max(values) / max(min(values), 1e-9)
    ambient = d.number("dimension/ambient").value
    text = f"The data have about {_short(min(values))} to {_short(max(values))} dimensions out of {ambient:.0f}."
    if spread > 1.5:
        text += " The estimates disagree: take none of them for more than an order of magnitude."
    d.advise(text, evidence)


def _on_the_adaptive_weight(d: Diagnosis) -> None:
    """By the largest bias that can be told from 0, above the collapse: below it few points make the posterior."""
    low = d.number("collapse_time").value
    points = _curve(d, "adaptive_bias") if "adaptive_bias" in d.curves else []
    clear = [(t, each) for t, each in points if t >= low and each.value > max(LITTLE, 2 * each.error)]
    if clear:
        t, worst = max(clear, key=lambda point: point[1].value)
        d.advise(
            "The adaptive weight with power 1 pulls targets to where velocities are dense: compare with power 0.",
            f"squared bias of {_percent(worst)} of the velocity's variance at t = {t:.3g}",
        )


def _on_memory(d: Diagnosis) -> None:
    low = d.number("collapse_time").value
    if low > 0:
        d.advise(
            f"Read nothing into exact flows below t = {low:.2g}: there they lead back to single data points, which a "
            "network must not learn.",
            f"largest posterior weight above one half below t = {low:.3g}",
        )


# ----------------------------------------------------------------------------------------------------------------- run


def advise_on_run(d: Diagnosis) -> None:
    _on_the_bound(d)
    _on_consistency(d)
    _on_steps(d)
    _on_guidance(d)
    _on_copies(d)


def _on_the_bound(d: Diagnosis) -> None:
    if "bound" not in d.scalars:
        return
    bound, distance = d.number("bound"), d.number("distance")
    low = d.number("collapse_time").value
    shares = d.settings["error_shares"]
    worst = max(shares, key=lambda name: shares[name])
    text = f"Most of the error is made at {worst}" + (f", above the collapse at {low:.2g}." if low > 0 else ".")
    evidence = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    d.advise(text, f"shares of the bound: {evidence}; bound {_stated(bound)}, distance {_stated(distance)}")
    if distance.value > 1.001 * bound.value:
        d.advise(
            "The distance is above its bound: that is a defect of the measurement (or of the network's derivatives).",
            f"distance {distance.value:.4g}, bound {bound.value:.4g}",
        )
    if low > 0 and not d.settings["closed"]:
        d.advise(
            "The exact law is the data set itself: a part of this distance is that the network does not memorise.",
            f"the flow of the data set collapses below t = {low:.3g}, which is where "
            f"{100 * d.settings['error_below']:.0f} % of the bound come from",
        )


def _on_consistency(d: Diagnosis) -> None:
    keys = ("semigroup", "eulerian", "lagrangian", "boundary")
    found = {key: d.number(f"mean/{key}") for key in keys if f"mean/{key}" in d.scalars}
    if "semigroup" not in found or "boundary" not in found:
        return
    evidence = ", ".join(f"{key} {each.value:.3g}" for key, each in found.items())
    if found["semigroup"].value < MUCH * found["boundary"].value:
        text = (
            "The map agrees with itself and less with the data: jumps add up, but velocities at r = t are off. Give "
            "more rows to r = t, or train longer."
        )
    elif found["boundary"].value < MUCH * found["semigroup"].value:
        text = "Velocities at r = t are good and jumps do not add up: give more rows to r < t, or train longer."
    else:
        text = "Errors of velocities and of jumps are of one size: neither kind of row is starved."
    d.advise(text, evidence)


def _on_steps(d: Diagnosis) -> None:
    if "self_distance" not in d.curves:
        return
    points = dict(_curve(d, "self_distance"))
    one, scale = points[1], d.number("sample_spread").value
    share = Estimate(one.value / scale, one.error / scale)
    if d.settings["ends"] == "diagonal":
        text = "A network for velocities has no map for one step: take more steps, or distil it into a flow map."
    elif share.value > MUCH:
        text = "One step is far from many steps from the same noise: the map of long jumps is not learned yet."
    else:
        text = "One step is near many steps from the same noise: more steps will change little."
    d.advise(
        text, f"squared distance of 1 step to {d.settings['most_steps']}: {_percent(share)} of the spread of samples"
    )


def _on_guidance(d: Diagnosis) -> None:
    if "guidance" not in d.scalars:
        return
    found = d.number("guidance")
    if abs(found.value - 1) > 2 * found.error and abs(found.value - 1) > MUCH:
        d.advise(
            f"The weights carry guidance of about {found.value:.2g}: distances to the law of the data contain it.",
            f"realised scale {found.value:.3g} ± {found.error:.1g}",
        )


def _on_copies(d: Diagnosis) -> None:
    if "copies/samples" not in d.scalars:
        return
    made, real = d.number("copies/samples"), d.number("copies/held_out")
    nearer = d.number("nearer_to_training")
    evidence = (
        f"copies: {_percent(made)} of samples, {_percent(real)} of held-out data; nearer to training data than to as "
        f"many held-out ones: {_percent(nearer)}"
    )
    towards = nearer.value - 2 * nearer.error > 0.5
    # In few dimensions many points are "copies" by chance: one sign alone is none.
    if made.value > real.value and _clear(made, real) and towards:
        text = "The network has memorised: more of its samples are copies of training data than held-out data are."
    elif towards and nearer.value > 0.6:
        text = "Samples lean towards the training data, without being copies: look at nearest neighbours."
    else:
        text = "No sign of memorised data."
    d.advise(text, evidence)


def shares_of(times: Sequence[float], parts: Sequence[float], low: float) -> dict[str, float]:
    """How much of the parts from `low` on comes from each third of the times from there to 1."""
    ends = [low + (1 - low) * k / 3 for k in range(1, 3)]
    names = [f"t < {ends[0]:.2g}", f"{ends[0]:.2g} ≤ t < {ends[1]:.2g}", f"t ≥ {ends[1]:.2g}"]
    above = sum(part for time, part in zip(times, parts, strict=True) if time >= low) or 1.0
    found = dict.fromkeys(names, 0.0)
    for time, part in zip(times, parts, strict=True):
        if time >= low:
            found[names[sum(time >= end for end in ends)]] += part / above
    return found
