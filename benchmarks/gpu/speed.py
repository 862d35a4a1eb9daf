"""What steps, samples and the plug-in velocity take, beside the fastest matrix products of the device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from benchmarks.gpu.correct import compiling, forget
from benchmarks.gpu.precision import autocast, matmuls
from benchmarks.gpu.runner import Context
from benchmarks.gpu.waiting import waits
from benchmarks.measure import flops, peak_memory, ratios, timed
from benchmarks.reference import pairwise_plug_in
from benchmarks.subjects import QUICK, Size, Subject, difference
from shortflow.paths import Linear
from shortflow.sample import sample
from shortflow.train import TrainSettings, TrainStep, train
from shortflow.typing import Batch
from shortflow.velocity import plug_in_velocity

__all__ = ["SIZES", "ceiling", "compiled", "loop", "plug_in", "sampling", "steps", "waiting"]

SIZES = {
    "S/2": Size(network="S", patch=2, batch=64),
    "B/4": Size(network="B", patch=4, batch=128),
    "B/2": Size(network="B", patch=2, batch=64),
    "XL/2": Size(network="XL", patch=2, batch=16),
}
"""The published networks on 32 × 32 × 4 latents, at batches whose straightforward step fits into 80 GB."""

EAGER = ("reference", "step", "flow matching", "forward")


def _size(context: Context, name: str) -> Size:
    return QUICK if context.quick else SIZES[name]


def _rounds(context: Context) -> int:
    return 1 if context.quick else 5


def ceiling(context: Context) -> dict[str, Any]:
    """The most floating-point operations in a second, by mode: one large product of square matrices."""
    n, device = (128 if context.quick else 8192), context.device
    found = {}
    for mode, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        with matmuls(mode):
            times = timed({"product": lambda a=a, b=b: a @ b}, 2 * _rounds(context), warmup=3, device=device)
        found[mode] = 2 * n**3 / min(times["product"])
    return {"size": n, "per_second": found | {"bf16+tf32": found["bf16"]}}


# ----------------------------------------------------------------------------------------------------------- the step


def steps(name: str, mode: str) -> Callable[[Context], dict[str, Any]]:
    """Our step, the straightforward one, flow matching and one forward pass, at a size in a mode."""

    def run(context: Context) -> dict[str, Any]:
        size = _size(context, name)
        subject = Subject(size, EAGER, device=context.device, bf16=autocast(mode))
        with matmuls(mode):
            return _measured(subject, context, mode, EAGER)

    return run


def compiled(name: str, mode: str, depth: int | None = None) -> Callable[[Context], dict[str, Any]]:
    """Our step and flow matching with compiled networks, and our step compiled as a whole, beside those without.

    With `depth` blocks instead of all.
    """
    names = ("step", "fixed step", "flow matching", "compiled step", "compiled fixed step", "compiled flow matching")

    def run(context: Context) -> dict[str, Any]:
        forget()
        size = _size(context, name)
        size = size if depth is None else replace(size, depth=min(depth, size.config.blocks))
        device, half = context.device, autocast(mode)
        subject = Subject(size, (*names, "forward"), device=device, bf16=half, backend=context.backend)
        with matmuls(mode):
            found = _measured(subject, context, mode, (*names, "forward"))
        return {**found, "graphs": compiling(subject)}

    return run


def _measured(subject: Subject, context: Context, mode: str, names: Sequence[str]) -> dict[str, Any]:
    """Of each step {"flops" (in F), "ratio" (time in F), "seconds", "images", "share", "memory", "step_memory", …}.

    A step that does not fit into the memory is left out and named. `share` is the part of the ceiling that the
    arithmetic of the step reaches.
    """
    device, names = context.device, list(names)
    losses, runs = subject.losses(), subject.steps()
    memory: dict[str, dict[str, int]] = {}
    counted, too_large = {}, []
    for name in names:
        try:
            runs[name]()  # compiles, and allocates what stays
            memory[name] = {
                "memory": peak_memory(losses[name], device),
                "step_memory": peak_memory(runs[name], device),
            }
            # What is compiled does the same arithmetic, and cannot be counted.
            counted[name] = flops(runs[name.removeprefix("compiled ")])
        except torch.OutOfMemoryError:
            too_large.append(name)
    names = [name for name in names if name not in too_large]
    found = ratios(timed({name: runs[name] for name in names}, _rounds(context), device=device), "forward")
    top = context.found.get("ceiling", {}).get("per_second", {}).get(mode)
    for name, row in found.items():
        row |= memory[name]
        row["flops"] = counted[name] / counted["forward"]
        row["images"] = subject.size.batch / row["seconds"]
        row["share"] = None if top is None else counted[name] / row["seconds"] / top
    return {
        "network": subject.size.words,
        "batch": subject.size.batch,
        "mode": mode,
        "out_of_memory": too_large,
        "runs": found,
    }


# --------------------------------------------------------------------------------------------- waiting, and the loop


def waiting(context: Context) -> dict[str, Any]:
    """How often loss and gradient of a step wait for the device, ours and flow matching's, and the training loop."""
    size = QUICK if context.quick else replace(SIZES["S/2"], depth=4)
    subject = Subject(size, ("step", "fixed step", "flow matching"), device=context.device)
    found = {name: waits(run, context.device) for name, run in subject.steps().items()}
    records = _training(context, size, steps=8)
    return {"of": {**found, "training loop": waits(lambda: next(records), context.device)}}


def loop(context: Context) -> dict[str, Any]:
    """Seconds and images per second of a whole training step (draw, loss, gradient, clipping, Adam), under bf16."""
    size, rounds = _size(context, "B/2"), 2 + 2 * _rounds(context)
    records = [record.seconds for record in _training(context, size, steps=rounds, precision="bf16")][2:]
    middle = sorted(records)[len(records) // 2]
    return {"network": size.words, "batch": size.batch, "seconds": middle, "images": size.batch / middle}


def _training(context: Context, size: Size, *, steps: int, precision: str = "fp32") -> Any:
    subject = Subject(size, ("step",), device=context.device)
    module = TrainStep(subject.flow, subject.recipe.objective, bf16=precision == "bf16")
    settings = TrainSettings(images=steps * size.batch, batch=size.batch, precision=precision)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    batch = Batch(x=torch.randn(size.batch, *size.spec.shape, generator=g), label=torch.zeros(size.batch).long())
    if context.device.type == "cpu" and torch.cuda.is_available():
        raise RuntimeError("training runs on the GPU where there is one; hide it to measure the loop on the processor")
    return train(module, settings, subject.recipe.optimizer, lambda k: batch)


# ----------------------------------------------------------------------------------------- sampling and the plug-in


def sampling(context: Context) -> dict[str, Any]:
    """Images per second in 1 and 4 steps, and the time of `sample` over that of the bare passes."""
    size, device = _size(context, "B/2"), context.device
    count = 2 * size.batch if context.quick else 256
    subject = Subject(size, ("step",), device=device)
    flow, label = subject.flow, torch.zeros(count, dtype=torch.long, device=device)
    x = torch.randn(count, *size.spec.shape, device=device)
    found = {}
    for mode in ("fp32", "bf16"):
        for n in (1, 4):
            times = [torch.full((count,), 1 - i / n, device=device) for i in range(n + 1)]

            def bare(times: list[torch.Tensor] = times) -> None:
                with torch.no_grad():
                    for t, r in pairwise(times):
                        flow.predict(x, t, r, label)

            def whole(n: int = n) -> None:
                list(sample(flow, count, size.spec.shape, steps=n, label=label.cpu(), batch_size=count))

            with matmuls(mode), torch.autocast(device.type, torch.bfloat16, enabled=autocast(mode)):
                times_of = timed({"whole": whole, "bare": bare}, _rounds(context), device=device)
            row = ratios(times_of, "bare")["whole"]
            found[f"{mode}, {n} step{'s'[: n > 1]}"] = {**row, "images": count / row["seconds"]}
    return {"network": size.words, "batch": count, "runs": found}


def plug_in(context: Context) -> dict[str, Any]:
    """Time, memory and error of the plug-in velocity of 512 images, and of the form over all pairs of images."""
    rows = 32 if context.quick else 512
    device, path, g = context.device, Linear(), torch.Generator().manual_seed(0)
    x, eps = (torch.randn(rows, 4, 32, 32, generator=g).to(device) for _ in range(2))
    t = torch.linspace(0.05, 1, rows, device=device)
    allowed = torch.ones(rows, rows, dtype=torch.bool, device=device)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "matrix products": lambda: plug_in_velocity(path, x, eps, t),
        "half of the rows": lambda: plug_in_velocity(path, x, eps, t, rows=torch.arange(rows // 2, device=device)),
    }
    if context.quick or device.type == "cuda":  # 16 GiB for 512 rows
        runs["all pairs"] = lambda: pairwise_plug_in(x, path.interpolate(x, eps, t), eps, t, allowed)
    found: dict[str, Any] = {}
    for name, run in list(runs.items()):
        try:
            found[name] = {"memory": peak_memory(run, device)}
        except torch.OutOfMemoryError:
            del runs[name]
    for name, row in ratios(timed(runs, _rounds(context), device=device), "matrix products").items():
        found[name] |= row
    exact = plug_in_velocity(path, x.double(), eps.double(), t.double())
    error = difference([runs["matrix products"]()], [exact])
    with matmuls("tf32"):
        coarse = difference([runs["matrix products"]()], [exact])
    checks = [
        {"what": f"plug-in velocity{where} against float64", "value": value, "bound": 1e-5, "good": value <= 1e-5}
        for where, value in (("", error), (", with TF32 switched on elsewhere,", coarse))
    ]
    return {"rows": rows, "runs": found, "checks": checks}
