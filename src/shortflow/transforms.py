"""Whether a derivative is being taken around a call: some fused kernels are wrong or missing there."""

import torch
from torch.autograd import forward_ad

__all__ = ["transformed"]


def transformed() -> bool:
    """Whether a function transform (jvp, vmap, grad, …) or a forward-mode level is active around this call.

    PyTorch has no public question for this. If a release drops the private ones, the answer is yes: the explicit
    kernel is always right, only slower.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    level = getattr(forward_ad, "_current_level", None)
    return active is None or level is None or level >= 0 or bool(active())
