"""The precisions that are measured: of products of fp32 matrices, and of the network under autocast."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["MODES", "autocast", "matmuls"]

MODES = {"fp32": ("highest", False), "tf32": ("high", False), "bf16": ("highest", True), "bf16+tf32": ("high", True)}
"""Mode: (`torch.set_float32_matmul_precision`, whether networks run under bf16 autocast).

Derivatives are in fp32 also under autocast, so that TF32 matters there, too.
"""


def autocast(mode: str) -> bool:
    return MODES[mode][1]


@contextmanager
def matmuls(mode: str) -> Iterator[None]:
    """Products of fp32 matrices, and convolutions, as the mode wants them."""
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(MODES[mode][0])
    torch.backends.cudnn.allow_tf32 = MODES[mode][0] != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
