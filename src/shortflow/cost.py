"""What a training step costs: arithmetic of the whole step over that of one forward pass of its network.

The unit F is one pass of the network over the batch without gradient. A plain pass forward and backward is 3 F, a
little less as the first layer needs no gradient of its input; targets, derivatives, guidance and frozen models add
theirs, on the rows that they are computed for. Counted are products of matrices (`torch.utils.flop_counter`), whoever
asks for them. A derivative in forward mode is counted by what it does: torch multiplies by the zero tangents of the
weights, too, so that it is 3 F and not the 2 F that it could be.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.draw import References
from shortflow.flowmap import FlowMap
from shortflow.hub import build_flow
from shortflow.nn.configs import SiTConfig
from shortflow.recipe import Recipe
from shortflow.recipes import flow_matching
from shortflow.reframe import reframe
from shortflow.streams import Streams
from shortflow.train.step import TrainStep
from shortflow.typing import Progress

__all__ = ["known_costs", "step_cost"]

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


def step_cost(recipe: Recipe) -> float:
    """The cost of one training step of `recipe` in F, the mean of draws spread over the run.

    The update of the weights and averages is not counted, nor are pairs that a teacher makes before training. A frozen
    teacher is taken to be of the size of the student.
    """
    with torch.random.fork_rng(devices=[]):
        flow, teacher = _flow(recipe), reframe(_flow(flow_matching()), recipe.path)
    step = TrainStep(flow, recipe.objective, References(teacher=teacher, weak=teacher))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, *SPEC.shape, generator=generator)
    eps = torch.randn(x.shape, generator=generator) if recipe.objective.pairs else None
    label = torch.arange(ROWS) % len(SPEC.classes)
    total = 0
    for i in range(DRAWS):
        progress = Progress(images=ROWS * (2 * i + 1), total=2 * ROWS * DRAWS, batch=ROWS)
        with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
            step(x, label, Streams(seed=i), progress, eps)[0].backward()
        total += counter.total
    return total / DRAWS / _forward(flow, x, label)


def _flow(recipe: Recipe) -> FlowMap:
    return build_flow(RunConfig(recipe=recipe, network=NETWORK), SPEC)


def _forward(flow: FlowMap, x: torch.Tensor, label: torch.Tensor) -> int:
    """The arithmetic of F."""
    t = torch.full((len(x),), 0.5)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        flow.predict(x, t, t / 2, label)
    return counter.total
