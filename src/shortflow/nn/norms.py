"""Normalisation layers whose derivatives are right, over the last axis or over groups of channels.

Inside function transforms they are written out. PyTorch's kernels are not safe there: affine ones fail in a compiled
forward-mode derivative, and the forward-mode derivative of `layer_norm` takes its mean and deviation for constants when
it is itself differentiated, so that losses on a derivative get wrong gradients without an error. Elsewhere the kernels
run: they compute the same numbers, to rounding, in less time and memory. All take their means in float32 at least.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shortflow.transforms import transformed

__all__ = ["GroupNorm", "LayerNorm", "PartNorm", "RMSNorm"]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _standardised(x: Float[Tensor, "... d"], eps: float) -> Float[Tensor, "... d"]:
    """(x − mean)/√(variance + ε) over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)


def _over_rms(x: Float[Tensor, "... d"], eps: float) -> Float[Tensor, "... d"]:
    """x/√(mean(x²) + ε) over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """g · x / √(mean(x²) + ε) over the last axis, ε = 1e-6; the mean is taken in float32 at least."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return (_over_rms(_wide(x), self.eps) * self.weight).to(x.dtype)


class PartNorm(nn.Module):
    """x/√(mean(x²) + ε) of each of `parts` equal parts of the last axis, without weights, ε = 1e-6.

    Zero stays zero, with a derivative of 1/√ε = 1000; what is larger than √ε comes out with a root mean square of 1.
    """

    def __init__(self, parts: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.parts, self.eps = parts, eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return _over_rms(_wide(x).unflatten(-1, (self.parts, -1)), self.eps).flatten(-2).to(x.dtype)

    def extra_repr(self) -> str:
        return f"parts={self.parts}"


class LayerNorm(nn.Module):
    """(x − mean)/√(variance + ε) over the last axis, without weights, ε = 1e-6."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        if not transformed():
            return F.layer_norm(x, (self.width,), eps=self.eps)
        return _standardised(_wide(x), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.width}"


class GroupNorm(nn.Module):
    """g · (x − mean)/√(variance + ε) + b over groups of channels and all pixels, ε = 1e-6, in float32 at least.

    There are at most 32 groups, of at least 4 channels each: the most that divide the number of channels.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.groups = next(n for n in range(max(1, min(32, channels // 4)), 0, -1) if channels % n == 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        wide = _wide(x)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        if not transformed():
            return F.group_norm(wide, self.groups, weight, bias, self.eps).to(x.dtype)
        grouped = wide.reshape(x.shape[0], self.groups, -1)
        normed = _standardised(grouped, self.eps).reshape(x.shape)
        return (normed * weight[:, None, None] + bias[:, None, None]).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, groups={self.groups}"
