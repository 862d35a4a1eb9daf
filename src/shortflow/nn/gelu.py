"""The tanh form of GELU, for compilers by the exponential: the same function in less time."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["GELU"]

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


class GELU(nn.Module):
    """x ↦ ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))) = x σ(2 √(2/π) (x + 0.044715 x³)).

    The kernel of PyTorch computes the first form. On a CPU what a compiler makes of it takes longer
    than what it makes of the second (`python -m benchmarks.step`, compiled steps); both agree to 1e-6.
    """

    def forward(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        if torch.compiler.is_compiling():
            return x * torch.sigmoid(x * (_LINEAR + _CUBIC * x * x))
        return nn.functional.gelu(x, approximate="tanh")
