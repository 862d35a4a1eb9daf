"""Files as values: headers, records, pictures, arrays, JSON; and what goes wrong with each, in a sentence."""

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from shortflow.errors import CheckpointError, ConfigError, ShortflowError
from shortflow.files import sha256_of

__all__ = [
    "Faults",
    "Header",
    "is_map",
    "listed",
    "read_arrays",
    "read_header",
    "read_json",
    "read_lines",
    "read_png",
    "sums",
]

_LARGEST = 2**26  # bytes of a JSON file
_LARGEST_PICTURE = 2**24
_LONGEST = 2**29  # bytes of a record


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a model file says of itself.

    Attributes:
        description: format, run, data, images, step, and what else training has written.
        parameters: numbers in it.
        total: the SHA-256 over weights and description that it was written with; None in files of earlier versions.
    """

    description: Mapping[str, Any]
    parameters: int
    total: str | None


@dataclass
class Faults:
    """Sentences on what cannot be read."""

    found: list[str] = field(default_factory=list)

    def read(self, what: Any, *arguments: Any) -> Any:
        """what(*arguments); None, and a sentence, where that fails."""
        try:
            return what(*arguments)
        except (ShortflowError, OSError) as error:
            text = " ".join(str(error).split())
            self.found.append(text if len(text) <= 400 else f"{text[:400]} …")
            return None


def read_header(path: Path) -> Header | None:
    """The header of a safetensors file, as `shortflow.hub.read_header` reads it, and how many numbers there are."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "np") as file:
            text = (file.metadata() or {}).get("shortflow")
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is no safetensors file, or only a part of one ({error})") from error
    description = _parsed(text.encode(), path.name) if text is not None else None
    if not isinstance(description, dict):
        raise CheckpointError(f"{path.name} does not say what it is: no shortflow model, or a damaged one")
    total = description.pop("sha256", None)
    return Header(
        description=description, parameters=sum(map(math.prod, shapes)), total=None if total is None else str(total)
    )


def read_lines(path: Path) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """The whole lines of a record, and how many make no sense. What stands behind the last newline is being written."""
    found, damaged = [], 0
    try:
        if path.stat().st_size > _LONGEST:
            return (), 0
        rows = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return (), 0
    for row in rows:
        line = None
        with suppress(ValueError, RecursionError):
            line = json.loads(row)
        if is_map(line) and all(type(line.get(name)) is int and line[name] > 0 for name in ("step", "images")):
            found.append(line)
        else:
            damaged += 1
    return tuple(found), damaged


def read_png(path: Path) -> bytes:
    """A PNG file, as it is, if all of it is there."""
    try:
        if path.stat().st_size > _LARGEST_PICTURE:
            raise ConfigError(f"{path.name} is larger than {_LARGEST_PICTURE >> 20} MiB and is left out")
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except FileNotFoundError as error:
        raise ConfigError(f"{path.name} is not there, though it is named; draw it again") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path.name} is no PNG file, or only a part of one, and is left out") from error
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, of finite numbers."""
    try:
        if path.stat().st_size > _LARGEST_PICTURE:
            raise ConfigError(f"{path.name} is larger than {_LARGEST_PICTURE >> 20} MiB and is left out")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in file.files}
    except ConfigError:
        raise
    except Exception as error:  # a damaged zip fails in many ways
        raise ConfigError(f"{path.name} holds no arrays that can be read, and is left out; draw it again") from error
    return {name: array for name, array in arrays.items() if np.isfinite(array).all()}


def sums(directory: Path, names: tuple[str, ...], faults: Faults) -> Iterator[tuple[str, int, str]]:
    """Size and SHA-256 of the files that are there."""
    for name in names:
        if (directory / name).is_file():
            found = faults.read(_size_and_sum, directory / name)
            if found is not None:
                yield (name, *found)


def _size_and_sum(path: Path) -> tuple[int, str]:
    return path.stat().st_size, sha256_of(path)


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        ConfigError: if it is none, or too large.
    """
    if path.stat().st_size > _LARGEST:
        raise ConfigError(f"{path.name} is larger than {_LARGEST >> 20} MiB; it is no file of this kind")
    return _parsed(path.read_bytes(), path.name)


def _parsed(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} cannot be read, it is damaged or half written ({error})") from error


def listed(value: Any) -> list[Any]:
    """A value that is a list; no items where it is none."""
    return value if isinstance(value, list) else []


def is_map(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
