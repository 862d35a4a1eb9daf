"""What is advised follows from figures that are known, with the figures; and where errors are too large, nothing is."""

from typing import Any

import pytest

from shortflow.diagnose import Diagnosis
from shortflow.diagnose.advice import _on_the_adaptive_weight, advise_on_data, advise_on_run, shares_of
from shortflow.diagnose.velocities import NONE
from shortflow.theory.estimates import Estimate

PATHS = ("linear", "cosine")


def of_data(
    *,
    removed: dict[str, float],
    active: dict[str, float] | None = None,
    error: float = 0.01,
    by_images: tuple[float, ...] = (0.0, 0.0),
    cells: tuple[tuple[float, float, float | None], ...] = ((1.0, 1.0, 0.0), (1.0, 1.01, 0.0)),
    short: float | None = 0.0,
    few_steps: tuple[tuple[float, float], ...] = ((0.1, 0.01), (0.1, 0.01)),
    dimensions: tuple[float, ...] = (2.0, 2.1),
    adaptive: tuple[float, float] = (0.0, 0.01),
    collapse: float = 0.0,
) -> Diagnosis:
    """A diagnosis of data as `diagnose_data` makes it, before its advice."""
    closed = collapse == 0
    d = Diagnosis(kind="data", settings={"batch": 128, "closed": closed, "path_name": "linear"})
    active = active or removed
    for kind, value in removed.items():
        d.scalar(f"removed/{kind}", Estimate(value, error), "removed")
        d.scalar(f"active/{kind}", Estimate(active[kind], error), "active")
        for name in ("removed", "active"):
            d.curve(f"{name}_by_images/{kind}", [128, 4096], [Estimate(each, error) for each in by_images], name)
    places = {(0, j): cell for j, cell in enumerate(cells)}
    names = ("continuous_variance", "discrete_variance", "discrete_bias")
    for at, name in enumerate(names):
        values = {place: cell[at] for place, cell in places.items() if cell[at] is not None}
        d.map(name, [0.9], [0.1 * j for j in range(len(cells))], values, name)  # type: ignore[arg-type]
    d.maps["discrete_variance/eighth"] = d.maps["discrete_variance"]
    if short is not None:
        d.map("discrete_bias/eighth", [0.9], [0.0] * len(cells), dict.fromkeys(places, short), "bias")
    for name, (one, four) in zip(PATHS, few_steps, strict=True):
        d.curve(f"few_steps/{name}", [1, 4], [Estimate(one, 0.005), Estimate(four, 0.001)], name)
    for name, value in zip(("two_neighbours", "neighbours"), dimensions, strict=False):
        d.scalar(f"dimension/{name}", Estimate(value, 0.1), name)
    d.scalar("dimension/ambient", 64.0, "all")
    d.curve("adaptive_bias", [0.5], [Estimate(*adaptive)], "bias")
    d.scalar("collapse_time", collapse, "collapse")
    advise_on_data(d)
    return d


def texts(d: Diagnosis) -> str:
    return "\n".join(each["text"] for each in d.advice)


def evidence(d: Diagnosis, begins: str) -> str:
    return next(each["evidence"] for each in d.advice if each["text"].startswith(begins))


# --------------------------------------------------------------------------------------------------------- the plug-in


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        (0.002, "changes next to nothing at 128 images"),
        (0.05, "changes little at 128 images"),
        (0.4, "Compare with and without the plug-in velocity, and with rows weighed alike"),
    ],
)
def test_the_plug_in_velocity_is_judged_by_the_variance_that_it_removes(removed: float, says: str) -> None:
    d = of_data(removed={"all": removed})
    assert says in texts(d)
    assert f"{100 * removed:.2g} ± 1 % of the variance goes" in evidence(d, d.advice[0]["text"])


def test_of_a_finite_set_it_is_judged_by_the_rows_that_change() -> None:
    """The variance of a set that is its own law is that of a network that has memorised it."""
    d = of_data(removed={"all": 0.9}, active={"all": 0.03}, collapse=0.4)
    assert "changes little at 128 images" in texts(d)
    assert "of that of the data set's own law" in d.advice[0]["evidence"]


def test_mixing_without_the_class_is_not_what_a_network_with_classes_needs() -> None:
    d = of_data(removed={"free": 0.9, "masked": 0.002, "class": 0.004})
    assert "changes next to nothing" in texts(d)
    assert "mixing without the class: 90 ± 1 % of rows change" in d.advice[0]["evidence"]


@pytest.mark.parametrize(
    ("one_class", "error", "says"),
    [(0.8, 0.01, "Draw batches of one class"), (0.8, 0.2, "no gain here"), (0.5, 0.01, "no gain here")],
)
def test_batches_of_one_class_are_advised_where_they_do_more(one_class: float, error: float, says: str) -> None:
    d = of_data(removed={"free": 0.6, "masked": 0.5, "class": one_class}, error=error)
    assert says in texts(d)


@pytest.mark.parametrize(
    ("by_images", "says"),
    [
        ((0.005, 0.3), "From about 4,096 images on"),
        ((0.0, 0.005), "Not even 4,096 images make"),
        ((0.3, 0.6), None),
    ],
)
def test_more_images_are_advised_where_they_would_help(by_images: tuple[float, float], says: str | None) -> None:
    d = of_data(removed={"all": by_images[0]}, by_images=by_images)
    assert says in texts(d) if says else "images on" not in texts(d) and "Not even" not in texts(d)


# -------------------------------------------------------------------------------------------------- targets and paths


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (((1.0, 0.5, 0.0), (2.0, 1.02, 0.001)), "Discrete targets have less noise"),
        (((1.0, 2.0, 0.0), (2.0, 3.9, None)), "Continuous time has less noise"),
        (((1.0, 1.0, None), (2.0, 2.1, None)), "equally noisy"),
        (((1.0, 0.5, 0.0), (2.0, 4.0, 0.0)), "equally noisy"),  # half and double: nothing can be told
        (((1.0, 1.0, 0.4), (2.0, 1.5, 0.3)), "first steps are biased: prefer continuous time"),
    ],
)
def test_targets_are_compared_over_all_cells(cells: Any, says: str) -> None:
    d = of_data(removed={"all": 0.5}, cells=cells, short=None if cells[1][2] is None else 0.02)
    assert says in texts(d)
    said = next(each["evidence"] for each in d.advice if "cells (t, r)" in each["evidence"])
    assert said.startswith("over 2 cells (t, r)")
    assert "of an eighth" in said


def test_a_bias_is_a_mean_of_shares_of_the_variance() -> None:
    """Of half the gap ½ (0.4/1 + 0.3/1.5) = 30 %; of an eighth, in units of the same variances, ½ (0.1 + 0.1/1.5)."""
    d = of_data(removed={"all": 0.5}, cells=((1.0, 1.0, 0.4), (2.0, 1.5, 0.3)), short=0.1)
    said = evidence(d, "Discrete targets with long")
    assert "a squared bias of 30 % of it; of an eighth 8.3 %" in said
    assert "has 0.87 times the variance" in said  # √(1 · 0.75)


@pytest.mark.parametrize(
    ("few_steps", "one", "four"),
    [
        (
            ((0.1, 0.01), (0.05, 0.02)),
            "In one step the path cosine follows",
            "No path follows its exact flow better in 4",
        ),
        (((0.1, 0.01), (0.095, 0.004)), "No path follows its exact flow better in one", "In 4 steps the path cosine"),
    ],
)
def test_another_path_is_advised_where_it_is_clearly_better(few_steps: Any, one: str, four: str) -> None:
    d = of_data(removed={"all": 0.5}, few_steps=few_steps)
    assert one in texts(d)
    assert four in texts(d)
    assert f"linear: 0.1 ± 0.005, cosine: {few_steps[1][0]:.3g} ± 0.005" in evidence(d, one)


def test_dimensions_that_disagree_are_said_to() -> None:
    assert "about 2 to 2.1 dimensions out of 64." in texts(of_data(removed={"all": 0.5}))
    assert "disagree" not in texts(of_data(removed={"all": 0.5}))
    assert "The estimates disagree" in texts(of_data(removed={"all": 0.5}, dimensions=(2.0, 7.0)))


def test_the_adaptive_weight_is_doubted_where_velocities_are_skewed() -> None:
    assert "compare with power 0" in texts(of_data(removed={"all": 0.5}, adaptive=(0.3, 0.02)))
    for harmless in ((0.3, 0.2), (0.004, 0.001)):
        assert "power 0" not in texts(of_data(removed={"all": 0.5}, adaptive=harmless))
    # Below the collapse nothing is said, nor where variance is next to nothing.
    assert "power 0" not in texts(of_data(removed={"all": 0.5}, adaptive=(0.3, 0.02), collapse=0.6))
    d = Diagnosis(kind="data", settings={})
    d.scalar("collapse_time", 0.2, "collapse")
    d.curve("adaptive_bias", [0.1, 0.3, 0.5, 0.9], [NONE, Estimate(0.1, 0.01), Estimate(0.4, 0.3), NONE], "bias")
    _on_the_adaptive_weight(d)
    assert d.advice[0]["evidence"] == "squared bias of 10 ± 1 % of the velocity's variance at t = 0.3"


def test_below_the_collapse_nothing_is_read() -> None:
    assert "below t = 0.4" in texts(of_data(removed={"all": 0.5}, collapse=0.4))
    assert "Read nothing" not in texts(of_data(removed={"all": 0.5}))


# ---------------------------------------------------------------------------------------------------------------- runs


def of_run(**numbers: Any) -> Diagnosis:
    """A diagnosis of a run as `diagnose_run` makes it, before its advice."""
    settings = {"closed": True, "ends": "any", "most_steps": 128, "error_below": 0.0}
    settings |= {"error_shares": {"t < 0.33": 0.7, "0.33 ≤ t < 0.67": 0.2, "t ≥ 0.67": 0.1}}
    d = Diagnosis(kind="run", settings={**settings, **numbers.pop("settings", {})})
    d.scalar("collapse_time", 0.0, "collapse")
    for name, value in numbers.items():
        if name == "self_distance":
            d.curve(name, [1, 64], [Estimate(value, 0.001), Estimate(0.0, 0.0)], "distance")
            d.scalar("sample_spread", 1.0, "spread")
        else:
            d.scalar(name.replace("__", "/"), value if isinstance(value, Estimate) else Estimate(value, 0.01), name)
    advise_on_run(d)
    return d


def test_the_error_is_placed_and_a_bound_that_does_not_hold_is_a_defect() -> None:
    d = of_run(bound=2.0, distance=1.0)
    assert d.advice[0] == {
        "text": "Most of the error is made at t < 0.33.",
        "evidence": "shares of the bound: t < 0.33 70 %, 0.33 ≤ t < 0.67 20 %, t ≥ 0.67 10 %; bound 2 ± 0.01, distance "
        "1 ± 0.01",
    }
    assert "defect" not in texts(d)
    assert "above its bound: that is a defect" in texts(of_run(bound=1.0, distance=1.1))


@pytest.mark.parametrize(
    ("semigroup", "boundary", "says"),
    [
        (0.001, 0.1, "agrees with itself and less with the data"),
        (0.1, 0.001, "jumps do not add up"),
        (0.1, 0.1, "neither kind of row is starved"),
    ],
)
def test_jumps_and_velocities_are_weighed(semigroup: float, boundary: float, says: str) -> None:
    d = of_run(mean__semigroup=semigroup, mean__eulerian=0.1, mean__lagrangian=0.1, mean__boundary=boundary)
    assert says in texts(d)


@pytest.mark.parametrize(
    ("distance", "ends", "says"),
    [
        (0.5, "any", "far from many steps"),
        (0.05, "any", "near many steps"),
        (0.5, "diagonal", "no map for one step"),
    ],
)
def test_one_step_is_weighed_against_many(distance: float, ends: str, says: str) -> None:
    d = of_run(self_distance=distance, settings={"ends": ends})
    assert says in texts(d)
    assert f"of 1 step to 128: {100 * distance:.0f} ± 0.1 %" in d.advice[0]["evidence"]


def test_guidance_is_said_where_there_is_some() -> None:
    assert "guidance of about 2.5" in texts(of_run(guidance=2.5))
    for none in (1.05, Estimate(2.5, 1.0)):
        assert of_run(guidance=none).advice == []


@pytest.mark.parametrize(
    ("samples", "nearer", "says"),
    [
        (0.5, 0.9, "The network has memorised"),
        (0.0, 0.7, "lean towards the training data"),
        (0.5, 0.5, "No sign"),
        (0.0, 0.51, "No sign"),
    ],
)
def test_copies_are_told_by_two_signs(samples: float, nearer: float, says: str) -> None:
    d = of_run(copies__samples=samples, copies__held_out=0.02, nearer_to_training=nearer)
    assert says in texts(d)


def test_shares_are_of_thirds_of_the_times_above_the_collapse() -> None:
    found = shares_of([0.1, 0.45, 0.7, 0.95], [5.0, 1.0, 2.0, 1.0], 0.4)
    assert found == pytest.approx({"t < 0.6": 0.25, "0.6 ≤ t < 0.8": 0.5, "t ≥ 0.8": 0.25})
