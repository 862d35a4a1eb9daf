"""What a training step costs: arithmetic of the whole step over that of one forward pass of its network.

The unit F is one pass of the network over the batch without gradient. A plain pass forward and backward is 3 F, a
little less as the first layer needs no gradient of its input; targets, derivatives, guidance and frozen models add
theirs, on the rows that they are computed for. Counted are products of matrices (`torch.utils.flop_counter`), whoever
asks for them; and, beside that, the passes of networks that the step makes, each with the F that it should cost.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.draw import References
from shortflow.dual import Dual
from shortflow.flowmap import FlowMap
from shortflow.hub import build_flow
from shortflow.nn.configs import NetworkConfig, SiTConfig
from shortflow.recipe import Recipe
from shortflow.recipes import flow_matching
from shortflow.reframe import reframe
from shortflow.streams import Streams
from shortflow.train.step import TrainStep
from shortflow.transforms import transformed
from shortflow.typing import Batch, Progress

__all__ = ["Cost", "Pass", "known_costs", "peak_memory", "step_cost", "whole_cost"]

TABLE = Path(__file__).with_name("costs.json")

# One block on 16 tokens: the arithmetic outside the tokens (times, classes) counts for little, as in real networks.
NETWORK = SiTConfig(size="tiny", width=64, depth=1, heads=2, patch=2)
SPEC = DataSpec(name="noise", shape=(4, 8, 8), image=True, classes=tuple("abcd"))
ROWS, DRAWS = 64, 4


class Counter(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, by the same formulas, but not module by module, which takes twice the time."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@lru_cache(maxsize=1)
def known_costs() -> dict[str, float]:
    """The cost of every recipe of the library and of its settings ("method/setting"), as `step_cost` has measured it.

    Written by `python scripts/method_pages.py --costs`.
    """
    return json.loads(TABLE.read_text())


@dataclass(frozen=True)
class Pass:
    """One pass of a network in a training step.

    Attributes:
        kind: "prediction" (kept for the gradient), "dual" (with its tangent), "dual, kept" (the tangent without
            gradient, the value with), "differentiated" (both with gradient), "transformed" (by torch.func), "plain".
        rows: how many rows it has, over those of the batch.
    """

    kind: str
    rows: float

    @property
    def cost(self) -> float:
        """What it should cost, in F, its backward pass included."""
        return self.rows * UNITS[self.kind]


UNITS = {"prediction": 3.0, "plain": 1.0, "dual": 2.0, "dual, kept": 4.0, "differentiated": 6.0, "transformed": 3.0}


@dataclass(frozen=True)
class Cost:
    """The cost of one step.

    Attributes:
        passes: the passes of networks, by kind, as the mean over the draws.
        measured: arithmetic of the whole step, in F.
        memory: bytes that the step holds at most beyond weights and batch: activations, temporaries, gradients.
    """

    passes: tuple[Pass, ...]
    measured: float
    memory: int

    @property
    def predicted(self) -> float:
        """The sum over the passes, in F."""
        return sum(one.cost for one in self.passes)


def step_cost(recipe: Recipe) -> float:
    """The cost of one training step of `recipe` in F, the mean of draws spread over the run.

    The update of the weights and averages is not counted, nor are pairs that a teacher makes before training. A frozen
    teacher is taken to be of the size of the student.
    """
    run, total = _stepping(recipe, NETWORK, SPEC, ROWS), 0
    for i in range(DRAWS):
        with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
            run.step(i)
        total += counter.total
    return total / DRAWS / run.unit


def whole_cost(
    recipe: Recipe, network: NetworkConfig = NETWORK, spec: DataSpec = SPEC, rows: int = ROWS, memory: bool = False
) -> Cost:
    """The cost of one training step, pass by pass; see `step_cost`.

    Args:
        network, spec, rows: what is trained, on what data, in batches of how many rows.
        memory: measure the memory, too, which takes one more step; else it is 0.
    """
    run, total, found = _stepping(recipe, network, spec, rows), 0, {}
    for i in range(DRAWS):
        with sdpa_kernel(SDPBackend.MATH), Counter() as counter, _recorded(run.networks) as passes:
            run.step(i)
        total += counter.total
        for one in passes:
            found[one.kind] = found.get(one.kind, 0.0) + one.rows / rows / DRAWS
    kinds = tuple(Pass(kind, found[kind]) for kind in UNITS if kind in found)
    held = peak_memory(lambda: run.step(DRAWS - 1)) if memory else 0
    return Cost(passes=kinds, measured=total / DRAWS / run.unit, memory=held)


@contextmanager
def _recorded(networks: list[nn.Module]) -> Iterator[list[Pass]]:
    """The passes of the networks within the context, with the number of their rows."""
    found: list[Pass] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(Pass(_kind(args), float(len(args[0]))))

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found.append(Pass(_kind(args), float(len(args[0]))))
            return method(*args)

        return call

    hooks = [network.register_forward_pre_hook(record) for network in networks]
    others = [(n, name, m) for n in networks for name in ("both", "velocity_alone") if (m := getattr(n, name, None))]
    for network, name, method in others:
        network.__dict__[name] = watched(method)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for network, name, _ in others:
            del network.__dict__[name]


def _kind(args: tuple[Any, ...]) -> str:
    pair = next((arg for arg in args if isinstance(arg, Dual)), None)
    if pair is not None:
        if not torch.is_grad_enabled():
            return "dual"
        return "differentiated" if pair.policy.graph else "dual, kept"
    if transformed():
        return "transformed"
    return "prediction" if torch.is_grad_enabled() else "plain"


@dataclass(frozen=True)
class _Stepping:
    """A step that can be run: its networks, what one F is, and the run of draw i."""

    networks: list[nn.Module]
    unit: int
    step: Callable[[int], None]


def _stepping(recipe: Recipe, network: NetworkConfig, spec: DataSpec, rows: int) -> _Stepping:
    with torch.random.fork_rng(devices=[]):
        flow = build_flow(RunConfig(recipe=recipe, network=network), spec)
        teacher = build_flow(RunConfig(recipe=flow_matching(), network=network), spec)
        teacher = reframe(teacher, recipe.path)
    step = TrainStep(flow, recipe.objective, References(teacher=teacher, weak=teacher))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *spec.shape, generator=generator)
    eps = torch.randn(x.shape, generator=generator) if recipe.objective.pairs else None
    label = torch.arange(rows) % len(spec.classes) if spec.classes else None

    def run(i: int) -> None:
        progress = Progress(images=rows * (2 * i + 1), total=2 * rows * DRAWS, batch=rows)
        step(step.draw(Batch(x=x, label=label, eps=eps), Streams(seed=i), progress))[0].backward()
        step.zero_grad(set_to_none=True)

    averages = [average.module for average in step.averages.values()]
    models: list[FlowMap] = [flow, teacher, *averages]
    return _Stepping(networks=[model.network for model in models], unit=_forward(flow, x, label), step=run)


def _forward(flow: FlowMap, x: Tensor, label: Tensor | None) -> int:
    """The arithmetic of F."""
    t = torch.full((len(x),), 0.5)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        flow.predict(x, t, t / 2, label)
    return counter.total


def peak_memory(run: Callable[[], Any]) -> int:
    """Bytes that a run on the processor holds at most beyond what is there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events: Any = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held, most = 0, 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most
