"""Weights that processes hold a part of each (FSDP2), in one piece and back.

What is saved is always in one piece, so a state does not know how many processes there were.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["gather", "part_like", "shard", "sharded_inside", "whole"]


def shard(module: nn.Module) -> None:
    """Divide the weights of a module, with their gradients and moments, evenly among the processes.

    They are gathered when the module is called, and stay until its backward pass is through: a gathering and a
    reduction a step, however many passes there are, and whatever each process passes through.
    """
    fully_shard(module, reshard_after_forward=False)


def gather(module: nn.Module) -> None:
    """Gather the weights of a module that is sharded, for who does not call it by its forward; all processes must."""
    if isinstance(module, FSDPModule):
        module.unshard()


def sharded_inside(module: nn.Module) -> bool:
    """Whether the module, or a part of it, is sharded on its own, so that calling it waits for other processes."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return False
    return any(isinstance(part, FSDPModule) for part in module.modules())


def whole(value: Tensor) -> Tensor:
    """The tensor in one piece; of one that is sharded all processes must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: its part of this process, where that one is sharded. No process waits."""
    if not isinstance(like, DTensor):
        return value
    mesh: Any = like.device_mesh
    return distribute_tensor(value.to(torch.device(mesh.device_type)), mesh, like.placements, src_data_rank=None)
