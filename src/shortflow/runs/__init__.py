"""Whole runs: configure, train, sample and score, as functions. The command line is a thin shell around them."""

from shortflow.data.stored import open_images
from shortflow.runs.comparing import (
    Compared,
    compare,
    compared_table,
    drawn_images,
    extractor_named,
    remarks,
    statistics_of,
    training_images,
)
from shortflow.runs.configuring import configure, notes, open_run
from shortflow.runs.gathering import World, gather, processes
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
    "Compared",
    "Drawn",
    "World",
    "bf16_difference",
    "class_labels",
    "compare",
    "compared_table",
    "comparison_picture",
    "configure",
    "draw",
    "drawn_images",
    "extractor_named",
    "gather",
    "generate",
    "grid_named",
    "guided",
    "interpolation",
    "notes",
    "open_images",
    "open_run",
    "picture",
    "processes",
    "remarks",
    "sampler_named",
    "save_array",
    "save_folder",
    "score",
    "score_table",
    "statistics_of",
    "training",
    "training_images",
    "verdict",
]
