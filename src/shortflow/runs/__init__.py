"""Whole runs: configure, train, sample and score, as functions. The command line is a thin shell around them."""

from shortflow.data.stored import open_images
from shortflow.runs.comparing import (
    Compared,
    compare,
    drawn_images,
    extractor_named,
    statistics_of,
    training_images,
)
from shortflow.runs.configuring import configure, notes, open_run
from shortflow.runs.decoding import Decoding, decoding, save_latents
from shortflow.runs.drawing import Drawing
from shortflow.runs.encoding import encode, rescaled
from shortflow.runs.feeds import Images, Stored
from shortflow.runs.gathering import World, gather, processes
from shortflow.runs.illustrating import illustrate
from shortflow.runs.loading import training_data
from shortflow.runs.pacing import Pace, pace
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
    held_out_conditions,
    interpolation,
    picture,
    sampler_named,
)
from shortflow.runs.scoring import score, score_table, verdict
from shortflow.runs.storing import Encoded, EncodeSettings
from shortflow.runs.streaming import save_array, save_folder
from shortflow.runs.wording import compared_table, remarks

__all__ = [
    "Compared",
    "Decoding",
    "Drawing",
    "Drawn",
    "EncodeSettings",
    "Encoded",
    "Images",
    "Pace",
    "Plan",
    "Stored",
    "World",
    "bf16_difference",
    "class_labels",
    "compare",
    "compared_table",
    "comparison_picture",
    "configure",
    "decoding",
    "draw",
    "drawn_images",
    "encode",
    "extractor_named",
    "gather",
    "generate",
    "grid_named",
    "guided",
    "held_out_conditions",
    "illustrate",
    "interpolation",
    "notes",
    "open_images",
    "open_run",
    "pace",
    "picture",
    "plan",
    "processes",
    "remarks",
    "rescaled",
    "sampler_named",
    "save_array",
    "save_folder",
    "save_latents",
    "score",
    "score_table",
    "statistics_of",
    "training",
    "training_data",
    "training_images",
    "verdict",
]
