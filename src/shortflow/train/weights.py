"""Weights in one self-describing file, with a sum over the description and every tensor.

The header of the file holds, as JSON, what the caller says of the weights and "sha256": of the description without it,
then of name, dtype, shape and bytes of every tensor in the order of their names.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shortflow.files import atomic_path

__all__ = ["SUM", "save_model", "save_weights", "step_of", "sum_of"]

SUM = "sha256"


def save_model(module: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the weights with `metadata` (JSON values) and their sum in the file's header, atomically."""
    save_weights(
        {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, path, metadata
    )


def save_weights(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """As `save_model`, for tensors on the processor."""
    header = {**metadata, SUM: sum_of(metadata, tensors)}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), {"shortflow": json.dumps(header)})


def sum_of(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 (hex) of a description and its tensors, which are read where they lie and not copied."""
    found = hashlib.sha256(_text({name: value for name, value in metadata.items() if name != SUM}))
    for name, value in sorted(tensors.items()):
        found.update(_text([name, str(value.dtype), list(value.shape)]))
        found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _text(value: Any) -> bytes:
    """A JSON value as bytes, the same for a value that was written and read again."""
    return json.dumps(value, sort_keys=True).encode()


def step_of(path: Path) -> int:
    """The step that the weights in a file are of; −1 where there are none, or none that can be read."""
    try:
        with safe_open(str(path), "pt") as opened:
            return int(json.loads((opened.metadata() or {})["shortflow"])["step"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return -1
