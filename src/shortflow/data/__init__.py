"""Data: built-in sets, folders of images and toys in memory, their scaling, and batch orders without state."""

from shortflow.data.builtin import load, names
from shortflow.data.dataset import Dataset, DataSpec
from shortflow.data.samplers import ClassConsistent, Shuffled

__all__ = ["ClassConsistent", "DataSpec", "Dataset", "Shuffled", "load", "names"]
