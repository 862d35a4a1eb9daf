"""What the plug-in velocity of a batch takes beside one by all pairs of images: python -m benchmarks.plugin

Seconds as medians of interleaved rounds, the most memory beyond the batch itself, and how far both velocities are from
that in double precision. A quarter of the rows is what a step asks for whose other rows have r = t.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import report, tables
from benchmarks.measure import RESULTS, about, peak_memory, ratios, timed, write
from benchmarks.reference import pairwise_plug_in
from shortflow.paths import Linear
from shortflow.plugin import plug_in_velocity

__all__ = ["main", "measured"]

FILE = RESULTS / "plugin-cpu.json"


def measured(batch: int, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """{"batch", "shape", "runs": of each way "rows", "memory", "difference" and times}."""
    g = torch.Generator().manual_seed(0)
    path, quarter = Linear(), torch.arange(0, batch, 4)
    x, eps = torch.randn(2, batch, *shape, generator=g)
    t = 0.05 + 0.95 * torch.rand(batch, generator=g)
    label = torch.arange(batch) % 2
    allowed, x_t = label[:, None] == label, path.interpolate(x, eps, t)
    runs: dict[str, Callable[[], Tensor]] = {
        "all pairs": lambda: pairwise_plug_in(x, x_t, eps, t, allowed),
        "matrix products": lambda: plug_in_velocity(path, x, eps, t, allowed),
        "of a quarter of the rows": lambda: plug_in_velocity(path, x, eps, t, allowed[quarter], quarter),
    }
    true = plug_in_velocity(path, x.double(), eps.double(), t.double(), allowed)
    record: dict[str, Any] = {}
    for name, run in runs.items():
        found, expected = run(), true[quarter] if name.startswith("of") else true
        apart = float((found.double() - expected).norm() / expected.norm())
        record[name] = {"rows": len(found), "memory": peak_memory(run), "difference": apart}
    for name, row in ratios(timed(runs, rounds), "all pairs").items():
        record[name] |= row
    return {"batch": batch, "shape": list(shape), "rounds": rounds, "runs": record}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small batch, as a test of the command; needs --out")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args(arguments)
    if options.quick and options.out is None:
        parser.error("--quick measures nothing worth keeping; give --out, so that no results are replaced")
    torch.set_num_threads(options.threads)
    head = about("python -m benchmarks.plugin")
    record = measured(16, (2, 4, 4), 1) if options.quick else measured(512, (4, 32, 32), options.rounds)
    write(options.out or FILE, record, head)
    print(tables.plugin({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
