"""How long a run would take on this machine, before it starts.

    hours = steps that are left × the cost of a step in F × the time of F

F is a pass of the network over the rows of a part of a batch, without gradient (`shortflow.cost`). It is timed where
that takes a second or so; where it would take longer, its time follows from the rate of products of matrices, which is
timed instead, and a share of it that has to be assumed. What a run has logged is used rather than either. All of them
leave out data, previews and the update of the weights; compilation and other programs change them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.estimate import SHARE
from shortflow.hub import build_flow
from shortflow.runs.planning import Plan
from shortflow.status import read_status

__all__ = ["Pace", "pace"]

LONGEST = 1.0  # seconds that a timed pass may take, as far as is known before
_SIDES = {"cuda": 8192}  # of the matrices that are multiplied
_SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a step takes here.

    Attributes:
        seconds: of a step, in as many processes as there are.
        hours: of the steps that are left.
        how: what was measured, in words.
    """

    seconds: float
    hours: float
    how: str


def pace(run: RunConfig, spec: DataSpec, plan: Plan, directory: Path) -> Pace:
    """The pace of the run that was planned, on the device that it would run on; takes a few seconds."""
    left = run.train.steps - plan.begun
    speed = read_status(directory).speed if plan.begun else None
    if speed is not None:
        seconds, how = run.train.batch / speed, "as its log says"
    else:
        passes = plan.estimate.step * (plan.parts / plan.processes)
        one, how = _pass(run, spec, plan)
        seconds = passes * one
    return Pace(seconds=seconds, hours=left * seconds / 3600, how=how)


def _pass(run: RunConfig, spec: DataSpec, plan: Plan) -> tuple[float, str]:
    """(seconds of F, how they were found)."""
    device, rows = torch.device(plan.device), plan.rows
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    rate = _rate(device, dtype)
    row = plan.estimate.forward / (SHARE * rate)  # about, in seconds
    if row > LONGEST:
        reached = f"{SHARE:.0%} of the {rate / 1e12:,.3g} TFLOP/s that products of matrices reach here"
        return rows * row, f"an estimate, from {reached}"
    count = rows if rows * row <= LONGEST else int(LONGEST / row)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        flow = build_flow(run, spec)
        x, t = torch.zeros(count, *spec.shape), torch.full((count,), 0.5)
        label = None if (blank := spec.blank(count)) is None else blank.to(device)

    def once() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            flow.predict(x, t, t, label)

    took = _timed(once, device) * rows / count
    return took, f"an estimate, from a pass timed over {count:,} of {rows:,} rows: F is {took:,.3f} s"


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of matrices."""
    side = _SIDES.get(device.type, _SIDE)
    a = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _timed(lambda: a @ a, device)


def _timed(run: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """Seconds of the quickest of a few runs, after a first one that sets things up."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])
