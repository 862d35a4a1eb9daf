"""Every recipe from its name to samples: trained for three steps, loaded, sampled. Only the name differs."""

from pathlib import Path

import numpy as np
import pytest

from shortflow import hub, runs
from shortflow.config import recipe_named
from shortflow.recipes import RECIPES, SETTINGS
from teachers import Teachers, settings_of

BUDGET = ("train.images=96", "train.batch=32", "train.preview_every=0")
NETWORKS = {
    "digits": "network={kind: SiTConfig, size: tiny, depth: 1, width: 32, heads: 2, patch: 4}",
    "mixture": "network={kind: MLPConfig, width: 32, depth: 1}",
}
CLASSES = {"digits": 10, "mixture": 8}
NAMES = [*RECIPES, *(f"{method}/{setting}" for method, others in SETTINGS.items() for setting in others[1:])]


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    return Teachers(tmp_path_factory.mktemp("teachers"))


def finished(directory: Path, recipe: str, data: str, teachers: Teachers) -> hub.Model:
    """The model after three steps, loaded from its file."""
    small = (*BUDGET, NETWORKS[data])
    given = teachers.given(recipe, data, small)
    run, dataset = runs.configure(recipe, data, settings=[*small, *settings_of(recipe)], **given)
    records = list(runs.training(run, dataset, directory))
    assert [(record.step, record.images) for record in records] == [(1, 32), (2, 64), (3, 96)]
    assert all(np.isfinite(record.loss) for record in records)
    model = hub.load(directory)
    assert (model.run, model.images, model.step) == (run, 96, 3)
    return model


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("data", NETWORKS)
def test_from_a_name_to_samples(recipe: str, data: str, tmp_path: Path, teachers: Teachers) -> None:
    model, count = finished(tmp_path, recipe, data, teachers), CLASSES[data]
    name = recipe_named(recipe).name
    assert (model.run.recipe.name, model.run.data.source, model.spec.num_classes) == (name, data, count)
    images = {}
    for steps in (1, 2, 4):
        images[steps], labels = runs.generate(model.flow, model.spec, count + 2, steps=steps, seed=1)
        assert labels is not None
        assert labels.tolist() == [*range(count), 0, 1]
        if data == "digits":
            assert (images[steps].dtype, images[steps].shape) == (np.uint8, (12, 1, 8, 8))
        else:
            assert (images[steps].dtype, images[steps].shape) == (np.float32, (10, 2))
            assert np.isfinite(images[steps]).all()
        assert len(np.unique(images[steps].reshape(count + 2, -1), axis=0)) == count + 2
    few, chosen = runs.generate(model.flow, model.spec, 3, classes=[count - 1, 0], seed=1)
    assert chosen is not None
    assert chosen.tolist() == [count - 1, 0, count - 1]
    assert not np.array_equal(few, runs.generate(model.flow, model.spec, 3, classes=[count - 1, 0], seed=2)[0])
    assert not np.array_equal(images[1], images[2])


@pytest.mark.parametrize(
    ("recipe", "data"), [("esc", "digits"), ("imm", "mixture"), ("reflow", "mixture"), ("cd", "digits")]
)
def test_the_same_run_gives_the_same_samples_to_the_last_bit(
    recipe: str, data: str, tmp_path: Path, teachers: Teachers
) -> None:
    one, other = (finished(tmp_path / name, recipe, data, teachers) for name in ("one", "other"))
    for steps in (1, 2):
        pixels, again = (runs.generate(model.flow, model.spec, 16, steps=steps)[0] for model in (one, other))
        assert np.array_equal(pixels, again)
