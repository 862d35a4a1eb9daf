import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import tiny
from shortflow import files
from shortflow.errors import CheckpointError
from shortflow.optimizer import Optimizer
from shortflow.recipes import shortcut
from shortflow.train import Average, TrainStep, space, train
from shortflow.train import state as state_module
from shortflow.train.loop import build_optimizer
from shortflow.train.state import DamagedState, check_state, latest_state, load_newest, load_state, save_state

OPTIMIZER = Optimizer(lr=1e-2, ema=0.9)


class Run:
    """Network, average, teacher and AdamW, after a few steps."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        recipe = shortcut()
        self.step = TrainStep(tiny.flow_map(recipe, seed=seed), recipe.objective)
        self.adamw = build_optimizer(self.step, OPTIMIZER)
        average = Average(self.step.flow, 0.9)
        assert self.step.teacher is not None
        teacher = self.step.teacher.module
        self.parts: dict[str, nn.Module] = {"network": self.step.flow, "average": average.module, "teacher": teacher}
        batches, settings = tiny.batches(recipe), tiny.settings(max(1, steps))
        if steps:
            list(train(self.step, settings, OPTIMIZER, batches, adamw=self.adamw, averages=(average,)))

    def tensors(self) -> dict[str, Tensor]:
        own = {f"{part}/{name}": v for part, m in self.parts.items() for name, v in m.state_dict().items()}
        state = self.adamw.state_dict()["state"]
        return {**own, **{f"adamw/{i}/{name}": v for i, entry in state.items() for name, v in entry.items()}}

    def save(self, directory: Path, step: int, keep: int = 2) -> Path:
        return save_state(directory, step, self.parts, self.adamw, {"note": [step, None]}, keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("steps", [0, 4])
def test_a_state_brings_every_tensor_back(tmp_path: Path, steps: int) -> None:
    run, other = Run(steps), Run(2, seed=1)
    where = run.save(tmp_path / "state", 4)
    assert where == tmp_path / "state" / "00000004"
    want = {name: value.clone() for name, value in run.tensors().items()}
    assert any(not torch.equal(value, want[name]) for name, value in other.tensors().items() if name in want)
    info = load_state(where, other.parts, other.adamw)
    assert info == {"format": 2, "step": 4, "note": [4, None]} == check_state(where)
    got = other.tensors()
    assert got.keys() == want.keys()
    assert {name: value.dtype for name, value in got.items()} == {name: value.dtype for name, value in want.items()}
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    assert len([name for name in want if name.endswith("exp_avg_sq")]) == (
        len(list(run.step.parameters())) if steps else 0
    )


def test_loading_keeps_the_settings_of_the_optimizer(tmp_path: Path) -> None:
    run, other = Run(2), Run(0)
    for group in run.adamw.param_groups:
        group["lr"] = 123.0
    before = [{k: v for k, v in group.items() if k != "params"} for group in other.adamw.param_groups]
    load_state(run.save(tmp_path, 2), other.parts, other.adamw)
    assert [{k: v for k, v in group.items() if k != "params"} for group in other.adamw.param_groups] == before


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    run = Run(0)
    for step in (5, 10, 99_999_999, 100_000_000):
        run.save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["100000000", "99999999"]
    assert latest_state(tmp_path) == tmp_path / "100000000"
    run.save(tmp_path, 200_000_000, keep=1)
    assert names(tmp_path) == ["200000000"]


def test_other_folders_are_neither_states_nor_removed(tmp_path: Path) -> None:
    assert latest_state(tmp_path / "missing") is None
    (tmp_path / "notes").mkdir()
    (tmp_path / "123").mkdir()
    assert latest_state(tmp_path) is None
    Run(0).save(tmp_path, 7, keep=1)
    assert names(tmp_path) == ["00000007", "123", "notes"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    Run(0).save(tmp_path, 3)
    run, other = Run(3), Run(0)
    run.save(tmp_path, 3)
    load_state(tmp_path / "00000003", other.parts, other.adamw)
    assert torch.equal(other.tensors()["network/network.last.weight"], run.tensors()["network/network.last.weight"])
    assert names(tmp_path) == ["00000003"]


@pytest.mark.parametrize("at", ["save_file", "write_atomic", "os.replace"])
def test_a_crash_while_writing_leaves_no_half_state(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(0)
    run.save(tmp_path, 1)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == (2 if at == "save_file" else 1):
            raise OSError("no space left on device")

    if at == "os.replace":
        # The files inside a state are renamed too; the last rename is that of the folder.
        real = state_module.os.replace
        monkeypatch.setattr(state_module.os, "replace", lambda a, b: fail() if Path(a).is_dir() else real(a, b))
    else:
        monkeypatch.setattr(state_module, at, fail)
    with pytest.raises(OSError, match="no space"):
        run.save(tmp_path, 2)
    assert names(tmp_path) == ["00000001"]
    assert latest_state(tmp_path) == tmp_path / "00000001"


def test_what_a_killed_run_has_left_is_no_state_and_goes_with_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".writing-00000008"
    left.mkdir()
    (left / "network.safetensors").write_bytes(b"half")
    assert latest_state(tmp_path) is None
    Run(0).save(tmp_path, 9)
    assert names(tmp_path) == ["00000009"]


def remove(name: str) -> Callable[[Path], None]:
    return lambda state: (state / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def shorten(state: Path) -> None:
        content = (state / name).read_bytes()
        (state / name).write_bytes(content[: len(content) // 2])

    return shorten


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def replace(state: Path) -> None:
        (state / name).write_bytes(content)

    return replace


def flip(name: str) -> Callable[[Path], None]:
    def change(state: Path) -> None:
        content = bytearray((state / name).read_bytes())
        content[-1] ^= 1
        (state / name).write_bytes(content)

    return change


def edit(change: Callable[[dict[str, Any]], object], honest: bool = False) -> Callable[[Path], None]:
    """state.json edited; `honest`: with a new sum, as somebody would who knows how it is made."""

    def rewrite(state: Path) -> None:
        content = json.loads((state / "state.json").read_text())
        change(content)
        if honest:
            del content["sha256"]
            content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        (state / "state.json").write_text(json.dumps(content))

    return rewrite


def pipe(name: str) -> Callable[[Path], None]:
    def replace(state: Path) -> None:
        (state / name).unlink()
        os.mkfifo(state / name)

    return replace


def outside(content: dict[str, Any]) -> None:
    content["files"]["../model.safetensors"] = content["files"].pop("network.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("state.json"), "state.json is missing"),
        (remove("teacher.safetensors"), "teacher.safetensors is missing"),
        (cut("network.safetensors"), r"network.safetensors has \d+ of \d+ bytes"),
        (cut("optimizer.safetensors"), r"optimizer.safetensors has \d+ of \d+ bytes"),
        (write("teacher.safetensors", b""), r"teacher.safetensors has 0 of \d+ bytes"),
        (flip("average.safetensors"), r"average.safetensors has changed since it was written \(SHA-256\)"),
        (flip("optimizer.safetensors"), "optimizer.safetensors has changed"),
        (pipe("network.safetensors"), "network.safetensors is no file"),
        (pipe("state.json"), "state.json is no file"),
        (cut("state.json"), "state.json is not JSON"),
        (write("state.json", b""), "state.json is not JSON"),
        (write("state.json", b"\xff\xfe"), "state.json is not JSON"),
        (write("state.json", b"[" * 100_000), "state.json is not JSON"),
        (write("state.json", b"[1, 2]"), "state.json holds no settings"),
        (write("state.json", b'{"format": 2}'), "state.json has changed"),
        (edit(lambda content: content.update(step=3)), "state.json has changed"),
        (edit(lambda content: content.update(format=3)), "state.json has changed"),
        (edit(lambda content: content.pop("sha256")), "state.json has changed"),
        (edit(lambda content: content.update(note=[2, 0])), "state.json has changed"),
        (edit(lambda content: content.update(step=3), honest=True), "says that it is that of step 3"),
        (edit(lambda content: content.update(step=2.0), honest=True), "says that it is that of step 2.0"),
        (edit(lambda content: content.pop("files"), honest=True), "state.json makes no sense"),
        (edit(lambda content: content.update(files=[1]), honest=True), "state.json makes no sense"),
        (edit(outside, honest=True), r"it lists '../model.safetensors', which is no file of a state"),
    ],
)
def test_a_damaged_state_is_refused_by_name_before_anything_is_loaded(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    run, other = Run(2), Run(0, seed=1)
    where = run.save(tmp_path, 2)
    damage(where)
    before = {name: value.clone() for name, value in other.tensors().items()}
    with pytest.raises(DamagedState, match=rf"the state {re.escape(str(where))} is damaged: .*{message}"):
        load_state(where, other.parts, other.adamw)
    assert all(torch.equal(value, before[name]) for name, value in other.tensors().items())


@pytest.mark.parametrize(
    "change",
    [
        write("state.json", b'{"format": 1, "step": 2}'),  # had no sums
        edit(lambda content: content.update(format=3), honest=True),
    ],
)
def test_a_state_of_another_version_is_refused_and_not_damaged(tmp_path: Path, change: Callable[[Path], None]) -> None:
    run = Run(0)
    where = run.save(tmp_path, 2)
    change(where)
    with pytest.raises(CheckpointError, match=r"has format [13], this version of shortflow reads format 2") as caught:
        load_newest(tmp_path, run.parts, run.adamw)
    assert not isinstance(caught.value, DamagedState)
    assert names(tmp_path) == ["00000002"]


def test_a_state_that_cannot_be_read_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(0)
    run.save(tmp_path, 1)
    run.save(tmp_path, 2)

    def forbidden(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(state_module, "sha256_of", forbidden)
    with pytest.raises(CheckpointError, match=r"00000002 cannot be read: .*Permission denied"):
        load_newest(tmp_path, run.parts, run.adamw)
    assert names(tmp_path) == ["00000001", "00000002"]


# ----------------------------------------------------------------------------------------------------------- the newest


def test_the_newest_whole_state_is_taken_and_the_damaged_are_named_and_kept_aside(tmp_path: Path) -> None:
    run, other = Run(2), Run(0, seed=1)
    for step in (1, 2, 3, 4):
        run.save(tmp_path, step, keep=9)
    flip("network.safetensors")(tmp_path / "00000004")
    remove("state.json")(tmp_path / "00000003")
    with pytest.warns(UserWarning, match="is damaged") as said:
        where, info = load_newest(tmp_path, other.parts, other.adamw)
    assert (where, info["step"]) == (tmp_path / "00000002", 2)
    assert names(tmp_path) == ["00000001", "00000002", "00000003.damaged", "00000004.damaged"]
    assert [str(each.message) for each in said] == [
        f"the state {tmp_path}/00000004 is damaged: network.safetensors has changed since it was written (SHA-256). It "
        "is kept aside as 00000004.damaged, and training goes on from 00000002",
        f"the state {tmp_path}/00000003 is damaged: state.json is missing. It is kept aside as 00000003.damaged, and "
        "training goes on from 00000002",
    ]
    assert all(torch.equal(value, run.tensors()[name]) for name, value in other.tensors().items())
    # They are neither chosen nor removed again, and another may stand beside them.
    run.save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["00000003.damaged", "00000004", "00000004.damaged"]
    run.save(tmp_path, 5, keep=2)
    cut("state.json")(tmp_path / "00000005")
    cut("state.json")(tmp_path / "00000004")
    run.save(tmp_path, 3, keep=9)
    with pytest.warns(UserWarning, match=r"kept aside as 0000000(5.damaged|4.damaged-2)") as said:
        assert load_newest(tmp_path, other.parts, other.adamw)[0].name == "00000003"
    assert "00000004.damaged-2" in names(tmp_path)
    assert len(said) == 2


def test_where_no_state_is_whole_all_are_named_and_stay(tmp_path: Path) -> None:
    run = Run(0)
    for step in (1, 2):
        run.save(tmp_path, step)
    cut("network.safetensors")(tmp_path / "00000001")
    remove("optimizer.safetensors")(tmp_path / "00000002")
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            load_newest(tmp_path, run.parts, run.adamw)
        assert re.fullmatch(
            rf"no training state in {re.escape(str(tmp_path))} is whole:\n"
            r"  the state .*00000002 is damaged: optimizer.safetensors is missing\n"
            r"  the state .*00000001 is damaged: network.safetensors has \d+ of \d+ bytes\n"
            r"Bring one back from a copy, or start a new run in another directory",
            str(caught.value),
        )
        assert names(tmp_path) == ["00000001", "00000002"]


def test_the_best_state_is_kept_beside_the_newest(tmp_path: Path) -> None:
    run = Run(0)
    for step in range(1, 6):
        save_state(tmp_path, step, run.parts, run.adamw, {}, keep=2, best=2)
    assert names(tmp_path) == ["00000002", "00000004", "00000005"]
    save_state(tmp_path, 6, run.parts, run.adamw, {}, keep=2, best=6)
    assert names(tmp_path) == ["00000005", "00000006"]


# ------------------------------------------------------------------------------------------------------------ full disk


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(2)
    first = run.save(tmp_path, 1)
    tensors = sum(value.numel() * value.element_size() for value in run.tensors().values())
    mebibytes = f"{tensors / 2**20 + 1:.1f}"
    monkeypatch.setattr(state_module, "save_file", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**19))  # pyright: ignore
    with pytest.raises(CheckpointError) as caught:
        run.save(tmp_path, 2)
    assert str(caught.value) == (
        f"the disk is full: the state after step 2 needs {mebibytes} MiB in {tmp_path}, and 0.5 MiB are free. The "
        f"state before it is whole ({first}). Make space, or keep fewer states (train.keep), and go on with --resume"
    )
    assert names(tmp_path) == ["00000001"]
    check_state(first)


@pytest.mark.parametrize("at", ["save_file", "write_atomic", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_in_the_middle_leaves_the_state_before(
    tmp_path: Path, at: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(2)
    first = run.save(tmp_path, 1)

    def full(*_: object) -> None:
        if at == "save_file":  # as safetensors says it
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(files.os if at == "fsync" else state_module, at, full)
        with pytest.raises(CheckpointError, match=r"disk is full: the state after step 2 needs \d+\.\d MiB in .* free"):
            run.save(tmp_path, 2)
    assert names(tmp_path) == ["00000001"]
    check_state(first)
    assert names(run.save(tmp_path, 2).parent) == ["00000001", "00000002"]


def test_the_error_of_safetensors_on_a_full_disk_is_known(tmp_path: Path) -> None:
    """The number of the system's error stands in its text; here that of a file that may not grow."""
    code = (
        "import resource, signal, sys, torch\n"
        "from safetensors.torch import save_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "save_file({'a': torch.ones(1000)}, sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True)
    assert f"(os error {errno.EFBIG})" in done.stderr


def test_other_errors_of_the_disk_are_not_taken_for_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        Run(0).save(tmp_path, 2)
    assert names(tmp_path) == []


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    run = Run(0)
    where = run.save(tmp_path, 0)
    run.parts["network"] = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"(?s)00000000 cannot be loaded.*Missing key.*weight"):
        load_state(where, run.parts, run.adamw)
    del run.parts["network"]
    with pytest.raises(CheckpointError, match=r"holds average.safetensors, network.*, and this run has average"):
        load_state(where, run.parts, run.adamw)


def test_moments_of_other_weights_are_refused(tmp_path: Path) -> None:
    run, other = Run(2), Run(0)
    where = run.save(tmp_path, 2)
    fewer = torch.optim.AdamW(list(other.step.flow.parameters())[1:])
    with pytest.raises(CheckpointError, match=r"the optimiser's .* is of no weight of this network"):
        load_state(where, other.parts, fewer)
