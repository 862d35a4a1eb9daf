"""The tanh form of GELU by the exponential: the same function in half of the time and less, on processors.

PyTorch's kernel takes the hyperbolic tangent, which costs a processor more than an exponential and three more passes
over the tensor (`python -m benchmarks.kernels`). It is taken for every size, because what a row becomes must not depend
on how many others are in the pass.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from shortflow.products import stock
from shortflow.transforms import transformed

__all__ = ["gelu"]

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def gelu(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """½ x (1 + tanh(√(2/π) (x + 0.044715 x³))) = x σ(2 √(2/π) (x + 0.044715 x³)), in any of its forms.

    The gradient is that of PyTorch's kernel; both forms agree to rounding.
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(x * (_LINEAR + _CUBIC * x * x))
    if has_torch_function_unary(x):
        return handle_torch_function(gelu, (x,), x)  # type: ignore[no-any-return]
    if not _wanted(x):
        return F.gelu(x, approximate="tanh")
    return _Graph.apply(x) if torch.is_grad_enabled() and x.requires_grad else _by_exponential(x)  # type: ignore[no-any-return]


def _wanted(x: Any) -> bool:
    if type(x) is not Tensor or x.dtype is not torch.float32 or x.device.type != "cpu":
        return False
    return not (stock() or transformed())


def _by_exponential(x: Tensor) -> Tensor:
    inner = torch.addcmul(x.new_full((), _LINEAR), x, x, value=_CUBIC)
    return inner.mul_(x).sigmoid_().mul_(x)


class _Graph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return _by_exponential(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(slope, x, approximate="tanh")
