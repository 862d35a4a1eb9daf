"""One process to a run directory: a lock that the system takes back with the process, however that ends."""

import contextlib
import errno
import json
import os
import socket
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

from shortflow.errors import CheckpointError

__all__ = ["RunLock"]

NAME = ".lock"
_FAR = 2**30  # Windows lets nobody read the bytes that are locked; those of the holder stand before these
_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # to the file system


class RunLock:
    """Holds `directory`, which is made if it is not there, until `release`, or the end of the process.

    RUN/.lock is there while it is held, and names the holder; the file alone locks nothing, so one that a killed
    process has left is in nobody's way. Held by this process, it is held against this process as well.

    Args:
        wanted: whether to hold anything: of the processes of a run, the first one does.

    Raises:
        CheckpointError: if another run holds it, naming its process and host.
    """

    def __init__(self, directory: Path, *, wanted: bool = True) -> None:
        if not wanted:
            self._finalizer = weakref.finalize(self, int)
            return
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / NAME
        descriptor = _held(path)
        with contextlib.suppress(OSError):  # on a full disk the holder has no name
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder).encode())
        # An iterator that is never begun has no moment at which it ends; the collector finds its lock.
        self._finalizer = weakref.finalize(self, _release, descriptor, path, made, os.getpid())

    def release(self) -> None:
        """Give the directory back; once is enough."""
        self._finalizer()


def _held(path: Path) -> int:
    """The descriptor of the locked file at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _HELD:
                raise CheckpointError(
                    f"{path.parent} is in use: a run is going on there in {_holder(path)}. Wait for it, or stop it "
                    "(on SIGTERM it saves its state); or use another directory"
                ) from error
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # whoever held it has removed it since it was opened


def _lock(descriptor: int) -> None:
    """Lock an open file without waiting. Raises `OSError` with a number of `_HELD` if it is locked."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        windows: Any = msvcrt
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        windows.locking(descriptor, windows.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        warnings.warn("this file system has no locks, so a second run in the directory is not noticed", stacklevel=5)


def _holder(path: Path) -> str:
    """Who holds the lock, in words. The holder may be about to write it down."""
    for _ in range(20):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_text(encoding="utf-8"))
            return f"process {found['pid']} on {found['host']} (since {found['since']})"
        time.sleep(0.02)
    return "another process"


def _release(descriptor: int, path: Path, made: bool, process: int) -> None:
    mine = os.getpid() == process  # a fork has a copy of the descriptor, not the lock
    remove = mine and os.name != "nt"
    with contextlib.suppress(OSError):
        if remove:  # while it is still held: afterwards it may be another's
            path.unlink(missing_ok=True)
        if remove and made:
            path.parent.rmdir()  # if nothing has come into it
    os.close(descriptor)
