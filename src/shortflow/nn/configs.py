"""Networks as values: what to build, apart from what the data and the method decide.

The shape and the classes come from the data, the second time, the guidance and the heads from the method; they are the
arguments of `build`. Everything else about a network is a field of its config, checked when the config is made.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from shortflow.errors import ConfigError, ShortflowError
from shortflow.nn import mlp, sit, unet
from shortflow.nn.embeddings import Spectrum

__all__ = ["MLPConfig", "NetworkConfig", "SiTConfig", "UNetConfig", "parameter_count"]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ABC):
    """Base of all configs. A network of your own enters run files by a subclass, registered with `shortflow.register`:

    @shortflow.register
    @dataclass(frozen=True, kw_only=True)
    class MyConfig(NetworkConfig):
        width: int = 64

        def build(self, shape, num_classes=0, null_class=False, second_time=True, log_variance=False,
                  guidance=False, velocity_head=False):
            return MyNetwork(...)
    """

    @property
    def blocks(self) -> int:
        """A number of tensors that the network has at least, known without building it.

        A model file whose description promises more blocks than it holds tensors is refused at once.
        """
        return 0

    @abstractmethod
    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        condition: tuple[int, ...] | None = None,
    ) -> nn.Module:
        """A new network that keeps the contract of `shortflow.nn`.

        Args:
            shape: shape of one point.
            num_classes, null_class: number of classes (0: unconditional), and whether a row for "no class" is added.
            second_time, guidance: whether the network takes them.
            log_variance, velocity_head: whether it has these heads.
            condition: shape of the vector (d,) or sequence (n, d) that it is told in place of a class. Passed
                only where the data have such conditions, so that a network for none need not have the argument.

        Raises:
            ShortflowError: if it cannot be built so, with the remedy.
        """


@dataclass(frozen=True, kw_only=True)
class SiTConfig(NetworkConfig):
    """A SiT for images of any shape.

    Attributes:
        size: a key of `shortflow.nn.SIZES`.
        width, depth, heads: replace those of the size where given.
        patch: side of a patch.
        qk_norm: normalise queries and keys.
        modulation_norm: normalise what times and classes shift, scale and gate with, as in TVM (see `tvm`).
        dropout: probability of dropping an entry of what attention or MLP adds.
        mlp_ratio: hidden units of a block's MLP over the width.
        head_depth: blocks at the end that the velocity head has of its own; improved MeanFlow takes 8. Without a
            velocity head it changes nothing.
        frequencies: cosines and sines that a time is embedded by.
        positions: "fixed", or "stored" with the weights, for weights of others that have positions of their own.

    Raises:
        ConfigError: for an unknown size (naming the nearest) and for every impossible setting.
    """

    size: str = "digits"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int = 2
    qk_norm: bool = False
    modulation_norm: bool = False
    dropout: float = 0.0
    mlp_ratio: float = 4.0
    head_depth: int = 0
    frequencies: int = 256
    positions: sit.Positions = "fixed"

    def __post_init__(self) -> None:
        _check_size(self.size, sit.SIZES)
        depth, width, heads = self.dimensions
        found = sit.faults(
            width=width,
            depth=depth,
            heads=heads,
            patch=self.patch,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            head_depth=self.head_depth,
            frequencies=self.frequencies,
        )
        if found:
            raise ConfigError("; ".join(found))

    @property
    def dimensions(self) -> sit.Size:
        """(depth, width, heads), those given in place of those of the size."""
        size = sit.SIZES[self.size]
        return sit.Size(
            depth=size.depth if self.depth is None else self.depth,
            width=size.width if self.width is None else self.width,
            heads=size.heads if self.heads is None else self.heads,
        )

    @property
    def blocks(self) -> int:
        return self.dimensions.depth

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        condition: tuple[int, ...] | None = None,
    ) -> nn.Module:
        """The network for images of `shape` (c, h, w).

        Raises:
            ShortflowError: if the shape is not that of an image or the patch does not divide it.
        """
        if len(shape) != 3:
            raise ShortflowError(
                f"a SiT takes images of shape (channels, height, width), got {tuple(shape)}; use an MLP for points"
            )
        depth, width, heads = self.dimensions
        return sit.SiT(
            shape=(shape[0], shape[1], shape[2]),
            patch=self.patch,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=self.mlp_ratio,
            num_classes=num_classes,
            null_class=null_class,
            second_time=second_time,
            log_variance=log_variance,
            guidance=guidance,
            velocity_head=velocity_head,
            condition=condition,
            qk_norm=self.qk_norm,
            modulation_norm=self.modulation_norm,
            dropout=self.dropout,
            head_depth=self.head_depth,
            frequencies=self.frequencies,
            positions=self.positions,
        )


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """A U-Net for images whose sides can be halved once for every level but the first.

    Attributes:
        size: a key of `shortflow.nn.unet.SIZES`; "cifar10" is the published DDPM++, of 55.7 million weights.
        channels, multipliers, depth, attention, heads: replace those of the size where given; `attention` names
            levels, counted from 0, the full resolution.
        dropout: probability of dropping an entry before the last convolution of a block.
        resample_filter: weights of the filter along each side where sides are halved or doubled: [1, 1] as in DDPM++,
            or [1, 3, 3, 1] as in NCSN++.
        embedding, scale: spectrum and scale of the time embedding, see `shortflow.nn.embeddings.TimeEmbedding`.

    Raises:
        ConfigError: for an unknown size (naming the nearest) and for every impossible setting.
    """

    size: str = "digits"
    channels: int | None = None
    multipliers: tuple[int, ...] | None = None
    depth: int | None = None
    attention: tuple[int, ...] | None = None
    heads: int | None = None
    dropout: float = 0.0
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    embedding: Spectrum = "positional"
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_size(self.size, unet.SIZES)
        found = unet.faults(
            **self.dimensions._asdict(), dropout=self.dropout, resample_filter=self.resample_filter, scale=self.scale
        )
        if found:
            raise ConfigError("; ".join(found))

    @property
    def dimensions(self) -> unet.USize:
        """(channels, multipliers, depth, attention, heads), those given in place of those of the size."""
        given = {name: getattr(self, name) for name in unet.USize._fields}
        return unet.SIZES[self.size]._replace(**{name: value for name, value in given.items() if value is not None})

    @property
    def blocks(self) -> int:
        levels = len(self.dimensions.multipliers)
        return levels * (2 * self.dimensions.depth + 3)

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        condition: tuple[int, ...] | None = None,
    ) -> nn.Module:
        """The network for images of `shape` (c, h, w).

        Raises:
            ShortflowError: if the shape is not that of an image or its sides cannot be halved so often.
        """
        return unet.UNet(
            shape=shape,
            **self.dimensions._asdict(),
            num_classes=num_classes,
            null_class=null_class,
            second_time=second_time,
            log_variance=log_variance,
            guidance=guidance,
            velocity_head=velocity_head,
            condition=condition,
            dropout=self.dropout,
            resample_filter=self.resample_filter,
            embedding=self.embedding,
            scale=self.scale,
        )


@dataclass(frozen=True, kw_only=True)
class MLPConfig(NetworkConfig):
    """An MLP for points of any dimension: units of a layer, residual blocks, dropout of hidden units.

    Raises:
        ConfigError: for every impossible setting.
    """

    width: int = 128
    depth: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        found = mlp.faults(width=self.width, depth=self.depth, dropout=self.dropout)
        if found:
            raise ConfigError("; ".join(found))

    @property
    def blocks(self) -> int:
        return self.depth

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
        condition: tuple[int, ...] | None = None,
    ) -> nn.Module:
        """The network for points of `shape` (d,).

        Raises:
            ShortflowError: if the shape has more than one axis.
        """
        return mlp.MLP(
            shape=shape,
            width=self.width,
            depth=self.depth,
            num_classes=num_classes,
            null_class=null_class,
            second_time=second_time,
            log_variance=log_variance,
            guidance=guidance,
            velocity_head=velocity_head,
            condition=condition,
            dropout=self.dropout,
        )


def parameter_count(network: nn.Module) -> int:
    """Number of weights of a network; buffers such as fixed positions are not counted."""
    return sum(weight.numel() for weight in network.parameters())


def _check_size(size: str, sizes: Iterable[str]) -> None:
    # By lower case, so that "xl" finds "XL".
    names = {name.lower(): name for name in sizes}
    if size not in names.values():
        found = difflib.get_close_matches(size.lower(), list(names), n=1, cutoff=0.4)
        nearest = f" (did you mean {names[found[0]]!r}?)" if found else ""
        raise ConfigError(f"unknown size {size!r}{nearest}; sizes are {', '.join(names.values())}")
