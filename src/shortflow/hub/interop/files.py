"""Files of weights that others have written, as plain dictionaries of tensors. Nothing in them is executed.

    .pt .pth .bin .ckpt    torch.save: read by `torch.load(weights_only=True)` and no other way
    .safetensors, .npz     tensors by name

A checkpoint may hold several sets of weights, by name: "ema", the average, and "model", what was trained; a file with
one set may hold it without a name. Names lose the prefixes that wrappers put in front (`module.`, `_orig_mod.`).
Settings in an `argparse.Namespace`, which training scripts like to save beside the weights, are the one kind of object
that is let in: a namespace holds values, and those are read under the same restriction.
"""

import argparse
import json
import pickle
import re
import shlex
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shortflow.errors import CheckpointError, ConfigError
from shortflow.files import sha256_of

__all__ = ["Weights", "read_weights"]

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (*PICKLED, ".safetensors", ".npz")
AVERAGED, TRAINED, UNNAMED = "ema", "model", "weights"
_SETS = {"ema": AVERAGED, "model": TRAINED, "state_dict": TRAINED}
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """One set of weights of a file.

    Attributes:
        tensors: by name, without the prefixes of wrappers.
        which: "ema", "model", or "weights" where the file does not say.
        others: the other sets of the file.
        step: of the training, where the file says it; 0 otherwise.
        sha256: of the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    which: str
    others: tuple[str, ...] = ()
    step: int = 0
    sha256: str = ""


def read_weights(path: Path, average: bool | None = None) -> Weights:
    """The weights in a file: with `average` the averaged ones, with False those that were trained, with None the best.

    Raises:
        CheckpointError: if there is no such file, it is damaged, needs unpickling, or holds no weights.
        ConfigError: if it has not the set that is asked for.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise CheckpointError(f"{path} is {what}; give a file of weights: {', '.join(SUFFIXES)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: files of weights end in {', '.join(SUFFIXES)}; rename the file if it is one")
    content = _pickled(path) if suffix in PICKLED else _named(path)
    sets, step = _sets(path, content)
    which = _chosen(path, sets, average)
    return Weights(
        path=path,
        tensors=_unwrapped(path, sets[which]),
        which=which,
        others=tuple(name for name in sets if name != which),
        step=step,
        sha256=sha256_of(path),
    )


# ------------------------------------------------------------------------------------------------------------- formats


def _pickled(path: Path) -> Any:
    """What `torch.save` has written, if it is tensors, numbers, texts and namespaces of them."""
    zipped = zipfile.is_zipfile(path)
    if not zipped and _begins(path, b"PK\x03\x04"):  # the directory, at the end of the file, is gone
        raise CheckpointError(f"{path} is damaged: its end is missing; copy or download it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped: states of optimisers, which fill most of a checkpoint, are not read.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None and not zipped:
            raise CheckpointError(
                f"{path} is no file of torch.save, or a part of one; copy or download it again"
            ) from error
        raise CheckpointError(_needs_unpickling(path, found[1] if found else "")) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged ({reason}); copy or download it again") from error


def _begins(path: Path, with_: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(with_)) == with_


def _needs_unpickling(path: Path, what: str) -> str:
    out = path.with_name(f"{path.stem}-weights.pt")
    code = (
        f'import torch; c = torch.load({json.dumps(str(path))}, map_location="cpu", weights_only=False); '
        f'torch.save({{k: dict(c[k]) for k in ("ema", "model") if k in c}} or dict(c), {json.dumps(str(out))})'
    )
    return (
        f"{path} holds objects beside its tensors{f' ({what})' if what else ''}; reading them would execute code of "
        "the file, so it is not read. If you trust who made it, keep its weights only, where their code is installed:\n"
        f"  python -c {shlex.quote(code)}\n"
        f"and import {out}"
    )


def _named(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or NumPy file."""
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(str(path), "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (SafetensorError, OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is no {path.suffix.lower()[1:]} file of numbers, or a part of one ({reason}); copy or download it "
            "again"
        ) from error


# ---------------------------------------------------------------------------------------------------------------- sets


def _sets(path: Path, content: Any) -> tuple[dict[str, Mapping[str, Any]], int]:
    """The sets of weights in what was read, and the step that they are of."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not weights by name; give a file with a state dict in it"
        )
    found: dict[str, Mapping[str, Any]] = {}
    for name, which in _SETS.items():
        if isinstance(content.get(name), Mapping):
            found.setdefault(which, content[name])
    if found:
        step = content.get("steps", content.get("step", 0))
        return found, step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else 0
    if any(isinstance(value, Tensor) for value in content.values()):
        return {UNNAMED: content}, 0
    names = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise CheckpointError(
        f"{path} holds no weights: expected tensors by name, or sets of them under {' or '.join(_SETS)}; it has {names}"
    )


def _chosen(path: Path, sets: Mapping[str, Any], average: bool | None) -> str:
    if average is None:
        return next(name for name in (AVERAGED, TRAINED, UNNAMED) if name in sets)
    wanted = AVERAGED if average else TRAINED
    if wanted not in sets:
        there = "one set, which it does not name" if UNNAMED in sets else f"{' and '.join(sets)} only"
        raise ConfigError(f"{path} has no {wanted!r} weights, it holds {there}; leave out --{wanted}")
    return wanted


def _unwrapped(path: Path, tensors: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors under the names that they had in the network itself."""
    odd = [str(name) for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(
            f"{path}: {', '.join(odd[:3])}{', …' if len(odd) > 3 else ''} among the weights are no tensors; give a "
            "file with a state dict in it"
        )
    named: dict[str, Tensor] = dict(tensors)
    while prefix := next((one for one in _PREFIXES if named and all(name.startswith(one) for name in named)), None):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named
