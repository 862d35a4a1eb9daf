"""What published code stumbles over, where no other file looks for it: one test each."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from shortflow import hub, runs
from shortflow.cli import main
from shortflow.data import DataSpec

NETWORK = "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}"


@pytest.fixture(scope="module")
def model() -> hub.Model:
    """A conditional model of digits with random weights and a null class, and without guidance in its weights."""
    run, dataset = runs.configure("flow-matching", "digits", settings=[NETWORK, "objective.label_dropout=0.1"])
    spec = DataSpec.fit(dataset)
    torch.manual_seed(0)
    flow = hub.build_flow(run, spec)
    for weight in flow.parameters():
        nn.init.normal_(weight, std=0.3)
    return hub.Model(flow=flow.eval(), spec=spec, run=run, images=0, step=0, path=Path("model"))


class WithoutClass(nn.Module):
    """A network that is told no class, whatever is asked."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.num_classes, self.null_label = network, network.num_classes, network.null_label

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor) -> Tensor:
        return self.network(x, time, second, torch.full_like(label, self.null_label))


def unconditional(model: hub.Model) -> hub.Model:
    return replace(model, flow=model.run.recipe.flow_map(WithoutClass(model.flow.network)))


def generated(model: hub.Model, guidance: float, *_: Any) -> np.ndarray:
    return runs.generate(model.flow, model.spec, 6, steps=2, guidance=guidance)[0]


def interpolated(model: hub.Model, guidance: float, *_: Any) -> np.ndarray:
    return runs.interpolation(model, rows=2, points=3, steps=2, guidance=guidance)[0]


def scored(model: hub.Model, guidance: float, *_: Any) -> np.ndarray:
    return scores(runs.score(model, (1,), n=20, guidance=guidance))


def scores(record: dict[str, Any]) -> np.ndarray:
    row = record["rows"]["1 step"]
    return 100 * np.array([row["fd"], row["kid"]])


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not ended.value.code


def sample_command(model: hub.Model, guidance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setattr(hub, "load", lambda *_: model)
    command("sample", "model", "-n", 4, "--guidance", guidance, "--out", tmp_path / "s.png")
    return np.asarray(Image.open(tmp_path / "s.png"))


def evaluate_command(model: hub.Model, guidance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setattr(hub, "load", lambda *_: model)
    command("evaluate", "model", "--steps", 1, "-n", 20, "--guidance", guidance, "--out", tmp_path / "e.json")
    return scores(json.loads((tmp_path / "e.json").read_text()))


@pytest.mark.parametrize("ask", [generated, interpolated, scored, sample_command, evaluate_command])
def test_a_guidance_scale_of_zero_is_asked_for_and_not_taken_for_none(
    ask: Callable[..., np.ndarray], model: hub.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everywhere a scale is given, 0 means the unconditional model; `scale or 1` made it the conditional one."""
    zero, want, one = (
        np.asarray(ask(which, scale, tmp_path, monkeypatch), dtype=float)
        for which, scale in ((model, 0.0), (unconditional(model), 1.0), (model, 1.0))
    )
    assert abs(zero - want).max() <= 1.5  # the last digit of a pixel: the passes are batched differently
    assert abs(one - want).max() > 10
