"""Weights as other projects publish them, and what their networks make of them, written from the description alone.

The layout: a patch embedding by convolution, fixed positions, sums of embeddings of times and class, blocks of
attention and MLP with six-way modulation, a last layer with two-way modulation. Nothing here knows the library.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a network; `rows` of the table of classes, `outputs` channels for each channel."""

    width: int = 128
    depth: int = 2
    heads: int = 2
    patch: int = 2
    channels: int = 4
    side: int = 8
    rows: int = 11
    hidden: int = 512
    frequencies: int = 256
    outputs: int = 1


SMALL = Sizes()
OTHER = Sizes(width=384, depth=3, heads=6, patch=4, channels=3, side=16, rows=6, hidden=960, frequencies=64)


def positions(side: int, width: int) -> Tensor:
    """For row i and column j, row by row: [sin jω, cos jω, sin iω, cos iω], ω = 10000^{−k/(width/4)}; in float32."""
    quarter = width // 4
    rows = []
    for i in range(side):
        for j in range(side):
            parts = [
                f(at / 10_000 ** (k / quarter)) for at in (j, i) for f in (math.sin, math.cos) for k in range(quarter)
            ]
            rows.append(parts)
    return torch.tensor(rows, dtype=torch.float64).float()


def weights(
    sizes: Sizes = SMALL,
    *,
    second: bool = False,
    log_variance: bool = False,
    projectors: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random weights under the published names; `second` adds the second embedding, `projectors` REPA's."""
    generator = torch.Generator().manual_seed(seed)
    d, p = sizes.width, sizes.patch
    found: dict[str, Tensor] = {}

    def draw(name: str, *shape: int, gain: float = 1.0) -> None:
        scale = gain / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        found[name] = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    def linear(name: str, out: int, into: int, gain: float = 1.0) -> None:
        draw(f"{name}.weight", out, into, gain=gain)
        draw(f"{name}.bias", out)

    draw("x_embedder.proj.weight", d, sizes.channels, p, p)
    draw("x_embedder.proj.bias", d)
    for name in ("t_embedder", *(("r_embedder",) if second else ())):
        linear(f"{name}.mlp.0", d, sizes.frequencies)
        linear(f"{name}.mlp.2", d, d)
    draw("y_embedder.embedding_table.weight", sizes.rows, d, gain=math.sqrt(d))
    found["pos_embed"] = positions(sizes.side // p, d)[None].to(dtype)
    for i in range(sizes.depth):
        linear(f"blocks.{i}.attn.qkv", 3 * d, d)
        linear(f"blocks.{i}.attn.proj", d, d)
        linear(f"blocks.{i}.mlp.fc1", sizes.hidden, d)
        linear(f"blocks.{i}.mlp.fc2", d, sizes.hidden)
        linear(f"blocks.{i}.adaLN_modulation.1", 6 * d, d, gain=0.5)
    linear("final_layer.linear", p * p * sizes.channels * sizes.outputs, d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d, gain=0.5)
    if log_variance:
        linear("logvar_linear", 1, d)
    if projectors:
        linear("projectors.0.0", 32, d)
        linear("projectors.0.4", 16, 32)
    return found


def embedding(found: dict[str, Tensor], name: str, time: Tensor) -> Tensor:
    """Linear(SiLU(Linear([cos ωt, sin ωt]))) with ω from 1 down to almost 10000⁻¹."""
    first = found[f"{name}.mlp.0.weight"]
    half = first.shape[1] // 2
    angle = time[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, dtype=time.dtype) / half)
    hidden = F.silu(F.linear(torch.cat([angle.cos(), angle.sin()], 1), first, found[f"{name}.mlp.0.bias"]))
    return F.linear(hidden, found[f"{name}.mlp.2.weight"], found[f"{name}.mlp.2.bias"])


def output(
    found: dict[str, Tensor], x: Tensor, label: Tensor, heads: int, time: Tensor, second: Tensor | None = None
) -> Tensor:
    """What the network answers, with all the channels that it has."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, found[f"{name}.weight"], found[f"{name}.bias"])

    b, _, side, _ = x.shape
    kernel = found["x_embedder.proj.weight"]
    d, patch = kernel.shape[0], kernel.shape[-1]
    grid = side // patch
    h = F.conv2d(x, kernel, found["x_embedder.proj.bias"], stride=patch).flatten(2).transpose(1, 2) + found["pos_embed"]
    c = embedding(found, "t_embedder", time) + found["y_embedder.embedding_table.weight"][label]
    if second is not None:
        c = c + embedding(found, "r_embedder", second)
    depth = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("blocks."))
    for i in range(depth):
        block = f"blocks.{i}"
        six = linear(f"{block}.adaLN_modulation.1", F.silu(c))[:, None].split(d, dim=-1)
        y = F.layer_norm(h, (d,), eps=1e-6) * (1 + six[1]) + six[0]
        q, k, v = linear(f"{block}.attn.qkv", y).reshape(b, -1, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.mT / math.sqrt(d // heads), -1) @ v
        h = h + six[2] * linear(f"{block}.attn.proj", mixed.transpose(1, 2).reshape(b, -1, d))
        y = F.layer_norm(h, (d,), eps=1e-6) * (1 + six[4]) + six[3]
        h = h + six[5] * linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", y), approximate="tanh"))
    two = linear("final_layer.adaLN_modulation.1", F.silu(c))[:, None].split(d, dim=-1)
    tokens = linear("final_layer.linear", F.layer_norm(h, (d,), eps=1e-6) * (1 + two[1]) + two[0])
    image = tokens.reshape(b, grid, grid, patch, patch, -1)  # rows, columns, then row, column, channel of a patch
    return torch.einsum("nhwpqc->nchpwq", image).reshape(b, -1, side, side)


def log_variance(found: dict[str, Tensor], time: Tensor) -> Tensor:
    return F.linear(embedding(found, "t_embedder", time), found["logvar_linear.weight"], found["logvar_linear.bias"])[
        :, 0
    ]


def inputs(sizes: Sizes, dtype: torch.dtype, b: int = 3) -> dict[str, Any]:
    """Points, times t > r and classes, the last of which is "no class"."""
    generator = torch.Generator().manual_seed(7)
    return {
        "x": torch.randn(b, sizes.channels, sizes.side, sizes.side, generator=generator, dtype=torch.float64).to(dtype),
        "t": torch.tensor([0.9, 0.35, 1.0], dtype=dtype)[:b],
        "r": torch.tensor([0.2, 0.35, 0.0], dtype=dtype)[:b],
        "label": torch.tensor([1, 0, sizes.rows - 1])[:b],
    }
