"""Compiled networks that prove themselves: results of the first calls of each kind are compared with the plain ones.

A compiled network is called like the plain one, by predictions, targets and dual passes alike; it has the same weights
and the same attributes. Where compilation fails, or returns other numbers, the network goes on uncompiled and says so.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from shortflow.dropout import same_dropout
from shortflow.dual import Dual, dual

__all__ = ["TOLERANCE", "compile_network", "moving_masks", "to_prove", "uncompiled"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference (of norms) from the plain network that passes for rounding."""


def compile_network(network: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the network in place, for any number of rows; copies of it made later are not compiled.

    Args:
        backend: of `torch.compile`.
    """
    network._compiled_call_impl = _Compiled(network, backend)  # what nn.Module.compile sets


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Within the context the network runs as if it had not been compiled, for calls of unusual shapes."""
    before = network._compiled_call_impl
    network._compiled_call_impl = None
    try:
        yield
    finally:
        network._compiled_call_impl = before


def to_prove(call: int) -> bool:
    """Whether a compiled result is compared with the plain one: calls 1, 2, 4, … 64.

    The first of them alone would prove little: networks start as zero, and schedules bring other graphs.
    """
    return call <= 64 and call & (call - 1) == 0


def _halves(args: tuple[Any, ...]) -> tuple[list[Any], list[Any], Any]:
    """(arguments with values in place of duals, their tangents or None, the policy of the duals or None)."""
    policy = next((arg.policy for arg in args if isinstance(arg, Dual)), None)
    values = [arg.value if isinstance(arg, Dual) else arg for arg in args]
    return values, [arg.tangent if isinstance(arg, Dual) else None for arg in args], policy


def _own_code(function: Any) -> Callable[..., Any]:
    """The function with a code object of its own: graphs are counted by these, and too many are given up silently."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


class _Compiled:
    """What stands in for a network's call."""

    def __init__(self, network: nn.Module, backend: str) -> None:
        # The plain call with its hooks; a bound method, so that the network does not contain itself.
        self.plain: Callable[..., Any] = network._call_impl
        self.network = network

        def run(values: list[Any], tangents: list[Any], policy: Any) -> Any:
            pairs = zip(values, tangents, strict=True)
            result = self.plain(*(v if d is None else dual(v, d, policy) for v, d in pairs))
            # A pair leaves the graph as its two halves.
            return (result.value, result.tangent) if isinstance(result, Dual) else result

        self.run = torch.compile(_own_code(run), backend=backend, dynamic=None)
        self.calls: dict[Any, int] = {}  # of each kind
        self.failed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.failed or kwargs:
            return self.plain(*args, **kwargs)
        values, tangents, policy = _halves(args)
        device = values[0].device.type
        kind = (
            policy is not None,
            torch.is_grad_enabled(),
            self.network.training,
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values[0].dtype,
        )
        masks = same_dropout()
        try:
            with moving_masks():
                result = self.run(values, tangents, policy)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return self.plain(*args)
        self.calls[kind] = self.calls.get(kind, 0) + 1
        if to_prove(self.calls[kind]):
            with masks():
                self._prove(args, result, kind)
        if self.failed:
            with masks():
                return self.plain(*args)
        return dual(result[0], result[1], policy) if policy is not None and isinstance(result, tuple) else result

    def _prove(self, args: tuple[Any, ...], result: Any, kind: Any) -> None:
        """Compare the result with that of the plain network."""
        with torch.no_grad():
            expected = self.plain(*args)
        wanted = [expected.value, expected.tangent] if isinstance(expected, Dual) else _tensors(expected)
        for found, true in zip(_tensors(result), wanted, strict=True):
            apart = float((found.detach().double() - true.double()).norm() / true.double().norm().clamp(min=1e-30))
            if not apart <= TOLERANCE.get(kind[-1], 1e-3):
                self._give_up(f"its results differ from the plain network's by {apart:.1e} of their size")
                return

    def _give_up(self, why: str) -> None:
        self.failed = True
        warnings.warn(
            f"the network runs uncompiled, because the compiled one failed ({why}); leave out train.compile or "
            "--compile to save the attempt",
            stacklevel=3,
        )


def moving_masks() -> AbstractContextManager[Any]:
    """Blocks that are checkpointed may count dropout masks on: the compiled backward pass does not count again."""
    config, name = importlib.import_module("torch._dynamo.config"), "skip_fwd_side_effects_in_bwd_under_checkpoint"
    return config.patch({name: True}) if hasattr(config, name) else nullcontext()


def _tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]
