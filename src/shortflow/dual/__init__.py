"""Forward-mode derivatives at the price of two passes: a network of plain PyTorch run on (value, tangent) pairs.

    y, dy = push_forward(f, (x, t), (v, 1))        # y = f(x, t),  dy = ∂f/∂x · v + ∂f/∂t

The value keeps its graph, its fused kernels and its precision; the tangent runs beside it, without gradient
unless that is asked for. `torch.func.jvp` computes the same at the cost of three passes or more, because it runs the
products with the tangents of the weights, which are zero.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from shortflow.dual import entrywise, layers, plain, reductions  # noqa: F401  (they fill the table of rules)
from shortflow.dual.pairs import Dual, NoRule, Policy, beside, check_whole, dual, rule
from shortflow.errors import ShortflowError

__all__ = ["Dual", "NoRule", "Policy", "beside", "dual", "push_forward", "push_forward_first", "rule"]


def push_forward(
    f: Callable[..., Any],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    *,
    graph: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Any, Any]:
    """(f(*primals), its derivative along the tangents); f returns a tensor or nested tuples, lists, dicts of them.

    Args:
        graph: compute the tangent with gradient; without it, only the value has one (where gradients are on).
        dtype: precision of the tangents, which then run outside autocast; None: that of the values.

    Raises:
        NoRule: if f uses an operation without a rule, or an `autograd.Function` where gradients are on; it is named.
        ShortflowError: if a tangent has not the shape of its primal.
    """
    result = f(*_pairs(primals, tangents, Policy(graph=graph, dtype=dtype)))
    leaves, spec = pytree.tree_flatten(result, is_leaf=lambda leaf: isinstance(leaf, Tensor))
    check_whole(leaves)
    values = [leaf.value if isinstance(leaf, Dual) else leaf for leaf in leaves]
    rates = [
        leaf.tangent
        if isinstance(leaf, Dual)
        else torch.zeros_like(leaf, dtype=dtype, requires_grad=False)
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in leaves
    ]
    return pytree.tree_unflatten(values, spec), pytree.tree_unflatten(rates, spec)


def push_forward_first(
    f: Callable[..., tuple[Tensor, ...]],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    *,
    dtype: torch.dtype | None = None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """(all results of f, the derivative of the first of them); as `push_forward` for functions of several results.

    What the others alone need runs without tangents, where f says so with `beside`.
    """
    first, *others = f(*_pairs(primals, tangents, Policy(dtype=dtype, first=True)))
    check_whole((first, *others))
    values = tuple(other.value if isinstance(other, Dual) else other for other in others)
    if not isinstance(first, Dual):  # it does not depend on the primals
        return (first, *values), torch.zeros_like(first, dtype=dtype, requires_grad=False)
    return (first.value, *values), first.tangent


def _pairs(primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], policy: Policy) -> list[Dual]:
    for i, (primal, tangent) in enumerate(zip(primals, tangents, strict=True)):
        if primal.shape != tangent.shape:
            raise ShortflowError(
                f"tangent {i} has shape {tuple(tangent.shape)}, its primal {tuple(primal.shape)}: they must agree"
            )
    return [dual(primal, tangent, policy) for primal, tangent in zip(primals, tangents, strict=True)]
