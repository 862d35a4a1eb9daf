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

__all__ = ["RunLock", "check_free", "held_by"]

NAME = ".lock"
_FAR = 2**30  # Windows lets nobody read the bytes that are locked; those of the holder stand before these
_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # to the file system
_ATTEMPTS = 10  # of a lock, in a fifth of a second


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


def held_by(directory: Path) -> dict[str, Any] | None:
    """Who holds a directory now: {"pid", "host", "since"}, as far as it is written down; None where nobody does.

    The directory is not taken from anybody. That it is free shows where its file can be locked for an instant, by a
    lock that many can have at a time; a run that begins in that instant tries again.
    """
    path = directory / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor, shared=True)
    except OSError as error:
        if error.errno not in (*_HELD, *_UNKNOWN):
            raise
        return _named(path) or {}  # without locks, the file says it, which whoever ends in order removes
    finally:
        os.close(descriptor)
    return None


def check_free(directory: Path) -> None:
    """Raise `CheckpointError`, as `RunLock`, if somebody holds the directory."""
    if held_by(directory) is not None:
        raise _refusal(directory / NAME)


def _held(path: Path) -> int:
    """The descriptor of the locked file at `path`."""
    attempt = 0
    while True:
        attempt += 1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # who had made the directory has given it back since, and removed it
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in _HELD and attempt < _ATTEMPTS:
                os.close(descriptor)
                time.sleep(0.02)  # it may be that somebody only looks (`held_by`)
                continue
            if error.errno not in _UNKNOWN:
                os.close(descriptor)
                if error.errno in _HELD:
                    raise _refusal(path) from error
                raise
            warnings.warn(
                "this file system has no locks, so a second run in the directory is not noticed", stacklevel=4
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # whoever held it has removed it since it was opened


def _refusal(path: Path) -> CheckpointError:
    """What whoever wants the directory is told. The holder may be about to write down who it is."""
    for _ in range(20):
        found = _named(path)
        if found is not None:
            break
        time.sleep(0.02)
    else:
        found = {}
    who = f"process {found['pid']} on {found['host']} (since {found['since']})" if found else "another process"
    return CheckpointError(
        f"{path.parent} is in use: a run is going on there in {who}. Wait for it, or stop it (on SIGTERM it saves its "
        "state); or use another directory"
    )


def _lock(descriptor: int, shared: bool = False) -> None:
    """Lock an open file without waiting.

    Raises:
        OSError: with a number of `_HELD` if it is locked, of `_UNKNOWN` if the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        import msvcrt

        windows: Any = msvcrt
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        windows.locking(descriptor, windows.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _named(path: Path) -> dict[str, Any] | None:
    """What the holder has written down of itself; None where it has not yet."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if {"pid", "host", "since"} <= found.keys():
            return dict(found)
    return None


def _release(descriptor: int, path: Path, made: bool, process: int) -> None:
    mine = os.getpid() == process  # a fork has a copy of the descriptor, not the lock
    remove = mine and os.name != "nt"
    with contextlib.suppress(OSError):
        if remove:  # while it is still held: afterwards it may be another's
            path.unlink(missing_ok=True)
        if remove and made:
            path.parent.rmdir()  # if nothing has come into it
    os.close(descriptor)
