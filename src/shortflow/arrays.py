"""Arrays in files, read where they lie: memory-mapped, so that one larger than memory can be used like any other.

NAME.npy           a NumPy array in C order
NAME.safetensors   a tensor of the file; the only one, or the one named by a key
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from shortflow.errors import DataError

__all__ = ["Stacked", "npy_header", "open_array"]

_TYPES = {"BOOL": "?", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_LONGEST = 100_000_000  # bytes of a safetensors header, as in the format's own reader
_REMEDY = "write or fetch the file again"


def open_array(path: Path, key: str | None = None) -> Shaped[np.ndarray, "..."]:
    """The array in a .npy or .safetensors file, read-only. Pages are read when they are touched, and may be let go.

    Args:
        key: the tensor of a .safetensors file; may be left out if there is only one.

    Raises:
        DataError: names the file, and whether it is missing, damaged, too short, or of a kind that cannot be mapped.
    """
    try:
        if path.suffix == ".safetensors":
            dtype, shape, offset = _tensor(path, key)
            return np.memmap(path, dtype, "r", offset, shape)
        if path.suffix != ".npy":
            raise DataError(f"{path}: only .npy and .safetensors files can be memory-mapped; save the array as .npy")
        if key is not None:
            raise DataError(f"{path}: a .npy file holds one array and has no key {key!r}; leave it out")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be mapped ({error}); {_REMEDY}") from error


@dataclass(frozen=True, eq=False)
class Stacked:
    """Arrays one after the other along their first axis, as one. What is asked for is gathered from where it lies.

    Args:
        parts: arrays of one type whose shapes agree but for the first axis, such as memory-mapped shards.

    Raises:
        DataError: if there is none, or they do not fit each other.
    """

    parts: tuple[Shaped[np.ndarray, "..."], ...]
    _ends: Int64[np.ndarray, "p"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kinds = {(part.dtype, part.shape[1:]) for part in self.parts}
        if len(kinds) != 1:
            raise DataError(f"arrays of one type and shape can be stacked, got {sorted(map(str, kinds)) or 'none'}")
        object.__setattr__(self, "_ends", np.cumsum([len(part) for part in self.parts], dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def ndim(self) -> int:
        return self.parts[0].ndim

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, key: Any) -> Shaped[np.ndarray, "..."]:
        """The rows of the first index, a slice, a mask or an array of numbers, in a new array.

        Further indices are those of NumPy, with an array's entries going with the rows: [rows, which] is, for each k,
        the entry which[k] of the row rows[k].
        """
        first, *rest = key if isinstance(key, tuple) else (key,)
        rows = np.arange(len(self))[first]
        if rows.ndim != 1:
            raise IndexError("give rows as a slice, a mask or an array of numbers")
        of = np.searchsorted(self._ends, rows, side="right")
        found: Any = None
        for number in np.unique(of) if len(rows) else [0]:
            here = of == number
            part = self.parts[number]
            local = rows[here] - (self._ends[number] - len(part))
            picked = part[(local, *(each[here] if isinstance(each, np.ndarray) else each for each in rest))]
            if found is None:
                found = np.empty((len(rows), *picked.shape[1:]), self.dtype)
            found[here] = picked
        return found


def npy_header(dtype: Any, shape: Sequence[int]) -> bytes:
    """What a .npy file of such an array in C order starts with; its rows follow, one after the other."""
    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def _tensor(path: Path, key: str | None) -> tuple[str, tuple[int, ...], int]:
    """Type, shape and offset of a tensor: the file is 8 bytes n (little-endian), n bytes of JSON, then the tensors."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST:
            raise ValueError("it does not start like a safetensors file")
        header = {name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"}
    if key is None and len(header) != 1:
        raise DataError(f"{path}: holds {len(header)} tensors ({', '.join(sorted(header))}); give the key of one")
    name = next(iter(header)) if key is None else key
    if name not in header:
        raise DataError(f"{path}: there is no tensor {name!r}; there are {', '.join(sorted(header))}")
    entry, shape = header[name], tuple(int(side) for side in header[name]["shape"])
    if entry["dtype"] not in _TYPES:
        raise DataError(f"{path}: {name} is {entry['dtype']}, which NumPy does not have; save it as F32")
    first, last = entry["data_offsets"]
    dtype = _TYPES[entry["dtype"]]
    if last - first != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{name} has {last - first} bytes, which is no {dtype} of shape {shape}")
    if (size := path.stat().st_size) < 8 + length + last:
        raise ValueError(f"it ends after {size} of {8 + length + last} bytes")
    return dtype, shape, 8 + length + first
