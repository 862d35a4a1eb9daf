"""Rules of arithmetic: functions of one tensor entry by entry or of two, matrix products, reductions."""

import math
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


# ------------------------------------------------------------------------------------------------- one tensor, by entry


def _entrywise(names: str, slope: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A rule y = f(x), dy = slope(x, y) dx for the functions of that name, which take nothing else."""
    function = next(
        f for owner in (torch, torch.nn.functional, torch.special) if (f := getattr(owner, names.split()[0], None))
    )

    @rule(names)
    def _(x: Any, *args: Any, **kwargs: Any) -> Any:
        y = function(x.value, *args, **kwargs)
        return y, lambda: x.tangent * slope(rated(x), y.to(x.tangent.dtype))


_entrywise("exp", lambda x, y: y)
_entrywise("exp2", lambda x, y: y * math.log(2))
_entrywise("expm1", lambda x, y: y + 1)
_entrywise("log", lambda x, y: 1 / x)
_entrywise("log2", lambda x, y: 1 / (x * math.log(2)))
_entrywise("log10", lambda x, y: 1 / (x * math.log(10)))
_entrywise("log1p", lambda x, y: 1 / (1 + x))
_entrywise("sqrt", lambda x, y: 0.5 / y)
_entrywise("rsqrt", lambda x, y: -0.5 * y**3)
_entrywise("reciprocal", lambda x, y: -y * y)
_entrywise("square", lambda x, y: 2 * x)
_entrywise("abs absolute __abs__", lambda x, y: x.sign())
_entrywise("sin", lambda x, y: x.cos())
_entrywise("cos", lambda x, y: -x.sin())
_entrywise("tan", lambda x, y: 1 + y * y)
_entrywise("asin arcsin", lambda x, y: torch.rsqrt(1 - x * x))
_entrywise("acos arccos", lambda x, y: -torch.rsqrt(1 - x * x))
_entrywise("atan arctan", lambda x, y: 1 / (1 + x * x))
_entrywise("sinh", lambda x, y: x.cosh())
_entrywise("cosh", lambda x, y: x.sinh())
_entrywise("tanh", lambda x, y: 1 - y * y)
_entrywise("sigmoid expit", lambda x, y: y * (1 - y))
_entrywise("logsigmoid", lambda x, y: torch.sigmoid(-x))
_entrywise("erf", lambda x, y: torch.exp(-x * x) * (2 / math.sqrt(math.pi)))
_entrywise("erfc", lambda x, y: torch.exp(-x * x) * (-2 / math.sqrt(math.pi)))
_entrywise("logit", lambda x, y: 1 / (x * (1 - x)))
_entrywise("sinc", lambda x, y: torch.where(x == 0, 0.0, (torch.cos(math.pi * x) - y) / torch.where(x == 0, 1.0, x)))
_entrywise("mish", lambda x, y: _mish_slope(x))
_entrywise("relu6", lambda x, y: ((x > 0) & (x < 6)).to(x.dtype))
_entrywise("hardtanh", lambda x, y: (y == x).to(x.dtype))


def _mish_slope(x: Tensor) -> Tensor:
    s = torch.tanh(torch.nn.functional.softplus(x))
    return s + x * torch.sigmoid(x) * (1 - s * s)


@rule("relu")
def _relu(x: Any, inplace: bool = False) -> Any:
    return torch.relu(x.value), lambda: x.tangent * (x.value > 0)


@rule("silu")
def _silu(x: Any, inplace: bool = False) -> Any:
    return torch.nn.functional.silu(x.value), lambda: _silu_rate(x.tangent, rated(x))


def _silu_rate(rate: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.silu_backward(rate, x)
    s = torch.sigmoid(x)  # the kernel has no derivative of its own
    return rate * (s * (1 + x * (1 - s)))


@rule("gelu")
def _gelu(x: Any, approximate: str = "none") -> Any:
    y = torch.nn.functional.gelu(x.value, approximate=approximate)
    return y, lambda: aten.gelu_backward(x.tangent, rated(x), approximate=approximate)


@rule("softplus")
def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    y = torch.nn.functional.softplus(x.value, beta, threshold)
    return y, lambda: x.tangent * torch.where(x.value * beta > threshold, 1.0, torch.sigmoid(rated(x) * beta))


@rule("leaky_relu")
def _leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    y = torch.nn.functional.leaky_relu(x.value, negative_slope)
    return y, lambda: torch.where(x.value > 0, x.tangent, negative_slope * x.tangent)


@rule("elu")
def _elu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    y = torch.nn.functional.elu(x.value, alpha)
    return y, lambda: x.tangent * torch.where(x.value > 0, 1.0, alpha * torch.exp(rated(x).clamp(max=0)))


@rule("clamp clip")
def _clamp(x: Any, min: Operand = None, max: Operand = None) -> Any:
    if isinstance(min, Dual) or isinstance(max, Dual) or not isinstance(x, Dual):
        raise NoRule("the dual pass has no rule for clamp with bounds that depend on the input; use minimum, maximum")
    y = torch.clamp(x.value, min, max)

    def tangent() -> Tensor:
        inside = torch.ones_like(x.value, dtype=torch.bool)
        inside = inside if min is None else inside & (x.value >= min)
        inside = inside if max is None else inside & (x.value <= max)
        return x.tangent * inside

    return y, tangent


@rule("clamp_min")
def _clamp_min(x: Any, min: Any) -> Any:
    return torch.clamp_min(x.value, min), lambda: x.tangent * (x.value >= min)


@rule("clamp_max")
def _clamp_max(x: Any, max: Any) -> Any:
    return torch.clamp_max(x.value, max), lambda: x.tangent * (x.value <= max)


@rule("nan_to_num")
def _nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    y = torch.nan_to_num(x.value, nan, posinf, neginf)
    return y, lambda: torch.where(torch.isfinite(x.value), x.tangent, 0.0)


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
        parts = [a.tangent * cast(b, a.tangent)] if isinstance(a, Dual) else []
        return total(parts + ([b.tangent * cast(a, b.tangent)] if isinstance(b, Dual) else []))

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


@rule("pow __pow__ float_power")
def _pow(a: Operand, b: Operand) -> Any:
    y = values(a) ** values(b)

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
def _maximum(a: Operand, b: Operand) -> Any:
    return torch.maximum(values(a), values(b)), lambda: _chosen(a, b, values(a) > values(b), values(a) == values(b))


@rule("minimum")
def _minimum(a: Operand, b: Operand) -> Any:
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
        parts = [x.tangent] if isinstance(x, Dual) else []
        parts += [value * a.tangent * cast(b, a.tangent)] if isinstance(a, Dual) else []
        return total(parts + ([value * b.tangent * cast(a, b.tangent)] if isinstance(b, Dual) else []))

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
    parts = [torch.matmul(a.tangent, cast(b, a.tangent))] if isinstance(a, Dual) else []
    return total(parts + ([torch.matmul(cast(a, b.tangent), b.tangent)] if isinstance(b, Dual) else []))


@rule("addmm baddbmm")
def _addmm(x: Operand, a: Operand, b: Operand, *, beta: float | int = 1, alpha: float | int = 1) -> Any:
    def tangent() -> Tensor:
        parts = [beta * x.tangent] if isinstance(x, Dual) else []
        moving = isinstance(a, Dual) or isinstance(b, Dual)
        return total(parts + ([alpha * product_rate(a, b)] if moving else []))

    return beta * values(x) + alpha * torch.matmul(values(a), values(b)), tangent


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


# ----------------------------------------------------------------------------------------------------------- reductions


@rule("var")
def _var(x: Any, dim: Any = None, unbiased: bool | None = None, *, correction: int = 1, keepdim: bool = False) -> Any:
    ddof = correction if unbiased is None else int(unbiased)
    y = torch.var(x.value, dim, correction=ddof, keepdim=keepdim)
    return y, lambda: _variance_rate(x, dim, ddof, keepdim)


@rule("std")
def _std(x: Any, dim: Any = None, unbiased: bool | None = None, *, correction: int = 1, keepdim: bool = False) -> Any:
    ddof = correction if unbiased is None else int(unbiased)
    y = torch.std(x.value, dim, correction=ddof, keepdim=keepdim)
    return y, lambda: _variance_rate(x, dim, ddof, keepdim) / (2 * y.to(x.tangent.dtype))


def _variance_rate(x: Dual, dim: Any, ddof: int, keepdim: bool) -> Tensor:
    centred = rated(x) - (rated(x).mean() if dim is None else rated(x).mean(dim, keepdim=True))
    moved = 2 * centred * x.tangent
    summed = moved.sum() if dim is None else moved.sum(dim, keepdim=keepdim)
    return summed / max(x.value.numel() // max(summed.numel(), 1) - ddof, 0)


@rule([torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm])
def _norm(x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if kwargs.get("ord") is not None:
        p = kwargs.pop("ord")
    if p not in (2, 2.0, "fro", None) or (p != 2 and x.ndim > 2 and dim is None):
        raise NoRule(f"the dual pass has a rule for the Euclidean norm only, got p={p!r}; write the sum out")
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
        return (_maximum if function is torch.max else _minimum)(x, args[0])
    raise NoRule(f"the dual pass has no rule for {function.__name__} over an axis; use topk-free code or ForwardMode()")


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
