"""LPIPS: the distance of two images in the features of a VGG16, channel by channel in learned weights.

    d(x, y) = Σ_l mean_{h,w} Σ_c w_{l,c} (f̂_{l,c}(x) − f̂_{l,c}(y))²,   f̂ = f/(‖f‖ + 10⁻¹⁰) with the norm over channels,

f_l the activations after the last convolution of the l-th of five stages. Source: Zhang et al. 2018 (arXiv 1801.03924),
version 0.1. The packages that offer it need torchvision and download weights by themselves; a stack of thirteen
convolutions needs neither.
"""

import math
import pickle
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.losses.metrics import Metric, Rows, Space, State, at_least_single

__all__ = ["Perceptual"]

Images = Float[Tensor, "b 3 h w"]

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# The mean and standard deviation of ImageNet's colours for pixels in [−1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST = 2 ** (len(STAGES) - 1)  # side that the poolings between the stages leave something of

TRUNK = "VGG16 as torchvision lays it out (features.0.weight, …; its file is called vgg16-397923af.pth)"
HEADS = "the linear heads of LPIPS 0.1 on VGG16 (lin0.model.1.weight, …; weights/v0.1/vgg.pth in the package lpips)"


class Weights(NamedTuple):
    """The (weight, bias) of each convolution of each stage, and the weight of each channel at the end of a stage."""

    stages: tuple[tuple[tuple[Tensor, Tensor], ...], ...]
    heads: tuple[Float[Tensor, "1 c 1 1"], ...]


def _tensors(path: str, what: str) -> Any:
    """What the file holds, a mapping of names to tensors if it is the right one."""
    file = Path(path).expanduser()
    try:
        if file.suffix == ".safetensors":
            return load_file(str(file))
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ShortflowError(
            f"Perceptual: there is no file {file}; give the path of {what}. Weights are never downloaded"
        ) from error
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # Without the error's own text: torch advises to load such a file with its code, which nobody should.
        raise ShortflowError(
            f"Perceptual: {file} cannot be read ({type(error).__name__}); it must hold {what}"
        ) from error


def _take(tensors: Any, name: str, shape: tuple[int, ...], path: str, what: str) -> Tensor:
    found = tensors.get(name) if isinstance(tensors, dict) else None
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        have = tuple(found.shape) if isinstance(found, Tensor) else "nothing"
        raise ShortflowError(f"Perceptual: {path} should hold {name} of shape {shape}, but has {have}; give {what}")
    return found


@lru_cache(maxsize=4)
def load_weights(trunk: str, heads: str, device: torch.device, dtype: torch.dtype) -> Weights:
    """The weights in the two files, on the device.

    Raises:
        ShortflowError: if a file is missing or holds something else.
    """
    convolutions, linear = _tensors(trunk, TRUNK), _tensors(heads, HEADS)
    stages, index, channels = [], 0, 3
    for widths in STAGES:
        stage = []
        for width in widths:
            shapes = {"weight": (width, channels, 3, 3), "bias": (width,)}
            stage.append(
                tuple(
                    _take(convolutions, f"features.{index}.{name}", shape, trunk, TRUNK).to(device, dtype)
                    for name, shape in shapes.items()
                )
            )
            index, channels = index + 2, width  # a rectifier follows
        stages.append(tuple(stage))
        index += 1  # and a pooling at the end of a stage
    found = []
    for number, widths in enumerate(STAGES):
        head = _take(linear, f"lin{number}.model.1.weight", (1, widths[-1], 1, 1), heads, HEADS)
        if not bool((head >= 0).all()):
            raise ShortflowError(f"Perceptual: {heads} holds negative weights of channels, so it is not {HEADS}")
        found.append(head.to(device, dtype))
    return Weights(tuple(stages), tuple(found))


def features(x: Images, weights: Weights, pooling: Literal["max", "average"]) -> list[Float[Tensor, "b _c _h _w"]]:
    """f̂_l(x) for images in [−1, 1]."""
    shift, scale = (x.new_tensor(values).reshape(1, 3, 1, 1) for values in (SHIFT, SCALE))
    pool = functional.max_pool2d if pooling == "max" else functional.avg_pool2d
    hidden, found = (x - shift) / scale, []
    for number, stage in enumerate(weights.stages):
        if number > 0:
            hidden = pool(hidden, 2)
        for weight, bias in stage:
            hidden = torch.relu(functional.conv2d(hidden, weight, bias, padding=1))
        # The gradient of this norm at 0 is 0; that of a root of a sum of squares would be NaN.
        found.append(hidden / (torch.linalg.vector_norm(hidden, dim=1, keepdim=True) + 1e-10))
    return found


@dataclass(frozen=True, kw_only=True)
class Perceptual(Metric):
    """LPIPS of images with a VGG16, in state space; one or three channels (one is repeated).

    Images must be x = X/scale + shift ∈ [−1, 1] for network units X: `shift` and `scale` are those of the run's
    `DataSpec` (0 and 1 unless the recipe scales data to its `sigma_data`). Values outside are not clamped. Images with
    a side shorter than `size` are enlarged bilinearly, such that it has `size` pixels; None leaves them.

    The published consistency models have size=224, which they apply to sides below 256, and pooling="average": their
    library replaces the maxima of VGG16 by means. LPIPS as published has pooling="max".

    Checked on random weights against the sums written out, and against the package lpips 0.1.4 on the same trunk: the
    published heads with random convolutions. Not checked: absolute values with the published VGG16 weights, which were
    not at hand.

    Args:
        trunk: path of a file (.pth or .safetensors) with the weights of VGG16 in torchvision's layout.
        heads: path of a file with the linear heads of LPIPS 0.1 for VGG16. Neither is ever downloaded; both are read
            when the metric is first used.

    Raises:
        IncompatibleParts: from a call on samples that are no images of one or three channels, or are too small.
        ShortflowError: from the first call, if a file is missing or holds something else.
    """

    trunk: str
    heads: str
    size: int | None = 224
    pooling: Literal["max", "average"] = "max"
    shift: float = 0.0
    scale: float = 1.0
    space: Space = field(default="state", init=False)

    def __post_init__(self) -> None:
        for name, path, what in (("trunk", self.trunk, TRUNK), ("heads", self.heads, HEADS)):
            if not path.strip():
                raise ShortflowError(f"Perceptual: {name} is empty; give the path of {what}")
        if self.size is not None and self.size < SMALLEST:
            raise ShortflowError(f"Perceptual: size must be at least {SMALLEST}, or null, got {self.size}")
        if self.pooling not in ("max", "average"):
            raise ShortflowError(f"Perceptual: pooling must be 'max' or 'average', got {self.pooling!r}")
        if not (self.scale > 0 and math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise ShortflowError(
                f"Perceptual: scale must be positive and finite and shift finite, got {self.scale} and {self.shift}"
            )

    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        # Outside autocast: small differences of features are what the error consists of.
        with torch.autocast(prediction.device.type, enabled=False):
            x, y = self._images(prediction), self._images(target)
            weights = load_weights(self.trunk, self.heads, x.device, x.dtype)
            error = x.new_zeros(len(x))
            pairs = zip(features(x, weights, self.pooling), features(y, weights, self.pooling), strict=True)
            for head, (mine, theirs) in zip(weights.heads, pairs, strict=True):
                error = error + (head * (mine - theirs).square()).sum(1).mean((1, 2))
        return error

    def _images(self, state: State) -> Images:
        """The state as images of three channels in [−1, 1], of the size that the features are taken at."""
        if state.ndim != 4 or state.shape[1] not in (1, 3):
            raise IncompatibleParts(
                f"Perceptual compares images of one or three channels, got samples of shape {tuple(state.shape[1:])}; "
                "use SquaredError or PseudoHuber"
            )
        x = at_least_single(state) / self.scale + self.shift
        x = x.expand(-1, 3, -1, -1)
        h, w = x.shape[2:]
        if self.size is not None and min(h, w) < self.size:
            factor = self.size / min(h, w)
            size = (round(h * factor), round(w * factor))
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        if min(x.shape[2:]) < SMALLEST:
            raise IncompatibleParts(f"Perceptual needs sides of at least {SMALLEST} pixels, got {h} × {w}; set size")
        return x
