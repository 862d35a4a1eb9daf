"""Multi-head attention softmax(q kᵀ/√d) v, with a kernel that survives forward-mode differentiation.

The fused kernels of `scaled_dot_product_attention` have no forward-mode rule and no batching rule. Inside
`torch.func` transforms and `torch.autograd.forward_ad` the products are therefore written out; everywhere else the
fused kernel runs. Both compute the same numbers, to rounding.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from shortflow.dropout import Dropout
from shortflow.errors import ShortflowError
from shortflow.fewtokens import attention
from shortflow.nn.norms import RMSNorm
from shortflow.products import Linear
from shortflow.transforms import transformed

__all__ = ["Attention", "CrossAttention", "attend", "explicit_attention"]

Heads = Float[Tensor, "b heads n d"]
Keys = Float[Tensor, "b heads m d"]
Contents = Float[Tensor, "b heads m e"]
Mixed = Float[Tensor, "b heads n e"]
Mask = Bool[Tensor, "b 1 1 m"] | None  # the keys that are there


def explicit_attention(q: Heads, k: Keys, v: Contents, mask: Mask = None) -> Mixed:
    """softmax(q kᵀ/√d) v by two matrix products; differentiable in every mode."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return torch.softmax(logits, dim=-1).to(v.dtype) @ v


def attend(q: Heads, k: Keys, v: Contents, mask: Mask = None) -> Mixed:
    """softmax(q kᵀ/√d) v: fused where that can be differentiated and tokens are many, explicit inside transforms.

    Args:
        mask: the keys that are there, at least one in every row; None: all.
    """
    if transformed():
        return explicit_attention(q, k, v, mask)
    return attention(q, k, v) if mask is None else F.scaled_dot_product_attention(q, k, v, mask)


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
        self.qkv = Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(self.q_norm(q), self.k_norm(k), v)
        return self.dropout(self.proj(mixed.transpose(1, 2).reshape(b, n, width)))


class CrossAttention(nn.Module):
    """Attention of image tokens to the tokens of a condition, of `heads` heads of width/heads numbers each.

    The condition depends on neither point nor times: along a path its keys and values are constants, so a derivative
    (`shortflow.dual`) computes nothing for them. Arguments and errors are those of `Attention`.
    """

    def __init__(self, *, width: int, heads: int, qk_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ShortflowError(f"heads must divide width, got heads={heads}, width={width}")
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n width"], tokens: Float[Tensor, "b m width"], there: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b n width"]:
        b, n, width = x.shape
        q = self.q(x).reshape(b, n, self.heads, width // self.heads).transpose(1, 2)
        pairs = self.kv(tokens).reshape(b, tokens.shape[1], 2, self.heads, width // self.heads)
        k, v = pairs.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(self.q_norm(q), self.k_norm(k), v, there[:, None, None])
        return self.dropout(self.proj(mixed.transpose(1, 2).reshape(b, n, width)))
