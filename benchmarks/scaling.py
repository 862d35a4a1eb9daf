"""How time and memory of an ESC step grow with batch, tokens, depth, width and processes: python -m benchmarks.scaling

Along each axis one number is changed and a power law c·nᵖ is fitted, log against log by least squares; p is given with
its standard error, which says how far the points are from a power law. Beside our step the straightforward one, with
operations, which are exact. Times of all points of an axis are interleaved; memory is that of the loss before its
gradient is asked for. Processes are compared with one another while they run (`benchmarks.processes`).
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes, report, tables
from benchmarks.measure import RESULTS, about, flops, peak_memory, spread, timed, write
from benchmarks.subjects import QUICK, Size, Subject

__all__ = ["AXES", "Exponent", "along", "exponent", "main"]

FILE = RESULTS / "scaling-cpu.json"
NAMES = ("reference", "step")

BASE = Size(network="S", patch=2, batch=8, depth=2, width=192, heads=3, side=16)
AXES: dict[str, tuple[int, ...]] = {
    "batch": (8, 16, 32, 64),
    "tokens": (16, 64, 144, 256),
    "depth": (1, 2, 4, 8),
    "width": (96, 192, 384, 768),
}
QUICK_AXES: dict[str, tuple[int, ...]] = {"batch": (4, 8), "tokens": (4, 16), "depth": (1, 2), "width": (16, 32)}


@dataclass(frozen=True)
class Exponent:
    """p of c·nᵖ, with its standard error; None where there are too few points to have one."""

    value: float
    error: float | None


def exponent(points: Sequence[float], values: Sequence[float]) -> Exponent:
    """The slope of log(values) over log(points) by least squares.

    Raises:
        ValueError: if there are fewer than two different points, or a number is not positive.
    """
    if len(set(points)) < 2 or min(*points, *values) <= 0:
        raise ValueError(f"an exponent needs two different points and positive numbers, got {points}, {values}")
    x, y = ([math.log(value) for value in each] for each in (points, values))
    fit = statistics.linear_regression(x, y)
    if len(x) < 3:
        return Exponent(fit.slope, None)
    rest = sum((b - fit.intercept - fit.slope * a) ** 2 for a, b in zip(x, y, strict=True))
    wide = sum((a - statistics.fmean(x)) ** 2 for a in x)
    return Exponent(fit.slope, math.sqrt(rest / (len(x) - 2) / wide))


def at(base: Size, axis: str, value: int) -> Size:
    """The base with one number changed; heads keep their length, tokens come from larger latents."""
    if axis == "tokens":
        return replace(base, side=base.patch * math.isqrt(value))
    if axis == "width":
        _, width, heads = base.config.dimensions
        return replace(base, width=value, heads=max(1, value * heads // width))
    return replace(base, **{axis: value})


def fitted(points: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    found = exponent(points, values)
    return {"values": list(values), "exponent": found.value, "error": found.error}


def along(base: Size, axis: str, points: Sequence[int], rounds: int) -> dict[str, Any]:
    """{"points", step: {"time", "memory", "flops": {"values", "exponent", "error"}}}, times in seconds.

    The time has also the quartiles of the exponents of the single rounds.
    """
    subjects = {point: Subject(at(base, axis, point), NAMES) for point in points}
    runs = {(point, name): run for point, each in subjects.items() for name, run in each.steps().items()}
    times: Mapping[Any, list[float]] = timed(runs, rounds)  # type: ignore[arg-type]
    record: dict[str, Any] = {"points": list(points)}
    for name in NAMES:
        own = [times[point, name] for point in points]
        low, _, high = spread([exponent(points, each).value for each in zip(*own, strict=True)])
        held = [peak_memory(subjects[point].losses()[name]) for point in points]
        record[name] = {
            "time": {**fitted(points, [statistics.median(each) for each in own]), "low": low, "high": high},
            "memory": fitted(points, held),
            "flops": fitted(points, [flops(runs[point, name]) for point in points]),
        }
    return record


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join([*AXES, "processes"]))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny networks, as a test of the command; needs --out")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args(arguments)
    if options.quick and options.out is None:
        parser.error("--quick measures nothing worth keeping; give --out, so that no results are replaced")
    torch.set_num_threads(1)  # one core for each process, in all measurements
    head = about("python -m benchmarks.scaling")
    base, axes = (QUICK, QUICK_AXES) if options.quick else (BASE, AXES)
    rounds = 1 if options.quick else options.rounds
    record: dict[str, Any] = {"network": base.words, "batch": base.batch, "rounds": rounds, "axes": {}}
    for axis in options.axes.split(","):
        if axis == "processes":
            record["processes"] = processes.measured(base, rounds)
        else:
            record["axes"][axis] = along(base, axis, axes[axis], rounds)
    write(options.out or FILE, record, head)
    print(tables.scaling({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
