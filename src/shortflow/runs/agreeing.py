"""Whether the processes of a run see the same data.

Each draws its parts of a batch from its own copy. A copy with a file less has another order from there on, and maybe
other numbers for the classes: training goes on, and learns something else. So before the first step they compare what
is cheap: counts, names and numbers of the classes, and a few samples to the last bit.
"""

import hashlib
import platform
from typing import Any

import numpy as np

from shortflow.data import Dataset
from shortflow.data.encoded import Encoded
from shortflow.errors import DataError
from shortflow.train.engine import Engine

__all__ = ["check_same_data", "fingerprint"]

LOOKED_AT = 16  # samples, evenly over the whole set

_WORDS = {
    "count": "{found:,} samples, process 0 on {host} has {wanted:,}",
    "shape": "samples of shape {found}, process 0 on {host} of shape {wanted}",
    "classes": "other classes than process 0 on {host}, or numbers them otherwise",
    "labels": "other labels than process 0 on {host}",
    "units": "latents in other units than process 0 on {host}",
    "encoder": "another autoencoder than process 0 on {host}",
    "conditions": "other conditions than process 0 on {host}",
    "samples": "other samples than process 0 on {host}, or another order of them",
}


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What is compared, as JSON: counts as they are, and sums over the rest."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, LOOKED_AT).round().astype(np.int64))
    samples = dataset.samples
    picked = np.take(np.asarray(samples.images), rows, axis=0) if isinstance(samples, Encoded) else samples[rows]
    return {
        "count": len(dataset),
        "shape": list(dataset.shape),
        "classes": _sum("\0".join(dataset.classes).encode()),
        "labels": None if dataset.labels is None else _sum(np.ascontiguousarray(dataset.labels)),
        "units": None if dataset.latent is None else dataset.latent.to_dict(),
        "encoder": samples.autoencoder.sha256 if isinstance(samples, Encoded) else None,
        "conditions": None if dataset.conditions is None else _sum(dataset.conditions.take(rows)),
        "samples": _sum(np.ascontiguousarray(picked)),
    }


def _sum(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def check_same_data(engine: Engine, dataset: Dataset) -> None:
    """Raise `DataError` in every process where one sees other data than the first."""
    if engine.world == 1:
        return
    (host, first), *others = engine.gathered((platform.node(), fingerprint(dataset)))
    for rank, (own, found) in enumerate(others, 1):
        for name, words in _WORDS.items():
            if found[name] != first[name]:
                told = words.format(found=found[name], wanted=first[name], host=host)
                raise DataError(
                    f"{dataset.name}: process {rank} on {own} has {told}; all processes must see the same data, so "
                    "copy them anew to that machine, or give a folder that all machines see"
                )
