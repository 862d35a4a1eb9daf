"""What is measured: an ESC step, a straightforward one and plain flow matching, on one network and one draw."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import CPU
from benchmarks.reference import ReferenceStep
from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.draw import Draw
from shortflow.flowmap import FlowMap
from shortflow.hub import build_flow
from shortflow.nn.compiling import compile_network
from shortflow.nn.configs import SiTConfig
from shortflow.recipe import Recipe
from shortflow.recipes import esc, flow_matching
from shortflow.streams import Streams
from shortflow.typing import Batch, Progress

__all__ = ["QUICK", "SIZES", "Size", "Subject", "built", "difference", "drawn", "gradients", "settings"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network and a batch.

    Attributes:
        network: a published size, whose width, heads and depth are taken where they are not given.
        side: of the latents, which have four channels; there are (side/patch)² tokens.
    """

    network: str
    patch: int
    batch: int
    depth: int | None = None
    width: int | None = None
    heads: int | None = None
    side: int = 32

    @property
    def config(self) -> SiTConfig:
        return SiTConfig(size=self.network, patch=self.patch, depth=self.depth, width=self.width, heads=self.heads)

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2

    @property
    def spec(self) -> DataSpec:
        classes = tuple(str(i) for i in range(10))
        return DataSpec(name="noise", shape=(4, self.side, self.side), image=True, classes=classes)

    @property
    def words(self) -> str:
        depth, width, _ = self.config.dimensions
        return f"SiT of width {width} with {depth} blocks on {self.tokens} tokens"


SIZES = {
    "S/2": Size(network="S", patch=2, batch=8, depth=4),
    "B/4": Size(network="B", patch=4, batch=16, depth=4),
    "B/2": Size(network="B", patch=2, batch=4, depth=4),
}
"""Widths of the published networks, at a depth and batch that a laptop can measure.

Costs in units of F do not depend on the depth beyond a few blocks: all blocks cost the same.
"""

QUICK = Size(network="tiny", patch=2, batch=8, side=8)
"""For tests: runs in a second, and says nothing about real networks."""


def built(size: Size, recipe: Recipe, device: torch.device = CPU) -> FlowMap:
    """The recipe's flow map on a network whose weights are random where they start at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = build_flow(RunConfig(recipe=recipe, network=size.config), size.spec)
        for weight in flow.parameters():
            if weight.ndim > 1 and not weight.any():
                nn.init.normal_(weight, std=0.02)
    return flow.to(device)


def settings(rows: int, batch: int) -> Recipe:
    """ESC for B/2 with exactly `rows` rows of r < t and one in ten labels hidden."""
    recipe = esc()
    times: Any = recipe.objective.times
    return replace(recipe, objective=replace(recipe.objective, times=replace(times, ratio=rows / batch, count="exact")))


def drawn(
    flow: FlowMap, recipe: Recipe, size: Size, seed: int, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> Draw:
    """A draw whose images share one class, at the end of the run; one row in ten (rounded) hides it."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size.batch, *size.spec.shape, generator=g)
    label = torch.full((size.batch,), seed % 10)
    draw = recipe.objective.draw(
        Batch(x=x.to(device, dtype), label=label.to(device)),
        flow.path,
        Streams(seed=seed),
        Progress(images=999, total=1000),
        flow.null_label,
    )
    hidden = torch.zeros(size.batch, dtype=torch.bool)
    if recipe.objective.label_dropout > 0:
        hidden[torch.randperm(size.batch, generator=g)[: max(1, round(size.batch / 10))]] = True
    return replace(draw, dropped=hidden.to(device))


def gradients(loss: Tensor, flow: FlowMap) -> list[Tensor]:
    weights = list(flow.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """‖found − expected‖/‖expected‖ over all tensors together, computed in double precision."""
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, expected, strict=True))
    return (apart / sum(float(b.double().square().sum()) for b in expected)) ** 0.5


class Subject:
    """The steps that are compared, each a loss and the flow map that it trains, at one size.

    Args:
        names: of "reference", "fused reference", "step", "fixed step" (in the fixed layout of rows), "flow matching",
            "forward" (a pass without gradient, one F), and "compiled step", "compiled flow matching", whose network is
            compiled, and "compiled fixed step", which is compiled as a whole. All have the same weights.
        bf16: run the networks under autocast, as training does.
        dtype: of the weights and the draw.
        backend: that networks are compiled by.
    """

    def __init__(
        self,
        size: Size,
        names: tuple[str, ...] = ("reference", "step", "flow matching", "forward"),
        *,
        device: torch.device = CPU,
        bf16: bool = False,
        dtype: torch.dtype = torch.float32,
        backend: str = "inductor",
    ) -> None:
        self.size, self.names, self.device, self.bf16, self.dtype = size, names, device, bf16, dtype
        self.recipe, self.plain_recipe = settings(max(1, size.batch // 4), size.batch), flow_matching()
        self.flow = built(size, self.recipe, device).to(dtype)
        self.plain = built(size, self.plain_recipe, device).to(dtype) if self._has("flow matching") else self.flow
        objective = replace(self.recipe.objective, layout="fixed")
        self.fixed_recipe = replace(self.recipe, objective=objective)
        self.references = {
            name: ReferenceStep(self.flow, self.recipe.objective, fused=name != "reference")
            for name in names
            if name.endswith("reference")
        }
        self.fixed: dict[str, Callable[..., Any]] = {"fixed step": objective.evaluate}
        if "compiled fixed step" in names:
            self.fixed["compiled fixed step"] = torch.compile(objective.evaluate, backend=backend, fullgraph=True)
        networks = [name for name in names if name.startswith("compiled ") and name not in self.fixed]
        self.compiled = {name: self._compiled(name, backend) for name in networks}
        self.draw_again(0)

    def _has(self, what: str) -> bool:
        return any(name.endswith(what) for name in self.names)

    def _compiled(self, name: str, backend: str) -> FlowMap:
        flow = copy.deepcopy(self.plain if name.endswith("flow matching") else self.flow)
        compile_network(flow.network, backend=backend)
        return flow

    def draw_again(self, seed: int) -> None:
        """Take other random numbers."""
        self.draw = drawn(self.flow, self.recipe, self.size, seed, self.device, self.dtype)
        if self._has("fixed step"):
            draw = drawn(self.flow, self.fixed_recipe, self.size, seed, self.device, self.dtype)
            self.fixed_draw = replace(draw, dropout_seed=torch.as_tensor(draw.dropout_seed))
        if self._has("flow matching"):
            self.plain_draw = drawn(self.plain, self.plain_recipe, self.size, seed, self.device, self.dtype)

    def flow_of(self, name: str) -> FlowMap:
        return self.compiled.get(name, self.plain if name == "flow matching" else self.flow)

    def loss(self, name: str) -> Tensor:
        """The mean loss of the step, ready to be differentiated; of "forward" the output."""
        flow = self.flow_of(name)
        # The cache of cast weights is off for the reason given in `shortflow.train.TrainStep`.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            if name == "forward":
                with torch.no_grad():
                    return flow.predict(self.draw.x_t, self.draw.times.t, self.draw.times.r, self.draw.condition)
            if name in self.references:
                return self.references[name](self.draw)
            if name in self.fixed:
                return self.fixed[name](flow, flow, self.fixed_draw).loss.mean()
            if name.endswith("flow matching"):
                return self.plain_recipe.objective.evaluate(flow, flow, self.plain_draw).loss.mean()
            return self.recipe.objective.evaluate(flow, flow, self.draw).loss.mean()

    def step(self, name: str) -> list[Tensor]:
        """The gradients of the step; of "forward" the output."""
        loss = self.loss(name)
        return [loss] if name == "forward" else gradients(loss, self.flow_of(name))

    def losses(self) -> dict[str, Callable[[], Tensor]]:
        return {name: lambda name=name: self.loss(name) for name in self.names}

    def steps(self) -> dict[str, Callable[[], list[Tensor]]]:
        return {name: lambda name=name: self.step(name) for name in self.names}
