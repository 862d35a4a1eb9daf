"""A tensor with its tangent, and the table of rules by which operations carry both.

A `Dual` passes through plain PyTorch code: `torch` hands every operation on it to the table, whose rule computes the
value as ever (so it keeps its graph, its kernels and its precision under autocast) and the tangent beside it. What does
not depend on the inputs is a plain tensor and has no tangent, so nothing is ever multiplied by zero: a linear layer
costs two matrix products, one for each half. `torch.func.jvp` runs a third against the zero tangent of the weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from shortflow.errors import ShortflowError

__all__ = ["Dual", "NoRule", "Policy", "beside", "dual", "known", "rule"]

Thunk = Callable[[], Any]
Rule = Callable[..., tuple[Any, Thunk]]


class NoRule(ShortflowError):
    """An operation has no rule for its tangent. Names the operation and the remedy."""


class Policy(NamedTuple):
    """How tangents are computed.

    graph: with gradient, for losses on the tangent itself.
    dtype: their precision, outside autocast; None: that of the values, under the autocast that is on.
    first: of several results only the first is differentiated, and networks need not carry tangents to the others
        (`beside`).
    """

    graph: bool = False
    dtype: torch.dtype | None = None
    first: bool = False


class Dual(Tensor):
    """A value and its tangent, made by `dual`; to the code that it passes through, a tensor like the value.

    It says of itself that it requires no gradient, and is a dataclass (and a node of trees of tensors), so that whoever
    hooks into the gradients of what a module takes and returns (sharding, checkpointing, hooks) takes hold of the two
    halves, which carry them.

    Attributes:
        value: the plain tensor, with its graph.
        tangent: its derivative along the direction, of the same shape.
        policy: how tangents are computed.
    """

    value: Tensor
    tangent: Tensor
    policy: Policy = Policy()

    def __new__(cls, value: Tensor, tangent: Tensor, policy: Policy = Policy()) -> "Dual":
        pair = value.as_subclass(cls)
        pair.value, pair.tangent, pair.policy = value, tangent, policy
        return pair

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _RULES.get(func)
        if handler is None:
            raise _unruled(func)
        check_whole((*args, *kwargs.values()) if kwargs else args)
        return handler(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Dual(value={self.value!r}, tangent={self.tangent!r})"


def dual(value: Tensor, tangent: Tensor, policy: Policy = Policy()) -> Dual:
    """The pair of a value and its tangent, which is expanded to the value's shape and cast as the policy says."""
    if isinstance(value, Dual) or isinstance(tangent, Dual):
        raise ShortflowError("a dual of a dual is not defined here; use torch.func.jvp for higher derivatives")
    if tangent.shape != value.shape:
        tangent = tangent.expand(value.shape)
    dtype = policy.dtype or value.dtype
    return Dual(value, tangent if tangent.dtype is dtype else tangent.to(dtype), policy)


def check_whole(arguments: Any) -> None:
    """Raise `NoRule` for a pair that comes out of an `autograd.Function`.

    PyTorch asks no rule there. It takes the pair for a tensor and gives it a gradient of its own, of which the value
    knows nothing: gradients would be lost without a word.
    """
    if torch.compiler.is_compiling():
        return
    for argument in arguments:
        if isinstance(argument, Dual):
            with torch._C.DisableTorchFunctionSubclass():
                node = argument.grad_fn
            if isinstance(node, BackwardCFunction):
                name = type(node).__name__.removesuffix("Backward")
                raise NoRule(
                    f"the dual pass cannot follow the autograd.Function {name}, which would lose gradients; "
                    "write it with operations of PyTorch, checkpoint by shortflow.nn.checkpointed or with "
                    "use_reentrant=False, or use torch.func.jvp (ForwardMode)"
                )
        elif isinstance(argument, (list, tuple)):
            check_whole(argument)


def beside(x: Tensor) -> Tensor:
    """x as the results that stand beside the first one see it: its value, where only the first is differentiated."""
    return x.value if isinstance(x, Dual) and x.policy.first else x


def _repaired(leaves: tuple[Any, ...], policy: Any) -> Any:
    """The dual of two tensors; what is mapped to something else stays a plain pair."""
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return leaves
    value, tangent = leaves
    return dual(value, tangent, policy)


# Whoever takes tensors out of arguments and puts them back (sharding, compiling) sees the two halves: PyTorch's trees
# do by the registration, FSDP2 from torch 2.13 on by the fields.
dataclass(init=False, repr=False, eq=False)(Dual)
pytree.register_pytree_node(
    Dual,
    lambda pair: ([pair.value, pair.tangent], pair.policy),
    lambda leaves, policy: _repaired(tuple(leaves), policy),
    serialized_type_name="shortflow.dual.Dual",
)


# ------------------------------------------------------------------------------------------------------------- rules

_RULES: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {}
_OWNERS = (torch, Tensor, torch.nn.functional, torch.special, torch.linalg)


def known(names: str | Iterable[Any]) -> list[Any]:
    """The functions of PyTorch that the names stand for, wherever they live: `add` is torch.add and Tensor.add."""
    found = []
    for name in names.split() if isinstance(names, str) else names:
        owned = [name] if not isinstance(name, str) else [getattr(owner, name, None) for owner in _OWNERS]
        owned = [function for function in owned if callable(function)]  # torch.float is a dtype, Tensor.float a cast
        if not owned:
            raise ShortflowError(f"PyTorch has no function called {name!r}")
        found += owned
    return found


def rule(names: str | Iterable[Any]) -> Callable[[Rule], Rule]:
    """Register a rule: (arguments of the operation) → (value, function that returns the tangent).

    The value is computed as ever; the function is called afterwards, without gradient or outside autocast as the
    policy of the arguments wants. Both may be tuples. Names are looked up in torch, Tensor, torch.nn.functional,
    torch.special and torch.linalg; functions may be given themselves.
    """

    def register(compute: Rule) -> Rule:
        def handler(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value, thunk = compute(*args, **kwargs)
            return paired(value, thunk, args, kwargs)

        for func in known(names):
            _RULES[func] = handler
        return compute

    return register


def register_all(names: str | Iterable[Any], handler: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Register one handler (function, arguments, keywords) → result for many operations."""
    for func in known(names):
        _RULES[func] = handler


def paired(value: Any, thunk: Thunk, args: Any, kwargs: Any) -> Any:
    """The dual of a value and what the thunk returns, by the policy of the first dual among the arguments."""
    policy = first_dual((args, kwargs)).policy
    with torch.set_grad_enabled(policy.graph and torch.is_grad_enabled()):
        if policy.dtype is not None and torch.is_autocast_enabled(device := _device(value)):
            with torch.autocast(device, enabled=False):
                tangent = thunk()
        else:
            tangent = thunk()
        if isinstance(value, Tensor):
            return dual(value, tangent, policy)
        pairs = [dual(v, d, policy) for v, d in zip(value, tangent, strict=True)]
    return type(value)(pairs) if type(value) in (list, tuple) else tuple(pairs)


def _device(value: Any) -> str:
    return (value if isinstance(value, Tensor) else value[0]).device.type


def first_dual(arguments: Any) -> Dual:
    """The first dual in nested arguments."""
    found = _search(arguments)
    assert found is not None  # torch calls no rule without one
    return found


def _search(arguments: Any) -> Dual | None:
    if isinstance(arguments, Dual):
        return arguments
    if isinstance(arguments, dict):
        arguments = tuple(arguments.values())
    if isinstance(arguments, (tuple, list)):
        for argument in arguments:
            found = _search(argument)
            if found is not None:
                return found
    return None


def values(arguments: Any) -> Any:
    """The arguments with every dual replaced by its value."""
    if isinstance(arguments, Dual):
        return arguments.value
    if isinstance(arguments, (tuple, list)) and type(arguments) in (tuple, list):
        return type(arguments)([values(argument) for argument in arguments])
    if isinstance(arguments, dict):
        return {name: values(argument) for name, argument in arguments.items()}
    return arguments


def _unruled(func: Any) -> NoRule:
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or str(func)
    if name.endswith("__get__"):  # an attribute of tensors
        name = f"Tensor.{getattr(getattr(func, '__self__', None), '__name__', '?')}"
    if name.endswith("_") and not name.endswith("__"):
        return NoRule(
            f"{name} changes a tensor in place, which the dual pass cannot follow; use {name.rstrip('_')} and assign "
            "the result, or use torch.func.jvp (ForwardMode)"
        )
    return NoRule(
        f"the dual pass has no rule for the derivative of {name}; add one with shortflow.dual.rule, or use "
        "torch.func.jvp (ForwardMode), which knows all of PyTorch's and costs more"
    )
