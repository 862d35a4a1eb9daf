"""Are the numbers right on this device? Each check is a relative difference of norms with the bound it has to keep."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.precision import autocast, matmuls
from benchmarks.gpu.runner import Context
from benchmarks.subjects import QUICK, Size, Subject, difference
from shortflow.tangent import DualPass, ForwardMode

__all__ = ["compiled", "dual_pass", "gradients"]

SIZE = Size(network="S", patch=2, batch=16, depth=4)

VALUE = {"float64": 1e-12, "fp32": 1e-5, "tf32": 5e-3, "bf16": 2e-2}
"""Bounds on value and tangent of a pass, against `torch.func.jvp` in float64: rounding of the precision over a few
blocks. Under autocast the tangent is computed in fp32, from values that bf16 has rounded."""

GRADIENT = {"float64": 1e-10, "fp32": 1e-5}
"""Bounds on the gradient of the step, against the straightforward step in the same precision."""

AUTOCAST = 2e-2
"""Bound on the gradient of a step under autocast against fp32; plain flow matching stands beside it."""

COMPILED = {"fp32": 1e-4, "bf16": 5e-2}
"""Bounds on the gradient of the compiled step, against the uncompiled one in the same precision."""


def check(what: str, value: float, bound: float) -> dict[str, Any]:
    return {"what": what, "value": value, "bound": bound, "good": value <= bound}


def _size(context: Context) -> Size:
    return QUICK if context.quick else SIZE


def dual_pass(context: Context) -> dict[str, Any]:
    """Value and tangent of the network along the path, in every precision, against torch's forward mode in float64."""
    exact = Subject(_size(context), ("step",), device=context.device, dtype=torch.float64)
    flow, draw = exact.flow, exact.draw
    v = flow.path.velocity(draw.x, draw.eps, draw.times.t)

    def network(x: Tensor, time: Tensor) -> Tensor:
        return flow.predict(x, time, draw.times.r.to(time.dtype), draw.condition)

    expected = ForwardMode()(network, draw.x_t, draw.times.t, v)
    checks = []
    for mode, bound in VALUE.items():
        dtype = torch.float64 if mode == "float64" else torch.float32
        flow.to(dtype)
        given = [each.to(dtype) for each in (draw.x_t, draw.times.t, v)]
        half_precision = torch.autocast(context.device.type, torch.bfloat16, enabled=mode == "bf16")
        with matmuls("fp32" if mode == "float64" else mode), torch.no_grad(), half_precision:
            (value,), tangent = DualPass(fallback=False).keeping(lambda x, time: (network(x, time),), *given)
        for name, one, other in zip(("value", "tangent"), (value, tangent), expected, strict=True):
            checks.append(check(f"{name} of a dual pass, {mode}", difference([one], [other]), bound))
    return {"checks": checks}


def gradients(context: Context) -> dict[str, Any]:
    """The gradient of our step against that of the straightforward one, and under autocast against fp32."""
    size, device, checks = _size(context), context.device, []
    for mode, dtype in (("float64", torch.float64), ("fp32", torch.float32)):
        subject, worst = Subject(size, ("reference", "step"), device=device, dtype=dtype), 0.0
        with matmuls("fp32"):
            for seed in range(3):
                subject.draw_again(seed)
                worst = max(worst, difference(subject.step("step"), subject.step("reference")))
        checks.append(check(f"gradient of the step, {mode}", worst, GRADIENT[mode]))
    names = ("step", "flow matching")
    half, full = (Subject(size, names, device=device, bf16=bf16) for bf16 in (True, False))
    for name in names:
        with matmuls("fp32"):
            apart = difference(half.step(name), full.step(name))
        checks.append(check(f"gradient of {name} under bf16 autocast against fp32", apart, AUTOCAST))
    return {"checks": checks}


def compiled(context: Context) -> dict[str, Any]:
    """The gradient of the compiled step against the uncompiled one, and whether it did run compiled."""
    checks, graphs = [], {}
    size = replace(_size(context), depth=2)
    for mode, bound in COMPILED.items():
        forget()
        names = ("step", "compiled step", "fixed step", "compiled fixed step")
        subject = Subject(size, names, device=context.device, bf16=autocast(mode), backend=context.backend)
        with matmuls(mode):
            apart = {name: difference(subject.step(f"compiled {name}"), subject.step(name)) for name in names[::2]}
        checks += [check(f"gradient of the compiled {name}, {mode}", far, bound) for name, far in apart.items()]
        graphs[mode] = compiling(subject)
    return {"checks": checks, "graphs": graphs}


def forget() -> None:
    """Drop what was compiled before, and start counting anew."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()


def compiling(subject: Subject) -> dict[str, int]:
    """How many graphs were made since `forget`, and how often one was broken.

    Raises:
        RuntimeError: if a network that should be compiled runs uncompiled.
    """
    from torch._dynamo.utils import counters

    for name, flow in subject.compiled.items():
        call: Any = flow.network._compiled_call_impl
        if call.failed:
            raise RuntimeError(f"{name}: the network runs uncompiled; see the warnings of this part")
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "breaks": int(sum(counters["graph_break"].values())),
    }
