"""What all measurements share: interleaved timing, peak memory, the machine, JSON records."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from shortflow.cost import peak_memory as on_processor

__all__ = ["flops", "machine", "peak_memory", "ratios", "timed", "write"]

Run = Callable[[], Any]


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Run) -> float:
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - began


def timed(runs: Mapping[str, Run], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every run in every round; a round goes through all runs in turn, so that drifts meet all of them."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds(run))
    return found


def ratios(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Of each run, the median over the rounds of its time over that of `base`, with the quartiles."""
    found = {}
    for name, values in times.items():
        paired = [a / b for a, b in zip(values, times[base], strict=True)]
        low, _, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else paired * 3
        found[name] = {
            "ratio": statistics.median(paired),
            "low": low,
            "high": high,
            "seconds": statistics.median(values),
        }
    return found


def flops(run: Run) -> int:
    """Floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(run: Run) -> int:
    """Bytes that the run holds at most beyond what is there before: activations, gradients, temporaries."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(run)
        return torch.cuda.max_memory_allocated() - before
    return on_processor(run)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found |= {"gpu": device.name, "gpu_memory": device.total_memory, "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record with the machine and the date, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), **record}
    path.write_text(json.dumps(whole, indent=1) + "\n")
