"""SiT, the transformer on patches of an image, conditioned by adaptive layer normalisation that starts at zero.

    h ← Patch(x) + position
    h ← h + g_1 · Attention((1 + s_1) N(h) + b_1),   h ← h + g_2 · MLP((1 + s_2) N(h) + b_2)      (depth times)
    output = Unpatch(Linear((1 + s) N(h) + b)),       (b_1, s_1, g_1, b_2, s_2, g_2), (b, s) = Linear(SiLU(c))

N is layer normalisation without weights, c the conditioning vector of `shortflow.nn.conditioning`. All gates and the
last layer start at zero, so the network starts as the zero function. Names of the weights follow the published ones.

With `modulation_norm` each of the vectors b, s and g is divided by its root mean square before it is used, so that how
strongly the blocks answer to a time is bounded (the "semi-Lipschitz" transformer of TVM, with normalised q and k).

Where the network is told a sequence, each block attends to its tokens between the two:

    h ← h + CrossAttention(N(h), tokens),    with a last layer that starts at zero

The velocity head is a second final layer, and before it a copy of the last `head_depth` blocks with weights of its own,
which read what the blocks before them return.

Sources: Peebles & Xie 2023 (DiT), section 3.2; Ma et al. 2024 (SiT); the velocity head: arXiv 2512.02012;
the normalised modulation: TVM, arXiv 2511.19797, and its code, where N is a division by the root mean square, too;
cross-attention in each block, not modulated: PixArt-α, arXiv 2310.00426, section 2.3 (which does not normalise h).
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from shortflow.dropout import Dropout
from shortflow.errors import ShortflowError
from shortflow.nn.attention import Attention, CrossAttention
from shortflow.nn.conditioning import ConditionedNetwork
from shortflow.nn.embeddings import TimeEmbedding, position_embedding
from shortflow.nn.gelu import GELU
from shortflow.nn.norms import LayerNorm, PartNorm
from shortflow.nn.recomputing import recomputed
from shortflow.products import Linear

__all__ = ["SIZES", "Positions", "SiT", "Size", "faults", "unpatchify"]

_ZERO = ("final_layer.linear", "velocity_layer.linear", "logvar_linear")

Positions = Literal["fixed", "stored"]


class Size(NamedTuple):
    """How large a SiT is: blocks, length of a token, attention heads."""

    depth: int
    width: int
    heads: int


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "tiny": Size(2, 64, 4),
        "digits": Size(4, 96, 4),
        "mnist": Size(6, 192, 6),
        "S": Size(12, 384, 6),
        "B": Size(12, 768, 12),
        "M": Size(16, 1024, 16),
        "L": Size(24, 1024, 16),
        "XL": Size(28, 1152, 16),
    }
)
"""The published sizes (DiT, table 1; M as used with MeanFlow) and three small ones for small images."""


def faults(
    *,
    width: int,
    depth: int,
    heads: int,
    patch: int,
    mlp_ratio: float,
    dropout: float,
    head_depth: int = 0,
    frequencies: int = 256,
) -> list[str]:
    """Everything that is wrong with the settings of a SiT, one sentence each; empty if nothing is."""
    counts = {"width": width, "depth": depth, "heads": heads, "patch": patch}
    found = [f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1]
    if width % 4:
        found.append(f"width must be a multiple of 4 (two-dimensional positions), got {width}")
    if heads >= 1 and width % heads:
        found.append(f"heads must divide width, got heads={heads}, width={width}")
    if not (math.isfinite(mlp_ratio) and mlp_ratio * width >= 1):
        found.append(f"mlp_ratio must be positive, got {mlp_ratio}")
    if not 0 <= dropout < 1:
        found.append(f"dropout must be in [0, 1), got {dropout}")
    if not 0 <= head_depth <= depth:
        found.append(f"head_depth must be between 0 and the depth of {depth}, got {head_depth}")
    if frequencies < 2 or frequencies % 2:
        found.append(f"frequencies must be a positive even number (cosines and sines), got {frequencies}")
    return found


def unpatchify(tokens: Float[Tensor, "b n f"], shape: tuple[int, int, int], patch: int) -> Float[Tensor, "b c h w"]:
    """The images whose patches, row by row, are the tokens; within a token the order is (row, column, channel)."""
    c, h, w = shape
    pixels = tokens.reshape(tokens.shape[0], h // patch, w // patch, patch, patch, c)
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], c, h, w)


def _modulate(x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]) -> Tensor:
    return x * (1 + scale) + shift


def _modulation(width: int, ways: int, norm: bool) -> nn.Sequential:
    layers = [nn.SiLU(), Linear(width, ways * width)]
    return nn.Sequential(*layers, PartNorm(ways)) if norm else nn.Sequential(*layers)


class PatchEmbedding(nn.Module):
    """A token for each patch × patch square of the image, row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()  # a layout in which all that follows copies nothing


class FeedForward(nn.Module):
    """Linear(GELU(Linear(x))) with the tanh form of GELU, then dropout."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = GELU()
        self.fc2 = Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        h, kept = recomputed(self.act, self.fc1(x))
        with kept:
            h = self.fc2(h)
        return self.dropout(h)


class Block(nn.Module):
    """One transformer block with six-way adaptive normalisation; with `sequences` it attends to other tokens, too."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        mlp_ratio: float,
        qk_norm: bool,
        modulation_norm: bool,
        dropout: float,
        sequences: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width=width, heads=heads, qk_norm=qk_norm, dropout=dropout)
        self.norm2 = LayerNorm(width)
        self.mlp = FeedForward(width, int(width * mlp_ratio), dropout)
        self.adaLN_modulation = _modulation(width, 6, modulation_norm)
        self.norm_cross = LayerNorm(width) if sequences else None
        self.cross = CrossAttention(width=width, heads=heads, qk_norm=qk_norm, dropout=dropout) if sequences else None

    def forward(
        self, h: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], *tokens: Shaped[Tensor, "b m ..."]
    ) -> Float[Tensor, "b n d"]:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=2)
        x, kept = recomputed(_modulate, self.norm1(h), shift_1, scale_1)
        with kept:
            h = h + gate_1 * self.attn(x)
        if self.cross is not None and self.norm_cross is not None:
            h = h + self.cross(self.norm_cross(h), *tokens)
        x, kept = recomputed(_modulate, self.norm2(h), shift_2, scale_2)
        with kept:
            return h + gate_2 * self.mlp(x)


class FinalLayer(nn.Module):
    """Two-way adaptive normalisation and the projection of each token to the pixels of its patch."""

    def __init__(self, width: int, pixels: int, modulation_norm: bool) -> None:
        super().__init__()
        self.norm_final = LayerNorm(width)
        self.linear = Linear(width, pixels)
        self.adaLN_modulation = _modulation(width, 2, modulation_norm)

    def forward(self, h: Float[Tensor, "b n d"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b n pixels"]:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        return self.linear(_modulate(self.norm_final(h), shift, scale))


class SiT(ConditionedNetwork):
    """Transformer for images of shape (c, h, w); keeps the contract of `shortflow.nn`.

    Args:
        shape: (channels, height, width) of an image or latent; the sides may differ.
        patch: side of a patch; divides both sides.
        width, depth, heads: length of a token, number of blocks, attention heads (see `SIZES`).
        mlp_ratio: hidden units of a block's MLP over `width`.
        num_classes, null_class, second_time, log_variance, guidance, velocity_head, condition: see
            `ConditionedNetwork`.
        qk_norm: normalise queries and keys.
        modulation_norm: normalise what the conditioning vector shifts, scales and gates with (see above).
        dropout: probability of dropping an entry of what attention or MLP adds.
        head_depth: number of the last blocks that the velocity head, where there is one, has of its own.
        frequencies: cosines and sines of a time.
        positions: "fixed" are those of `position_embedding`, a function of the shape; "stored" ones start as these and
            are kept with the weights, without being trained (weights of others whose positions have drifted).

    Raises:
        ShortflowError: if the settings do not fit each other or the shape.
    """

    pos_embed: Tensor
    sequences: ClassVar = True

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        qk_norm: bool = False,
        modulation_norm: bool = False,
        dropout: float = 0.0,
        head_depth: int = 0,
        frequencies: int = 256,
        positions: Positions = "fixed",
        condition: tuple[int, ...] | None = None,
    ) -> None:
        found = faults(
            width=width,
            depth=depth,
            heads=heads,
            patch=patch,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            head_depth=head_depth,
            frequencies=frequencies,
        )
        if found:
            raise ShortflowError("; ".join(found))
        c, h, w = shape
        _check_patch(shape, patch)
        super().__init__(
            shape=shape,
            width=width,
            num_classes=num_classes,
            null_class=null_class,
            second_time=second_time,
            log_variance=log_variance,
            guidance=guidance,
            velocity_head=velocity_head,
            condition=condition,
            embedding=partial(TimeEmbedding, frequencies=frequencies),
        )
        self.patch = patch
        self.x_embedder = PatchEmbedding(c, width, patch)
        # A function of the shape, so it is no part of a checkpoint unless that is asked for.
        fixed = position_embedding(h // patch, w // patch, width)
        self.register_buffer("pos_embed", fixed, persistent=positions == "stored")

        def block() -> Block:
            return Block(
                width=width,
                heads=heads,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                modulation_norm=modulation_norm,
                dropout=dropout,
                sequences=condition is not None and len(condition) == 2,
            )

        def last() -> FinalLayer:
            return FinalLayer(width, patch * patch * c, modulation_norm)

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.final_layer = last()
        self.shared = depth - head_depth if velocity_head else depth
        self.velocity_blocks = nn.ModuleList(block() for _ in range(depth - self.shared))
        self.velocity_layer = last() if velocity_head else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew: Xavier-uniform linear layers, embeddings of deviation 0.02, zero gates and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        if self.x_embedder.proj.bias is not None:
            nn.init.zeros_(self.x_embedder.proj.bias)
        for module in self.modules():
            if isinstance(module, TimeEmbedding):
                for layer in module.mlp:
                    if isinstance(layer, nn.Linear):
                        nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, weight in self.named_parameters():
            if "adaLN_modulation" in name or ".cross.proj." in name or name.startswith(_ZERO):
                nn.init.zeros_(weight)

    def trunk(
        self, x: Float[Tensor, "b c h w"], c: Float[Tensor, "b d"], *tokens: Shaped[Tensor, "b m ..."]
    ) -> Float[Tensor, "b n d"]:
        h = self.x_embedder(x) + self.pos_embed
        for block in self.blocks[: self.shared]:
            h = self.run(block, h, c, *tokens)
        return h

    def output(
        self, h: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], *tokens: Shaped[Tensor, "b m ..."]
    ) -> Float[Tensor, "b c h w"]:
        return self._head(h, c, self.blocks[self.shared :], self.final_layer, *tokens)

    def velocity(
        self, h: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], *tokens: Shaped[Tensor, "b m ..."]
    ) -> Float[Tensor, "b c h w"]:
        return self._head(h, c, self.velocity_blocks, self.velocity_layer, *tokens)

    def _head(
        self, h: Tensor, c: Tensor, blocks: Iterable[nn.Module], last: nn.Module | None, *tokens: Tensor
    ) -> Tensor:
        assert last is not None
        for block in blocks:
            h = self.run(block, h, c, *tokens)
        channels, rows, columns = self.shape
        return unpatchify(last(h, c), (channels, rows, columns), self.patch)


def _check_patch(shape: tuple[int, int, int], patch: int) -> None:
    c, h, w = shape
    if min(c, h, w) < 1:
        raise ShortflowError(f"shape must be (channels, height, width), all at least 1, got {tuple(shape)}")
    if h % patch or w % patch:
        common = math.gcd(h, w)
        valid = [p for p in range(1, common + 1) if common % p == 0]
        raise ShortflowError(
            f"patch={patch} does not divide the image of {h}×{w}: valid patches are {', '.join(map(str, valid))}"
        )
