"""Memory that is kept: measured in processes of their own, as what one of them is told stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shortflow import memory

glibc = pytest.mark.skipif(not memory._is_glibc(), reason="another C library")
OURS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")

# 24 MiB, three times, and given back. Prints the MiB by which the heap has grown, now and then, whether huge pages were
# among them, and what PyTorch is told.
PROGRAM = """
import ctypes, os, sys
from shortflow.memory import keep_memory
import torch
if sys.argv[1] == "keep":
    keep_memory()
sbrk = ctypes.CDLL(None).sbrk
sbrk.restype = ctypes.c_void_p
top = lambda: sbrk(0) / 2**20
before = top()
block = [torch.full((3 * 2**21,), 1.0) for _ in range(3)]
huge = sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages"))
held = top()
del block
print(held - before, top() - before, huge / 1024, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""


def ran(what: str, **environment: str) -> tuple[float, float, float, str]:
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    words = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(words, env=clean | environment, capture_output=True, text=True, check=True, timeout=120)
    held, after, huge, told = done.stdout.split()
    return float(held), float(after), float(huge), told


@glibc
def test_memory_that_was_given_back_is_kept() -> None:
    assert ran("no")[0] < 60  # or the test shows nothing
    held, after, *_ = ran("keep")
    assert held >= 72
    assert after == held


@glibc
@pytest.mark.skipif(not memory._PAGES.is_file() or "[never]" in memory._PAGES.read_text(), reason="no huge pages")
def test_large_tensors_lie_in_huge_pages() -> None:
    *_, huge, told = ran("keep")
    assert huge >= 2
    assert told == "1"


@glibc
def test_what_the_environment_says_stays() -> None:
    assert ran("keep", THP_MEM_ALLOC_ENABLE="0")[2:] == (0, "0")
    for name, value in (
        ("MALLOC_MMAP_THRESHOLD_", "1048576"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1048576"),
    ):
        assert ran("keep", **{name: value})[0] < 60


def test_other_systems_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    monkeypatch.setattr(memory, "_is_glibc", lambda: True)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    for words in (None, "always madvise [never]"):
        monkeypatch.setattr(memory, "_PAGES", tmp_path / "enabled")
        if words is not None:
            memory._PAGES.write_text(words)
        memory.keep_memory()
        assert "THP_MEM_ALLOC_ENABLE" not in os.environ
    memory._PAGES.write_text("always [madvise] never")
    monkeypatch.setattr(memory, "_is_glibc", lambda: False)
    memory.keep_memory()
    assert "THP_MEM_ALLOC_ENABLE" not in os.environ


@pytest.mark.parametrize("words", ["musl", "", None])
def test_other_c_libraries_are_known(words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda _: words)
    assert not memory._is_glibc()
