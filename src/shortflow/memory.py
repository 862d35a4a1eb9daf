"""Memory of the processor that a process keeps, in huge pages: on Linux a step takes less time in it.

The tensors of a step come and go with it. The C library returns large ones to the system, and what it is given for the
next is made of fresh pages of 4 KiB, each of which costs a fault and a page of zeros. And a processor remembers where a
few thousand pages lie, fewer than a large matrix has. Pages of 2 MiB that stay end both.
"""

import ctypes
import os
from pathlib import Path

__all__ = ["keep_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt
_LARGEST = 2**25  # bytes of a block that is kept, the most that mallopt takes
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def keep_memory() -> None:
    """Keep what tensors give back, and ask for huge pages; before the first tensor, which decides about the pages.

    The commands call this. The process stays as large as it has been once. With another C library than that of GNU
    nothing happens, and what the environment says already stays: `GLIBC_TUNABLES`, `MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_` about what is kept, `THP_MEM_ALLOC_ENABLE` about the pages.
    """
    if not _is_glibc():
        return
    if not {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & {*os.environ}:
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, -1)  # never
    if _PAGES.is_file() and "[never]" not in _PAGES.read_text():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch with its first tensor


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):
        return False
