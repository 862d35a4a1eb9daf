"""What samples are told by where that is no class: a vector or a sequence of tokens for each, in memory or
memory-mapped.

    FOLDER/conditions.npy           float16 or float32 (n, d): vectors; (n, k, d): sequences of k tokens
    FOLDER/conditions.safetensors   the same, called conditions; and mask, bool (n, k): the tokens that are there
    FOLDER/conditions.txt the images of FOLDER that the rows belong to: a file name a line, in the order of the rows

One of the first two, with the third: rows go by names, because an order that is off by one trains a wrong model without
    a word. Padding is garbage in a file and NaN in a batch, see `shortflow.typing.Condition`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shortflow.arrays import Stacked, open_array
from shortflow.errors import DataError
from shortflow.files import atomic_path, write_atomic

__all__ = [
    "CONDITIONS",
    "CONDITION_FILES",
    "Conditions",
    "load_conditions",
    "open_conditions",
    "save_conditions",
    "write_conditions",
]

CONDITIONS = "conditions.safetensors"
_ARRAYS, _NAMES = ("conditions.npy", CONDITIONS), "conditions.txt"
CONDITION_FILES = (*_ARRAYS, _NAMES)
_AT_ONCE = 2**22  # numbers that are looked at together
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """A vector or a sequence for each sample.

    Attributes:
        values: float16 or float32, (n, d) or (n, k, d); may be memory-mapped.
        mask: bool (n, k), the tokens of sequences that are there, at least one in each row; None: all. What the others
            hold does not matter.
        index: int64, the row of each sample; None: sample i has row i.

    Raises:
        DataError: for another type or shape, for a row without a token, and for numbers that are not finite; those of a
            memory-mapped array are looked at as they are read.
    """

    # Wide on purpose: what a user gets wrong here is told by `__post_init__`, in words.
    values: Shaped[np.ndarray, "..."] | Stacked
    mask: Shaped[np.ndarray, "..."] | None = None
    index: Int[np.ndarray, "m"] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.values.shape, self.values.dtype
        if dtype not in (np.float16, np.float32) or len(shape) not in (2, 3) or self.values.size == 0:
            raise DataError(
                f"conditions must be vectors (n, d) or sequences (n, k, d) in float16 or float32, got {dtype} of shape "
                f"{shape}"
            )
        if self.mask is not None:
            if len(shape) != 3 or self.mask.dtype != np.bool_ or self.mask.shape != shape[:2]:
                raise DataError(
                    f"the mask of conditions {shape} must be bool of shape {shape[:2]}, one for each token of "
                    f"sequences, got {self.mask.dtype} of shape {self.mask.shape}"
                )
            empty = np.flatnonzero(~self.mask.any(axis=1))
            if len(empty):
                raise DataError(
                    f"{len(empty)} conditions have no token (row {empty[0]} is the first); give what is empty a "
                    "token of its own, as text encoders do"
                )
        if self.index is None and isinstance(self.values, np.ndarray) and not isinstance(self.values, np.memmap):
            rows = max(1, _AT_ONCE // (self.values.size // shape[0]))
            for first in range(0, shape[0], rows):
                self.take(np.arange(first, min(first + rows, shape[0])))

    def __len__(self) -> int:
        return len(self.values if self.index is None else self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one: (d,) of a vector, (k, d) of a sequence of up to k tokens."""
        return self.values.shape[1:]

    def take(self, rows: Int[np.ndarray, "b"]) -> Float32[np.ndarray, "b ..."]:
        """Those of the samples at `rows`, in a new array; tokens that are not there are NaN.

        Raises:
            DataError: if a number that is there is not finite.
        """
        at = rows if self.index is None else self.index[rows]
        found = np.array(self.values[at], dtype=np.float32)
        there = np.ones(found.shape[:-1], np.bool_) if self.mask is None else np.asarray(self.mask[at])
        bad = ~(np.isfinite(found).all(axis=-1) | ~there).reshape(len(found), -1).all(axis=1)
        if bad.any():
            raise DataError(
                f"the condition of sample {int(np.asarray(rows)[bad.argmax()])} is not finite; mend the numbers, or "
                "leave the sample out"
            )
        found[~there] = np.nan
        return found

    def subset(self, rows: Shaped[np.ndarray, "..."] | slice) -> "Conditions":
        """Those of the samples at `rows` (indices, a mask or a slice); nothing is copied."""
        index = np.arange(len(self)) if self.index is None else self.index
        return replace(self, index=index[rows])


def _joined(parts: Sequence[Conditions]) -> Conditions:
    """Those of several sets of samples, one after the other."""
    if len(parts) == 1:
        return parts[0]
    if len({(part.shape, part.values.dtype) for part in parts}) > 1:
        raise DataError(f"splits have conditions of different kinds: {', '.join(str(part.shape) for part in parts)}")
    rows = [np.arange(len(part)) if part.index is None else part.index for part in parts]
    starts = np.cumsum([0, *(len(part.values) for part in parts)])
    index = np.concatenate([start + each for start, each in zip(starts[:-1], rows, strict=True)])
    masks = [np.ones(part.values.shape[:2], np.bool_) if part.mask is None else part.mask for part in parts]
    mask = np.concatenate(masks) if any(part.mask is not None for part in parts) else None
    values = Stacked(tuple(part.values for part in parts if isinstance(part.values, np.ndarray)))
    return Conditions(values=values, mask=mask, index=index)


# ---------------------------------------------------------------------------------------------------------------- files


def open_conditions(path: Path) -> Conditions:
    """The conditions of a .npy or .safetensors file, read where they lie. A single vector is one condition.

    Raises:
        DataError: if it holds none; names the file.
    """
    mask = None
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(str(path), "np") as opened:
                names = set(opened.keys())
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: cannot be read ({error}); write or fetch the file again") from error
        values = open_array(path, "conditions" if "conditions" in names else None)
        mask = open_array(path, "mask") if "mask" in names else None
    elif not path.is_file():
        raise DataError(f"{path}: there is no such file; give a .npy or .safetensors file of conditions")
    else:
        values = open_array(path)
    try:
        return Conditions(values=values[None] if values.ndim == 1 else values, mask=mask)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def load_conditions(parts: Sequence[tuple[Path, Sequence[str]]]) -> Conditions | None:
    """The conditions of images, given (folder, names of its images in their order) of every part; None if there are
    none.

    Raises:
        DataError: if files are damaged or missing, or names and images do not belong together one to one.
    """
    found = [_of_folder(folder, names) for folder, names in parts]
    there = [each for each in found if each is not None]
    if there and len(there) < len(found):
        lacking = ", ".join(str(folder) for (folder, _), each in zip(parts, found, strict=True) if each is None)
        raise DataError(f"{lacking}: no conditions, but other splits have some; add them, or remove the others")
    return _joined(there) if there else None


def _of_folder(folder: Path, names: Sequence[str]) -> Conditions | None:
    files = [folder / name for name in _ARRAYS if (folder / name).is_file()]
    listing = folder / _NAMES
    if not files and not listing.is_file():
        return None
    if len(files) != 1 or not listing.is_file():
        raise DataError(
            f"{folder}: conditions are one of {' and '.join(_ARRAYS)}, and {_NAMES}, which says the image of each row; "
            f"there are {', '.join(file.name for file in (*files, listing) if file.is_file())} "
            "(shortflow.data.write_conditions writes both)"
        )
    conditions = open_conditions(files[0])
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listing}: cannot be read ({error}); write it again as UTF-8") from error
    if len(lines) != len(conditions):
        raise DataError(f"{listing} has {len(lines)} lines and {files[0].name} {len(conditions)} rows; they must agree")
    row = {name: k for k, name in enumerate(lines)}
    if len(row) < len(lines):
        twice = next(name for k, name in enumerate(lines) if row[name] != k)
        raise DataError(f"{listing}: {twice!r} is there twice; give each image one row")
    lacking, unknown = [name for name in names if name not in row], sorted(row.keys() - set(names))
    for which, what in ((lacking, "images have no condition"), (unknown, "names are of no image there")):
        if which:
            more = f" and {len(which) - _SHOWN} more" if len(which) > _SHOWN else ""
            raise DataError(
                f"{listing}: {len(which)} {what}: {', '.join(which[:_SHOWN])}{more}; names are those of the files in "
                f"{folder}, with their endings"
            )
    return replace(conditions, index=np.array([row[name] for name in names], dtype=np.int64))


def save_conditions(conditions: Conditions, path: Path) -> None:
    """Write the conditions of all samples, in their order, as `open_conditions` reads them."""
    rows = slice(None) if conditions.index is None else conditions.index
    arrays = {"conditions": np.ascontiguousarray(conditions.values[rows])}
    arrays |= {} if conditions.mask is None else {"mask": np.ascontiguousarray(conditions.mask[rows])}
    with atomic_path(path) as temporary:
        save_file(arrays, str(temporary))


def write_conditions(
    folder: Path, names: Sequence[str], values: Shaped[np.ndarray, "..."], mask: Bool[np.ndarray, "n k"] | None = None
) -> None:
    """Write the conditions of the images `names` of a folder, in their order, beside them (see the module).

    Raises:
        DataError: if there is no such folder, or they do not fit each other or the images that are there.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    conditions = Conditions(values=values, mask=mask)
    if len(names) != len(conditions):
        raise DataError(f"{folder}: {len(names)} names for {len(conditions)} conditions; give each image one")
    strange = [name for name in names if not (folder / name).is_file() or len(Path(name).parts) != 1]
    if strange:
        raise DataError(f"{folder}: there is no image {strange[0]!r}; names are those of files in the folder")
    save_conditions(conditions, folder / CONDITIONS)
    write_atomic(folder / _NAMES, "".join(f"{name}\n" for name in names))
    (folder / _ARRAYS[0]).unlink(missing_ok=True)
