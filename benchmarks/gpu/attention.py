"""Which attention kernels run: that the value of a dual pass keeps the fused one of a plain pass."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.precision import autocast, matmuls
from benchmarks.gpu.runner import Context
from benchmarks.subjects import QUICK, Size, Subject
from shortflow.products import stock_products
from shortflow.tangent import DualPass, ForwardMode

__all__ = ["kernels", "used"]

SIZE = Size(network="B", patch=2, batch=16, depth=4)

OPERATIONS = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash (processor)",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_softmax": "softmax",  # of attention that is written out
}
OF_INTEREST = re.compile(r"flash|fmha|sdpa|attention", re.IGNORECASE)


def used(run: Callable[[], Any], device: torch.device) -> dict[str, dict[str, int]]:
    """{"operations": how often each kind of attention was called, "kernels": the GPU's kernels for it}."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        run()  # so that choices by trial are made
    with profile(activities=activities) as profiled:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    operations: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.key in OPERATIONS:
            operations[OPERATIONS[event.key]] += event.count
        elif event.device_type != torch.autograd.DeviceType.CPU and OF_INTEREST.search(event.key):
            found[event.key[:120]] += event.count
    return {"operations": dict(operations), "kernels": dict(found.most_common(8))}


def kernels(context: Context) -> dict[str, Any]:
    """{mode: {pass: operations and kernels}}, and the check that a dual pass calls the fused kernel as often."""
    size = QUICK if context.quick else SIZE
    subject = Subject(size, ("step",), device=context.device)
    flow, draw = subject.flow, subject.draw
    t, _, r = draw.times
    v = draw.eps - draw.x

    def network(x: Tensor, time: Tensor) -> Tensor:
        return flow.predict(x, time, r, draw.condition)

    passes = {
        "plain": lambda: network(draw.x_t, t),
        "dual": lambda: DualPass(fallback=False).keeping(lambda x, time: (network(x, time),), draw.x_t, t, v),
        "torch.func.jvp": lambda: ForwardMode()(network, draw.x_t, t, v),
    }
    found: dict[str, Any] = {}
    checks = []
    for mode in ("fp32", "bf16"):
        with (
            stock_products(),  # a trial on a processor has few tokens, whose attention is written out there
            matmuls(mode),
            torch.autocast(context.device.type, torch.bfloat16, enabled=autocast(mode), cache_enabled=False),
        ):
            found[mode] = {name: used(run, context.device) for name, run in passes.items()}
        plain, dual = (_fused(found[mode][name]) for name in ("plain", "dual"))
        missing = float(size.config.blocks - dual) if plain else float("nan")
        what = f"blocks of the dual pass without the fused kernel that a plain pass has, {mode}"
        checks.append({"what": what, "value": missing, "bound": 0.0, "good": plain > 0 and dual == plain})
    return {"modes": found, "checks": checks}


def _fused(found: dict[str, dict[str, int]]) -> int:
    return sum(n for name, n in found["operations"].items() if name not in ("math", "softmax"))
