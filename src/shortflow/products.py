"""Linear maps in 32 bits on processors, by oneDNN where MKL leaves half of the machine unused.

PyTorch takes MKL for them, which uses no instructions of 512 bits on processors of others than Intel. Where AMD's have
these, oneDNN, which PyTorch brings along, takes less than half the time (Zen 5: 240 in place of 107 GFLOP/s on a core).
Both compute in 32 bits; sums run in another order. Elsewhere, and for everything small, this is PyTorch's own `linear`.
"""

import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from shortflow.transforms import transformed

__all__ = ["ONE_DNN", "Linear", "linear", "stock", "stock_products"]

SMALL = 2**22  # multiplications, below which a call of its own takes longer than it saves


def _one_dnn_is_faster() -> bool:
    """Known from the processor's name and abilities, not from a clock: a run that goes on makes the same choice."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    info = Path("/proc/cpuinfo")
    name = info.open().read(4096) if info.is_file() else platform.processor()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in name


ONE_DNN = _one_dnn_is_faster()
"""Whether oneDNN is taken here."""

_ONE_DNN = [torch.ops.mkldnn._linear_pointwise] if torch.backends.mkldnn.is_available() else []
_stock = False  # whether PyTorch's own choice is asked for


@contextmanager
def stock_products() -> Iterator[None]:
    """Within it PyTorch's own choice is taken everywhere."""
    global _stock
    before, _stock = _stock, True
    try:
        yield
    finally:
        _stock = before


def stock() -> bool:
    """Whether PyTorch's own choice is asked for here."""
    return _stock


def linear(
    x: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """x Wᵀ + b, as `torch.nn.functional.linear`, by the faster library."""
    if not _wanted(x, weight):
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        return _product(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Graph.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _by_one_dnn(x, weight, bias)


# An operation of its own, so that compilers know it. What runs at once does not go through it, because calling it costs
# time that small networks notice; the gradient is the same one.
_LIBRARY = torch.library.Library("shortflow", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _by_one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.numel() == 0:  # which it refuses
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _shape_only(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_LIBRARY.impl("linear", _by_one_dnn, "CPU")
_LIBRARY.impl("linear", _shape_only, "Meta")


@register_flop_formula([torch.ops.shortflow.linear, *_ONE_DNN])
def _flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.shortflow.linear(x, weight, bias)  # type: ignore[no-any-return]


def _wanted(x: Any, weight: Any) -> bool:
    if _stock or not ONE_DNN or type(x) is not Tensor or x.device.type != "cpu":
        return False
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():  # which may not know the number of rows
        return True
    large = x.numel() * len(weight) >= SMALL
    return large and type(weight) in (Tensor, nn.Parameter) and not transformed()


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = ctx.needs_input_grad
    rows, wide = slope.reshape(-1, slope.shape[-1]), x.reshape(-1, x.shape[-1])
    product = torch.matmul if torch.is_grad_enabled() else _by_columns  # for derivatives of derivatives
    return (
        product(rows, weight).reshape(x.shape) if to_x else None,
        product(rows.t().contiguous(), wide) if to_weight else None,  # compilers turn it where it is made
        rows.sum(0) if to_bias else None,
    )


torch.library.register_autograd("shortflow::linear", _backward, setup_context=_keep, lib=_LIBRARY)


class _Graph(torch.autograd.Function):
    """The same with the same gradient, as a node of PyTorch's graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        _keep(ctx, (x, weight, bias), None)
        return _by_one_dnn(x, weight, bias)

    backward = staticmethod(_backward)  # type: ignore[assignment]


def _by_columns(a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b.t()) if torch.compiler.is_compiling() else _by_one_dnn(a, b.t())


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`: the same parameters, start and values."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
