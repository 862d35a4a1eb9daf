"""Whole runs: configure, train, sample and score, as functions. The command line is a thin shell around them."""

from shortflow.runs.configuring import configure, notes, open_run
from shortflow.runs.planning import Plan, plan
from shortflow.runs.running import training
from shortflow.runs.sampling import (
    Drawn,
    bf16_difference,
    class_labels,
    comparison_picture,
    draw,
    generate,
    grid_named,
    guided,
    interpolation,
    picture,
    sampler_named,
)
from shortflow.runs.scoring import score, score_table, verdict
from shortflow.runs.streaming import save_array, save_folder

__all__ = [
    "Drawn",
    "Plan",
    "bf16_difference",
    "class_labels",
    "comparison_picture",
    "configure",
    "draw",
    "generate",
    "grid_named",
    "guided",
    "interpolation",
    "notes",
    "open_run",
    "picture",
    "plan",
    "sampler_named",
    "save_array",
    "save_folder",
    "score",
    "score_table",
    "training",
    "verdict",
]
