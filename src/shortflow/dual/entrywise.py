"""Rules of functions of one tensor, entry by entry."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shortflow.activations import gelu
from shortflow.dual.arithmetic import Operand, aten, rated
from shortflow.dual.pairs import Dual, NoRule, rule


def _entrywise(names: str, slope: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A rule y = f(x), dy = slope(x, y) dx for the functions of that name, which take nothing else."""
    function = next(
        f for owner in (torch, torch.nn.functional, torch.special) if (f := getattr(owner, names.split()[0], None))
    )

    @rule(names)
    def _(x: Any, *args: Any, **kwargs: Any) -> Any:
        _kept_whole(names.split()[0], kwargs.pop("inplace", False))
        y = function(x.value, *args, **kwargs)
        return y, lambda: x.tangent * slope(rated(x), y.to(x.tangent.dtype))


def _kept_whole(name: str, inplace: bool) -> None:
    if inplace:
        raise NoRule(
            f"{name} with inplace=True changes a tensor in place, which the dual pass cannot follow; use inplace=False"
        )


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
_entrywise("sinc", lambda x, y: torch.where(x == 0, 0.0, (torch.cos(math.pi * x) - y) / torch.where(x == 0, 1.0, x)))
_entrywise("mish", lambda x, y: _mish_slope(x))
_entrywise("relu6", lambda x, y: ((x > 0) & (x < 6)).to(x.dtype))
_entrywise("hardtanh", lambda x, y: (y == x).to(x.dtype))


def _mish_slope(x: Tensor) -> Tensor:
    s = torch.tanh(torch.nn.functional.softplus(x))
    return s + x * torch.sigmoid(x) * (1 - s * s)


@rule("relu")
def _relu(x: Any, inplace: bool = False) -> Any:
    _kept_whole("relu", inplace)
    return torch.relu(x.value), lambda: x.tangent * (x.value > 0)


@rule("silu")
def _silu(x: Any, inplace: bool = False) -> Any:
    _kept_whole("silu", inplace)
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


@rule([gelu])
def _our_gelu(x: Any) -> Any:
    return gelu(x.value), lambda: aten.gelu_backward(x.tangent, rated(x), approximate="tanh")


@rule("softplus")
def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    y = torch.nn.functional.softplus(x.value, beta, threshold)
    return y, lambda: x.tangent * torch.where(x.value * beta > threshold, 1.0, torch.sigmoid(rated(x) * beta))


@rule("leaky_relu")
def _leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    _kept_whole("leaky_relu", inplace)
    y = torch.nn.functional.leaky_relu(x.value, negative_slope)
    return y, lambda: torch.where(x.value > 0, x.tangent, negative_slope * x.tangent)


@rule("elu")
def _elu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    _kept_whole("elu", inplace)
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
    return _clamp(x, min, None)


@rule("clamp_max")
def _clamp_max(x: Any, max: Any) -> Any:
    return _clamp(x, None, max)


@rule("logit")
def _logit(x: Any, eps: float | None = None) -> Any:
    inside: Any = x if eps is None else torch.clamp(x, eps, 1 - eps)
    return torch.logit(x.value, eps), lambda: inside.tangent / (rated(inside) * (1 - rated(inside)))


@rule("nan_to_num")
def _nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    y = torch.nan_to_num(x.value, nan, posinf, neginf)
    return y, lambda: torch.where(torch.isfinite(x.value), x.tangent, 0.0)
