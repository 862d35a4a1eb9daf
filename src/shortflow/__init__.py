"""shortflow: one-step generative models trained from scratch, with every part exchangeable.

    prediction   X_{t,r}(x_t)                one jump of the network
    target       X_{s,r} ∘ X_{t,s}(x_t)      two jumps, without gradient
    loss         weighting(metric(prediction, target))

Names are loaded when they are first used, so importing the package is fast.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "shortflow.paths": "Cosine CustomPath Linear Path VarianceExploding",
    "shortflow.laws": "Beta Largest LogNormalNoise LogStudentNoise LogitNormal TrigLogNormal Truncated Uniform",
    "shortflow.times": "Between BoundaryRows Diagonal Dyadic GapThenEnd Gradual GridPairs GroupedJumps Independent "
    "Neighbours Nested Sorted StagedDyadic TimeSampler ToData Triangle WithDiagonal",
    "shortflow.flowmap": "FlowMap",
    "shortflow.parameterizations": "AverageVelocity Denoiser EDM EDMSkip NoisePrediction SimpleEDM Transfer "
    "TrigFlow TrigJump",
    "shortflow.velocity": "Conditional Mixture Own PlugIn Reference Velocity",
    "shortflow.guidance": "Guided guide",
    "shortflow.targets": "Along Direct Eulerian Secant Split Tangent Target Terminal TwoStep",
    "shortflow.losses": "Adaptive Boundary ByTime KernelMMD Metric Perceptual Product PseudoHuber SquaredError "
    "Unweighted Variational Weighting",
    "shortflow.objective": "Objective",
    "shortflow.optimizer": "Optimizer",
    "shortflow.recipe": "Recipe",
    "shortflow.recipes": "RECIPES",
    # The function `sample` is left to its module, which has the same name; `generate` decodes, too.
    "shortflow.sample": "Euler Gamma Heun PushForward ReNoise Restart",
    "shortflow.hub": "load",
    "shortflow.runs": "configure generate open_run score training",
    "shortflow.studies": "Study compare",
    "shortflow.config": "register",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME_OF)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'shortflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
