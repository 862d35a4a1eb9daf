"""One step by one process and by two with gloo, each on rows of its own. Run by `benchmarks.scaling`.

The same two processes do both, in turn: one steps alone while the other waits, then both step, without and with the
exchange of their gradients, and as a run does, with everything around a step. The ratios tell what a second process
costs by sharing memory and cores, what the exchange costs, and what the run does; the averaged gradients are compared
with those of the processes alone.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import peak_memory, ratios, seconds
from benchmarks.subjects import Size, built, difference, drawn, settings
from shortflow.draw import Draw
from shortflow.recipe import Recipe
from shortflow.train import StepRecord, TrainSettings, TrainStep, fit
from shortflow.typing import Batch

__all__ = ["measured"]

COUNT = 2


def measured(size: Size, rounds: int) -> dict[str, Any]:
    """Seconds of a step {"alone", "together", "exchanging", "fit"} with ratios to "alone", gradients and memory.

    "gradient_difference" is that of the averaged gradient from the mean of what the processes find alone, and
    "single_difference" what it would be if nothing were exchanged.

    Raises:
        RuntimeError: if a process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"
        mp.spawn(_work, (f"file://{folder}/meeting", str(result), size, rounds), nprocs=COUNT)  # pyright: ignore
        return torch.load(result, weights_only=True)


def _work(rank: int, meeting: str, result: str, size: Size, rounds: int) -> None:
    # As a launcher does; nobody meets at that address, since the processes are connected by then.
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT, "OMP_NUM_THREADS": 1}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in launcher.items()}}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=COUNT)
    try:
        found = _measure(rank, size, rounds, Path(result).parent / "run")
        if rank == 0:
            torch.save(found, result)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def records_of(recipe: Recipe, size: Size, directory: Path) -> Iterator[StepRecord]:
    """The steps of a run that neither logs nor saves before its end, which it does not reach."""
    flow = built(size, recipe)
    noise = torch.randn(size.batch, *size.spec.shape, generator=torch.Generator().manual_seed(0))
    steps = {"log_every": 10**6, "save_every": 10**6, "preview_every": 0, "trackers": ()}
    return fit(
        directory,
        flow,
        recipe.objective,
        lambda step: Batch(x=noise, label=torch.arange(size.batch) % size.spec.num_classes),
        settings=TrainSettings(images=10**9, batch=COUNT * size.batch, **steps),  # type: ignore[arg-type]
        optimizer=recipe.optimizer,
        metadata={},
    )


def _measure(rank: int, size: Size, rounds: int, directory: Path) -> dict[str, Any]:
    recipe = settings(max(1, size.batch // 4), size.batch)
    flow = built(size, recipe)
    module = TrainStep(flow, recipe.objective)
    with warnings.catch_warnings():  # newer versions of torch have another name for it, which older ones do not know
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = DistributedDataParallel(module, broadcast_buffers=False)
    records = records_of(recipe, size, directory)
    draws = [drawn(flow, recipe, size, seed) for seed in range(COUNT)]

    def step(model: nn.Module, draw: Draw = draws[rank]) -> list[Tensor]:
        """The gradients of the weights, all of which have one."""
        module.zero_grad(set_to_none=True)
        model(draw)[0].backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    def together() -> None:
        with wrapped.no_sync():
            step(wrapped)

    runs: dict[str, Callable[[], Any]] = {
        "alone": lambda: step(module) if rank == 0 else None,
        "together": together,
        "exchanging": lambda: step(wrapped),
        "fit": lambda: next(records),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            dist.barrier()
            time = torch.tensor(seconds(run))
            dist.all_reduce(time, dist.ReduceOp.MAX)  # a step is over when all have made it
            if i > 0:
                times[name].append(float(time))
    records.close()  # type: ignore[attr-defined]
    averaged = [g.clone() for g in step(wrapped)]
    single = [[g.clone() for g in step(module, draw)] for draw in draws]
    expected = [torch.stack(each).mean(0) for each in zip(*single, strict=True)]
    memory = {}
    for name, run in (("alone", lambda: step(module)), ("exchanging", lambda: step(wrapped))):
        module.zero_grad(set_to_none=True)
        dist.barrier()
        memory[name] = peak_memory(run)
    return {
        "count": COUNT,
        "rows": size.batch,
        "gradient_difference": difference(averaged, expected),
        "single_difference": difference(single[rank], expected),
        "memory": memory,
        "runs": ratios(times, "alone"),
    }
