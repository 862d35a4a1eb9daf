"""Metrics of generated samples. Knows arrays only: uint8 images or points in, numbers and JSON records out."""

from shortflow.evaluate.classifier import (
    Classifier,
    LoadedClassifier,
    classifier_names,
    load_classifier,
    read_classifier,
)
from shortflow.evaluate.compare import check_comparable, compare_statistics, distance_name, statistics_table
from shortflow.evaluate.extractor import Activations, Extractor, classifier_features
from shortflow.evaluate.frechet import Gaussian, Moments, frechet_distance
from shortflow.evaluate.inception import Inception, download_inception, load_inception
from shortflow.evaluate.kernel import kernel_distance
from shortflow.evaluate.neighbours import NeighbourScores, neighbour_radii, neighbour_scores
from shortflow.evaluate.points import energy_distance, sliced_wasserstein
from shortflow.evaluate.program import load_program, save_program
from shortflow.evaluate.record import markdown_table, table, write_record
from shortflow.evaluate.reference import Features, Reference
from shortflow.evaluate.resize import tf1_bilinear
from shortflow.evaluate.run import compare_points, evaluate_images, real_row
from shortflow.evaluate.score import SplitScores
from shortflow.evaluate.statistics import Statistics, holds_images, holds_statistics, read_statistics
from shortflow.evaluate.tally import Plan, Tally

__all__ = [
    "Activations",
    "Classifier",
    "Extractor",
    "Features",
    "Gaussian",
    "Inception",
    "LoadedClassifier",
    "Moments",
    "NeighbourScores",
    "Plan",
    "Reference",
    "SplitScores",
    "Statistics",
    "Tally",
    "check_comparable",
    "classifier_features",
    "classifier_names",
    "compare_points",
    "compare_statistics",
    "distance_name",
    "download_inception",
    "energy_distance",
    "evaluate_images",
    "frechet_distance",
    "holds_images",
    "holds_statistics",
    "kernel_distance",
    "load_classifier",
    "load_inception",
    "load_program",
    "markdown_table",
    "neighbour_radii",
    "neighbour_scores",
    "read_classifier",
    "read_statistics",
    "real_row",
    "save_program",
    "sliced_wasserstein",
    "statistics_table",
    "table",
    "tf1_bilinear",
    "write_record",
]
