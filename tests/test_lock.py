import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shortflow.errors import CheckpointError
from shortflow.lock import RunLock, check_free, held_by

HOLD = (
    "import sys, time, pathlib\nfrom shortflow.lock import RunLock\n"
    "lock = RunLock(pathlib.Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(600)"
)


def test_the_process_and_the_host_that_hold_a_directory_are_named_and_a_kill_gives_it_back(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=re.escape(f"process {other.pid} on {socket.gethostname()} (since ")):
            RunLock(tmp_path)
        other.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == other.pid  # stale, and in nobody's way
    lock = RunLock(tmp_path)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_holder_that_has_no_name_yet_holds_all_the_same(tmp_path: Path, content: str) -> None:
    lock = RunLock(tmp_path)
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(CheckpointError, match="a run is going on there in another process"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


def test_a_lock_is_given_back_once_and_with_the_object(tmp_path: Path) -> None:
    first = RunLock(tmp_path / "a" / "b")
    first.release()
    assert list((tmp_path / "a").iterdir()) == []  # it had made the directory
    second = RunLock(tmp_path / "a" / "b")
    first.release()
    with pytest.raises(CheckpointError, match="in use"):
        RunLock(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "x").write_text("x")
    del second
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x"]


def test_the_end_of_a_fork_does_not_give_the_lock_of_its_parent_back(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(CheckpointError, match="in use"):
        RunLock(tmp_path)
    lock.release()


def test_a_lock_that_was_removed_while_it_was_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that open the file of a third, which ends between: they must not both hold it, one of them a file without a
    name."""
    flock, files = fcntl.flock, []

    def slow(descriptor: int, how: int) -> None:
        if not files:
            files.append(os.fstat(descriptor).st_ino)
            (tmp_path / ".lock").rename(tmp_path / "removed")
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    lock = RunLock(tmp_path)
    assert (tmp_path / ".lock").stat().st_ino != files[0]
    with pytest.raises(CheckpointError, match="in use"):
        RunLock(tmp_path)
    lock.release()


def test_a_directory_that_was_removed_with_the_lock_before_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker removes it when it gives it back: that may be just before the file is opened."""
    directory, opened = tmp_path / "run", os.open

    def late(path: Path, *how: int) -> int:
        monkeypatch.setattr(os, "open", opened)
        directory.rmdir()
        return opened(path, *how)

    monkeypatch.setattr(os, "open", late)
    lock = RunLock(directory)
    with pytest.raises(CheckpointError, match="in use"):
        RunLock(directory)
    lock.release()


def test_a_file_system_without_locks_is_said_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        RunLock(tmp_path).release()


# ------------------------------------------------------------------------------------------------------------- looking


def test_who_looks_learns_who_holds_a_directory_and_takes_it_from_nobody(tmp_path: Path) -> None:
    assert held_by(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    lock = RunLock(tmp_path)
    found = held_by(tmp_path)
    assert found is not None
    assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found["since"])
    with pytest.raises(CheckpointError, match="is in use"):
        check_free(tmp_path)
    (tmp_path / ".lock").write_text("")
    assert held_by(tmp_path) == {}  # somebody, who has not said who
    lock.release()
    check_free(tmp_path)
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "h", "since": "s"}')  # what a killed process leaves
    assert held_by(tmp_path) is None
    assert held_by(tmp_path / "nowhere") is None


def test_a_run_begins_while_somebody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks holds the file for an instant, by a shared lock; the run tries again."""
    (tmp_path / ".lock").write_text("{}")
    looking = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            os.close(looking)

    monkeypatch.setattr("shortflow.lock.time.sleep", wait)
    lock = RunLock(tmp_path)
    assert waits == [0.02] * 3
    assert (held_by(tmp_path) or {})["pid"] == os.getpid()
    lock.release()


def test_without_locks_the_file_says_who_holds_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        lock = RunLock(tmp_path)
    assert (held_by(tmp_path) or {})["pid"] == os.getpid()
    lock.release()
    assert held_by(tmp_path) is None
