"""What the checks before the first step cost, on a network of a published width: at most 1.5 steps of four rows.

In processor time, so that what else the machine does is not in it.
"""

import time
from dataclasses import replace

import pytest
import torch

from benchmarks.subjects import SIZES, built, settings
from shortflow.train import TrainSettings, TrainStep, train
from shortflow.typing import Batch

ROWS, STEPS = 4, 3


@pytest.mark.slow
def test_the_checks_cost_less_than_a_step_and_a_half_of_four_rows() -> None:
    size = replace(SIZES["B/4"], batch=ROWS)
    recipe = settings(1, ROWS)
    noise = torch.randn(ROWS, *size.spec.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(x=noise, label=torch.arange(ROWS))
    asked = TrainSettings(images=STEPS * ROWS, batch=ROWS, log_every=STEPS, trackers=())
    records = train(TrainStep(built(size, recipe), recipe.objective), asked, recipe.optimizer, lambda step: batch)
    spent = []
    for _ in range(STEPS):
        began = time.process_time()
        next(records)
        spent.append(time.process_time() - began)
    first, step = spent[0], min(spent[1:])
    assert first - step < 1.5 * step  # the moments are made in the first step, too
