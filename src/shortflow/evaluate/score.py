"""The Inception score: how sure a classifier is of each image, and how unsure of all of them together.

IS = mean over splits of exp(mean_i KL(p_i ‖ q)),   p_i: the classes' probabilities of image i,
                                                        q: their mean in the split

With Σ_i Σ_c p log p and Σ_i p a split is known, so scores are sums that merge: no probabilities are kept. Splits are
`SPLITS` parts of the n images by their numbers. Numbers in a random order, as torch-fidelity has them, give every set a
score; in the order of the files, as in ADM (there parts of `ADM_SIZE`), a folder that is sorted by class has a lower
one. Source: Salimans et al.
2016, arXiv:1606.03498, section 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from shortflow.errors import MetricError

__all__ = ["ADM_SIZE", "SPLITS", "SplitScores"]

SPLITS = 10
ADM_SIZE = 5_000


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitScores:
    """Sums over the images of each split: a value that is merged, never changed.

    Attributes:
        count: images (s,).
        information: Σ_i Σ_c p_ic log p_ic, (s,).
        mass: Σ_i p_i, (s, c).
    """

    count: Int64[Tensor, "s"]
    information: Float64[Tensor, "s"]
    mass: Float64[Tensor, "s c"]

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "m c"],
        numbers: Int64[Tensor, "m"],
        n: int,
        splits: int = SPLITS,
        size: int | None = None,
    ) -> "SplitScores":
        """The sums of the images of these numbers, of n in all.

        Args:
            splits: s of them; split i holds numbers ⌊i n/s⌋ to ⌊(i + 1) n/s⌋ − 1.
            size: of each split but the last one, in place of their number.
        """
        log_p = logits.detach().cpu().double().log_softmax(1)
        bounds = [(i + 1) * n // splits for i in range(splits)] if size is None else [*range(size, n, size), n]
        ends, splits = torch.tensor(bounds), len(bounds)
        split = torch.searchsorted(ends, numbers, right=True)
        p = log_p.exp()
        return cls(
            count=torch.bincount(split, minlength=splits),
            information=torch.zeros(splits, dtype=torch.float64).index_add(0, split, (p * log_p).sum(1)),
            mass=torch.zeros(splits, logits.shape[1], dtype=torch.float64).index_add(0, split, p),
        )

    def merge(self, other: "SplitScores") -> "SplitScores":
        return SplitScores(
            count=self.count + other.count,
            information=self.information + other.information,
            mass=self.mass + other.mass,
        )

    def value(self) -> tuple[float, float]:
        """Mean and population standard deviation of the splits' scores.

        Raises:
            MetricError: if a split has no image.
        """
        if int(self.count.min()) == 0:
            raise MetricError(
                f"the Inception score needs {len(self.count)} images at least, one a split; got {int(self.count.sum())}"
            )
        q = self.mass / self.count[:, None]
        scores = (self.information / self.count - torch.special.xlogy(q, q).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The sums by name."""
        values = {"count": self.count, "information": self.information, "mass": self.mass}
        return {f"{prefix}{name}": value for name, value in values.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> "SplitScores":
        """The inverse of `tensors`."""
        return cls(
            count=tensors[f"{prefix}count"],
            information=tensors[f"{prefix}information"],
            mass=tensors[f"{prefix}mass"],
        )
