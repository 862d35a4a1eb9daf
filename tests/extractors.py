"""Small feature networks for tests of everything around them."""

import numpy as np
import torch
from torch import Tensor

from shortflow.evaluate import Activations, Extractor


def small(
    dimension: int = 6,
    *,
    channels: int = 3,
    seed: int = 0,
    published: bool = False,
    name: str = "small",
    spatial: int = 4,
) -> Extractor:
    """Random projections of 8×8 images through a tanh: features, 5 logits, some spatial features."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels * 64, dimension + 5 + spatial, generator=generator, dtype=torch.float64) / 8

    def network(x: Tensor) -> Activations:
        # Row by row in float64, so that nothing depends on which images are seen together.
        out = torch.stack([torch.tanh(row.flatten().double() @ weight) for row in x])
        return Activations(
            features=out[:, :dimension],
            logits=3 * out[:, dimension : dimension + 5],
            spatial=out[:, dimension + 5 :] if spatial else None,
        )

    return Extractor(
        name=name,
        weights=f"{seed:064x}",
        dimension=dimension,
        network=network,
        size=8,
        resize="tf1-bilinear",
        mean=(128.0,),
        std=(64.0,),
        channels=channels,
        published=published,
    )


def pictures(n: int, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, side, side), dtype=np.uint8)
