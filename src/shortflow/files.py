"""Files that are either whole or not there: written beside their place, flushed to disk, then renamed.

A rename is on disk when its folder is, so folders are flushed too. What a killed process has left beside a place is
called `.writing-…`, and never anything else.
"""

import hashlib
import importlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "UNFINISHED",
    "alone",
    "atomic_path",
    "remove_unfinished",
    "set_aside",
    "sha256_of",
    "sync_file",
    "sync_folder",
    "write_atomic",
]

UNFINISHED = ".writing-"
_SAFETENSORS = r"\.tmp[0-9A-Za-z]{6}"  # safetensors writes beside the file that it was told to write


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A new, empty file beside `path` to write to. On success it replaces `path`; on an error it is removed.

    Without `durable` it is not waited for the disk: after a loss of power, not of the process, the file may be cut.
    Folders on the way are made. Permissions are those of any new file: what the umask leaves of 0666.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{path.name}")
    # `tempfile` makes files that only their owner can read; opened like this, the system applies the umask.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    permissions = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        if durable:
            sync_file(temporary)
        os.chmod(temporary, permissions)  # safetensors puts a file of its own in its place
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # which is what its reader has heard of
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[float]:
    """Within the context no other process of this machine is in that of the same path. Gives the seconds that were
    waited for that; `waiting` is called before there are any.

    It saves work and guarantees nothing: a disk that knows no locks, or that may not be written to, has none.
    """
    descriptor, waited = None, 0.0
    try:
        fcntl = importlib.import_module("fcntl")  # Windows has none
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            began = time.monotonic()
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            waited = time.monotonic() - began
    except (ImportError, OSError):
        pass
    try:
        yield waited
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # those who wait have it open
            os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk, where the system can be asked for it (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 (hex) of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename what is damaged to NAME.damaged, or NAME.damaged-2 and so on, where nobody looks for it; the new path."""
    aside, count = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.damaged-{count}")
    os.replace(path, aside)
    sync_folder(path.parent)
    return aside


def remove_unfinished(directory: Path) -> None:
    """Remove what a killed process was writing in `directory`. Nobody else may be writing there."""
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        if path.name.startswith(UNFINISHED) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(UNFINISHED) or re.fullmatch(_SAFETENSORS, path.name):
            path.unlink(missing_ok=True)
