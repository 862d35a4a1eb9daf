import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import tiny
from shortflow.errors import CheckpointError
from shortflow.optimizer import Optimizer
from shortflow.recipes import shortcut
from shortflow.train import Average, TrainStep, train
from shortflow.train import state as state_module
from shortflow.train.loop import build_optimizer
from shortflow.train.state import latest_state, load_state, save_model, save_state

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
    assert info == {"format": 1, "step": 4, "note": [4, None]}
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


@pytest.mark.parametrize(
    "damage",
    [
        remove("state.json"),
        remove("teacher.safetensors"),
        cut("network.safetensors"),
        cut("optimizer.safetensors"),
        cut("state.json"),
        write("state.json", b"\xff\xfe"),
        write("state.json", b"[1, 2]"),
        write("state.json", b'{"format": 1}'),
        write("state.json", b'{"format": 2, "step": 3}'),
    ],
)
def test_a_damaged_state_is_refused_by_name_before_anything_is_loaded(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run, other = Run(2), Run(0, seed=1)
    where = run.save(tmp_path, 2)
    damage(where)
    before = {name: value.clone() for name, value in other.tensors().items()}
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(where))} cannot be loaded.*remove this folder"):
        load_state(where, other.parts, other.adamw)
    assert all(torch.equal(value, before[name]) for name, value in other.tensors().items())


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    run = Run(0)
    where = run.save(tmp_path, 0)
    run.parts["network"] = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"(?s)00000000 cannot be loaded.*Missing key.*weight"):
        load_state(where, run.parts, run.adamw)


def test_a_model_file_describes_itself(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    save_model(model, tmp_path / "model.safetensors", {"data": {"shape": [1, 8, 8]}, "step": 5})
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as opened:
        assert json.loads(opened.metadata()["shortflow"]) == {"data": {"shape": [1, 8, 8]}, "step": 5}
        assert torch.equal(opened.get_tensor("weight"), model.weight)
        assert torch.equal(opened.get_tensor("bias"), model.bias)
