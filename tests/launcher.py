"""Commands as the processes of a launcher (torchrun) run them."""

import os
import socket
import subprocess
import sys


def launched(world: int, *arguments: object) -> list[str]:
    """What the processes say; they must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "shortflow", *map(str, arguments)],
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
