"""A full disk is told with what is needed and what is free, before anything is written where that can be known."""

import errno
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from shortflow.errors import CheckpointError

__all__ = ["bytes_of", "room_for", "told_when_full"]

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SLACK = 2**20  # headers, and the blocks in which a disk gives out space


def bytes_of(tensors: nn.Module | Mapping[str, Tensor]) -> int:
    """The bytes of the tensors, or of a module's state."""
    found = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    return sum(value.numel() * value.element_size() for value in found.values())


@contextmanager
def room_for(what: str, directory: Path, needed: int, before: str) -> Iterator[None]:
    """Write `needed` bytes to `directory` inside.

    Args:
        what: is written, and `before`: what stays whole where it cannot be; both for the message.

    Raises:
        CheckpointError: if there is less space, or the disk is full nevertheless (others write too, and quotas are not
            told beforehand).
    """
    if _free(directory) < needed + _SLACK:
        raise CheckpointError(_full(what, directory, needed, before))
    with told_when_full(what, directory, needed, lambda: before):
        yield


@contextmanager
def told_when_full(what: str, directory: Path, needed: int, before: Callable[[], str]) -> Iterator[None]:
    """Write `needed` bytes to `directory` inside, and say it as `room_for` does if the disk is full.

    Nothing is looked up beforehand, so it costs nothing where there is space.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise CheckpointError(_full(what, directory, needed, before())) from error


def _full(what: str, directory: Path, needed: int, before: str) -> str:
    wanted, free = _mebibytes(needed + _SLACK), _mebibytes(_free(directory))
    return (
        f"the disk is full: {what} needs {wanted} MiB in {directory}, and {free} MiB are free. {before}. "
        "Make space, or keep fewer states (train.keep), and go on with --resume"
    )


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.1f}"


def _is_full(error: OSError | SafetensorError) -> bool:
    """safetensors gives the number of the system's error in its text only."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    found = re.search(r"(?:os error |Os \{ code: )(\d+)", str(error))
    return found is not None and int(found[1]) in _FULL
