"""Steps that are compiled: the whole loss where the layout of rows is fixed, the networks where it is not."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from shortflow.config import recipe_named
from shortflow.recipe import Recipe
from shortflow.streams import Streams
from shortflow.train import TrainStep
from shortflow.train import compiling as module
from shortflow.train.compiling import compile_step
from shortflow.typing import LossTerms, Progress
from test_layout import NAMES, fixed

BATCH = 16  # of tiny.batches


def step_of(recipe: Recipe) -> TrainStep:
    return TrainStep(tiny.flow_map(recipe, dropout=0.2), recipe.objective, tiny.references(recipe)).train()


def results(step: TrainStep, recipe: Recipe, k: int = 0) -> list[Tensor]:
    """(loss, gradient) of step k of a run."""
    progress = Progress(images=k * BATCH, total=100 * BATCH, batch=BATCH)
    step.zero_grad()
    loss, _ = step(step.draw(tiny.batches(recipe)(k), Streams(seed=k), progress))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in step.flow.parameters() if p.grad is not None)]


def stand_in(monkeypatch: pytest.MonkeyPatch, change: Any = None, error: str | None = None) -> list[int]:
    """A compiler that changes losses or fails; returns the list of its calls."""
    calls: list[int] = []

    def compiler(run: Any, **options: Any) -> Any:
        assert options == {"backend": "inductor", "fullgraph": True}

        def compiled(*args: Any) -> LossTerms:
            calls.append(1)
            if error is not None:
                raise RuntimeError(error)
            terms = run(*args)
            return terms if change is None else LossTerms(loss=change(terms.loss), logs=terms.logs)

        return compiled

    monkeypatch.setattr(module.torch, "compile", compiler)
    return calls


def test_a_compiled_loss_gives_the_step_of_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fixed(recipe_named("esc"))
    expected = [results(step_of(recipe), recipe, k) for k in range(2)]
    calls = stand_in(monkeypatch)
    step = step_of(recipe)
    compile_step(step)
    for k in range(2):
        assert all(torch.equal(a, b) for a, b in zip(results(step, recipe, k), expected[k], strict=True))
    assert len(calls) == 4  # two steps, each with its proof
    assert all(key.startswith("flow.") for key in step.state_dict())


@pytest.mark.parametrize(
    "change",
    [lambda loss: loss * 1.01, lambda loss: loss + 0.01 * (loss - loss.detach())],
    ids=["loss", "gradient"],
)
def test_a_loss_or_a_gradient_that_differs_is_noticed(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fixed(recipe_named("esc"))
    expected = results(step_of(recipe), recipe)
    calls = stand_in(monkeypatch, change)
    step = step_of(recipe)
    compile_step(step)
    what = r"its (loss|gradient of network\.[\w.]+) differs from the plain one's by 1\.0e-02"
    with pytest.warns(UserWarning, match=what + r".*objective\.layout to counted"):
        found = results(step, recipe)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results(step, recipe, 1)
    assert len(calls) == 1


def test_what_goes_wrong_later_is_noticed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1, 2, 4, … are compared: by then no weight is zero any more, and schedules move."""
    recipe, wrong = fixed(recipe_named("esc")), []
    stand_in(monkeypatch, lambda loss: loss * (1.01 if wrong else 1.0))
    step = step_of(recipe)
    compile_step(step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(3):
            results(step, recipe, k)
    wrong.append(True)
    with pytest.warns(UserWarning, match="differs from the plain one's by 1"):
        results(step, recipe, 3)


def test_a_small_gradient_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of one bias, some per cent of the whole, which a norm over all weights would hide."""
    recipe = fixed(recipe_named("esc"))
    step = step_of(recipe)
    found = results(step, recipe)[1:]
    bias: Any = step.flow.network.first.bias
    assert 0.01 < bias.grad.norm() / torch.stack([each.norm() for each in found]).norm() < 0.2
    compiled: list[bool] = []
    bias.register_hook(lambda gradient: 0 * gradient if compiled.pop() else gradient)
    stand_in(monkeypatch)
    compile_step(step)
    whole: Any = step.evaluate
    plain = whole.plain
    whole.plain = lambda *args: (compiled.append(False), plain(*args))[1]
    whole.run = lambda *args: (compiled.append(True), plain(*args))[1]
    with pytest.warns(UserWarning, match=r"its gradient of network\.first\.bias differs from the plain one's by"):
        results(step, recipe)


def test_a_loss_that_does_not_compile_goes_on_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fixed(recipe_named("esc"))
    expected = results(step_of(recipe), recipe)
    stand_in(monkeypatch, error="no compiler found\nand a long story")
    step = step_of(recipe)
    compile_step(step)
    with pytest.warns(UserWarning, match=r"RuntimeError: no compiler found\); leave out train\.compile"):
        found = results(step, recipe)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_in_the_counted_layout_the_networks_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the flow map, of its average, and of the frozen ones."""
    compiled: list[Any] = []
    monkeypatch.setattr(module, "compile_network", lambda network, **options: compiled.append(network))
    step = step_of(recipe_named("shortcut"))
    compile_step(step)
    assert step.teacher is not None
    assert compiled == [step.flow.network, step.teacher.module.network]
    assert step.evaluate == step.objective.evaluate


REAL = """
import sys, warnings
import torch
from test_layout import fixed
from test_train_compiling import results, step_of
from shortflow.config import recipe_named
from shortflow.train.compiling import compile_step

warnings.simplefilter("error", UserWarning)
for name in sys.argv[1:]:
    recipe = fixed(recipe_named(name))
    plain, step = step_of(recipe), step_of(recipe)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_step(step, backend="aot_eager")
    for k in (1, 2, 50, 98):
        # By norm: a short step (ECT, iCT, TCM at the end) magnifies rounding in every entry, however small it is.
        (loss, *gradient), (wanted, *oracle) = results(step, recipe, k), results(plain, recipe, k)
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-6)
        a, b = (torch.cat([each.flatten() for each in all_of_it]) for all_of_it in (gradient, oracle))
        assert (a - b).norm() <= 1e-4 * b.norm(), (name, k, float((a - b).norm() / b.norm()))
    print(name, torch._dynamo.utils.counters["stats"]["unique_graphs"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", [["esc"], NAMES], ids=["esc", "all"])
def test_a_graph_or_two_serve_the_whole_run(names: list[str]) -> None:
    """Two where a schedule enters the loss. In a process of its own: what checks types cannot be compiled."""
    command = [sys.executable, "-c", REAL, *names]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(line.split() for line in done.stdout.splitlines())
    assert set(found) == set(names)
    assert all(int(count) <= 2 for count in found.values()), found
