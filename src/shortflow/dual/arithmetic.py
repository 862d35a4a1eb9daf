"""Rules of arithmetic: functions of two tensors entry by entry, and matrix products."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shortflow.dual.pairs import Dual, NoRule, rule, values

Operand = Any  # a dual, a plain tensor or a number

aten = torch.ops.aten


def rated(pair: Dual) -> Tensor:
    """The value in the precision of the tangent, as a factor of it."""
    return pair.value.to(pair.tangent.dtype)


def cast(operand: Operand, like: Tensor) -> Operand:
    """A plain factor of a tangent: the value of a dual, in the tangent's precision where it is a floating tensor."""
    operand = values(operand)
    if isinstance(operand, Tensor) and operand.is_floating_point() and operand.dtype != like.dtype:
        # A scalar tensor takes no part in type promotion.
        return operand if operand.ndim == 0 else operand.to(like.dtype)
    return operand


def total(parts: list[Tensor]) -> Tensor:
    """The sum of the contributions to a tangent."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def plus(x: Tensor | None, a: Tensor, b: Operand) -> Tensor:
    """x + a b, in one go where it can be."""
    if x is None:
        return a * b
    return torch.addcmul(x, a, b) if isinstance(b, Tensor) and x.dtype == a.dtype == b.dtype else x + a * b


# ------------------------------------------------------------------------------------------------ two tensors, by entry


@rule("add __add__ __radd__")
def _add(a: Operand, b: Operand, *, alpha: float | int = 1) -> Any:
    def tangent() -> Tensor:
        parts = [a.tangent] if isinstance(a, Dual) else []
        return total(parts + ([b.tangent if alpha == 1 else alpha * b.tangent] if isinstance(b, Dual) else []))

    return torch.add(values(a), values(b), alpha=alpha), tangent


@rule("sub subtract __sub__")
def _sub(a: Operand, b: Operand, *, alpha: float | int = 1) -> Any:
    def tangent() -> Tensor:
        if not isinstance(b, Dual):
            return a.tangent
        step = b.tangent if alpha == 1 else alpha * b.tangent
        return a.tangent - step if isinstance(a, Dual) else -step

    return (values(a) - values(b) if alpha == 1 else torch.sub(values(a), values(b), alpha=alpha)), tangent


@rule("rsub __rsub__")
def _rsub(a: Operand, b: Operand, *, alpha: float | int = 1) -> Any:
    return _sub(b, a) if alpha == 1 else _sub(b, a * alpha)


@rule("mul multiply __mul__ __rmul__")
def _mul(a: Operand, b: Operand) -> Any:
    def tangent() -> Tensor:
        moved = a.tangent * cast(b, a.tangent) if isinstance(a, Dual) else None
        return moved if moved is not None and not isinstance(b, Dual) else plus(moved, b.tangent, cast(a, b.tangent))

    return values(a) * values(b), tangent


@rule("div divide true_divide __truediv__")
def _div(a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise NoRule("the dual pass has no rule for div with a rounding_mode; use floor_divide")
    y = values(a) / values(b)

    def tangent() -> Tensor:
        if not isinstance(b, Dual):
            return a.tangent / cast(b, a.tangent)
        down = -b.tangent * y.to(b.tangent.dtype)
        return (down + a.tangent if isinstance(a, Dual) else down) / rated(b)

    return y, tangent


@rule("__rtruediv__ __rdiv__")
def _rdiv(a: Operand, b: Operand) -> Any:
    return _div(b, a)


@rule("float_power")
def _float_power(a: Operand, b: Operand) -> Any:
    return _pow(a, b, torch.float_power)


@rule("pow __pow__")
def _pow(a: Operand, b: Operand, function: Callable[..., Tensor] = operator.pow) -> Any:
    y = function(values(a), values(b))

    def tangent() -> Tensor:
        parts = []
        if isinstance(a, Dual):
            exponent = cast(b, a.tangent)
            if not isinstance(exponent, Tensor):
                slope = exponent * rated(a) ** (exponent - 1) if exponent != 0 else torch.zeros_like(a.tangent)
            else:
                slope = torch.where(exponent == 0, 0.0, exponent * rated(a) ** (exponent - 1))
            parts.append(a.tangent * slope)
        if isinstance(b, Dual):
            base = cast(a, b.tangent)
            base = base if isinstance(base, Tensor) else torch.tensor(base, dtype=b.tangent.dtype)
            parts.append(b.tangent * torch.where(y == 0, 0.0, y.to(b.tangent.dtype) * base.log()))
        return total(parts)

    return y, tangent


@rule("__rpow__")
def _rpow(a: Operand, b: Operand) -> Any:
    return _pow(b, a)


@rule("atan2 arctan2")
def _atan2(a: Operand, b: Operand) -> Any:
    def tangent() -> Tensor:
        like = a.tangent if isinstance(a, Dual) else b.tangent
        p, q = cast(a, like), cast(b, like)
        parts = [a.tangent * q] if isinstance(a, Dual) else []
        parts += [-b.tangent * p] if isinstance(b, Dual) else []
        return total(parts) / (p * p + q * q)

    return torch.atan2(values(a), values(b)), tangent


@rule([torch.where])
def _where(condition: Any, a: Operand, b: Operand) -> Any:
    chosen = values(condition)

    def tangent() -> Tensor:
        return torch.where(chosen, a.tangent if isinstance(a, Dual) else 0.0, b.tangent if isinstance(b, Dual) else 0.0)

    if not (isinstance(a, Dual) or isinstance(b, Dual)):  # cannot happen: then the condition carries no tangent
        raise NoRule("the dual pass has no rule for where without a branch that depends on the input")
    return torch.where(chosen, values(a), values(b)), tangent


@rule([Tensor.where])
def _kept(a: Operand, condition: Any, b: Operand) -> Any:
    return _where(condition, a, b)


@rule("maximum")
def maximum(a: Operand, b: Operand) -> Any:
    return torch.maximum(values(a), values(b)), lambda: _chosen(a, b, values(a) > values(b), values(a) == values(b))


@rule("minimum")
def minimum(a: Operand, b: Operand) -> Any:
    return torch.minimum(values(a), values(b)), lambda: _chosen(a, b, values(a) < values(b), values(a) == values(b))


def _chosen(a: Operand, b: Operand, first: Tensor, tie: Tensor) -> Tensor:
    """The tangent of the chosen one, the mean of both where they are equal (as PyTorch has it)."""
    kind = (a if isinstance(a, Dual) else b).tangent.dtype
    share = first.to(kind) + 0.5 * tie.to(kind)
    parts = [a.tangent * share] if isinstance(a, Dual) else []
    return total(parts + ([b.tangent * (1 - share)] if isinstance(b, Dual) else []))


@rule("masked_fill")
def _masked_fill(x: Any, mask: Tensor, value: Any) -> Any:
    if isinstance(value, Dual):
        raise NoRule("the dual pass has no rule for masked_fill with a value that depends on the input; use where")
    return x.value.masked_fill(mask, value), lambda: x.tangent.masked_fill(mask, 0.0)


@rule("lerp")
def _lerp(a: Operand, b: Operand, weight: Operand) -> Any:
    def tangent() -> Tensor:
        like = next(x for x in (a, b, weight) if isinstance(x, Dual)).tangent
        w = cast(weight, like)
        parts = [a.tangent * (1 - w)] if isinstance(a, Dual) else []
        parts += [b.tangent * w] if isinstance(b, Dual) else []
        parts += [weight.tangent * (cast(b, like) - cast(a, like))] if isinstance(weight, Dual) else []
        return total(parts)

    return torch.lerp(values(a), values(b), values(weight)), tangent


@rule("addcmul")
def _addcmul(x: Operand, a: Operand, b: Operand, *, value: float | int = 1) -> Any:
    def tangent() -> Tensor:
        moved = x.tangent if isinstance(x, Dual) else None
        if isinstance(a, Dual):
            moved = plus(moved, a.tangent if value == 1 else value * a.tangent, cast(b, a.tangent))
        if isinstance(b, Dual):
            moved = plus(moved, b.tangent if value == 1 else value * b.tangent, cast(a, b.tangent))
        assert moved is not None  # torch calls no rule without a dual
        return moved

    return torch.addcmul(values(x), values(a), values(b), value=value), tangent


# ------------------------------------------------------------------------------------------------------ matrix products


@rule("matmul __matmul__ mm bmm mv dot")
def _matmul(a: Operand, b: Operand) -> Any:
    return torch.matmul(values(a), values(b)), lambda: product_rate(a, b)


# x.__rmatmul__(y) is y @ x; the functions above get their arguments in the order of the product.
@rule([Tensor.__rmatmul__])
def _rmatmul(a: Operand, b: Operand) -> Any:
    return torch.matmul(values(b), values(a)), lambda: product_rate(b, a)


def product_rate(a: Operand, b: Operand) -> Tensor:
    """da b + a db."""
    moved = torch.matmul(a.tangent, cast(b, a.tangent)) if isinstance(a, Dual) else None
    if not isinstance(b, Dual):
        assert moved is not None  # one of them has a tangent
        return moved
    return plus_product(moved, cast(a, b.tangent), b.tangent)


def plus_product(x: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """x + a b, for an x that nobody else holds; it may be overwritten, so that no sum of two large products is made."""
    if x is None:
        return torch.matmul(a, b)
    alike = x.ndim > 2 and a.shape[:-2] == b.shape[:-2] == x.shape[:-2] and a.dtype == b.dtype == x.dtype
    if not alike or torch.is_autocast_enabled(x.device.type):
        return x + torch.matmul(a, b)
    flat, left, right = x.flatten(0, -3), a.flatten(0, -3), b.flatten(0, -3)
    owned = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else flat
    return torch.baddbmm(flat, left, right, out=owned).view(x.shape)


@rule("addmm baddbmm")
def _addmm(x: Operand, a: Operand, b: Operand, *, beta: float | int = 1, alpha: float | int = 1) -> Any:
    def tangent() -> Tensor:
        parts = [beta * x.tangent] if isinstance(x, Dual) and beta != 0 else []
        moving = isinstance(a, Dual) or isinstance(b, Dual)
        parts += [alpha * product_rate(a, b)] if moving else []
        return total(parts or [torch.zeros_like(product)])

    product = alpha * torch.matmul(values(a), values(b))
    return (product if beta == 0 else beta * values(x) + product), tangent  # 0 · NaN is 0 there


@rule("einsum")
def _einsum(equation: str, *operands: Any) -> Any:
    terms = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else list(operands)

    def tangent() -> Tensor:
        parts = []
        for i, term in enumerate(terms):
            if isinstance(term, Dual):
                others = [cast(other, term.tangent) for other in terms]
                parts.append(torch.einsum(equation, *others[:i], term.tangent, *others[i + 1 :]))
        return total(parts)

    return torch.einsum(equation, *values(terms)), tangent
