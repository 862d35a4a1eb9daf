"""Files that are either whole or not there: written beside their place, flushed to disk, then renamed."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "write_atomic"]


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A new, empty file beside `path` to write to. On success it replaces `path`; on an error it is removed.

    Without `durable` it is not waited for the disk: after a loss of power, not of the process, the file may be cut.
    Folders on the way are made. Permissions are those of any new file: what the umask leaves of 0666.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    # `tempfile` makes files that only their owner can read; opened like this, the system applies the umask.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    permissions = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, permissions)  # safetensors puts a file of its own in its place
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
