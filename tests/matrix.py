"""How a combination of parts becomes a recipe, the small network that trains it, and ways through the matrix.

A combination names one value from each axis of `matrix_axes`. Whatever else it needs (guidance that the network is
told, a velocity head) follows from these; whether it may exist is for the library to say.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random as Dice
from typing import Any

import torch
from torch import Tensor, nn

from matrix_axes import (
    AXES,
    CLASSES,
    CONDITIONINGS,
    DATA,
    METRICS,
    NULL,
    OPTIONS,
    PARAMETERIZATIONS,
    PATHS,
    ROWS,
    TARGETS,
    TEACHERS,
    TIMES,
    VELOCITIES,
    WEIGHTINGS,
)
from shortflow.draw import Draw, References
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap, Transfer
from shortflow.guidance import GuidanceAsInput, PowerGuidance
from shortflow.objective import Objective
from shortflow.recipe import Recipe
from shortflow.streams import Streams
from shortflow.teachers import Online
from shortflow.typing import Batch, Progress
from steps import needed

Combination = tuple[str, ...]


def objective_of(
    times: str, target: str, velocity: str, metric: str, weighting: str, teacher: str, options: str
) -> Objective:
    """The objective of a combination, with what its velocities bring with them."""
    settings: dict[str, Any] = {"label_dropout": 0.3, **OPTIONS[options]}
    velocities = (VELOCITIES[velocity],) if target not in ("two-own",) else ()
    if any(isinstance(v, GuidanceAsInput) for v in velocities):
        settings["guidance"] = PowerGuidance()
    if target == "tangent-head" or any(getattr(v, "head", False) for v in velocities):
        settings["velocity_head"] = True
    objective = Objective(
        times=TIMES[times],
        target=TARGETS[target](VELOCITIES[velocity]),
        metric=METRICS[metric],
        weighting=WEIGHTINGS[weighting],
        teacher=TEACHERS[teacher],
        **settings,
    )
    return objective.unconditional() if options == "unconditional" else objective


def recipe_of(combination: Combination) -> Recipe:
    """The recipe of a combination; raises whatever the library raises."""
    path, parameterization, conditioning, *rest = combination
    return Recipe(
        name="-".join(combination),
        path=PATHS[path],
        parameterization=PARAMETERIZATIONS[parameterization],
        conditioning=CONDITIONINGS[conditioning],
        sigma_data=DATA,
        objective=objective_of(*rest),
    )


# ------------------------------------------------------------------------------------------------------ what is trained


class Small(nn.Module):
    """tanh(W x + c) read by two heads: the contract of `shortflow.nn` in a few operations, all weights random."""

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        seed: int = 1,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        (d,), width = shape, 4

        def weight(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size, generator=generator, dtype=torch.float64) / size[-1] ** 0.5)

        self.num_classes, self.null_label = num_classes, num_classes if null_class else None
        self.first, self.time, self.last = weight(width, d), weight(width, 2), weight(d, width)
        self.skip = weight(d, d)
        self.second = weight(width, 2) if second_time else None
        self.table = weight(num_classes + null_class, width) if num_classes else None
        self.told = weight(width, 3) if guidance else None
        self.head = weight(d, width) if velocity_head else None
        self.uncertain = weight(2) if log_variance else None

    @staticmethod
    def _wave(time: Tensor) -> Tensor:
        return torch.stack([torch.sin(time), torch.cos(0.7 * time)], 1)

    def _hidden(self, x: Tensor, time: Tensor, second: Any, label: Any, guidance: Any) -> Tensor:
        assert (second is None) == (self.second is None)
        assert (guidance is None) == (self.told is None)
        c = self._wave(time) @ self.time.T
        if self.second is not None:
            c = c + self._wave(2 * second) @ self.second.T
        if self.table is not None:
            c = c + self.table[torch.full(time.shape, self.null_label) if label is None else label]
        else:
            assert label is None
        if self.told is not None:
            c = c + torch.sin(guidance) @ self.told.T
        return torch.tanh(x @ self.first.T + c)

    def forward(self, x: Tensor, time: Tensor, second: Any = None, label: Any = None, guidance: Any = None) -> Tensor:
        return self._hidden(x, time, second, label, guidance) @ self.last.T + 0.3 * x @ self.skip.T

    def both(self, x: Tensor, time: Tensor, second: Any = None, label: Any = None, guidance: Any = None) -> Any:
        assert self.head is not None
        hidden = self._hidden(x, time, second, label, guidance)
        return hidden @ self.last.T + 0.3 * x @ self.skip.T, hidden @ self.head.T

    def log_variance(self, time: Tensor, second: Any = None, label: Any = None) -> Tensor:
        assert self.uncertain is not None
        return self._wave(time) @ self.uncertain


Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Case:
    """One step of a recipe: the flow map, the model that targets are computed with, and the draw."""

    recipe: Recipe
    flow: FlowMap
    teacher: FlowMap
    draw: Draw


def case_of(
    recipe: Recipe, build: Build = Small, shape: tuple[int, ...] = (2,), labels: bool = True, rows: int = ROWS
) -> Case:
    """A step of the recipe a little into the run, some of whose rows have a hidden class."""
    needs = needed(recipe, CLASSES if labels else 0)
    flow = recipe.flow_map(build(shape, **needs, seed=1))
    online = isinstance(recipe.objective.teacher, Online)
    teacher = flow if online else recipe.flow_map(build(shape, **needs, seed=2))
    frozen = [
        FlowMap(
            build(shape, num_classes=CLASSES if labels else 0, null_class=labels, second_time=True, seed=3 + i),
            recipe.path,
            Transfer(),
            sigma_data=DATA,
        )
        for i in range(2)
    ]
    generator = torch.Generator().manual_seed(0)
    x = DATA * torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 1, 2, 0, 2, 2])[:rows] if labels else None
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64) if recipe.objective.pairs else None
    draw = recipe.objective.draw(
        Batch(x=x, label=label, eps=eps),
        recipe.path,
        Streams(seed=8),
        Progress(images=rows, total=100 * rows, batch=rows),
        NULL if labels and recipe.null_class else None,
        References(teacher=frozen[0], weak=frozen[1]),
    )
    return Case(recipe, flow, teacher, draw)


# ------------------------------------------------------------------------------------------------- walking the matrix

REMEDY = re.compile(r"(use|set|give|turn|choose|guide|make|leave|keep|build|take) ")


def refusal(build: Callable[[], object]) -> str | None:
    """The words of the refusal, None where there is none; anything but a reasoned refusal with a remedy passes through.

    Raises:
        AssertionError: if the words give no reason or no remedy.
    """
    try:
        build()
        return None
    except IncompatibleParts as error:
        words = str(error)
    reason, _, remedy = words.rpartition("; ")
    assert len(reason) > 20, words
    assert REMEDY.match(remedy), words
    return words


def pairs_of(combination: Combination) -> set[tuple[int, str, int, str]]:
    """Every pair of values in the combination, with their axes."""
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(enumerate(combination), 2)}


def search(tries: int, seed: int = 0) -> list[Combination]:
    """Combinations that the library accepts, found by `tries` throws of dice among targets that fit their times."""
    roll = Dice(seed)
    axes = [list(axis) for axis in AXES.values()]
    bases = [
        (*base, teacher)
        for *base, teacher in itertools.product(TIMES, TARGETS, VELOCITIES, ("online", "snapshot"))
        if refusal(lambda b=base, t=teacher: objective_of(*b, "mean", "unweighted", t, "none")) is None
    ]
    found = []
    for _ in range(tries):
        thrown = [roll.choice(values) for values in axes]
        *thrown[3:6], teacher = roll.choice(bases)
        thrown[8] = teacher if teacher == "snapshot" else thrown[8]
        combination = tuple(thrown)
        if refusal(lambda c=combination: objective_of(*c[3:])) is None:
            for _ in range(6):
                combination = (*(roll.choice(values) for values in axes[:3]), *combination[3:])
                if refusal(lambda c=combination: recipe_of(c)) is None:
                    found.append(combination)
    return found


def covering(candidates: list[Combination], count: int | None = None, seed: int = 0) -> list[Combination]:
    """A few of the candidates, at most `count`, that hold every pair of values that occurs in any of them."""
    roll = Dice(seed)
    pool = [(combination, pairs_of(combination)) for combination in candidates]
    left = set().union(*(pairs for _, pairs in pool))
    chosen: list[Combination] = []
    while left and (count is None or len(chosen) < count):
        best, pairs = max(roll.sample(pool, min(400, len(pool))), key=lambda each: len(each[1] & left))
        if not pairs & left:
            pool = [each for each in pool if each[1] & left]
            continue
        chosen.append(best)
        left -= pairs
    return chosen


SAMPLE_FILE = Path(__file__).with_name("matrix_sample.txt")


def read_sample() -> list[Combination]:
    """The combinations of the short test, one a line."""
    return [tuple(line.split()) for line in SAMPLE_FILE.read_text(encoding="utf-8").splitlines()]


SAMPLE = read_sample()


if __name__ == "__main__":
    SAMPLE_FILE.write_text("".join(" ".join(each) + "\n" for each in sorted(covering(search(200_000), 340))), "utf-8")
