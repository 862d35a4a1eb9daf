"""Whole runs: configure, train, sample and score, as functions. The command line is a thin shell around them."""

from shortflow.runs.configuring import configure, notes, open_run
from shortflow.runs.running import training
from shortflow.runs.sampling import (
    comparison_picture,
    generate,
    grid_named,
    guided,
    interpolation,
    picture,
    sampler_named,
)
from shortflow.runs.scoring import score, score_table, verdict

__all__ = [
    "comparison_picture",
    "configure",
    "generate",
    "grid_named",
    "guided",
    "interpolation",
    "notes",
    "open_run",
    "picture",
    "sampler_named",
    "score",
    "score_table",
    "training",
    "verdict",
]
