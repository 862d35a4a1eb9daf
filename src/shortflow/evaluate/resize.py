"""How images are brought to the side that a feature network wants: a choice that moves every distance.

tf1-bilinear        two points an axis, no half-pixel offset, no filter: TensorFlow 1's `ResizeBilinear`; that of
                    FID, ADM, torch-fidelity
bilinear            two points an axis at pixel centres, no filter; that of pytorch-fid
bicubic-antialias   Keys' cubic with a = −½, widened where it shrinks, not rounded: Pillow's bicubic on floats;
                    that of clean-fid and DINOv2
none                as they are; small classifiers
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shortflow.errors import MetricError

__all__ = ["RESIZES", "resized", "tf1_bilinear"]


def tf1_bilinear(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Bilinear interpolation as the Inception graph of 2015 has it: `align_corners` and `half_pixel_centers` off.

    Output pixel i lies at y = i·(h/size) in float32 and is x[⌊y⌋] + (x[⌊y⌋ + 1] − x[⌊y⌋])·(y − ⌊y⌋), the index ending
    at h − 1; columns first, then rows. The last pixels therefore repeat the edge, and shrinking skips pixels.
    """
    for axis in (3, 2):
        low, high, weight = _places(images.shape[axis], size, images)
        a, b = images.index_select(axis, low), images.index_select(axis, high)
        images = a + (b - a) * (weight if axis == 3 else weight[:, None])
    return images


def _places(side: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels that each output pixel lies between, and the weight of the second."""
    scale = torch.tensor(side, dtype=torch.float32) / torch.tensor(size, dtype=torch.float32)
    at = torch.arange(size, dtype=torch.float32) * scale
    low = at.floor().long().clamp(max=side - 1)
    high = (low + 1).clamp(max=side - 1)
    return low.to(like.device), high.to(like.device), (at - low).to(like)


def _bilinear(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)


def _bicubic_antialias(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


RESIZES: dict[str, Callable[[Tensor, int], Tensor] | None] = {
    "tf1-bilinear": tf1_bilinear,
    "bilinear": _bilinear,
    "bicubic-antialias": _bicubic_antialias,
    "none": None,
}


def resized(images: Float[Tensor, "n c h w"], name: str, size: int | None) -> Float[Tensor, "n c s s"]:
    """`images` by the resize of that name, which leaves images of that size as they are.

    Raises:
        MetricError: if there is no such resize, one is named without a size, or images that must not be resized have
            another size.
    """
    if name not in RESIZES:
        raise MetricError(f"there is no resize called {name!r}; there are {', '.join(RESIZES)}")
    resize = RESIZES[name]
    if resize is not None:
        if size is None:
            raise MetricError(f"the resize {name} needs the side that the network wants; give a size")
        return resize(images, size)
    if size is not None and tuple(images.shape[2:]) != (size, size):
        raise MetricError(
            f"these features are of images of {size}×{size} pixels, got {images.shape[3]}×{images.shape[2]}; bring "
            "them to that resolution first, or name a resize"
        )
    return images
