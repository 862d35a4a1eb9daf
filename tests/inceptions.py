"""The FID Inception-v3 stated once more, layer by layer in plain functions, and files of random weights in its layout.

Nothing here comes from the library: the layout is written down from the published file's names, the layers from the
graph. `write` makes such a file, `activations` runs it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

# name of a block: [(name of a convolution, channels in, channels out, kernel height, kernel width)]
A = [
    ("branch1x1", "in", 64, 1, 1),
    ("branch5x5_1", "in", 48, 1, 1),
    ("branch5x5_2", 48, 64, 5, 5),
    ("branch3x3dbl_1", "in", 64, 1, 1),
    ("branch3x3dbl_2", 64, 96, 3, 3),
    ("branch3x3dbl_3", 96, 96, 3, 3),
    ("branch_pool", "in", "pool", 1, 1),
]
B = [
    ("branch3x3", "in", 384, 3, 3),
    ("branch3x3dbl_1", "in", 64, 1, 1),
    ("branch3x3dbl_2", 64, 96, 3, 3),
    ("branch3x3dbl_3", 96, 96, 3, 3),
]
C = [
    ("branch1x1", "in", 192, 1, 1),
    ("branch7x7_1", "in", "c7", 1, 1),
    ("branch7x7_2", "c7", "c7", 1, 7),
    ("branch7x7_3", "c7", 192, 7, 1),
    ("branch7x7dbl_1", "in", "c7", 1, 1),
    ("branch7x7dbl_2", "c7", "c7", 7, 1),
    ("branch7x7dbl_3", "c7", "c7", 1, 7),
    ("branch7x7dbl_4", "c7", "c7", 7, 1),
    ("branch7x7dbl_5", "c7", 192, 1, 7),
    ("branch_pool", "in", 192, 1, 1),
]
D = [
    ("branch3x3_1", "in", 192, 1, 1),
    ("branch3x3_2", 192, 320, 3, 3),
    ("branch7x7x3_1", "in", 192, 1, 1),
    ("branch7x7x3_2", 192, 192, 1, 7),
    ("branch7x7x3_3", 192, 192, 7, 1),
    ("branch7x7x3_4", 192, 192, 3, 3),
]
E = [
    ("branch1x1", "in", 320, 1, 1),
    ("branch3x3_1", "in", 384, 1, 1),
    ("branch3x3_2a", 384, 384, 1, 3),
    ("branch3x3_2b", 384, 384, 3, 1),
    ("branch3x3dbl_1", "in", 448, 1, 1),
    ("branch3x3dbl_2", 448, 384, 3, 3),
    ("branch3x3dbl_3a", 384, 384, 1, 3),
    ("branch3x3dbl_3b", 384, 384, 3, 1),
    ("branch_pool", "in", 192, 1, 1),
]
BLOCKS: list[tuple[str, list[Any], dict[str, int]]] = [
    ("Mixed_5b", A, {"in": 192, "pool": 32}),
    ("Mixed_5c", A, {"in": 256, "pool": 64}),
    ("Mixed_5d", A, {"in": 288, "pool": 64}),
    ("Mixed_6a", B, {"in": 288}),
    ("Mixed_6b", C, {"in": 768, "c7": 128}),
    ("Mixed_6c", C, {"in": 768, "c7": 160}),
    ("Mixed_6d", C, {"in": 768, "c7": 160}),
    ("Mixed_6e", C, {"in": 768, "c7": 192}),
    ("Mixed_7a", D, {"in": 768}),
    ("Mixed_7b", E, {"in": 1280}),
    ("Mixed_7c", E, {"in": 2048}),
]
STEM = [
    ("Conv2d_1a_3x3", 3, 32, 3),
    ("Conv2d_2a_3x3", 32, 32, 3),
    ("Conv2d_2b_3x3", 32, 64, 3),
    ("Conv2d_3b_1x1", 64, 80, 1),
    ("Conv2d_4a_3x3", 80, 192, 3),
]


def random_weights(seed: int = 0, counts: bool = True) -> Weights:
    """Weights under which activations keep their size through the network, and every number has an effect."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def unit(name: str, inputs: int, out: int, height: int, width: int) -> None:
        scale = (2 / (inputs * height * width)) ** 0.5
        weights[f"{name}.conv.weight"] = scale * torch.randn(out, inputs, height, width, generator=generator)
        weights[f"{name}.bn.weight"] = 0.8 + 0.4 * torch.rand(out, generator=generator)
        weights[f"{name}.bn.bias"] = 0.1 * torch.randn(out, generator=generator)
        weights[f"{name}.bn.running_mean"] = 0.1 * torch.randn(out, generator=generator)
        weights[f"{name}.bn.running_var"] = 0.7 + 0.6 * torch.rand(out, generator=generator)
        if counts:
            weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)

    for name, inputs, out, side in STEM:
        unit(name, inputs, out, side, side)
    for block, convs, sizes in BLOCKS:
        for name, inputs, out, height, width in convs:
            unit(f"{block}.{name}", sizes.get(inputs, inputs), sizes.get(out, out), height, width)
    weights["fc.weight"] = 0.05 * torch.randn(1008, 2048, generator=generator)
    weights["fc.bias"] = 0.1 * torch.randn(1008, generator=generator)
    return weights


def write(path: Path, seed: int = 0, counts: bool = True) -> Path:
    torch.save(random_weights(seed, counts), path)
    return path


def resize(images: np.ndarray, size: int = 299) -> np.ndarray:
    """TensorFlow 1's bilinear resize, pixel by pixel: images (n, c, h, w) → float32 (n, c, size, size)."""
    images = images.astype(np.float32)
    n, c, h, w = images.shape
    out = np.zeros((n, c, size, size), np.float32)
    for i in range(size):
        y = np.float32(i) * (np.float32(h) / np.float32(size))
        top, bottom = int(y), min(int(y) + 1, h - 1)
        for j in range(size):
            x = np.float32(j) * (np.float32(w) / np.float32(size))
            left, right = int(x), min(int(x) + 1, w - 1)
            u = images[:, :, top, left] + (images[:, :, top, right] - images[:, :, top, left]) * (x - left)
            v = images[:, :, bottom, left] + (images[:, :, bottom, right] - images[:, :, bottom, left]) * (x - left)
            out[:, :, i, j] = u + (v - u) * (y - top)
    return out


def _conv(w: Weights, name: str, x: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    x = F.conv2d(x, w[f"{name}.conv.weight"], None, stride, padding)
    shape = (1, -1, 1, 1)
    x = (x - w[f"{name}.bn.running_mean"].view(shape)) / (w[f"{name}.bn.running_var"].view(shape) + 0.001).sqrt()
    return (x * w[f"{name}.bn.weight"].view(shape) + w[f"{name}.bn.bias"].view(shape)).clamp(min=0)


def _average(x: Tensor) -> Tensor:
    """3×3 means over the pixels that there are."""
    total = F.conv2d(x.flatten(0, 1)[:, None], torch.ones(1, 1, 3, 3), padding=1).view_as(x)
    return total / F.conv2d(torch.ones(1, 1, *x.shape[2:]), torch.ones(1, 1, 3, 3), padding=1)


def _block_a(w: Weights, b: str, x: Tensor) -> Tensor:
    five = _conv(w, f"{b}.branch5x5_2", _conv(w, f"{b}.branch5x5_1", x), padding=(2, 2))
    three = _conv(w, f"{b}.branch3x3dbl_2", _conv(w, f"{b}.branch3x3dbl_1", x), padding=(1, 1))
    three = _conv(w, f"{b}.branch3x3dbl_3", three, padding=(1, 1))
    return torch.cat([_conv(w, f"{b}.branch1x1", x), five, three, _conv(w, f"{b}.branch_pool", _average(x))], 1)


def _block_b(w: Weights, b: str, x: Tensor) -> Tensor:
    three = _conv(w, f"{b}.branch3x3dbl_2", _conv(w, f"{b}.branch3x3dbl_1", x), padding=(1, 1))
    three = _conv(w, f"{b}.branch3x3dbl_3", three, stride=2)
    return torch.cat([_conv(w, f"{b}.branch3x3", x, stride=2), three, F.max_pool2d(x, 3, 2)], 1)


def _block_c(w: Weights, b: str, x: Tensor) -> Tensor:
    seven = _conv(w, f"{b}.branch7x7_2", _conv(w, f"{b}.branch7x7_1", x), padding=(0, 3))
    seven = _conv(w, f"{b}.branch7x7_3", seven, padding=(3, 0))
    double = _conv(w, f"{b}.branch7x7dbl_1", x)
    double = _conv(w, f"{b}.branch7x7dbl_2", double, padding=(3, 0))
    double = _conv(w, f"{b}.branch7x7dbl_3", double, padding=(0, 3))
    double = _conv(w, f"{b}.branch7x7dbl_4", double, padding=(3, 0))
    double = _conv(w, f"{b}.branch7x7dbl_5", double, padding=(0, 3))
    return torch.cat([_conv(w, f"{b}.branch1x1", x), seven, double, _conv(w, f"{b}.branch_pool", _average(x))], 1)


def _block_d(w: Weights, b: str, x: Tensor) -> Tensor:
    three = _conv(w, f"{b}.branch3x3_2", _conv(w, f"{b}.branch3x3_1", x), stride=2)
    seven = _conv(w, f"{b}.branch7x7x3_2", _conv(w, f"{b}.branch7x7x3_1", x), padding=(0, 3))
    seven = _conv(w, f"{b}.branch7x7x3_3", seven, padding=(3, 0))
    return torch.cat([three, _conv(w, f"{b}.branch7x7x3_4", seven, stride=2), F.max_pool2d(x, 3, 2)], 1)


def _block_e(w: Weights, b: str, x: Tensor, pooled: Tensor) -> Tensor:
    three = _conv(w, f"{b}.branch3x3_1", x)
    a, c = _conv(w, f"{b}.branch3x3_2a", three, padding=(0, 1)), _conv(w, f"{b}.branch3x3_2b", three, padding=(1, 0))
    double = _conv(w, f"{b}.branch3x3dbl_2", _conv(w, f"{b}.branch3x3dbl_1", x), padding=(1, 1))
    d = _conv(w, f"{b}.branch3x3dbl_3a", double, padding=(0, 1))
    e = _conv(w, f"{b}.branch3x3dbl_3b", double, padding=(1, 0))
    return torch.cat([_conv(w, f"{b}.branch1x1", x), a, c, d, e, _conv(w, f"{b}.branch_pool", pooled)], 1)


@torch.no_grad()
def activations(w: Weights, images: np.ndarray) -> dict[str, Tensor]:
    """2048 features, 1008 logits without and with bias, and the spatial features of uint8 images (n, 3, h, w)."""
    x = (torch.from_numpy(resize(images)) - 128) / 128
    x = _conv(w, "Conv2d_1a_3x3", x, stride=2)
    x = _conv(w, "Conv2d_2a_3x3", x)
    x = F.max_pool2d(_conv(w, "Conv2d_2b_3x3", x, padding=(1, 1)), 3, 2)
    x = F.max_pool2d(_conv(w, "Conv2d_4a_3x3", _conv(w, "Conv2d_3b_1x1", x)), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_a(w, block, x)
    x = _block_b(w, "Mixed_6a", x)
    x = _block_c(w, "Mixed_6c", _block_c(w, "Mixed_6b", x))
    first = _conv(w, "Mixed_6d.branch1x1", x)[:, :7]
    x = _block_c(w, "Mixed_6e", _block_c(w, "Mixed_6d", x))
    x = _block_d(w, "Mixed_7a", x)
    x = _block_e(w, "Mixed_7b", x, _average(x))
    x = _block_e(w, "Mixed_7c", x, F.max_pool2d(x, 3, 1, 1))
    features = x.flatten(2).mean(2)
    logits = features @ w["fc.weight"].T
    spatial = torch.stack([first[:, k, i, j] for i in range(17) for j in range(17) for k in range(7)], 1)
    return {"features": features, "logits": logits, "biased": logits + w["fc.bias"], "spatial": spatial}
