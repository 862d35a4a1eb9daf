"""Activation checkpointing: parts of a network that the backward pass runs again, in place of what they would keep.

Memory for the activations of a block then exists for one block at a time, at the price of one more forward pass. The
numbers are the same to the bit: dropout sees the same masks, and a pair of `shortflow.dual` is run again without its
tangent, unless that has a gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from shortflow.dropout import same_dropout
from shortflow.dual import Dual
from shortflow.errors import ShortflowError
from shortflow.transforms import transformed

__all__ = ["checkpoint_blocks", "checkpointed"]


def checkpoint_blocks(network: nn.Module) -> None:
    """Have the network checkpoint its blocks from now on.

    Raises:
        ShortflowError: if it is not one that can, which is one with a `checkpoint` that is True or False.
    """
    if not isinstance(getattr(network, "checkpoint", None), bool):
        raise ShortflowError(
            f"{type(network).__name__} cannot checkpoint its blocks: give it an attribute checkpoint = False and, "
            "where it is True, call blocks by shortflow.nn.checkpointed(block, ...), or set train.checkpoint to false"
        )
    network.checkpoint = True  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def checkpointed(block: Callable[..., Any], *args: Any, reentrant: bool = False) -> Any:
    """block(*args), run again in the backward pass; without gradients, and in function transforms, a plain call.

    Args:
        args: tensors, pairs and other values.
        reentrant: the older of the two ways that PyTorch has (`torch.utils.checkpoint`); by itself it loses pairs.
    """
    if not torch.is_grad_enabled() or transformed():
        return block(*args)
    if torch.compiler.is_compiling():
        return _compiling(block, args)
    first, masks, specs = [args], same_dropout(), []

    def run(*leaves: Any) -> tuple[Any, ...]:
        if first:  # for this one time with all tangents, which are not kept
            results, spec = pytree.tree_flatten(block(*first.pop()))
            specs.append(spec)
            return tuple(results)
        with masks():
            return tuple(pytree.tree_leaves(block(*pytree.tree_unflatten(list(leaves), kept))))

    leaves, kept = pytree.tree_flatten(tuple(_with_gradient(arg) for arg in args))
    del args
    results = checkpoint(run, *leaves, use_reentrant=reentrant)
    return pytree.tree_map_only(Dual, _detached, pytree.tree_unflatten(list(results), specs[0]), is_leaf=_is_pair)


def _compiling(block: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """As `checkpointed`, while a compiler looks on, which runs again what it has recorded, masks included.

    Pairs go in and come out as their halves; the block returns one tensor or pair.
    """
    policy = next((arg.policy for arg in args if isinstance(arg, Dual)), None)
    leaves, kept = pytree.tree_flatten(args)

    def run(*leaves: Any) -> Any:
        result = block(*pytree.tree_unflatten(list(leaves), kept))
        return (result.value, result.tangent) if isinstance(result, Dual) else result

    result = checkpoint(run, *leaves, use_reentrant=False)
    if policy is None or isinstance(result, torch.Tensor):
        return result
    return Dual(result[0], result[1], policy)


def _is_pair(value: Any) -> bool:
    return isinstance(value, Dual)


def _with_gradient(value: Any) -> Any:
    """What has a gradient of a pair: both halves, or the value alone."""
    return value.value if isinstance(value, Dual) and not value.policy.graph else value


def _detached(pair: Dual) -> Dual:
    """The pair, whose tangent has a gradient only where it should."""
    return pair if pair.policy.graph else Dual(pair.value, pair.tangent.detach(), pair.policy)
