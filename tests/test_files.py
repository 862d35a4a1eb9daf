import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shortflow.files import atomic_path, write_atomic


def test_text_and_bytes_arrive_whole_in_new_folders(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "x.json", "α = 1\n")
    assert (tmp_path / "a" / "b" / "x.json").read_bytes() == "α = 1\n".encode()
    write_atomic(tmp_path / "y.bin", b"\x00\xff")
    assert (tmp_path / "y.bin").read_bytes() == b"\x00\xff"


def test_the_new_content_replaces_the_old_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_atomic(path, "a long old content")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent  # a rename is atomic within a file system only
        assert temporary.suffix == path.suffix
        temporary.write_text("new")
        assert path.read_text() == "a long old content"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "x.txt"
    if old is not None:
        path.write_text(old)

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["x.txt"])
    assert old is None or path.read_text() == old


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer one ends last


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("writer", ["text", "safetensors"])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int, mode: int, writer: str) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "x") as temporary:
            if writer == "text":
                temporary.write_text("x")
            else:
                save_file({"a": torch.ones(2)}, str(temporary))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode
