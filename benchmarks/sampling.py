"""What sampling costs beside the network's passes alone: python -m benchmarks.sampling

Passes and samples are taken in turn; ratios are medians over the rounds, of batches drawn one after the other. The
passes alone are `FlowMap.predict` on noise that is there already; samples come with noise, sampler, times and classes.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import report, tables
from benchmarks.measure import RESULTS, about, ratios, timed, write
from shortflow import runs
from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.flowmap import FlowMap
from shortflow.hub import build_flow
from shortflow.nn.configs import SiTConfig
from shortflow.recipes import esc
from shortflow.sample import sample

FILE = RESULTS / "sampling-cpu.json"


def networks(depth: int) -> dict[str, tuple[FlowMap, DataSpec, int]]:
    """Name → (flow map, data, batch): the width of SiT-S/2 on latents, and the preset for digits."""
    torch.manual_seed(0)
    latents = DataSpec(name="latents", shape=(4, 32, 32), classes=tuple(map(str, range(10))))
    small, dataset = runs.configure("esc")
    wide = RunConfig(recipe=esc(), network=SiTConfig(size="S", patch=2, depth=depth))
    digits = DataSpec.fit(dataset, small.recipe.sigma_data)
    found = {"S/2": (build_flow(wide, latents), latents, 8), "digits": (build_flow(small, digits), digits, 256)}
    for flow, _, _ in found.values():
        flow.eval().requires_grad_(False)
        for weight in flow.parameters():
            if weight.ndim > 1 and not weight.any():
                nn.init.normal_(weight, std=0.02)
    return found


def measured(flow: FlowMap, spec: DataSpec, batch: int, batches: int, rounds: int) -> dict[str, Any]:
    x, label = torch.randn(batch, *spec.shape), torch.arange(batch) % spec.num_classes
    one, zero = torch.ones(batch), torch.zeros(batch)

    def passes() -> None:
        with torch.inference_mode():
            for _ in range(batches):
                flow.predict(x, one, zero, label)

    def drawn(**options: Any) -> None:
        for _ in sample(flow, batches * batch, spec.shape, batch_size=batch, **options):
            pass

    times = timed({"passes": passes, "samples": drawn, "samples in bf16": lambda: drawn(bf16=True)}, rounds)
    return {"batch": batch, "batches": batches, "runs": ratios(times, "passes")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--depth", type=int, default=4, help="blocks of the wide network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = about("python -m benchmarks.sampling")
    records = {
        name: measured(flow, spec, batch, options.batches, options.rounds)
        for name, (flow, spec, batch) in networks(options.depth).items()
    }
    record = {"rounds": options.rounds, "networks": records}
    write(options.out or FILE, record, head)
    print(tables.sampling({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
