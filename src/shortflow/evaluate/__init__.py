"""Metrics of generated samples. Knows arrays only: uint8 images or points in, numbers and JSON records out."""

from shortflow.evaluate.classifier import (
    Classifier,
    LoadedClassifier,
    classifier_names,
    load_classifier,
    read_classifier,
)
from shortflow.evaluate.frechet import Moments, frechet_distance
from shortflow.evaluate.kernel import kernel_distance
from shortflow.evaluate.neighbours import NeighbourScores, neighbour_radii, neighbour_scores
from shortflow.evaluate.points import energy_distance, sliced_wasserstein
from shortflow.evaluate.record import markdown_table, table, write_record
from shortflow.evaluate.reference import Features, Reference
from shortflow.evaluate.run import compare_points, evaluate_images, real_row

__all__ = [
    "Classifier",
    "Features",
    "LoadedClassifier",
    "Moments",
    "NeighbourScores",
    "Reference",
    "classifier_names",
    "compare_points",
    "energy_distance",
    "evaluate_images",
    "frechet_distance",
    "kernel_distance",
    "load_classifier",
    "markdown_table",
    "neighbour_radii",
    "neighbour_scores",
    "read_classifier",
    "real_row",
    "sliced_wasserstein",
    "table",
    "write_record",
]
