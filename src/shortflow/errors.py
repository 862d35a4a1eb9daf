"""Errors that name the value and the remedy. All of them are `ValueError`s, so one `except` catches bad input."""


class ShortflowError(ValueError):
    """Base of every error that a user can cause; the message says what was given and what to do."""


class IncompatibleParts(ShortflowError):
    """Two parts of a recipe cannot work together. Raised at construction, before the first tensor."""


class DataError(ShortflowError):
    """A data set, folder or file cannot be used. Names the file and the remedy."""


class ConfigError(ShortflowError):
    """One or more settings are unknown, of the wrong type or impossible. Lists all of them."""


class CheckpointError(ShortflowError):
    """A run directory or checkpoint is missing, damaged or belongs to something else."""


class SamplerError(ShortflowError):
    """The sampler and what the network was trained for do not fit."""


class MetricError(ShortflowError):
    """A metric cannot be computed from what was given."""


def require(condition: bool, message: str) -> None:
    """Raise `ShortflowError(message)` unless the condition holds."""
    if not condition:
        raise ShortflowError(message)
