"""What a launcher asks for beside processes: refused, or said to be decided by the run; never heeded without a word."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

import tiny
from shortflow.config import recipe_named
from shortflow.errors import ConfigError, ShortflowError
from shortflow.train import TrainStep, fit
from shortflow.train.engine import PATIENCE, Engine
from shortflow.train.launcher import refuse, unheeded

QUIET = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_USE_DEEPSPEED": "false",
}
"""What `accelerate launch` sets where nothing was asked for."""


@pytest.fixture
def fresh() -> Iterator[None]:
    """accelerate keeps what it has first seen; a new process has seen nothing."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert PartialState._shared_state == {}


def gradient() -> float:
    """The gradient of 3 w, as the engine takes it."""
    weight = nn.Parameter(torch.ones(()))
    Engine().backward(3 * weight)
    assert weight.grad is not None
    return float(weight.grad)


def test_gradients_are_not_divided_by_the_launchers_accumulation(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    assert gradient() == 3.0


def test_the_launchers_compiler_gets_nothing(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would compile the whole step, which nothing compares with the plain one."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    recipe = recipe_named("flow-matching")
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    wrapped, _ = Engine().prepare(step, torch.optim.AdamW(step.flow.parameters()))
    assert type(wrapped) is TrainStep


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism"),
    ],
)
def test_other_engines_are_refused_with_the_remedy(
    name: str, what: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(ConfigError, match=rf"{what}.*\({name}=true\).*--shard"):
        Engine()


@pytest.mark.parametrize(
    ("asked", "settings", "words"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, r"mixed precision bf16.*train\.precision decides, and is fp32"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"precision": "bf16"}, r"fp16.*train\.precision decides, and is bf16"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {}, r"INDUCTOR.*train\.compile decides, and is false"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}, {}, r"8 steps.*train\.parts decides, and is 1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, {}, r"offload.*stay on the devices"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            {},
            r"checkpointing.*train\.checkpoint decides, and is false",
        ),
    ],
)
def test_what_is_not_heeded_is_said_once(
    asked: dict[str, str], settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**QUIET, **asked}.items():
        monkeypatch.setenv(name, value)
    (said,) = unheeded(tiny.settings(**settings))
    assert re.search(words, said)


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({}, {}),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"precision": "bf16"}),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {"compile": True}),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {"parts": 4}),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}),  # of a launcher that was not asked to shard
    ],
)
def test_what_agrees_with_the_run_needs_no_word(
    asked: dict[str, str], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**QUIET, **asked}.items():
        monkeypatch.setenv(name, value)
    refuse()
    assert unheeded(tiny.settings(**settings)) == []


def test_a_run_says_what_it_does_not_heed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = recipe_named("flow-matching")
    with pytest.warns(UserWarning, match=r"train\.precision decides") as told:
        fit(
            tmp_path,
            tiny.flow_map(recipe),
            recipe.objective,
            tiny.batches(recipe),
            settings=tiny.settings(),
            optimizer=recipe.optimizer,
            metadata={},
        )
    assert len(told) == 1


# ----------------------------------------------------------------------------------------------- what hosts tell others


class Two(Engine):
    """An engine that hears something from another process."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.world, self.other = 2, other

    def gathered(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_hosts_wait_for_each_other_longer_than_the_work_of_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives up after half an hour, which pairs of a large teacher or latents of one process may take."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    monkeypatch.setattr(dist, "new_group", lambda **settings: asked.append(settings))
    assert Engine().world == 2
    assert asked == [{"backend": "gloo", "timeout": PATIENCE}]
    assert timedelta(days=2) < PATIENCE


def test_what_fails_in_one_process_fails_in_all() -> None:
    def broken() -> None:
        raise OSError(28, "No space left on device")

    assert Two(None).together(lambda: 3) == 3
    assert Engine().together(lambda: 3) == 3
    with pytest.raises(OSError, match="No space left"):
        Two(None).together(broken)
    with pytest.raises(ShortflowError, match="the disk of the other is full"):
        Two("the disk of the other is full").together(lambda: 3)


def test_one_process_agrees_with_itself() -> None:
    assert [Engine().any(value) for value in (False, True)] == [False, True]
