"""What all measurements share: interleaved timing, arithmetic, peak memory, the machine, JSON records."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from shortflow.cost import peak_memory as on_processor
from shortflow.files import write_atomic

__all__ = ["CPU", "RESULTS", "device_of", "flops", "machine", "peak_memory", "ratios", "timed", "write"]

Run = Callable[[], Any]
CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results"


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def seconds(run: Run, device: torch.device = CPU) -> float:
    """How long a run takes: wall time, on a GPU the time between two events around it."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)  # the queue is empty, so that nothing of before is in the time
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def timed(runs: Mapping[str, Run], rounds: int, warmup: int = 1, device: torch.device = CPU) -> dict[str, list[float]]:
    """Seconds of every run in every round; a round goes through all runs in turn, so that drifts meet all of them."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds(run, device))
    return found


def spread(values: list[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Of each run, the median over the rounds of its time over that of `base`, with the quartiles."""
    found = {}
    for name, values in times.items():
        low, middle, high = spread([a / b for a, b in zip(values, times[base], strict=True)])
        found[name] = {"ratio": middle, "low": low, "high": high, "seconds": statistics.median(values)}
    return found


def flops(run: Run) -> int:
    """Floating-point operations of matrix products and convolutions.

    With attention written out: fused kernels on the processor are not counted, and those on a GPU count what they
    compute a second time.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(run: Run, device: torch.device = CPU) -> int:
    """Bytes that the run holds at most beyond what is there before: activations, gradients, temporaries."""
    if device.type != "cuda":
        return on_processor(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


PRODUCTS = ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm", "mkl::_mkl_linear")
ATTENTION = ("aten::_scaled_dot_product_", "aten::bmm", "aten::baddbmm", "aten::_softmax")


def shares(run: Run, times: int = 3) -> dict[str, float]:
    """The shares of processor time in linear maps and in attention, which compiling leaves as they are."""
    run()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        for _ in range(times):
            run()
    own = {each.key: each.self_cpu_time_total for each in found.key_averages()}
    groups = {"linear maps": PRODUCTS, "attention": ATTENTION}
    return {
        name: sum(time for key, time in own.items() if key.startswith(starts)) / sum(own.values())
        for name, starts in groups.items()
    }


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """What the figures were measured on, and how busy it was with other things."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _said(*command: str) -> str | None:
    """The first line that a command prints; None if it fails or is not there."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip().splitlines()[0] if found.stdout.strip() else None


def commit() -> str | None:
    """The commit that was measured, with "+" if files differ from it; None outside a repository."""
    found = _said("git", "rev-parse", "--short=10", "HEAD")
    if found is None:
        return None
    return found + ("+" if _said("git", "status", "--porcelain", "--", "../src", ".", ":!results") else "")


def write(path: Path, record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """The record after what was measured on what, as JSON; the file is never half written."""
    now = _times()
    if _clock:
        spent = {name: now[name] - _clock[name] for name in now}
        about = {**about, "load": round((spent["all"] - spent["own"]) / max(spent["wall"], 1e-9), 1)}
    write_atomic(path, json.dumps({**about, **record}, indent=1) + "\n")


_clock: dict[str, float] = {}  # when the head was asked for


def _times() -> dict[str, float]:
    """Seconds of the clock, of all processors at work, and of them for this process and its children."""
    busy = psutil.cpu_times()
    own = os.times()
    idle = busy.idle + getattr(busy, "iowait", 0.0)
    return {
        "wall": time.perf_counter(),
        "all": sum(busy[: 8 if len(busy) > 8 else len(busy)]) - idle,  # the guests after them are counted as users
        "own": own.user + own.system + own.children_user + own.children_system,
    }


def about(command: str, device: torch.device = CPU) -> dict[str, Any]:
    """The head of a record: command, commit, date and machine; asked for before measuring."""
    _clock.update(_times())
    date = time.strftime("%Y-%m-%d")
    return {"command": command, "commit": commit(), "date": date, "machine": machine(device)}
