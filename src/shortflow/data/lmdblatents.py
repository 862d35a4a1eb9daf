"""Latents that other repositories have cached with LMDB: keys "0", "1", …, and "num_samples".

The value of a key is a pickled dictionary: `moments` and `moments_flip`, arrays or tensors (2c, h, w) with the mean and
the logarithm of the variance of an image and of its mirror, one after the other along the channels; and `label`. Other
entries are left alone. This is what zhuyu-cs/MeanFlow and EDAPINENUT/ExplicitShortCut write.

A pickle is a program, and the usual way to open one runs it. Here it is read by an unpickler that knows dictionaries,
lists, texts and numbers, and of everything else only the few names with which NumPy and torch write arrays, in whose
place stand functions of this module that copy bytes into an array of floats. Any other name ends the reading before
anything was called. The package lmdb itself reads the file by pointers: take such files from whom you trust.
"""

import importlib
import importlib.util
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from shortflow.errors import DataError

__all__ = ["LmdbLatents", "entry", "is_lmdb", "open_lmdb", "unpickled"]

_KINDS = {"f2": np.float16, "f4": np.float32, "f8": np.float64, "i4": np.int32, "i8": np.int64}
_LARGEST = 2**26  # numbers of an array
_LONGEST = 2**28  # bytes of an entry
_LOG_VARIANCE = (-30.0, 20.0)  # where diffusers cuts it


# ------------------------------------------------------------------------------------------------------------- pickles


class _Array:
    """An array of NumPy on its way: made empty, then given its state."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _filled(content, dtype, shape, "F" if fortran else "C")


class _Dtype:
    """A type of numbers, by its name; the order of its bytes comes with its state."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in _KINDS:
            raise pickle.UnpicklingError(f"numbers of the type {name!r:.40}")
        self.kind, self.big = name, False

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise pickle.UnpicklingError("numbers with fields")
        self.big = state[1] == ">"


def _filled(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not (isinstance(dtype, _Dtype) and isinstance(shape, tuple) and isinstance(content, bytes | bytearray)):
        raise pickle.UnpicklingError("an array of objects")
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) > _LARGEST:
        raise pickle.UnpicklingError(f"an array of shape {shape!r:.80}")
    flat = np.frombuffer(content, np.dtype(_KINDS[dtype.kind]).newbyteorder(">" if dtype.big else "<"))
    if order not in ("C", "F"):
        raise pickle.UnpicklingError(f"an array in the order {order!r:.20}")
    return flat.reshape(shape, order=order).astype(_KINDS[dtype.kind])


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _filled(content, dtype, shape, order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _filled(content, dtype, (1,), "C")[0].item()


def _storage(content: Any) -> Any:
    """The numbers of a tensor, which torch reads with an unpickler of this kind (`weights_only`)."""
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("a tensor without content")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    flat = torch.tensor([], dtype=storage.dtype).set_(storage)
    if math.prod(size) > _LARGEST or len(size) != len(stride) or offset < 0 or any(step < 0 for step in stride):
        raise pickle.UnpicklingError(f"a tensor of shape {size!r:.80}")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(flat):
        raise pickle.UnpicklingError("a tensor that is larger than its content")
    value = flat.as_strided(size, stride, offset).clone()
    return (value.float() if value.is_floating_point() else value).numpy()


def _latin(text: Any, name: Any) -> bytes:
    """Bytes, as the oldest pickles write them."""
    if not isinstance(text, str) or name not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in another encoding")
    return text.encode("latin-1")


def _nothing(*_: Any) -> dict[str, Any]:
    """Hooks of a tensor: an empty dictionary."""
    return {}


class _Kind:
    """Stands for the class ndarray, which is named and never called."""


_KNOWN: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Kind,
    ("_codecs", "encode"): _latin,
    ("numpy", "dtype"): _Dtype,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): _nothing,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array, and was not called")
        return _KNOWN[module, name]


def unpickled(content: bytes) -> Any:
    """What a pickle holds, if it is an array, or a dictionary of arrays, texts and numbers; tensors become arrays.

    Raises:
        DataError: if there is anything else in it. Nothing was executed.
    """
    if len(content) > _LONGEST:
        raise DataError(f"an entry of {len(content):,} bytes is no latent")
    try:
        return _resolved(_Unpickler(io.BytesIO(content)).load())
    except Exception as error:  # whatever a hostile program makes of the few functions that it can reach
        raise DataError(f"a pickle that is no plain array: {str(error)[:200] or type(error).__name__}") from error


def _resolved(value: Any) -> Any:
    """With arrays in place of what stood for them, at the top and in a dictionary there: latents need no more."""
    if isinstance(value, dict):
        return {key: each.value if isinstance(each, _Array) else each for key, each in value.items()}
    return value.value if isinstance(value, _Array) else value


# -------------------------------------------------------------------------------------------------------------- entries


def entry(content: bytes) -> tuple[Float32[np.ndarray, "2 2 c h w"], int]:
    """Moments as a store has them (image and mirror, mean and standard deviation), and the label of an entry.

    Raises:
        DataError: if the entry is something else.
    """
    found = unpickled(content)
    if not isinstance(found, dict) or not {"moments", "moments_flip", "label"} <= set(found):
        keys = ", ".join(map(str, list(found)[:8])) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"an entry with {keys}, where moments, moments_flip and label are expected")
    sides, label = [found["moments"], found["moments_flip"]], found["label"]
    if isinstance(label, np.ndarray) and label.size == 1:
        label = label.item()
    fine = all(isinstance(side, np.ndarray) and side.ndim == 3 and side.dtype.kind == "f" for side in sides)
    if not fine or sides[0].shape != sides[1].shape or sides[0].shape[0] % 2 or not isinstance(label, int) or label < 0:
        shapes = [getattr(side, "shape", type(side).__name__) for side in sides]
        raise DataError(f"moments of shape {shapes[0]} and {shapes[1]} and the label {label!r:.40}")
    both = np.stack(sides).astype(np.float32)
    mean, log_variance = np.split(both, 2, axis=1)
    return np.stack([mean, np.exp(0.5 * np.clip(log_variance, *_LOG_VARIANCE))], axis=1), label


@dataclass(frozen=True, kw_only=True, eq=False)
class LmdbLatents:
    """The latents of an LMDB, read by their numbers.

    Attributes:
        path: where it is.
        get: key ↦ value, or None.
        count: of the latents.
    """

    path: Path
    get: Callable[[bytes], bytes | None]
    count: int

    def read(self, k: int) -> tuple[Float32[np.ndarray, "2 2 c h w"], int]:
        """`entry` of latent k.

        Raises:
            DataError: if there is none, or it is something else.
        """
        content = self.get(str(k).encode())
        if content is None:
            raise DataError(f"{self.path}: there is no entry {k} of {self.count}; the caching was interrupted")
        try:
            return entry(content)
        except DataError as error:
            raise DataError(f"{self.path}: entry {k}: {error}") from error


def is_lmdb(path: Path) -> bool:
    """Whether the path is a folder with an LMDB in it, or the file of one."""
    return (path / "data.mdb").is_file() or (path.is_file() and path.suffix in (".mdb", ".lmdb"))


def open_lmdb(path: Path) -> LmdbLatents:
    """The latents of an LMDB, opened for reading.

    Raises:
        DataError: if the package lmdb is not installed, or the file is none of latents.
    """
    if importlib.util.find_spec("lmdb") is None:
        raise DataError(f"{path} is an LMDB, and the package that reads it is not installed: pip install lmdb")
    lmdb: Any = importlib.import_module("lmdb")
    try:
        opened = lmdb.open(
            str(path), readonly=True, lock=False, readahead=False, meminit=False, subdir=path.is_dir(), create=False
        )
    except lmdb.Error as error:
        raise DataError(f"{path}: no LMDB, or only a part of one ({error}); copy it again") from error

    def get(key: bytes) -> bytes | None:
        with opened.begin() as transaction:
            return transaction.get(key)

    counted = get(b"num_samples")
    if counted is None or not counted.isdigit() or len(counted) > 12:
        raise DataError(
            f"{path}: no LMDB of latents: its key num_samples is {counted!r:.40}; latents have the keys 0, 1, … and "
            "num_samples (images in an LMDB have to be unpacked first)"
        )
    return LmdbLatents(path=path, get=get, count=int(counted))
