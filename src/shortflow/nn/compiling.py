"""Compiled networks that prove themselves: the first calls of each kind are compared with the plain network's.

A compiled network is called like the plain one, by predictions, targets and dual passes alike; it has the same weights
and the same attributes. Compared are the results and, where there are any, the gradients of the weights and of the
inputs that ask for one. Where compiling fails, would leave parts of the network out, or returns other numbers, the
network goes on uncompiled and says so.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from shortflow.dropout import same_dropout
from shortflow.dual import Dual, dual

__all__ = ["Backend", "compile_network", "disagreement", "gradients", "moving_masks", "to_prove", "uncompiled"]

Backend = str | Callable[..., Any]
"""A backend of `torch.compile`, by its name or as a function."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference (of norms) from the plain network that passes for rounding; three times it of gradients,
whose roundings are more."""


def compile_network(network: nn.Module, *, backend: Backend = "inductor") -> None:
    """Compile the network in place, each call in one graph, for any number of rows; copies of it made later are not.

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


def disagreement(
    found: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    true: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    dtype: torch.dtype,
) -> tuple[str, float] | None:
    """What of the compiled (results, gradients) is farthest from the plain ones, and how far; None if by rounding only.

    Tensor by tensor: differences are relative to the tensor's norm; of a gradient also to a hundredth of the norm of
    all of them where this is larger, because of a tensor that small only rounding is left.
    """
    limit = TOLERANCE.get(dtype, 1e-3)
    whole = float(sum(gradient.double().square().sum() for gradient in true[1].values())) ** 0.5
    for i, words, floor, allowed in ((0, "", 0.0, limit), (1, "gradient of ", whole / 100, 3 * limit)):
        far = {name: _apart(found[i][name], expected, floor) for name, expected in true[i].items()}
        far = {f"{words}{name}": apart for name, apart in far.items() if not apart <= allowed}
        if far:  # where results differ, gradients follow
            return max(far.items(), key=lambda each: each[1])
    return None


def _apart(found: Tensor, true: Tensor, floor: float) -> float:
    return float((found.double() - true.double()).norm()) / max(float(true.double().norm()), floor, 1e-30)


def gradients(results: list[Tensor], cotangents: list[Tensor], asked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of Σ ⟨result, cotangent⟩ by name, zeros where there is none; the tensors' own stay as they are."""
    pairs = [(result, c) for result, c in zip(results, cotangents, strict=True) if result.requires_grad]
    found: Any = [None] * len(asked)
    if pairs and asked:
        roots, directions = zip(*pairs, strict=True)
        found = torch.autograd.grad(roots, list(asked.values()), directions, allow_unused=True)
    zeros = zip(asked.items(), found, strict=True)
    return {name: torch.zeros_like(each) if gradient is None else gradient for (name, each), gradient in zeros}


class _Compiled:
    """What stands in for a network's call."""

    def __init__(self, network: nn.Module, backend: Backend) -> None:
        # The plain call with its hooks; a bound method, so that the network does not contain itself.
        self.plain: Callable[..., Any] = network._call_impl
        self.network = network

        def run(values: list[Any], tangents: list[Any], policy: Any) -> Any:
            pairs = zip(values, tangents, strict=True)
            result = self.plain(*(v if d is None else dual(v, d, policy) for v, d in pairs))
            # A pair leaves the graph as its two halves.
            return (result.value, result.tangent) if isinstance(result, Dual) else result

        self.halves = run
        # In one graph: a break would be passed over in silence, with the parts around it compiled.
        self.run = torch.compile(_own_code(run), backend=backend, dynamic=None, fullgraph=True)
        self.calls: dict[Any, int] = {}  # of each kind
        self.failed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.failed or kwargs:
            return self.plain(*args, **kwargs)
        values, tangents, policy = _halves(args)
        device = values[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values[0].dtype
        inputs = tuple((type(each), isinstance(each, Tensor) and each.requires_grad) for each in (*values, *tangents))
        kind = (policy, torch.is_grad_enabled(), self.network.training, dtype, inputs)
        self.calls[kind] = self.calls.get(kind, 0) + 1
        result = None
        try:
            with moving_masks():
                if to_prove(self.calls[kind]):
                    self._prove(values, tangents, policy, dtype)
                if not self.failed:
                    result = self.run(values, tangents, policy)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        if self.failed:
            return self.plain(*args)
        return dual(result[0], result[1], policy) if policy is not None and isinstance(result, tuple) else result

    def _prove(self, values: list[Any], tangents: list[Any], policy: Any, dtype: torch.dtype) -> None:
        """Compare results and gradients with those of the plain network, on the rows of this call.

        On fewer rows it would be another graph than the one that is used.
        """
        masks, both = same_dropout(), []
        for run in (self.run, self.halves):
            with masks():
                both.append(self._probe(run, values, tangents, policy))
        if worst := disagreement(both[0], both[1], dtype):
            self._give_up(f"its {worst[0]} differs from the plain network's by {worst[1]:.1e} of its size")

    def _probe(
        self, run: Callable[..., Any], values: list[Any], tangents: list[Any], policy: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(results, gradients) by name; the gradients of a sum of the results with random signs and sizes."""
        values, tangents = [_leaf(each) for each in values], [_leaf(each) for each in tangents]
        found = _tensors(run(values, tangents, policy))
        second = "derivative" if policy is not None else "second result"
        names = ("result", second, *(f"result {i}" for i in range(3, len(found) + 1)))[: len(found)]
        results = {name: each.detach() for name, each in zip(names, found, strict=True)}
        if not torch.is_grad_enabled():
            return results, {}
        asked = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        for words, half in (("input", values), ("tangent of input", tangents)):
            asked |= {f"{words} {i}": x for i, x in enumerate(half) if isinstance(x, Tensor) and x.requires_grad}
        generator = torch.Generator(found[0].device).manual_seed(0)
        cotangents = [torch.empty_like(each).normal_(generator=generator) for each in results.values()]
        return results, gradients(found, cotangents, asked)

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


def _leaf(each: Any) -> Any:
    """The tensor without its history, if it has one: gradients of a probe end there."""
    return each.detach().requires_grad_() if isinstance(each, Tensor) and each.requires_grad else each


def _tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]
