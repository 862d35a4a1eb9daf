"""Training state on disk: everything a resumed run needs, as safetensors and JSON, never pickle.

    RUN/state/00000500/           the state after step 500: the tensors of network, averages, teacher and optimiser,
                                  and state.json with the size and SHA-256 of each of these files and of itself
    RUN/state/00000500.damaged/   one that was found damaged, kept aside

A state is written under a temporary name, flushed to disk and renamed when whole, so a folder with a step number was
complete once. Whether it still is, loading finds out before it touches anything.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shortflow.errors import CheckpointError
from shortflow.files import (
    UNFINISHED,
    atomic_path,
    remove_unfinished,
    set_aside,
    sha256_of,
    sync_folder,
    write_atomic,
)
from shortflow.train.shards import part_like, whole
from shortflow.train.space import bytes_of, room_for

__all__ = [
    "DamagedState",
    "check_state",
    "latest_state",
    "load_newest",
    "load_state",
    "module_tensors",
    "optimizer_tensors",
    "save_state",
]

FORMAT = 2
_LARGEST = 2**26  # bytes of a state.json: what is pending of a log is less than 1 KiB a step
_OWN = ("files", "sha256")  # what a state says about its files and itself


class DamagedState(CheckpointError):
    """A state is not what was written: a file is missing, cut or changed."""


# --------------------------------------------------------------------------------------------------------------- saving


def save_state(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module | Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer | Mapping[str, Tensor],
    info: Mapping[str, Any],
    keep: int,
    best: int | None = None,
) -> Path:
    """Write the state after `step` steps to directory/<step> and remove all but the newest `keep`, and step `best`.

    Modules and optimiser may be given as the tensors that `module_tensors` and `optimizer_tensors` have made of them.

    Raises:
        CheckpointError: if there is no space for it; the states that are there stay as they are.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_unfinished(directory)
    latest = latest_state(directory)
    moments = optimizer_tensors(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else dict(optimizer)
    needed = sum(map(bytes_of, (*modules.values(), moments)))
    before = f"The state before it is whole ({latest})" if latest else "There is no state before it"
    final, temporary = directory / f"{step:08d}", directory / f"{UNFINISHED}{step:08d}"
    try:
        with room_for(f"the state after step {step}", directory, needed, before):
            temporary.mkdir()
            for name, module in modules.items():
                tensors = module_tensors(module) if isinstance(module, nn.Module) else dict(module)
                _write(tensors, temporary / f"{name}.safetensors")
            _write(moments, temporary / "optimizer.safetensors")
            content = {"format": FORMAT, "step": step, **info, "files": _listed(temporary)}
            content = json.loads(json.dumps(content))  # as it will be read
            write_atomic(temporary / "state.json", json.dumps({**content, "sha256": _sum(content)}, indent=1))
            if final.exists():
                _remove(final)
            os.replace(temporary, final)
            sync_folder(directory)
            sync_folder(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _states(directory)[:-keep]:
        if int(old.name) != best:
            _remove(old)
    return final


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary))


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by name, in one piece each; of one that is sharded all processes must ask."""
    return {name: whole(value).detach().cpu().contiguous() for name, value in module.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments as <number of the weight>.<name>, in one piece each; where sharded all processes must ask."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": whole(value).detach().cpu() for i, entry in state.items() for name, value in entry.items()}


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sum of every file in a folder."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}


def _sum(content: Mapping[str, Any]) -> str:
    """The sum of a state.json without its sum."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove(state: Path) -> None:
    """Remove a state under another name, so that what a kill leaves of it is no state."""
    away = state.with_name(f"{UNFINISHED}removed-{state.name}")
    os.replace(state, away)
    shutil.rmtree(away, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------- finding


def _states(directory: Path) -> list[Path]:
    """The states in `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if re.fullmatch(r"[0-9]{8,18}", p.name)), key=lambda p: int(p.name))


def latest_state(directory: Path) -> Path | None:
    """The newest state in `directory`, or None."""
    states = _states(directory)
    return states[-1] if states else None


def load_newest(
    directory: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[Path, dict[str, Any]]:
    """Load the newest state that is whole; return it and its information.

    Newer ones that are damaged are named in a warning and kept aside as NAME.damaged, where they are neither chosen nor
    removed again. If none is whole, all stay where they are.

    Raises:
        CheckpointError: naming all states and what is wrong with them, if none is whole; or as `load_state`, if one is
            whole and is not of these modules.
    """
    damaged: list[tuple[Path, DamagedState]] = []
    for state in reversed(_states(directory)):
        try:
            info = load_state(state, modules, optimizer)
        except DamagedState as error:
            damaged.append((state, error))
            continue
        for found, error in damaged:
            warnings.warn(
                f"{error}. It is kept aside as {set_aside(found).name}, and training goes on from {state.name}",
                stacklevel=3,
            )
        return state, info
    faults = "".join(f"\n  {error}" for _, error in damaged)
    raise CheckpointError(
        f"no training state in {directory} is whole:{faults}\n"
        "Bring one back from a copy, or start a new run in another directory"
    )


# -------------------------------------------------------------------------------------------------------------- loading


def load_state(state: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a state into the given modules and optimiser and return its information, after everything was verified.

    Raises:
        DamagedState: if it is not what was written.
        CheckpointError: if it has another format, or the tensors are not those of these modules.
    """
    files, info = _verified(state)
    wanted = {*(f"{name}.safetensors" for name in modules), "optimizer.safetensors"}
    if files != wanted:
        raise CheckpointError(
            f"the state {state} holds {', '.join(sorted(files))}, and this run has {', '.join(sorted(wanted))}; resume "
            "with the recipe that it was saved with"
        )
    try:
        tensors = {name: load_file(str(state / f"{name}.safetensors")) for name in modules}
        moments = load_file(str(state / "optimizer.safetensors"))
        entries = _optimizer_entries(optimizer, moments)
        for name, module in modules.items():
            own = module.state_dict()
            module.load_state_dict({key: part_like(value, own.get(key, value)) for key, value in tensors[name].items()})
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"the state {state} cannot be loaded ({type(error).__name__}: {error}). It is whole, but not of this "
            "network and optimiser; resume with the run that it was saved with"
        ) from error
    return info


def check_state(state: Path) -> dict[str, Any]:
    """The information of a state, after the size and the sum of every file were verified.

    Raises:
        DamagedState: if it is not what was written.
        CheckpointError: if it has another format, or cannot be read.
    """
    return _verified(state)[1]


def _verified(state: Path) -> tuple[set[str], dict[str, Any]]:
    """The names of a state's files, and its information."""
    try:
        content = _content(state)
        files = content["files"]
        for name, entry in files.items():  # the sizes first, which takes no time
            if not re.fullmatch(r"[\w+-][\w.+-]*\.safetensors", name):
                raise DamagedState(f"the state {state} is damaged: it lists {name!r}, which is no file of a state")
            found = _size(state, name)
            if found != entry["bytes"]:
                raise DamagedState(f"the state {state} is damaged: {name} has {found} of {entry['bytes']} bytes")
        for name, entry in files.items():
            if sha256_of(state / name) != entry["sha256"]:
                raise DamagedState(f"the state {state} is damaged: {name} has changed since it was written (SHA-256)")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise DamagedState(
            f"the state {state} is damaged: state.json makes no sense ({type(error).__name__}: {error})"
        ) from error
    except OSError as error:
        kind = DamagedState if error.errno in (errno.ENOENT, errno.EIO) else CheckpointError
        raise kind(f"the state {state} cannot be read: {error}") from error
    return set(files), {name: value for name, value in content.items() if name not in _OWN}


def _content(state: Path) -> dict[str, Any]:
    """What state.json says, after its own sum was verified."""
    if _size(state, "state.json") > _LARGEST:
        raise DamagedState(f"the state {state} is damaged: state.json is larger than {_LARGEST >> 20} MiB")
    try:
        content = json.loads((state / "state.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedState(f"the state {state} is damaged: state.json is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedState(f"the state {state} is damaged: state.json holds no settings")
    written, form = content.pop("sha256", None), content.get("format")
    whole = written == _sum(content)
    if form != FORMAT and (whole or (written is None and form == 1)):  # the first format had no sums
        raise CheckpointError(
            f"the state {state} has format {form!r}, this version of shortflow reads format {FORMAT}; resume with the "
            "version that wrote it"
        )
    if not whole:
        raise DamagedState(f"the state {state} is damaged: state.json has changed since it was written (SHA-256)")
    if type(content["step"]) is not int or content["step"] != int(state.name):
        raise DamagedState(f"the state {state} is damaged: it says that it is that of step {content['step']}")
    return content


def _size(state: Path, name: str) -> int:
    """The bytes of a file of a state. A pipe or a device in its place would be read for ever."""
    try:
        found = os.stat(state / name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedState(f"the state {state} is damaged: {name} is missing") from error
    if not stat.S_ISREG(found.st_mode):
        raise DamagedState(f"the state {state} is damaged: {name} is no file")
    return found.st_size


def _optimizer_entries(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The moments by number of the weight. Raises `ValueError` unless they have the weights' shapes."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        shape = weights[int(index)].shape if 0 <= int(index) < len(weights) else None
        if value.shape != shape and not (name == "step" and value.ndim == 0 and shape is not None):
            raise ValueError(f"the optimiser's {key} of shape {tuple(value.shape)} is of no weight of this network")
        state.setdefault(int(index), {})[name] = part_like(value, weights[int(index)]) if value.ndim else value
    return state
