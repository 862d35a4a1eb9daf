"""The fixed layout of rows: the law, loss and gradients of the counted one, and no shape that depends on the draw."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from shortflow.compatibility import check_layout
from shortflow.config import recipe_named
from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts
from shortflow.objective import Objective, _sorted
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES
from shortflow.rows import assembled, chosen, count, indices, put, within
from shortflow.streams import Streams
from shortflow.targets import Tangent
from shortflow.times import Between, Independent, Sorted
from shortflow.typing import Batch, Progress, Times
from steps import NULL, close, drawn, flow_of, loss_and_gradient


def fixed(recipe: Recipe) -> Recipe:
    """The recipe in the fixed layout, with an exact number of rows that jump."""
    times: Any = recipe.objective.times
    if getattr(times, "count", None) == "bernoulli":
        times = replace(times, count="exact")
    return replace(recipe, objective=replace(recipe.objective, times=times, layout="fixed"))


NAMES = [name for name in RECIPES if name != "alphaflow"]


# ---------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("rows", [slice(2, 7), torch.tensor([5, 0, 3, 6, 2])])
@pytest.mark.parametrize("places", [slice(1, 4), slice(0, 5), torch.tensor([4, 0, 2])])
def test_rows_within_rows_are_those_of_the_indices(rows: Any, places: Any) -> None:
    cpu, x = torch.device("cpu"), torch.randn(8, 3)
    want = indices(rows, cpu)[indices(places, cpu)]
    found = within(rows, places)
    assert torch.equal(indices(found, cpu), want)
    assert count(found) == len(want)
    assert torch.equal(x[found], x[want])
    values = torch.randn(count(rows), 3)
    assert torch.equal(put(x, rows, values), x.index_copy(0, indices(rows, cpu), values))


@pytest.mark.parametrize("places", [[slice(3, 5), slice(0, 3)], [torch.tensor([4, 1]), torch.tensor([0, 3, 2])]])
def test_parts_are_assembled_at_their_places(places: Any) -> None:
    x = torch.randn(5, 2)
    assert torch.equal(assembled([x[place] for place in places], places), x)


def test_parts_are_assembled_where_a_compiler_does_not_know_their_places() -> None:
    """As in a second run of a process, of another batch."""

    @torch.compile(fullgraph=True, dynamic=True, backend="eager")
    def turned(x: torch.Tensor) -> torch.Tensor:
        n, m = len(x), len(x) // 2
        return assembled([x[m:], x[:m]], [slice(m, n), slice(0, m)])

    for n in (6, 8, 10):
        x = torch.arange(float(n))[:, None]
        assert torch.equal(turned(x), x)


@pytest.mark.parametrize("mask", [[True, False, True], [False] * 3, [True] * 3])
def test_counted_and_masked_rows_get_the_same_values(mask: list[bool]) -> None:
    x, values = torch.randn(3, 2), torch.randn(3, 2)
    results = []
    for counted in (True, False):
        some = chosen(torch.tensor(mask), counted)
        results.append(some.put(x, values[some.places]))
    assert torch.equal(*results)
    assert len(chosen(torch.tensor(mask), False)) == 3


# -------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_that_jump_come_first_and_are_as_many_in_every_draw(name: str) -> None:
    """They keep their class and their noise, and are those of the counted layout."""
    recipe = fixed(recipe_named(name))
    for seed in range(3):
        draw = drawn(recipe, streams=Streams(seed=seed))
        counted = drawn(
            replace(recipe, objective=replace(recipe.objective, layout="counted")), streams=Streams(seed=seed)
        )
        assert draw.jumps == recipe.objective.times.jumping(16)
        assert torch.equal(draw.times.bootstrap, torch.arange(16) < draw.jumps)
        order = torch.cat([counted.times.bootstrap.nonzero()[:, 0], (~counted.times.bootstrap).nonzero()[:, 0]])
        assert all(torch.equal(a, b[order]) for a, b in zip(draw.times, counted.times, strict=True))
        assert torch.equal(draw.x, counted.x[order])
        assert draw.label is None or torch.equal(draw.label, counted.label[order])
        if "pairs" in recipe.objective.needs:
            assert torch.equal(draw.eps, counted.eps[order])


@pytest.mark.parametrize("dropout", [0.2, pytest.param(0.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_those_of_the_counted_layout(name: str, dropout: float) -> None:
    """On the same draw, with the rows looked for instead of known."""
    recipe = fixed(recipe_named(name))
    flow = flow_of(recipe, dropout=dropout)
    for seed, progress in ((0, Progress(images=13, total=1000)), (1, Progress(images=700, total=1000))):
        draw = drawn(recipe, streams=Streams(seed=seed), progress=progress)
        found = loss_and_gradient(recipe.objective, flow, draw)
        expected = loss_and_gradient(recipe.objective, flow, replace(draw, jumps=None, counted=True))
        for one, other in zip(found, expected, strict=True):
            close(one, other, 1e-9)


def test_what_cannot_be_fixed_is_refused() -> None:
    with pytest.raises(IncompatibleParts, match="Gradual draws their number; set times\\.count to 'exact'"):
        replace(recipe_named("esc").objective, layout="fixed")
    with pytest.raises(IncompatibleParts, match="target of rows with r < t changes"):
        replace(recipe_named("alphaflow").objective, layout="fixed")


@pytest.mark.parametrize(
    ("law", "remedy"),
    [
        (Sorted(ratio=0.5), r"set times\.count to 'exact'"),
        (Between(base=Sorted(ratio=0.5)), r"set times\.base\.count to 'exact'"),
        (Independent(count="exact", ratio=0.5, least=0.0), r"use layout='counted'"),
    ],
)
def test_the_remedy_for_a_random_number_of_jumps_is_one(law: Any, remedy: str) -> None:
    with pytest.raises(IncompatibleParts, match=f"{type(law).__name__} draws their number; {remedy}"):
        check_layout(law, Tangent(), "fixed")


def test_a_gap_of_two_steps_that_is_opened_has_its_middle_at_the_end() -> None:
    """With s = t a secant would divide by nothing."""
    t = torch.tensor([0.5, 0.5, 0.5])
    times = Times(t, torch.tensor([0.5, 0.4, 0.5]), torch.tensor([0.5, 0.3, 0.5]))
    batch, found = _sorted(Batch(x=torch.arange(3.0)[:, None]), times, 2)
    assert batch.x[:, 0].tolist() == [1, 0, 2]
    assert found.s.tolist() == pytest.approx([0.4, 0.5 - 1e-6, 0.5], rel=1e-6)
    assert torch.equal(found.bootstrap, torch.tensor([True, True, False]))
    assert torch.equal(found.s[1:], found.r[1:])


def test_a_gap_that_rounding_has_closed_is_opened() -> None:
    """In float32 t and r of a row that jumps may coincide."""
    recipe = fixed(recipe_named("meanflow"))

    def times(self: Any, n: int, *args: Any) -> Any:
        t = torch.full((n,), 0.5)
        return original(self, n, *args)._replace(t=t, s=t, r=torch.where(torch.arange(n) == 3, 0.25, 0.5))

    law = type(recipe.objective.times)
    original = law.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(law, "__call__", times)
        x = torch.randn(8, 3)
        draw = recipe.objective.draw(Batch(x=x, label=torch.arange(8) % 4), recipe.path, Streams(), null_label=NULL)
    assert draw.jumps == 2
    assert torch.equal(draw.times.bootstrap, torch.arange(8) < 2)
    assert (draw.times.t - draw.times.r)[1] == pytest.approx(1e-6, rel=0.1)
    assert torch.equal(draw.x[0], x[3])


def test_times_that_are_replaced_are_looked_at() -> None:
    draw = drawn(fixed(recipe_named("meanflow")))
    assert isinstance(draw, Draw)
    assert draw.with_times(draw.times).jumps is None
    assert isinstance(recipe_named("meanflow").objective, Objective)


COMPILED = """
import sys
from dataclasses import replace
import torch
sys.path.insert(0, "tests")
from test_layout import fixed
from steps import drawn, flow_of
from shortflow.config import recipe_named
from shortflow.streams import Streams
from shortflow.typing import Progress

recipe = fixed(recipe_named(sys.argv[1]))
flow = flow_of(recipe)

def draw(seed):
    found = drawn(recipe, streams=Streams(seed=seed), progress=Progress(images=500, total=1000))
    return replace(found, dropout_seed=torch.tensor(found.dropout_seed))

def loss(draw):
    return recipe.objective.evaluate(flow, flow, draw).loss.mean()

def results(run, draw):
    value = run(draw)
    return [value, *torch.autograd.grad(value, list(flow.parameters()), allow_unused=True)]

compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
apart = 0.0
for seed in range(3):
    one = draw(seed)
    for a, b in zip(results(compiled, one), results(loss, one), strict=True):
        assert (a is None) == (b is None)
        apart = apart if a is None else max(apart, float((a - b).detach().abs().max()))
print(torch._dynamo.utils.counters["stats"]["unique_graphs"], apart)
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("esc", "flow-matching", "imf")]
)
def test_the_loss_is_one_graph_that_all_draws_share(name: str) -> None:
    """Without a break; in a process of its own, because functions that check their types cannot be compiled."""
    command = [sys.executable, "-c", COMPILED, name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    graphs, apart = result.stdout.splitlines()[-1].split()
    assert int(graphs) == 1
    assert float(apart) < 1e-9
