"""Training steps on vectors and sequences: what is hidden, the plug-in velocity, frozen models, failures, processes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shortflow.draw import Draw, References
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap
from shortflow.guidance import Guided
from shortflow.nn import MLP
from shortflow.objective import Objective
from shortflow.paths import Linear
from shortflow.recipe import Recipe
from shortflow.recipes import esc, meanflow
from shortflow.streams import Streams
from shortflow.train import TrainStep
from shortflow.train.compiling import compile_step
from shortflow.train.failures import NotFinite, load_draws, save_failure
from shortflow.typing import Batch, Progress
from shortflow.velocity import Conditional, PlugIn, Reference
from steps import close, gradient, mlp, needed, randomize
from test_layout import fixed

PATH = Linear()
VECTORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
CLASS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


def batch(label: Tensor) -> Batch:
    x = torch.randn(len(label), 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Batch(x=x, label=label)


def drawn(objective: Objective, label: Tensor, null: float | None, **more: Any) -> Draw:
    return objective.draw(batch(label), PATH, Streams(seed=5), Progress(images=500, total=1000), null, **more)


def network(recipe: Recipe, seed: int = 1, **more: Any) -> MLP:
    """A network that is told the vectors, and what the recipe asks for beside that."""
    settings = {**needed(recipe), "num_classes": 0, "null_class": True, "condition": (2,), **more}
    made = MLP(shape=(3,), width=16, depth=2, **settings)
    randomize(made, seed)
    return made


@pytest.mark.parametrize("shape", [(2,), (4, 2)])
def test_dropped_rows_are_told_none_and_the_others_what_they_are(shape: tuple[int, ...]) -> None:
    label = torch.randn(64, *shape)
    draw = drawn(replace(meanflow().objective, label_dropout=0.4), label, math.nan)
    told, dropped = draw.condition, draw.dropped
    assert told is not None
    assert 10 < int(dropped.sum()) < 50
    assert bool(told[dropped].isnan().all())
    assert torch.equal(told[~dropped], label[~dropped])
    assert draw.label is label
    by_class = drawn(replace(meanflow().objective, label_dropout=0.4), torch.zeros(64, dtype=torch.long), 1)
    assert torch.equal(by_class.dropped, dropped)  # who is told nothing does not depend on the kind of condition
    with pytest.raises(IncompatibleParts, match=r"label_dropout = 0\.4"):
        drawn(replace(meanflow().objective, label_dropout=0.4), label, None)


@pytest.mark.parametrize("rows", [slice(0, 8), torch.tensor([6, 1, 3])])
def test_the_plug_in_velocity_of_equal_vectors_is_that_of_their_class(rows: Any) -> None:
    objective = replace(meanflow().objective, label_dropout=0.3)
    by_class, by_vector = drawn(objective, CLASS, 3), drawn(objective, VECTORS[CLASS], math.nan)
    assert bool(by_class.dropped.any())
    velocity, flow = PlugIn(), FlowMap(mlp(), PATH, meanflow().parameterization)
    close(velocity.on(flow, by_vector, rows), velocity.on(flow, by_class, rows), 0.0)


def test_where_all_vectors_differ_it_is_the_conditional_velocity_but_on_rows_that_are_told_none() -> None:
    draw = drawn(replace(meanflow().objective, label_dropout=0.3), torch.randn(8, 2), math.nan)
    flow, dropped = FlowMap(mlp(), PATH, meanflow().parameterization), draw.dropped
    found, alone = PlugIn()(flow, draw), Conditional()(flow, draw)
    close(found[~dropped], alone[~dropped], 1e-12)
    everyone = PlugIn(mask="none")(flow, replace(draw, label=None))
    close(found[dropped], everyone[dropped], 1e-12)
    assert float((found - alone)[dropped].abs().max()) > 1e-3


def test_a_mask_that_no_batch_could_have_is_refused() -> None:
    draw = drawn(meanflow().objective, VECTORS[CLASS], math.nan)
    with pytest.raises(IncompatibleParts, match="set the mask to 'label'"):
        PlugIn(mask="none")(FlowMap(mlp(), PATH, meanflow().parameterization), draw)


@pytest.mark.parametrize("recipe", [meanflow(), esc()], ids=["meanflow", "esc"])
def test_one_hot_vectors_train_as_classes_do(recipe: Recipe) -> None:
    """With a table of E_y(one-hot) a class network computes the same; so losses agree, and the gradients of both."""
    one_hot = torch.eye(3, dtype=torch.float32)
    told = network(recipe, condition=(3,))
    known = MLP(shape=(3,), width=16, depth=2, **needed(recipe, 3)).double()
    shared = {name: value for name, value in told.state_dict().items() if not name.startswith("y_embedder")}
    assert told.y_embedder is not None
    with torch.no_grad():
        none = torch.full((1, 3), math.nan)
        table = torch.cat([told.y_embedder(one_hot), told.y_embedder(none)])
    known.load_state_dict({**shared, "y_embedder.embedding_table.weight": table})
    found = []
    for net, label, null in ((known, CLASS, 3), (told, one_hot[CLASS], math.nan)):
        flow = recipe.flow_map(net)
        draw = drawn(recipe.objective, label, null)
        loss = recipe.objective.evaluate(flow, flow, draw).loss
        weights = [weight for name, weight in net.named_parameters() if not name.startswith("y_embedder")]
        found.append((loss.detach(), torch.autograd.grad(loss.mean(), weights, allow_unused=True)))
    (loss, grads), (other, others) = found
    close(other, loss, 1e-10)
    for one, two in zip(grads, others, strict=True):
        if one is not None and two is not None:
            close(two, one, 1e-9)


def test_a_guided_step_asks_for_the_vector_and_for_none() -> None:
    recipe = meanflow()
    flow = recipe.flow_map(network(recipe))
    draw = drawn(replace(recipe.objective, label_dropout=0.3), VECTORS[CLASS], math.nan)
    velocity, label = Guided(omega=0.5, kappa=0.25), draw.label
    assert label is not None
    t, x = draw.times.t, draw.x_t
    want = 0.5 * Conditional()(flow, draw) + 0.25 * flow.velocity(x, t, label) + 0.25 * flow.velocity(x, t)
    want = torch.where(draw.dropped[:, None], Conditional()(flow, draw), want)
    close(velocity(flow, draw), want.detach(), 1e-12)


def test_a_teacher_is_told_the_same_and_hides_in_its_own_way() -> None:
    recipe = meanflow()
    teacher = recipe.flow_map(network(recipe, seed=7)).requires_grad_(False)
    draw = drawn(
        replace(recipe.objective, label_dropout=0.3),
        VECTORS[CLASS],
        math.nan,
        references=References(teacher=teacher),
    )
    found = Reference(guidance=2.0)(teacher, draw)
    t, x, told = draw.times.t, draw.x_t, draw.condition
    free = teacher.velocity(x, t)
    want = torch.where(draw.dropped[:, None], free, free + 2 * (teacher.velocity(x, t, told) - free))
    close(found, want, 1e-12)
    assert draw.told(FlowMap(mlp(), PATH, recipe.parameterization)) is None  # an unconditional weaker model


def test_a_failed_step_can_be_seen_again(tmp_path: Path) -> None:
    recipe = meanflow()
    step = TrainStep(recipe.flow_map(network(recipe)), recipe.objective)
    draw = drawn(replace(recipe.objective, label_dropout=0.3), VECTORS[CLASS], math.nan)
    save_failure(tmp_path, NotFinite("loss", math.inf, [3], {0: draw}), step, {})
    again = load_draws(tmp_path)[0]
    assert again.null_label is not None
    assert math.isnan(again.null_label)
    losses = [recipe.objective.evaluate(step.flow, step.flow, each).loss for each in (draw, again)]
    assert torch.equal(*losses)


def test_every_weight_has_a_gradient_in_every_step() -> None:
    """Processes wait for the gradients of all weights, also of what stands for none in a batch that hides nothing."""
    recipe = meanflow()
    flow = recipe.flow_map(network(recipe))
    draw = replace(drawn(recipe.objective, VECTORS[CLASS], math.nan), dropped=torch.zeros(8, dtype=torch.bool))
    loss = recipe.objective.evaluate(flow, flow, draw).loss.mean()
    grads = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    assert all(each is not None for each in grads)
    assert float(gradient(recipe.objective.evaluate(flow, flow, draw).loss.mean(), flow).abs().max()) > 0


@pytest.mark.slow
def test_the_whole_step_is_one_graph_for_all_draws() -> None:
    """NaN, which stands for none in the draw, is a constant that a compiler must not take for a new one each time."""
    recipe = fixed(esc())
    step = TrainStep(recipe.flow_map(network(recipe).float()), recipe.objective)
    compile_step(step, backend="eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for k in range(4):
        given = Batch(x=torch.randn(8, 3), label=VECTORS[CLASS])
        draw = step.draw(given, Streams(seed=k), Progress(images=500, total=1000))
        loss, _ = step(draw)
        plain = recipe.objective.evaluate(step.flow, step.flow, draw).loss.mean()
        torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-5)
    assert not step.evaluate.failed  # pyright: ignore[reportFunctionMemberAccess]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
