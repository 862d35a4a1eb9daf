"""The IDX format of MNIST and Fashion-MNIST: 00 00 08 d, d sizes as big-endian uint32, then the bytes in C order.

08 says unsigned byte. Files may be gzipped. Source: LeCun, Cortes & Burges, "The MNIST database".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from shortflow.errors import DataError

__all__ = ["read_idx", "read_pair"]

_REMEDY = "fetch the file again"


def read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """The array of unsigned bytes with `ndim` axes that an IDX file holds; gzipped if the name ends in .gz.

    Raises:
        DataError: names the file, and whether it is damaged, of another kind, too short or too long.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    header = 4 + 4 * ndim
    if raw[:4] != bytes((0, 0, 8, ndim)):
        raise DataError(
            f"{path}: starts with {raw[:4].hex(' ')}, but an IDX file of bytes with {ndim} axes starts with "
            f"00 00 08 {ndim:02x}; {_REMEDY}"
        )
    if len(raw) < header:
        raise DataError(f"{path}: ends within its header, after {len(raw)} of {header} bytes; {_REMEDY}")
    shape = struct.unpack(f">{ndim}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path}: the header announces {'×'.join(map(str, shape))} = {math.prod(shape)} bytes, "
            f"but {len(raw) - header} follow; {_REMEDY}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy()


def read_pair(
    images: Path, labels: Path, num_classes: int
) -> tuple[UInt8[np.ndarray, "n 1 h w"], UInt8[np.ndarray, "n"]]:
    """Grey images (n, 1, h, w) and their labels (n,).

    Raises:
        DataError: if a file is damaged, the two do not belong together, or a label is not in 0…num_classes−1.
    """
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise DataError(f"{images} holds {len(x)} images, but {labels.name} {len(y)} labels; {_REMEDY}")
    if len(y) > 0 and y.max() >= num_classes:
        raise DataError(f"{labels}: label {y.max()} is not in 0…{num_classes - 1}; {_REMEDY}")
    return x[:, None], y
