"""Parts and methods in words: nothing without a phrase, and what differs is said."""

from dataclasses import dataclass, replace
from itertools import combinations

import pytest

from shortflow.config import difference_in_words, flatten, in_words, recipe_named, to_plain
from shortflow.config.parts import _KINDS
from shortflow.config.words import PHRASES, described
from shortflow.losses import Adaptive, Boundary, ByTime, Metric, Perceptual, Product, Unweighted, Variational
from shortflow.losses.weightings import Rule
from shortflow.recipes import RECIPES, SETTINGS, esc, meanflow
from shortflow.targets import Tangent, TwoStep
from shortflow.times import Between, SigmoidDecay, Triangle
from shortflow.velocity import Conditional, Reference

NAMES = [*RECIPES, *(f"{name}/{setting}" for name, settings in SETTINGS.items() for setting in settings[1:])]
LIBRARY = sorted(name for name, part in _KINDS.items() if part.__module__.startswith("shortflow."))
# Parts that need settings.
MADE = {
    "Boundary": Boundary(at=0.1),
    "ByTime": ByTime(rule="imm"),
    "Perceptual": Perceptual(trunk="a", heads="b"),
    "Product": Product(parts=(Adaptive(), Variational())),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_every_registered_part_has_a_phrase(name: str) -> None:
    part = MADE[name] if name in MADE else _KINDS[name]()
    assert type(part) in PHRASES, f"{name}: add a phrase to shortflow.config.words"
    words = in_words(part)
    assert words.strip() == words
    assert words
    assert "None" not in words
    assert "object at" not in words
    assert not words.endswith(".")


def test_every_rule_of_time_has_a_phrase() -> None:
    from typing import get_args

    words = {in_words(ByTime(rule=rule)) for rule in get_args(Rule)}
    assert len(words) == len(get_args(Rule))


def test_a_part_of_ones_own_is_described_by_its_docstring() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Told(Metric):
        """The worst coordinate.

        More on it.
        """

        def __call__(self, prediction, target, flow, draw):
            return prediction.flatten(1).amax(1)

    @dataclass(frozen=True, kw_only=True)
    class Untold(Metric):
        def __call__(self, prediction, target, flow, draw):
            return prediction.flatten(1).amax(1)

    assert in_words(Told()) == "The worst coordinate"
    assert in_words(Untold()) == "Untold"


def test_phrases_name_the_settings_that_matter() -> None:
    assert in_words(Adaptive(power=0.75, c=0.01)) == "by 1/(error + 0.01)^0.75"
    assert in_words(Adaptive(power=0.0)) == in_words(Unweighted()) == "alike"
    assert in_words(Product(parts=(Adaptive(), Variational()))) == "by 1/(error + 0.001) and by a learned e^−ℓ(t)"
    assert in_words(Tangent(velocity=Conditional())) == "takes the limit s → t along the pair's own velocity"
    assert in_words(TwoStep(first=None)) == "takes two steps of the network"
    heun = TwoStep(first=Reference(guidance=2.0), solver="heun")
    assert in_words(heun) == (
        "takes two steps: a Heun step along the velocity of a frozen teacher, guided with scale 2, then a jump of the "
        "network"
    )
    assert in_words(Between(base=Triangle(), at=SigmoidDecay())) == (
        "t and r uniform on the triangle r < t, split at a share α of the jump that falls from 1 to 0 over the run, "
        "along a sigmoid"
    )


def test_meanflow_and_shortcut_models_in_words() -> None:
    sentences = difference_in_words(recipe_named("meanflow"), recipe_named("shortcut"), ("meanflow", "shortcut"))
    assert (
        "meanflow takes the limit s → t along the pair's own velocity; shortcut takes two steps of the network, split "
        "in the middle, bounded by ±4; at r = t it regresses onto the pair's own velocity." in sentences
    )
    assert sentences[-1] == "The same in both: path, units, pairs, head and batches."


def test_esc_differs_from_meanflow_where_it_is_known_to() -> None:
    sentences = difference_in_words(meanflow(), esc(), ("meanflow", "esc"))
    ends = [sentence.split("; esc ")[1] for sentence in sentences[:-1]]
    assert [end.split()[0] for end in ends] == ["takes", "draws", "weighs", "fills", "is"]
    assert "mini-batch on 50 % of the rows" in ends[0]
    assert "jumps go to the data at first, over 3.33 % of the run" in ends[1]
    assert "learned" in ends[2]
    assert "one class" in ends[3]
    assert "clipped at 1" in ends[4]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_described_in_every_aspect(name: str) -> None:
    aspects = described(recipe_named(name))
    assert list(aspects) == list(described(meanflow()))
    for aspect, words in aspects.items():
        assert "None" not in words
        assert words == words.strip(), aspect
        assert not words.endswith(".")
    assert difference_in_words(recipe_named(name), recipe_named(name), (name, name)) == []


def test_any_two_methods_of_other_parts_differ_in_words() -> None:
    recipes = {name: recipe_named(name) for name in NAMES}
    words = {name: described(recipe) for name, recipe in recipes.items()}
    kinds = {
        name: {path: value for path, value in flatten(to_plain(recipe)) if path.endswith("kind")}
        for name, recipe in recipes.items()
    }
    alike = {(a, b) for a, b in combinations(NAMES, 2) if words[a] == words[b]}
    assert not {(a, b) for a, b in alike if kinds[a] != kinds[b]}
    assert not alike


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label_dropout": 0.2}, "hides the class on 20 % of the rows"),
        ({"weighting": Unweighted()}, "weighs rows alike"),
        ({"target": Tangent(velocity=Conditional(), warmup=0.1)}, "warmed up over 10 % of the run"),
    ],
)
def test_a_changed_setting_is_said(change: dict[str, object], words: str) -> None:
    other = replace(meanflow(), objective=replace(meanflow().objective, **change))  # pyright: ignore[reportArgumentType]
    assert words in " ".join(difference_in_words(meanflow(), other, ("a", "b")))
