"""Compiled training steps with dropout beside the same steps uncompiled; `test_compiled_steps.py` runs this.

    python tests/compiled.py graphs|checkpoint|quick|whole

In a process of its own, because functions that check their types cannot be compiled. A break of the graph, and other
numbers than without compiling, are errors.

graphs, checkpoint: prints the number of graphs of each case, with or without checkpointed blocks.
quick: a step whose network is compiled, under bf16 autocast; what is said of a compiler with a wrong backward pass.
whole: the same of a step that is compiled as a whole; a step of the U-Net in both ways, with checkpoints, in bf16.
"""

import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from shortflow.dropout import shared_dropout
from shortflow.flowmap import FlowMap
from shortflow.nn.checkpointing import checkpoint_blocks
from shortflow.nn.compiling import compile_network
from shortflow.recipe import Recipe
from shortflow.recipes import esc, flow_matching, meanflow
from shortflow.streams import Streams
from shortflow.tangent import DualPass
from shortflow.train import TrainStep
from shortflow.train.compiling import compile_step
from shortflow.typing import Batch, Progress, expand
from steps import needed
from test_layout import fixed
from test_nn_checkpointing import network

ROWS = 8
KINDS = ("mlp", "sit")
SEEDS = (1, 2, 2**62 + 5)
Step = Callable[..., Tensor]


def points(flow: FlowMap, seed: int) -> tuple[Tensor, ...]:
    """(x, eps, t, r, seed)."""
    g = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, ROWS, *flow.network.shape, generator=g)
    r, t = torch.rand(2, ROWS, generator=g).sort(0).values
    return x, eps, t, r, torch.tensor(seed)


def tangent(flow: FlowMap) -> Step:
    """MeanFlow's loss on rows with r < t: the value of a dual pass, moved by its tangent."""

    def step(x: Tensor, eps: Tensor, t: Tensor, r: Tensor, seed: Tensor) -> Tensor:
        def predicted(x: Tensor, t: Tensor) -> tuple[Tensor]:
            with shared_dropout(seed, ROWS):
                return (flow.predict(x, t, r),)

        v = flow.path.velocity(x, eps, t)
        (output,), rate = DualPass().keeping(predicted, flow.path.interpolate(x, eps, t), t, v)
        return (output - (v - expand(t - r, v) * rate).detach()).square().mean()

    return step


def terminal(flow: FlowMap) -> Step:
    """The loss of Lagrangian self-distillation on rows with r < t, with gradient through the derivative."""

    def step(x: Tensor, eps: Tensor, t: Tensor, r: Tensor, seed: Tensor) -> Tensor:
        x_t = flow.path.interpolate(x, eps, t)
        with shared_dropout(seed, ROWS):
            output, rate = flow.end_rate(x_t, t, r)
        with torch.no_grad(), shared_dropout(seed, ROWS):
            v = flow.velocity(flow.move(x_t, output, t, r), r)
        return (rate - v).square().mean()

    return step


def result(step: Callable[..., Tensor], module: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    module.zero_grad()
    loss = step(*args)
    loss.backward()
    return [loss.detach(), *(torch.zeros(()) if p.grad is None else p.grad for p in module.parameters())]


def graphs() -> int:
    found = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return found


def whole_step(kind: str, make: Callable[[FlowMap], Step], checkpoint: bool) -> int:
    """One graph for all seeds."""
    recipe, net = meanflow(), network(kind, dropout=0.3)
    if checkpoint:
        checkpoint_blocks(net)
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True  # see shortflow.nn.compiling
    flow = FlowMap(net, recipe.path, recipe.parameterization, recipe.conditioning)
    step = make(flow)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    seen = []
    for seed in SEEDS:
        args = points(flow, seed)
        seen.append(result(step, flow, args))
        torch.testing.assert_close(result(compiled, flow, args), seen[-1], rtol=1e-5, atol=1e-7)
    assert not torch.equal(seen[0][1], seen[1][1])
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = False
    return graphs()


def compiled_network(kind: str, checkpoint: bool) -> int:
    """A training step as it is, whose network is compiled: few graphs for all draws."""
    recipe = esc(ratio=0.5, kappa=0.3)
    net = network(kind, dropout=0.3, **needed(recipe))
    plain = TrainStep(recipe.flow_map(net), recipe.objective).train()
    step = copy.deepcopy(plain)
    if checkpoint:
        checkpoint_blocks(step.flow.network)
    compile_network(step.flow.network, backend="aot_eager")
    for seed in SEEDS[:2]:
        x = torch.randn(16, *net.shape, generator=torch.Generator().manual_seed(seed))
        batch = Batch(x=x, label=torch.arange(16) % 4)
        args = (step.draw(batch, Streams(seed=seed), Progress(images=500, total=1000, batch=16)),)
        found, expected = (result(lambda draw, each=each: each(draw)[0], each, args) for each in (step, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    return graphs()


def steps(
    recipe: Recipe, kind: str, layout: str, bf16: bool = False, checkpoint: bool = False
) -> tuple[TrainStep, TrainStep]:
    """The same step twice; the second one may have checkpoints."""
    recipe = fixed(recipe) if layout == "fixed" else recipe
    net = network(kind, dropout=0.3, **needed(recipe))
    plain = TrainStep(recipe.flow_map(net), recipe.objective, bf16=bf16).train()
    step = copy.deepcopy(plain)
    if checkpoint:
        checkpoint_blocks(step.flow.network)
    return plain, step


def of(step: TrainStep, seed: int) -> list[Tensor]:
    """Loss and gradients of one draw."""
    x = torch.randn(8, *step.flow.network.shape, generator=torch.Generator().manual_seed(seed))
    batch = Batch(x=x, label=torch.arange(8) % 4)
    args = (step.draw(batch, Streams(seed=seed), Progress(images=500, total=1000, batch=8)),)
    return result(lambda draw: step(draw)[0], step, args)


def agree(kind: str, layout: str, bf16: bool = False, checkpoint: bool = False, seeds: int = 1) -> None:
    """Two rounded results of one number may be apart by their last bits: 2⁻⁸ of it in bf16, a few of them in sums."""
    recipe = meanflow(ratio=0.5, omega=1.0, kappa=0.0) if kind == "mlp" else esc(ratio=0.5, kappa=0.3)
    plain, step = steps(recipe, kind, layout, bf16, checkpoint)
    compile_step(step, backend="aot_eager")
    for seed in SEEDS[:seeds]:
        for a, b in zip(of(step, seed), of(plain, seed), strict=True):
            assert float((a - b).norm()) <= (2e-2 if bf16 else 1e-4) * float(b.norm()) + 1e-6, (layout, a, b)
    stand_in: Any = step.evaluate if layout == "fixed" else step.flow.network._compiled_call_impl
    assert not stand_in.failed
    assert stand_in.calls
    print(kind, layout, "agrees", graphs(), flush=True)


def wrong_backward(graph: Any, inputs: Any) -> Any:
    """A compiler whose backward passes are a tenth too large."""

    def too_large(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(lambda *args: [None if g is None else 1.1 * g for g in graph(*args)])

    whole = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=too_large)
    return whole(graph, inputs)


def noticed(kind: str, layout: str) -> None:
    """The step goes on with the right gradient, and says whose was wrong."""
    plain, step = steps(flow_matching(), kind, layout)
    compile_step(step, backend=wrong_backward)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        found = of(step, 1)
    assert all(torch.equal(a, b) for a, b in zip(found, of(plain, 1), strict=True))
    print(kind, layout, *(str(each.message) for each in said if "uncompiled" in str(each.message)), flush=True)
    graphs()


def main(what: str) -> None:
    if what == "quick":
        agree("mlp", "counted", bf16=True)
        noticed("mlp", "counted")
    elif what == "whole":
        agree("mlp", "fixed", bf16=True)
        noticed("mlp", "fixed")
        for layout in ("counted", "fixed"):
            agree("unet", layout, seeds=2)
            agree("unet", layout, checkpoint=True)
            agree("unet", layout, bf16=True)
    else:
        for kind in KINDS:
            for make in (tangent, terminal):
                print(kind, make.__name__, whole_step(kind, make, what == "checkpoint"), flush=True)
        print("mlp", "network", compiled_network("mlp", what == "checkpoint"))


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)  # given when a network goes on uncompiled, or without a dual pass
    main(sys.argv[1])
