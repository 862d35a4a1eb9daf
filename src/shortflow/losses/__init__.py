"""Per-sample errors (metrics) and what is made of them (weightings).

A metric compares prediction and target row by row and returns one number a row; a weighting turns errors into losses.
Nothing here averages over the batch. Shapes are (b,) throughout and checked: a (b, 1) log-variance against a (b,)
error would silently broadcast to (b, b). Errors and losses are computed in single precision at least, whatever the
precision of the network.
"""

from shortflow.losses.metrics import Metric, PseudoHuber, SquaredError
from shortflow.losses.mmd import KernelMMD, grouped_mmd
from shortflow.losses.perceptual import Perceptual
from shortflow.losses.weightings import Adaptive, Boundary, ByTime, Product, Unweighted, Variational, Weighting

__all__ = [
    "Adaptive",
    "Boundary",
    "ByTime",
    "KernelMMD",
    "Metric",
    "Perceptual",
    "Product",
    "PseudoHuber",
    "SquaredError",
    "Unweighted",
    "Variational",
    "Weighting",
    "grouped_mmd",
]
