"""Runs of a dozen steps in a directory, and what they leave there."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

import tiny
from shortflow.optimizer import Optimizer
from shortflow.recipe import Recipe
from shortflow.train import StepRecord, TrainSettings, fit
from shortflow.train.state import _sum, latest_state
from shortflow.typing import Batch

OPTIMIZER = Optimizer(lr=5e-3, betas=(0.9, 0.95), clip=1.0, warmup=0.3, ema=0.95)
STEPS = 12


def start(
    directory: Path,
    recipe: Recipe,
    dropout: float = 0.0,
    settings: TrainSettings | None = None,
    seed: int = 0,
    **options: Any,
) -> Iterator[StepRecord]:
    settings = settings or tiny.settings(STEPS)
    return fit(
        directory,
        tiny.flow_map(recipe, dropout, seed),
        recipe.objective,
        _in_parts(tiny.batches(recipe), settings.parts),
        settings=settings,
        optimizer=OPTIMIZER,
        metadata={"recipe": recipe.name},
        **options,
    )


def _in_parts(batches: Callable[[int], Batch], count: int) -> Callable[[int], Batch]:
    """Batch k is part k mod `count` of step k div `count`: every count-th row."""

    def batch_of(k: int) -> Batch:
        batch, rows = batches(k // count), slice(k % count, None, count)
        label, eps = (None if value is None else value[rows] for value in (batch.label, batch.eps))
        return Batch(x=batch.x[rows], label=label, eps=eps)

    return batches if count == 1 else batch_of


def lines(directory: Path) -> list[dict[str, Any]]:
    """The record of a run, without the speed."""
    rows = [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def described(path: Path) -> dict[str, Any]:
    """What a model file says of itself, without its sum."""
    with safe_open(str(path), "pt") as opened:
        header = json.loads(opened.metadata()["shortflow"])
    assert re.fullmatch(r"[0-9a-f]{64}", header.pop("sha256"))
    return header


def files(directory: Path) -> dict[str, bytes]:
    """Every tensor file of a run's last state, and the model."""
    state = latest_state(directory / "state")
    assert state is not None
    found = {path.name: path.read_bytes() for path in sorted(state.glob("*.safetensors"))}
    return {**found, "model": (directory / "model.safetensors").read_bytes()}


def untouched(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def rewritten(state: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a state says of itself, and give it the sum that this has."""
    content = json.loads((state / "state.json").read_text())
    del content["sha256"]
    change(content)
    (state / "state.json").write_text(json.dumps({**content, "sha256": _sum(content)}))
