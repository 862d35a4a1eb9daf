"""What an ESC training step costs beside a straightforward one and beside flow matching: python -m benchmarks.step

For each size of network: operations in F (one forward pass of the batch without gradient), time as the median of
ratios of interleaved runs, the most memory that the loss takes before its gradient is asked for (activations and
temporaries), that of the whole step with its gradients, and the gradients of both ESC steps compared in the same run.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import flops, peak_memory, ratios, timed, write
from benchmarks.reference import ReferenceStep
from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.draw import Draw
from shortflow.flowmap import FlowMap
from shortflow.hub import build_flow
from shortflow.nn.configs import SiTConfig
from shortflow.recipe import Recipe
from shortflow.recipes import esc, flow_matching
from shortflow.streams import Streams
from shortflow.typing import Batch, Progress

HERE = Path(__file__).parent
SPEC = DataSpec(name="noise", shape=(4, 32, 32), image=True, classes=tuple(str(i) for i in range(10)))


@dataclass(frozen=True)
class Size:
    """A width of the published networks, at a depth and batch that a laptop can measure."""

    network: str
    patch: int
    batch: int
    depth: int


SIZES = {
    "S/2": Size("S", 2, 8, 4),
    "B/4": Size("B", 4, 16, 4),
    "B/2": Size("B", 2, 4, 4),
}
"""Costs in units of F do not depend on the depth beyond a few blocks: all blocks cost the same."""


def built(size: Size, recipe: Recipe) -> FlowMap:
    torch.manual_seed(0)
    flow = build_flow(
        RunConfig(recipe=recipe, network=SiTConfig(size=size.network, patch=size.patch, depth=size.depth)), SPEC
    )
    for weight in flow.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
    return flow


def settings(rows: int, batch: int) -> Recipe:
    """ESC for B/2 with exactly `rows` rows of r < t and one in ten labels hidden."""
    recipe = esc()
    times: Any = recipe.objective.times
    return replace(recipe, objective=replace(recipe.objective, times=replace(times, ratio=rows / batch, count="exact")))


def drawn(flow: FlowMap, recipe: Recipe, batch: int, seed: int) -> Draw:
    """A draw whose images share one class, at the end of the run; one row in ten (rounded) hides it."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *SPEC.shape, generator=g)
    label = torch.full((batch,), seed % 10)
    draw = recipe.objective.draw(
        Batch(x=x, label=label), flow.path, Streams(seed=seed), Progress(images=999, total=1000), flow.null_label
    )
    hidden = torch.zeros(batch, dtype=torch.bool)
    if recipe.objective.label_dropout > 0:
        hidden[torch.randperm(batch, generator=g)[: max(1, round(batch / 10))]] = True
    return replace(draw, dropped=hidden)


def gradients(loss: Tensor, flow: FlowMap) -> list[Tensor]:
    return [
        torch.zeros(()) if g is None else g
        for g in torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    ]


def measured(size: Size, rounds: int, compiled: bool) -> dict[str, Any]:
    batch = size.batch
    recipe = settings(max(1, batch // 4), batch)
    flow = built(size, recipe)
    objective, reference = recipe.objective, ReferenceStep(flow, recipe.objective)
    draw = drawn(flow, recipe, batch, seed=0)
    plain_recipe = flow_matching()
    plain = built(size, plain_recipe)
    plain_draw = drawn(plain, plain_recipe, batch, seed=0)

    def forward() -> None:
        with torch.no_grad():
            flow.predict(draw.x_t, draw.times.t, draw.times.r, draw.condition)

    def ours() -> list[Tensor]:
        return gradients(objective.evaluate(flow, flow, draw).loss.mean(), flow)

    def theirs() -> list[Tensor]:
        return gradients(reference(draw), flow)

    def matching() -> list[Tensor]:
        return gradients(plain_recipe.objective.evaluate(plain, plain, plain_draw).loss.mean(), plain)

    difference = 0.0
    for seed in range(3):
        draw = drawn(flow, recipe, batch, seed)
        found, expected = ours(), theirs()
        size_of = torch.cat([g.flatten() for g in expected]).norm()
        apart = torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)]).norm()
        difference = max(difference, float(apart / size_of))
    runs = {"reference": theirs, "step": ours, "flow matching": matching, "forward": forward}
    losses = {
        "reference": lambda: reference(draw),
        "step": lambda: objective.evaluate(flow, flow, draw).loss.mean(),
        "flow matching": lambda: plain_recipe.objective.evaluate(plain, plain, plain_draw).loss.mean(),
        "forward": forward,
    }
    unit = flops(forward)
    record = {
        name: {"flops": flops(run) / unit, "memory": peak_memory(losses[name]), "step_memory": peak_memory(run)}
        for name, run in runs.items()
    }
    for name, time in ratios(timed(runs, rounds), "reference").items():
        record[name] |= time
    return {
        "network": f"SiT width of {size.network}, patch {size.patch}, {size.depth} blocks",
        "batch": batch,
        "gradient_difference": difference,
        "runs": record,
    }


def table(records: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| size | step | operations (F) | time / reference | activations | / reference |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, record in records.items():
        base = record["runs"]["reference"]["memory"]
        for run, row in record["runs"].items():
            lines.append(
                f"| {name} | {run} | {row['flops']:.2f} | {row['ratio']:.2f} ({row['low']:.2f}–{row['high']:.2f}) "
                f"| {row['memory'] / 2**20:.0f} MiB | {row['memory'] / base:.2f} |"
            )
        lines.append(f"| {name} | gradients: relative difference {record['gradient_difference']:.1e} | | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results/step-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records = {name: measured(SIZES[name], options.rounds, False) for name in options.sizes.split(",")}
    write(options.out, {"command": "python -m benchmarks.step", "rounds": options.rounds, "sizes": records})
    print(table(records))


if __name__ == "__main__":
    main()
