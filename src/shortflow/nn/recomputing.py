"""Large results that are cheap to compute are not kept for the backward pass, which computes them again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from shortflow.dual import Dual
from shortflow.transforms import transformed

__all__ = ["recomputed"]

LARGE = 2**19  # numbers, 2 MiB: less stays in the caches, where memory does not matter


def recomputed(function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """(function(*args), a context in which who keeps the result for the backward pass keeps the arguments instead).

    The gradient is the same to the bit, for pairs of `shortflow.dual` as well. The arguments should be kept anyway, as
    the function itself does for its own gradient; then memory for the result is saved, at the price of computing it
    twice. A plain call where the result is small, nothing is differentiated, a compiler decides, or others look after
    what is kept (checkpointing, offloading).
    """
    result = function(*args)
    if torch.compiler.is_compiling() or transformed():
        return result, nullcontext()
    kept, *sources = (each.value if isinstance(each, Dual) else each for each in (result, *args))
    if type(kept) is not Tensor or not kept.requires_grad or kept.numel() <= LARGE or _others_keep():
        return result, nullcontext()
    return result, _kept_as(lambda: function(*sources), kept)


@contextmanager
def _kept_as(again: Callable[[], Tensor], result: Tensor) -> Iterator[None]:
    place, size, dtype, device = result.data_ptr(), result.numel(), result.dtype, result.device.type
    cast, cast_dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def pack(saved: Tensor) -> Any:
        same = saved.data_ptr() == place and saved.numel() == size and saved.dtype == dtype
        # Without its graph, which is put back: what keeps its own result would keep itself alive.
        return saved.shape if same and saved.is_contiguous() else saved.detach()

    def unpack(saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad(), torch.autocast(device, cast_dtype, enabled=cast, cache_enabled=False):
            return again().reshape(saved)

    _OURS.add(pack)
    with saved_tensors_hooks(pack, unpack):
        yield


_OURS: WeakSet[Callable[[Tensor], Any]] = WeakSet()


def _others_keep() -> bool:
    """Whether somebody else's hooks on what is kept are there; PyTorch has no public question for this."""
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    if top is None:
        return True
    hooks = top(True)
    return hooks is not None and hooks[0] not in _OURS
