"""Commands as the processes of a launcher (torchrun) run them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def launched(world: int, *arguments: object, script: Path | None = None) -> list[str]:
    """What the processes of a command, or of a script, say; they must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    begins = ["-m", "shortflow"] if script is None else [str(script)]
    running = [
        subprocess.Popen(
            [sys.executable, *begins, *map(str, arguments)],
            env={**shared, "WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=200)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n\n".join(text[-2000:] for text in said)
    return said
