"""The tanh form of GELU as a layer."""

from jaxtyping import Float
from torch import Tensor, nn

from shortflow.activations import gelu

__all__ = ["GELU"]


class GELU(nn.Module):
    """x ↦ ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), by `shortflow.activations.gelu`."""

    def forward(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return gelu(x)
