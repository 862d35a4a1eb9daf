"""Pictures of runs: they show what they say, of the model that is there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reports import made_run
from shortflow import hub
from shortflow.data import load as load_data
from shortflow.errors import CheckpointError, SamplerError
from shortflow.runs import generate, illustrate, illustrating
from shortflow.sample import PushForward, grid_times, noise, sample


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples, and no count of what a step costs, which has tests of its own."""
    monkeypatch.setattr(illustrating, "step_cost", lambda recipe: 3.25)
    for name, count in (("MANY", 4), ("CLOUD", 40), ("WAYS", 6), ("SAMPLES", 12)):
        monkeypatch.setattr(illustrating, name, count)


def index_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "pictures" / "pictures.json").read_text())


def cells_of(path: Path, columns: int, side: int, factor: int) -> np.ndarray:
    """The images of a grid, as they were before they were enlarged; the gaps are transparent."""
    sheet, gap = np.asarray(Image.open(path)), 4
    assert (sheet[:gap, :, 3] == 0).all()
    step = side * factor + gap
    rows = (sheet.shape[0] - gap) // step
    found = [
        sheet[gap + i * step : gap + i * step + side * factor : factor, gap + j * step :, :][
            :, : side * factor : factor
        ]
        for i in range(rows)
        for j in range(columns)
    ]
    assert all((image[..., 3] == 255).all() for image in found)
    return np.stack(found)[..., 0]


def test_images_in_every_number_of_steps_beside_real_ones(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    illustrate(run, steps=[1, 2], seed=5)
    found = index_of(run)
    assert found["model"] == {"sha256": hub.fingerprint(run), "step": 24, "images": 768}
    assert (found["seed"], found["classes"]) == (5, [str(k) for k in range(10)])
    assert found["cost"] == {"training_step": 3.25}
    model = hub.load(run)
    for each, steps in zip(found["samples"], (1, 2), strict=True):
        assert (each["steps"], each["columns"], each["rows"]) == (steps, 10, 6)
        expected, _ = generate(model.flow, model.spec, 60, steps=steps, seed=5, classes=range(10))
        assert np.array_equal(cells_of(run / "pictures" / each["file"], 10, 8, 5), expected[:, 0])
    held_out = load_data("digits", "test")
    real = cells_of(run / "pictures" / "real.png", 10, 8, 5)
    assert held_out.labels is not None
    for k, image in enumerate(real):  # column c has the first images of class c
        members = held_out.samples[held_out.labels == k % 10]
        assert np.array_equal(image, members[k // 10, 0])


def test_neighbours_are_the_nearest_training_images(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    illustrate(run, steps=[1])
    near, train = index_of(run)["neighbours"], load_data("digits", "train")
    model = hub.load(run)
    samples, _ = generate(model.flow, model.spec, 12, steps=1)
    squares = np.square(samples[:, None].astype(float) - train.samples[None].astype(float)).mean((2, 3, 4))
    distances = np.sqrt(squares) / 255
    assert near["median"] == pytest.approx(np.median(distances.min(1)), rel=1e-4)
    assert near["smallest"] == pytest.approx(distances.min(), rel=1e-4)
    assert (near["samples"], near["train"], near["held_out"]) == (12, len(train), 12)
    grid = cells_of(run / "pictures" / "neighbours.png", 10, 8, 5)
    for k in range(10):
        assert np.array_equal(grid[k], samples[k, 0])
        order = np.sort(distances[k])
        for rank in range(5):
            shown = np.sqrt(np.square(grid[10 * (rank + 1) + k].astype(float) - samples[k, 0]).mean()) / 255
            assert shown == pytest.approx(order[rank], rel=1e-4)


def test_a_set_that_was_copied_is_nearer_than_held_out_images() -> None:
    train = load_data("digits", "train").samples
    distances, places = illustrating.nearest_images(train[40:50], train, 2)
    assert np.array_equal(places[:, 0], np.arange(40, 50))
    assert distances[:, 0].max() == 0
    assert distances[:, 1].min() > 0


def test_nearest_images_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    train = load_data("digits", "train").samples
    whole = illustrating.nearest_images(train[:7], train, 3)
    monkeypatch.setattr(illustrating, "_BLOCK", 100)
    parts = illustrating.nearest_images(train[:7], train, 3)
    assert np.allclose(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])


@pytest.mark.parametrize("recipe", ["esc", "flow-matching", "shortcut"])
def test_ways_in_the_plane_are_those_of_the_sampler(recipe: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", recipe, "checkerboard")
    illustrate(run, steps=[1], seed=2)
    ways = np.load(run / "pictures" / "ways.npz")
    model = hub.load(run)
    assert ways["one"].shape == (2, 6, 2)
    assert ways["many"].shape == (5, 6, 2)
    assert np.array_equal(ways["one"][0], ways["many"][0])  # the same noise
    for name, steps in (("one", 1), ("many", 4)):
        ends = next(iter(sample(model.flow, 6, (2,), steps=steps, sampler=PushForward(), seed=2))).x
        assert np.allclose(ways[name][-1], ends.numpy(), atol=1e-6)
    at, t = torch.from_numpy(ways["field_at"]), torch.full((len(ways["field_at"]),), float(ways["field_times"][1]))
    with torch.inference_mode():
        assert np.allclose(ways["field"][1], model.flow.velocity(at, t).numpy(), atol=1e-6)


def test_the_states_of_a_push_forward_are_those_on_its_way(tmp_path: Path) -> None:
    model = hub.load(made_run(tmp_path / "run", "esc", "checkerboard"))
    eps, rule, times = noise(0, 0, 3, (2,)), PushForward(), grid_times(model.flow, 4)
    states = list(rule.states(model.flow, eps, times, None))
    assert len(states) == 5
    assert torch.equal(states[-1], rule.run(model.flow, eps, times, None))
    for k in range(1, 5):
        assert torch.equal(states[k], rule.run(model.flow, eps, times[: k + 1], None))


def test_what_a_model_cannot_do_is_noted_not_drawn(tmp_path: Path) -> None:
    """A model of jumps to the data has no way in many steps, and no velocity at r = t; shortcuts take powers of 2."""
    run = made_run(tmp_path / "run", "ict", "checkerboard")
    illustrate(run)
    ways = np.load(run / "pictures" / "ways.npz")
    assert "many" not in ways.files
    assert "field" not in ways.files
    assert any(
        "no ways in many steps: this model was trained only for jumps to the data" in n for n in index_of(run)["notes"]
    )
    with pytest.raises(SamplerError):
        illustrate(made_run(tmp_path / "shortcut", "shortcut", "checkerboard"), steps=[3])


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no model"):
        illustrate(run)
    assert not (run / "pictures").exists()
