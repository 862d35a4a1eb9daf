"""Multi-head self-attention softmax(q kᵀ/√d) v, with a kernel that survives forward-mode differentiation.

The fused kernels of `scaled_dot_product_attention` have no forward-mode rule and no batching rule. Inside
`torch.func` transforms and `torch.autograd.forward_ad` the products are therefore written out; everywhere else the
fused kernel runs. Both compute the same numbers, to rounding.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from shortflow.dropout import Dropout
from shortflow.errors import ShortflowError

__all__ = ["Attention", "RMSNorm", "attend", "explicit_attention", "transformed"]

Heads = Float[Tensor, "b heads n d"]


def transformed() -> bool:
    """Whether a function transform (jvp, vmap, grad, …) or a forward-mode level is active around this call.

    PyTorch has no public question for this. If a release drops the private ones, the answer is yes: the explicit
    kernel is always right, only slower.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    level = getattr(forward_ad, "_current_level", None)
    return active is None or level is None or level >= 0 or bool(active())


def explicit_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """softmax(q kᵀ/√d) v by two matrix products; differentiable in every mode."""
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
    return weights.to(v.dtype) @ v


def attend(q: Heads, k: Heads, v: Heads) -> Heads:
    """softmax(q kᵀ/√d) v: fused where that can be differentiated, explicit inside transforms."""
    if transformed():
        return explicit_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class RMSNorm(nn.Module):
    """g · x / √(mean(x²) + ε) over the last axis, ε = 1e-6; the mean is taken in float32 at least.

    Written out, because affine normalisation layers fail in a compiled forward-mode derivative.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Self-attention over the tokens (axis 1), of `heads` heads of width/heads numbers each.

    Args:
        width: length of a token.
        heads: number of heads; divides `width`.
        qk_norm: normalise queries and keys of each head (`RMSNorm`), which bounds the logits.
        dropout: probability of dropping an entry of the result.

    Raises:
        ShortflowError: if `heads` does not divide `width`.
    """

    def __init__(self, *, width: int, heads: int, qk_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ShortflowError(f"heads must divide width, got heads={heads}, width={width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(self.q_norm(q), self.k_norm(k), v)
        return self.dropout(self.proj(mixed.transpose(1, 2).reshape(b, n, width)))
