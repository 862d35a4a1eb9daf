"""Training: the step module, the loop (a generator of records), averages of the weights, state on disk.

`train` sees the objective, never a recipe; what consumes the records (logs, previews, checkpoints) is in `fit`.
"""

from shortflow.train.ema import Average
from shortflow.train.fit import Interrupted, fit
from shortflow.train.loop import train
from shortflow.train.record import StepRecord
from shortflow.train.settings import TrainSettings
from shortflow.train.step import TrainStep

__all__ = ["Average", "Interrupted", "StepRecord", "TrainSettings", "TrainStep", "fit", "train"]
