"""What an ESC training step costs beside a straightforward one and beside flow matching: python -m benchmarks.step

For each size of network: operations in F (one forward pass of the batch without gradient), time as the median of
ratios of interleaved runs, the most memory that the loss takes before its gradient is asked for (activations and
temporaries), that of the whole step with its gradients, and the gradients of both ESC steps compared in the same run.

The step is measured compiled, too, as `train.compile` does it, and as a whole in the fixed layout of rows that is made
for that ("fixed step" is this layout without compiling); it takes minutes, and --no-compile leaves it out. --only
"step,compiled step" leaves out the rest, for more rounds in the same time.

With --recipes: what one step of every recipe costs, counted, measured and timed, in F.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import recipes, report, tables
from benchmarks.measure import RESULTS, about, flops, peak_memory, ratios, shares, timed, write
from benchmarks.subjects import QUICK, SIZES, Size, Subject, difference

__all__ = ["measured"]

FILE, RECIPES_FILE = RESULTS / "step-cpu.json", RESULTS / "recipes-cpu.json"


NAMES = ("reference", "fused reference", "step", "flow matching", "forward")
COMPILED = ("fixed step", "compiled step", "compiled fixed step")
SETTLING = 64  # calls, among which are those that a compiled network is compared with the plain one in


def measured(size: Size, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Of each step: {"flops" (in F), "memory", "step_memory", "ratio", "low", "high", "seconds"}.

    A compiled one also has "plain": its time beside the same step without compiling. And of the ESC step there are the
    shares of time that linear maps and attention take.
    """
    torch.compiler.reset()  # so that the numbers of this size are known to the compiler, as those of a run are
    subject, apart = Subject(size, tuple(names)), 0.0
    for seed in range(3):
        subject.draw_again(seed)
        # In the fixed layout other rows jump, so that its gradient is another one.
        for alike in (["reference", "step", "compiled step"], ["fixed step", "compiled fixed step"]):
            expected, *others = [subject.step(name) for name in alike if name in subject.names] or [[]]
            apart = max(apart, *(difference(other, expected) for other in others), 0.0)
    losses, steps = subject.losses(), subject.steps()
    if "compiled step" in steps:
        for _ in range(SETTLING):
            steps["compiled step"]()
    unit = flops(lambda: subject.step("forward"))
    record = {
        name: {
            "flops": flops(lambda plain=name.removeprefix("compiled "): subject.step(plain)) / unit,
            "memory": peak_memory(losses[name]),
            "step_memory": peak_memory(steps[name]),
        }
        for name in subject.names
    }
    times = timed(steps, rounds)
    for name, time in ratios(times, names[0]).items():
        record[name] |= time
        plain = name.removeprefix("compiled ")
        if plain != name and plain in times:
            record[name]["plain"] = ratios({name: times[name], plain: times[plain]}, plain)[name]
    found = {"network": size.words, "batch": size.batch, "gradient_difference": apart, "runs": record}
    return {**found, "shares": shares(steps["step"])} if "step" in steps else found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--recipes", action="store_true", help="measure every recipe instead")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="the compiled step, too")
    parser.add_argument("--only", help="some of the steps, by names with commas between them; needs --out")
    parser.add_argument("--quick", action="store_true", help="a tiny network, as a test of the command; needs --out")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name} or {RECIPES_FILE.name}")
    options = parser.parse_args(arguments)
    if options.quick and options.out is None:
        parser.error("--quick measures nothing worth keeping; give --out, so that no results are replaced")
    names = (*NAMES, *(COMPILED if options.compile else ()))
    if options.only is not None:
        names = tuple(name.strip() for name in options.only.split(","))
        if options.out is None or not {*names} <= {*NAMES, *COMPILED}:
            parser.error(f"--only takes names of {', '.join((*NAMES, *COMPILED))}, and --out FILE")
    torch.set_num_threads(options.threads)
    rounds = 1 if options.quick else options.rounds
    if options.recipes:
        head = about("python -m benchmarks.step --recipes")
        record, table = {"rounds": rounds, **recipes.measured(rounds, quick=options.quick)}, tables.recipes
    else:
        asked = "" if options.only is None else f' --only "{options.only}" --rounds {rounds}'
        head = about(f"python -m benchmarks.step{asked}")
        sizes = {"tiny": QUICK} if options.quick else {name: SIZES[name] for name in options.sizes.split(",")}
        found = {name: measured(size, rounds, names) for name, size in sizes.items()}
        record, table = {"rounds": rounds, "sizes": found}, tables.step
    write(options.out or (RECIPES_FILE if options.recipes else FILE), record, head)
    print(table({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
