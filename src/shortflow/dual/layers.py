"""Rules of layers: linear maps and convolutions, normalisations, attention, dropout.

Weights are no inputs: they have no tangent, and no product is spent on one. The derivative of a normalisation without
weights is a symmetric matrix, so PyTorch's fused backward kernels compute it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shortflow.dual.arithmetic import aten, cast, plus_product, rated
from shortflow.dual.pairs import Dual, NoRule, rule, values
from shortflow.dual.reductions import softmax_rate
from shortflow.fewtokens import attention, attention_of, few, flat, scaled_product, weights_of
from shortflow.products import linear


def _constant(name: str, *weights: Any) -> None:
    if any(isinstance(weight, Dual) for weight in weights):
        raise NoRule(f"the dual pass has no rule for {name} with weights that depend on the input; use matmul")


@rule("linear")
def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    _constant("linear", weight, bias)
    return linear(x.value, weight, bias), lambda: linear(x.tangent, cast(weight, x.tangent), None)


def _convolution(name: str) -> None:
    function = getattr(F, name)

    @rule(name)
    def _(x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        _constant(name, weight, bias)
        value = function(x.value, weight, bias, *args, **kwargs)
        return value, lambda: function(x.tangent, cast(weight, x.tangent), None, *args, **kwargs)


for _name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
    _convolution(_name)


@rule("embedding")
def _embedding(*args: Any, **kwargs: Any) -> Any:
    raise NoRule("the dual pass has no rule for embedding with a table that depends on the input")


# -------------------------------------------------------------------------------------------------------- normalisation


def standardised_rate(x: Dual, shape: list[int], eps: float, groups: tuple[int, ...] | None = None) -> Tensor:
    """The derivative of (x − mean)/√(variance + ε) over the last axes, of `shape`; x is reshaped to `groups`."""
    wide, rate = _wide(rated(x)), _wide(x.tangent)
    if groups is not None:
        wide, rate = wide.reshape(groups), rate.reshape(groups)
    _, mean, deviation = torch.native_layer_norm(wide, shape, None, None, eps)
    moved = aten.native_layer_norm_backward(rate, wide, shape, mean, deviation, None, None, [True, False, False])[0]
    return moved.reshape(x.shape)


@rule("layer_norm")
def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    _constant("layer_norm", weight, bias)

    def tangent() -> Tensor:
        moved = standardised_rate(x, list(shape), eps)
        return moved if weight is None else moved * cast(weight, moved)

    return F.layer_norm(x.value, shape, weight, bias, eps), tangent


@rule("group_norm")
def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    _constant("group_norm", weight, bias)

    def tangent() -> Tensor:
        size = math.prod(x.value.shape[1:]) // groups
        moved = standardised_rate(x, [size], eps, (len(x.value), groups, size))
        return moved if weight is None else moved * cast(weight, moved).reshape(-1, *[1] * (x.value.ndim - 2))

    return F.group_norm(x.value, groups, weight, bias, eps), tangent


@rule("rms_norm")
def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    _constant("rms_norm", weight)

    def tangent() -> Tensor:
        wide, rate = _wide(rated(x)), _wide(x.tangent)
        axes = tuple(range(-len(shape), 0))
        floor = torch.finfo(x.value.dtype).eps if eps is None else eps
        deviation = torch.rsqrt(wide.square().mean(axes, keepdim=True) + floor)
        normed = wide * deviation
        moved = deviation * (rate - normed * (normed * rate).mean(axes, keepdim=True))
        return moved if weight is None else moved * cast(weight, moved)

    return F.rms_norm(x.value, shape, weight, eps), tangent


@rule("normalize")
def _normalize(x: Any, p: float | int = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Any:
    if p != 2:
        raise NoRule(f"the dual pass has a rule for normalize with p=2 only, got p={p}")

    def tangent() -> Tensor:
        wide, rate = rated(x), x.tangent
        size = wide.norm(dim=dim, keepdim=True)
        floor = size.clamp(min=eps)
        unit = wide / floor
        return (rate - torch.where(size > eps, unit * (unit * rate).sum(dim, keepdim=True), 0.0)) / floor

    return F.normalize(x.value, p, dim, eps), tangent


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ------------------------------------------------------------------------------------------------------------ attention


@rule("scaled_dot_product_attention")
def _attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """P = softmax(c q kᵀ + mask), dP = P (dS − Σ P dS) with dS = c (dq kᵀ + q dkᵀ), d(P v) = dP v + P dv.

    The value runs the fused kernel; the products of the tangent are written out.
    """
    if dropout_p > 0 or enable_gqa or isinstance(attn_mask, Dual):
        raise NoRule(
            "the dual pass has no rule for scaled_dot_product_attention with dropout, grouped queries or a mask that "
            "depends on the input"
        )
    value = F.scaled_dot_product_attention(values(q), values(k), values(v), attn_mask, 0.0, is_causal, scale=scale)

    def tangent() -> Tensor:
        like = next(x for x in (q, k, v) if isinstance(x, Dual)).tangent
        queries, keys, contents = cast(q, like), cast(k, like).contiguous(), cast(v, like)
        factor = queries.shape[-1] ** -0.5 if scale is None else scale
        scaled = (queries * factor).contiguous()  # both are in two products
        weights = torch.softmax(_masked(scaled @ keys.mT, attn_mask, is_causal), -1)
        moved = None
        if isinstance(q, Dual) or isinstance(k, Dual):
            rate = (q.tangent * factor) @ keys.mT if isinstance(q, Dual) else None
            rate = plus_product(rate, scaled, k.tangent.mT) if isinstance(k, Dual) else rate
            assert rate is not None
            moved = softmax_rate(rate.to(weights.dtype), weights, -1).to(like.dtype) @ contents
        if isinstance(v, Dual):
            moved = plus_product(moved, weights.to(like.dtype), v.tangent)
        assert moved is not None  # torch calls no rule without a dual
        return moved

    return value, tangent


@rule([attention])
def _among_few(q: Any, k: Any, v: Any) -> Any:
    """The tangent takes the weights of the value, where these are written out."""
    if not (isinstance(q, Dual) and isinstance(k, Dual) and isinstance(v, Dual) and few(q.value, k.value, v.value)):
        return _attention(q, k, v)
    queries, keys, contents, scale = flat(q.value), flat(k.value), flat(v.value), q.value.shape[-1] ** -0.5
    value, weights = attention_of(queries, keys, contents, scale)
    shape = (*q.value.shape[:3], v.value.shape[3])

    def tangent() -> Tensor:
        p = weights_of(queries, keys, scale) if torch.is_grad_enabled() else weights  # these have no gradient
        rate = scaled_product(flat(q.tangent), cast(keys, q.tangent).mT, scale)
        rate = torch.baddbmm(rate, cast(queries, k.tangent), flat(k.tangent).mT, alpha=scale)
        moved = torch.bmm(softmax_rate(rate, cast(p, rate), -1), cast(contents, rate))
        return torch.baddbmm(moved, cast(p, rate), flat(v.tangent)).view(shape)

    return value.view(shape), tangent


def _masked(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


# -------------------------------------------------------------------------------------------------------------- dropout


@rule("dropout alpha_dropout feature_dropout")
def _no_dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p > 0:
        raise NoRule(
            "dropout draws a mask of its own in every pass, so value and tangent would see different networks; "
            "use shortflow.dropout.Dropout, whose masks are shared"
        )
    return x.value, lambda: x.tangent
