"""Training state on disk: everything a resumed run needs, as safetensors and JSON, never pickle.

    RUN/state/00000500/   network, average, teacher and optimiser tensors, state.json
    RUN/model.safetensors the averaged weights, described by the file's own header

A state is written under a temporary name and renamed when whole, so a folder with a step number is always complete.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shortflow.errors import CheckpointError
from shortflow.files import atomic_path, write_atomic

__all__ = ["latest_state", "load_state", "save_model", "save_state"]

FORMAT = 1
UNFINISHED = ".writing-"


def save_model(module: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the weights with `metadata` (JSON values) in the file's header, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), {"shortflow": json.dumps(metadata)})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value.detach().cpu() for i, entry in state.items() for name, value in entry.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_state(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    info: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the state after `step` steps to directory/<step> and remove all but the newest `keep`."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(UNFINISHED + "*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    final, temporary = directory / f"{step:08d}", directory / f"{UNFINISHED}{step:08d}"
    temporary.mkdir()
    try:
        for name, module in modules.items():
            save_model(module, temporary / f"{name}.safetensors", {"part": name})
        with atomic_path(temporary / "optimizer.safetensors") as path:
            save_file(_optimizer_tensors(optimizer), str(path))
        write_atomic(temporary / "state.json", json.dumps({"format": FORMAT, "step": step, **info}, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _states(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _states(directory: Path) -> list[Path]:
    """The states in `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if re.fullmatch(r"\d{8,}", p.name)), key=lambda p: int(p.name))


def latest_state(directory: Path) -> Path | None:
    """The newest state in `directory`, or None."""
    states = _states(directory)
    return states[-1] if states else None


def load_state(state: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a state into the given modules and optimiser and return its information.

    Raises:
        CheckpointError: if a file is missing or damaged, or the tensors are not those of these modules.
    """
    try:
        info = json.loads((state / "state.json").read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise ValueError(f"it has format {info['format']}, this version reads format {FORMAT}")
        int(info["step"])
        tensors = {name: load_file(str(state / f"{name}.safetensors")) for name in modules}
        moments = load_file(str(state / "optimizer.safetensors"))
        for name, module in modules.items():
            module.load_state_dict(tensors[name])
        _load_optimizer(optimizer, moments)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"the state {state} cannot be loaded ({type(error).__name__}: {error}). If it is damaged, remove this "
            "folder: training then resumes from the state before it"
        ) from error
    return info
