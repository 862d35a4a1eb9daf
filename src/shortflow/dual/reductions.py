"""Rules of reductions over axes, and of the softmax."""

from typing import Any

import torch
from torch import Tensor

from shortflow.dual.arithmetic import aten, maximum, minimum, rated
from shortflow.dual.pairs import Dual, NoRule, rule


@rule("var")
def _var(x: Any, *args: Any, **kwargs: Any) -> Any:
    dim, ddof, keepdim = _spread_of(*args, **kwargs)
    y = torch.var(x.value, dim, correction=ddof, keepdim=keepdim)
    return y, lambda: _variance_rate(x, dim, ddof, keepdim)


@rule("std")
def _std(x: Any, *args: Any, **kwargs: Any) -> Any:
    dim, ddof, keepdim = _spread_of(*args, **kwargs)
    y = torch.std(x.value, dim, correction=ddof, keepdim=keepdim)
    return y, lambda: _variance_rate(x, dim, ddof, keepdim) / (2 * y.to(x.tangent.dtype))


def _spread_of(
    dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: int | None = None
) -> tuple[Any, int, bool]:
    """(dim, correction, keepdim) of var and std, whose first argument may be `unbiased` as well."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    return dim, correction, keepdim


@rule("nansum")
def _nansum(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    y = torch.nansum(x.value, dim, keepdim, dtype=dtype)
    return y, lambda: torch.where(x.value.isnan(), 0.0, x.tangent).sum(dim, keepdim=keepdim)


def _variance_rate(x: Dual, dim: Any, ddof: int, keepdim: bool) -> Tensor:
    centred = rated(x) - (rated(x).mean() if dim is None else rated(x).mean(dim, keepdim=True))
    moved = 2 * centred * x.tangent
    summed = moved.sum() if dim is None else moved.sum(dim, keepdim=keepdim)
    return summed / max(x.value.numel() // max(summed.numel(), 1) - ddof, 0)


@rule([torch.norm, Tensor.norm])
def _norm(x: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: None = None, dtype: Any = None) -> Any:
    return _euclidean(x, dim, keepdim, p in (2, "fro", None) and dtype is None, p)


@rule([torch.linalg.vector_norm])
def _vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _euclidean(x, dim, keepdim, ord == 2 and dtype is None, ord)


@rule([torch.linalg.norm])
def _linalg_norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    # 2 is the largest singular value of a matrix here, and of two axes.
    matrix = x.value.ndim == 2 if dim is None else isinstance(dim, (tuple, list)) and len(dim) == 2
    return _euclidean(x, dim, keepdim, ord in (("fro", None) if matrix else (2, None)) and dtype is None, ord)


def _euclidean(x: Dual, dim: Any, keepdim: bool, known: bool, order: Any) -> Any:
    if not known:
        raise NoRule(f"the dual pass has a rule for the Euclidean norm only, got p={order!r}; write the sum out")
    y = torch.linalg.vector_norm(x.value, 2, dim, keepdim)

    def tangent() -> Tensor:
        inner = rated(x) * x.tangent
        inner = inner.sum() if dim is None else inner.sum(dim, keepdim=keepdim)
        size = y.to(inner.dtype)
        return torch.where(size > 0, inner / torch.where(size > 0, size, 1.0), 0.0)

    return y, tangent


@rule("prod")
def _prod(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    # Products of all the others, by running products from both sides: right where entries are zero, too.
    y = torch.prod(x.value) if dim is None else torch.prod(x.value, dim, keepdim)

    def tangent() -> Tensor:
        wide, rate, axis = rated(x), x.tangent, dim
        if axis is None:
            wide, rate, axis = wide.flatten(), rate.flatten(), 0
        one = torch.ones_like(wide.narrow(axis, 0, 1))
        before = torch.cat([one, wide.cumprod(axis).narrow(axis, 0, wide.shape[axis] - 1)], axis)
        after = torch.cat([one, wide.flip(axis).cumprod(axis).narrow(axis, 0, wide.shape[axis] - 1)], axis).flip(axis)
        return (rate * before * after).sum(axis, keepdim=keepdim and dim is not None)

    return y, tangent


@rule("amax amin")
def _amax(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    raise NoRule("the dual pass has no rule for amax and amin, which are not differentiable at ties; use max(dim)")


@rule("max")
def _max(x: Any, *args: Any, **kwargs: Any) -> Any:
    return _extreme(torch.max, x, *args, **kwargs)


@rule("min")
def _min(x: Any, *args: Any, **kwargs: Any) -> Any:
    return _extreme(torch.min, x, *args, **kwargs)


def _extreme(function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    if (args and isinstance(args[0], Tensor)) or not isinstance(x, Dual):
        return (maximum if function is torch.max else minimum)(x, args[0])
    raise NoRule(f"the dual pass has no rule for {function.__name__} over an axis; use ForwardMode()")


@rule("logsumexp")
def _logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    y = torch.logsumexp(x.value, dim, keepdim=True)

    def tangent() -> Tensor:
        weights = torch.exp(rated(x) - y.to(x.tangent.dtype))
        return (weights * x.tangent).sum(dim, keepdim=keepdim)

    return (y if keepdim else torch.logsumexp(x.value, dim)), tangent


@rule("softmax")
def _softmax(x: Any, dim: int, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    y = torch.softmax(x.value, dim, dtype=dtype)
    return y, lambda: softmax_rate(x.tangent, y.to(x.tangent.dtype), dim)


def softmax_rate(rate: Tensor, probabilities: Tensor, dim: int) -> Tensor:
    """p (dx − Σ p dx), the derivative of a softmax with result p."""
    return aten._softmax_backward_data(rate, probabilities, dim, rate.dtype)


@rule("log_softmax")
def _log_softmax(x: Any, dim: int, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    y = torch.log_softmax(x.value, dim, dtype=dtype)
    return y, lambda: x.tangent - (y.to(x.tangent.dtype).exp() * x.tangent).sum(dim, keepdim=True)
