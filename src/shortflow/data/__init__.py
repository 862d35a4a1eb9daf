"""Data: built-in sets, folders of images and toys, their scaling, batch orders without state."""

from shortflow.data.builtin import load, names
from shortflow.data.conditions import Conditions, open_conditions, write_conditions
from shortflow.data.dataset import Dataset, DataSpec
from shortflow.data.loader import Batches
from shortflow.data.samplers import ClassConsistent, Shuffled

__all__ = [
    "Batches",
    "ClassConsistent",
    "Conditions",
    "DataSpec",
    "Dataset",
    "Shuffled",
    "load",
    "names",
    "open_conditions",
    "write_conditions",
]
