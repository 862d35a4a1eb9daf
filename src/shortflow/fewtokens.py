"""Attention among few tokens on processors, by products of all heads at once.

The fused kernel goes through one head of one image after the other in blocks that are made for long sequences, and its
backward pass computes the weights again. Up to `FEW` keys that costs more than it saves (see `python -m
benchmarks.kernels`). The weights are kept in the place of the result, which the fused kernel keeps, and may be twice as
many numbers.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from shortflow.products import stock
from shortflow.transforms import transformed

__all__ = ["FEW", "attention", "attention_of", "few", "flat", "scaled_product", "weights_of"]

FEW = 64
"""The most keys for which the weights are written out."""

aten = torch.ops.aten


def attention(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m e"]
) -> Float[Tensor, "b heads n e"]:
    """softmax(q kᵀ/√d) v, by the fused kernel where there are many tokens."""
    if has_torch_function((q, k, v)) and not torch.compiler.is_compiling():
        return handle_torch_function(attention, (q, k, v), q, k, v)  # type: ignore[no-any-return]
    if not few(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)
    result, _ = attention_of(flat(q), flat(k), flat(v), q.shape[-1] ** -0.5)
    return result.view(*q.shape[:3], v.shape[3])


def few(q: Any, k: Any, v: Any) -> bool:
    """Whether the weights of these queries and keys are to be written out."""
    if not (type(q) is type(k) is type(v) is Tensor) or q.ndim != 4:
        return False
    if not 0 < k.shape[-2] <= min(FEW, 2 * v.shape[-1]):
        return False
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64) or not q.dtype == k.dtype == v.dtype:
        return False
    if not q.shape[:2] == k.shape[:2] == v.shape[:2]:  # which the fused kernel may know how to match
        return False
    return not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or stock() or transformed())


def flat(x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "l n d"]:
    """The heads of all images, one behind the other."""
    return x.reshape(-1, *x.shape[-2:]).contiguous()


def attention_of(
    q: Float[Tensor, "l n d"], k: Float[Tensor, "l m d"], v: Float[Tensor, "l m e"], scale: float
) -> tuple[Float[Tensor, "l n e"], Float[Tensor, "l n m"]]:
    """(P v, P) with P = softmax(scale · q kᵀ); P has no gradient of its own."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Graph.apply(q, k, v, scale)  # type: ignore[no-any-return]
    weights = weights_of(q, k, scale)
    return torch.bmm(weights, v), weights


def weights_of(q: Float[Tensor, "l n d"], k: Float[Tensor, "l m d"], scale: float) -> Float[Tensor, "l n m"]:
    """softmax(scale · q kᵀ)."""
    return torch.softmax(scaled_product(q, k.mT, scale), -1)


def scaled_product(a: Float[Tensor, "l n d"], b: Float[Tensor, "l d m"], scale: float) -> Float[Tensor, "l n m"]:
    """scale · a b in one go."""
    return torch.baddbmm(a.new_zeros(()), a, b, beta=0, alpha=scale)


class _Graph(torch.autograd.Function):
    """dv = Pᵀ g, dS = P (g vᵀ − Σ P g vᵀ), dq = scale · dS k, dk = scale · dSᵀ q."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        weights = weights_of(q, k, scale)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        ctx.mark_non_differentiable(weights)
        return torch.bmm(weights, v), weights

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q, k, v, weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # for derivatives of derivatives, in which the weights depend on q and k
            weights = weights_of(q, k, ctx.scale)
        slope = slope.contiguous()
        moved = aten._softmax_backward_data(torch.bmm(slope, v.mT), weights, -1, weights.dtype)
        to_q, to_k = scaled_product(moved, k, ctx.scale), scaled_product(moved.mT, q, ctx.scale)
        return to_q, to_k, torch.bmm(weights.mT, slope), None
