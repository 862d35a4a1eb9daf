"""What memory that is kept, in huge pages (`shortflow.memory`), saves of a training step: python -m benchmarks.kept

Two processes for each size, one as the commands of shortflow are and one in whose environment neither is on; their
steps take turns. Seconds, page faults of a step, and the most memory that the process had.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, tables
from benchmarks.measure import RESULTS, about, ratios, write
from benchmarks.subjects import QUICK, SIZES, Size, Subject

__all__ = ["main", "measured"]

FILE = RESULTS / "kept-cpu.json"
WARM = 3  # steps, after which what is kept is enough
OFF = {"THP_MEM_ALLOC_ENABLE": "0", "GLIBC_TUNABLES": ""}  # what the environment says is left alone
WAYS: dict[str, dict[str, str]] = {"as PyTorch has it": OFF, "kept, in huge pages": {}}
RUNS = {
    f"{name}, batches of {batch}": replace(SIZES[name], batch=batch)
    for name, batch in (("S/2", 8), ("S/2", 32), ("B/4", 16), ("B/4", 64))
}


def serve(size: Size) -> None:
    """Take a step for each line that comes in; answer with its seconds and faults, and the largest size in KiB."""
    subject = Subject(size, ("step",))
    for _ in sys.stdin:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        subject.step("step")
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        print(seconds, after.ru_minflt - before.ru_minflt, after.ru_maxrss, flush=True)


class Server:
    """A process that takes steps when it is asked to."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        free = {key: value for key, value in os.environ.items() if key not in OFF}
        words = [sys.executable, "-m", "benchmarks.kept", "--serve", name, "--threads", str(torch.get_num_threads())]
        self.process = subprocess.Popen(
            words, env=free | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return [float(word) for word in self.process.stdout.readline().split()]


@contextmanager
def served(name: str) -> Iterator[dict[str, Server]]:
    servers = {way: Server(name, environment) for way, environment in WAYS.items()}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.process.communicate()


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Of each way: its times, "faults" of a step, and "largest", the size of the process in bytes."""
    with served(name) as servers:
        for _ in range(WARM):
            for server in servers.values():
                server.step()
        answers: dict[str, list[list[float]]] = {way: [] for way in servers}
        for _ in range(rounds):
            for way, server in servers.items():
                answers[way].append(server.step())
    found = ratios({way: [each[0] for each in rows] for way, rows in answers.items()}, next(iter(WAYS)))
    return {
        way: found[way] | {"faults": sum(each[1] for each in rows) / rounds, "largest": 1024 * rows[-1][2]}
        for way, rows in answers.items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tiny network, as a test of the command; needs --out")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.serve is not None:
        return serve(QUICK if options.serve == "tiny" else RUNS[options.serve])
    if options.quick and options.out is None:
        parser.error("--quick measures nothing worth keeping; give --out, so that no results are replaced")
    head, rounds = about("python -m benchmarks.kept"), 1 if options.quick else options.rounds
    record = {
        "rounds": rounds,
        "sizes": {name: measured(name, rounds) for name in (["tiny"] if options.quick else RUNS)},
    }
    write(options.out or FILE, record, head)
    print(tables.kept({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
