"""The U-Net of diffusion models on pixels: DDPM++, with its Fourier embedding and FIR filters of NCSN++ as options.

    h ← Conv(x), then down and up again through levels of half the sides each, every block being
    R(x, c) = √½ (Skip(x↕) + Conv(Dropout(SiLU(N(Conv(SiLU(N(x))↕) + Linear(SiLU(c)))))))
    A(h)    = √½ (h + Attention(N(h)))                                  where the block attends
    output  = Conv(SiLU(N(h)))

On the way up the blocks also read what the blocks on the way down returned. N is group normalisation, ↕ halves or
doubles the sides in the blocks between levels, c is the conditioning vector of `shortflow.nn.conditioning`. The last
convolution of every block, the projection of every attention and the last layers start at zero, so the network starts
as the zero function.

Sources: Song et al. 2021 (arXiv 2011.13456), section 4.1 and appendix H; the arrangement of blocks and attention
follows Karras et al. 2022 (arXiv 2206.00364), table 8.
"""

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shortflow.dropout import Dropout
from shortflow.errors import ShortflowError
from shortflow.nn.attention import Attention
from shortflow.nn.conditioning import ConditionedNetwork
from shortflow.nn.embeddings import Spectrum, TimeEmbedding
from shortflow.nn.norms import GroupNorm
from shortflow.nn.resample import Resample, downsample, filter_faults, upsample
from shortflow.products import Linear

__all__ = ["SIZES", "UNet", "USize", "faults"]

Image = Float[Tensor, "b c h w"]
Changed = Float[Tensor, "b k i j"]  # an image of as many rows, with other channels or sides


class USize(NamedTuple):
    """How large a U-Net is.

    channels: channels of the first level.
    multipliers: channels of each level over those of the first.
    depth: residual blocks of a level on the way down (one more on the way up).
    attention: the levels whose blocks attend, counted from 0, the full resolution.
    heads: attention heads.
    """

    channels: int
    multipliers: tuple[int, ...]
    depth: int
    attention: tuple[int, ...]
    heads: int


SIZES: Mapping[str, USize] = MappingProxyType(
    {
        "tiny": USize(8, (1, 2), 1, (1,), 1),
        "digits": USize(16, (1, 2), 1, (1,), 1),
        "mnist": USize(16, (1, 2, 2), 1, (2,), 1),
        "cifar10": USize(128, (2, 2, 2), 4, (1,), 1),
    }
)


def faults(
    *,
    channels: int,
    multipliers: tuple[int, ...],
    depth: int,
    attention: tuple[int, ...],
    heads: int,
    dropout: float,
    resample_filter: tuple[float, ...],
    scale: float,
) -> list[str]:
    """Everything that is wrong with the settings of a U-Net, one sentence each; empty if nothing is."""
    found = []
    if channels < 4 or channels % 4:
        found.append(f"channels must be a positive multiple of 4, got {channels}")
    if not multipliers or min(multipliers) < 1:
        found.append(f"multipliers must be whole numbers of at least 1, one a level, got {list(multipliers)}")
    counts = {"depth": depth, "heads": heads}
    found += [f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1]
    beyond = [level for level in attention if not 0 <= level < len(multipliers)]
    if beyond:
        found.append(f"attention names the levels 0 to {len(multipliers) - 1} (0: full resolution), got {beyond[0]}")
    if heads >= 1 and not found:
        # The blocks between the ways down and up, on the last level, always attend.
        widths = {channels * multipliers[level] for level in (*attention, len(multipliers) - 1)}
        found += [f"heads must divide the {w} channels that attend, got {heads}" for w in sorted(widths) if w % heads]
    if not 0 <= dropout < 1:
        found.append(f"dropout must be in [0, 1), got {dropout}")
    if not (math.isfinite(scale) and scale > 0):
        found.append(f"scale must be a positive finite number, got {scale}")
    return found + filter_faults(resample_filter)


class SelfAttention(nn.Module):
    """√½ (h + Attention(N(h))), each pixel a token."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.attn = Attention(width=channels, heads=heads)

    def forward(self, h: Image) -> Image:
        tokens = self.attn(self.norm(h).flatten(2).transpose(1, 2))
        return math.sqrt(0.5) * (h + tokens.transpose(1, 2).reshape(h.shape))


class ResidualBlock(nn.Module):
    """The block R, and A after it where it attends (see the module).

    Args:
        inputs, outputs: channels before and after.
        width: length of the conditioning vector.
        heads: attention heads; 0 for none.
        dropout: probability of dropping a channel's pixel before the last convolution.
        resample: what happens to the sides; None for nothing.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, heads: int, dropout: float, resample: Resample | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = GroupNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.condition = Linear(width, outputs)
        self.norm2 = GroupNorm(outputs)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        plain = inputs == outputs and resample is None
        self.skip = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1)
        self.attention = SelfAttention(outputs, heads) if heads else None

    def forward(self, x: Image, c: Float[Tensor, "b d"]) -> Changed:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h) + self.condition(c)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        h = math.sqrt(0.5) * (self.skip(x) + h)
        return h if self.attention is None else self.attention(h)


class FinalLayer(nn.Module):
    """Conv(SiLU(N(h))), from the channels of the first level to those of the image."""

    def __init__(self, channels: int, colours: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.conv = nn.Conv2d(channels, colours, 3, padding=1)

    def forward(self, h: Image) -> Changed:
        return self.conv(F.silu(self.norm(h)))


class UNet(ConditionedNetwork):
    """U-Net for images of shape (c, h, w); keeps the contract of `shortflow.nn`.

    Args:
        shape: (colours, height, width) of an image; with n levels both sides are multiples of 2^(n−1).
        channels, multipliers, depth, attention, heads: see `USize`. The block between the ways down and up attends
            as well, as does on the way up only the last block of a level in `attention`.
        num_classes, null_class, second_time, log_variance, guidance, velocity_head, condition: see
            `ConditionedNetwork`; a condition is a vector.
            The velocity head is a second final layer.
        dropout: probability of dropping an entry before the last convolution of a block.
        resample_filter: weights of the filter along each side where sides are halved or doubled: (1, 1) averages and
            repeats (DDPM++), (1, 3, 3, 1) is the FIR filter of NCSN++.
        embedding, scale: spectrum and scale of the time embedding, see `TimeEmbedding`. Time derivatives grow with
            the scale: the 16 of NCSN++ with "fourier" is for objectives without them.

    Raises:
        ShortflowError: if the settings do not fit each other or the shape.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        channels: int,
        multipliers: tuple[int, ...],
        depth: int,
        attention: tuple[int, ...] = (),
        heads: int = 1,
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        dropout: float = 0.0,
        resample_filter: tuple[float, ...] = (1.0, 1.0),
        embedding: Spectrum = "positional",
        scale: float = 1.0,
        condition: tuple[int, ...] | None = None,
    ) -> None:
        found = faults(
            channels=channels,
            multipliers=multipliers,
            depth=depth,
            attention=attention,
            heads=heads,
            dropout=dropout,
            resample_filter=resample_filter,
            scale=scale,
        )
        if found:
            raise ShortflowError("; ".join(found))
        _check_sides(shape, len(multipliers))
        width = 4 * channels
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
            embedding=partial(TimeEmbedding, frequencies=channels, scale=scale, spectrum=embedding),
        )
        block = partial(ResidualBlock, width=width, dropout=dropout)
        down, up = partial(downsample, taps=resample_filter), partial(upsample, taps=resample_filter)
        self.first = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        now, skips = channels, [channels]
        for level, multiplier in enumerate(multipliers):
            attending = heads if level in attention else 0
            if level > 0:
                self.encoder.append(block(now, now, heads=0, resample=down))
                skips.append(now)
            for _ in range(depth):
                self.encoder.append(block(now, channels * multiplier, heads=attending))
                now = channels * multiplier
                skips.append(now)
        self.middle = nn.ModuleList([block(now, now, heads=heads), block(now, now, heads=0)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(depth + 1):
                attending = heads if level in attention and i == depth else 0
                self.decoder.append(block(now + skips.pop(), channels * multiplier, heads=attending))
                now = channels * multiplier
            if level > 0:
                self.decoder.append(block(now, now, heads=0, resample=up))
        self.final_layer = FinalLayer(now, shape[0])
        self.velocity_layer = FinalLayer(now, shape[0]) if velocity_head else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew: Xavier-uniform, with what adds to a skip and the last layers at zero.

        Queries, keys and values are smaller by √0.2, rows of a table of classes have deviation 0.02.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("attn.qkv.weight"):
                weight.mul_(math.sqrt(0.2))
            if name.endswith(("conv2.weight", "attn.proj.weight", "_layer.conv.weight", "logvar_linear.weight")):
                nn.init.zeros_(weight)

    def trunk(self, x: Image, c: Float[Tensor, "b d"]) -> Changed:
        c = F.silu(c)
        h = self.first(x)
        skips = [h]
        for block in self.encoder:
            h = self.run(block, h, c)
            skips.append(h)
        for block in self.middle:
            h = self.run(block, h, c)
        for block in self.decoder:
            if block.resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.run(block, h, c)
        return h

    def output(self, h: Image, c: Float[Tensor, "b d"]) -> Changed:
        return self.final_layer(h)

    def velocity(self, h: Image, c: Float[Tensor, "b d"]) -> Changed:
        assert self.velocity_layer is not None
        return self.velocity_layer(h)


def _check_sides(shape: tuple[int, ...], levels: int) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ShortflowError(
            f"a U-Net takes images of shape (channels, height, width), all at least 1, got {tuple(shape)}; "
            "use an MLP for points"
        )
    _, h, w = shape
    factor = 2 ** min(levels - 1, 63)
    if h % factor or w % factor:
        most = (math.gcd(h, w) & -math.gcd(h, w)).bit_length()
        raise ShortflowError(
            f"a U-Net of {levels} levels halves the sides {levels - 1} times, so they must be multiples of {factor}, "
            f"got {h}×{w}; use other sides or at most {most} level{'s' if most > 1 else ''} (multipliers)"
        )
