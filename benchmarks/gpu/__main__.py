"""The command: python -m benchmarks.gpu [--device cuda] [--quick]"""

import argparse
import sys
import time
from pathlib import Path

import torch

import benchmarks.gpu as package
from benchmarks import report, tables
from benchmarks.gpu import attention, correct, speed
from benchmarks.gpu.runner import Context, Part, Record, faults, run_all
from benchmarks.measure import RESULTS, about, device_of, write

__all__ = ["PARTS", "main"]

FILE = RESULTS / "gpu.json"
BUDGET = 450.0  # seconds; with starting and writing less than eight minutes

PARTS = (
    Part("ceiling", speed.ceiling),
    Part("dual pass", correct.dual_pass),
    Part("gradients", correct.gradients),
    Part("attention", attention.kernels),
    Part("B/2 bf16", speed.steps("B/2", "bf16")),
    Part("XL/2 bf16", speed.steps("XL/2", "bf16")),
    Part("waiting", speed.waiting),
    Part("plug-in", speed.plug_in),
    Part("sampling", speed.sampling),
    Part("B/2 fp32", speed.steps("B/2", "fp32")),
    Part("compiled networks", correct.compiled),
    Part("B/2 bf16 compiled", speed.compiled("B/2", "bf16")),
    Part("loop", speed.loop),
    Part("B/2 bf16+tf32", speed.steps("B/2", "bf16+tf32")),
    Part("S/2 bf16", speed.steps("S/2", "bf16")),
    Part("S/2 fp32", speed.steps("S/2", "fp32")),
    Part("B/4 bf16", speed.steps("B/4", "bf16")),
    Part("B/4 fp32", speed.steps("B/4", "fp32")),
    Part("XL/2 fp32", speed.steps("XL/2", "fp32")),
    Part("XL/2 bf16+tf32", speed.steps("XL/2", "bf16+tf32")),
    Part("XL/2 bf16 compiled (4 blocks)", speed.compiled("XL/2", "bf16", 4)),
    Part("S/2 bf16 compiled (4 blocks)", speed.compiled("S/2", "bf16", 4)),
    Part("B/4 bf16 compiled (4 blocks)", speed.compiled("B/4", "bf16", 4)),
    Part("B/2 fp32 compiled (4 blocks)", speed.compiled("B/2", "fp32", 4)),
    Part("S/2 fp32 compiled (4 blocks)", speed.compiled("S/2", "fp32", 4)),
    Part("B/4 fp32 compiled (4 blocks)", speed.compiled("B/4", "fp32", 4)),
    Part("XL/2 fp32 compiled (4 blocks)", speed.compiled("XL/2", "fp32", 4)),
)
"""In the order of their importance: the budget may not reach the last ones, which compile for long."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and say what is wrong; 1 if something is."""
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cpu, or auto: the GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as a test of the command; needs --out")
    parser.add_argument("--parts", help=f"only these, comma-separated: {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which nothing more is measured")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    if options.out is None and (options.quick or options.parts or device.type != "cuda"):
        parser.error("only a full run on a GPU replaces the results; give --out for anything else")
    parts = PARTS
    if options.parts:
        wanted = [name.strip() for name in options.parts.split(",")]
        parts = tuple(part for part in PARTS if part.name in wanted)
        unknown = set(wanted) - {part.name for part in parts}
        if unknown:
            parser.error(f"there are no parts {sorted(unknown)}; there are {[part.name for part in PARTS]}")
    torch.manual_seed(0)
    head = {**about("python -m benchmarks.gpu", device), "device": device.type, "quick": options.quick}
    out, began = options.out or FILE, time.monotonic()

    def save(records: dict[str, Record]) -> None:
        name, last = next(reversed(records.items()))
        print(f"{last.get('seconds', 0):7.1f} s  {name}: {last['state']} {last.get('reason', '')}", flush=True)
        write(out, {"budget": options.budget, "seconds": round(time.monotonic() - began, 1), "parts": records}, head)

    records = run_all(parts, Context(device=device, quick=options.quick), options.budget, save)
    print(tables.gpu({**head, "budget": options.budget, "parts": records}))
    if options.out is None:
        report.rewrite()
    wrong = faults(records)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
