"""A training step waits for its device at no place but where the log is written.

Operations whose result decides what the host does next (a number that is read, rows that are counted) are counted as
PyTorch dispatches them, on the processor: the same code makes a device wait.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from shortflow.config import recipe_named
from shortflow.draw import Draw
from shortflow.nn import embeddings
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.recipe import Recipe
from shortflow.train import TrainStep, train
from shortflow.train.ema import Average
from shortflow.train.engine import Engine
from test_layout import NAMES, fixed

READS = {"_local_scalar_dense", "item", "equal", "is_nonzero"}
COUNTS = {"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount", "nonzero_static"}


class Waits(TorchDispatchMode):
    """Counts what would wait for a device. Random numbers are drawn on the host, which is no wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = [one for one in torch.utils._pytree.tree_leaves(args[1:]) if isinstance(one, Tensor)]
        masked = name.startswith(("index", "_index")) and any(mask.dtype in (torch.bool, torch.uint8) for mask in masks)
        if self.on and (name in READS or name in COUNTS or masked):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Device(Engine):
    """The processor, taken for a device that works beside the host."""

    asynchronous = True


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    original = Objective.draw

    def draw(self: Objective, *args: Any, **kwargs: Any) -> Draw:
        waits.on = False
        try:
            return original(self, *args, **kwargs)
        finally:
            waits.on = True

    monkeypatch.setattr(Objective, "draw", draw)
    monkeypatch.setattr(embeddings, "_readable", lambda value: False)  # what is checked on a processor only
    with Waits() as waits:
        yield waits


def waits_of(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer = Optimizer(), dropout: float = 0.0
) -> Counter[str]:
    """What waits in two steps of a recipe between the lines of the log, the state of the optimiser being there."""
    step = TrainStep(tiny.flow_map(recipe, dropout), recipe.objective, tiny.references(recipe))
    average = Average(step.flow, 0.9)
    settings, batch_of = tiny.settings(log_every=100), tiny.batches(recipe)
    records = train(step, settings, optimizer, batch_of, engine=Device(), averages=(average,))
    next(records)
    with watched(monkeypatch) as waits:
        next(records), next(records)
    return waits.found


@pytest.mark.parametrize("name", NAMES)
def test_in_the_fixed_layout_nothing_waits_between_the_lines_of_the_log(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits_of(fixed(recipe_named(name)), monkeypatch) == {}


@pytest.mark.parametrize("name", ["flow-matching", "edm", "reflow", "sct", "sct-distilled", "ayf-emd", "ayf-lmd"])
def test_where_all_rows_are_of_one_kind_nothing_waits_in_the_counted_layout(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits_of(recipe_named(name), monkeypatch, Optimizer(algorithm="adam"), dropout=0.1) == {}


def test_the_counted_layout_waits_once_for_each_set_of_rows_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MeanFlow in two steps: rows that jump, rows that do not, guided ones; known ones and the others."""
    found = waits_of(recipe_named("meanflow"), monkeypatch)
    assert set(found) == {"nonzero"}
    assert found["nonzero"] == 2 * 5


def test_radam_waits_because_it_cannot_be_told_on_the_device_to_skip_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a step for the loss and the norm; its own counters are on the host."""
    found = waits_of(recipe_named("flow-matching"), monkeypatch, Optimizer(algorithm="radam"))
    assert found["_local_scalar_dense"] >= 2


def test_lines_of_the_log_are_those_of_a_run_that_reads_every_step() -> None:
    """The numbers and the weights, to the last bit."""
    recipe, runs = recipe_named("meanflow"), []
    for engine in (Engine(), Device()):
        step = TrainStep(tiny.flow_map(recipe), recipe.objective)
        records = list(train(step, tiny.settings(), Optimizer(clip=0.5), tiny.batches(recipe), engine=engine))
        runs.append((step.flow.state_dict(), [{**record.as_json(), "seconds": 0} for record in records]))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())
