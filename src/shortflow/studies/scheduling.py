"""Who makes the cells: workers in processes of this machine, or jobs of a cluster, kept alive until nothing is left.

The scheduler gives no orders. Workers find what is to be made in the directory and hold it by locks, so a scheduler
may be killed, several may work on the same study, on one machine or many, and a worker that dies is replaced.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from shortflow.errors import ConfigError, ShortflowError
from shortflow.studies.cells import Cell, forget_failures, look
from shortflow.studies.planning import StudyPlan, begin, read_plan
from shortflow.studies.results import write_results
from shortflow.studies.reusing import check_sources
from shortflow.studies.study import Study, load_study, study_of
from shortflow.typing import Report

__all__ = ["Launcher", "LocalWorkers", "SlurmWorkers", "State", "Worker", "compare", "threads_of"]

POLL = 1.0  # seconds between two looks
GRACE = 60.0  # seconds in which a worker that is asked to stop saves its state
FRUITLESS = 3  # workers for each job that end without anything having changed
GENERIC = ("timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "name")


@dataclass(frozen=True, kw_only=True)
class State:
    """A study at a moment: its plan, how every cell is, and how many workers of this scheduler are alive."""

    plan: StudyPlan
    cells: Sequence[Cell]
    workers: int

    @property
    def finished(self) -> bool:
        """Whether nothing is left to make."""
        return all(cell.phase in ("done", "failed") for cell in self.cells)


@runtime_checkable
class Worker(Protocol):
    """A process somewhere that makes cells."""

    def ended(self) -> bool: ...

    def stop(self) -> None:
        """Ask it to save and end; do not wait."""
        ...

    def kill(self) -> None: ...

    def said(self) -> str:
        """The end of what it has written outside of the logs of cells."""
        ...


@runtime_checkable
class Launcher(Protocol):
    """What starts workers."""

    def start(self, number: int) -> Worker: ...


def compare(
    study: Study | Mapping[str, Any] | str | None,
    out: Path | str,
    *,
    jobs: int = 1,
    threads: int | None = None,
    launcher: Launcher | None = None,
    imports: Sequence[Path] = (),
    sources: Sequence[Path] = (),
    poll: float = POLL,
    report: Report | None = None,
) -> Iterator[State]:
    """Make what is missing of a study in `out`, yielding how it stands about every second; ends with the results there.

    OUT/results.json and OUT/table.md are written whenever a cell has ended; the schema is in docs/compare.md. Closing
    the iterator stops the workers, which save their states. Cells that fail do not stop the others; ones that have
    failed before are tried again.

    Args:
        study: a `Study`, what a file of one holds, the path of such a file, the name of a ready study, or None: the one
            that `out` holds.
        jobs: workers at a time.
        threads: of each, where neither study nor `out` say; by default the cores over the jobs, or OMP_NUM_THREADS
            where that is fewer: two studies beside each other would wait for each other's threads most of the time.
        launcher: starts the workers; by default processes of this machine.
        imports: Python files that register parts of your own, for the workers; execute them here, too.
        sources: directories of other studies; runs that they have made already are copied, and not trained again. A
            launcher of your own passes them on itself.
        report: told (variants that are planned, in all).

    Raises:
        ConfigError, DataError: naming everything that is wrong, before anything is trained.
        ShortflowError: where workers end again and again without having done anything.
    """
    if jobs < 1:
        raise ConfigError(f"jobs must be 1 or more, got {jobs}")
    out = Path(out)
    if isinstance(study, str):
        study = load_study(study)
    elif isinstance(study, Mapping):
        study = study_of(study)
    check_sources(sources)
    plan = begin(study, out, threads=threads or threads_of(jobs), report=report)
    forget_failures(plan, out)
    launcher = launcher or LocalWorkers(out=out, threads=plan.threads, imports=tuple(imports), sources=tuple(sources))
    return _Scheduler(out, jobs, launcher, poll).states()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(jobs: int) -> int:
    """Threads of one of so many jobs: the cores over their number, or what OMP_NUM_THREADS says where that is fewer."""
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    share = max(1, cores() // jobs)
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share


class _Scheduler:
    """Keeps workers alive while there is work."""

    def __init__(self, out: Path, jobs: int, launcher: Launcher, poll: float) -> None:
        self.out, self.jobs, self.launcher, self.poll = out, jobs, launcher, poll
        self.workers: list[Worker] = []
        self.started, self.fruitless = 0, 0
        self.seen: Any = None  # how the cells were when a worker last ended

    def states(self) -> Iterator[State]:
        written: Any = None
        try:
            while True:
                plan = read_plan(self.out)
                cells = look(plan, self.out)
                ends = [(cell.name, cell.phase) for cell in cells if cell.phase in ("done", "failed")]
                if ends != written:
                    write_results(plan, self.out, cells)
                    written = ends
                self._keep_alive(cells)
                state = State(plan=plan, cells=cells, workers=len(self.workers))
                yield state
                if state.finished:
                    return
                time.sleep(self.poll)
        finally:
            self._stop()

    def _keep_alive(self, cells: Sequence[Cell]) -> None:
        """Replace workers that have ended, as many as there is work for."""
        ended = [worker for worker in self.workers if worker.ended()]
        self.workers = [worker for worker in self.workers if worker not in ended]
        left = sum(cell.phase in ("missing", "running") for cell in cells)
        if ended and left:
            now = [(cell.phase, cell.step) for cell in cells]
            self.fruitless = self.fruitless + len(ended) if now == self.seen else 0
            self.seen = now
            if self.fruitless > FRUITLESS * self.jobs:
                raise ShortflowError(
                    f"workers end without having done anything; the last one said:\n{ended[-1].said() or '(nothing)'}"
                )
        while len(self.workers) < min(self.jobs, left):
            self.workers.append(self.launcher.start(self.started))
            self.started += 1

    def _stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        until = time.monotonic() + GRACE
        while self.workers and time.monotonic() < until:
            self.workers = [worker for worker in self.workers if not worker.ended()]
            if self.workers:
                time.sleep(0.1)
        for worker in self.workers:
            worker.kill()


def command(out: Path, imports: Sequence[Path], sources: Sequence[Path] = ()) -> list[str]:
    """What starts a worker."""
    named = [*(("--import", path) for path in imports), *(("--reuse", path.absolute()) for path in sources)]
    files = [word for option, path in named for word in (option, str(path))]
    return [sys.executable, "-m", "shortflow", "compare", "--out", str(out), "--work", *files]


# ---------------------------------------------------------------------------------------------------- on this machine


@dataclass
class _Process:
    """A worker in a process of this machine. It stops when this process does: its standard input ends then."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return _tail(self.log)


@dataclass(frozen=True, kw_only=True)
class LocalWorkers:
    """Workers in processes of this machine, with `threads` each; where there are several GPUs, each has one of them."""

    out: Path
    threads: int
    imports: tuple[Path, ...] = ()
    sources: tuple[Path, ...] = ()

    def start(self, number: int) -> Worker:
        log = self.out / "workers" / f"{socket.gethostname()}-{os.getpid()}-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*command(self.out, self.imports, self.sources), "--tied"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_threads(self.threads), **_device(number)},
                start_new_session=True,  # Ctrl-C is for the scheduler, which stops its workers
            )
        return _Process(process, log)


def _threads(count: int) -> dict[str, str]:
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))


def _device(number: int) -> dict[str, str]:
    """The GPU of a worker, where there are several."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}


def _tail(path: Path, length: int = 2000) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")[-length:].strip()
    return ""


# --------------------------------------------------------------------------------------------------------- on a cluster


@dataclass
class _Job:
    """A worker in a job of a cluster."""

    job: Any

    def ended(self) -> bool:
        return bool(self.job.done())

    def stop(self) -> None:
        with suppress(Exception):  # it may have ended meanwhile
            self.job.cancel()

    kill = stop

    def said(self) -> str:
        return "\n".join(filter(None, (self.job.stdout(), self.job.stderr())))[-2000:]


@dataclass(frozen=True, kw_only=True)
class SlurmWorkers:
    """Workers in jobs of SLURM, submitted by submitit (pip install 'shortflow[slurm]').

    Args:
        options: of `sbatch` in submitit's names (timeout_min, gpus_per_node, …) or SLURM's (partition, account, …); and
            "cluster": "local" for processes of this machine, to try it.

    Raises:
        ConfigError: if submitit or SLURM are not there, or an option is none.
    """

    out: Path
    threads: int
    imports: tuple[Path, ...] = ()
    sources: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._executor()

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("--slurm needs submitit; install it with: pip install 'shortflow[slurm]'") from error
        given = dict(self.options)
        cluster = given.pop("cluster", "slurm")
        try:
            executor = submitit.AutoExecutor(folder=self.out / "slurm", cluster=cluster)
            wanted = {"name": "shortflow", "cpus_per_task": self.threads, **given}
            executor.update_parameters(
                **{key if key in GENERIC else f"slurm_{key}": value for key, value in wanted.items()}
            )
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            raise ConfigError(f"--slurm: {error}") from error
        return executor

    def start(self, number: int) -> Worker:
        words = [f"{name}={value}" for name, value in _threads(self.threads).items()]
        line = ["env", *words, *command(self.out.absolute(), self.imports, self.sources), "--tied"]

        def served() -> int:  # nested, so that the job needs not import the library to start it
            import subprocess

            with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
                return process.wait()

        return _Job(self._executor().submit(served))
