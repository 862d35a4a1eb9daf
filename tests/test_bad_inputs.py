"""Wrong commands say what is wrong and what to do, end with code 2, show no traceback and leave no file behind."""

import builtins
import errno
import io
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bad_inputs
from bad_inputs import Case
from commands import Shortflow
from shortflow.cli import app

CASES = bad_inputs.cases()
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bad_inputs.furnish(folder)
    return folder


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with sizes and times of the files."""
    return {
        path.relative_to(folder).as_posix(): (-1, -1)
        if path.is_dir()
        else (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def full_disk(patch: pytest.MonkeyPatch) -> None:
    """No free space, and files that take none."""
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9, free=4))

    def refuse(opener: Any) -> Any:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "w" in mode and not str(file).endswith(".json"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            return opener(file, mode, *arguments, **options)

        return opened

    patch.setattr(builtins, "open", refuse(builtins.open))
    patch.setattr(io, "open", refuse(io.open))


def locked(patch: pytest.MonkeyPatch) -> None:
    """No directory can be made; permissions themselves do not hold for everybody who runs tests."""

    def refuse(path: Any, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    patch.setattr(os, "mkdir", refuse)


def no_network(patch: pytest.MonkeyPatch) -> None:
    def nothing(**asked: Any) -> str:
        raise OSError("no network here")

    patch.setattr("huggingface_hub.snapshot_download", nothing)


WORLDS = {"full disk": full_disk, "locked": locked, "no network": no_network, "": lambda patch: None}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command.removeprefix("shortflow "))
def test_it_is_said_what_is_wrong(
    case: Case, folder: Path, shortflow: Shortflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SHORTFLOW_INCEPTION", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = files(folder)
    with monkeypatch.context() as patch:
        WORLDS[case.world](patch)
        said = shortflow(*shlex.split(case.command)[1:])
    after = files(folder)
    for name in case.leaves:
        shutil.rmtree(folder / name, ignore_errors=True)
    assert said.code == 2
    assert case.fits(said.err), said.err
    assert "Traceback" not in said.err + said.out
    assert [name for name in after if after[name] != before.get(name) and name.split("/")[0] not in case.leaves] == []
    assert set(before) <= set(after)


def test_every_command_has_cases() -> None:
    assert len(CASES) >= 60
    assert {shlex.split(case.command)[1] for case in CASES} >= COMMANDS
    assert len({(case.command, case.world) for case in CASES}) == len(CASES)


def test_the_page_is_that_of_the_cases() -> None:
    """If this fails: python tests/bad_inputs.py."""
    assert bad_inputs.PAGE.read_text(encoding="utf-8") == bad_inputs.page()
