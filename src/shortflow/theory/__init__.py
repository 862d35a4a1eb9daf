"""Data laws whose velocity, flow map and variances are known exactly: the oracle of the tests and an instrument."""

from shortflow.theory.finite import FiniteData
from shortflow.theory.gaussian import Gaussian
from shortflow.theory.law import Law
from shortflow.theory.mixture import GaussianMixture
from shortflow.theory.network import ExactNetwork, exact_flow
from shortflow.theory.rotated import Rotated
from shortflow.theory.solve import rk4, rk4_average_velocity

__all__ = [
    "ExactNetwork",
    "FiniteData",
    "Gaussian",
    "GaussianMixture",
    "Law",
    "Rotated",
    "exact_flow",
    "rk4",
    "rk4_average_velocity",
]
