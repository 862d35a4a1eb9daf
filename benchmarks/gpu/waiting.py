"""How often a step waits for the device: every wait leaves it idle until the next kernels are queued."""

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import shortflow

__all__ = ["Waits", "waits"]

HOME = Path(shortflow.__file__).parent
ASKING = {"aten::nonzero", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class Waits(TorchDispatchMode):
    """Counts, by the line of the library that asks, operations whose result the processor needs to go on.

    These are sizes and numbers that depend on values (nonzero, item, boolean masks) and copies between devices. It
    works on any device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ASKING or _masked(name, args) or _moved(name, args, result):
            self.places[f"{_place()} {name.removeprefix('aten::')}"] += 1
        return result


def _masked(name: str, args: Any) -> bool:
    """Indexing by a mask, which looks for its true entries first."""
    if name not in ("aten::index", "aten::index_put_", "aten::index_put"):
        return False
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1])


def _moved(name: str, args: Any, result: Any) -> bool:
    if name == "aten::_to_copy":
        return args[0].device != result.device
    return name == "aten::copy_" and args[0].device != args[1].device


def _place() -> str:
    """File and line of the innermost frame inside the library; "elsewhere" if there is none."""
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(HOME):
            return f"{file.relative_to(HOME)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def waits(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """{"asked": count, "places": {line operation: count}, "warned": how often torch says that the GPU was waited for}.

    "warned" is None where there is no GPU.
    """
    run()  # what is set up on first use does not count
    with Waits() as mode:
        run()
    found: dict[str, Any] = {"asked": mode.places.total(), "places": dict(mode.places.most_common()), "warned": None}
    if device.type == "cuda":
        found["warned"] = _warned(run, device)
    return found


def _warned(run: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in said)
