"""One of two processes that train together; `test_parallel.py` starts them and reads what they have found.

    python tests/parallel.py '[[WAY, CASE], ...]' RANK MEETING RESULT

Both compute one step of every case on half of its rows, wrapped as WAY says, and the same step alone on all rows.
RESULT gets, from the first process, how far the gradients are apart (of their norm) in each case.

Ways: "ddp"; "fsdp", and "fsdp-blocks" where blocks are sharded one by one, which needs the fixed layout of rows; any of
them "-checkpoint", and "-bf16" under autocast. "bare" is what must not be done.
"""

import copy
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts
from shortflow.nn import MLP, SiT, UNet
from shortflow.nn.checkpointing import checkpoint_blocks
from shortflow.recipe import Recipe
from shortflow.recipes import alphaflow, esc, esd, imf, imm, lsd, meanflow, rcgm, sct, shortcut, soflow, tvm
from shortflow.streams import Streams
from shortflow.train import TrainStep
from shortflow.typing import Batch, Progress
from shortflow.velocity import PlugIn
from steps import needed, randomize, taken

RANKS, ROWS = 2, 16


def joined(recipe: Recipe) -> Recipe:
    """With a plug-in velocity over the images of all processes."""
    target: Any = recipe.objective.target
    base = replace(target.velocity.base, plug_in=PlugIn(images="all"), probability=0.6)
    velocity = replace(target.velocity, base=base)
    return replace(recipe, objective=replace(recipe.objective, target=replace(target, velocity=velocity)))


def in_front(recipe: Recipe) -> Recipe:
    """In the fixed layout of rows, where no pass depends on what is drawn."""
    times: Any = recipe.objective.times
    if getattr(times, "count", None) == "bernoulli":
        times = replace(times, count="exact")
    return replace(recipe, objective=replace(recipe.objective, times=times, layout="fixed"))


RECIPES: dict[str, Recipe] = {
    "meanflow": meanflow(ratio=0.5),
    "esc": esc(omega=1.5, kappa=0.3, ratio=0.5),
    "esc, joined": joined(esc(omega=1.5, kappa=0.3, ratio=0.5)),
    "sct": sct(),
    "shortcut, fixed": in_front(shortcut()),
    "lsd": lsd(ratio=0.5),
    "esd": esd(ratio=0.5, detach_space=False),
    "tvm": tvm(),
    # Long steps: over those of k = 12 the samples compared are so near that their difference is rounding, too.
    "imm": imm(group=4, k=2),
    "imf": imf(ratio=0.5),
    "soflow": soflow(),
    "alphaflow": alphaflow(),
    "rcgm": rcgm(),
}
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "sit": lambda **heads: SiT(shape=(2, 4, 4), patch=2, width=16, depth=2, heads=2, **heads),
    "unet": lambda **heads: UNet(shape=(2, 4, 4), channels=8, multipliers=(1, 2), depth=1, attention=(1,), **heads),
    "mlp": lambda **heads: MLP(shape=(5,), width=16, depth=2, **heads),
}
LATER = ("imf", "soflow", "alphaflow", "rcgm")  # those whose slow cases are fewer
CASES = [f"{recipe}, {network}" for recipe in RECIPES if recipe not in LATER for network in NETWORKS]


def built(way: str, case: str, dtype: torch.dtype) -> tuple[TrainStep, Draw, list[Tensor]]:
    """(step module, draw of all rows, rows of each process)."""
    name, kind = case.rsplit(", ", 1)
    recipe = RECIPES[name]
    if way.startswith("fsdp-blocks"):
        recipe = in_front(recipe)
    network = randomize(NETWORKS[kind](**needed(recipe)))
    step = TrainStep(recipe.flow_map(network), recipe.objective, bf16="bf16" in way).to(dtype)
    if step.teacher is not None:
        step.teacher.module.to(dtype)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, *network.shape, generator=g, dtype=torch.float64).to(dtype)
    batch = Batch(x=x, label=torch.arange(ROWS) % 4)
    draw = step.draw(batch, Streams(seed=5), Progress(images=500, total=1000, batch=ROWS))
    together = torch.arange(ROWS).reshape(-1, getattr(recipe.objective.metric, "group", 1))  # rows that stay so
    order = draw.times.bootstrap[together[:, 0]].int().argsort(stable=True)
    assert draw.times.bootstrap.sum() >= RANKS
    # In the counted layout one process gets the rows with r = t, the other those that jump, as far as they go; else
    # each has as many that jump, and in front.
    parts = list(order.chunk(RANKS)) if draw.counted else [order.flip(0)[rank::RANKS] for rank in range(RANKS)]
    return step, draw, [together[part].flatten() for part in parts]


def part(draw: Draw, rows: Tensor) -> Draw:
    """The draw of a process; what it knows of its rows beforehand is what it would know."""
    jumps = None if draw.jumps is None else int(draw.times.bootstrap[rows].sum())
    return replace(taken(draw, rows), jumps=jumps)


def alone(step: TrainStep, draw: Draw, parts: list[Tensor]) -> list[Tensor]:
    """The gradient of one process on all rows; a plug-in velocity sees the rows that it would see in each process."""
    apart = "images='process'" in repr(step.objective)
    draws = [part(draw, rows) for rows in parts] if apart else [draw]
    for each in draws:
        (step(each)[0] / len(draws)).backward()
    return [whole(weight) for weight in step.flow.parameters()]


def whole(weight: nn.Parameter) -> Tensor:
    """The whole gradient; zero where there is none."""
    if weight.grad is None:
        return torch.zeros_like(weight)
    return weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad


def wrapped(way: str, step: TrainStep) -> nn.Module:
    """The step module, ready for several processes."""
    if "-checkpoint" in way:
        checkpoint_blocks(step.flow.network)
    if way.startswith("ddp"):
        return DistributedDataParallel(step)
    if way == "bare":  # what must not be done: the loss of the module inside
        return DistributedDataParallel(step).module
    mesh, network = init_device_mesh("cpu", (RANKS,)), step.flow.network
    if way.startswith("fsdp-blocks"):
        for name in ("blocks", "encoder", "middle", "decoder"):
            for block in getattr(network, name, ()):
                fully_shard(block, mesh=mesh)
    return fully_shard(step, mesh=mesh)


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    a, b = (torch.cat([each.detach().flatten() for each in gradient]).double() for gradient in (found, expected))
    return float((a - b).norm() / b.norm())


def compared(way: str, case: str, dtype: torch.dtype, rank: int) -> float:
    """How far the gradients are apart, and where there is a teacher, its weights after it has followed one update."""
    step, draw, parts = built(way, case, dtype)
    single = copy.deepcopy(step)
    expected = alone(single, draw, parts)
    module = wrapped(way, step)
    module(part(draw, parts[rank]))[0].backward()
    distance = apart([whole(weight) for weight in step.flow.parameters()], expected)
    if step.teacher is None or single.teacher is None:
        return distance
    for each in (single, step):
        torch.optim.SGD(each.flow.parameters(), lr=1.0).step()
        each.update_teacher(Progress(images=10 * ROWS, total=1000, batch=ROWS))
    return distance + apart(*(list(each.teacher.module.parameters()) for each in (step, single)))


def refused(rank: int) -> str:
    """What is said of blocks that are sharded one by one where processes make passes of their own."""
    step, draw, parts = built("fsdp", "meanflow, sit", torch.float32)
    module = wrapped("fsdp-blocks", step)
    try:
        module(taken(draw, parts[rank]))
    except IncompatibleParts as error:
        return str(error)
    return ""


def main(asked: list[list[str]], rank: int, meeting: str, result: str) -> None:
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS, timeout=wait)
    found: dict[str, Any] = {
        f"{way}: {case}, {name}": compared(way, case, dtype, rank)
        for way, case in asked
        for name, dtype in (("double", torch.float64), ("single", torch.float32))
        if dtype == torch.float32 or "bf16" not in way
    }
    found["refused"] = refused(rank)
    if rank == 0:
        Path(result).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("error", "the dual pass")  # which would then be made by torch.func.jvp
    torch.set_num_threads(1)
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
